"""Sizes: those around the tiles, and those that people use, against the reference in float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from cases import Case
from on_gpu import MATHS, REGIMES, Math, compare, device, expected, run

pytestmark = pytest.mark.gpu

CELLS = ("lstm", "gru", "rnn_tanh", "gru_reset_before")
#: H, B
AROUND_TILES = ((7, 8), (8, 9), (9, 15), (15, 16), (16, 17), (17, 1), (31, 33), (33, 2), (65, 40))
USED = ((64, 1), (200, 20), (256, 16), (300, 4), (512, 32), (650, 20), (768, 16), (1024, 64))


def sizes() -> Iterator[tuple[int, int, int]]:
    """H, B and T."""
    for hidden, batch in AROUND_TILES:
        yield hidden, batch, 4
    for hidden, batch in USED:
        yield hidden, batch, 3


def parameters() -> list[Any]:
    product = itertools.product(CELLS, sizes(), MATHS, REGIMES)
    small = [entry for entry in product if not device().rehearsed or entry[1][0] <= 33]
    return [
        pytest.param(
            Case(cell, math.dtype, steps=T, batch=B, input_size=33, hidden_size=H),
            math,
            regime,
            id=f"{cell}-{math.name}-T{T}-B{B}-H{H}-{regime}",
        )
        for cell, (H, B, T), math, regime in device().some(small, 5)
    ]


@pytest.mark.parametrize(("case", "math", "regime"), parameters())
def test_sizes(case: Case, math: Math, regime: str | None) -> None:
    compare(run(case, regime, math), expected(case), case, math)


LONG = tuple(itertools.product(("lstm", "gru", "rnn_tanh"), MATHS))


@pytest.mark.parametrize(
    ("cell", "math"), [pytest.param(*p, id=f"{p[0]}-{p[1].name}") for p in device().some(LONG, 2)]
)
def test_many_steps(cell: str, math: Math) -> None:
    """Flags and turns count up to T; both directions, lengths and resets on the way."""
    case = Case(
        cell,
        math.dtype,
        steps=device().fit(700, 9),
        batch=device().fit(37, 5),
        input_size=16,
        hidden_size=device().fit(96, 17),
        bidirectional=True,
        lengths="random",
        reset="random",
    )
    compare(run(case, None, math), expected(case), case, math)


def test_two_layers_both_ways() -> None:
    math = MATHS[0]
    case = Case(
        "lstm",
        math.dtype,
        steps=20,
        batch=8,
        input_size=device().fit(64, 5),
        hidden_size=device().fit(128, 9),
        layers=2,
        bidirectional=True,
    )
    compare(run(case, None, math), expected(case), case, math)
