"""Function modes and dispatch modes: what looks at the operators of a call sees torch's."""

from __future__ import annotations

from typing import Any

import pytest
from contract import CELLS, SEQUENCES, assert_same, example, pair
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OPERATOR = {"RNN": "rnn_tanh", "LSTM": "lstm", "GRU": "gru"}
OPERATOR |= {"RNNCell": "rnn_tanh_cell", "LSTMCell": "lstm_cell", "GRUCell": "gru_cell"}


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
