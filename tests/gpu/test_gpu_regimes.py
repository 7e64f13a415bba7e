"""Every cell, option, arithmetic and regime against the reference in float64 on the CPU; and NaN,
which goes no further than its row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import ALL_CELLS, Case, arguments
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


@pytest.mark.parametrize("regime", device().some(REGIMES, 4))
def test_nan_stays_in_its_row(regime: str | None) -> None:
    a = arguments(Case("gru", torch.float16, batch=5, hidden_size=9))
    a.x[1, 2] = torch.nan
    y = run(a, regime)["output"]
    assert y[1:, 2].isnan().all()
    assert not y[:, [0, 1, 3, 4]].isnan().any()


@pytest.mark.parametrize("regime", device().some(REGIMES, 4))
def test_a_reset_row_forgets_nan(regime: str | None) -> None:
    a = arguments(Case("lstm", torch.float32, steps=4, batch=3, reset="never"))
    assert a.reset is not None
    a.x[0, 1] = torch.nan
    a.reset[2, 1] = True
    y = run(a, regime)["output"]
    assert y[:2, 1].isnan().all()
    assert not y[2:].isnan().any()
