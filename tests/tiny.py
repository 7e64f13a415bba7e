"""Tiny calls with every option, as functions of their tensors: for gradients of any order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import cases
import torch
from cases import ALL_CELLS, Arguments, Case, arguments
from torch import Tensor

TINY: dict[str, Any] = {"steps": 3, "batch": 2, "input_size": 2, "hidden_size": 3}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "both directions": {"bidirectional": True},
    "no bias": {"bias": False},
    "no states": {"hx": False},
    "lengths": {"lengths": "random", "bidirectional": True},
    "reset": {"reset": "random", "bidirectional": True},
    "lengths and reset": {"lengths": "random", "reset": "random", "bidirectional": True},
    "packed": {"layout": "packed_unsorted", "reset": "random", "bidirectional": True},
    "batch first": {"layout": "batch_first"},
    "layers": {"layers": 2},
    "one step": {"steps": 1},
}
LSTM_OPTIONS: dict[str, dict[str, Any]] = {
    "cell states": {"cell_states": True, "bidirectional": True},
    "projection": {"proj_size": 2, "bidirectional": True},
    "projection, lengths, reset, cell states": {
        "proj_size": 2,
        "bidirectional": True,
        "lengths": "random",
        "reset": "random",
        "cell_states": True,
    },
}
CHECKED = [
    (cell, name)
    for cell in ALL_CELLS
    for name in (OPTIONS | LSTM_OPTIONS if cell == "lstm" else OPTIONS)
]


def tiny(cell: str, option: str) -> Arguments:
    """Arguments of a tiny case, NaN beyond the lengths replaced: differences of NaN are NaN."""
    a = arguments(Case(cell, **TINY | (OPTIONS | LSTM_OPTIONS)[option]))
    return a.with_tensors(a.differentiable() | {"x": a.x.nan_to_num()})


def as_function(a: Arguments) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """The call as a function of its differentiable tensors only, and these."""
    tensors = a.differentiable()

    def function(*changed: Tensor) -> tuple[Tensor, ...]:
        call = a.with_tensors(dict(zip(tensors, changed, strict=True)))
        return tuple(cases.fastrnn_forward(call).values())

    return function, [tensor.clone().requires_grad_() for tensor in tensors.values()]


def total(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of the squares of all elements: a loss."""
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()
