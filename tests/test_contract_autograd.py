"""Gradients: which, of what order, and when (section 7)."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from contract import (
    CELLS,
    SEQUENCES,
    assert_same,
    assert_same_gradients,
    flat,
    leaf_inputs,
    pair,
    states,
    variants,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

F64 = torch.float64


@pytest.mark.parametrize(("kind", "options"), variants())
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_same_gradients(
    kind: str, options: dict[str, Any], training: bool, dtype: torch.dtype
) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=dtype, **options)
    ours.train(training)
    theirs.train(training)
    x = torch.randn(5, 2, 3, dtype=dtype, requires_grad=True)
    hx = states(ours, 5 if ours.batch_first else 2, dtype)
    for state in flat(hx):
        state.requires_grad_()
    assert_same_gradients(ours, theirs, x, hx)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_upstream_gradient_not_contiguous(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, 2, batch_first=True, bidirectional=True, dtype=F64)
    x = torch.randn(3, 5, 3, dtype=F64, requires_grad=True)
    upstream = torch.randn(8, 5, 3, dtype=F64).transpose(0, 2)
    results = [
        torch.autograd.grad(module(x)[0], [x, *module.parameters()], upstream)
        for module in (ours, theirs)
    ]
    assert_same(*results, rows=15)


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("which", ["output", "one step", "h_n", "c_n", "first layer"])
def test_loss_on_some_outputs(kind: str, which: str) -> None:
    """Parameters that the loss does not reach may get None or zeros."""
    ours, theirs = pair(kind, 3, 4, 2, dtype=F64)
    x, hx = leaf_inputs(kind, ours)
    chosen = {
        "output": lambda y, s: y,
        "one step": lambda y, s: y[1],
        "h_n": lambda y, s: flat(s)[0],
        "c_n": lambda y, s: flat(s)[-1],
        "first layer": lambda y, s: flat(s)[0][:1],
    }[which]
    results = []
    for module in (ours, theirs):
        leaves = [x, *flat(hx), *module.parameters()]
        loss = chosen(*module(x, hx)).square().sum()
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        results.append(
            [torch.zeros_like(w) if g is None else g for g, w in zip(grads, leaves, strict=True)]
        )
    assert_same(*results, rows=8)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_backward_twice(kind: str) -> None:
    ours, _ = pair(kind, 3, 4)
    x, hx = leaf_inputs(kind, ours, torch.float32)
    loss = flat(ours(x, hx))[0].square().sum()
    first = torch.autograd.grad(loss, list(ours.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(ours.parameters()))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, list(ours.parameters()))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("what", ["input", "hx"])
def test_input_changed_before_backward(kind: str, what: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    for module in (theirs, ours):
        x, hx = leaf_inputs(kind, module, torch.float32)
        loss = flat(module(x, hx))[0].sum()
        with torch.no_grad():
            (x if what == "input" else flat(hx)[0]).add_(1)
        with pytest.raises(RuntimeError, match="inplace"):
            loss.backward()


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_weight_changed_before_backward(kind: str) -> None:
    ours, _ = pair(kind, 3, 4)
    x, hx = leaf_inputs(kind, ours, torch.float32)
    loss = flat(ours(x, hx))[0].sum()
    weight = ours.weight_hh if kind in CELLS else ours.weight_hh_l0
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_output_changed_before_backward(kind: str) -> None:
    """``output += residual`` and ``relu_(output)``; torch.nn.RNNCell alone refuses the latter."""
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, hx = leaf_inputs(kind, ours)
    outputs = flat(theirs(x, hx))
    expected = torch.autograd.grad(
        sum(output.relu().sum() for output in outputs), [x, *theirs.parameters()]
    )
    outputs = flat(ours(x, hx))
    for output in outputs:
        output.relu_()
    loss = sum(output.sum() for output in outputs)
    assert_same(torch.autograd.grad(loss, [x, *ours.parameters()]), expected, rows=8)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_several_graphs_at_once(kind: str) -> None:
    """One module called several times; backward in another order than forward."""
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    calls = [leaf_inputs(kind, ours) for _ in range(3)]
    expected = [torch.autograd.grad(flat(theirs(*c))[0].sum(), [c[0]]) for c in calls]
    losses = [flat(ours(*c))[0].sum() for c in calls]
    for k in (1, 2, 0):
        assert_same(torch.autograd.grad(losses[k], [calls[k][0]]), expected[k])
    sum(flat(ours(*c))[0].sum() for c in calls).backward()
    sum(flat(theirs(*c))[0].sum() for c in calls).backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_same(own.grad, other.grad, rows=24)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(kind: str, use_reentrant: bool) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, _ = leaf_inputs(kind, ours)
    flat(theirs(x))[0].sum().backward()
    flat(checkpoint(ours, x, use_reentrant=use_reentrant))[0].sum().backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_same(own.grad, other.grad, rows=8)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_saved_tensor_hooks_and_anomaly_mode(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, hx = leaf_inputs(kind, ours)
    flat(theirs(x, hx))[0].sum().backward()
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Any:
        packed.append(tensor)
        return tensor.detach().numpy().copy()

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy),
        torch.autograd.set_detect_anomaly(True),
    ):
        loss = flat(ours(x, hx))[0].sum()
    assert any(tensor.data_ptr() == x.data_ptr() for tensor in packed)
    loss.backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_same(own.grad, other.grad, rows=8)
    with torch.autograd.graph.save_on_cpu():
        loss = flat(ours(x, hx))[0].sum()
    loss.backward()


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_deterministic_algorithms(kind: str) -> None:
    ours, _ = pair(kind, 3, 4)
    x, hx = leaf_inputs(kind, ours, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        flat(ours(x, hx))[0].sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_graph_is_freed_without_the_garbage_collector(kind: str) -> None:
    ours, _ = pair(kind, 3, 4)
    gc.collect()
    gc.disable()
    try:
        x, _ = leaf_inputs(kind, ours, torch.float32)
        y = x * 1
        outputs = ours(y)
        freed = weakref.ref(y)
        del y
        assert freed() is not None  # backward needs it
        del outputs
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_modes_without_gradients(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x, hx = leaf_inputs(kind, ours, torch.float32)
    with torch.no_grad():
        assert_same(ours(x, hx), theirs(x, hx))
        assert all(output.grad_fn is None for output in flat(ours(x, hx)))
    with torch.inference_mode():
        result = ours(x, hx)
        assert_same(result, theirs(x, hx))
        assert all(output.is_inference() for output in flat(result))
