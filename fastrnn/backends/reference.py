"""Plain torch, one step at a time: the first oracle, and the differentiable form of everything.

Every cell and option is written here once more, as directly as the formulas stand in
``csrc/core/cells/README.md``, so that autograd gives its gradients, of any order. Nothing here is
fast, and nothing here is shared with the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..problem import LayerInputs, LayerOutputs, Problem
from .base import DifferentiableBackend, Verdict

#: ``step(x, h, c, weights) -> (h, c)``; weights are ``w_ih, w_hh, b_ih, b_hh, w_hr``.
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
Step = Callable[[Tensor, Tensor, Tensor | None, Weights], tuple[Tensor, Tensor | None]]


def rnn_step(activation: Callable[[Tensor], Tensor]) -> Step:
    """``h' = g(W_ih x + b_ih + W_hh h + b_hh)``."""

    def step(
        x: Tensor, h: Tensor, c: Tensor | None, weights: Weights
    ) -> tuple[Tensor, Tensor | None]:
        w_ih, w_hh, b_ih, b_hh, _ = weights
        return activation(linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)), None

    return step


def lstm_step(
    x: Tensor, h: Tensor, c: Tensor | None, weights: Weights
) -> tuple[Tensor, Tensor | None]:
    """``c' = f c + i g``, ``h' = o tanh(c')``, with ``h' = W_hr (o tanh(c'))`` if projected."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    assert c is not None
    i, f, g, o = (linear(x, w_ih, b_ih) + linear(h, w_hh, b_hh)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if w_hr is None else linear(h, w_hr)), c


def gru_step(
    x: Tensor, h: Tensor, c: Tensor | None, weights: Weights
) -> tuple[Tensor, Tensor | None]:
    """``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``, ``h' = (1 - z) n + z h``."""
    w_ih, w_hh, b_ih, b_hh, _ = weights
    x_r, x_z, x_n = linear(x, w_ih, b_ih).chunk(3, dim=-1)
    h_r, h_z, h_n = linear(h, w_hh, b_hh).chunk(3, dim=-1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return (1 - z) * n + z * h, None


def gru_reset_before_step(
    x: Tensor, h: Tensor, c: Tensor | None, weights: Weights
) -> tuple[Tensor, Tensor | None]:
    """``n = tanh(W_in x + b_in + W_hn (r h) + b_hn)``, ``h' = (1 - z) n + z h``."""
    w_ih, w_hh, b_ih, b_hh, _ = weights
    units = h.shape[-1]
    x_r, x_z, x_n = linear(x, w_ih, b_ih).chunk(3, dim=-1)
    b_rz, b_n = (None, None) if b_hh is None else b_hh.split([2 * units, units])
    w_rz, w_n = w_hh.split([2 * units, units])
    h_r, h_z = linear(h, w_rz, b_rz).chunk(2, dim=-1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + linear(r * h, w_n, b_n)).tanh()
    return (1 - z) * n + z * h, None


STEPS: dict[str, Step] = {
    "rnn_tanh": rnn_step(torch.tanh),
    "rnn_relu": rnn_step(torch.relu),
    "rnn_sigmoid": rnn_step(torch.sigmoid),
    "rnn_identity": rnn_step(lambda x: x),
    "lstm": lstm_step,
    "gru": gru_step,
    "gru_reset_before": gru_reset_before_step,
}


def _weights_of(problem: Problem, weights: Sequence[Tensor], direction: int) -> Weights:
    own = problem.direction_weights(weights, direction)
    w_hr = own.pop() if problem.projected else None
    b_ih, b_hh = (own[2], own[3]) if problem.bias else (None, None)
    return own[0], own[1], b_ih, b_hh, w_hr


def _padded_rows(batch_sizes: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Row of the padded batch that each packed row stands for, and the lengths."""
    steps = batch_sizes.shape[0]
    rows = torch.arange(batch, device=batch_sizes.device)
    valid = rows.expand(steps, batch) < batch_sizes[:, None]
    return valid.flatten().nonzero()[:, 0], valid.sum(0)


class ReferenceBackend(DifferentiableBackend):
    name = "reference"

    def available(self) -> Verdict:
        return Verdict(True, "needs torch only")

    def supports(self, problem: Problem) -> Verdict:
        return Verdict(True, "every cell and option, one step at a time")

    def layer(self, problem: Problem, inputs: LayerInputs) -> LayerOutputs:
        x, lengths = inputs.x, inputs.lengths
        packed_rows = None
        if inputs.batch_sizes is not None:
            packed_rows, lengths = _padded_rows(inputs.batch_sizes, problem.batch)
            packed_rows = packed_rows.to(x.device)
            padded = x.new_zeros(problem.steps * problem.batch, problem.input_size)
            x = padded.index_copy(0, packed_rows, x)
            x = x.view(problem.steps, problem.batch, problem.input_size)
        valid = None
        if lengths is not None:
            steps = torch.arange(problem.steps, device=x.device)
            valid = steps[:, None] < lengths.to(x.device)
            # What lies beyond the end may be anything, NaN included: 0 * NaN in a gradient is NaN.
            x = torch.where(valid[:, :, None], x, 0)

        results = [self._direction(problem, inputs, x, valid, d) for d in range(problem.directions)]
        y = torch.cat([result[0] for result in results], dim=-1)
        h_n = torch.stack([result[1] for result in results])
        c_n = cell_states = None
        if problem.cell.has_cell_state:
            cell_states = torch.cat([result[2] for result in results], dim=-1)
            c_n = torch.stack([result[3] for result in results])
        if packed_rows is not None:
            y = y.flatten(0, 1).index_select(0, packed_rows)
            if cell_states is not None:
                cell_states = cell_states.flatten(0, 1).index_select(0, packed_rows)
        return LayerOutputs(y, h_n, c_n, cell_states, None)

    def _direction(
        self, problem: Problem, inputs: LayerInputs, x: Tensor, valid: Tensor | None, direction: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One direction: outputs and cell states of all steps, then the last h and c."""
        step = STEPS[problem.cell.name]
        weights = _weights_of(problem, inputs.weights, direction)
        if problem.x_is_gates:
            gates = weights[0].shape[0]
            x = x[..., direction * gates : (direction + 1) * gates]
            weights = (torch.eye(gates, dtype=x.dtype, device=x.device), *weights[1:])
        has_c = problem.cell.has_cell_state

        def initial(state: Tensor | None, units: int) -> Tensor:
            return x.new_zeros(problem.batch, units) if state is None else state[direction]

        h = initial(inputs.h0, problem.output_size)
        c = initial(inputs.c0, problem.hidden_size) if has_c else None
        empty = x.new_empty(0)
        ys: list[Tensor] = [empty] * problem.steps
        cs: list[Tensor] = [empty] * problem.steps
        order = range(problem.steps)
        for t in reversed(order) if direction else order:
            h_prev, c_prev = h, c
            if inputs.reset is not None:
                start = inputs.reset[t, :, None]
                h_prev = torch.where(start, 0, h_prev)
                c_prev = None if c_prev is None else torch.where(start, 0, c_prev)
            h_new, c_new = step(x[t], h_prev, c_prev, weights)
            if valid is None:
                h, c, ys[t] = h_new, c_new, h_new
                cs[t] = empty if c_new is None else c_new
                continue
            live = valid[t, :, None]
            h = torch.where(live, h_new, h)
            ys[t] = torch.where(live, h_new, 0)
            if c is not None and c_new is not None:
                c = torch.where(live, c_new, c)
                cs[t] = torch.where(live, c_new, 0)
        # Copies: at T = 1 the last output and the last state are one tensor, and no output of a
        # layer may share memory with another output or with an input.
        h_n = h.clone()
        c_n = empty if c is None else c.clone()
        return torch.stack(ys), h_n, torch.stack(cs) if has_c else empty, c_n
