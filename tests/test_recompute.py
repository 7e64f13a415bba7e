"""``recompute=True``: the same bits for less memory (which tests/test_memory.py counts)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from cases import BACKENDS, Case, Outputs, arguments, results
from contract import FASTRNN, SEQUENCES, flat
from torch import Tensor, nn
from torch.autograd import forward_ad

import fastrnn

F64 = torch.float64
SERVING = (*BACKENDS, "torch", "reference")


def options() -> Iterator[Case]:
    """Every cell with everything a call may have beside its sizes."""
    for cell, layout in itertools.product(cases.ALL_CELLS, cases.LAYOUTS):
        yield Case(cell, layout=layout, layers=2, bidirectional=True)
        yield Case(cell, torch.float32, layout=layout, reset="random", bias=False, hx=False)
    for cell, lengths in itertools.product(cases.ALL_CELLS, ("random", "zeros")):
        yield Case(cell, lengths=lengths, layers=2, bidirectional=True)
        yield Case(cell, torch.float32, lengths=lengths, reset="random", batch=9, hidden_size=17)
    for layout, proj_size, cell_states in itertools.product(cases.LAYOUTS, (0, 2), (False, True)):
        yield Case("lstm", layout=layout, proj_size=proj_size, cell_states=cell_states, layers=2)
    for cell, dtype in itertools.product(cases.ALL_CELLS, cases.DTYPES + cases.STORAGE_DTYPES):
        for steps, batch, width in ((1, 1, 33), (1, 13, 64), (9, 1, 129), (17, 33, 65)):
            yield Case(cell, dtype, steps=steps, batch=batch, input_size=31, hidden_size=width)


def served() -> list[Any]:
    """Each case with each backend that can serve it; torch has no options beyond its own."""
    pairs = []
    for case, backend in itertools.product(dict.fromkeys(options()), SERVING):
        beyond = case.lengths or case.reset or case.cell_states
        if backend == "torch" and (beyond or case.cell not in cases.TORCH_CELLS):
            continue
        if backend == "numba" and case.stored:
            continue
        pairs.append(pytest.param(case, backend, id=f"{case.id}-{backend}"))
    return pairs


def assert_equal(actual: Outputs, expected: Outputs) -> None:
    assert actual.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert different == []


@pytest.mark.parametrize(("case", "backend"), served())
def test_same_bits(case: Case, backend: str) -> None:
    a = arguments(case)
    again = replace(a, case=replace(case, recompute=True))
    assert_equal(results(again, backend=backend), results(a, backend=backend))


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_partial_gradients(cell: str, backend: str) -> None:
    a = arguments(Case(cell, layers=2, bidirectional=True))
    again = replace(a, case=replace(a.case, recompute=True))
    for name in a.differentiable():
        for wanted in ({name}, a.differentiable().keys() - {name}):
            expected = results(a, backend=backend, wanted=wanted, losses=("h_n",))
            actual = results(again, backend=backend, wanted=wanted, losses=("h_n",))
            assert_equal(actual, expected)


# How often, and by whom, backward is asked for.


def module_and_input(kind: str, **more: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(5)
    module = FASTRNN[kind](3, 4, 2, bidirectional=True, dtype=F64, recompute=True, **more)
    return module, torch.randn(5, 3, 3, dtype=F64, requires_grad=True)


def with_and_without(module: Any, compute: Callable[[], Any]) -> None:
    """``compute()`` gives the same bits, with ``recompute`` as without."""
    found = []
    for module.recompute in (True, False):
        torch.manual_seed(6)
        found.append(flat(compute()))
    assert len(found[0]) == len(found[1]) > 0
    for actual, expected in zip(*found, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_dropout(kind: str, backend: str) -> None:
    """The mask between layers belongs to the first forward; the second draws none."""
    module, x = module_and_input(kind, dropout=0.5)

    def compute() -> Any:
        y = module(x)[0]
        return y, torch.autograd.grad(y.sin().sum(), [x, *module.parameters()]), torch.rand(3)

    with fastrnn.use_backend(backend):
        with_and_without(module, compute)


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_gradients_of_gradients(kind: str, backend: str) -> None:
    module, x = module_and_input(kind)

    def compute() -> Any:
        (first,) = torch.autograd.grad(module(x)[0].sin().sum(), x, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), [x, *module.parameters()])

    with fastrnn.use_backend(backend):
        with_and_without(module, compute)


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_batched_gradients(kind: str, backend: str) -> None:
    module, x = module_and_input(kind)

    def compute() -> Any:
        y = module(x)[0]
        basis = torch.eye(y.numel(), dtype=F64).view(-1, *y.shape)[:3]
        return torch.autograd.grad(y, x, basis, is_grads_batched=True)

    with fastrnn.use_backend(backend):
        with_and_without(module, compute)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_transforms(kind: str) -> None:
    """functorch and forward mode, through which nothing is kept that could be spared."""
    module, x = module_and_input(kind)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(module, weights, (x,))[0].sin().sum()
        return output

    def tangent() -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.detach(), x.detach().cos())
            found: Tensor = forward_ad.unpack_dual(module(dual)[0]).tangent
            return found

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 1))
    with_and_without(module, lambda: list(torch.func.grad(loss)(weights, x.detach()).values()))
    with_and_without(module, lambda: list(per_sample(weights, x.detach()).values()))
    with_and_without(module, tangent)


@pytest.mark.parametrize("backend", ["aot_eager", "aot_eager_decomp_partition"])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_compiled(kind: str, backend: str) -> None:
    module, x = module_and_input(kind)

    def compute() -> Any:
        torch._dynamo.reset()
        y = torch.compile(module, backend=backend, fullgraph=True)(x)[0]
        return y, torch.autograd.grad(y.sin().sum(), [x, *module.parameters()])

    with_and_without(module, compute)


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast(kind: str, dtype: torch.dtype) -> None:
    """A call that torch.nn's forward serves, its dropout included; and one that kernels serve."""
    module, _ = module_and_input(kind, dropout=0.5)
    module.to(dtype)
    x = torch.randn(5, 3, 3, requires_grad=True)
    for lengths in (None, [5, 2, 0]):

        def compute(lengths: list[int] | None = lengths) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                y = module(x, lengths=lengths)[0]
            return y, torch.autograd.grad(y.float().sin().sum(), [x, *module.parameters()])

        with_and_without(module, compute)


