"""What nvcc makes of the CUDA kernels: no GPU is needed to compile for one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
MATHS = ("float16", "bfloat16", "float32", "tf32", "float64")
THREADS, REGISTERS = 256, 65536

if NVCC is None:
    pytest.skip("no nvcc", allow_module_level=True)


class Kernel(NamedTuple):
    name: str
    registers: int
    stack: int
    spills: int
    shared: int


def compiled(math: str, arch: str, folder: Path) -> list[Kernel]:
    """ptxas' report on the kernels of one arithmetic."""
    command = [str(NVCC), "-std=c++17", "-prec-div=false", f"-I{ROOT / 'csrc'}", "-cubin"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Xptxas", "-v", "-Werror"]
    command += ["all-warnings", "-o", str(folder / f"{math}.cubin")]
    command += [str(ROOT / "csrc" / "cuda" / f"math_{math}.cu")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return report(result.stderr)


def report(text: str) -> list[Kernel]:
    found = []
    for part in text.split("Compiling entry function '")[1:]:
        stack, stores, loads = (
            int(re.search(rf"(\d+) bytes {what}", part)[1])  # type: ignore[index]
            for what in ("stack frame", "spill stores", "spill loads")
        )
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert registers is not None
        static = int(shared[1]) if shared else 0
        found.append(Kernel(part.split("'")[0], int(registers[1]), stack, stores + loads, static))
    return found


def check(kernels: list[Kernel]) -> None:
    sequences = [kernel for kernel in kernels if "run_sequence" in kernel.name]
    tiled = [kernel for kernel in kernels if "run_tiled" in kernel.name]
    # 8 cells, forward and backward, two exchanges, one or two blocks of units; and initial states.
    assert len(sequences) >= 8 * 2 * 2
    assert len(tiled) == 8 * 2 + 1
    for kernel in kernels:
        assert kernel.stack == 0, f"an array in local memory: {kernel}"
        assert kernel.spills == 0, f"registers were spilled: {kernel}"
    for kernel in sequences + tiled:
        # A block is always resident, and has no shared memory that the plan does not know of.
        assert kernel.registers * THREADS <= REGISTERS, kernel
        assert kernel.shared == 0, kernel


def test_report_is_read() -> None:
    """On a text with every kind of trouble."""
    text = (
        "ptxas info    : Compiling entry function 'bad' for 'sm_90a'\n"
        "    24 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 32 bytes smem\n"
    )
    assert report(text) == [Kernel("bad", 255, 24, 24, 32)]


def test_bfloat16_for_hopper(tmp_path: Path) -> None:
    check(compiled("bfloat16", "90a", tmp_path))


@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.parametrize("math", [math for math in MATHS if math != "bfloat16"])
def test_every_arithmetic_for_hopper(math: str, tmp_path: Path) -> None:
    check(compiled(math, "90a", tmp_path))


@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.parametrize(("math", "arch"), [("float16", "80"), ("tf32", "120")])
def test_other_architectures(math: str, arch: str, tmp_path: Path) -> None:
    check(compiled(math, arch, tmp_path))
