"""Packed weights kept from call to call, for serving: ``fastrnn.prepacked``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn

from ..backends.cpu import load
from .base import PREPACKED, SequenceModule
from .cell import CellModule


def prepacked(module: nn.Module) -> ExitStack:
    """Keep the packed weights of recurrent layers from call to call: for serving.

    The kernels multiply with weights in an order of their own. A call packs them anew if that pays,
    and else reads them as they lie, because a write through ``.data`` or a NumPy view leaves no
    trace: a cache would serve old weights. Who knows that nobody writes that way may say so here.
    From then on inference on the CPU packs once, and again after what torch counts: optimizer
    steps, ``load_state_dict``, in-place operations, another Parameter, ``Module.to``.

    Results may differ in their last bits from those without: sums are taken in another order where
    a call would have read the weights as they lie. Calls with gradients, with ``reset`` or with
    ``return_cell_states`` are served as without. Packed weights take as much memory again as the
    weights.

    Args:
        module: a recurrent module of fastrnn, or any module with some inside; all of them, as they
            are now. Copies and pickles of theirs are not prepacked. Where the compiled kernels are
            missing there is nothing to keep, and nothing changes.

    Returns:
        a context manager whose exit, or ``close()``, ends it. Not needed to make it last: without
        either, it lasts as long as the modules do.

    Raises:
        ValueError: there is no recurrent module of fastrnn in ``module``.

    Example::

        lstm = fastrnn.LSTM(64, 64)
        fastrnn.prepacked(lstm)
        with torch.inference_mode():
            output, states = lstm(torch.randn(1, 1, 64))
    """
    found = [part for part in module.modules() if isinstance(part, SequenceModule | CellModule)]
    if not found:
        raise ValueError(
            "module: expected a recurrent module of fastrnn or one that contains some, "
            f"got {type(module).__name__} without any"
        )
    kept = ExitStack()
    extension: Any = load()[0]
    for part in found:
        own = part.__dict__
        if extension is not None and PREPACKED not in own:
            own[PREPACKED] = extension.Prepacked()
            kept.callback(own.pop, PREPACKED, None)
    return kept
