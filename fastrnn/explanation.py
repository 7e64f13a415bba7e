"""``fastrnn.explain``: who serves a call, and why not the others."""

from __future__ import annotations

from torch import Tensor
from torch._C import _is_any_autocast_enabled
from torch.nn.utils.rnn import PackedSequence

from . import backends
from .modules.base import CELL_OF_MODE, SequenceModule
from .problem import Problem


def explain(
    subject: SequenceModule | Problem,
    input: Tensor | PackedSequence | None = None,
    *,
    lengths: object = None,
    reset: object = None,
) -> str:
    """Which backend serves a call of a module, or a problem, as text with the reasons of each.

    Args:
        subject: a fastrnn.RNN, LSTM or GRU; or a ``Problem``, which needs nothing else.
        input, lengths, reset: arguments of the call. Only kind, dtype and device of the input
            matter, and whether there are lengths and resets. Default: a tensor like the weights.

    Raises:
        TypeError: subject is neither.
        RuntimeError: the backend insisted on cannot serve the call.
    """
    if isinstance(subject, Problem):
        return backends.explain(subject)
    if not isinstance(subject, SequenceModule):
        raise TypeError(
            "subject: expected a fastrnn.RNN, LSTM or GRU, or a Problem, "
            f"got {type(subject).__name__}"
        )
    packed = isinstance(input, PackedSequence)
    x = input.data if isinstance(input, PackedSequence) else input
    if x is None:
        x = next(subject.parameters())
    beyond_torch = subject._options(x if input is None else input, lengths, reset)
    if _is_any_autocast_enabled() and beyond_torch is None:
        return "autocast is on: served by torch.nn's forward, whose dtypes are the rule there"
    return backends.explain(
        backends.example(
            CELL_OF_MODE[subject.mode].name,
            x.dtype,
            x.device,
            packed,
            lengths is not None,
            reset is not None,
            subject.return_cell_states,
        )
    )
