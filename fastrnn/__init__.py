"""Recurrent networks for PyTorch on kernels of their own; see README.md.

``fastrnn.RNN``, ``LSTM``, ``GRU``, ``RNNCell``, ``LSTMCell`` and ``GRUCell`` stand where those of
``torch.nn`` stood: same constructor, same forward, same state_dict, same numbers.
"""

import torch as _torch  # noqa: F401  # first: the extension shares the OpenMP runtime torch loads

from . import backends, functional
from ._env import set_up_logging as _set_up_logging
from ._version import __version__
from .backends import use_backend
from .convert import ConversionReport, convert_, revert_
from .explanation import explain
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, prepacked

_set_up_logging()

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "ConversionReport",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "__version__",
    "backends",
    "convert_",
    "explain",
    "functional",
    "prepacked",
    "revert_",
    "use_backend",
]
