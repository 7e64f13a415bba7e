"""The host's side of ``device.cuh`` before a CUDA runtime that answers as it is told: no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")

if NVCC is None:
    pytest.skip("no nvcc", allow_module_level=True)

PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include "cuda/device.cuh"

using namespace fastrnn;
static void kernel(int) {}

int main(int, char** arguments) {
  try {
    if (arguments[1] == std::string("clusters")) {
      Launch how;
      how.grid[0] = how.cluster = unsigned(atoi(arguments[2]));
      printf("%d", resident_clusters(kernel, how, "test"));
    } else if (arguments[1] == std::string("code")) {
      printf("%s", without_code(kernel, "test").c_str());
    } else {
      const DeviceGuard guard(atoi(arguments[2]), "test");
      printf("called ");
    }
  } catch (const std::exception& error) {
    printf("%s", error.what());
  }
}
"""
# What stands here is linked in the place of CUDA's own of that name.
RUNTIME = """
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

static cudaError_t answer() { return cudaError_t(atoi(getenv("ANSWER"))); }

cudaError_t cudaOccupancyMaxActiveClusters(int* count, const void*, const cudaLaunchConfig_t*) {
  *count = 3;
  return answer();
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return answer(); }
cudaError_t cudaGetDevice(int* device) {
  *device = 1;
  return answer();
}
cudaError_t cudaSetDevice(int device) {
  printf("set %d ", device);
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  printf("cleared ");
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "its text"; }
"""
#: cudaError_t.
ERRORS = {
    "success": 0,
    "invalid value": 1,
    "out of memory": 2,
    "invalid configuration": 9,
    "invalid device function": 98,
    "no kernel image for device": 209,
    "unsupported PTX version": 222,
    "stream capture unsupported": 900,
    "invalid cluster size": 912,
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtime")
    (folder / "program.cu").write_text(PROGRAM)
    (folder / "runtime.cpp").write_text(RUNTIME)
    command = [str(NVCC), "-std=c++17", f"-I{ROOT / 'csrc'}"]
    command += ["-Xlinker=--allow-multiple-definition"]
    command += ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a"]
    command += ["-o", "program", "program.cu", "runtime.cpp"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder / "program"


def ask(program: Path, error: str, *arguments: object) -> str:
    """What the program prints before a runtime that answers with that error."""
    command = [str(program), *map(str, arguments)]
    environment = {"ANSWER": str(ERRORS[error])}
    return subprocess.check_output(command, env=environment, text=True)


@pytest.mark.parametrize(
    ("error", "size", "wanted"),
    [
        ("success", 4, "3"),
        ("success", 16, "3"),
        # A part of a GPU that has no room for them. Other plans are left.
        ("invalid cluster size", 2, "cleared 0"),
        ("invalid configuration", 8, "cleared 0"),
        ("invalid cluster size", 16, "cleared 0"),
        ("invalid value", 16, "cleared 0"),
        ("invalid value", 8, "cleared fastrnn: test: its text"),
        ("out of memory", 2, "cleared fastrnn: test: its text"),
    ],
)
def test_clusters_for_which_there_is_no_room(
    error: str, size: int, wanted: str, program: Path
) -> None:
    assert ask(program, error, "clusters", size) == wanted


@pytest.mark.parametrize(
    "error", ["invalid device function", "no kernel image for device", "unsupported PTX version"]
)
def test_a_device_for_which_nothing_is_compiled(error: str, program: Path) -> None:
    reason = "its text (kernels are compiled for 8.0, 9.0)"
    assert ask(program, error, "code") == f"cleared {reason}"


def test_a_device_for_which_something_is_compiled(program: Path) -> None:
    assert ask(program, "success", "code") == ""


def test_what_says_nothing_about_the_device(program: Path) -> None:
    """It is raised, and asked again at the next call."""
    for error in ("out of memory", "stream capture unsupported"):
        assert ask(program, error, "code") == "cleared fastrnn: test: its text"


def test_the_device_that_is_current_is_not_set(program: Path) -> None:
    """Nor is one to go back to."""
    assert ask(program, "success", "guard", 1) == "called "
    assert ask(program, "success", "guard", 0) == "set 0 called set 1 "
