"""The modules: what ``torch.nn`` calls RNN, LSTM, GRU and their cells, on fastrnn's kernels.

Each is torch's module to the letter (constructor, parameters and their initial values, checks and
error types, state_dict, attributes, repr) and offers more through keyword-only arguments that
torch.nn lacks. They subclass ``torch.nn.RNNBase`` and ``torch.nn.RNNCellBase``, not
``torch.nn.LSTM`` and its like: those ``torch.compile`` refuses to trace, subclasses included.
"""

from __future__ import annotations

from ._prepacked import prepacked
from .cell import GRUCell, LSTMCell, RNNCell
from .sequence import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "prepacked"]
