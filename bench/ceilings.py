"""What this machine can do at most: the rate of large products, and of reading weights.

Both are measured in the run that they are compared with, with its threads.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from .timing import settle

#: A product of this size is not bound by memory, and large enough for any number of threads.
ORDER = 1024
SECONDS = 0.5

#: What was measured in this process, by dtype and threads, and by log2(bytes) and threads.
_gemm_rates: dict[tuple[torch.dtype, int], float] = {}
_read_rates: dict[tuple[int, int], float] = {}


def measured(threads: int) -> dict[str, dict[str, float]]:
    """What was measured so far: GFLOP/s by dtype, and GB/s by the KiB that were read."""
    return {
        "gemm": {
            str(dtype).removeprefix("torch."): rate / 1e9
            for (dtype, used), rate in _gemm_rates.items()
            if used == threads
        },
        "read": {
            str(2**power // 1024): rate / 1e9
            for (power, used), rate in sorted(_read_rates.items())
            if used == threads
        },
    }


def gemm_rate(dtype: torch.dtype, threads: int) -> float:
    """Operations per second of ``torch.mm`` of two square matrices, at its fastest."""
    if (dtype, threads) not in _gemm_rates:
        _gemm_rates[dtype, threads] = _measure_gemm(dtype)
    return _gemm_rates[dtype, threads]


def _measure_gemm(dtype: torch.dtype) -> float:
    a, b = (torch.randn(ORDER, ORDER).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    fastest = _fastest(lambda: torch.mm(a, b, out=out))
    settle()
    return float(2 * ORDER**3) / fastest


def read_rate(size: int, threads: int) -> float:
    """Bytes per second at which so many bytes are read over and over, each thread its own part.

    They stay in the caches they fit in: this is the bound of a recurrence of one sequence, which
    reads its weights at each step. Sizes are rounded to powers of two.
    """
    power = max(12, round(math.log2(size)))
    if (power, threads) not in _read_rates:
        _read_rates[power, threads] = _measure_read(power, threads)
    return _read_rates[power, threads]


def _measure_read(power: int, threads: int) -> float:
    part = max(1, (1 << power) // 8 // threads)
    parts = [_aligned(part) for _ in range(threads)]
    reader = _reader()
    # Each thread reads a few milliseconds per sample: starting it is then nothing.
    repeats = max(1, 2**27 // (8 * part * threads))
    start = threading.Barrier(threads)

    def read(part: NDArray[np.int64]) -> None:
        start.wait()
        reader(part, repeats)

    with ThreadPoolExecutor(threads) as pool:
        fastest = _fastest(lambda: list(pool.map(read, parts)))
    return 8 * part * threads * repeats / fastest


def _aligned(items: int) -> NDArray[np.int64]:
    """Integers from the start of a cache line on: no vector crosses two."""
    room = np.arange(items + 8)
    start = -room.ctypes.data % 64 // 8
    return room[start : start + items]


@functools.cache
def _reader() -> Callable[[NDArray[np.int64], int], int]:
    """Sums integers: each vector is loaded once, and adding one to it takes a cycle."""

    @numba.njit(nogil=True)
    def read(values: Any, repeats: Any) -> Any:
        total = 0
        for number in range(repeats):
            part = 0
            for k in range(values.size):
                part += values[k]
            total ^= part + number  # else the compiler would read but once
        return total

    compiled: Callable[[NDArray[np.int64], int], int] = read
    compiled(np.arange(8), 2)
    return compiled


def _fastest(call: Callable[[], object]) -> float:
    call()
    fastest = math.inf
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
