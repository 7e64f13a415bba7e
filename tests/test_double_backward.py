"""Gradients of gradients: what a penalty on a gradient, a Hessian or an inner step needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from cases import ALL_CELLS, BACKENDS, STORAGE_DTYPES, Case, arguments
from contract import CELLS, FASTRNN, SEQUENCES, assert_same, flat, leaf_inputs, pair, states
from tiny import CHECKED, TINY, as_function, tiny, total
from tolerances import error_in_tolerances, tolerance
from torch import Tensor, nn
from torch.func import functional_call

import fastrnn
from fastrnn import backends
from fastrnn.backends import DifferentiableBackend

F64 = torch.float64

# Against finite differences.

#: The second derivative is computed by torch operations, whichever kernels served forward: each
#: option with one set of kernels, and some with the others.
SERVED = [(cell, option, BACKENDS[0]) for cell, option in CHECKED] + [
    (cell, option, backend)
    for backend in BACKENDS[1:]
    for cell in ALL_CELLS
    for option in ("plain", "lengths and reset")
]


@pytest.mark.parametrize(("cell", "option", "backend"), SERVED)
def test_gradgradcheck(cell: str, option: str, backend: str) -> None:
    function, tensors = as_function(tiny(cell, option))
    with fastrnn.use_backend(backend):
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_gradgradcheck_of_recompute(cell: str, backend: str) -> None:
    a = tiny(cell, "lengths and reset")
    function, tensors = as_function(replace(a, case=replace(a.case, recompute=True)))
    with fastrnn.use_backend(backend):
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


MODULES: dict[str, Callable[[], Any]] = {
    **{kind: lambda kind=kind: FASTRNN[kind](2, 2, dtype=F64) for kind in SEQUENCES + CELLS},
    **{
        f"RNNCell {name}": lambda name=name: fastrnn.RNNCell(2, 2, True, name, dtype=F64)
        for name in ("relu", "sigmoid", "identity")
    },
    "GRUCell reset before": lambda: fastrnn.GRUCell(2, 2, reset_after=False, dtype=F64),
}


@pytest.mark.parametrize("kind", MODULES)
def test_gradcheck_of_modules(kind: str) -> None:
    """Of first and second order, every element by itself."""
    ours = MODULES[kind]()
    x = torch.randn(2, 1, 2, dtype=F64) if kind in SEQUENCES else torch.randn(1, 2, dtype=F64)
    hx = states(ours, 1, F64)
    leaves = [x, *flat(hx), *ours.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    names = [name for name, _ in ours.named_parameters()]

    def call(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        count = len(flat(hx))
        given = tuple(rest[:count]) if "LSTM" in kind else rest[0]
        weights = dict(zip(names, rest[count:], strict=True))
        return tuple(flat(functional_call(ours, weights, (x, given))))

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


# Against torch.nn and the reference.


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_gradient_of_a_gradient(kind: str, dtype: torch.dtype) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=dtype)
    x, hx = leaf_inputs(kind, ours, dtype)

    def second(module: Any) -> list[Tensor]:
        loss = sum(output.sin().sum() for output in flat(module(x, hx)))
        first = torch.autograd.grad(loss, [x, *flat(hx)], create_graph=True)
        return list(torch.autograd.grad(total(first), [x, *module.parameters()]))

    assert_same(second(ours), second(theirs), rows=8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_state_that_depends_on_a_weight(cell: str, backend: str) -> None:
    """A penalty's gradient with respect to everything; the path by the state counts once."""

    def penalty(forward: cases.Forward) -> list[Tensor]:
        a = arguments(Case(cell, bidirectional=True)).map(lambda t: t.clone().requires_grad_())
        assert a.h0 is not None
        leaves = list(a.differentiable().values())
        h0 = a.h0 * a.weights["weight_hh_l0"].square().sum()
        loss = total(forward(replace(a, h0=h0)).values())
        wanted = [a.x, h0, *a.weights.values()]
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        return [*first, *torch.autograd.grad(sum(grad.square().mean() for grad in first), leaves)]

    with fastrnn.use_backend(backend):
        actual = penalty(cases.fastrnn_forward)
    for ours, theirs in zip(actual, penalty(cases.torch_forward), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_hessian(cell: str, backend: str) -> None:
    """torch.autograd.functional, which asks for second derivatives row by row."""
    a = arguments(Case(cell, **TINY))

    def loss(x: Tensor) -> Tensor:
        outputs = cases.fastrnn_forward(a.with_tensors(a.differentiable() | {"x": x}))
        return outputs["output"].pow(3).sum()

    with fastrnn.use_backend(backend):
        actual = torch.autograd.functional.hessian(loss, a.x)
    with fastrnn.use_backend("reference"):
        expected = torch.autograd.functional.hessian(loss, a.x)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", STORAGE_DTYPES, ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_16_bits(cell: str, dtype: torch.dtype) -> None:
    """The arithmetic is float32 here too: first and second gradients are rounded once each."""
    a = arguments(Case(cell, dtype=dtype))

    def both(a: cases.Arguments) -> tuple[list[Tensor], list[Tensor]]:
        a = a.map(lambda t: t.clone().requires_grad_())
        leaves = list(a.differentiable().values())
        loss = sum(output.sum() for output in cases.fastrnn_forward(a).values())
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        used = sum(grad.sum() for grad in first)
        return list(first), list(torch.autograd.grad(used, leaves))

    actual = both(a)
    with fastrnn.use_backend("reference"):
        expected = both(a.map(lambda t: t.double()))
    rows = a.case.steps * a.case.batch
    bound = tolerance(torch.float32, a.case.steps, 4 * 2 * 5, rows=rows, storage=dtype)
    for ours, exact in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert ours.dtype == dtype
        assert error_in_tolerances(ours, exact, **bound) <= 1


# As it is used.


class Critic(nn.Module):
    """Scores sequences, ``(T, B, 3)`` to ``(B,)``."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(4, 1, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.recurrent(x)[0].mean(0)).squeeze(-1)
        return scores


@pytest.mark.parametrize("kind", SEQUENCES)
def test_wgan_gradient_penalty(kind: str) -> None:
    """A Wasserstein critic held to slope 1 (Gulrajani et al. 2017), trained for a few steps."""
    real, fake = torch.randn(2, 5, 3, 3, dtype=F64)
    mix = torch.rand(1, 3, 1, dtype=F64)

    def train(recurrent: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        torch.manual_seed(1)
        critic = Critic(recurrent)
        optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
        losses = []
        for _ in range(3):
            between = (mix * real + (1 - mix) * fake).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            penalty = (slope.square().sum((0, 2)).sqrt() - 1).square().mean()
            loss = critic(fake).mean() - critic(real).mean() + 10 * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses, [weight.detach() for weight in critic.parameters()]

    ours, theirs = pair(kind, 3, 4, dtype=F64)
    actual, expected = train(ours), train(theirs)
    assert_same(actual, expected, rows=15)
    assert actual[0][2] < actual[0][0]


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("first_order", [False, True])
def test_maml_inner_steps(kind: str, first_order: bool) -> None:
    """The gradient for the weights before two steps of learning, of a loss after (Finn 2017)."""
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    tasks = [[leaf_inputs(kind, ours)[0].detach() for _ in ("support", "query")] for _ in range(2)]

    def meta_gradient(module: nn.Module) -> list[Tensor]:
        def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return flat(functional_call(module, weights, (x,)))[0].square().mean()

        start = dict(module.named_parameters())
        after = []
        for support, query in tasks:
            weights = start
            for _ in range(2):
                grads = torch.autograd.grad(
                    loss(weights, support), list(weights.values()), create_graph=not first_order
                )
                weights = {
                    name: weight - 0.5 * grad
                    for (name, weight), grad in zip(weights.items(), grads, strict=True)
                }
            after.append(loss(weights, query))
        return list(torch.autograd.grad(sum(after), list(start.values())))

    assert_same(meta_gradient(ours), meta_gradient(theirs), rows=16)


# What it costs.


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of what computes: each backward of kernels, each layer of torch operations."""
    seen: list[str] = []

    def watch(backend: Any, method: str) -> None:
        original = getattr(backend, method)

        def watched(*args: Any, **options: Any) -> Any:
            seen.append(f"{backend.name}.{method}")
            return original(*args, **options)

        patch.setattr(backend, method, watched, raising=True)

    with monkeypatch.context() as patch:
        for backend in backends.backends().values():
            watch(backend, "layer" if isinstance(backend, DifferentiableBackend) else "backward")
        yield seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_torch_operations_only_when_asked(
    cell: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First derivatives are the kernels'; create_graph has torch's operators, if there are any."""
    function, tensors = as_function(tiny(cell, "plain"))
    recomputing = "torch.layer" if cell in cases.TORCH_CELLS else "reference.layer"
    with fastrnn.use_backend(backend), counted(monkeypatch) as seen:
        torch.autograd.grad(total(function(*tensors)), tensors)
        assert seen == [f"{backend}.backward"]
        seen.clear()
        first = torch.autograd.grad(total(function(*tensors)), tensors, create_graph=True)
        assert seen == [recomputing]
        seen.clear()
        # The loss is quadratic: its gradient also flows by the outputs, which kernels computed.
        torch.autograd.grad(total(first), tensors)
        assert seen == [f"{backend}.backward"]
