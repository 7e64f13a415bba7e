"""Kernels compiled at run time by numba: the CPU backend of installs without a compiler.

It is also the second oracle: its backward is derived by hand (``_numba_kernels.py``), and shares
nothing with autograd nor with ``csrc/core/cells/``. This module does what concerns all rows at
once, by torch's products: W_ih x before the recurrence, and after its way back the gradients of x
and of the weights.

numba is imported at the first question to this backend. A kernel is compiled at its first call for
a dtype, which takes seconds, once per machine: a cache on disk keeps the machine code. A call runs
on one thread, without the GIL.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .. import _env
from ..problem import LayerGrads, LayerInputs, LayerOutputs, Problem
from .base import FusedBackend, Gradients, Needs, Verdict

if TYPE_CHECKING:
    from ._numba_kernels import Array, Steps


class NumbaBackend(FusedBackend):
    name = "numba"

    def available(self) -> Verdict:
        try:
            numba = importlib.import_module("numba")
        except ModuleNotFoundError as error:
            return Verdict(False, f"{error.name} is not installed: pip install numba")
        except ImportError as error:
            return Verdict(False, f"numba cannot be imported: {error}")
        return Verdict(True, f"numba {numba.__version__}")

    def supports(self, problem: Problem) -> Verdict:
        if problem.device.type != "cpu":
            return Verdict(False, f"serves the CPU, not {problem.device.type}")
        if problem.dtype not in (torch.float32, torch.float64):
            dtype = str(problem.dtype).removeprefix("torch.")
            return Verdict(False, f"serves float32 and float64, not {dtype}")
        return Verdict(True, "every cell and option in float32 and float64")

    def forward(self, problem: Problem, inputs: LayerInputs) -> LayerOutputs:
        _say_once_that_extension_is_missing()
        inputs = _detached(inputs)
        outputs = problem.allocate(inputs.x)
        if problem.lengths:
            outputs.y.zero_()
            if outputs.cell_states is not None:
                outputs.cell_states.zero_()
        for direction in range(problem.directions):
            _forward(problem, inputs, direction, outputs)
        return outputs

    def backward(
        self,
        problem: Problem,
        inputs: LayerInputs,
        cell_states: Tensor | None,
        reserve: Tensor,
        grads: Gradients,
        needs: Needs,
        *,
        donated: bool = False,
    ) -> LayerGrads:
        inputs = _detached(inputs)
        x = inputs.x.reshape(problem.rows, problem.input_size)
        if problem.x_is_gates:
            x = x[:, :0]  # nothing that W_ih multiplies
        ended = _ended_rows(problem, inputs)
        if ended is not None:  # may be NaN there, and 0 * NaN would reach the gradient of W_ih
            x = x.masked_fill(ended, 0)
        ways = [
            _backward(problem, inputs, direction, cell_states, reserve, grads, ended)
            for direction in range(problem.directions)
        ]
        d_x = None
        if needs.x:
            if problem.x_is_gates:
                d_x = torch.cat([way.d_gates for way in ways], dim=-1)
            else:
                d_x = x.new_zeros(x.shape)
                for direction, way in enumerate(ways):
                    d_x.addmm_(way.d_gates, _weights(problem, inputs, direction).w_ih)
            if ended is not None:
                d_x.masked_fill_(ended, 0)
            d_x = d_x.view(inputs.x.shape)
        return LayerGrads(
            d_x,
            torch.stack([way.d_h for way in ways]) if needs.h0 else None,
            torch.stack([way.d_c for way in ways]) if needs.c0 else None,
            _weight_gradients(problem, x, ways, needs),
        )


class _Weights(NamedTuple):
    """The weights of one direction. Without biases b_ih and b_hh are zero."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor
    b_hh: Tensor
    w_hr: Tensor | None


class _Way(NamedTuple):
    """What the way back through one direction found; every tensor is 0 in rows that have ended.

    d_h ``(B, R)``, d_c ``(B, H)``: gradients of the initial states. d_gates ``(rows, G*H)``: of
    W_ih x + b_ih. d_products ``(rows, G*H)``: of W_hh h + b_hh, the same tensor for most cells.
    met ``(rows, R)``: what W_hh multiplied. met_n ``(rows, H)``: what its last H rows multiplied,
    if something else. m ``(rows, H)``, d_out ``(rows, R)``: input of a projection and the gradient
    of its result, or None.
    """

    d_h: Tensor
    d_c: Tensor
    d_gates: Tensor
    d_products: Tensor
    met: Tensor
    met_n: Tensor | None = None
    m: Tensor | None = None
    d_out: Tensor | None = None


@functools.cache
def _say_once_that_extension_is_missing() -> None:
    try:
        importlib.import_module("fastrnn._C")
    except ImportError as error:
        _env.logger.warning(
            "compiled extension not found (%s): CPU calls are served by numba", error
        )


