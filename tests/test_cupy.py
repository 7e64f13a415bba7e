"""The cupy backend on a GPU that is emulated, or does nothing: all of it but CuPy itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import ALL_CELLS, Case, Outputs, arguments, each, results
from cuda_emulator import runner
from fake_cupy import FakeCupy, FakeGpuBackend, launch, registered

import fastrnn
from fastrnn.backends import cupy

if runner.compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)
if cupy.load()[0] is None:
    pytest.skip("a pure Python install does not record launches", allow_module_level=True)

from cuda_cases import ARITHMETICS, DEVICE, check, options, poisoned, rnn_precision
from cuda_cases import arguments as arguments_of
from cuda_emulated import registered as registered_cuda
from cupy_emulated import EmulatedCupy

#: What can be launched: clusters cannot.
REGIMES = ("stepwise", "processor", "grid", "tiled")


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with poisoned():
        yield


def run(case: Case, regime: str | None, *, tf32: bool = False) -> Outputs:
    gpu = EmulatedCupy(seed=1, **DEVICE)
    with rnn_precision(tf32=tf32), registered(gpu, regime) as name:
        return results(arguments_of(case, tf32=tf32), backend=name)


@pytest.mark.parametrize("regime", REGIMES)
@each(*(options(cell) for cell in ALL_CELLS))
def test_every_option(case: Case, regime: str) -> None:
    check(run(case, regime), case)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_every_arithmetic(cell: str, arithmetic: str, regime: str) -> None:
    dtype, tf32 = ARITHMETICS[arithmetic]
    case = Case(cell, dtype, hidden_size=27, batch=19, bidirectional=True, lengths="random")
    case = replace(case, cell_states=cell == "lstm")
    check(run(case, regime, tf32=tf32), case, tf32=tf32)


@pytest.mark.parametrize("regime", ["stepwise-1-2", "processor-1-1", "grid-1-2", "tiled-1"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_the_bits_of_the_cuda_backend(cell: str, regime: str) -> None:
    """The same kernels, launched by the same plan: nothing is rounded otherwise."""
    case = Case(cell, torch.bfloat16, hidden_size=40, batch=18, lengths="random", reset="random")
    with registered_cuda(regime, seed=1, **DEVICE) as name:
        expected = results(arguments(case), backend=name)
    for name, value in run(case, regime).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_a_grid_is_launched_cooperatively_and_once() -> None:
    gpu = launch(Case("lstm", steps=9, hidden_size=40), "grid")
    together = [launched for launched in gpu.launched if launched.cooperative]
    assert len(together) == 2  # forward and backward
    for launched in together:
        assert launched.kernel.startswith("run_sequence<")
        assert launched.grid[0] > 1


def test_stepwise_launches_every_stage_of_every_step() -> None:
    gpu = launch(Case("gru_reset_before", steps=9), "stepwise")
    steps = [one.kernel for one in gpu.launched if re.match("run_sequence<(For|Back)ward", one[0])]
    assert len(steps) == 2 * 2 * 9
    assert not any(launched.cooperative for launched in gpu.launched)


def test_a_kernel_is_compiled_once_for_all_calls() -> None:
    gpu = FakeCupy()  # which asserts it
    with registered(gpu) as name:
        for _ in range(2):
            results(arguments(Case("gru")), backend=name)
    assert gpu.options == {("-std=c++17", f"-I{cupy.sources()}")}


@pytest.mark.parametrize("regime", ["stepwise-1-1", "processor-1-1", "grid-1-1", "tiled-1"])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_nothing_is_compiled_that_is_not_launched(cell: str, regime: str) -> None:
    """Compiling a kernel takes seconds, also one that a plan only asks about."""
    gpu = launch(Case(cell, hidden_size=40), regime)
    assert set(gpu.codes) == {launched.kernel for launched in gpu.launched}


def test_what_is_compiled_names_its_sources(tmp_path: Path) -> None:
    """CuPy looks into its cache by the text and not by what that includes."""
    folder = tmp_path / "csrc"
    (folder / "cuda").mkdir(parents=True)
    header = folder / "cuda" / "timeline.cuh"
    header.write_text("one")
    one = cupy.code(folder, "upload", 16)
    cupy._digest.cache_clear()
    assert cupy.code(folder, "upload", 16) == one
    header.write_text("another")
    cupy._digest.cache_clear()
    assert cupy.code(folder, "upload", 16) != one
    cupy._digest.cache_clear()


def test_clusters_are_refused_and_never_planned() -> None:
    case = Case("lstm", hidden_size=64, batch=16)
    with pytest.raises(RuntimeError, match="layer_forward: the regime cluster cannot run this"):
        launch(case, "cluster")
    with pytest.raises(RuntimeError, match="cannot run this"):
        launch(case, "grid-4")
    # Here nvcc's kernels would share k among the blocks of clusters.
    launch(Case("lstm", torch.bfloat16, hidden_size=512, batch=16, steps=1), multiprocessors=132)


def test_sources_are_where_an_install_has_them() -> None:
    folder = cupy.sources()
    assert folder is not None
    assert {"core", "cuda"} <= {path.name for path in folder.iterdir()}


class Broken(FakeCupy):
    def start(self, *_: object) -> None:
        raise RuntimeError("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure")


def test_errors_of_a_launch_name_the_operator() -> None:
    with (
        registered(Broken()) as name,
        pytest.raises(RuntimeError, match="fastrnn: layer_forward: CUDA_ERROR_LAUNCH_FAILED"),
    ):
        results(arguments(Case("gru")), backend=name)


class Uncompilable(FakeCupy):
    def RawModule(self, **_: object) -> Any:
        raise ValueError("no such option")


@pytest.mark.parametrize("regime", ["grid", "stepwise"])
def test_errors_of_the_compiler_are_passed_on(regime: str) -> None:
    """Also where the plan asks for a kernel, in the midst of C++."""
    with (
        registered(Uncompilable(multiprocessors=24), regime) as name,
        pytest.raises(RuntimeError, match="fastrnn: layer_forward: no such option"),
    ):
        results(arguments(Case("gru", hidden_size=88)), backend=name)


def test_several_devices_keep_their_kernels_apart() -> None:
    backend = FakeGpuBackend(FakeCupy())
    backend._device(0)
    with pytest.raises(IndexError):
        backend._device(1)


class OldGpu(FakeGpuBackend):
    def capability(self, device: torch.device) -> tuple[int, int]:
        return 7, 5


def test_needs_matrix_instructions() -> None:
    problem = fastrnn.backends.example("lstm", torch.float32, torch.device("cpu"))
    verdict = OldGpu(FakeCupy()).supports(problem)
    assert verdict == (False, "compute capability 8.0 or later only, not 7.5")
    assert FakeGpuBackend(FakeCupy()).supports(problem).ok
    problem = fastrnn.backends.example("lstm", torch.complex64, torch.device("cpu"))
    assert "not torch.complex64" in FakeGpuBackend(FakeCupy()).supports(problem).reason


class Installed(cupy.CupyBackend):
    """With a CuPy of the test's own."""

    def __init__(self, gpu: object) -> None:
        super().__init__()
        self.gpu = gpu

    def cupy(self) -> Any:
        if isinstance(self.gpu, Exception):
            raise self.gpu
        return self.gpu


