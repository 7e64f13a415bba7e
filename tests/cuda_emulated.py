"""The CUDA backend on the CPU: its Python, its launches and its kernels, on an emulated device.

`backend()` is fastrnn's CUDA backend around csrc/cuda compiled for tests/cuda_emulator, serving
tensors of the CPU. See the README of that folder for what the emulator checks.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

from fastrnn.backends.cuda import CudaBackend

sys.path.insert(0, str(Path(__file__).resolve().parent / "cuda_emulator"))

import runner

ROOT = Path(__file__).resolve().parents[1]
NAME = "_cuda_emulated"


def _sources() -> list[Path]:
    folder = ROOT / "csrc" / "cuda"
    kernels = sorted([*folder.glob("*.cu"), *folder.glob("*.cpp")])
    return [*kernels, ROOT / "csrc" / "bind" / "cuda_module.cpp"]


@functools.cache
def library(*, checked: bool = False) -> Path:
    include = [pybind11.get_include(), sysconfig.get_path("include")]
    return runner.build(
        _sources(),
        checked=checked,
        undefined=True,
        flags=(
            "-O1",
            "-Wno-error",
            *[f"-isystem{path}" for path in include],
            f"-DFASTRNN_CUDA_MODULE={NAME}",
            '-DFASTRNN_VERSION="emulated"',
        ),
    )


@functools.cache
def extension(*, checked: bool = False) -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, library(checked=checked))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def device(*, checked: bool = False) -> runner.Emulated:
    extension(checked=checked)
    return runner.Emulated(library(checked=checked))


class EmulatedBackend(CudaBackend):
    """The CUDA backend for tensors of the CPU."""

    name = "cuda_emulated"
    device_type = "cpu"

    def __init__(self, *, checked: bool = False) -> None:
        super().__init__()
        self._extension = extension(checked=checked)

    def stream(self, problem: object) -> int:
        return 0
