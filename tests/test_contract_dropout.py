"""Dropout between layers (section 6)."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from contract import SEQUENCES, assert_same, assert_same_error, flat, packed, pair
from torch import Tensor
from torch.utils.checkpoint import checkpoint

OPTIONS: tuple[dict[str, Any], ...] = (
    {"num_layers": 3, "dropout": 0.5},
    {"num_layers": 2, "dropout": 0.3, "bidirectional": True, "batch_first": True},
)


def with_seed(module: Any, x: Any, seed: int = 5) -> Any:
    torch.manual_seed(seed)
    return module(x)


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("how", ["batched", "unbatched", "packed"])
def test_same_seed_same_masks(kind: str, options: dict[str, Any], how: str) -> None:
    ours, theirs = pair(kind, 3, 8, **options)
    x: Any = torch.randn(5, 4, 3) if how == "batched" else torch.randn(5, 3)
    if how == "packed":
        x = packed(2, 5, 1, 4)
    expected = with_seed(theirs, x)
    expected_next = torch.rand(2)
    actual = with_seed(ours, x)
    assert torch.equal(torch.rand(2), expected_next)
    assert_same(actual, expected)
    other = with_seed(ours, x, seed=6)
    assert not torch.allclose(flat(other)[0], flat(actual)[0])


@pytest.mark.parametrize("kind", SEQUENCES)
def test_none_in_eval_or_with_one_layer(kind: str) -> None:
    ours, _ = pair(kind, 3, 4, 2, dropout=0.5)
    x = torch.randn(5, 2, 3)
    ours.eval()
    assert_same(with_seed(ours, x, 1), with_seed(ours, x, 2))
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        ours, theirs = pair(kind, 3, 4, 1, dropout=0.5)
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_all_is_dropped(kind: str) -> None:
    """``dropout=1.0``: zeros into the next layer, not NaN."""
    ours, theirs = pair(kind, 3, 4, 2, dropout=1.0)
    x = torch.randn(5, 2, 3)
    assert_same(ours(x), theirs(x))
    assert_same(ours(x)[0], ours(torch.zeros_like(x))[0])


@pytest.mark.parametrize("kind", SEQUENCES)
def test_changed_after_construction(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, 2)
    x = torch.randn(5, 2, 3)
    for dropout in (0.5, 0.0, 1.0, 0.25):
        ours.dropout = theirs.dropout = dropout
        assert_same(with_seed(ours, x), with_seed(theirs, x))


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_impossible_probability(kind: str, layers: int, training: bool) -> None:
    ours, theirs = pair(kind, 3, 4, layers)
    ours.dropout = theirs.dropout = 2
    ours.train(training)
    theirs.train(training)
    x = torch.randn(5, 2, 3)
    if layers == 2 and training:
        assert_same_error(lambda: ours(x), lambda: theirs(x))
        assert_same_error(lambda: ours(packed(3, 2)), lambda: theirs(packed(3, 2)))
    else:
        assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_same_mask_when_computed_again(kind: str, use_reentrant: bool) -> None:
    ours, _ = pair(kind, 3, 4, 3, dropout=0.5)
    x = torch.randn(5, 2, 3, requires_grad=True)

    def grads(run: Any) -> list[Tensor]:
        ours.zero_grad()
        torch.manual_seed(5)
        run(x)[0].square().sum().backward()
        return [weight.grad.clone() for weight in ours.parameters()]

    expected = grads(ours)
    actual = grads(lambda x: checkpoint(ours, x, use_reentrant=use_reentrant))
    assert_same(actual, expected, rows=10)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_same_mask_in_double_backward(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, 2, dropout=0.5, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)

    def second(module: Any) -> list[Tensor]:
        y = with_seed(module, x)[0]
        (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), list(module.parameters())))

    assert_same(second(ours), second(theirs), rows=10)


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_no_number(kind: str, layers: int, training: bool) -> None:
    """Set later to something else, which the call refuses whether it needs it or not."""
    ours, theirs = pair(kind, 3, 4, layers)
    x = torch.randn(5, 2, 3)
    for module in (ours, theirs):
        module.train(training)
    for wrong in (None, "x", [0.5]):
        ours.dropout = theirs.dropout = wrong
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                text = assert_same_error(lambda: ours(x), lambda: theirs(x), message=False)
                assert "dropout: expected a number" in text
    for right in (0, numpy.float32(0), torch.tensor(0.0)):
        ours.dropout = theirs.dropout = right
        assert_same(ours(x), theirs(x))
