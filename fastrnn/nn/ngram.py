r"""Language models that count: the Markov assumption, and smoothing for what was never seen.

.. math:: P(w_t \mid w_1 \dots w_{t-1}) \approx P(w_t \mid w_{t-n+1} \dots w_{t-1})
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Smoothing = Literal["add-k", "witten-bell", "kneser-ney"]
SMOOTHINGS: tuple[Smoothing, ...] = ("add-k", "witten-bell", "kneser-ney")


@dataclass(frozen=True)
class _Counts:
    """How often each m-gram follows its context; an m-gram is a number with m digits."""

    grams: Tensor  # (G,) sorted
    gram_counts: Tensor  # (G,) c(h w)
    contexts: Tensor  # (C,) sorted
    totals: Tensor  # (C,) c(h), the sum of c(h w) over w
    followers: Tensor  # (C,) how many w were seen after h
    discount: float

    @staticmethod
    def of(grams: Tensor, gram_counts: Tensor, base: int) -> _Counts:
        contexts, index = torch.unique(grams // base, return_inverse=True)
        zeros = torch.zeros(len(contexts), dtype=torch.int64)
        # Ney, Essen and Kneser 1994; a text where nothing occurs once says nothing about the
        # unseen, and without any discount that would have probability 0.
        once, twice = int((gram_counts == 1).sum()), int((gram_counts == 2).sum())
        return _Counts(
            grams,
            gram_counts,
            contexts,
            totals=zeros.index_add(0, index, gram_counts),
            followers=zeros.index_add(0, index, torch.ones_like(gram_counts)),
            discount=once / (once + 2 * twice) if once else 0.5,
        )


def _look_up(keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """The values of queries that are among the sorted keys, 0 for others; float64."""
    places = torch.searchsorted(keys, queries).clamp(max=len(keys) - 1)
    return torch.where(keys[places] == queries, values[places], 0).double()


class NGramModel:
    r"""An n-gram model over the numbers 0 ... V-1, with one of three smoothings.

    With c(h w) the count of w after the context h of n-1 symbols, c(h) that of h, F(h) how many
    different symbols follow h, and P' the same model of order n-1 (of order 0: 1/V):

    .. math::
        \text{add-k:} \quad & \frac{c(hw) + k}{c(h) + kV} \\
        \text{witten-bell:} \quad & \frac{c(hw) + F(h) P'(w)}{c(h) + F(h)} \\
        \text{kneser-ney:} \quad & \frac{\max(c(hw) - d, 0) + d F(h) P'(w)}{c(h)}

    Below the highest order, Kneser-Ney counts not how often hw occurs but after how many different
    symbols; d = n1/(n1 + 2 n2) from the numbers of n-grams counted once and twice. A context never
    seen leaves P'. At the start of a row, where there is no full context, the model is that of the
    order that there is.

    Sources: Chen and Goodman 1999 (interpolated Kneser-Ney with one discount for each order;
    Witten-Bell); Laplace (add-k with k = 1).

    Args:
        numbers: ``(N,)`` int64, the text to count.
        vocabulary: V.
        order: n; 1 for a unigram.
        smoothing: ``'add-k'``, ``'witten-bell'`` or ``'kneser-ney'``.
        k: of add-k.

    Raises:
        ValueError: the text is shorter than n, or not of numbers below V; unknown smoothing; k or
            n out of range (:math:`V^n` must be below :math:`2^{63}`).
    """

    def __init__(
        self,
        numbers: Tensor,
        vocabulary: int,
        order: int,
        smoothing: Smoothing = "kneser-ney",
        *,
        k: float = 1.0,
    ) -> None:
        if smoothing not in SMOOTHINGS:
            raise ValueError(f"smoothing: expected one of {SMOOTHINGS}, got {smoothing!r}")
        if order < 1 or order * math.log2(max(vocabulary, 2)) >= 63:
            raise ValueError(f"order: {order} is out of range for {vocabulary} symbols")
        if not k > 0:
            raise ValueError(f"k: expected a number above 0, got {k}")
        if numbers.dim() != 1 or len(numbers) < order:
            raise ValueError(
                f"numbers: expected ({order} or more,), got {tuple(numbers.shape)}: the text is "
                "shorter than one n-gram"
            )
        if int(numbers.min()) < 0 or int(numbers.max()) >= vocabulary:
            raise ValueError(f"numbers: expected 0 to {vocabulary - 1}")
        self.vocabulary = vocabulary
        self.order = order
        self.smoothing = smoothing
        self.k = k

        grams, counts = torch.unique(self._codes(numbers, order), return_counts=True)
        levels = [_Counts.of(grams, counts, vocabulary)]
        for m in range(order - 1, 0, -1):
            if smoothing == "kneser-ney":  # each different extension to the left counts once
                grams, counts = torch.unique(grams % vocabulary**m, return_counts=True)
            else:
                grams, counts = torch.unique(self._codes(numbers, m), return_counts=True)
            levels.append(_Counts.of(grams, counts, vocabulary))
        self._levels = levels[::-1]

    def __len__(self) -> int:
        """How many different n-grams were counted, of all orders that the model looks at."""
        levels = self._levels[-1:] if self.smoothing == "add-k" else self._levels
        return sum(len(level.grams) for level in levels)

    def _codes(self, numbers: Tensor, m: int) -> Tensor:
        """``(..., N)`` to ``(..., N - m + 1)``: each m-gram as one number to the base V."""
        powers = self.vocabulary ** torch.arange(m - 1, -1, -1)
        return (numbers.unfold(-1, m, 1) * powers).sum(-1)

    def log_prob(self, numbers: Tensor) -> Tensor:
        """Natural logarithms of P(w_t | what stands before it in its row).

        Args:
            numbers: ``(..., N)`` int64; every row is a text of its own.

        Returns:
            ``(..., N)`` float64; the first of a row is that of a unigram.
        """
        p = torch.full(numbers.shape, 1 / self.vocabulary, dtype=torch.float64)
        for m, level in enumerate(self._levels, start=1):
            if numbers.shape[-1] < m:
                break
            grams = self._codes(numbers, m)
            contexts = grams // self.vocabulary
            count = _look_up(level.grams, level.gram_counts, grams)
            total = _look_up(level.contexts, level.totals, contexts)
            followers = _look_up(level.contexts, level.followers, contexts)
            lower = p[..., m - 1 :]
            if self.smoothing == "add-k":
                better = (count + self.k) / (total + self.k * self.vocabulary)
            elif self.smoothing == "witten-bell":
                better = (count + followers * lower) / (total + followers)
            else:
                seen = (count - level.discount).clamp(min=0)
                better = (seen + level.discount * followers * lower) / total
            seen_context = (total > 0) | (self.smoothing == "add-k")
            p[..., m - 1 :] = torch.where(seen_context, better, lower)
        return p.log()

    def distribution(self, context: Tensor) -> Tensor:
        """P(w | context) for every w, ``(V,)`` float64; ``context (N,)`` may be empty."""
        used = context[max(len(context) - self.order + 1, 0) :]
        rows = torch.cat(
            [used.expand(self.vocabulary, -1), torch.arange(self.vocabulary)[:, None]], dim=1
        )
        return self.log_prob(rows)[:, -1].exp()

    def sample(
        self,
        prompt: Tensor,
        length: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``prompt (N,)`` and ``length`` symbols drawn after it, from :math:`P^{1/temperature}`."""
        numbers = prompt
        for _ in range(length):
            log_p = self.distribution(numbers).log()
            drawn = torch.multinomial((log_p / temperature).softmax(0), 1, generator=generator)
            numbers = torch.cat([numbers, drawn])
        return numbers