def _detached(inputs: LayerInputs) -> LayerInputs:
    def detach(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach()

    return inputs._replace(
        x=inputs.x.detach(),
        h0=detach(inputs.h0),
        c0=detach(inputs.c0),
        weights=[weight.detach() for weight in inputs.weights],
    )


def _array(tensor: Tensor) -> Array:
    """The tensor for a kernel: its own memory where it is contiguous, else a copy."""
    array: Array = tensor.resolve_neg().contiguous().numpy()
    return array


def _weights(problem: Problem, inputs: LayerInputs, direction: int) -> _Weights:
    count = problem.weights_per_direction
    own = list(inputs.weights[direction * count : (direction + 1) * count])
    w_hr = own.pop() if problem.projected else None
    if not problem.bias:
        own += 2 * [own[0].new_zeros(own[0].shape[0])]
    w_ih, w_hh, b_ih, b_hh = own
    return _Weights(w_ih, w_hh, b_ih, b_hh, w_hr)


def _steps(problem: Problem, inputs: LayerInputs, direction: int) -> Steps:
    from ._numba_kernels import Steps

    steps, batch, device = problem.steps, problem.batch, problem.device
    lengths = inputs.lengths
    if inputs.batch_sizes is not None:
        offsets = inputs.batch_sizes.cumsum(0) - inputs.batch_sizes
        lengths = (inputs.batch_sizes[:, None] > torch.arange(batch, device=device)).sum(0)
    else:
        offsets = torch.arange(steps, device=device) * batch
        if lengths is None:
            lengths = torch.full((batch,), steps, device=device)
    reset = inputs.reset
    if reset is None:
        reset = torch.zeros(steps, batch, dtype=torch.bool, device=device)
    return Steps(_array(offsets), _array(lengths), _array(reset), direction == 1)


def _ended_rows(problem: Problem, inputs: LayerInputs) -> Tensor | None:
    """``(rows, 1)`` bool: the row lies beyond the end of its sequence; None where none can."""
    if inputs.lengths is None:
        return None
    steps = torch.arange(problem.steps, device=problem.device)
    return (steps[:, None] >= inputs.lengths).view(problem.rows, 1)


def _start(state: Tensor | None, direction: int, out: Tensor) -> Array:
    """Write the initial state of one direction, zero if None, into ``out``."""
    return _array(out.zero_() if state is None else out.copy_(state[direction]))


def _by_row(sequence: Tensor | None, like: Tensor) -> Array:
    """A sequence as ``(rows, .)``; ``(0, 0)`` for one that the call does not have."""
    return _array(like.new_empty(0, 0) if sequence is None else sequence.flatten(0, -2))


def _forward(problem: Problem, inputs: LayerInputs, direction: int, outputs: LayerOutputs) -> None:
    """One direction, into ``outputs``: h_n and c_n first hold the initial, then the last states."""
    from . import _numba_kernels as kernels

    units = problem.hidden_size
    steps = _steps(problem, inputs, direction)
    w_ih, w_hh, b_ih, b_hh, w_hr = _weights(problem, inputs, direction)
    bias = b_ih + b_hh
    if problem.cell.name == "gru":  # b_hn stands inside the product with r
        bias[2 * units :] = b_ih[2 * units :]
    x = inputs.x.reshape(problem.rows, problem.input_size)
    if problem.x_is_gates:
        x_part = _array(x.chunk(problem.directions, dim=-1)[direction] + bias)
    else:
        x_part = _array(torch.addmm(bias, x, w_ih.t()))

    w_hh_t = _array(w_hh.t())
    h = _start(inputs.h0, direction, outputs.h_n[direction])
    y = _by_row(outputs.y, x)
    column = direction * units
    saved = _by_row(None if outputs.reserve is None else outputs.reserve[direction], x)
    match problem.cell.name:
        case "lstm":
            assert outputs.c_n is not None
            c = _start(inputs.c0, direction, outputs.c_n[direction])
            cell_states = _by_row(outputs.cell_states, x)
            w_hr_t = _array(w_hh.new_empty(0, 0) if w_hr is None else w_hr.t())
            kernels.lstm_forward(
                steps, x_part, w_hh_t, w_hr_t, h, c, y, cell_states, direction, saved
            )
        case "gru":
            b_hn = _array(b_hh[2 * units :])
            kernels.gru_forward(steps, x_part, w_hh_t, b_hn, h, y, column, saved)
        case "gru_reset_before":
            w_rz_t, w_n_t = w_hh[: 2 * units].t(), w_hh[2 * units :].t()
            kernels.gru_reset_before_forward(
                steps, x_part, _array(w_rz_t), _array(w_n_t), h, y, column, saved
            )
        case name:
            activation = kernels.ACTIVATIONS[name]
            kernels.vanilla_forward(steps, activation, x_part, w_hh_t, h, y, column, saved)


def _backward(
    problem: Problem,
    inputs: LayerInputs,
    direction: int,
    cell_states: Tensor | None,
    reserve: Tensor,
    grads: Gradients,
    ended: Tensor | None,
) -> _Way:
    """The way back through one direction."""
    from . import _numba_kernels as kernels

    units, x = problem.hidden_size, inputs.x
    steps = _steps(problem, inputs, direction)
    _, w_hh, _, _, w_hr = _weights(problem, inputs, direction)
    reserve = reserve[direction]
    saved = _array(reserve)
    d_y = _by_row(grads.y, x)
    column = direction * units

    def per_row(width: int) -> Tensor:
        allocate = x.new_empty if ended is None else x.new_zeros
        return allocate(problem.rows, width)

    def initial(state: Tensor | None, width: int) -> Array:
        return _start(state, direction, x.new_empty(problem.batch, width))

    h0 = initial(inputs.h0, problem.output_size)
    d_h = grads.h_n[direction].clone()
    d_c = x.new_zeros(problem.batch, units)
    d_gates = per_row(problem.cell.gates * units)
    met = per_row(problem.output_size)
    match problem.cell.name:
        case "lstm":
            assert cell_states is not None
            c = cell_states.flatten(0, -2)[:, column : column + units]
            m = reserve[:, 3 * units : 4 * units] * c.tanh()
            if ended is not None:
                m.masked_fill_(ended, 0)
            after = _array(m if w_hr is None else reserve[:, 4 * units :])
            kernels.entering(steps, after, h0, _array(met))
            c_in = per_row(units)
            kernels.entering(steps, _array(c), initial(inputs.c0, units), _array(c_in))
            if grads.c_n is not None:
                d_c.copy_(grads.c_n[direction])
            none = x.new_empty(0, 0)
            d_out = none if w_hr is None else per_row(problem.output_size)
            kernels.lstm_backward(
                steps,
                _array(w_hh),
                _array(none if w_hr is None else w_hr),
                saved,
                _array(c_in),
                _array(c),
                d_y,
                _by_row(grads.cell_states, x),
                direction,
                _array(d_h),
                _array(d_c),
                _array(d_gates),
                _array(d_out),
            )
            return _Way(
                d_h, d_c, d_gates, d_gates, met, m=m, d_out=d_out if problem.projected else None
            )
        case "gru":
            kernels.gru_entering(steps, saved, 3, h0, _array(met))
            d_products = per_row(3 * units)
            kernels.gru_backward(
                steps,
                _array(w_hh),
                saved,
                _array(met),
                d_y,
                column,
                _array(d_h),
                _array(d_gates),
                _array(d_products),
            )
            return _Way(d_h, d_c, d_gates, d_products, met)
        case "gru_reset_before":
            kernels.gru_entering(steps, saved, 2, h0, _array(met))
            w_rz, w_n = _array(w_hh[: 2 * units]), _array(w_hh[2 * units :])
            kernels.gru_reset_before_backward(
                steps, w_rz, w_n, saved, _array(met), d_y, column, _array(d_h), _array(d_gates)
            )
            kept = reserve[:, :units] * met
            if ended is not None:
                kept.masked_fill_(ended, 0)
            return _Way(d_h, d_c, d_gates, d_gates, met, kept)
        case name:
            kernels.entering(steps, saved, h0, _array(met))
            activation = kernels.ACTIVATIONS[name]
            kernels.vanilla_backward(
                steps, activation, _array(w_hh), saved, d_y, column, _array(d_h), _array(d_gates)
            )
            return _Way(d_h, d_c, d_gates, d_gates, met)


def _weight_gradients(
    problem: Problem, x: Tensor, ways: list[_Way], needs: Needs
) -> list[Tensor | None]:
    """In the order of ``LayerInputs.weights``; x ``(rows, I)``, 0 in rows that have ended."""
    gradients: list[Tensor | None] = []
    for way in ways:
        wanted = iter(needs.weights[len(gradients) :])
        gradients.append(way.d_gates.t() @ x if next(wanted) else None)
        gradients.append(_recurrent_gradient(way) if next(wanted) else None)
        if problem.bias:
            gradients.append(way.d_gates.sum(0) if next(wanted) else None)
            gradients.append(way.d_products.sum(0) if next(wanted) else None)
        if way.d_out is not None and way.m is not None:
            gradients.append(way.d_out.t() @ way.m if next(wanted) else None)
    return gradients


def _recurrent_gradient(way: _Way) -> Tensor:
    gradient = way.d_products.t() @ way.met
    if way.met_n is not None:
        units = way.met_n.shape[1]
        gradient[-units:] = way.d_products[:, -units:].t() @ way.met_n
    return gradient