# Changes between forward and backward.


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("what", ["x", "weight_hh_l0", "weight_ih_l1"])
def test_changed_before_backward(kind: str, what: str, backend: str) -> None:
    """Backward would run another forward; it must not do so in silence."""
    module, x = module_and_input(kind)
    x = x * 1
    with fastrnn.use_backend(backend):
        loss = module(x)[0].sum()
    with torch.no_grad():
        (x if what == "x" else getattr(module, what)).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", SEQUENCES)
def test_outputs_changed_before_backward(kind: str) -> None:
    """Cell states too: here backward does not need those that the caller has."""
    module, x = module_and_input(kind, **({"return_cell_states": True} if kind == "LSTM" else {}))
    expected = flat(module(x))
    grads = torch.autograd.grad(sum(t.relu().sum() for t in expected), [x, *module.parameters()])
    outputs = flat(module(x))
    loss = sum(output.relu_().sum() for output in outputs)
    for actual, grad in zip(
        torch.autograd.grad(loss, [x, *module.parameters()]), grads, strict=True
    ):
        assert torch.equal(actual, grad)


# The operator.


@pytest.mark.parametrize("cell", cases.ALL_CELLS)
def test_operator(cell: str) -> None:
    """It runs forward itself where it is given nothing of one, and wants all or nothing."""
    a = arguments(Case(cell))
    given = (cell, a.x, a.h0, a.c0, list(a.weights.values()), None, None, None, 1, False)
    y, h_n, c_n, *kept = torch.ops.fastrnn.layer_forward(*given, True)
    has_c = a.c0 is not None
    more = (
        y.cos(),
        h_n.cos(),
        c_n.cos() if has_c else None,
        None,
        [True, True, has_c] + [True] * 4,
    )
    backward = torch.ops.fastrnn.layer_backward
    for actual, expected in zip(
        backward(*given, None, None, *more), backward(*given, *kept, *more), strict=True
    ):
        assert torch.equal(actual, expected)
    with pytest.raises(RuntimeError, match=r"reserve: expected shape .* got None"):
        backward(*given, kept[0], None, *more)
    if has_c:
        with pytest.raises(RuntimeError, match=r"cell_states: expected shape .* got None"):
            backward(*given, None, kept[1], *more)


# The option itself.


@pytest.mark.parametrize("kind", SEQUENCES)
def test_option_of_the_modules(kind: str) -> None:
    plain, module = FASTRNN[kind](3, 4), FASTRNN[kind](3, 4, recompute=True)
    assert not plain.recompute
    assert module.recompute
    assert repr(module) == f"{kind}(3, 4, recompute=True)"
    assert repr(plain) == f"{kind}(3, 4)"
    with pytest.raises(TypeError, match="recompute should be of type bool, got: int"):
        FASTRNN[kind](3, 4, recompute=1)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", SEQUENCES)
def test_recorded_calls_are_those_without(kind: str) -> None:
    """There is no backward in what torch.jit and torch.export record."""
    module = FASTRNN[kind](3, 4, recompute=True)
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        traced = torch.jit.trace(module, (x,), check_trace=False)
        exported = torch.export.export(module, (x,)).module()
    for recorded in (traced, exported):
        assert isinstance(recorded, nn.Module)
        torch.testing.assert_close(recorded(x)[0].float(), module(x)[0], atol=0.02, rtol=0.02)
