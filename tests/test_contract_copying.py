"""Copies, pickles, parametrizations, replicas (section 8)."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from contract import (
    CELLS,
    FASTRNN,
    SEQUENCES,
    TORCH,
    assert_same,
    assert_same_gradients,
    flat,
    pair,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

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


def example(module: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3) if isinstance(module, nn.RNNCellBase) else (5, 2, 3)
    return torch.randn(shape, generator=generator, dtype=next(module.parameters()).dtype)


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
    x = example(module)
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
    assert_same(twin(example(module)), module(example(module)))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_state_pickled_by_torch(kind: str) -> None:
    """The state of a module of torch.nn makes one of ours, with default options."""
    theirs = TORCH[kind](3, 4)
    state = theirs.__getstate__() if hasattr(theirs, "__getstate__") else theirs.__dict__
    state = copy.deepcopy(dict(state))
    ours = FASTRNN[kind].__new__(FASTRNN[kind])
    ours.__setstate__(state)
    assert repr(ours) == repr(theirs)
    assert_same(ours(example(ours)), theirs(example(ours)))


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
    assert_same(old(example(old)), theirs(example(old)))


@contextmanager
def conversion(how: str) -> Iterator[None]:
    """How ``_apply`` replaces parameters: by default, or by the flags of torch.__future__."""
    future = torch.__future__
    future.set_overwrite_module_params_on_conversion(how == "overwrite")
    future.set_swap_module_params_on_conversion(how == "swap")
    try:
        yield
    finally:
        future.set_overwrite_module_params_on_conversion(False)
        future.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("how", ["default", "overwrite", "swap"])
def test_conversions(kind: str, how: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    before = list(ours.parameters())
    for convert in (nn.Module.double, nn.Module.float, lambda m: m.to("cpu", torch.float64)):
        with conversion(how):
            convert(ours)
            convert(theirs)
        same = [a is b for a, b in zip(before, ours.parameters(), strict=True)]
        assert all(same) or how == "overwrite"
        if kind in SEQUENCES:
            assert all(w is p for w, p in zip(ours._flat_weights, ours.parameters(), strict=True))
        assert_same(ours(example(ours)), theirs(example(ours)))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_to_empty_and_half(kind: str) -> None:
    module = FASTRNN[kind](3, 4, device="meta").to_empty(device="cpu")
    module.reset_parameters()
    assert torch.isfinite(flat(module(example(module)))[0]).all()
    module.half()
    assert flat(module(example(module)))[0].dtype == torch.float16


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_share_memory(kind: str) -> None:
    """Weights of another process change under us, and no version counter moves."""
    ours, theirs = pair(kind, 3, 4)
    ours.share_memory()
    assert all(weight.is_shared() for weight in ours.parameters())
    if kind in SEQUENCES:
        assert all(weight.is_shared() for weight in ours._flat_weights)
    ours(example(ours))
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        own.detach().numpy()[...] *= 2
        other.data.mul_(2)
    assert_same(ours(example(ours)), theirs(example(ours)))


def _old_weight_norm(module: nn.Module, name: str) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(module, name)


REPARAMETRIZE: dict[str, Any] = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": _old_weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "prune": lambda module, name: prune.l1_unstructured(module, name, amount=0.5),
    "own": lambda module, name: parametrize.register_parametrization(module, name, nn.Tanh()),
}
REMOVE: dict[str, Any] = {
    "old weight_norm": nn.utils.remove_weight_norm,
    "old spectral_norm": nn.utils.remove_spectral_norm,
    "prune": prune.remove,
}


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("how", REPARAMETRIZE)
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh"])
def test_reparametrized(kind: str, how: str, name: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=torch.float64)
    name = name if kind in CELLS else f"{name}_l0"
    x = example(ours).requires_grad_()
    for module in (ours, theirs):
        torch.manual_seed(2)
        REPARAMETRIZE[how](module, name)
        module.eval()  # spectral_norm iterates at each access while training
        module(x)
    # Through a norm, each gradient is a sum over all elements of the weight.
    assert_same_gradients(ours, theirs, x, terms=getattr(ours, name).numel())
    if kind in SEQUENCES:
        kept = [isinstance(weight, nn.Parameter) for weight in ours._flat_weights]
        assert kept == [isinstance(weight, nn.Parameter) for weight in theirs._flat_weights]
        assert sum(kept) == len(kept) - 1
    for module in (ours, theirs):  # an optimizer's step must reach the weight
        with torch.no_grad():
            for weight in module.parameters():
                weight.add_(0.1 * torch.linspace(-1, 1, weight.numel()).view(weight.shape))
    assert_same(ours(x), theirs(x))
    if how not in REMOVE:
        with parametrize.cached():
            assert_same(ours(x), theirs(x))
        assert type(ours).__name__ == type(theirs).__name__
    remove = REMOVE.get(how, parametrize.remove_parametrizations)
    for module in (ours, theirs):
        remove(module, name)
    assert_same(ours(x), theirs(x))
    assert isinstance(ours, FASTRNN[kind])


@pytest.mark.parametrize("kind", SEQUENCES)
def test_tied_weights(kind: str) -> None:
    ours, theirs = pair(kind, 4, 4, 2)
    for module in (ours, theirs):
        module.weight_hh_l1 = module.weight_hh_l0
        module.weight_ih_l1 = module.weight_ih_l0
    x = torch.randn(5, 2, 4, requires_grad=True)
    assert_same_gradients(ours, theirs, x)
    assert len(list(ours.parameters())) == 6


@pytest.mark.parametrize("kind", SEQUENCES)
def test_weight_drop(kind: str) -> None:
    """The Parameter gives way to a plain tensor, made anew from a raw one before each call."""
    ours, theirs = pair(kind, 3, 4, dtype=torch.float64)
    x = example(ours)
    results = []
    for module in (ours, theirs):
        raw = nn.Parameter(module.weight_hh_l0.detach().clone())
        del module.weight_hh_l0
        module.register_parameter("weight_hh_l0_raw", raw)
        for scale in (0.5, 2.0):
            module.weight_hh_l0 = raw * scale
            output = module(x)[0]
            results.append((output, torch.autograd.grad(output.sum(), raw)[0]))
        module.to(torch.float64)
        module.float()
    assert_same(results[0], results[2], rows=10)
    assert_same(results[1], results[3], rows=10)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_replicas_of_data_parallel(kind: str) -> None:
    """A replica has plain tensors for Parameters, and lists of its own."""
    ours, theirs = pair(kind, 3, 4, dtype=torch.float64)
    x = example(ours)
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
