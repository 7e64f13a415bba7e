"""A CuPy without a GPU: what the cupy backend calls of it, as strict as CuPy and CUDA are.

Numbers must be integers, as in CuPy's Cython; a kernel must have been compiled, and been allowed
the shared memory that it is launched with; the thread must have the device's context. What has
been compiled and launched is kept for tests to look at. Nothing is compiled and nothing runs:
``cupy_emulated`` adds an emulated device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from cases import Case, arguments, results

from fastrnn import backends
from fastrnn.backends.base import Verdict
from fastrnn.backends.cuda import _Call, choice_of
from fastrnn.backends.cupy import CupyBackend
from fastrnn.problem import Problem

STREAM = 7

#: An H100 with few multiprocessors, as the emulator has them.
DEVICE = {"multiprocessors": 8, "shared_per_block": 232448}


class Launched(NamedTuple):
    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    cooperative: bool


class RawKernel:
    """cupy.RawKernel, as ``RawModule.get_function`` makes it."""

    def __init__(self, name: str, address: int, argument_bytes: int) -> None:
        self.name, self.argument_bytes = name, argument_bytes
        self.kernel = SimpleNamespace(ptr=address)
        self.max_dynamic_shared_size_bytes = 48 * 1024


class RawModule:
    def __init__(
        self, gpu: FakeCupy, code: str, options: tuple[str, ...], name_expressions: tuple[str, ...]
    ) -> None:
        assert gpu.current == 0, "CuPy compiles for the current device"
        assert isinstance(options, tuple)
        assert isinstance(name_expressions, tuple)
        self.gpu, self.code, self.names = gpu, code, name_expressions
        gpu.options.add(options)

    def get_function(self, name: str) -> RawKernel:
        assert name in self.names
        size = re.search(rf"argument_of\({re.escape(name)}\)\) == (\d+)", self.code)
        assert size is not None
        assert name not in self.gpu.codes, "compiled twice"
        self.gpu.codes[name] = self.code
        address = self.gpu.address_of(name)
        return self.gpu.kernels.setdefault(address, RawKernel(name, address, int(size[1])))


class FakeCupy:
    """The module ``cupy``, of one device."""

    def __init__(self, **configuration: int) -> None:
        numbers = DEVICE | configuration
        self.codes: dict[str, str] = {}
        self.options: set[tuple[str, ...]] = set()
        self.kernels: dict[int, RawKernel] = {}
        self.launched: list[Launched] = []
        self.current: int | None = None
        attributes = {
            "MultiProcessorCount": numbers["multiprocessors"],
            "MaxSharedMemoryPerBlockOptin": numbers["shared_per_block"],
        }
        device = SimpleNamespace(attributes=attributes, compute_capability="90")
        runtime = SimpleNamespace(
            getDeviceCount=lambda: 1,
            getDevice=lambda: 0,
            setDevice=self._set_device,
        )
        driver = SimpleNamespace(
            launchKernel=self._launch,
            launchCooperativeKernel=self._launch_together,
            occupancyMaxActiveBlocksPerMultiprocessor=self._resident_blocks,
        )
        self.cuda = SimpleNamespace(runtime=runtime, driver=driver, Device=[device].__getitem__)

    # What a device does.

    def address_of(self, name: str) -> int:
        return 0x1000 + 16 * len(self.kernels)

    def resident_blocks(self, threads: int, shared_bytes: int) -> int:
        return 1

    def start(self, kernel: RawKernel, launched: Launched, parameters: int) -> None:
        pass

    # What CuPy has.

    def RawModule(
        self, *, code: str, options: tuple[str, ...], name_expressions: tuple[str, ...]
    ) -> RawModule:
        return RawModule(self, code, options, name_expressions)

    def _set_device(self, device: int) -> None:
        self.current = device

    def _resident_blocks(self, func: int, blockSize: int, dynamicSMemSize: int) -> int:
        assert dynamicSMemSize <= self.kernels[func].max_dynamic_shared_size_bytes
        return self.resident_blocks(blockSize, dynamicSMemSize)

    def _launch(self, *how: int) -> None:
        *plain, extra = how
        assert extra == 0
        self._start(False, *plain)

    def _launch_together(self, *how: int) -> None:
        self._start(True, *how)

    def _start(
        self,
        cooperative: bool,
        f: int,
        grid_dim_x: int,
        grid_dim_y: int,
        grid_dim_z: int,
        block_dim_x: int,
        block_dim_y: int,
        block_dim_z: int,
        shared_mem_bytes: int,
        stream: int,
        kernel_params: int,
    ) -> None:
        numbers = (f, grid_dim_x, grid_dim_y, grid_dim_z, block_dim_x, shared_mem_bytes)
        assert all(type(number) is int for number in (*numbers, stream, kernel_params))
        assert (block_dim_y, block_dim_z, stream, self.current) == (1, 1, STREAM, 0)
        kernel = self.kernels[f]
        if shared_mem_bytes > kernel.max_dynamic_shared_size_bytes:
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        grid = grid_dim_x, grid_dim_y, grid_dim_z
        launched = Launched(kernel.name, grid, block_dim_x, shared_mem_bytes, cooperative)
        self.launched.append(launched)
        self.start(kernel, launched, kernel_params)


class FakeGpuBackend(CupyBackend):
    """The cupy backend on such a device, for tensors of the CPU.

    regime: one of REGIMES; with ``-`` and blocks of a cluster, and again ``-`` and blocks of 8
        units in a group, to insist on those too: ``grid-1-2``.
    """

    name = "cupy_fake"
    device_type = "cpu"

    def __init__(self, gpu: FakeCupy, regime: str | None = None) -> None:
        super().__init__()
        self.gpu = gpu
        if regime is not None:
            self.choice = choice_of(regime)

    def cupy(self) -> Any:
        return self.gpu

    def available(self) -> Verdict:
        return Verdict(True, "a fake")

    def stream(self, problem: Problem) -> int:
        return STREAM

    def capability(self, device: torch.device) -> tuple[int, int]:
        return 9, 0


@contextmanager
def registered(gpu: FakeCupy, regime: str | None = None) -> Iterator[str]:
    """The name of the backend on that device, known inside the block only."""
    before = backends._registry
    backend = FakeGpuBackend(gpu, regime)
    backends.register(backend)
    try:
        yield backend.name
    finally:
        backends._registry = before
        backends._chosen.clear()


def _zeros(call: _Call) -> torch.Tensor | None:
    """Some index for torch's part of a call, whose own nobody has filled."""
    index = _dense_index(call)
    return None if index is None else torch.zeros_like(index)


_dense_index = _Call.dense_index


def launch(
    case: Case, regime: str | None = None, *, backward: bool = True, **configuration: int
) -> FakeCupy:
    """A GPU after the forward and the backward of a case, which computed nothing."""
    gpu = FakeCupy(**configuration)
    with registered(gpu, regime) as name, mock.patch.object(_Call, "dense_index", _zeros):
        results(arguments(case), backend=name, wanted=None if backward else ())
    return gpu
