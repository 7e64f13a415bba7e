"""The benchmark's cases for pytest-benchmark: ``python -m pytest bench --benchmark-enable``.

A group is a case, its two rows are fastrnn and torch.nn. Without ``--benchmark-enable`` every
case is checked and called once: the correctness of real sizes.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from bench.cases import CASES, INFERENCE, Case
from bench.workload import IMPLEMENTATIONS, OURS, Workload

ROUNDS = 20
CALLS_OF_SHORT_CASES = 100


@functools.lru_cache(maxsize=1)  # the two implementations of a case follow one another
def checked(case: Case) -> Workload:
    """The workload of a case, once its numbers are right."""
    work = Workload(case)
    work.check()
    return work


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
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
    assert len(result) >= 2
