"""Every cell with every option, those torch lacks included, against the oracles.

Each fused backend against the reference computed in float64, at every size at which kernels change
their path, with memory poisoned so that an element nobody writes is NaN; and each against another,
backward by one after forward by the other. ``test_reference.py`` holds the reference itself against
torch.nn.
"""

from __future__ import annotations

import importlib
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from cases import ALL_CELLS, BACKENDS, Case, Outputs, arguments, check, each_by_backend, results
from torch import Tensor

import fastrnn
from fastrnn.backends import FusedBackend, Gradients, Needs, Verdict
from fastrnn.problem import LayerGrads, LayerInputs, LayerOutputs, Problem

SERVING = (*BACKENDS, "reference")
ALL_DTYPES = cases.DTYPES + cases.STORAGE_DTYPES

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lengths": {"lengths": "random"},
    "lengths all zero": {"lengths": "zeros"},
    "lengths all full": {"lengths": "full"},
    "reset": {"reset": "random"},
    "reset always": {"reset": "always"},
    "reset never": {"reset": "never"},
    "lengths and reset": {"lengths": "random", "reset": "random"},
    "no states": {"lengths": "random", "reset": "random", "hx": False},
    "no bias": {"lengths": "random", "reset": "random", "bias": False},
    "batch first": {"lengths": "random", "reset": "random", "layout": "batch_first"},
    "unbatched": {"lengths": "random", "reset": "random", "layout": "unbatched"},
    "packed": {"reset": "random", "layout": "packed"},
    "packed unsorted": {"reset": "random", "layout": "packed_unsorted"},
    "layers": {"lengths": "random", "reset": "random", "layers": 3},
    "one step": {"lengths": "random", "reset": "random", "steps": 1},
}
EXTRA: dict[str, dict[str, Any]] = {
    "cell states": {"cell_states": True},
    "projection": {"proj_size": 2},
    "cell states of a projection": {"cell_states": True, "proj_size": 2},
}
LSTM_OPTIONS: dict[str, dict[str, Any]] = {
    f"{name}, {what}": given | more
    for name, given in OPTIONS.items()
    for what, more in EXTRA.items()
}


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN: an element that a backend leaves unwritten is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def options() -> Iterator[Case]:
    for cell, dtype, bidirectional in itertools.product(ALL_CELLS, ALL_DTYPES, (False, True)):
        for given in (OPTIONS | LSTM_OPTIONS if cell == "lstm" else OPTIONS).values():
            yield Case(cell, dtype, bidirectional=bidirectional, **given)


def sizes() -> Iterator[Case]:
    """Masked rows at every width of lanes, blocks and row groups."""
    for cell, dtype in itertools.product(ALL_CELLS, ALL_DTYPES):
        masks: dict[str, Any] = {"lengths": "random", "reset": "random", "bidirectional": True}
        for width in cases.WIDTHS:
            yield Case(cell, dtype, hidden_size=width, **masks)
        for batch in cases.BATCHES:
            yield Case(cell, dtype, batch=batch, hidden_size=17, **masks)
        yield Case(cell, dtype, steps=61, batch=13, hidden_size=33, **masks)


def sampled(count: int) -> Iterator[Case]:
    """Cases drawn from the product of everything."""
    draw = random.Random(2026)
    for _ in range(count):
        cell = draw.choice(ALL_CELLS)
        layout = draw.choice(cases.LAYOUTS)
        hidden_size = draw.choice((*cases.WIDTHS, 24, 48, 96))
        projected = cell == "lstm" and hidden_size > 1 and draw.random() < 0.3
        yield Case(
            cell,
            draw.choice(ALL_DTYPES),
            steps=draw.randint(1, 24),
            batch=draw.randint(1, 40),
            input_size=draw.randint(1, 70),
            hidden_size=hidden_size,
            proj_size=draw.randint(1, hidden_size - 1) if projected else 0,
            layers=draw.choice((1, 1, 2)),
            bidirectional=draw.random() < 0.5,
            bias=draw.random() < 0.7,
            layout=layout,
            hx=draw.random() < 0.7,
            lengths="" if layout.startswith("packed") else draw.choice(("", "random", "full")),
            reset=draw.choice(("", "random", "random", "always", "never")),
            cell_states=cell == "lstm" and draw.random() < 0.5,
        )


