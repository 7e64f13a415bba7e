"""Gradients: which, of what order, and when (section 7)."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from contract import (
    CELLS,
    FASTRNN,
    SEQUENCES,
    assert_same,
    assert_same_gradients,
    flat,
    pair,
    states,
    variants,
)
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

F64 = torch.float64


def example(kind: str, module: Any, dtype: torch.dtype = F64) -> tuple[Tensor, Any]:
    """Input and states that require gradients."""
    x = torch.randn(2, 3, dtype=dtype) if kind in CELLS else torch.randn(4, 2, 3, dtype=dtype)
    hx = states(module, 2, dtype)
    for leaf in (x, *flat(hx)):
        leaf.requires_grad_()
    return x, hx


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
    x, hx = example(kind, ours)
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
@pytest.mark.parametrize("frozen", ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "input", "hx"])
def test_gradient_is_none_where_it_is_not_wanted(kind: str, frozen: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, hx = example(kind, ours)
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
    x, hx = example(kind, ours)
    x.requires_grad_(wanted == "input")
    for state in flat(hx):
        state.requires_grad_(wanted == "hx")
    if wanted == "nothing":
        assert not any(output.requires_grad for output in flat(ours(x, hx)))
    else:
        assert_same_gradients(ours, theirs, x, hx)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_gradcheck_of_first_and_second_order(kind: str) -> None:
    ours = FASTRNN[kind](2, 2, dtype=F64)
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
        return tuple(flat(torch.func.functional_call(ours, weights, (x, given))))

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_double_backward(kind: str) -> None:
    """Gradient penalty: the gradient of a gradient's norm."""
    ours, theirs = pair(kind, 3, 4)
    x, hx = example(kind, ours, torch.float32)

    def second(module: Any) -> list[Tensor]:
        loss = sum(output.sin().sum() for output in flat(module(x, hx)))
        first = torch.autograd.grad(loss, [x, *flat(hx)], create_graph=True)
        penalty = sum(grad.square().sum() for grad in first)
        return list(torch.autograd.grad(penalty, [x, *module.parameters()], allow_unused=True))

    assert_same(second(ours), second(theirs), rows=8)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_backward_twice(kind: str) -> None:
    ours, _ = pair(kind, 3, 4)
    x, hx = example(kind, ours, torch.float32)
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
        x, hx = example(kind, module, torch.float32)
        loss = flat(module(x, hx))[0].sum()
        with torch.no_grad():
            (x if what == "input" else flat(hx)[0]).add_(1)
        with pytest.raises(RuntimeError, match="inplace"):
            loss.backward()


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_weight_changed_before_backward(kind: str) -> None:
    ours, _ = pair(kind, 3, 4)
    x, hx = example(kind, ours, torch.float32)
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
    x, hx = example(kind, ours)
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
    calls = [example(kind, ours) for _ in range(3)]
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
    x, _ = example(kind, ours)
    flat(theirs(x))[0].sum().backward()
    flat(checkpoint(ours, x, use_reentrant=use_reentrant))[0].sum().backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_same(own.grad, other.grad, rows=8)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_saved_tensor_hooks_and_anomaly_mode(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, hx = example(kind, ours)
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
    x, hx = example(kind, ours, torch.float32)
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
        x, _ = example(kind, ours, torch.float32)
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
    x, hx = example(kind, ours, torch.float32)
    with torch.no_grad():
        assert_same(ours(x, hx), theirs(x, hx))
        assert all(output.grad_fn is None for output in flat(ours(x, hx)))
    with torch.inference_mode():
        result = ours(x, hx)
        assert_same(result, theirs(x, hx))
        assert all(output.is_inference() for output in flat(result))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode(kind: str, grad: bool) -> None:
    """The right tangent: the kernels have no rule for one, and must not lose it in silence."""
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, _ = example(kind, ours)
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.randn_like(x))
        expected = [forward_ad.unpack_dual(t).tangent for t in flat(theirs(dual))]
        assert all(tangent is not None for tangent in expected)
        outputs = flat(ours(dual))
        assert_same([forward_ad.unpack_dual(t).tangent for t in outputs], expected)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_functional_call(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, _ = example(kind, ours)
    weights = {
        name: torch.randn_like(weight, requires_grad=True)
        for name, weight in ours.named_parameters()
    }
    results = []
    for module in (ours, theirs):
        output = flat(torch.func.functional_call(module, weights, (x,)))
        results.append((output, torch.autograd.grad(output[0].sum(), list(weights.values()))))
    assert_same(*results, rows=8)
    assert_same(ours(x), theirs(x))  # the module's own weights are back


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_func_transforms(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, _ = example(kind, ours)
    x = x.detach()
    results: list[list[Any]] = [[], []]
    for module, found in zip((ours, theirs), results, strict=True):
        weights = {name: weight.detach() for name, weight in module.named_parameters()}

        def loss(weights: dict[str, Tensor], x: Tensor, module: nn.Module = module) -> Tensor:
            outputs = flat(torch.func.functional_call(module, weights, (x,)))
            return outputs[0].sin().sum()

        found.append(list(torch.func.grad(loss)(weights, x).values()))
        value, pull = torch.func.vjp(lambda x, w=weights: loss(w, x), x)
        found.append(pull(torch.ones_like(value))[0])
        found.append(torch.func.jacrev(lambda x, w=weights: loss(w, x))(x))
        inner = torch.func.grad(loss, argnums=1)
        outer = torch.func.grad(lambda w, inner=inner: inner(w, x).square().sum())
        found.append(list(outer(weights).values()))
    assert_same(*results, rows=8)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_batched_gradients(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, _ = example(kind, ours)
    results = []
    for module in (ours, theirs):
        y = flat(module(x))[0]
        basis = torch.eye(y.numel(), dtype=F64).view(-1, *y.shape)[:3]
        results.append(torch.autograd.grad(y, x, basis, is_grads_batched=True))
    assert_same(*results)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_vmap_and_per_sample_gradients(kind: str) -> None:
    """More than torch.nn can do for the sequence modules: compared with a loop."""
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x = torch.randn(3, 3, dtype=F64) if kind in CELLS else torch.randn(3, 4, 3, dtype=F64)
    weights = {name: weight.detach() for name, weight in ours.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        outputs = flat(torch.func.functional_call(ours, weights, (x,)))
        return outputs[0].sin().sum()

    actual = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for k in range(3):
        theirs.zero_grad()
        flat(theirs(x[k]))[0].sin().sum().backward()
        for name, weight in theirs.named_parameters():
            assert_same(actual[name][k], weight.grad, rows=4)
