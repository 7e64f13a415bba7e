"""torch.func and forward mode: torch.nn's numbers where it has any, else those of a loop.

torch.nn has no batching rule for its sequence modules, and forward mode for all but the LSTM in
float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import cases
import pytest
import torch
from cases import ALL_CELLS, Case, arguments, check
from contract import (
    CELLS,
    FASTRNN,
    SEQUENCES,
    TORCH,
    assert_same,
    flat,
    leaf_inputs,
    packed,
    pair,
    states,
)
from tiny import CHECKED, TINY, as_function, tiny
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

import fastrnn

F64 = torch.float64
Weights = dict[str, Tensor]


def detached(module: nn.Module) -> Weights:
    return {name: weight.detach() for name, weight in module.named_parameters()}


def loss_of(module: nn.Module) -> Callable[[Weights, Tensor], Tensor]:
    def loss(weights: Weights, x: Tensor) -> Tensor:
        return flat(functional_call(module, weights, (x,)))[0].sin().sum()

    return loss


def example(kind: str, *lead: int, dtype: torch.dtype = F64) -> Tensor:
    """Inputs of 2 rows (of 4 steps for a sequence module), under leading dimensions."""
    return torch.randn(*lead, *((2, 3) if kind in CELLS else (4, 2, 3)), dtype=dtype)


def stacked(results: Sequence[Any]) -> Any:
    """What vmap returns for the results of a loop."""
    return torch.utils._pytree.tree_map(lambda *each: torch.stack(each), *results)


# functional_call, grad, vjp, Jacobians, Hessians.


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_functional_call(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, _ = leaf_inputs(kind, ours)
    weights = {
        name: torch.randn_like(weight, requires_grad=True)
        for name, weight in ours.named_parameters()
    }
    results = []
    for module in (ours, theirs):
        output = flat(functional_call(module, weights, (x,)))
        results.append((output, torch.autograd.grad(output[0].sum(), list(weights.values()))))
    assert_same(*results, rows=8)
    assert_same(ours(x), theirs(x))  # the module's own weights are back


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_grad_vjp_and_jacobian(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x = example(kind)
    results: list[list[Any]] = [[], []]
    for module, found in zip((ours, theirs), results, strict=True):
        loss, weights = loss_of(module), detached(module)
        found.append(list(grad(loss)(weights, x).values()))
        value, pull = vjp(loss, weights, x)
        found.append(pull(torch.ones_like(value))[1])
        found.append(jacrev(loss, argnums=1)(weights, x))
        inner = grad(loss, argnums=1)
        outer = grad(lambda w, inner=inner: inner(w, x).square().sum())
        found.append(list(outer(weights).values()))
    assert_same(*results, rows=8)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_hessians(kind: str) -> None:
    """Reverse mode differentiated by either; torch.nn has the first."""
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x = example(kind)
    weights = detached(ours)
    expected = jacrev(grad(loss_of(theirs), argnums=1), argnums=1)(weights, x)
    assert_same(jacrev(grad(loss_of(ours), argnums=1), argnums=1)(weights, x), expected)
    assert_same(hessian(loss_of(ours), argnums=1)(weights, x), expected)


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_functions_of_every_cell(cell: str) -> None:
    """The automatic choice is a backend that the transform can see through."""
    a = arguments(Case(cell, **TINY))
    expected = cases.reference(a, losses=["output"], grads=lambda outputs, case: {
        name: torch.ones_like(output) for name, output in outputs.items()
    })  # fmt: skip

    def loss(x: Tensor) -> Tensor:
        call = a.with_tensors(a.differentiable() | {"x": x})
        return cases.fastrnn_forward(call)["output"].sum()

    once = grad(loss)(a.x)
    check({"grad x": once}, {"grad x": expected["grad x"]}, a.case)
    per_sample = vmap(grad(loss))(a.x.expand(3, *a.x.shape))
    check({"grad x": per_sample[2]}, {"grad x": expected["grad x"]}, a.case)
    tangent = jvp(loss, (a.x,), (torch.ones_like(a.x),))[1]
    torch.testing.assert_close(tangent, expected["grad x"].sum(), rtol=1e-12, atol=1e-12)


# Forward mode.


@pytest.mark.parametrize(("cell", "option"), CHECKED)
def test_forward_mode_of_every_option(cell: str, option: str) -> None:
    """Tangents of all outputs for tangents of all inputs are those of the gradients."""
    function, tensors = as_function(tiny(cell, option))
    tangents = [torch.randn_like(tensor) for tensor in tensors]
    outputs, actual = jvp(function, tuple(t.detach() for t in tensors), tuple(tangents))
    upstream = [torch.randn_like(output) for output in outputs]
    gradients = torch.autograd.grad(function(*tensors), tensors, upstream)
    forward = sum((u * t).sum() for u, t in zip(upstream, actual, strict=True))
    reverse = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    torch.testing.assert_close(forward, reverse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("enabled", [True, False])
def test_dual_numbers(kind: str, enabled: bool) -> None:
    """The right tangent: the kernels have no rule for one, and must not lose it in silence."""
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, _ = leaf_inputs(kind, ours)
    with torch.set_grad_enabled(enabled), forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.randn_like(x))
        expected = [forward_ad.unpack_dual(t).tangent for t in flat(theirs(dual))]
        assert all(tangent is not None for tangent in expected)
        outputs = flat(ours(dual))
        assert_same([forward_ad.unpack_dual(t).tangent for t in outputs], expected)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_jvp_of_weights_and_jacfwd(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x = example(kind)
    weights = detached(ours)
    tangents = {name: torch.randn_like(weight) for name, weight in weights.items()}
    results = []
    for module in (ours, theirs):

        def outputs(weights: Weights, x: Tensor = x, module: nn.Module = module) -> list[Tensor]:
            return flat(functional_call(module, weights, (x,)))

        results.append([
            jvp(outputs, (weights,), (tangents,)),
            jacfwd(lambda x, outputs=outputs: outputs(weights, x)[0])(x),
        ])  # fmt: skip
    assert_same(*results, rows=8)


def test_linearize() -> None:
    """With weights that require no gradients: torch cannot trace it otherwise."""
    ours, theirs = pair("GRU", 3, 4, dtype=F64)
    x, tangent = torch.randn(2, 4, 2, 3, dtype=F64)
    ours.requires_grad_(False)
    output, forward = linearize(lambda x: ours(x)[0], x)
    assert_same((output, forward(tangent)), jvp(lambda x: theirs(x)[0], (x,), (tangent,)))


def test_jvp_of_float32_lstm() -> None:
    """oneDNN's operator, which torch.nn calls, has no forward mode; the reference has."""
    ours, theirs = pair("LSTM", 3, 4)
    x, tangent = torch.randn(2, 4, 2, 3)
    with pytest.raises(NotImplementedError, match="forward AD"):
        jvp(lambda x: theirs(x)[0], (x,), (tangent,))
    actual = jvp(lambda x: ours(x)[0], (x,), (tangent,))
    ours.double()
    exact = jvp(lambda x: ours(x)[0], (x.double(),), (tangent.double(),))
    assert_same(actual, tuple(value.float() for value in exact))


