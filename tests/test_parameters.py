"""What becomes of parameters: reparametrized, tied, flattened, averaged, moved."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import BACKENDS
from contract import (
    CELLS,
    FASTRNN,
    SEQUENCES,
    assert_same,
    assert_same_gradients,
    flat,
    leaf_inputs,
    packed,
    pair,
    same_example,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastrnn

F64 = torch.float64


# Reparametrized.


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
    x = same_example(ours).requires_grad_()
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
    with torch.no_grad():
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
    x = same_example(ours)
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


# Flattened.


def flatten(module: nn.Module, *, offset: int = 1) -> Tensor:
    """One buffer for all parameters, of which each becomes a view.

    It begins ``offset`` elements into its memory: views of it are aligned to nothing.
    """
    weights = list(module.parameters())
    buffer = weights[0].new_empty(offset + sum(weight.numel() for weight in weights))
    place = offset
    for weight in weights:
        view = buffer[place : place + weight.numel()].view_as(weight)
        view.copy_(weight.detach())
        weight.data = view
        place += weight.numel()
    return buffer[offset:]


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_parameters_in_one_buffer(kind: str, dtype: torch.dtype) -> None:
    """Views into a flat buffer: an update of the buffer is one of the module."""
    ours, theirs = pair(kind, 3, 5, dtype=dtype)
    buffer = flatten(ours)
    x = same_example(ours).requires_grad_()
    for _ in range(2):
        assert_same_gradients(ours, theirs, x)
        with torch.no_grad():
            assert_same(ours(x), theirs(x))
            buffer.mul_(0.5)
            for weight in theirs.parameters():
                weight.mul_(0.5)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_one_flat_parameter(kind: str) -> None:
    """As FullyShardedDataParallel does: the only Parameter is flat, the weights are views of it."""
    results = []
    for module in pair(kind, 3, 4, dtype=F64):
        weights = dict(module.named_parameters())
        whole = nn.Parameter(torch.cat([w.detach().flatten() for w in weights.values()]))
        x = same_example(module)
        losses = []
        for _ in range(3):
            parts = whole.split([weight.numel() for weight in weights.values()])
            for (name, weight), part in zip(weights.items(), parts, strict=True):
                if name in module._parameters:
                    del module._parameters[name]
                setattr(module, name, part.view(weight.shape))
            loss = flat(module(x))[0].square().mean()
            (gradient,) = torch.autograd.grad(loss, whole)
            with torch.no_grad():
                whole -= gradient
            losses.append(loss.detach())
        results.append((losses, gradient))
    assert_same(*results, rows=10)


# Averaged, swapped, optimized.


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_averaged_model(kind: str) -> None:
    """Exponential moving averages, updated in place by foreach, used while training goes on."""
    results = []
    for module in pair(kind, 3, 4, dtype=F64):
        average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        x = same_example(module)
        outputs = []
        for _ in range(3):
            optimizer.zero_grad()
            flat(module(x))[0].square().mean().backward()
            optimizer.step()
            average.update_parameters(module)
            with torch.no_grad():
                outputs.append(average(x))
        own = zip(module.parameters(), average.parameters(), strict=True)
        assert not any(one.data_ptr() == other.data_ptr() for one, other in own)
        swapped = copy.deepcopy(module)
        swapped.load_state_dict(average.module.state_dict())
        with torch.no_grad():
            assert_same(swapped(x), outputs[-1])
        results.append(outputs)
    assert_same(*results, rows=10)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_swap_tensors(kind: str) -> None:
    """Two modules exchange their weights and back again, the objects staying what they are.

    A sequence module refers weakly to its Parameters, in torch.nn too, and torch then refuses.
    """

    def swap(a: nn.Module, b: nn.Module) -> None:
        for one, other in zip(a.parameters(), b.parameters(), strict=True):
            torch.utils.swap_tensors(one, other)

    ours, theirs = pair(kind, 3, 4)
    others = pair(kind, 3, 4, seed=8)
    if kind in SEQUENCES:
        for module, other in zip((ours, theirs), others, strict=True):
            with pytest.raises(RuntimeError, match="has weakref"):
                swap(module, other)
        return
    x = same_example(ours)
    before, exchanged = theirs(x), others[1](x)
    identities = [id(weight) for weight in ours.parameters()]
    swap(ours, others[0])
    assert_same(ours(x), exchanged)
    assert_same(others[0](x), before)
    swap(ours, others[0])
    assert_same(ours(x), before)
    assert identities == [id(weight) for weight in ours.parameters()]


OPTIMIZERS: dict[str, Any] = {
    "foreach": lambda weights: torch.optim.Adam(weights, lr=0.01, foreach=True),
    "fused": lambda weights: torch.optim.AdamW(weights, lr=0.01, fused=True),
    "LBFGS": lambda weights: torch.optim.LBFGS(weights, lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("how", OPTIMIZERS)
@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_optimizers(kind: str, how: str) -> None:
    """However it writes to the weights, the next call has them."""
    results = []
    for module in pair(kind, 3, 4, dtype=F64):
        optimizer = OPTIMIZERS[how](list(module.parameters()))
        x = same_example(module)

        def closure(module: Any = module, x: Tensor = x, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = flat(module(x))[0].square().mean()
            loss.backward()
            return loss

        losses = [optimizer.step(closure).detach() for _ in range(3)]
        assert losses[-1] < losses[0]
        results.append(losses)
    assert_same(*results, rows=10)


# Moved and converted.


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
        assert_same(ours(same_example(ours)), theirs(same_example(ours)))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_meta_device_then_to_empty(kind: str) -> None:
    """Built without memory, given some, then filled from a checkpoint."""
    _, theirs = pair(kind, 3, 4)
    for build in (
        lambda: FASTRNN[kind](3, 4, device="meta"),
        lambda: _under(torch.device("meta"), lambda: FASTRNN[kind](3, 4)),
        lambda: FASTRNN[kind](3, 4).to("meta"),
    ):
        module = build()
        assert all(weight.is_meta for weight in module.parameters())
        module.to_empty(device="cpu")
        module.load_state_dict(theirs.state_dict())
        assert_same_gradients(module, theirs, same_example(module).requires_grad_())
        assigned = build()
        assigned.load_state_dict(theirs.state_dict(), assign=True)
        assert_same(assigned(same_example(module)), theirs(same_example(module)))
    module.reset_parameters()
    assert torch.isfinite(flat(module(same_example(module)))[0]).all()
    module.half()
    assert flat(module(same_example(module)))[0].dtype == torch.float16


def _under(context: Any, build: Any) -> Any:
    with context:
        return build()


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_default_dtype(kind: str) -> None:
    torch.set_default_dtype(F64)
    try:
        ours, theirs = pair(kind, 3, 4)
        assert {weight.dtype for weight in ours.parameters()} == {F64}
        x, _ = leaf_inputs(kind, ours)
        assert_same_gradients(ours, theirs, x)
        ours.float()
        theirs.float()
        assert_same_gradients(ours, theirs, x.detach().float().requires_grad_())
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("enabled", [True, False])
def test_another_default_device(kind: str, backend: str, enabled: bool) -> None:
    """Nothing is made on the default device that a call on the CPU needs."""
    ours, theirs = pair(kind, 3, 4)
    x, sequence = same_example(ours), packed(2, 4, 3)
    calls: list[Any] = [
        lambda: ours(x),
        lambda: ours(x, lengths=[4, 2]),
        lambda: ours(x, reset=torch.zeros(4, 2, dtype=torch.bool, device="cpu")),
        lambda: ours(sequence),
    ]
    with torch.set_grad_enabled(enabled), fastrnn.use_backend(backend):
        expected = [call() for call in calls]
        with torch.device("meta"):
            actual = [call() for call in calls]
            if enabled:
                sum(flat(result)[0].sum() for result in actual).backward()
    assert_same(actual, expected)
    assert all((w.grad is not None) == enabled for w in ours.parameters())
    with torch.device("meta"):
        assert_same(theirs(x), actual[0])


@pytest.mark.parametrize("kind", CELLS)
def test_another_default_device_for_cells(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = same_example(ours)
    with torch.device("meta"):
        assert_same(ours(x), theirs(x))
