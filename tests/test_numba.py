"""The numba backend by itself: its elementary functions, its product, and when it serves.

Each of its cells and options is compared with the oracle in ``test_oracles.py``; here is what that
does not reach.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import cases
import numba
import numpy as np
import pytest
import torch
from cases import ALL_CELLS, Case, arguments, check, results
from torch import Tensor

import fastrnn
from fastrnn.backends import FusedBackend, Gradients, Needs
from fastrnn.backends import _numba_kernels as kernels
from fastrnn.backends import numba as backend
from fastrnn.problem import LayerInputs, Problem

Options = dict[str, Any]
FLOATS = (np.float32, np.float64)


@pytest.fixture
def _poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN: an element that is left unwritten is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def serve() -> FusedBackend:
    served = fastrnn.backends.get("numba")
    assert isinstance(served, FusedBackend)
    return served


# The pieces.


def of_each(function: Callable[..., Any], values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A compiled scalar function of every element."""

    @numba.njit(error_model="numpy")  # type: ignore[untyped-decorator, unused-ignore]
    def over(values: Any, out: Any) -> None:
        for i in range(values.size):
            out[i] = function(values[i])

    out = np.empty_like(values)
    over(values, out)
    return out


@pytest.mark.parametrize("dtype", FLOATS)
def test_elementary_functions(dtype: type[np.floating[Any]]) -> None:
    """Within 3 units in the last place, from tiny arguments to where exp leaves the range."""
    rng = np.random.default_rng(0)
    values = rng.choice([-1.0, 1.0], 20_000) * 10 ** rng.uniform(-30, 3, 20_000)
    values = np.concatenate([values, rng.normal(0, 3, 20_000)]).astype(dtype)
    values = values[np.abs(values) < -np.log(np.finfo(dtype).tiny)]
    exact = values.astype(np.longdouble)
    for function, expected in (
        (kernels.tanh, np.tanh(exact)),
        (kernels.sigmoid, 1 / (1 + np.exp(-exact))),
    ):
        unit = np.spacing(np.abs(expected.astype(dtype)))
        assert np.max(np.abs(of_each(function, values) - expected) / unit) < 3


@pytest.mark.parametrize("dtype", FLOATS)
def test_elementary_functions_at_their_ends(dtype: type[np.floating[Any]]) -> None:
    ends = np.array([-math.inf, -1000, -0.0, 0, 1000, math.inf, math.nan], dtype)
    tanh, sigmoid = of_each(kernels.tanh, ends), of_each(kernels.sigmoid, ends)
    np.testing.assert_array_equal(tanh, np.array([-1, -1, -0.0, 0, 1, 1, math.nan], dtype))
    assert list(np.signbit(tanh[2:4])) == [True, False]
    np.testing.assert_array_equal(sigmoid, np.array([0, 0, 0.5, 0.5, 1, 1, math.nan], dtype))


@pytest.mark.parametrize("width", [1, 7, kernels.TILE - 1, kernels.TILE, 2 * kernels.TILE + 3])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 8])
def test_product(count: int, width: int) -> None:
    """Integers, so exact; rows that are not live are neither read nor written."""
    rng = np.random.default_rng(0)
    a, w, out = (
        rng.integers(-9, 10, shape).astype(np.float64)
        for shape in ((5, count), (count, width), (6, width))
    )
    live = np.array([True, False, True, True, True, False])
    a[1] = math.nan
    expected = np.where(live[:, None], out, np.inf)
    expected[live] += a[live[:5]] @ w
    out[~live] = np.inf
    kernels.add_product(out, a, w, live)
    np.testing.assert_array_equal(out, expected)
    kernels.set_product(out, a, w, live)
    np.testing.assert_array_equal(out[live], a[live[:5]] @ w)
    assert np.isinf(out[~live]).all()


