r"""The likeliest output of a decoder: greedy, and with a beam.

A decoder is here a function of one step: ``step(tokens, state)`` takes the symbol that was chosen
last in each row, ``(N,)`` int64, and a state, a tuple of tensors with one row for each; it returns
the logarithms of the probabilities of the next symbol, ``(N, V)``, and the next state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], tuple[Tensor, State]]


class Hypothesis(NamedTuple):
    """An output: its symbols, without those of begin and end, and its log probability.

    The probability is that of the symbols and the end; where the search gave up before an end,
    that of the symbols.
    """

    tokens: list[int]
    log_prob: float


@torch.inference_mode()
def greedy_search(
    step: Step, state: State, *, begin: int, end: int, max_length: int
) -> list[Hypothesis]:
    """Take the likeliest symbol at every step.

    Args:
        step: the decoder, see above.
        state: before the first symbol; its tensors have B rows.
        begin, end: symbols before the first and after the last.
        max_length: steps after which an output ends in any case.

    Returns:
        One hypothesis for each of the B rows.
    """
    return [
        best for (best,) in beam_search(step, state, 1, begin=begin, end=end, max_length=max_length)
    ]


@torch.inference_mode()
def beam_search(
    step: Step,
    state: State,
    width: int,
    *,
    begin: int,
    end: int,
    max_length: int,
    length_penalty: float = 0.0,
) -> list[list[Hypothesis]]:
    r"""Follow the ``width`` likeliest beginnings at once; all rows and beginnings are one batch.

    A hypothesis that has ended keeps its place until likelier ones push it out. Width 1 is the
    greedy search; a width of at least the number of possible outputs is the exact one.

    Args:
        step: the decoder; it is called with ``B * width`` rows, those of one input in succession.
        state: before the first symbol; its tensors have B rows.
        width: hypotheses followed for each row.
        begin, end: symbols before the first and after the last.
        max_length: steps after which an output ends in any case.
        length_penalty: p; hypotheses are ranked by :math:`\log P / L^p` at last, L symbols and an
            end. 0 ranks by probability, which favours short outputs; 1 by that of a symbol.

    Returns:
        For each of the B rows up to ``width`` hypotheses, the best first.

    Raises:
        ValueError: width or max_length is below 1.
    """
    if width < 1 or max_length < 1:
        raise ValueError(f"width, max_length: expected 1 or more, got {width}, {max_length}")
    batch = state[0].shape[0]
    device = state[0].device
    first_row = torch.arange(batch, device=device)[:, None] * width  # (B, 1), of each input
    state = tuple(tensor.repeat_interleave(width, 0) for tensor in state)
    last = torch.full((batch * width,), begin, device=device)
    tokens = torch.empty(batch, width, 0, dtype=torch.int64, device=device)
    # All beginnings are the same at first: only one of them may have successors.
    scores = torch.full((batch, width), -torch.inf, device=device)
    scores[:, 0] = 0
    ended = torch.zeros(batch, width, dtype=torch.bool, device=device)
    for _ in range(max_length):
        log_probs, state = step(last, state)
        symbols = log_probs.shape[-1]
        log_probs = log_probs.view(batch, width, symbols)
        # What has ended goes on with ends that cost nothing.
        stay = torch.full((symbols,), -torch.inf, device=device, dtype=log_probs.dtype)
        stay[end] = 0
        log_probs = torch.where(ended[..., None], stay, log_probs)
        scores, best = (scores[..., None] + log_probs).flatten(1).topk(width, dim=1)
        parents, chosen = best // symbols, best % symbols
        tokens = torch.cat(
            [tokens.gather(1, parents[..., None].expand_as(tokens)), chosen[..., None]], dim=2
        )
        ended = ended.gather(1, parents) | (chosen == end)
        rows = (first_row + parents).flatten()
        state = tuple(tensor.index_select(0, rows) for tensor in state)
        last = chosen.flatten()
        if bool(ended.all()):
            break
    lengths = (tokens != end).sum(2) + ended
    ranks = (scores / lengths**length_penalty).argsort(dim=1, descending=True, stable=True)
    return [
        [
            Hypothesis([token for token in beam[k] if token != end], row_scores[k])
            for k in order
            if row_scores[k] > -torch.inf
        ]
        for beam, row_scores, order in zip(
            tokens.tolist(), scores.tolist(), ranks.tolist(), strict=True
        )
    ]