def verdict(monkeypatch: pytest.MonkeyPatch, gpu: object, *, installed: bool, seen: bool) -> Any:
    found = object() if installed else None
    monkeypatch.setattr(cupy.importlib.util, "find_spec", lambda name: found)  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    return Installed(gpu).available()


def test_available(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeCupy()
    reason = verdict(monkeypatch, gpu, installed=False, seen=True).reason
    assert reason == "CuPy is not installed (pip install fastrnn[cupy])"
    assert verdict(monkeypatch, gpu, installed=True, seen=False) == (False, "torch sees no GPU")
    broken = ImportError("libcuda.so.1")
    reason = verdict(monkeypatch, broken, installed=True, seen=True).reason
    assert reason == "CuPy does not work here (libcuda.so.1)"
    found = verdict(monkeypatch, gpu, installed=True, seen=True)
    assert found.ok
    assert "without clusters" in found.reason
    gpu.cuda.runtime.getDeviceCount = lambda: 0
    assert verdict(monkeypatch, gpu, installed=True, seen=True) == (False, "CuPy sees no GPU")


def test_available_without_what_is_built_or_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy, "sources", lambda: None)
    reason = Installed(FakeCupy()).available().reason
    assert reason == "the CUDA sources (csrc) are missing"
    monkeypatch.setattr(cupy, "load", lambda: (None, "the compiled extension is missing"))
    assert Installed(FakeCupy()).available().reason == "the compiled extension is missing"


def test_cupy_is_not_imported_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cupy.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cupy.CupyBackend().available() == (False, "torch sees no GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(AssertionError, match="imported"):
        cupy.CupyBackend().available()


#: Of CuPy 14's own documentation of itself: the functions that the backend calls.
SIGNATURES = {
    "driver.launchKernel": "intptr_t f, unsigned int grid_dim_x, unsigned int grid_dim_y, "
    "unsigned int grid_dim_z, unsigned int block_dim_x, unsigned int block_dim_y, unsigned int "
    "block_dim_z, unsigned int shared_mem_bytes, intptr_t stream, intptr_t kernel_params, "
    "intptr_t extra",
    "driver.launchCooperativeKernel": "intptr_t f, unsigned int grid_dim_x, unsigned int "
    "grid_dim_y, unsigned int grid_dim_z, unsigned int block_dim_x, unsigned int block_dim_y, "
    "unsigned int block_dim_z, unsigned int shared_mem_bytes, intptr_t stream, intptr_t "
    "kernel_params",
    "driver.occupancyMaxActiveBlocksPerMultiprocessor": "intptr_t func, int blockSize, size_t "
    "dynamicSMemSize",
    "runtime.setDevice": "int device",
    "runtime.getDevice": "",
    "runtime.getDeviceCount": "",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_fake_takes_what_cupy_takes(name: str) -> None:
    real = pytest.importorskip("cupy", reason="no CuPy to compare with")
    module, function = name.split(".")
    documented = getattr(getattr(real.cuda, module), function).__doc__
    assert documented.startswith(f"{function}({SIGNATURES[name]})")
    assert hasattr(getattr(FakeCupy().cuda, module), function)
    assert hasattr(real.RawKernel, "max_dynamic_shared_size_bytes")
