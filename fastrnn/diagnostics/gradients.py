"""How much of a loss's gradient reaches each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .passes import (
    State,
    Weights,
    after,
    before,
    gate_values,
    layout_of,
    run_layers,
    time_major,
    weights_of,
    widened,
)

Loss = Callable[[Tensor, State], Tensor]


class StateGradients(NamedTuple):
    """Gradients of a loss with respect to the states of a pass.

    Attributes:
        layer, direction: of the pass.
        h: ``(T, B, R)``, dL/dh_t: what reaches h_t from the loss at step t, from the layer above
            and from all later steps.
        c: ``(T, B, H)``, dL/dc_t likewise, None for a cell without cell state.
    """

    layer: int
    direction: int
    h: Tensor
    c: Tensor | None

    def norms(self) -> Tensor:
        """``(T,)``: the norm of dL/dh_t over all rows and units."""
        norms: Tensor = widened(self.h).flatten(1).norm(dim=1)
        return norms


def last_output(output: Tensor, state: State) -> Tensor:
    """The default loss: the sum of the last layer's last hidden state."""
    return (state[0] if isinstance(state, tuple) else state)[-1].sum()


def state_gradients(
    module: nn.Module, input: Tensor, loss: Loss = last_output, hx: State | None = None
) -> list[StateGradients]:
    r"""dL/dh_t for all t, layers and directions, from one backward.

    Backpropagation through time computes :math:`\delta_t = \partial L / \partial a_t`, the
    gradients of the pre-activations, for all steps. With them

    .. math:: \frac{\partial L}{\partial h_t} = \bar y_t + W_{hh}^\top \delta_{t+1}
        \;(+\; z_{t+1} \odot \partial L / \partial h_{t+1} \text{ for a GRU})

    where :math:`\bar y_t` comes from the loss and the layer above. That is the exact gradient, not
    an estimate; the deltas are those of the kernels that serve training.

    Args:
        module: an RNN, LSTM, GRU or a cell of fastrnn or torch.nn. Its dropout is left out, its
            parameters get no gradients.
        input: ``(T, B, I)``, ``(B, T, I)`` if batch_first, or ``(T, I)``; or integers without the
            last dimension, which stand for one-hot vectors. No ``PackedSequence``.
        loss: from output and final state, both as the module returns them (for a cell, as the layer
            that repeats it), to a scalar.
        hx: initial states in the module's own form; None for zeros.

    Returns:
        one entry for each direction of each layer, layer by layer.

    Raises:
        TypeError, ValueError, IndexError: not such a module or input, or a loss that is no scalar.
        RuntimeError: sizes, dtypes or devices do not fit.
    """
    cell, _, directions, batch_first = layout_of(module)
    with torch.enable_grad():
        x, unbatched = time_major(module, input)
        runs = list(run_layers(module, x.detach().requires_grad_(), hx))
        output = runs[-1].y
        if unbatched:
            output = output.squeeze(1)
        elif batch_first:
            output = output.transpose(0, 1)

        def last(states: list[Tensor]) -> Tensor:
            joined = torch.cat(states)
            return joined.squeeze(1) if unbatched else joined

        hidden, c_n = last([run.h_n for run in runs]), [r.c_n for r in runs if r.c_n is not None]
        value = loss(output, (hidden, last(c_n)) if cell.has_cell_state else hidden)
        if value.numel() != 1:
            raise ValueError(f"loss: expected a scalar, got shape {tuple(value.shape)}")
        wanted = [t for run in runs for t in (run.gates, run.y, run.h_n, run.c_n) if t is not None]
        found = torch.autograd.grad(value.sum(), wanted, allow_unused=True)
    grads = iter(
        torch.zeros_like(tensor) if grad is None else grad
        for tensor, grad in zip(wanted, found, strict=True)
    )
    result = []
    for k, run in enumerate(runs):
        deltas, above, h_n = next(grads), next(grads), next(grads)
        c_n_grad = next(grads) if cell.has_cell_state else None
        for d in range(directions):
            weights = weights_of(module, k, d)

            def part(tensor: Tensor, d: int = d) -> Tensor:
                return tensor.detach().chunk(directions, -1)[d]

            h = part(run.y)
            h_before = before(h, None if run.h0 is None else run.h0[d].detach(), d)
            with torch.no_grad():
                gates = gate_values(cell, weights, part(run.gates), h, h_before)
                arrives = part(above).clone()
                arrives[0 if d else -1] += h_n[d]
                grad_h = _hidden(cell.name, weights, part(deltas), arrives, gates, d)
                grad_c = None
                if run.cell_states is not None and c_n_grad is not None:
                    c = part(run.cell_states)
                    grad_c = _cell_states(weights, grad_h, c_n_grad[d], gates, c, d)
            result.append(StateGradients(k, d, grad_h, grad_c))
    return result


def _steps_back(steps: int, direction: int) -> range:
    """Steps in the order of backward."""
    return range(steps) if direction else range(steps - 1, -1, -1)


def _hidden(
    cell: str,
    weights: Weights,
    deltas: Tensor,
    arrives: Tensor,
    gates: dict[str, Tensor],
    direction: int,
) -> Tensor:
    """dL/dh_t; deltas: dL/d(W_ih x_t), which differs from dL/d(W_hh h_t) only in a GRU's n."""
    w = weights.w_hh
    if cell.startswith("gru"):
        units = w.shape[1]
        rz, n = deltas.split([2 * units, units], -1)
        through_rz = rz @ w[: 2 * units]
        if cell == "gru":
            back = through_rz + (gates["r"] * n) @ w[2 * units :]
        else:
            back = through_rz + gates["r"] * (n @ w[2 * units :])
        total = arrives + after(back, direction)
        kept = after(gates["z"], direction)
        behind = torch.zeros_like(total[0])
        for t in _steps_back(len(total), direction):
            behind = total[t] = total[t] + kept[t] * behind
        return total
    return arrives + after(deltas @ w, direction)


def _cell_states(
    weights: Weights,
    grad_h: Tensor,
    grad_c_n: Tensor,
    gates: dict[str, Tensor],
    c: Tensor,
    direction: int,
) -> Tensor:
    """dL/dc_t = dL/dh_t o (1 - tanh² c_t) + f_{t+1} dL/dc_{t+1} of an LSTM."""
    through_h = grad_h if weights.w_hr is None else linear(grad_h, weights.w_hr.t())
    total = through_h * gates["o"] * (1 - c.tanh().square())
    total[0 if direction else -1] += grad_c_n
    kept = after(gates["f"], direction)
    behind = torch.zeros_like(total[0])
    for t in _steps_back(len(total), direction):
        behind = total[t] = total[t] + kept[t] * behind
    return total
