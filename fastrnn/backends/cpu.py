"""The compiled CPU kernels (``csrc/cpu``): one call for forward, one for backward."""

from __future__ import annotations

import functools
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
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
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


#: DLPack's interface for C, which tells the extension what a tensor holds; torch has it from 2.10.
_EXCHANGE = getattr(Tensor, "__dlpack_c_exchange_api__", None)


@functools.cache
def direct() -> Any:
    """The extension's ``Direct``, for calls that nothing but their caller looks at.

    None where the extension is missing.
    """
    extension = load()[0]
    return extension and extension.Direct(_EXCHANGE, Tensor, torch.nn.Parameter)


@functools.cache
def _layers() -> Any:
    extension = load()[0]
    assert extension is not None
    for field, place in extension.problem_fields.items():
        assert Problem._fields[place] == field
    return extension.Layers(_EXCHANGE)


class CpuBackend(FusedBackend):
    name = "cpu"

    def available(self) -> Verdict:
        extension, reason = load()
        return Verdict(extension is not None, reason)

    def supports(self, problem: Problem) -> Verdict:
        if problem.device.type != "cpu":
            return Verdict(False, f"runs on the CPU only, not on {problem.device.type}")
        if problem.dtype not in _DTYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            return Verdict(False, f"{names} only, not {problem.dtype}")
        extension, reason = load()
        narrow = problem.dtype != problem.state_dtype
        if narrow and extension is not None and not extension.serves_16_bits():
            isa = extension.active_target()
            return Verdict(False, f"{problem.dtype} needs AVX2 kernels, not those for {isa}")
        return Verdict(True, reason)

    def forward(self, problem: Problem, inputs: LayerInputs) -> LayerOutputs:
        index = _CELL_INDEX[problem.cell.name]
        return LayerOutputs(*_layers().forward(index, num_threads(), problem, inputs))

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
        index, threads = _CELL_INDEX[problem.cell.name], num_threads()
        return LayerGrads(
            *_layers().backward(
                index, threads, problem, inputs, cell_states, reserve, donated, grads, needs
            )
        )
