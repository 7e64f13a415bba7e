"""Gradients of weights and input: products over all rows of a call (``csrc/cpu/products.h``).

At the limits of the blocks in which the kernels go through rows, gate columns and units, wherever
the input lies in memory, and for every choice of the gradients that are wanted. What is compared
with is the reference in float64.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from cases import Case, Outputs, arguments, check, each
from torch import Tensor

import fastrnn

pytestmark = pytest.mark.skipif(not cases.NATIVE, reason="products of the compiled kernels")

SOURCE = Path(__file__).resolve().parent.parent / "csrc" / "cpu" / "products.h"
#: Rows in a block of da's columns, sums in one go, and rows that pay for packed panels.
COLUMNS, DEPTH, PACKED = (
    int(re.findall(rf"constexpr int64_t {name} = (\d+);", SOURCE.read_text())[0])
    for name in ("kBlockRows", "kBlockDepth", "kPackedRows")
)

#: Cells whose gradients lie differently: one gate, four, a candidate with two slots, two stages.
CELLS = ("rnn_tanh", "lstm", "gru", "gru_reset_before")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN: an element of a gradient that nobody writes is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def gradients(
    case: Case,
    backend: str,
    *,
    threads: int = 1,
    dtype: torch.dtype | None = None,
    change: Callable[[Tensor], Tensor] = lambda x: x,
) -> Outputs:
    """All results of a case, its input laid out anew by ``change`` (differentiably)."""
    a = arguments(case)
    leaves = {
        name: tensor.to(dtype or case.dtype, copy=True).requires_grad_()
        for name, tensor in a.differentiable().items()
    }
    with fastrnn.use_backend(backend), cases.threads(threads):
        outputs = cases.fastrnn_forward(a.with_tensors(leaves | {"x": change(leaves["x"])}))
        above = list(cases.upstream(outputs, case).values())
        found = torch.autograd.grad(list(outputs.values()), list(leaves.values()), above)
    named = {f"grad {name}": grad for name, grad in zip(leaves, found, strict=True)}
    return {name: output.detach() for name, output in outputs.items()} | named


def assert_right(case: Case, **options: Any) -> None:
    """On one thread as the reference has it, on three the same to the bit."""
    actual = gradients(case, "cpu", **options)
    check(actual, gradients(case, "reference", dtype=torch.float64, **options), case)
    for name, other in gradients(case, "cpu", threads=3, **options).items():
        assert torch.equal(other, actual[name]), name


# Sizes.


def steps_and_rows(total: int) -> tuple[int, int]:
    """T and B of so many rows, few steps: the reference takes its time for each."""
    steps = next(t for t in (3, 2, 1) if total % t == 0)
    return steps, total // steps


def blocks() -> Iterator[Case]:
    """One below, at and above the blocks: of rows, of gate columns, of the depth for x."""
    around = (-1, 0, 1, 16)
    for cell, dtype in itertools.product(CELLS, cases.DTYPES):
        gates = fastrnn.cells.CELLS[cell].gates
        for most, more in itertools.product((COLUMNS, DEPTH, 2 * DEPTH), around):
            steps, rows = steps_and_rows(most + more)
            yield Case(cell, dtype, steps=steps, batch=rows)
        for most in (COLUMNS, DEPTH):
            for more in (0, 1, 17):
                units = -(-(most + more) // gates)
                yield Case(cell, dtype, steps=2, batch=5, input_size=17, hidden_size=units)
        for rows in (1, PACKED - 1, PACKED, PACKED + 1):
            yield Case(cell, dtype, steps=1, batch=rows, input_size=65, hidden_size=33)


@each(blocks())
def test_blocks(case: Case) -> None:
    assert_right(case)


WIDTHS = (1, 15, 16, 17, 63, 64, 65, 130)


def widths() -> Iterator[Case]:
    """Every pair of widths of input and units around those of registers and panels."""
    for cell, (features, units) in itertools.product(CELLS, itertools.product(WIDTHS, repeat=2)):
        few = {"input_size": features, "hidden_size": units}
        both = (features + units) % 2 == 0
        yield Case(cell, torch.float32, steps=2, batch=13, bidirectional=both, **few)
        if features == units or 17 in (features, units):
            yield Case(cell, torch.float64, steps=2, batch=13, bidirectional=not both, **few)
            yield Case(cell, torch.float32, steps=2, batch=3, lengths="random", **few)
    for dtype, units in itertools.product(cases.DTYPES, WIDTHS[1:]):
        for width in sorted({1, units // 2, units - 1}):
            size = {"input_size": units, "hidden_size": units, "proj_size": width}
            yield Case("lstm", dtype, steps=2, batch=13, bidirectional=True, **size)


@each(widths())
def test_widths(case: Case) -> None:
    assert_right(case)


# The input.


def every_other(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, torch.nan)], 1).flatten(0, 1)[::2]


def padded_rows(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (3, 2), value=torch.nan)[..., 3:-2]


def rows_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def features_apart(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def same_step(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def same_row(x: Tensor) -> Tensor:
    return x[:, :1].expand(x.shape)


def same_feature(x: Tensor) -> Tensor:
    return x[..., :1].expand(x.shape)


LAYOUTS = (every_other, padded_rows, rows_first, features_apart, same_step, same_row, same_feature)


@pytest.mark.parametrize("change", LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_input_wherever_it_lies(cell: str, dtype: torch.dtype, change: Any) -> None:
    for options in ({}, {"lengths": "random"}, {"bidirectional": True}, {"batch": 1}):
        size = {"steps": 5, "batch": 11, "input_size": 18, "hidden_size": 17} | options
        case = Case(cell, dtype, **size)  # type: ignore[arg-type]
        assert_right(case, change=change)


@pytest.mark.parametrize("options", [{}, {"proj_size": 7}], ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_layouts(cell: str, dtype: torch.dtype, layout: str, options: dict[str, int]) -> None:
    """With lengths, the padding of x is NaN (``cases.arguments``)."""
    if options and cell != "lstm":
        return
    size = {"steps": 9, "batch": 19, "input_size": 18, "hidden_size": 17} | options
    for more in ({}, {"lengths": "random"}, {"lengths": "zeros"}, {"reset": "random"}):
        if "lengths" in more and layout.startswith("packed"):
            continue
        case = Case(cell, dtype, layout=layout, bidirectional=True, **size, **more)  # type: ignore[arg-type]
        assert_right(case)


# Only some gradients are wanted.


@pytest.mark.parametrize("options", [{}, {"lengths": "random"}, {"layout": "packed"}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_every_choice_of_gradients(cell: str, options: dict[str, str]) -> None:
    """Each is the same to the bit, whatever else is asked for; the other direction's complement."""
    size = {"steps": 4, "batch": 7, "input_size": 17, "hidden_size": 18}
    size |= {"proj_size": 5} if cell == "lstm" else {}
    case = Case(cell, torch.float32, bidirectional=True, **size, **options)  # type: ignore[arg-type]
    a = arguments(case)
    everything = cases.results(a, backend="cpu")
    check(everything, cases.reference(a), case)
    forward = [name for name in a.weights if not name.endswith("_reverse")]
    for chosen in itertools.product((False, True), repeat=len(forward) + 1):
        wanted = {"x"} if chosen[0] else set()
        for name, one in zip(forward, chosen[1:], strict=True):
            wanted.add(name if one else f"{name}_reverse")
        found = cases.results(a, backend="cpu", wanted=wanted)
        assert {name for name in found if name.startswith("grad")} == {f"grad {w}" for w in wanted}
        for name, actual in found.items():
            assert torch.equal(actual, everything[name]), (name, wanted)


@pytest.mark.parametrize("cell", CELLS)
def test_one_gradient_alone(cell: str) -> None:
    size = {"steps": 4, "batch": 7, "input_size": 17, "hidden_size": 18}
    size |= {"proj_size": 5} if cell == "lstm" else {}
    for bidirectional in (False, True):
        a = arguments(Case(cell, torch.float64, bidirectional=bidirectional, **size))  # type: ignore[arg-type]
        everything = cases.results(a, backend="cpu")
        for name in a.differentiable():
            found = cases.results(a, backend="cpu", wanted={name})
            assert torch.equal(found[f"grad {name}"], everything[f"grad {name}"])
