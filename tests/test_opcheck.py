"""torch.library.opcheck on both operators: schema, autograd, fake tensors, AOT with open sizes.

It checks that an operator is what it says to a compiler; the numbers are the other tests'. Inputs
are contiguous, and permuted so that no dimension of any tensor is where memory has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from cases import ALL_CELLS, DTYPES, STORAGE_DTYPES, Arguments, Case
from torch import Tensor
from torch.library import opcheck

from fastrnn import ops
from fastrnn.cells import CELLS

CASES = [
    Case("lstm", hx=False, bias=False),
    Case("lstm", bidirectional=True, lengths="random", reset="random"),
    Case("lstm", layout="packed", reset="random"),
    Case("gru", layout="packed", hx=False, bidirectional=True),
    Case("lstm", cell_states=True),
    Case("lstm", proj_size=2, bidirectional=True),
    *(Case(cell) for cell in ALL_CELLS),
    *(Case(cell, lengths="random") for cell in ALL_CELLS),
    *(Case("lstm", dtype=dtype) for dtype in DTYPES + STORAGE_DTYPES),
]


def contiguous(tensor: Tensor) -> Tensor:
    return tensor.contiguous()


def permuted(tensor: Tensor) -> Tensor:
    """The same values, with the last dimension outermost in memory."""
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.repeat(2, 1).T[:, 0]


def ways(test: Any) -> Any:
    """Parametrized by the layout of the inputs and whether forward keeps what backward wants."""
    test = pytest.mark.parametrize("relayout", [contiguous, permuted])(test)
    return pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])(test)


def inputs(
    a: Arguments, relayout: Callable[[Tensor], Tensor], *, grad: bool | None = None
) -> tuple[Any, ...]:
    """The operators' arguments from the cell to the directions; leaves where ``grad`` is given."""

    def leaf(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        tensor = relayout(tensor.nan_to_num())
        return tensor if grad is None else tensor.detach().requires_grad_(grad)

    weights = [leaf(weight) for weight in a.weights.values()]
    batch_sizes = None if a.packing is None else a.packing.batch_sizes
    masks = (a.lengths, batch_sizes, None if a.reset is None else relayout(a.reset))
    case = a.case
    return (case.cell, leaf(a.x), leaf(a.h0), leaf(a.c0), weights, *masks, case.directions)


def succeeds(operator: Any, arguments: tuple[Any, ...]) -> None:
    outcome = opcheck(operator, arguments)
    assert set(outcome.values()) == {"SUCCESS"}, outcome


@ways
@cases.each(CASES)
def test_layer_forward(case: Case, relayout: Callable[[Tensor], Tensor], training: bool) -> None:
    arguments = inputs(cases.arguments(case), relayout, grad=True)
    succeeds(ops.layer_forward, (*arguments, case.cell_states, training))


@ways
@cases.each(CASES)
def test_layer_backward(case: Case, relayout: Callable[[Tensor], Tensor], training: bool) -> None:
    """With what forward kept, and without: it then runs forward itself."""
    arguments = (*inputs(cases.arguments(case), relayout, grad=False), case.cell_states)
    y, h_n, c_n, cell_states, reserve = ops.layer_forward(*arguments, training)
    has_c = CELLS[case.cell].has_cell_state
    kept = (cell_states if has_c else None, reserve) if training else (None, None)
    above = [
        relayout(torch.randn_like(y)),
        relayout(torch.randn_like(h_n)),
        relayout(torch.randn_like(c_n)) if has_c else None,
        relayout(torch.randn_like(cell_states)) if case.cell_states else None,
    ]
    weights = arguments[4]
    needs = [True, case.hx, has_c and case.hx, *[True] * len(weights)]
    if training:
        needs = [index % 2 == 0 for index in range(len(needs))]
    succeeds(ops.layer_backward, (*arguments, *kept, *above, needs))


TINY: dict[str, Any] = {"steps": 2, "batch": 2, "input_size": 1, "hidden_size": 2}


@pytest.mark.parametrize("training", [False, True])
@cases.each([Case("gru", reset="random", **TINY), Case("lstm", cell_states=True, **TINY)])
def test_gradients_of_the_operator(case: Case, training: bool) -> None:
    """By itself it is differentiable, twice too: as it stands in exported programs."""
    a = cases.arguments(case)
    names = list(a.differentiable())

    def outputs(*tensors: Tensor) -> list[Tensor]:
        called = a.with_tensors(dict(zip(names, tensors, strict=True)))
        arguments = inputs(called, lambda tensor: tensor)
        found = ops.layer_forward(*arguments, case.cell_states, training)
        return [output for output in found[:4] if output.numel()]

    leaves = [tensor.requires_grad_() for tensor in a.differentiable().values()]
    assert torch.autograd.gradcheck(outputs, leaves)
    assert torch.autograd.gradgradcheck(outputs, leaves)


def test_backward_has_no_gradient_of_its_own() -> None:
    case = Case("gru")
    arguments = (*inputs(cases.arguments(case), contiguous, grad=True), False)
    y, h_n, *_ = ops.layer_forward(*arguments, False)
    grads = ops.layer_backward(*arguments, None, None, y, h_n, None, None, [True] * 7)
    with pytest.raises(RuntimeError, match="expected to be called without gradients"):
        grads[0].sum().backward()
