r"""Attention of a decoder over the states of an encoder.

.. math::
    e_j = \operatorname{score}(s, h_j), \qquad
    a = \operatorname{softmax}(e), \qquad
    c = \sum_j a_j h_j

Shapes: B rows, T states of the encoder, Q features of the query s, E features of a state h,
A features in which an additive score compares the two.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


def length_mask(lengths: Tensor, steps: int) -> Tensor:
    """``(B, steps)`` bool, True where a row of ``lengths (B,)`` has a state."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension, of the True elements of ``mask`` only; others are 0.

    A row without any is 0 throughout, and so is its gradient: of a row of -inf torch's softmax and
    its gradient would be NaN.
    """
    if mask is None:
        return scores.softmax(-1)
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1).masked_fill(~mask, 0)


class AdditiveScore(nn.Module):
    r""":math:`v^\top \tanh(W s + U h + b)` (Bahdanau, Cho and Bengio 2015).

    Parameters: ``query.weight (A, Q)`` W, ``query.bias (A,)`` b, ``key.weight (A, E)`` U,
    ``combine.weight (1, A)`` v.
    """

    def __init__(self, query_size: int, key_size: int, hidden_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_size, hidden_size)
        self.key = nn.Linear(key_size, hidden_size, bias=False)
        self.combine = nn.Linear(hidden_size, 1, bias=False)

    def keys(self, states: Tensor) -> Tensor:
        """U h of all states, ``(B, T, E)`` to ``(B, T, A)``: once for all steps of a decoder."""
        keys: Tensor = self.key(states)
        return keys

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores ``(B, T)`` of ``query (B, Q)`` against ``keys (B, T, A)``."""
        scores: Tensor = self.combine(torch.tanh(self.query(query)[:, None] + keys))
        return scores.squeeze(-1)


class DotScore(nn.Module):
    r""":math:`s^\top h` (Luong, Pham and Manning 2015); it has no parameters.

    Raises:
        ValueError: query and state are not of one size.
    """

    def __init__(self, query_size: int, key_size: int) -> None:
        super().__init__()
        if query_size != key_size:
            raise ValueError(
                f"key_size: expected the query's {query_size}, got {key_size}: a dot product is of "
                "two vectors of one size; GeneralScore takes any"
            )

    def keys(self, states: Tensor) -> Tensor:
        return states

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Scores ``(B, T)`` of ``query (B, Q)`` against ``keys (B, T, Q)``."""
        return torch.bmm(keys, query[:, :, None]).squeeze(-1)


class GeneralScore(DotScore):
    r""":math:`s^\top W h` (Luong, Pham and Manning 2015).

    Parameters: ``key.weight (Q, E)`` W.
    """

    def __init__(self, query_size: int, key_size: int) -> None:
        super().__init__(query_size, query_size)
        self.key = nn.Linear(key_size, query_size, bias=False)

    def keys(self, states: Tensor) -> Tensor:
        """W h of all states, ``(B, T, E)`` to ``(B, T, Q)``."""
        keys: Tensor = self.key(states)
        return keys


class Memory(NamedTuple):
    """What a decoder attends to at every step."""

    states: Tensor  # (B, T, E)
    keys: Tensor  # (B, T, A or Q)
    mask: Tensor | None  # (B, T) bool

    def repeat(self, times: int) -> Memory:
        """Every row so many times in a row: for a search that follows several hypotheses."""
        mask = None if self.mask is None else self.mask.repeat_interleave(times, 0)
        return Memory(
            self.states.repeat_interleave(times, 0), self.keys.repeat_interleave(times, 0), mask
        )


class Attention(nn.Module):
    """The mean of an encoder's states, weighted by their scores against a query.

    Example::

        attention = Attention(AdditiveScore(query_size=64, key_size=128, hidden_size=64))
        memory = attention.memory(states, lengths)  # once for a batch
        context, weights = attention(query, memory)  # at every step of the decoder
    """

    def __init__(self, score: AdditiveScore | DotScore) -> None:
        super().__init__()
        self.score = score

    def memory(self, states: Tensor, lengths: Tensor | None = None) -> Memory:
        """Everything that does not depend on the query.

        Args:
            states: ``(B, T, E)``.
            lengths: ``(B,)`` int64: states of row b from ``lengths[b]`` on have weight 0.
        """
        mask = None if lengths is None else length_mask(lengths, states.shape[1])
        return Memory(states, self.score.keys(states), mask)

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Context ``(B, E)`` and weights ``(B, T)`` for ``query (B, Q)``."""
        weights = masked_softmax(self.score(query, memory.keys), memory.mask)
        return torch.bmm(weights[:, None], memory.states).squeeze(1), weights
