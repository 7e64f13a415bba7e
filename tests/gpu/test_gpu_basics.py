"""The first things: the extension is there, every cell gives right numbers, every regime starts."""

from __future__ import annotations

import pytest
import torch
from cases import ALL_CELLS, Case
from on_gpu import FLOAT32, FORCED, compare, device, expected, run

import fastrnn
from fastrnn import backends

pytestmark = pytest.mark.gpu


def test_the_backend_is_available() -> None:
    with device().serving() as name:
        verdict = backends.get(name).available()
        assert verdict.ok, verdict.reason


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_outputs_of_the_smallest_case(cell: str) -> None:
    case = Case(cell, torch.float32, steps=1, batch=1, input_size=1, hidden_size=1)
    wanted = {k: v for k, v in expected(case).items() if not k.startswith("grad")}
    compare(run(case, "stepwise", wanted=[]), wanted, case, FLOAT32)


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_a_small_case(cell: str) -> None:
    case = Case(cell, torch.float32, steps=3, batch=5, input_size=9, hidden_size=17)
    compare(run(case), expected(case), case, FLOAT32)


@pytest.mark.parametrize("regime", FORCED)
def test_every_regime_runs_a_small_case(regime: str) -> None:
    """Only those with clusters may refuse it, and only before Hopper."""
    case = Case("lstm", torch.float32, steps=3, batch=5, input_size=9, hidden_size=40)
    clusters = regime in ("cluster", "grid-4", "tiled-4")
    may_skip = clusters and device().cuda.get_device_capability()[0] < 9
    compare(run(case, regime, may_skip=may_skip), expected(case), case, FLOAT32)


def test_a_module_is_served_by_the_kernels() -> None:
    lstm = fastrnn.LSTM(8, 16, device=device().type)
    x = torch.randn(5, 3, 8, device=device().type)
    with device().serving() as name, fastrnn.use_backend(name if device().rehearsed else None):
        assert f"served by {name!r}" in fastrnn.explain(lstm, x)
        assert f"served by {name!r}" in fastrnn.explain(lstm, x, lengths=[5, 2, 0])


def test_what_cannot_run_says_so() -> None:
    with (
        device().serving("processor") as name,
        fastrnn.use_backend(name),
        pytest.raises(RuntimeError, match="layer_forward: the regime processor cannot run this"),
    ):
        fastrnn.LSTM(2, 2000, device=device().type)(torch.zeros(1, 1, 2, device=device().type))