# vmap: over inputs, over weights, over both.


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_batched_gradients(cell: str) -> None:
    """``is_grads_batched`` and vectorised Jacobians: many upstream gradients in one backward."""
    a = arguments(Case(cell, **TINY))

    def output(x: Tensor) -> Tensor:
        return cases.fastrnn_forward(a.with_tensors(a.differentiable() | {"x": x}))["output"]

    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(
        jacobian(output, a.x, vectorize=True), jacobian(output, a.x), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_batched_gradients_of_modules(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, _ = leaf_inputs(kind, ours)
    results = []
    for module in (ours, theirs):
        y = flat(module(x))[0]
        basis = torch.eye(y.numel(), dtype=F64).view(-1, *y.shape)[:3]
        results.append(torch.autograd.grad(y, x, basis, is_grads_batched=True))
    assert_same(*results)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("enabled", [True, False])
def test_vmap_over_inputs(kind: str, enabled: bool) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x = example(kind, 3)
    with torch.set_grad_enabled(enabled):
        actual = vmap(ours)(x)
        assert_same(actual, stacked([theirs(row) for row in x]))
        if kind in ("RNNCell", "GRUCell"):  # what torch.nn can do, with a warning of slowness
            assert_same(actual, vmap(theirs)(x))
        assert_same(vmap(ours, in_dims=1, chunk_size=2)(x.transpose(0, 1)), actual)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_vmap_over_states(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x = example(kind)
    shape = (3, 2, 4) if kind in CELLS else (3, 1, 2, 4)
    hx: Any = torch.randn(shape, dtype=F64)
    each: list[Any] = list(hx)
    if "LSTM" in kind:
        hx = (hx, torch.randn(shape, dtype=F64))
        each = list(zip(*hx, strict=True))
    assert_same(vmap(ours, (None, 0))(x, hx), stacked([theirs(x, state) for state in each]))


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("option", ["lengths", "reset", "packed", "unbatched"])
def test_vmap_over_options(kind: str, option: str) -> None:
    """Masks may be mapped too; lengths then cannot be checked, as their values are not known."""
    module: Any = FASTRNN[kind](3, 4, bidirectional=True, dtype=F64)
    sequence = packed(2, 4, 3, dtype=F64)

    def call(x: Tensor, *mask: Tensor) -> list[Tensor]:
        if option == "packed":
            return flat(module(sequence._replace(data=x)))
        return flat(module(x, **dict(zip([option], mask, strict=False))))

    shape = {"packed": sequence.data.shape, "unbatched": (5, 3)}.get(option, (5, 2, 3))
    mapped = [torch.randn(3, *shape, dtype=F64)]
    if option == "lengths":
        mapped.append(torch.tensor([[5, 2], [3, 0], [1, 5]]))
    elif option == "reset":
        mapped.append(torch.rand(3, 5, 2) < 0.4)
    expected = [call(*each) for each in zip(*mapped, strict=True)]
    assert_same(vmap(call)(*mapped), stacked(expected))


def test_lengths_are_checked_where_their_values_are_known() -> None:
    module = fastrnn.GRU(3, 4)
    x = torch.randn(5, 2, 3)

    def loss(x: Tensor, lengths: Tensor) -> Tensor:
        return module(x, lengths=lengths)[0].sum()

    each = x.expand(3, 5, 2, 3)
    for transform, given in ((grad, x), (lambda f: vmap(f, (0, None)), each)):
        with pytest.raises(ValueError, match="lengths: expected values from 0 to 5"):
            transform(loss)(given, torch.tensor([6, 2]))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_randomness_of_dropout(kind: str) -> None:
    module = FASTRNN[kind](3, 4, 2, dropout=0.5, dtype=F64)
    x = example(kind).expand(3, 4, 2, 3)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(module)(x)
    same = flat(vmap(module, randomness="same")(x))[0]
    different = flat(vmap(module, randomness="different")(x))[0]
    assert torch.equal(same[0], same[1])
    assert not torch.allclose(different[0], different[1])


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_ensemble(kind: str) -> None:
    """Models with weights of their own, stacked, in one call: outputs and gradients of each."""
    options = {} if kind in CELLS else {"num_layers": 2, "bidirectional": True}
    pairs = [pair(kind, 3, 4, seed=seed, dtype=F64, **options) for seed in range(3)]
    weights, buffers = stack_module_state([ours for ours, _ in pairs])
    template = copy.deepcopy(pairs[0][0]).to("meta")
    x = example(kind, 3)

    def call(weights: Weights, x: Tensor) -> list[Tensor]:
        return flat(functional_call(template, (weights, buffers), (x,)))

    shared = vmap(call, (0, None))(weights, x[0])
    assert_same(shared, stacked([flat(theirs(x[0])) for _, theirs in pairs]))
    outputs = vmap(call)(weights, x)
    found = torch.autograd.grad(sum(output.sin().sum() for output in outputs), weights.values())
    for k, (_, theirs) in enumerate(pairs):
        own = flat(theirs(x[k]))
        assert_same([output[k] for output in outputs], own)
        loss = sum(output.sin().sum() for output in own)
        expected = torch.autograd.grad(loss, list(theirs.parameters()))
        assert_same(tuple(gradient[k] for gradient in found), expected, rows=8)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_gradients_of_an_ensemble_by_vmap(kind: str) -> None:
    pairs = [pair(kind, 3, 4, seed=seed, dtype=F64) for seed in range(3)]
    weights, _ = stack_module_state([ours for ours, _ in pairs])
    x = example(kind)
    actual = vmap(grad(loss_of(pairs[0][0])), (0, None))(weights, x)
    expected = stacked([grad(loss_of(theirs))(detached(theirs), x) for _, theirs in pairs])
    assert_same(list(actual.values()), list(expected.values()), rows=8)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_per_sample_gradients(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x = torch.randn(3, 3, dtype=F64) if kind in CELLS else torch.randn(3, 4, 3, dtype=F64)
    actual = vmap(grad(loss_of(ours)), (None, 0))(detached(ours), x)
    for k in range(3):
        theirs.zero_grad()
        flat(theirs(x[k]))[0].sin().sum().backward()
        for name, weight in theirs.named_parameters():
            assert_same(actual[name][k], weight.grad, rows=4)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_per_sample_gradients_of_padded_rows(kind: str) -> None:
    """What differentially private training asks for: each row's own gradient, at its length."""
    module: Any = FASTRNN[kind](3, 4, dtype=F64)
    x, lengths = torch.randn(5, 3, 3, dtype=F64), torch.tensor([5, 2, 3])

    def loss(weights: Weights, x: Tensor, length: Tensor) -> Tensor:
        options = {"lengths": length[None]}
        return flat(functional_call(module, weights, (x[:, None],), options))[0].sin().sum()

    actual = vmap(grad(loss), (None, 1, 0))(detached(module), x, lengths)
    for row, length in enumerate(lengths.tolist()):
        cut = module(x[:length, row : row + 1])[0].sin().sum()
        expected = torch.autograd.grad(cut, list(module.parameters()))
        assert_same(tuple(gradient[row] for gradient in actual.values()), expected, rows=5)


def test_compiled_per_sample_gradients() -> None:
    torch._dynamo.reset()
    module = fastrnn.LSTM(3, 4, dtype=F64)
    x, weights = torch.randn(3, 4, 3, dtype=F64), detached(module)
    transform = vmap(grad(loss_of(module)), (None, 0))
    compiled = torch.compile(lambda weights, x: transform(weights, x), backend="aot_eager")
    actual, expected = (f(weights, x).values() for f in (compiled, transform))
    assert_same(list(actual), list(expected), rows=4)


# Under autocast: torch.nn's dtypes, without its failures.


@pytest.mark.parametrize("how", ["float32", "16 bits", "states"])
@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_vmap_and_forward_mode_under_autocast(kind: str, how: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = example(kind, 3, dtype=torch.bfloat16 if how == "16 bits" else torch.float32)
    hx = states(ours, 2) if how == "states" else None
    with torch.autocast("cpu", torch.bfloat16):
        expected = stacked([theirs(row, hx) for row in x])
        assert_same(vmap(lambda x: ours(x, hx))(x), expected, dtype=torch.bfloat16)
        value, tangent = jvp(lambda x: ours(x, hx), (x[0],), (torch.ones_like(x[0]),))
        assert_same(value, theirs(x[0], hx), dtype=torch.bfloat16)
    exact = jvp(lambda x: ours(x, hx), (x[0].float(),), (torch.ones(x[0].shape),))[1]
    for actual, wanted in zip(flat(tangent), flat(exact), strict=True):
        assert_same(actual.float(), wanted, dtype=torch.bfloat16)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_vmap_of_packed_data_under_autocast(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, 2, bidirectional=True)
    sequence = packed(2, 4, 3)
    x = torch.randn(3, *sequence.data.shape)

    def call(module: nn.Module, x: Tensor) -> list[Tensor]:
        return flat(module(sequence._replace(data=x)))

    with torch.autocast("cpu", torch.bfloat16):
        expected = stacked([call(theirs, row) for row in x])
        assert_same(vmap(lambda x: call(ours, x))(x), expected, dtype=torch.bfloat16)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_per_sample_gradients_under_autocast(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = example(kind, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = vmap(grad(loss_of(ours)), (None, 0))(detached(ours), x)
        for k in range(3):
            expected = grad(loss_of(theirs))(detached(theirs), x[k])
            for name, gradient in expected.items():
                assert_same(actual[name][k], gradient, rows=8, dtype=torch.bfloat16)


def test_autocast_of_another_device() -> None:
    ours = fastrnn.LSTM(3, 4)
    x = example("LSTM", 3, dtype=torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        assert_same(vmap(ours)(x), stacked([ours(row) for row in x]))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_vmap_over_integers(kind: str) -> None:
    """Whose range cannot be checked, as their values are not known."""
    module = FASTRNN[kind](7, 4, dtype=F64)
    numbers = torch.randint(7, (3, 2) if kind in CELLS else (3, 5, 2))
    expected = stacked([module(row) for row in numbers])
    assert_same(vmap(module)(numbers), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(vmap(module)(numbers), stacked([module(row) for row in numbers]))


def test_torch_has_no_batching_rule() -> None:
    """Why those tests compare with a loop; they should not any longer once torch has one."""
    for kind in SEQUENCES:
        with pytest.raises(RuntimeError, match="Batching rule not implemented"):
            vmap(TORCH[kind](3, 4, dtype=F64))(example(kind, 3))
