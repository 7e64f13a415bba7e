"""Every cell, option, arithmetic and regime against the reference in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from cases import ALL_CELLS, Case
from cuda_cases import options
from on_gpu import MATHS, REGIMES, Math, compare, device, expected, run

pytestmark = pytest.mark.gpu


def all_of_them() -> Iterator[tuple[Case, Math, str | None]]:
    """Those that run on the emulated device on every commit, times all arithmetics."""
    for math in MATHS:
        for cell in ALL_CELLS:
            for option in options(cell):
                for regime in REGIMES:
                    yield replace(option, dtype=math.dtype), math, regime


def parameters() -> list[Any]:
    return [
        pytest.param(case, math, regime, id=f"{math.name}-{case.id}-{regime}")
        for case, math, regime in device().some(list(all_of_them()), 12)
    ]


@pytest.mark.parametrize(("case", "math", "regime"), parameters())
def test_every_regime(case: Case, math: Math, regime: str | None) -> None:
    compare(run(case, regime, math), expected(case), case, math)
