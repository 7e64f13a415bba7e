"""Tests can fail: deliberate faults exceed the tolerances, small and at the largest sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from cases import Arguments, Case, Outputs, arguments, errors, results
from tolerances import error_in_tolerances
from torch import Tensor

from fastrnn.cells import CELLS

SIZES: dict[str, dict[str, Any]] = {
    "small": {},
    "wide": {"hidden_size": 129, "input_size": 127},
    "long": {"steps": 61, "batch": 9},
    "many rows": {"steps": 9, "batch": 129},
}

#: Every cell at the small size; at the others, where the tolerance is widest, one of each kind.
PLACES = [
    (cell, size)
    for size in SIZES
    for cell in (cases.ALL_CELLS if size == "small" else ("rnn_tanh", "lstm"))
]


def changed(a: Arguments, name: str, change: Callable[[Tensor], Tensor]) -> Arguments:
    """The call with one tensor changed."""
    tensors = a.differentiable()
    return a.with_tensors(tensors | {name: change(tensors[name])})


def shifted(a: Arguments, field: str) -> Arguments:
    """The call with resets one step late, or all lengths one short."""
    if field == "reset":
        assert a.reset is not None
        return replace(a, reset=a.reset.roll(1, 0))
    assert a.lengths is not None
    return replace(a, lengths=(a.lengths - 1).clamp(min=0))


def less_precise(a: Arguments) -> Arguments:
    """Operands rounded as a kernel of lower precision would: tf32 for float32."""

    def tf32(tensor: Tensor) -> Tensor:
        bits = tensor.view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)

    return a.map(tf32 if a.case.dtype == torch.float32 else lambda t: t.float().double())


FAULTS: dict[str, Callable[[Arguments], Arguments]] = {
    "bias dropped": lambda a: changed(a, "bias_hh_l0", torch.zeros_like),
    "bias of one unit dropped": lambda a: changed(
        a, "bias_ih_l0", lambda bias: torch.cat((bias[:-1], bias.new_zeros(1)))
    ),
    "units shifted by one": lambda a: changed(a, "weight_hh_l0", lambda w: w.roll(1, 1)),
    "last input feature unread": lambda a: changed(
        a, "x", lambda x: torch.cat((x[..., :-1], torch.zeros_like(x[..., -1:])), -1)
    ),
    "initial state ignored": lambda a: changed(a, "h0", torch.zeros_like),
    "reset one step late": lambda a: shifted(a, "reset"),
    "lengths one short": lambda a: shifted(a, "lengths"),
    "operands less precise": less_precise,
}


def faulty_arguments(cell: str, dtype: torch.dtype, size: str, fault: str) -> Arguments:
    case = Case(
        cell,
        dtype,
        bidirectional=True,
        lengths="random" if "lengths" in fault else "",
        reset="random" if "reset" in fault else "",
        **SIZES[size],
    )
    return arguments(case)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize(("cell", "size"), PLACES)
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_exceeds_tolerance(cell: str, fault: str, size: str, dtype: torch.dtype) -> None:
    a = faulty_arguments(cell, dtype, size, fault)
    right = results(a, backend="reference")
    wrong = results(FAULTS[fault](a), backend="reference")
    found = errors(wrong, right, a.case)
    assert found["output"] > 10
    assert max(found[f"grad {name}"] for name in a.weights) > 10


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_swapped_gates_exceed_tolerance(cell: str, dtype: torch.dtype) -> None:
    """Gates in another order: those of Keras, or of ONNX, instead of torch's."""

    def swap(weight: Tensor) -> Tensor:
        first, second, *others = weight.chunk(CELLS[cell].gates)
        return torch.cat((second, first, *others))

    a = faulty_arguments(cell, dtype, "wide", "")
    wrong = a.with_tensors(
        a.differentiable() | {name: swap(weight) for name, weight in a.weights.items()}
    )
    right = results(a, backend="reference")
    assert errors(results(wrong, backend="reference"), right, a.case)["output"] > 10


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize(("cell", "size"), PLACES)
def test_wrong_gradients_exceed_tolerance(cell: str, size: str, dtype: torch.dtype) -> None:
    """Backward passes that forget one thing."""
    a = faulty_arguments(cell, dtype, size, "")
    right = results(a, backend="reference")

    def last_row_lost(outputs: Outputs, case: Case) -> Outputs:
        grads = cases.upstream(outputs, case)
        return grads | {"output": grads["output"].index_fill(1, torch.tensor([-1]), 0.0)}

    def last_step_lost(outputs: Outputs, case: Case) -> Outputs:
        grads = cases.upstream(outputs, case)
        return grads | {"output": grads["output"].index_fill(0, torch.tensor([-1]), 0.0)}

    for wrong in (
        results(a, backend="reference", losses=["output"]),
        results(a, backend="reference", grads=last_row_lost),
        results(a, backend="reference", grads=last_step_lost),
    ):
        found = errors(wrong, right, a.case)
        assert found["output"] == 0
        for name in a.weights:
            assert found[f"grad {name}"] > 10
        assert found["grad x"] > 10


def test_error_in_tolerances() -> None:
    one = torch.ones(3)
    assert error_in_tolerances(one, one, rtol=0, atol=0.5) == 0
    assert error_in_tolerances(one + 1, one, rtol=0, atol=0.5) == 2
    assert error_in_tolerances(one + 1, one, rtol=0.5, atol=0) == 2
    assert error_in_tolerances(one[:0], one[:0], rtol=0, atol=0) == 0
    for value in (math.nan, math.inf, -math.inf):
        other = torch.tensor([1, value, 1])
        assert error_in_tolerances(other, other, rtol=0, atol=0.5) == 0
        assert error_in_tolerances(other, one, rtol=0, atol=0.5) == math.inf
        assert error_in_tolerances(one, other, rtol=1, atol=0.5) == math.inf
    with pytest.raises(AssertionError, match=r"shape \(3,\), expected \(1, 3\)"):
        error_in_tolerances(one, one[None], rtol=0, atol=0)
