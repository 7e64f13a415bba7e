"""The device of a rehearsal: torch on the CPU, our kernels on the emulated GPU of the tests.

Of ``torch.cuda`` it has what the programs here use, and no more: what a rehearsal reaches is what a
GPU will be asked for. Nothing in a rehearsal says how fast anything is.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastrnn.backends import cupy

from ..workload import TESTS
from .device import Captured, Device

T = TypeVar("T")

#: Enough for a grid of several teams.
MULTIPROCESSORS = 16
#: The emulated GPU, which has clusters of 16 as a Hopper has.
DEVICE = {
    "multiprocessors": MULTIPROCESSORS,
    "multiprocessors_per_group": MULTIPROCESSORS,
    "cluster_limit": 16,
}


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.time = 0.0

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return max(1e3 * (end.time - self.time), 1e-6)


class Stream:
    def __init__(self, device: object = None) -> None: ...

    def wait_stream(self, other: Stream) -> None: ...

    def synchronize(self) -> None: ...


class Graph:
    """What was captured runs again, eagerly."""

    def __init__(self) -> None:
        self.again: Callable[[], object] = lambda: None

    def replay(self) -> None:
        self.again()


class Cuda:
    """What stands for the module ``torch.cuda``."""

    def __init__(self) -> None:
        self.Event, self.Stream, self.CUDAGraph = Event, Stream, Graph
        self._stream = Stream()

    def current_stream(self, device: object = None) -> Stream:
        return self._stream

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self._stream = self._stream, stream
        yield
        self._stream = before

    @contextmanager
    def graph(self, graph: Graph) -> Iterator[None]:
        yield

    def synchronize(self, device: object = None) -> None: ...

    def set_sync_debug_mode(self, mode: str) -> None:
        if mode not in ("default", "error"):
            raise ValueError(mode)

    def memory_stats(self) -> dict[str, int]:
        return {"allocation.all.allocated": 0}

    def mem_get_info(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def empty_cache(self) -> None: ...

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def get_device_capability(self) -> tuple[int, int]:
        return 9, 0

    def get_device_properties(self, device: int) -> Any:
        return SimpleNamespace(
            name="emulated",
            major=9,
            minor=0,
            multi_processor_count=MULTIPROCESSORS,
            total_memory=1 << 40,
            L2_cache_size=1 << 20,
            shared_memory_per_block_optin=232448,
        )


def refill(old: Any, new: Any) -> None:
    """Write one nest of tensors into another of the same shape."""
    if isinstance(old, Tensor):
        with torch.no_grad():
            old.copy_(new)
    elif isinstance(old, dict):
        for name, value in old.items():
            refill(value, new[name])
    elif old is not None:
        for one, two in zip(old, new, strict=True):
            refill(one, two)


class Rehearsal(Device):
    type = "cpu"
    rehearsed = True

    def __init__(self) -> None:
        self.cuda = Cuda()

    def missing(self) -> str:
        return "" if emulated().runner.compiler() else "no C++ compiler for the emulator"

    def fit(self, value: T, rehearsed: T) -> T:
        return rehearsed

    def some(self, items: Sequence[T], rehearsed: int) -> list[T]:
        step = -(-len(items) // rehearsed)
        return list(items)[::step]

    def serving(self, regime: str | None = None) -> AbstractContextManager[str]:
        found: AbstractContextManager[str] = emulated().registered(regime, **DEVICE)
        return found

    def without_cupy(self) -> str:
        extension, reason = cupy.load()
        return reason if extension is None else ""

    def serving_cupy(self, regime: str | None = None) -> AbstractContextManager[str]:
        gpu = of_tests("cupy_emulated").EmulatedCupy(**DEVICE)
        found: AbstractContextManager[str] = of_tests("fake_cupy").registered(gpu, regime)
        return found

    def capture(self, call: Callable[[], Any]) -> Captured:
        captured = super().capture(call)

        def again() -> None:
            refill(captured.result, call())

        captured.graph.again = again
        return captured


def emulated() -> Any:
    """The CUDA backend on an emulated device."""
    return of_tests("cuda_emulated")


def of_tests(name: str) -> Any:
    """A module of the tests."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module(name)
