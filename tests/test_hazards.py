"""Ways to go wrong that a review found: each was silent or fatal once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import BACKENDS, Case, arguments
from torch import nn
from torch.nn.utils import parametrize
from torch.testing._internal.two_tensor import TwoTensor

import fastrnn


@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.LSTMCell])
def test_weights_of_a_wrapper_subclass(kind: type[nn.Module]) -> None:
    """Their memory is elsewhere: a kernel that took their address would read nothing."""
    module = kind(3, 4)
    x = torch.randn(2, 3) if kind is fastrnn.LSTMCell else torch.randn(3, 2, 3)
    wrapped = copy.deepcopy(module)
    for name, weight in module.named_parameters():
        two = TwoTensor(weight.data.clone(), weight.data.clone())
        setattr(wrapped, name, nn.Parameter(two, requires_grad=False))
    with torch.no_grad():
        expected, actual = module(x)[0], wrapped(x)[0]
    actual = actual.a if isinstance(actual, TwoTensor) else actual
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_again_after_one_that_was_interrupted(
    backend: str, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients may overwrite saved values; a second backward must not read what is left.

    With ``recompute`` nothing is saved that they could overwrite.
    """
    module = fastrnn.LSTM(3, 4, recompute=recompute)
    x = torch.randn(5, 2, 3, requires_grad=True)
    with fastrnn.use_backend(backend):
        loss = module(x)[0].sum()
        expected = torch.autograd.grad(module(x)[0].sum(), [x, *module.parameters()])
    kind: Any = type(fastrnn.backends.get(backend))
    backward = kind.backward

    def interrupted(*args: Any, **options: Any) -> None:
        backward(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kind, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            torch.autograd.grad(loss, [x, *module.parameters()])
    if recompute:
        for actual, grad in zip(
            torch.autograd.grad(loss, [x, *module.parameters()]), expected, strict=True
        ):
            assert torch.equal(actual, grad)
        return
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        torch.autograd.grad(loss, [x, *module.parameters()])


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def test_parametrized_weight_assigned_after_a_call() -> None:
    results = []
    for kind in (fastrnn.RNN, nn.RNN):
        torch.manual_seed(0)
        module = kind(3, 4)
        parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
        x = torch.randn(5, 2, 3)
        module(x)
        module.weight_hh_l0 = torch.full((4, 4), 0.25)
        module(x)[0].sum().backward()
        original = module.parametrizations.weight_hh_l0.original
        assert original.grad is not None
        with torch.no_grad():
            original.zero_()
            results.append((original.grad, module(x)[0]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("given", [False, True])
def test_infinite_weights_show_from_the_first_step(given: bool) -> None:
    """0 * inf is NaN, in torch too; zeros that stand for no state are no exception."""
    ours, theirs = fastrnn.GRU(3, 4), nn.GRU(3, 4)
    ours.load_state_dict(theirs.state_dict())
    for module in (ours, theirs):
        nn.init.constant_(module.weight_hh_l0, torch.inf)
    x = torch.randn(1, 2, 3)
    h = torch.zeros(1, 2, 4) if given else None
    assert ours(x, h)[0].isnan().all()
    assert theirs(x, h)[0].isnan().all()


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_infinite_gradients(nonlinearity: str) -> None:
    ours, theirs = fastrnn.RNN(3, 4, nonlinearity=nonlinearity), nn.RNN(3, 4, 1, nonlinearity)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 2, 3)
    for module in (ours, theirs):
        y = module(x)[0]
        y.backward(torch.full_like(y, torch.inf))
    torch.testing.assert_close(ours.bias_ih_l0.grad, theirs.bias_ih_l0.grad, equal_nan=True)


def test_operators_in_grad_mode() -> None:
    """Called directly, on tensors that require gradients; the operators have none of their own."""
    a = arguments(Case("gru", dtype=torch.float32)).map(lambda t: t.clone().requires_grad_())
    given = ("gru", a.x, a.h0, None, list(a.weights.values()), None, None, None, 1, False)
    y, h_n, _, cell_states, reserve = torch.ops.fastrnn.layer_forward(*given, True)
    grads = torch.ops.fastrnn.layer_backward(
        *given, cell_states, reserve, y, h_n, None, None, [True, True, False] + [True] * 4
    )
    assert [grad.shape for grad in grads[3:]] == [w.shape for w in a.weights.values()]
