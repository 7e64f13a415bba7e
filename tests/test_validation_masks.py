"""Errors of lengths, resets and packed sequences; the rest is in ``test_validation.py``."""

from __future__ import annotations

import math
from typing import Any

import cases
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence
from validation import B, H, I, T, Wrong, call, packed, text, weights, zeros

CALLS: dict[str, Wrong] = {
    # lengths
    "lengths too long": (
        {"lengths": torch.tensor([1, T + 1, 2])},
        ValueError,
        f"lengths: expected values from 0 to {T}, the number of steps of the input, got {T + 1}",
    ),
    "lengths negative": (
        {"lengths": torch.tensor([1, -1, 2])},
        ValueError,
        f"lengths: expected values from 0 to {T}, the number of steps of the input, got -1",
    ),
    "lengths enormous": (
        {"lengths": torch.tensor([1, 2**62, 2])},
        ValueError,
        f"lengths: expected values from 0 to {T}, the number of steps of the input, got {2**62}",
    ),
    "lengths list too long": (
        {"lengths": [1, T + 1, 2]},
        ValueError,
        f"lengths: expected values from 0 to {T}, the number of steps of the input, got {T + 1}",
    ),
    "lengths float": (
        {"lengths": torch.ones(B)},
        TypeError,
        "lengths: expected integers, got torch.float32",
    ),
    "lengths list of float": (
        {"lengths": [1.0, 2.0, 3.0]},
        TypeError,
        "lengths: expected integers, got torch.float32",
    ),
    "lengths boolean": (
        {"lengths": torch.ones(B, dtype=torch.bool)},
        TypeError,
        "lengths: expected integers, got torch.bool",
    ),
    "lengths complex": (
        {"lengths": torch.ones(B, dtype=torch.complex64)},
        TypeError,
        "lengths: expected integers, got torch.complex64",
    ),
    "lengths of text": ({"lengths": "123"}, TypeError, "lengths: expected integers, got ..."),
    "lengths too few": (
        {"lengths": torch.ones(B - 1, dtype=torch.int64)},
        RuntimeError,
        f"lengths: expected shape ({B},), one length for each row, got ({B - 1},)",
    ),
    "lengths 2-D": (
        {"lengths": torch.ones(1, B, dtype=torch.int64)},
        RuntimeError,
        f"lengths: expected shape ({B},), one length for each row, got (1, {B})",
    ),
    "lengths a number": (
        {"lengths": torch.tensor(2)},
        RuntimeError,
        f"lengths: expected shape ({B},), one length for each row, got ()",
    ),
    "lengths beside packed": (
        {"input": packed([3, 2, 1]), "lengths": torch.tensor([3, 2, 1])},
        ValueError,
        "lengths: a PackedSequence carries its own, expected None",
    ),
    # reset
    "reset of integers": (
        {"reset": torch.zeros(T, B, dtype=torch.uint8)},
        TypeError,
        "reset: expected dtype torch.bool, got torch.uint8",
    ),
    "reset of float": (
        {"reset": zeros(T, B)},
        TypeError,
        "reset: expected dtype torch.bool, got torch.float32",
    ),
    "reset a list": (
        {"reset": [[True] * B] * T},
        TypeError,
        "reset: expected a tensor of torch.bool, got list",
    ),
    "reset transposed": (
        {"reset": torch.zeros(B, T, dtype=torch.bool)},
        RuntimeError,
        f"reset: expected shape ({T}, {B}), one flag for each step of each row, got ({B}, {T})",
    ),
    "reset 1-D": (
        {"reset": torch.zeros(T, dtype=torch.bool)},
        RuntimeError,
        f"reset: expected shape ({T}, {B}), one flag for each step of each row, got ({T},)",
    ),
    "reset 3-D": (
        {"reset": torch.zeros(T, B, 1, dtype=torch.bool)},
        RuntimeError,
        f"reset: expected shape ({T}, {B}), one flag for each step of each row, got ({T}, {B}, 1)",
    ),
    "reset elsewhere": (
        {"reset": torch.zeros(T, B, dtype=torch.bool, device="meta")},
        RuntimeError,
        "reset: expected device cpu, that of the input, got meta",
    ),
    "reset 2-D, unbatched input": (
        {
            "input": zeros(T, I),
            "h0": None,
            "c0": None,
            "reset": torch.zeros(T, 1, dtype=torch.bool),
        },
        RuntimeError,
        "reset: expected 1 dimensions with an unbatched input, got 2",
    ),
    "reset time-major with batch_first": (
        {
            "input": zeros(B, T, I),
            "batch_first": True,
            "reset": torch.zeros(T, B, dtype=torch.bool),
        },
        RuntimeError,
        "reset: expected shape ...",
    ),
    "reset 1-D with packed": (
        {
            "input": packed([3, 2, 1]),
            "h0": None,
            "c0": None,
            "reset": torch.zeros(3, dtype=torch.bool),
        },
        RuntimeError,
        "reset: expected shape (3, 3), one flag for each step of each row, got (3,)",
    ),
    "reset 1-D with packed, unsorted": (
        {
            "input": packed([3, 2, 1], sorted_indices=torch.tensor([2, 0, 1])),
            "h0": None,
            "c0": None,
            "reset": torch.zeros(3, dtype=torch.bool),
        },
        RuntimeError,
        "reset: expected ...",
    ),
    "reset 1-D with packed, batch_first": (
        {
            "input": packed([3, 2, 1]),
            "batch_first": True,
            "h0": None,
            "c0": None,
            "reset": torch.zeros(3, dtype=torch.bool),
        },
        RuntimeError,
        "reset: expected ...",
    ),
    # packed
    "batch_sizes increase": (
        {"input": packed([2, 1, 3])},
        RuntimeError,
        "batch_sizes: expected values that do not increase, got ...",
    ),
    "batch_sizes negative": (
        {"input": packed([4, 3, -1])},
        RuntimeError,
        "batch_sizes: expected positive values, got ...",
    ),
    "batch_sizes zero": (
        {"input": packed([4, 2, 0])},
        RuntimeError,
        "batch_sizes: expected positive values, got ...",
    ),
    "batch_sizes begin negative": (
        {"input": packed([-1, 4, 3])},
        RuntimeError,
        "batch_sizes: expected positive values, got ...",
    ),
    "batch_sizes int32": (
        {"input": packed(torch.tensor([3, 2, 1], dtype=torch.int32))},
        RuntimeError,
        "batch_sizes: expected torch.int64 on the CPU, got torch.int32 on cpu",
    ),
    "batch_sizes float": (
        {"input": packed(torch.tensor([3.0, 2.0, 1.0]))},
        RuntimeError,
        "batch_sizes: expected torch.int64 on the CPU, got torch.float32 on cpu",
    ),
    "batch_sizes sum to more": (
        {"input": packed([3, 3, 1])},
        RuntimeError,
        "batch_sizes: expected a sum of 6, the rows of the data, got 7",
    ),
    "batch_sizes overflow": (
        {"input": packed([2**62, 2**62, 2**62, 2**62 + 6])},
        RuntimeError,
        "batch_sizes: expected ...",
    ),
    "batch_sizes 2-D": (
        {"input": packed([[3], [2], [1]])},
        RuntimeError,
        "batch_sizes: expected 1 dimension, got 2",
    ),
    "batch_sizes 0-D": (
        {"input": packed(torch.tensor(6))},
        RuntimeError,
        "batch_sizes: expected 1 dimension, got 0",
    ),
    "batch_sizes empty": (
        {"input": packed(torch.zeros(0, dtype=torch.int64), rows=0)},
        RuntimeError,
        "Expected sequence length to be larger than 0 in RNN",
    ),
    "packed data 3-D": (
        {"input": PackedSequence(zeros(6, 1, I), torch.tensor([3, 2, 1]))},
        RuntimeError,
        "input: expected 2 dimensions, got 3",
    ),
    "packed data too wide": (
        {"input": packed([3, 2, 1], features=I + 1)},
        RuntimeError,
        "weight_ih: expected shape (20, 3), got (20, 2)",
    ),
    "h0 of fewer rows than packed": (
        {"input": packed([3, 2, 1]), "h0": zeros(1, 2, H)},
        RuntimeError,
        f"h0: expected shape (1, 3, {H}), got (1, 2, {H})",
    ),
    "h0 of fewer rows than packed, unsorted": (
        {"input": packed([3, 2, 1], sorted_indices=torch.tensor([2, 0, 1])), "h0": zeros(1, 2, H)},
        RuntimeError,
        "h0: expected shape ...",
    ),
    "h0 1-D, packed, unsorted": (
        {"input": packed([3, 2, 1], sorted_indices=torch.tensor([2, 0, 1])), "h0": zeros(H)},
        RuntimeError,
        f"h0: expected 3 dimensions, the first of size 1 (layers x directions), got shape ({H},)",
    ),
}


