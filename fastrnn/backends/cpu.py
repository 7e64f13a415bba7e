"""The compiled CPU kernels (``csrc/cpu``): one call for forward, one for backward."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import _env
from ..cells import CELLS
from ..problem import LayerGrads, LayerInputs, LayerOutputs, Problem
from .base import FusedBackend, Gradients, Needs, Verdict

#: Cell, gates, whether there is a cell state, as ``Direct`` wants them.
DIRECT_CELL = {
    name: (index, cell.gates, cell.has_cell_state)
    for index, (name, cell) in enumerate(CELLS.items())
}
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


@functools.cache
def direct() -> Any:
    """The extension's ``Direct``, for calls that nothing but their caller looks at; or None.

    None where the extension is missing, or torch is older than DLPack's interface for C (2.10).
    """
    extension = load()[0]
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    if extension is None or exchange is None:
        return None
    try:
        return extension.Direct(exchange, Tensor, torch.nn.Parameter)
    except ValueError:
        return None


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
        x = _rows_of(problem, inputs.x)
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
        x, new = _rows_of(problem, inputs.x), reserve.new_empty
        state = (problem.directions, problem.batch)
        result = LayerGrads(
            new(inputs.x.shape) if needs.x else None,
            new(*state, problem.output_size) if needs.h0 else None,
            new(*state, problem.hidden_size) if needs.c0 else None,
            [
                new(weight.shape) if need else None
                for weight, need in zip(weights, needs.weights, strict=True)
            ],
        )
        single = problem.dtype == torch.float32
        call = extension.backward_float32 if single else extension.backward_float64
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
            _address(cell_states),
            reserve.data_ptr(),
            donated,
            [_address(grad) for grad in grads],
            _address(result.x),
            _address(result.h0),
            _address(result.c0),
            _weight_addresses(problem, result.weights),
        )
        return result


def _rows_of(problem: Problem, x: Tensor) -> Tensor:
    """x as the kernels read it: features adjacent, rows of packed data too."""
    x = x.resolve_neg()
    return x.contiguous() if x.stride(-1) != 1 or problem.packed else x


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


def _weight_addresses(problem: Problem, weights: Sequence[Tensor | None]) -> list[int]:
    """w_ih, w_hh, b_ih, b_hh, w_hr of each direction; 0 for what is not there."""
    if len(weights) == 4 and problem.directions == 1:  # most calls; microseconds count at T = 1
        return [_address(weight) for weight in weights] + _NO_MORE_WEIGHTS
    addresses: list[int] = []
    for direction in range(problem.directions):
        own = [_address(weight) for weight in problem.direction_weights(weights, direction)]
        w_hr = own.pop() if problem.projected else 0
        addresses += [*own, *([] if problem.bias else [0, 0]), w_hr]
    return addresses + [0] * (10 - len(addresses))
