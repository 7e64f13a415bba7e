"""Tracing, exporting and compiling: what of section 9 holds on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import CELLS, SEQUENCES, assert_same, flat, pair
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OPERATOR = {"RNN": "rnn_tanh", "LSTM": "lstm", "GRU": "gru"}
OPERATOR |= {"RNNCell": "rnn_tanh_cell", "LSTMCell": "lstm_cell", "GRUCell": "gru_cell"}


def example(kind: str, steps: int = 4) -> Tensor:
    return torch.randn(steps, 3) if kind in CELLS else torch.randn(steps, 2, 3)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace_records_the_operator(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    traced = torch.jit.trace(ours, (example(kind),))
    graphs = [str(torch.jit.trace(m, (example(kind),)).inlined_graph) for m in (ours, theirs)]
    assert (f"aten::{OPERATOR[kind]}(" in graphs[0]) == (f"aten::{OPERATOR[kind]}(" in graphs[1])
    assert (f"aten::{OPERATOR[kind]}(" in graphs[0]) == (kind in SEQUENCES)  # cells decompose
    x = example(kind, steps=7)
    assert_same(flat(traced(x)), flat(theirs(x)))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_export_records_the_operator(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = example(kind)
    exported = torch.export.export(ours, (x,))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert any(target.startswith(f"aten.{OPERATOR[kind]}.") for target in targets), targets
    assert_same(flat(exported.module()(x)), flat(theirs(x)))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled(kind: str, fullgraph: bool) -> None:
    ours, theirs = pair(kind, 3, 4)
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=fullgraph)
    x = example(kind).requires_grad_()
    result = compiled(x)
    assert_same(result, theirs(x))
    actual = torch.autograd.grad(flat(result)[0].sum(), [x, *ours.parameters()])
    expected = torch.autograd.grad(flat(theirs(x))[0].sum(), [x, *theirs.parameters()])
    assert_same(actual, expected, rows=8)


class Functions(TorchFunctionMode):
    """Names of the torch functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.seen.add(getattr(function, "__name__", str(function)))
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Lets every operator pass, as counters of operations do."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_modes_see_the_call(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = example(kind)
    expected = theirs(x)
    with Functions() as functions:
        assert_same(ours(x), expected)
    assert OPERATOR[kind] in functions.seen
    with Operators():
        assert_same(ours(x), expected)
