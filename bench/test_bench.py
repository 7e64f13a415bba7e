"""The benchmark's cases for pytest-benchmark: ``python -m pytest bench --benchmark-enable``.

A group is a case, its two rows are fastrnn and torch.nn. Without ``--benchmark-enable`` the small
cases are checked and called once, on one thread; ``bench.run`` checks them all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.cases import CASES, INFERENCE, Case
from bench.workload import IMPLEMENTATIONS, OURS, Workload, outputs

ROUNDS = 20
CALLS_OF_SHORT_CASES = 100
#: Operations of a small case.
SMALL = 5e8


@functools.lru_cache(maxsize=1)  # the two implementations of a case follow one another
def checked(case: Case) -> Workload:
    """The workload of a case, once its numbers are right."""
    work = Workload(case)
    work.check()
    return work


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    all_of_them = metafunc.config.getoption("benchmark_enable")
    cases = [case for case in CASES if all_of_them or Workload(case).flops < SMALL]
    metafunc.parametrize("case", cases, ids=lambda case: case.name)
    metafunc.parametrize("implementation", IMPLEMENTATIONS)


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread unless something is timed: torch's loops crawl where a core is taken away."""
    before = torch.get_num_threads()
    if not request.config.getoption("benchmark_enable"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_case(benchmark: Any, case: Case, implementation: str) -> None:
    work = checked(case)
    benchmark.group = case.name
    benchmark.extra_info.update(
        implementation=implementation,
        backend=work.backend() if implementation == OURS else "torch",
        threads=torch.get_num_threads(),
        flops=work.flops,
    )
    with torch.inference_mode(case.mode == INFERENCE):
        result = benchmark.pedantic(
            work.call(implementation),
            rounds=ROUNDS,
            iterations=CALLS_OF_SHORT_CASES if case.steps == 1 else 1,
            warmup_rounds=2,
        )
    if case.mode == INFERENCE:
        assert len(outputs(result, case)) >= 1
    else:
        assert len(result) >= 3  # gradients of the input and of two weights at least
