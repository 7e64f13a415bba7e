"""Against torch.nn on the same device: cuDNN, in float64 and strict float32, in every layout."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cases import LAYOUTS, TORCH_CELLS, Case, check, torch_forward
from on_gpu import FLOAT32, FLOAT64, Math, device, run

import fastrnn

pytestmark = pytest.mark.gpu

SIZES: dict[str, Any] = {"steps": 7, "batch": 6, "input_size": 12, "hidden_size": 24}


def parameters() -> list[Any]:
    found = []
    for math, cell, layout, layers, both, projection in itertools.product(
        (FLOAT64, FLOAT32), TORCH_CELLS, LAYOUTS, (1, 2), (False, True), (0, 10)
    ):
        if projection and cell != "lstm":
            continue
        case = Case(
            cell,
            math.dtype,
            **SIZES,
            layout=layout,
            layers=layers,
            bidirectional=both,
            proj_size=projection,
        )
        found.append(pytest.param(case, math, id=case.id))
    return device().some(found, 4)


@pytest.mark.parametrize(("case", "math"), parameters())
def test_layouts(case: Case, math: Math) -> None:
    check(run(case, None, math), run(case, None, math, forward=torch_forward), case)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_modules_with_one_state_dict(kind: str) -> None:
    torch.manual_seed(0)
    ours, theirs = (
        getattr(library, kind)(6, 9, num_layers=2, device=device().type, dtype=torch.float64)
        for library in (fastrnn, torch.nn)
    )
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 4, 6, device=device().type, dtype=torch.float64)
    with device().serving() as name, fastrnn.use_backend(name):
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells(kind: str) -> None:
    torch.manual_seed(0)
    ours, theirs = (
        getattr(library, kind)(6, 9, device=device().type, dtype=torch.float64)
        for library in (fastrnn, torch.nn)
    )
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 6, device=device().type, dtype=torch.float64)
    with device().serving() as name, fastrnn.use_backend(name):
        torch.testing.assert_close(ours(x), theirs(x))
