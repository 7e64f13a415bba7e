"""The device that everything here runs on: a GPU, or its rehearsal on the CPU.

Tests and benchmarks reach CUDA's Python interface through ``device().cuda``. In a rehearsal
stand-ins take its place and the emulator of the tests that of the GPU, so that the same lines run.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastrnn import backends
from fastrnn.backends.cuda import CudaBackend, choice_of

#: Set to 1, everything runs on the CPU, at sizes that take seconds.
REHEARSAL = "GPU_REHEARSAL"

T = TypeVar("T")
Call = Callable[[], Any]


class Forced(CudaBackend):
    """The CUDA kernels in one regime: its name, and with ``-`` blocks of a cluster, ``grid-4``."""

    name = "cuda_forced"

    def __init__(self, regime: str) -> None:
        super().__init__()
        self.choice = choice_of(regime)


@dataclass(frozen=True)
class Captured:
    """A call as a CUDA graph, and the tensors that each replay fills."""

    graph: Any
    result: Any

    def replay(self) -> None:
        self.graph.replay()


class Device:
    """A GPU."""

    type = "cuda"
    rehearsed = False
    cuda: Any = torch.cuda

    def missing(self) -> str:
        """Why nothing can run here; empty where it can."""
        if not torch.cuda.is_available():
            return "torch sees no GPU"
        verdict = backends.get("cuda").available()
        return "" if verdict.ok else verdict.reason

    def load(self) -> None:
        """What else would be loaded at its first use, from a disk that may be cold."""
        x = torch.zeros(2, 2, 8, device=self.type)
        torch.mm(x[0], x[0].mT)
        torch.nn.LSTM(8, 8, device=self.type)(x)[0].sum().backward()
        self.cuda.synchronize()

    @property
    def index(self) -> int:
        return int(self.cuda.current_device())

    def fit(self, value: T, rehearsed: T) -> T:
        """A size: what it is on a GPU, and in a rehearsal."""
        return value

    def some(self, items: Sequence[T], rehearsed: int) -> list[T]:
        """The items; in a rehearsal so many of them, spread evenly."""
        return list(items)

    def serving(self, regime: str | None = None) -> AbstractContextManager[str]:
        """The name of the backend under test, in one regime or in that of its own choice."""
        return nullcontext("cuda") if regime is None else registered(Forced(regime))

    def without_cupy(self) -> str:
        """Why the cupy backend cannot run here; empty where it can."""
        verdict = backends.get("cupy").available()
        return "" if verdict.ok else verdict.reason

    def serving_cupy(self, regime: str | None = None) -> AbstractContextManager[str]:
        """As ``serving``, of the cupy backend: the one there is, which keeps what it compiles."""
        return nullcontext("cupy") if regime is None else insisting("cupy", regime)

    def capture(self, call: Call) -> Captured:
        """A CUDA graph of the call, which is warmed up on another stream, as torch asks for."""
        stream = self.cuda.Stream()
        stream.wait_stream(self.cuda.current_stream())
        with self.cuda.stream(stream):
            for _ in range(3):
                call()
        self.cuda.current_stream().wait_stream(stream)
        graph = self.cuda.CUDAGraph()
        with self.cuda.graph(graph):
            result = call()
        return Captured(graph, result)

    @contextmanager
    def no_synchronization(self) -> Iterator[None]:
        """Whatever makes the host wait for the device is an error."""
        self.cuda.synchronize()
        self.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            self.cuda.set_sync_debug_mode("default")

    def allocations(self) -> int:
        """How often torch has handed out memory of the device."""
        return int(self.cuda.memory_stats().get("allocation.all.allocated", 0))

    def event_seconds(self, call: Call, calls: int) -> float:
        """Seconds of the device per call, between two events around so many."""
        start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / calls

    def host_seconds(self, call: Call, calls: int = 5, rounds: int = 5) -> float:
        """Seconds until a call returns, while the device is idle or has little to do."""
        found = []
        for _ in range(rounds):
            self.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            found.append((time.perf_counter() - start) / calls)
        self.cuda.synchronize()
        return statistics.median(found)


@contextmanager
def registered(backend: CudaBackend) -> Iterator[str]:
    """The name of a backend that is known inside the block only."""
    before = backends._registry
    backends.register(backend)
    try:
        yield backend.name
    finally:
        backends._registry = before
        backends._chosen.clear()


@contextmanager
def insisting(name: str, regime: str) -> Iterator[str]:
    """The name of a backend of CUDA kernels, which has no choice inside the block."""
    backend = backends.get(name)
    assert isinstance(backend, CudaBackend)
    before, backend.choice = backend.choice, choice_of(regime)
    try:
        yield name
    finally:
        backend.choice = before


@functools.cache
def device() -> Device:
    if os.environ.get(REHEARSAL) == "1":
        from .rehearsal import Rehearsal

        return Rehearsal()
    return Device()


def to_device(tensor: Tensor) -> Tensor:
    return tensor.to(device().type)
