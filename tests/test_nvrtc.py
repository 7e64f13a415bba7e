"""Kernels compiled as CuPy compiles them: by NVRTC, which needs neither a driver nor nvcc."""

from __future__ import annotations

import re
from pathlib import Path

import nvrtc
import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc"
KERNELS = ROOT / "tests" / "cuda_emulator" / "kernels"

pytestmark = pytest.mark.skipif(
    nvrtc.library() is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc"
)

ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"]
ELF = b"\x7fELF"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["primitives", "exchange", "faults"])
def test_what_the_emulator_runs_is_cuda(name: str, architecture: str) -> None:
    """Its test kernels use every function of device.cuh, which is the real one here."""
    source = (KERNELS / f"{name}.cpp").read_text()
    kernels = re.findall(r"^(?:static )?__global__ void (\w+)\(", source, re.MULTILINE)
    assert len(kernels) > 1
    names = [f"fastrnn::{kernel}" for kernel in kernels]
    cubin, symbols = nvrtc.compile_cubin(
        source, names, architecture=architecture, include=[SOURCES]
    )
    assert cubin.startswith(ELF)
    for kernel, symbol in zip(kernels, symbols.values(), strict=True):
        assert kernel in symbol
        assert symbol.encode() in cubin


def test_errors_are_the_compilers() -> None:
    with pytest.raises(nvrtc.CompilationError, match="nonsense"):
        nvrtc.compile_cubin("__global__ void k() { nonsense; }", ["k"], architecture="sm_90")


def test_unknown_architecture() -> None:
    with pytest.raises(RuntimeError, match="invalid value for --gpu-architecture"):
        nvrtc.compile_cubin("__global__ void k() {}", ["k"], architecture="sm_1")