@pytest.mark.parametrize(("changes", "error", "message"), CALLS.values(), ids=CALLS)
def test_message(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=text(message)) as caught:
        call(**changes)
    assert caught.type is error


def test_integers_of_any_width_are_lengths() -> None:
    """What is no error: every integer dtype, lists and, unbatched, a number."""
    expected = call(lengths=torch.tensor([1, 4, 0]))[0]
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(call(lengths=torch.tensor([1, 4, 0], dtype=dtype))[0], expected)
    for given in ([1, 4, 0], (1, 4, 0)):
        assert torch.equal(call(lengths=given)[0], expected)
    for one in (2, [2], torch.tensor(2), torch.tensor([2])):
        call(input=zeros(T, I), h0=None, c0=None, lengths=one)


def test_lengths_are_not_changed_by_others() -> None:
    """The caller's tensor may be reused at once; what a call was given is what it uses."""
    lengths = torch.tensor([1, 4, 2])
    x = torch.randn(T, B, I)
    own = [torch.randn_like(weight).requires_grad_() for weight in weights()]
    output = call(input=x, weights=own, lengths=lengths.tolist())[0]
    again = call(input=x, weights=own, lengths=lengths)[0]
    assert torch.equal(output, again)
    assert lengths.tolist() == [1, 4, 2]


@pytest.mark.parametrize("backend", [*cases.BACKENDS, "reference"])
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_packed_rows_of_no_step_are_ignored(cell: str, backend: str) -> None:
    """Rows of hand-made packed data beyond the sum of batch_sizes are no part of it.

    So says torch.nn of one direction; its reverse direction counts from the end of the data.
    """
    case = cases.Case(cell, layout="packed", bidirectional=True, layers=2)
    a = cases.arguments(case)
    more = torch.full((3, case.input_size), math.nan, dtype=case.dtype)
    longer = a.with_tensors(a.differentiable() | {"x": torch.cat((a.x, more))})
    actual = cases.results(longer, backend=backend)
    assert not actual["grad x"][-3:].any()
    actual["grad x"] = actual["grad x"][:-3]
    cases.check(actual, cases.results(a, cases.torch_forward), case)
