"""The compiled CPU kernels (``csrc/cpu``), and torch's products over all rows around them.

The kernels run the recurrence, forward and backward, with the input product of forward. The
products of backward over all T*B rows (dx, dW) are one matrix product each and go to torch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .. import _env
from ..cells import CELLS
from ..problem import LayerGrads, LayerInputs, LayerOutputs, Problem
from .base import FusedBackend, Gradients, Needs, Verdict

_CELL_INDEX = {name: index for index, name in enumerate(CELLS)}
_ISA_OF_ATEN = {"default": "baseline", "avx2": "avx2", "avx512": "avx512"}


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """The extension, set to the target the environment asks for; or None and why.

    Raises:
        ValueError: ``FASTRNN_ISA`` names a target that was not built or cannot run here.
    """
    try:
        from .. import _C
    except ImportError as error:
        return None, f"the compiled extension is missing ({error})"
    usable = _C.targets()
    wanted, ceiling = _env.get("FASTRNN_ISA").lower(), _env.get("ATEN_CPU_CAPABILITY").lower()
    if wanted:
        if not _C.select_target(wanted):
            raise ValueError(f"FASTRNN_ISA: expected one of {', '.join(usable)}, got {wanted!r}")
    elif ceiling in _ISA_OF_ATEN and _ISA_OF_ATEN[ceiling] in usable:
        _C.select_target(_ISA_OF_ATEN[ceiling])
    return _C, f"{_C.active_target()} kernels"


def num_threads() -> int:
    """Threads a call may use: ``FASTRNN_NUM_THREADS``, else as many as torch uses."""
    return _threads_from_environment() or torch.get_num_threads()


@functools.cache
def _threads_from_environment() -> int:
    value = _env.get("FASTRNN_NUM_THREADS")
    if not value:
        return 0
    if not value.isdigit() or int(value) == 0:
        raise ValueError(f"FASTRNN_NUM_THREADS: expected a positive integer, got {value!r}")
    return int(value)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _plain(tensor: Tensor) -> Tensor:
    """The values as they stand for in memory: contiguous, no lazy negation."""
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()


def _plain_or_none(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _plain(tensor)


class CpuBackend(FusedBackend):
    name = "cpu"

    def available(self) -> Verdict:
        extension, reason = load()
        return Verdict(extension is not None, reason)

    def supports(self, problem: Problem) -> Verdict:
        if problem.device.type != "cpu":
            return Verdict(False, f"runs on the CPU only, not on {problem.device.type}")
        if problem.dtype not in (torch.float32, torch.float64):
            return Verdict(False, f"float32 and float64 only, not {problem.dtype}")
        return Verdict(True, load()[1])

    def forward(self, problem: Problem, inputs: LayerInputs) -> LayerOutputs:
        extension = load()[0]
        assert extension is not None
        x = inputs.x.resolve_neg()
        if x.stride(-1) != 1 or problem.packed:
            x = x.contiguous()
        h0, c0 = _plain_or_none(inputs.h0), _plain_or_none(inputs.c0)
        weights = [_plain(weight) for weight in inputs.weights]
        outputs = problem.allocate(x)
        single = problem.dtype == torch.float32
        call = extension.forward_float32 if single else extension.forward_float64
        sizes, _keep = _sizes(problem, inputs)
        call(
            _CELL_INDEX[problem.cell.name],
            num_threads(),
            sizes,
            _weight_addresses(problem, weights),
            x.data_ptr(),
            x.stride(0),
            0 if problem.packed else x.stride(1),
            _address(h0),
            _address(c0),
            outputs.y.data_ptr(),
            outputs.h_n.data_ptr(),
            _address(outputs.c_n),
            _address(outputs.cell_states),
            _address(outputs.reserve),
        )
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
        extension = load()[0]
        assert extension is not None
        h0, c0 = _plain_or_none(inputs.h0), _plain_or_none(inputs.c0)
        weights = [_plain(weight) for weight in inputs.weights]
        d, rows, h, r = problem.directions, problem.rows, problem.hidden_size, problem.output_size
        cell = problem.cell
        new = reserve.new_empty
        # A step's saved values are read before its gradients, of the same shape, are written.
        da = reserve if donated and not problem.projected else new(d, rows, len(cell.saved) * h)
        h_prev = new(d, rows, r)
        wants_mid = problem.projected or cell.name == "gru_reset_before"
        mid = new(d, rows, h) if wants_mid else None
        dh = new(d, rows, r) if problem.projected else None
        grad_h0 = new(d, problem.batch, r) if needs.h0 else None
        grad_c0 = new(d, problem.batch, h) if needs.c0 else None
        single = problem.dtype == torch.float32
        call = extension.backward_float32 if single else extension.backward_float64
        sizes, _keep = _sizes(problem, inputs)
        call(
            _CELL_INDEX[cell.name],
            num_threads(),
            sizes,
            _weight_addresses(problem, weights),
            _address(h0),
            _address(c0),
            _address(cell_states),
            reserve.data_ptr(),
            grads.y.data_ptr(),
            grads.h_n.data_ptr(),
            _address(grads.c_n),
            _address(grads.cell_states),
            da.data_ptr(),
            h_prev.data_ptr(),
            _address(mid),
            _address(dh),
            _address(grad_h0),
            _address(grad_c0),
        )
        x = _without_padding(problem, inputs).reshape(rows, problem.input_size)
        grad_x = new(rows, problem.input_size) if needs.x else None
        grad_weights: list[Tensor | None] = []
        for direction in range(d):
            own = problem.direction_weights(needs.weights, direction)
            products = _Products(cell.name, da[direction], h)
            grad_weights += products.weights(
                own,
                x,
                h_prev[direction],
                None if mid is None else mid[direction],
                None if dh is None else dh[direction],
            )
            if grad_x is not None:
                w_ih = problem.direction_weights(weights, direction)[0]
                products.input(w_ih, grad_x, accumulate=direction > 0)
        if grad_x is not None:
            grad_x = grad_x.view(inputs.x.shape)
        return LayerGrads(grad_x, grad_h0, grad_c0, grad_weights)


def _sizes(problem: Problem, inputs: LayerInputs) -> tuple[tuple[int, ...], tuple[Tensor, ...]]:
    """The size list of the extension, and the tensors its addresses point into."""
    lengths, batch_sizes = _plain_or_none(inputs.lengths), _plain_or_none(inputs.batch_sizes)
    reset = inputs.reset
    sizes = (
        problem.steps,
        problem.batch,
        problem.rows,
        problem.input_size,
        problem.hidden_size,
        problem.output_size,
        problem.directions,
        _address(lengths),
        _address(batch_sizes),
        _address(reset),
        0 if reset is None else reset.stride(0),
        0 if reset is None else reset.stride(1),
    )
    return sizes, tuple(t for t in (lengths, batch_sizes, reset) if t is not None)


_NO_MORE_WEIGHTS = [0] * 6


def _weight_addresses(problem: Problem, weights: Sequence[Tensor]) -> list[int]:
    if len(weights) == 4 and problem.directions == 1:  # most calls; microseconds count at T = 1
        return [weight.data_ptr() for weight in weights] + _NO_MORE_WEIGHTS
    addresses: list[int] = []
    for direction in range(problem.directions):
        own = [weight.data_ptr() for weight in problem.direction_weights(weights, direction)]
        w_hr = own.pop() if problem.projected else 0
        addresses += [*own, *([] if problem.bias else [0, 0]), w_hr]
    return addresses + [0] * (10 - len(addresses))


def _without_padding(problem: Problem, inputs: LayerInputs) -> Tensor:
    """x with zeros beyond the lengths: whatever is there must not meet the zeros in da as NaN."""
    if inputs.lengths is None:
        return inputs.x
    steps = torch.arange(problem.steps)
    valid = steps[:, None] < inputs.lengths
    return torch.where(valid[:, :, None], inputs.x, 0)


class _Products:
    """The products over all rows of one direction, from the gradients of its pre-activations.

    da: ``(rows, S*H)``. In a cell's slots the gradients lie as ``weight_ih`` and ``weight_hh``
    have their rows, with two exceptions: the reset-after GRU has (r, z, hn, n), of which
    ``weight_hh`` meets the first three and ``weight_ih`` r, z and n; in the reset-before GRU the
    candidate's part of ``weight_hh`` meets mid instead of h.
    """

    def __init__(self, cell: str, da: Tensor, hidden_size: int) -> None:
        self.cell = cell
        self.da = da
        self.hidden_size = hidden_size
        split = 2 * hidden_size
        #: (rows of weight_ih, columns of da) that belong together
        self.input_parts = [(slice(None), slice(None))]
        if cell == "gru":
            self.input_parts = [
                (slice(0, split), slice(0, split)),
                (slice(split, None), slice(split + hidden_size, None)),
            ]

    def weights(
        self,
        needs: Sequence[bool],
        x: Tensor,
        h_prev: Tensor,
        mid: Tensor | None,
        dh: Tensor | None,
    ) -> list[Tensor | None]:
        """Gradients of w_ih, w_hh, then b_ih, b_hh, then w_hr, where the layer has them."""
        da, h = self.da, self.hidden_size
        recurrent_parts = [(slice(None), h_prev)]
        if self.cell == "gru":
            recurrent_parts = [(slice(0, 3 * h), h_prev)]
        elif self.cell == "gru_reset_before":
            assert mid is not None
            recurrent_parts = [(slice(0, 2 * h), h_prev), (slice(2 * h, None), mid)]
        grads: list[Tensor | None] = [None] * len(needs)
        if needs[0]:
            grads[0] = _stacked([_outer(da[:, columns], x) for _, columns in self.input_parts])
        if needs[1]:
            grads[1] = _stacked([_outer(da[:, columns], s) for columns, s in recurrent_parts])
        if len(needs) >= 4 and (needs[2] or needs[3]):
            total = da.sum(0)
            # Copies: the two gradients must not share memory.
            if needs[2]:
                grads[2] = torch.cat([total[columns] for _, columns in self.input_parts])
            if needs[3]:
                grads[3] = torch.cat([total[columns] for columns, _ in recurrent_parts])
        if len(needs) in (3, 5) and needs[-1]:
            assert dh is not None
            assert mid is not None
            grads[-1] = _outer(dh, mid)
        return grads

    def input(self, w_ih: Tensor, out: Tensor, *, accumulate: bool) -> None:
        """Gradient of x, ``(rows, I)``, written or added into ``out``."""
        for rows, columns in self.input_parts:
            if accumulate:
                out.addmm_(self.da[:, columns], w_ih[rows])
            else:
                torch.mm(self.da[:, columns], w_ih[rows], out=out)
            accumulate = True


#: Bytes from which the pages of a result are worth asking for, as in csrc/cpu/memory.h.
_LARGE = 4 << 20


def _large_result(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor, in large pages where it is large."""
    result = like.new_empty(shape)
    if result.nbytes >= _LARGE:
        extension = load()[0]
        assert extension is not None
        extension.prefer_huge_pages(result.data_ptr(), result.nbytes)
    return result


def _outer(da: Tensor, state: Tensor) -> Tensor:
    """``sum over rows of da[row] state[row]^T``, ``(columns of da, columns of state)``.

    On one thread torch is faster with the longer factor on the right, even with the copy that
    makes the transposed result contiguous; on more it is not (bench/NOTES.md).
    """
    rows, columns = da.shape[1], state.shape[1]
    if torch.get_num_threads() > 1:
        return torch.mm(da.t(), state, out=_large_result(da, rows, columns))
    transposed = torch.mm(state.t(), da, out=_large_result(da, columns, rows))
    return _large_result(da, rows, columns).copy_(transposed.t())


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
