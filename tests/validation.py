"""Calls that are right but for one thing, for the tests of error messages."""

from __future__ import annotations

import re
from typing import Any

import cases
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import functional

#: What is changed, the type of the error, and its text in full (``...`` stands for anything).
Wrong = tuple[dict[str, Any], type[Exception], str]

T, B, I, H, R = 4, 3, 2, 5, 3  # noqa: E741  # the letters of the library
DOUBLE = torch.float64


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def weights(
    cell: str = "lstm", *, layers: int = 1, directions: int = 1, bias: bool = True, proj: int = 0
) -> list[Tensor]:
    """Weights that fit, in torch's order."""
    case = cases.Case(
        cell,
        torch.float32,
        input_size=I,
        hidden_size=H,
        layers=layers,
        bidirectional=directions == 2,
        bias=bias,
        proj_size=proj,
    )
    return [zeros(*shape) for shape in cases.weight_shapes(case).values()]


def replaced(weights: list[Tensor], index: int, tensor: Any) -> list[Any]:
    return [*weights[:index], tensor, *weights[index + 1 :]]


def call(cell: str = "lstm", **changes: Any) -> Any:
    """A call that is right, but for the changes."""
    arguments: dict[str, Any] = {
        "input": zeros(T, B, I),
        "weights": None,
        "h0": zeros(1, B, H),
        "c0": zeros(1, B, H) if cell == "lstm" else None,
        "num_layers": 1,
        "bidirectional": False,
        "batch_first": False,
        "dropout": 0.0,
        "training": False,
        "lengths": None,
        "reset": None,
    }
    arguments |= changes
    if arguments["weights"] is None:
        arguments["weights"] = weights(cell)
    return functional.sequence(cell, **arguments)


def packed(batch_sizes: Any, rows: int = 6, features: int = I, **fields: Any) -> PackedSequence:
    if isinstance(batch_sizes, list):
        batch_sizes = torch.tensor(batch_sizes)
    return PackedSequence(zeros(rows, features), batch_sizes, **fields)


def text(expected: str) -> str:
    return "^" + ".*".join(re.escape(part) for part in expected.split("...")) + "$"
