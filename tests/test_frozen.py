"""Frozen parameters: a gradient that is not required is not computed, nor anything kept for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import BACKENDS, fastrnn_forward
from contract import (
    CELLS,
    FASTRNN,
    SEQUENCES,
    assert_same,
    assert_same_gradients,
    flat,
    leaf_inputs,
    pair,
)
from tiny import CHECKED, tiny, total
from torch import Tensor

import fastrnn
from fastrnn import backends

F64 = torch.float64


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("frozen", ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "input", "hx"])
def test_gradient_is_none_where_it_is_not_wanted(kind: str, frozen: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, hx = leaf_inputs(kind, ours)
    for module in (ours, theirs):
        for name, weight in module.named_parameters():
            weight.requires_grad_(not name.startswith(frozen))
    if frozen == "input":
        x.requires_grad_(False)
    if frozen == "hx":
        for state in flat(hx):
            state.requires_grad_(False)
    assert_same_gradients(ours, theirs, x, hx)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("wanted", ["input", "hx", "nothing"])
def test_frozen_module(kind: str, wanted: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    for module in (ours, theirs):
        module.requires_grad_(False)
    x, hx = leaf_inputs(kind, ours)
    x.requires_grad_(wanted == "input")
    for state in flat(hx):
        state.requires_grad_(wanted == "hx")
    if wanted == "nothing":
        assert not any(output.requires_grad for output in flat(ours(x, hx)))
    else:
        assert_same_gradients(ours, theirs, x, hx)


def reached(leaves: dict[str, Tensor], layer: int) -> bool:
    """Whether anything up to the output of a layer requires a gradient (-1: the input)."""
    names = ["x", *(["h0", "c0"] if layer >= 0 else [])]
    names += [name for name in leaves for k in range(layer + 1) if f"_l{k}" in name]
    return any(leaves[name].requires_grad for name in names if name in leaves)


def expected_needs(leaves: dict[str, Tensor], layer: int) -> list[bool]:
    """What the backward of a layer has to compute: for x, h0, c0 and its weights."""
    states = [name in leaves and leaves[name].requires_grad for name in ("h0", "c0")]
    own = [leaf.requires_grad for name, leaf in leaves.items() if f"_l{layer}" in name]
    return [reached(leaves, layer - 1), *states, *own]


@contextmanager
def watched(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, Any]]]:
    """``(needs, result)`` of each backward of a backend, and None of each forward for training."""
    backend: Any = backends.get(name)
    seen: list[tuple[Any, Any]] = []
    forward, backward = backend.forward, backend.backward

    def watch_forward(problem: Any, inputs: Any) -> Any:
        outputs = forward(problem, inputs)
        assert (outputs.reserve is not None) == problem.training
        if problem.training:
            seen.append(("forward", None))
        return outputs

    def watch_backward(*args: Any, **options: Any) -> Any:
        result = backward(*args, **options)
        needs = next(arg for arg in args if isinstance(arg, backends.Needs))
        seen.append((
            [needs.x, needs.h0, needs.c0, *needs.weights],
            [result.x, result.h0, result.c0, *result.weights],
        ))  # fmt: skip
        return result

    with monkeypatch.context() as patch:
        patch.setattr(backend, "forward", watch_forward)
        patch.setattr(backend, "backward", watch_backward)
        yield seen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("cell", "option"), CHECKED)
def test_only_what_is_needed_is_computed(
    cell: str, option: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each leaf alone, and all but it: the backend is asked for these, and returns no others."""
    a = tiny(cell, option)
    everything = a.differentiable()
    alone = [{name} for name in everything]
    for wanted in [*alone, *(set(everything) - one for one in alone), set(everything)]:
        leaves = {k: v.clone().requires_grad_(k in wanted) for k, v in everything.items()}
        with fastrnn.use_backend(backend), watched(backend, monkeypatch) as seen:
            outputs = fastrnn_forward(a.with_tensors(leaves))
            sources = [leaf for leaf in leaves.values() if leaf.requires_grad]
            torch.autograd.grad(total(outputs.values()), sources, allow_unused=True)
        backward = [entry for entry in seen if entry[0] != "forward"]
        trained = [k for k in reversed(range(a.case.layers)) if reached(leaves, k)]
        assert len(backward) == len(seen) - len(backward) == len(trained)
        for (needs, result), k in zip(backward, trained, strict=True):
            assert needs == expected_needs(leaves, k)
            assert [gradient is not None for gradient in result] == needs


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_nothing_is_kept_where_nothing_is_needed(
    kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen module keeps no values for backward; a frozen first layer of two keeps none."""
    module: Any = FASTRNN[kind](3, 4, 2, dtype=F64)
    x = torch.randn(5, 2, 3, dtype=F64)
    with fastrnn.use_backend(backend), watched(backend, monkeypatch) as seen:
        for name, weight in module.named_parameters():
            weight.requires_grad_(name.endswith("_l1"))
        output = module(x)[0]
        assert seen == [("forward", None)]
        output.sum().backward()
        assert len(seen) == 2
        assert not seen[1][0][0]  # no gradient of what the first layer made
        seen.clear()
        module.requires_grad_(False)
        assert not module(x)[0].requires_grad
        assert seen == []


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_every_pattern_of_requires_grad(kind: str) -> None:
    """All subsets of the four parameters, with and without the input."""
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    names = [name for name, _ in ours.named_parameters()]
    x = leaf_inputs(kind, ours)[0].detach()
    for chosen in itertools.product([False, True], repeat=len(names) + 1):
        if not any(chosen):
            continue
        for module in (ours, theirs):
            for weight, wanted in zip(module.parameters(), chosen[1:], strict=True):
                weight.requires_grad_(wanted)
        assert_same_gradients(ours, theirs, x.clone().requires_grad_(chosen[0]))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_frozen_subset_in_training(kind: str) -> None:
    """Frozen weights stay as they are to the bit, thawed ones go on, as torch.nn's."""
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    frozen = {name for name, _ in ours.named_parameters() if "weight_hh" in name}
    x = leaf_inputs(kind, ours)[0].detach()
    for module in (ours, theirs):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for step in range(4):
            for name, weight in module.named_parameters():
                weight.requires_grad_(name not in frozen or step >= 2)
            before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
            optimizer.zero_grad()
            flat(module(x))[0].square().mean().backward()
            optimizer.step()
            for name, weight in module.named_parameters():
                assert torch.equal(weight, before[name]) == (name in frozen and step < 2)
    assert_same(list(ours.parameters()), list(theirs.parameters()), rows=10)
