"""Autocast, gradient scaling and mixed dtypes: torch.nn's dtypes, numbers and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS
from contract import (
    CELLS,
    FASTRNN,
    SEQUENCES,
    assert_same,
    error,
    example,
    flat,
    gradients,
    packed,
    pair,
    states,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn

AUTOCAST_CALLS = [(kind, how, 1) for kind in CELLS for how in ("float32", "bfloat16")] + [
    (kind, how, layers)
    for kind in SEQUENCES
    for how in ("float32", "16 bits", "packed")
    for layers in (1, 2)
]


@pytest.mark.parametrize(("kind", "how", "layers"), AUTOCAST_CALLS)
def test_autocast(kind: str, how: str, layers: int) -> None:
    """The same dtypes as torch.nn, which has no one rule for them."""
    options = {} if kind in CELLS else {"num_layers": layers}
    ours, theirs = pair(kind, 3, 4, **options)
    x: Any = example(kind)
    if how == "packed":
        x = packed(2, 4, 3)
    elif how == "16 bits":
        x = x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = ours(x), theirs(x)
    assert_same(actual, expected, dtype=torch.bfloat16)
    leaf = (x.data if isinstance(x, PackedSequence) else x).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = {name: gradient.clone() for name, gradient in gradients(ours, x).items()}
        wanted = gradients(theirs, x)
    assert found["input"].dtype == leaf.dtype
    for name, gradient in wanted.items():
        assert name == "input" or gradient.dtype == torch.float32
        assert_same(found[name], gradient, rows=10, dtype=torch.bfloat16)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_backward_under_autocast(kind: str, backend: str, create_graph: bool) -> None:
    """Forward outside, backward inside, as when a training loop wraps too much: no rounding."""
    module, x = FASTRNN[kind](3, 4), example(kind)
    with fastrnn.use_backend(backend):
        loss = flat(module(x))[0].square().sum()
        gradients = []
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                weights = list(module.parameters())
                gradients.append(torch.autograd.grad(loss, weights, None, True, create_graph))
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_meta_tensors(kind: str) -> None:
    """They have no autocast."""
    with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = pair(kind, 3, 4)
        x = example(kind)
        results = [[(t.shape, t.dtype) for t in flat(module(x))] for module in (ours, theirs)]
        assert results[0] == results[1]
        if kind in SEQUENCES:
            assert flat(ours(x, lengths=[4, 2]))[0].dtype == torch.float32


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_autocast_refuses_float64(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = example(kind, torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert type(error(lambda: theirs(x))) is type(error(lambda: ours(x))) is RuntimeError


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_autocast_of_options_that_torch_lacks(kind: str, layers: int, dtype: str) -> None:
    ours = FASTRNN[kind](3, 4, layers)
    x = torch.randn(5, 2, 3)
    expected = flat(ours(x, lengths=[5, 2]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = flat(ours(x.to(getattr(torch, dtype)), lengths=[5, 2]))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.float(), e, rtol=0.05, atol=0.05)


def test_autocast_of_cells_that_torch_lacks() -> None:
    x = torch.randn(2, 3)
    for module in (
        fastrnn.RNNCell(3, 4, nonlinearity="sigmoid"),
        fastrnn.GRUCell(3, 4, reset_after=False),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = module(x)
        torch.testing.assert_close(actual.float(), module(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_float16_on_the_cpu(kind: str) -> None:
    """torch's own rules, and its refusal where oneDNN lacks the type."""
    ours, theirs = pair(kind, 3, 4)
    x = example(kind)

    def outcome(module: nn.Module) -> Any:
        with torch.autocast("cpu", dtype=torch.float16):
            try:
                return module(x)
            except RuntimeError as refusal:
                return str(refusal)

    expected = outcome(theirs)
    if isinstance(expected, str):
        assert outcome(ours) == expected
    else:
        assert_same(outcome(ours), expected)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_regions(kind: str) -> None:
    """Nested, switched off, for another device, and without a cache of casts: as torch.nn."""
    ours, theirs = pair(kind, 3, 4)
    x = example(kind)

    def call(module: nn.Module) -> list[Any]:
        found = []
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.autocast("cpu", enabled=False):
                found.append(module(x))
            found.append(module(x))
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            found.append(module(x))
        return found

    assert_same(call(ours), call(theirs), dtype=torch.bfloat16)
    with torch.autocast("cpu", enabled=False):
        assert_same(ours(x), theirs(x))


