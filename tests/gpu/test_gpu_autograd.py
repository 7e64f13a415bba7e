"""Around autograd: kept graphs, frozen weights, recomputation, compiled calls."""

from __future__ import annotations

import pytest
import torch
from cases import Case, arguments, call
from on_gpu import FLOAT64, REGIMES, compare, device, expected, moved, refusable, run

import fastrnn

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("regime", REGIMES)
def test_backward_twice(regime: str | None) -> None:
    """Nothing that was saved is written to, so a kept graph gives the same gradients again."""
    a = moved(arguments(Case("lstm", torch.float32, batch=4, reset="random")))
    tensors = {k: v.clone().requires_grad_() for k, v in a.differentiable().items()}
    with device().serving(regime) as name, fastrnn.use_backend(name):
        with refusable(regime):
            y = call(a.with_tensors(tensors))[0]
            first = torch.autograd.grad(y.sum(), list(tensors.values()), retain_graph=True)
        second = torch.autograd.grad(y.sum(), list(tensors.values()))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("regime", device().some(REGIMES, 2))
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_only_what_is_needed(cell: str, regime: str | None) -> None:
    """One gradient alone, everything else frozen, is the same number."""
    case = Case(cell, torch.float64, bidirectional=True, proj_size=2 if cell == "lstm" else 0)
    everything = run(case, regime, FLOAT64)
    names = list(arguments(case).differentiable())
    for name in device().some(names, 3):
        alone = run(case, regime, FLOAT64, wanted=[name])
        torch.testing.assert_close(alone[f"grad {name}"], everything[f"grad {name}"])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recompute(cell: str) -> None:
    case = Case(cell, torch.float64, layers=2, recompute=True)
    compare(run(case, None, FLOAT64), expected(case), case, FLOAT64)


def test_gradients_of_gradients() -> None:
    a = moved(arguments(Case("gru", torch.float64)))
    weights = {name: weight.requires_grad_() for name, weight in a.weights.items()}
    x = a.x.requires_grad_()
    with device().serving() as name, fastrnn.use_backend(name):
        y = call(a.with_tensors({**a.differentiable(), "x": x, **weights}))[0]
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        second = torch.autograd.grad(grad.square().sum(), list(weights.values()))
    assert all(value.isfinite().all() and value.abs().max() > 0 for value in second[:2])


def test_compiled() -> None:
    """The whole call in one graph, with gradients."""
    lstm = fastrnn.LSTM(4, 6, device=device().type)
    x = torch.randn(3, 2, 4, device=device().type)
    with device().serving() as name, fastrnn.use_backend(name):
        compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
        found = []
        for module in (lstm, compiled):
            y = module(x)[0]
            found.append((y.detach(), *torch.autograd.grad(y.sum(), list(lstm.parameters()))))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)
