"""The CUDA backend on the CPU: its Python, its launches and its kernels, on an emulated device.

``registered()`` makes known fastrnn's CUDA backend around ``csrc/cuda`` compiled for
``tests/cuda_emulator``; it serves tensors of the CPU. What the emulator checks is said in the
README of that folder.
"""

from __future__ import annotations

import functools
import importlib.util
import sysconfig
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pybind11
import torch
from cuda_emulator import runner

from fastrnn import backends
from fastrnn.backends.cuda import CudaBackend, choice_of
from fastrnn.problem import Problem

CSRC = Path(__file__).resolve().parents[1] / "csrc"


@functools.cache
def library(*, checked: bool = False, csrc: Path = CSRC) -> Path:
    """The module, compiled when a source has changed."""
    folder = csrc / "cuda"
    sources = sorted([*folder.glob("*.cu"), *folder.glob("*.cpp")])
    include = (pybind11.get_include(), sysconfig.get_path("include"))
    return runner.build(
        [*sources, csrc / "bind" / "cuda_module.cpp"],
        checked=checked,
        undefined=True,
        flags=(
            "-O1",
            *(f"-isystem{path}" for path in include),
            f"-DFASTRNN_CUDA_MODULE={_name(checked, csrc)}",
            '-DFASTRNN_VERSION="emulated"',
        ),
    )


def _name(checked: bool, csrc: Path) -> str:
    """One name for each library: pybind11 gives the module it already has of a name."""
    suffix = "" if csrc == CSRC else f"_{zlib.crc32(str(csrc).encode()):x}"
    return f"_cuda_{'checked' if checked else 'emulated'}{suffix}"


@functools.cache
def extension(*, checked: bool = False, csrc: Path = CSRC) -> ModuleType:
    """What stands for ``fastrnn._cuda``."""
    path = library(checked=checked, csrc=csrc)
    spec = importlib.util.spec_from_file_location(_name(checked, csrc), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def device(*, checked: bool = False, csrc: Path = CSRC) -> runner.Emulated:
    """The emulated device of that module, to be configured."""
    extension(checked=checked, csrc=csrc)
    return runner.Emulated(library(checked=checked, csrc=csrc))


class EmulatedBackend(CudaBackend):
    """The CUDA backend for tensors of the CPU.

    regime: one of REGIMES; with ``-`` and blocks of a cluster, again ``-`` and blocks of 8 units
        in a group, and again ``-`` and places of a tile, to insist on those too: ``grid-4-2-16``.
    """

    name = "cuda_emulated"
    device_type = "cpu"

    def __init__(
        self, regime: str | None = None, *, checked: bool = False, csrc: Path = CSRC
    ) -> None:
        super().__init__()
        self._extension = extension(checked=checked, csrc=csrc)
        if regime is not None:
            self.choice = choice_of(regime)

    def stream(self, problem: Problem) -> int:
        return 0

    def capability(self, device: torch.device) -> tuple[int, int]:
        return 9, 0


@contextmanager
def registered(
    regime: str | None = None, *, checked: bool = False, csrc: Path = CSRC, **configuration: int
) -> Iterator[str]:
    """The name of a backend on a device of that configuration, known inside the block only."""
    before = backends._registry
    device(checked=checked, csrc=csrc).configure(**configuration)
    backend = EmulatedBackend(regime, checked=checked, csrc=csrc)
    backends.register(backend)
    try:
        yield backend.name
    finally:
        backends._registry = before
        backends._chosen.clear()
        if csrc != CSRC:  # nobody comes back to changed sources
            device(checked=checked, csrc=csrc).release()