def test_kernels_without_a_place_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def refusing(**options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(kernels, "njit", refusing)
    assert kernels.kernel(lambda a: a + 1)(2) == 3


# Whole layers.


@pytest.mark.usefixtures("_poisoned_memory")
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_wider_than_a_tile(cell: str, dtype: torch.dtype) -> None:
    more: Options = {"proj_size": 7, "cell_states": True} if cell == "lstm" else {}
    units = kernels.TILE // fastrnn.cells.CELLS[cell].gates + 3
    masks: Options = {"lengths": "random", "reset": "random", "bidirectional": True}
    case = Case(cell, dtype, hidden_size=units, **masks, **more)
    a = arguments(case)
    check(results(a, backend="numba"), cases.reference(a), case)


@pytest.mark.usefixtures("_poisoned_memory")
@pytest.mark.parametrize("relayout", [
    pytest.param(lambda tensor: torch.stack((tensor, tensor), -1)[..., 0], id="strided"),
    pytest.param(lambda tensor: tensor[:1].expand_as(tensor), id="expanded"),
    pytest.param(lambda tensor: torch._neg_view(-tensor), id="negative bit"),
])  # fmt: skip
@pytest.mark.parametrize("layout", ["time_major", "packed"])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_memory_layouts(cell: str, layout: str, relayout: Callable[[Tensor], Tensor]) -> None:
    proj_size = 2 if cell == "lstm" else 0
    case = Case(cell, layout=layout, bidirectional=True, reset="random", proj_size=proj_size)
    a = arguments(case)
    actual = results(a, backend="numba", relayout=relayout)
    check(actual, cases.reference(a, relayout=relayout), case)


@pytest.mark.usefixtures("_poisoned_memory")
@pytest.mark.parametrize("lengths", ["", "full"])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_no_rows(cell: str, lengths: str) -> None:
    """An empty batch has empty outputs, and weights that it does not depend on."""
    more: Options = {"cell_states": True, "proj_size": 2} if cell == "lstm" else {}
    case = Case(cell, batch=0, bidirectional=True, lengths=lengths, **more)
    a = arguments(case)
    actual = results(a, backend="numba")
    assert actual["output"].shape == (case.steps, 0, 2 * case.output_size)
    assert {name: tensor.shape for name, tensor in actual.items()} == {
        name: tensor.shape for name, tensor in cases.reference(a).items()
    }
    assert all(not actual[f"grad {name}"].any() for name in a.weights)


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_gradients_that_are_not_needed(cell: str) -> None:
    """They are None; those that are have memory of their own, the two biases of a cell too."""
    case = Case(cell, bidirectional=True)
    a = arguments(case)
    inputs = LayerInputs(a.x, a.h0, a.c0, list(a.weights.values()), None, None, None)
    problem = Problem.of(cell, inputs, directions=2, keep_cell_states=False, training=True)
    outputs = serve().forward(problem, inputs)
    assert outputs.reserve is not None
    cell_states, reserve = outputs.cell_states, outputs.reserve
    upstream = Gradients(
        torch.ones_like(outputs.y),
        torch.ones_like(outputs.h_n),
        None if outputs.c_n is None else torch.ones_like(outputs.c_n),
        None,
    )

    def backward(wanted: list[bool]) -> list[Tensor | None]:
        needs = Needs(wanted[0], wanted[1], wanted[2], wanted[3:])
        grads = serve().backward(problem, inputs, cell_states, reserve, upstream, needs)
        return [grads.x, grads.h0, grads.c0, *grads.weights]

    wanted = [True, True, cell == "lstm", *(True for _ in a.weights)]
    everything = backward(wanted)
    given = [grad for grad in everything if grad is not None]
    assert len(given) == sum(wanted)
    assert len({grad.untyped_storage().data_ptr() for grad in given}) == len(given)
    for chosen, expected in enumerate(everything):
        only = [index == chosen and need for index, need in enumerate(wanted)]
        for index, grad in enumerate(backward(only)):
            if index == chosen and expected is not None:
                assert grad is not None
                assert torch.equal(grad, expected)
            else:
                assert grad is None


def test_one_compilation_for_each_dtype() -> None:
    """Whatever the options, the kernels see arrays of the same types: compiling takes seconds."""
    calls: tuple[Options, ...] = (
        {"batch": 1, "steps": 1, "input_size": 1},
        {"bidirectional": True, "lengths": "random", "reset": "random"},
        {"bias": False, "hx": False, "layout": "packed_unsorted", "hidden_size": 2},
    )
    for dtype, cell, options in itertools.product(cases.DTYPES, ALL_CELLS, calls):
        for proj_size in (0, 1) if cell == "lstm" else (0,):
            a = arguments(Case(cell, dtype, proj_size=proj_size, **options))
            results(a, backend="numba")
            results(a, backend="numba", wanted=())
    compiled = {
        name: len(function.signatures)
        for name, function in vars(kernels).items()
        if name.endswith(("_forward", "_backward", "entering"))
    }
    assert compiled == dict.fromkeys(compiled, len(cases.DTYPES))
    assert len(compiled) == 10


# When it serves.


def test_refusals() -> None:
    x = torch.zeros(2, 1, 3, dtype=torch.bfloat16)
    weights = [torch.zeros(4, 3, dtype=torch.bfloat16), torch.zeros(4, 4, dtype=torch.bfloat16)]
    with (
        fastrnn.use_backend("numba"),
        pytest.raises(RuntimeError, match="serves float32 and float64, not bfloat16"),
    ):
        fastrnn.functional.rnn(x, weights)
    inputs = LayerInputs(
        x.to("meta"), None, None, [w.to("meta") for w in weights], None, None, None
    )
    problem = Problem.of("rnn_tanh", inputs, directions=1, keep_cell_states=False, training=False)
    assert serve().supports(problem) == (False, "serves the CPU, not meta")


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve().available() == (True, f"numba {numba.__version__}")
    monkeypatch.setitem(sys.modules, "numba", None)
    reason = "numba is not installed: pip install numba"
    assert serve().available() == (False, reason)
    with (
        pytest.raises(RuntimeError, match=r"numba.*not available.*pip install"),
        fastrnn.use_backend("numba"),
    ):
        pass


def test_with_a_numba_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> ModuleType:
        raise ImportError("Numba needs NumPy 2.3 or less")

    monkeypatch.setattr(importlib, "import_module", refuse)
    verdict = serve().available()
    assert verdict == (False, "numba cannot be imported: Numba needs NumPy 2.3 or less")


@pytest.mark.parametrize("extension", [None, ModuleType("fastrnn._C")], ids=["missing", "present"])
def test_says_once_that_the_extension_is_missing(
    extension: ModuleType | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "fastrnn._C", extension)
    backend._say_once_that_extension_is_missing.cache_clear()
    with caplog.at_level(logging.INFO, logger="fastrnn"):
        for cell in ("lstm", "gru", "lstm"):
            results(arguments(Case(cell)), backend="numba")
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (extension is None)
    for record in warnings:
        assert "CPU calls are served by numba" in record.getMessage()
        assert "fastrnn._C" in record.getMessage()
