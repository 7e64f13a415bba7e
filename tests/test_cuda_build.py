"""What nvcc makes of the CUDA kernels: no GPU is needed to compile for one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import cmake
import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[1]
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
CMAKE = str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
MATHS = ("float16", "bfloat16", "float32", "tf32", "float64")
#: How their kernels' names begin.
MATH_NAMES = {
    "float16": "8HalfMath",
    "bfloat16": "12BFloat16Math",
    "float32": "10ScalarMathIfE",
    "tf32": "8Tf32Math",
    "float64": "10ScalarMathIdE",
}
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
    command = [str(NVCC), "-std=c++17", f"-I{ROOT / 'csrc'}", "-cubin"]
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


@pytest.fixture(scope="module")
def for_hopper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """fastrnn._cuda for sm_90a, and what was said while it was built."""
    tree = tmp_path_factory.mktemp("hopper")
    configure(tree, "-DFASTRNN_CUDA_ARCHS=90a-real", "-DCMAKE_CUDA_FLAGS=-Xptxas -v")
    command = [CMAKE, "--build", str(tree), "--target", "_cuda", "--parallel", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(tree.glob("_cuda.*.so")), result.stdout + result.stderr


def configure(tree: Path, *options: str) -> list[str]:
    """The commands that CMake would compile with; ninja, where it is there, keeps outputs whole."""
    command = [
        CMAKE,
        f"-S{ROOT}",
        f"-B{tree}",
        "-DFASTRNN_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={NVCC}",
    ]
    command += [f"-DPython_EXECUTABLE={sys.executable}", "-DFASTRNN_VERSION=test"]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *options]
    if ninja := shutil.which("ninja"):
        command += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    entries = json.loads((tree / "compile_commands.json").read_text())
    return [entry["command"] for entry in entries if entry["file"].endswith(".cu")]


@pytest.mark.slow
@pytest.mark.cuda
def test_every_kernel_for_hopper(for_hopper: tuple[Path, str]) -> None:
    kernels = report(for_hopper[1])
    for math in MATH_NAMES.values():
        check([kernel for kernel in kernels if math in kernel.name])
    assert any("upload" in kernel.name for kernel in kernels)


# Where there is no driver, and where it shows no GPU.
WITHOUT_GPU = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_cuda", sys.argv[1])
cuda = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cuda)
assert cuda.device_count() == 0
try:
    cuda.dense_rows((0,) * 9, (1, 1, 1, 1, 1, 1, 1), (0, 0, 0), 0)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.cuda
def test_extension_without_a_gpu(for_hopper: tuple[Path, str]) -> None:
    """It loads, as its runtime is static, and says which operator lacks what."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_GPU, str(for_hopper[0])],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 0, result.stderr
    assert re.match("fastrnn: layer_forward: (CUDA driver|no CUDA-capable)", result.stdout)
    needed = subprocess.run(["ldd", str(for_hopper[0])], capture_output=True, text=True, check=True)
    assert "libcudart" not in needed.stdout
    assert "libcuda." not in needed.stdout


def targets(command: str) -> set[str]:
    return set(re.findall(r",code=\[?([\w,]+)", command))


@pytest.mark.slow
@pytest.mark.cuda
def test_what_is_shipped(tmp_path: Path) -> None:
    """Machine code for six architectures, PTX for others; a debug build bounds its waits."""
    narrow = configure(tmp_path, "-DFASTRNN_CUDA_ARCHS=89-real")
    assert all(targets(command) == {"sm_89"} for command in narrow)
    # What setup.py passes where nothing is asked for.
    commands = configure(tmp_path, "-UFASTRNN_CUDA_ARCHS", "-DFASTRNN_CUDA_DEBUG=ON")
    assert len(commands) == len(MATHS) + 1
    for command in commands:
        assert targets(command) == {
            *(f"sm_{arch}" for arch in ("80", "86", "89", "90a", "100", "120")),
            "compute_90",
        }
        assert "-DFASTRNN_MOST_SPINS=" in command
    for command in configure(tmp_path, "-DFASTRNN_CUDA_DEBUG=OFF"):
        assert "FASTRNN_MOST_SPINS" not in command


@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.parametrize(
    ("math", "arch"),
    [
        ("float16", "80"),
        ("float32", "86"),
        ("float64", "89"),
        ("bfloat16", "100"),
        ("tf32", "120"),
    ],
)
def test_other_architectures(math: str, arch: str, tmp_path: Path) -> None:
    """Each once, with an arithmetic of its own: any pair takes 15 to 30 s of a core."""
    check(compiled(math, arch, tmp_path))
