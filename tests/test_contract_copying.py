"""Copies, pickles, parametrizations, replicas (section 8)."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from contract import CELLS, FASTRNN, SEQUENCES, TORCH, assert_same, flat, pair, same_example
from torch import nn

import fastrnn

OPTIONED: tuple[nn.Module, ...] = (
    fastrnn.RNN(3, 4, nonlinearity="sigmoid"),
    fastrnn.LSTM(3, 4, return_cell_states=True),
    fastrnn.GRU(3, 4, reset_after=False),
    fastrnn.RNNCell(3, 4, nonlinearity="identity"),
    fastrnn.GRUCell(3, 4, reset_after=False),
)
EVERY_KIND: list[Any] = [
    *(pytest.param(FASTRNN[kind](3, 4), id=kind) for kind in SEQUENCES + CELLS),
    *(pytest.param(module, id=repr(module)) for module in OPTIONED),
]


def through_pickle(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def through_file(module: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("module", EVERY_KIND)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_file])
@pytest.mark.parametrize("used", [False, True])
def test_copies(module: Any, duplicate: Any, used: bool) -> None:
    module = copy.deepcopy(module)
    x = same_example(module)
    if used:
        flat(module(x))[0].sum().backward()
    twin = duplicate(module)
    assert type(twin) is type(module)
    assert repr(twin) == repr(module)
    assert_same(twin(x), module(x))
    for own, other in zip(module.parameters(), twin.parameters(), strict=True):
        assert own.data_ptr() != other.data_ptr()
    if isinstance(twin, nn.RNNBase):
        assert all(w is p for w, p in zip(twin._flat_weights, twin.parameters(), strict=True))
        assert twin.mode == module.mode
    before = [t.clone() for t in flat(module(x))]
    with torch.no_grad():
        for weight in twin.parameters():
            weight.mul_(2)
    assert_same(flat(module(x)), before)
    assert not torch.allclose(flat(twin(x))[0], before[0])


@pytest.mark.parametrize("module", EVERY_KIND)
def test_shallow_copy(module: Any) -> None:
    twin = copy.copy(module)
    assert all(a is b for a, b in zip(twin.parameters(), module.parameters(), strict=True))
    assert_same(twin(same_example(module)), module(same_example(module)))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_state_pickled_by_torch(kind: str) -> None:
    """The state of a module of torch.nn makes one of ours, with default options."""
    theirs = TORCH[kind](3, 4)
    state = theirs.__getstate__() if hasattr(theirs, "__getstate__") else theirs.__dict__
    state = copy.deepcopy(dict(state))
    ours = FASTRNN[kind].__new__(FASTRNN[kind])
    ours.__setstate__(state)
    assert repr(ours) == repr(theirs)
    assert_same(ours(same_example(ours)), theirs(same_example(ours)))


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("bias", [True, False])
def test_states_of_old_versions(kind: str, bias: bool) -> None:
    """Without proj_size (before 1.8), nonlinearity, or the names of the weights."""
    ours, theirs = pair(kind, 3, 4, 2, bidirectional=True, bias=bias)
    state = copy.deepcopy(ours.__getstate__())
    for name in ("proj_size", "nonlinearity", "return_cell_states", "recompute"):
        state.pop(name, None)
    names = state["_all_weights"]
    state["_all_weights"] = [[None] * len(layer) for layer in names]
    old = FASTRNN[kind].__new__(FASTRNN[kind])
    old.__setstate__(state)
    assert old._all_weights == names
    assert old.proj_size == 0
    assert getattr(old, "nonlinearity", "tanh") == "tanh"
    assert_same(old(same_example(old)), theirs(same_example(old)))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_replicas_of_data_parallel(kind: str) -> None:
    """A replica has plain tensors for Parameters, and lists of its own."""
    ours, theirs = pair(kind, 3, 4, dtype=torch.float64)
    x = same_example(ours)
    results = []
    for module in (ours, theirs):
        replica = module._replicate_for_data_parallel()
        if kind in SEQUENCES:
            assert replica._flat_weights is not module._flat_weights
        sources = []
        for name, weight in module._parameters.items():
            tensor = weight.detach().clone().mul_(2).requires_grad_()
            sources.append(tensor)
            setattr(replica, name, tensor)
        output = flat(replica(x))[0]
        results.append((output, torch.autograd.grad(output.sum(), sources)))
    assert_same(*results, rows=10)
    assert_same(ours(x), theirs(x))
