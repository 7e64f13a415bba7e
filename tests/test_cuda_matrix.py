"""The CUDA kernels on the CPU: every cell, option, regime and arithmetic, in changing orders.

The emulator runs threads in a random order with random delays, another one for each seed. Results
must be those of the reference, and the same bits for every seed; in the checked build every
access to memory is seen, and two that nothing orders are an error of the launch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from cases import ALL_CELLS, Case
from cuda_emulator import runner

if runner.compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

from cuda_cases import ARITHMETICS, REGIMES, check, options, poisoned, run

COMBINATIONS = list(itertools.product(ALL_CELLS, ARITHMETICS, REGIMES))


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with poisoned():
        yield


def agree(case: Case, arithmetic: str, regime: str, seeds: range, *, checked: bool = False) -> None:
    """Right for the first seed, the same bits for the others."""
    tf32 = ARITHMETICS[arithmetic][1]
    first = run(case, regime, tf32=tf32, seed=seeds[0], checked=checked)
    check(first, case, tf32=tf32)
    for seed in seeds[1:]:
        again = run(case, regime, tf32=tf32, seed=seed, checked=checked)
        for name, value in first.items():
            assert torch.equal(again[name], value), f"{case.id}: {name} changes with the seed"


def rotation() -> Iterator[tuple[str, str, Case]]:
    """One option for each combination, another one each time, so that every option has its turn."""
    for cell, (a, arithmetic), (r, regime) in itertools.product(
        ALL_CELLS, enumerate(ARITHMETICS), enumerate(REGIMES)
    ):
        listed = options(cell, ARITHMETICS[arithmetic][0])
        yield arithmetic, regime, listed[(len(REGIMES) * a + r) % len(listed)]


@pytest.mark.parametrize(
    ("arithmetic", "regime", "case"),
    [pytest.param(*turn, id=f"{turn[0]}-{turn[1]}-{turn[2].id}") for turn in rotation()],
)
def test_same_bits_in_whatever_order_threads_run(arithmetic: str, regime: str, case: Case) -> None:
    agree(case, arithmetic, regime, range(1, 4))


def test_every_option_has_its_turn() -> None:
    taken = {replace(case, dtype=torch.float32) for _, _, case in rotation()}
    assert taken == {case for cell in ALL_CELLS for case in options(cell)}


@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.parametrize(("cell", "arithmetic", "regime"), COMBINATIONS)
def test_every_combination(cell: str, arithmetic: str, regime: str) -> None:
    for case in options(cell, ARITHMETICS[arithmetic][0]):
        agree(case, arithmetic, regime, range(4, 6))


@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.parametrize(("cell", "arithmetic", "regime"), COMBINATIONS)
def test_no_races(cell: str, arithmetic: str, regime: str) -> None:
    for case in options(cell, ARITHMETICS[arithmetic][0]):
        agree(case, arithmetic, regime, range(1, 2), checked=True)