def test_memory_is_poisoned() -> None:
    assert bool(torch.empty(1000).isnan().all())
    assert bool(torch.ones(3, dtype=torch.float64).new_empty((7, 5)).isnan().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_that_a_backend_makes_is_poisoned(backend: str) -> None:
    """Nothing is saved of rows beyond the lengths: what is there is what the memory held."""
    a = arguments(Case("lstm", lengths="zeros"))
    inputs = LayerInputs(a.x, a.h0, a.c0, list(a.weights.values()), a.lengths, None, None)
    problem = Problem.of("lstm", inputs, directions=1, keep_cell_states=False, training=True)
    kernels = fastrnn.backends.get(backend)
    assert isinstance(kernels, FusedBackend)
    reserve = kernels.forward(problem, inputs).reserve
    assert reserve is not None
    assert bool(reserve.isnan().all())


@each_by_backend(options())
def test_options(case: Case, backend: str) -> None:
    a = arguments(case)
    check(results(a, backend=backend), cases.reference(a), case)


@each_by_backend(sizes())
def test_sizes(case: Case, backend: str) -> None:
    a = arguments(case)
    check(results(a, backend=backend), cases.reference(a), case)


@pytest.mark.slow
@each_by_backend(sampled(250))
def test_sampled(case: Case, backend: str) -> None:
    a = arguments(case)
    check(results(a, backend=backend), cases.reference(a), case)


@pytest.mark.skipif(not cases.NATIVE, reason="a pure Python install has no compiled targets")
@pytest.mark.parametrize(
    ("dtype", "target"),
    [
        *itertools.product(cases.DTYPES, cases.TARGETS),
        *itertools.product(cases.STORAGE_DTYPES, cases.STORAGE_TARGETS),
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_targets(cell: str, dtype: torch.dtype, target: str) -> None:
    """The kernels of every instruction set that this machine has, at every width."""
    extension = importlib.import_module("fastrnn._C")
    before = extension.active_target()
    assert extension.select_target(target)
    assert extension.active_target() == target
    try:
        for case in sizes():
            if (case.cell, case.dtype) == (cell, dtype):
                a = arguments(case)
                check(results(a, backend="cpu"), cases.reference(a), case)
    finally:
        extension.select_target(before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_partial_gradients(cell: str, backend: str) -> None:
    """Any one gradient alone, with masks: a backward may skip the rest of its work."""
    more: dict[str, Any] = {"proj_size": 3, "cell_states": True} if cell == "lstm" else {}
    case = Case(cell, lengths="random", reset="random", bidirectional=True, **more)
    a = arguments(case)
    expected = cases.reference(a)
    for name in a.differentiable():
        actual = results(a, backend=backend, wanted=[name])
        check(actual, {key: expected[key] for key in actual}, case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("losses", ["output", "h_n", "c_n", "cell_states_l0", "cell_states_l1"])
@pytest.mark.parametrize("layout", ["time_major", "packed_unsorted"])
def test_cell_state_losses(losses: str, layout: str, backend: str) -> None:
    """A loss on the cell states of one layer only reaches everything before it."""
    case = Case("lstm", cell_states=True, layers=2, reset="random", layout=layout)
    a = arguments(case)
    expected = cases.reference(a, losses=[losses])
    check(results(a, backend=backend, losses=[losses]), expected, case)


class Relay(FusedBackend):
    """Forward by one backend, backward by another: the reserve is common to all."""

    name = "relay"

    def __init__(self, first: FusedBackend, second: FusedBackend) -> None:
        self.first, self.second = first, second

    def available(self) -> Verdict:
        return Verdict(True, "for a test")

    def supports(self, problem: Problem) -> Verdict:
        return Verdict(True, "for a test")

    def forward(self, problem: Problem, inputs: LayerInputs) -> LayerOutputs:
        return self.first.forward(problem, inputs)

    def backward(
        self,
        problem: Problem,
        inputs: LayerInputs,
        cell_states: Tensor | None,
        reserve: Tensor,
        grads: Gradients,
        needs: Needs,
        *,
        donated: bool = False,
    ) -> LayerGrads:
        """As the second does, the same with a donated reserve, else nothing given has changed."""
        given = (cell_states, reserve, *inputs, *inputs.weights, *grads)
        tensors = [tensor for tensor in given if isinstance(tensor, Tensor)]
        before = [tensor.clone() for tensor in tensors]
        arguments = (problem, inputs, cell_states, reserve, grads, needs)
        result = self.second.backward(*arguments)
        for old, new in zip(before, tensors, strict=True):
            assert torch.equal(old.nan_to_num(), new.nan_to_num())
            assert torch.equal(old.isnan(), new.isnan())
        again = self.second.backward(*arguments, donated=True)
        for one, other in zip(_flat(result), _flat(again), strict=True):
            assert (one is None) == (other is None)
            assert one is None or other is None or torch.equal(one, other)
        return result


def _flat(grads: LayerGrads) -> list[Tensor | None]:
    return [grads.x, grads.h0, grads.c0, *grads.weights]


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.product(BACKENDS, repeat=2)), ids=lambda name: name
)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_backward_of_another_backend(
    cell: str, dtype: torch.dtype, first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins, ends = fastrnn.backends.get(first), fastrnn.backends.get(second)
    assert isinstance(begins, FusedBackend)
    assert isinstance(ends, FusedBackend)
    registry = fastrnn.backends.backends() | {"relay": Relay(begins, ends)}
    monkeypatch.setattr(fastrnn.backends, "_registry", registry)
    for given in (OPTIONS | LSTM_OPTIONS if cell == "lstm" else OPTIONS).values():
        case = Case(cell, dtype, bidirectional=True, hidden_size=9, **given)
        a = arguments(case)
        check(results(a, backend="relay"), cases.reference(a), case)


# What must not spread.


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_gradient_beyond_the_end_is_ignored(cell: str, backend: str) -> None:
    """Outputs beyond a length are the constant 0: nothing flows from them, NaN neither."""
    more: dict[str, Any] = {"cell_states": True} if cell == "lstm" else {}
    case = Case(cell, lengths="random", bidirectional=True, **more)
    a = arguments(case)
    assert a.lengths is not None
    beyond = torch.arange(case.steps)[:, None] >= a.lengths

    def poisoned(outputs: Outputs, case: Case) -> Outputs:
        grads = cases.upstream(outputs, case)
        return {
            name: grad
            if name in ("h_n", "c_n")
            else torch.where(beyond[:, :, None], math.nan, grad)
            for name, grad in grads.items()
        }

    actual = results(a, backend=backend, grads=poisoned)
    check(actual, cases.reference(a), case)
    assert not actual["output"][beyond].any()
    assert not actual["grad x"][beyond].any()


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_nan_stays_in_its_row(cell: str, dtype: torch.dtype, backend: str) -> None:
    """Also on the way back; only gradients of weights are sums over rows."""
    case = Case(cell, dtype, batch=9, hidden_size=17, bidirectional=True, reset="random")
    a = arguments(case)
    clean = results(a, backend=backend)
    x = a.x.clone()
    x[2, 4, :] = math.nan
    dirty = results(a.with_tensors(a.differentiable() | {"x": x}), backend=backend)
    others = torch.arange(case.batch) != 4
    rows = [name for name in clean if not name.startswith(("grad weight", "grad bias"))]
    check(
        {name: dirty[name][:, others] for name in rows},
        {name: clean[name][:, others] for name in rows},
        case,
    )
    assert bool(dirty["output"][:, 4].isnan().any())
    assert bool(dirty["grad weight_ih_l0"].isnan().any())


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_reset_drops_nan(cell: str, backend: str) -> None:
    """A reset state is zero whatever it was: an episode ends even when it ended badly."""
    case = Case(cell, hidden_size=17, batch=4)
    a = arguments(case)
    reset = torch.zeros(case.steps, case.batch, dtype=torch.bool)
    reset[0] = reset[3] = True
    states = {
        name: torch.full_like(tensor, math.nan)
        for name, tensor in a.differentiable().items()
        if name in ("h0", "c0")
    }
    x = a.x.clone()
    x[1, 2] = math.nan
    bad = replace(a.with_tensors(a.differentiable() | states | {"x": x}), reset=reset)
    good = replace(a.with_tensors(a.differentiable() | {"x": a.x}), reset=reset)
    actual = results(bad, backend=backend, wanted=())
    expected = results(good, backend="reference", wanted=())
    finite = actual["output"].isfinite()
    assert bool(finite[0].all())
    assert bool(finite[3:].all())
    assert not bool(finite[1:3, 2].any())
    for result in (actual, expected):
        result["output"] = result["output"].nan_to_num()[3:]
    check(actual, expected, case)


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_rows_without_steps(cell: str, backend: str) -> None:
    """A row of length 0 hands its initial state through, gradient included."""
    case = Case(cell, lengths="zeros", bidirectional=True, hidden_size=9)
    a = arguments(case)
    actual = results(a, backend=backend)
    assert not actual["output"].any()
    for state, initial in {"h_n": a.h0, "c_n": a.c0}.items():
        if initial is not None:
            assert torch.equal(actual[state], initial)
            grad = cases.upstream({state: initial}, case)[state]
            assert torch.equal(actual[f"grad {state[0]}0"], grad)
    assert all(not actual[f"grad {name}"].any() for name in ("x", *a.weights))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given", [{"lengths": "random"}, {"layout": "unbatched"}], ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_without_gradients(cell: str, given: dict[str, Any], backend: str) -> None:
    """Forward that keeps nothing for backward gives the same numbers, to the bit."""
    more: dict[str, Any] = {"cell_states": True, "proj_size": 3} if cell == "lstm" else {}
    case = Case(cell, torch.float32, bidirectional=True, layers=2, **given, **more)
    a = arguments(case)
    kept = results(a, backend=backend)
    with fastrnn.use_backend(backend):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                outputs = cases.fastrnn_forward(a)
            for name, output in outputs.items():
                assert torch.equal(output, kept[name])
                assert not output.requires_grad
                assert output.is_inference() == (mode is torch.inference_mode)
