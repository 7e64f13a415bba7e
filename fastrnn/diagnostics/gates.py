"""What gates do: how often they are open or shut, and how long they keep a memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .passes import Pass, widened

#: The gate of each cell that scales what is kept of the state before.
_KEEPS = {"lstm": "f", "gru": "z", "gru_reset_before": "z"}
#: Values that are not those of a sigmoid, and lie between -1 and 1.
_TWO_SIDED = {"g", "n"}


class Saturation(NamedTuple):
    """``(H,)`` each: the fraction of steps and rows in which a unit's gate is nearly shut or open.

    For values of a tanh: near -1, near 1.
    """

    shut: Tensor
    open: Tensor


@torch.no_grad()
def saturation(one: Pass, margin: float = 0.1) -> dict[str, Saturation]:
    """How often the gates of a pass are saturated (Karpathy, Johnson and Fei-Fei 2015).

    Args:
        one: from ``trace``, of a gated cell; of a vanilla layer with tanh or sigmoid its output.
        margin: a gate is shut below it and open above ``1 - margin``; for a tanh, below
            ``2 * margin - 1`` and above ``1 - 2 * margin``, the same part of its range.

    Raises:
        ValueError: margin is not between 0 and 1/2, or the cell's values have no bounds.
    """
    if not 0 < margin < 0.5:
        raise ValueError(f"margin: expected a number between 0 and 0.5, got {margin}")
    if one.cell in ("rnn_relu", "rnn_identity"):
        raise ValueError(f"one: expected a cell whose values have bounds, got {one.cell}")
    result = {}
    for name, values in one.gates.items():
        unit = (values + 1) / 2 if name in _TWO_SIDED or one.cell == "rnn_tanh" else values
        flat = unit.flatten(0, 1).to(torch.float32)
        shut, opened = (flat < margin).float().mean(0), (flat > 1 - margin).float().mean(0)
        result[name] = Saturation(shut, opened)
    return result


@torch.no_grad()
def forgetting_time(one: Pass) -> Tensor:
    r"""Steps after which a unit has forgotten all but 1/e of what it held, ``(H,)``.

    A gate that keeps the fraction f of a state in each step keeps :math:`\prod f_t` of it, so

    .. math:: \tau = -1 / \overline{\log f}

    with the mean over steps and rows (Tallec and Ollivier 2018, who initialise gates by it). f is
    the forget gate of an LSTM, z of a GRU (``h' = (1 - z) n + z h``). What comes back through other
    gates is not counted. Infinite where a gate never closes at all.

    Raises:
        ValueError: the pass is one of a vanilla layer, which has no such gate.
    """
    if one.cell not in _KEEPS:
        raise ValueError(f"one: expected a pass of an LSTM or GRU, got one of {one.cell}")
    kept = widened(one.gates[_KEEPS[one.cell]]).flatten(0, 1)
    return -1 / kept.log().mean(0)