class Tagger(nn.Module):
    """A layer of ours or of torch.nn between two that autocast knows."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Linear(3, 3)
        self.recurrent = recurrent
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(flat(self.recurrent(self.embedding(x)))[0])
        return scores


def taggers(kind: str, device: str = "cpu") -> list[nn.Module]:
    models: list[nn.Module] = []
    for recurrent in pair(kind, 3, 4):
        torch.manual_seed(5)
        models.append(Tagger(recurrent).to(device))
    return models


def train(
    model: nn.Module, x: Tensor, dtype: torch.dtype, *, scaler: torch.amp.GradScaler
) -> list[Tensor]:
    """Four steps; in the second one gradient overflows, and the scaler has to leave it out."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for step in range(4):
        optimizer.zero_grad()
        with torch.autocast(x.device.type, dtype=dtype):
            loss = model(x).float().square().mean()
        scaler.scale(loss * (torch.inf if step == 1 else 1)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = [weight.detach().clone() for weight in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert any(moved) == (step != 1)
        seen.append(loss.detach())
    return [*seen, *(weight.detach() for weight in model.parameters())]


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_grad_scaler(kind: str) -> None:
    x = example(kind)
    results, scales = [], []
    for model in taggers(kind):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        results.append(train(model, x, torch.bfloat16, scaler=scaler))
        scales.append(scaler.get_scale())
    assert scales == [2.0**9] * 2
    assert_same(*results, dtype=torch.bfloat16)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_grad_scaler_with_options_that_torch_lacks(kind: str) -> None:
    """Kernels in float32 between layers in bfloat16: near to training in float32 throughout."""
    lengths = [5, 2]
    results = []
    for enabled in (True, False):
        torch.manual_seed(3)
        layer: Any = FASTRNN[kind](3, 4)
        head = nn.Linear(4, 2)
        weights = [*layer.parameters(), *head.parameters()]
        optimizer = torch.optim.SGD(weights, lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        x = torch.randn(5, 2, 3)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                loss = head(layer(x, lengths=lengths)[0]).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([weight.detach() for weight in weights])
    assert_same(*results, dtype=torch.bfloat16)


# Mixed dtypes.

MIXED: dict[str, Callable[[Any, str], Any]] = {
    "input": lambda module, kind: module(example(kind, torch.float64)),
    "input, 16 bits": lambda module, kind: module(example(kind, torch.bfloat16)),
    "input, integers": lambda module, kind: module(example(kind).long()),
    "state": lambda module, kind: module(example(kind), states(module, 2, torch.float64)),
    "state, 16 bits": lambda module, kind: module(example(kind), states(module, 2, torch.float16)),
    "one weight": lambda module, kind: _with_one_weight(module)(example(kind)),
    "all weights": lambda module, kind: module.double()(example(kind)),
}


def _with_one_weight(module: Any) -> Any:
    name = next(name for name, _ in module.named_parameters() if name.startswith("weight_hh"))
    setattr(module, name, nn.Parameter(getattr(module, name).detach().double()))
    return module


@pytest.mark.parametrize("how", MIXED)
@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_mixed_dtypes_raise(kind: str, how: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    expected, actual = (error(lambda m=m: MIXED[how](m, kind)) for m in (theirs, ours))
    assert type(actual) is type(expected), (actual, expected)
    if isinstance(expected, ValueError):  # torch's own check, not an operator deep below
        assert str(actual) == str(expected)


def test_mixed_dtypes_of_a_packed_sequence_raise() -> None:
    for kind in SEQUENCES:
        module = FASTRNN[kind](3, 4)
        with pytest.raises((RuntimeError, ValueError), match=r"float64|Double"):
            module(packed(2, 4, 3, dtype=torch.float64))
