"""What a plan may choose beside its regime, for sizes where it matters: how many blocks share k of
large tiles, tiles of 32 places, clusters of 16 blocks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from cases import Case
from on_gpu import BFLOAT16, FLOAT16, MATHS, TF32, Math, compare, device, expected, run

pytestmark = pytest.mark.gpu


def product(rehearsed: int, *factors: tuple[Any, ...]) -> list[Any]:
    """All combinations; in a rehearsal so many. An arithmetic is called by its name."""
    return [
        pytest.param(*entry, id="-".join(getattr(one, "name", one) for one in entry))
        for entry in device().some(list(itertools.product(*factors)), rehearsed)
    ]


@pytest.mark.parametrize(
    ("cell", "math", "regime"),
    product(
        3,
        ("lstm", "gru", "gru_reset_before", "rnn_tanh"),
        MATHS,
        ("tiled-1", "tiled-2", "tiled-4", "tiled-8"),
    ),
)
def test_large_tiles(cell: str, math: Math, regime: str) -> None:
    """Several tiles of places, several blocks of units and more pieces of k than lie in shared
    memory; with places and units that the last tile does not fill."""
    case = Case(cell, math.dtype, steps=3, hidden_size=137, batch=70, lengths="random")
    compare(run(case, regime, math), expected(case), case, math)


@pytest.mark.parametrize(("cell", "math"), product(2, ("lstm", "gru"), (BFLOAT16, FLOAT16, TF32)))
def test_wide_tiles(cell: str, math: Math) -> None:
    """They are those of forward passes in which weights outweigh states. No device lacks them."""
    case = Case(cell, math.dtype, steps=4, hidden_size=70, batch=70, lengths="random")
    wanted = {k: v for k, v in expected(case).items() if not k.startswith("grad")}
    found = run(case, "grid-1-1-32", math, wanted=(), may_skip=False)
    compare(found, wanted, case, math)


def must_have_clusters_of_16() -> bool:
    """Whether the GPU is a Hopper or a Blackwell of data centres, and all of it is there."""
    properties = device().cuda.get_device_properties(device().index)
    of_data_centres = (properties.major, properties.minor) in ((9, 0), (10, 0))
    return device().rehearsed or (of_data_centres and properties.multi_processor_count >= 100)


@pytest.mark.parametrize(
    ("cell", "math"), product(3, ("lstm", "gru", "gru_reset_before", "rnn_tanh"), MATHS)
)
def test_clusters_of_16(cell: str, math: Math) -> None:
    case = Case(cell, math.dtype, steps=4, hidden_size=130, batch=18, reset="random")
    found = run(case, "cluster-16", math, may_skip=not must_have_clusters_of_16())
    compare(found, expected(case), case, math)
