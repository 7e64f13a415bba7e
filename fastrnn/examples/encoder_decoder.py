"""An encoder, and a decoder that sees its last state only, or attends to all of its states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..nn import (
    AdditiveScore,
    Attention,
    DotScore,
    GeneralScore,
    Hypothesis,
    Memory,
    SymbolTable,
    beam_search,
    pad,
)
from ..nn.search import State
from .program import last_hidden, run_layers

SCORES: dict[str, Callable[[int, int, int], AdditiveScore | DotScore]] = {
    "additive": AdditiveScore,
    "dot": lambda query, key, hidden: DotScore(query, key),
    "general": lambda query, key, hidden: GeneralScore(query, key),
}
NO_ATTENTION = "none"
SPECIALS = (SymbolTable.PAD, SymbolTable.UNKNOWN, SymbolTable.BEGIN, SymbolTable.END)
PAD, UNKNOWN, BEGIN, END = range(len(SPECIALS))


class Batch(NamedTuple):
    source: Tensor  # (B, S)
    source_lengths: Tensor  # (B,)
    inputs: Tensor  # (B, T): BEGIN and the target
    outputs: Tensor  # (B, T): the target and END; PAD beyond


def collate(pairs: Sequence[tuple[Tensor, Tensor]]) -> Batch:
    """Encoded pairs as a batch."""
    sources, targets = zip(*pairs, strict=True)
    source, lengths = pad(sources, PAD)
    inputs, _ = pad([torch.cat([torch.tensor([BEGIN]), target]) for target in targets], PAD)
    outputs, _ = pad([torch.cat([target, torch.tensor([END])]) for target in targets], PAD)
    return Batch(source, lengths, inputs, outputs)


class EncoderDecoder(nn.Module):
    r"""A bidirectional GRU reads the source; a GRU cell writes the target, symbol by symbol.

    With h_j the states of the encoder, y_t the symbols and s_t the states of the decoder:

    .. math::
        s_0 &= \tanh(W [\overrightarrow{h}_S; \overleftarrow{h}_1] + b) \\
        c_t &= \operatorname{attend}(s_{t-1}; h_1 \dots h_S) \\
        s_t &= \operatorname{cell}([y_{t-1}; c_t], s_{t-1}) \\
        P(y_t) &= \operatorname{softmax}(V [s_t; c_t] + d)

    without c_t where ``score`` is ``'none'``: all that the decoder then knows of the source is
    s_0 (Cho et al. 2014; Sutskever et al. 2014). With it: Bahdanau et al. 2015; the dot and general
    scores of Luong et al. 2015 take the place of the additive one, in the same order of steps.

    Args:
        library: ``fastrnn`` or ``torch.nn``.
        score: ``'none'``, ``'additive'``, ``'dot'`` or ``'general'``.
        source_symbols, target_symbols: sizes of the tables, with the four ``SPECIALS`` first.
        embedding: features of a symbol.
        hidden: units of the decoder and, half in each direction, of the encoder.
    """

    def __init__(
        self,
        library: Any,
        score: str,
        source_symbols: int,
        target_symbols: int,
        *,
        embedding: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.source = nn.Embedding(source_symbols, embedding, padding_idx=PAD)
        self.target = nn.Embedding(target_symbols, embedding, padding_idx=PAD)
        self.encoder = library.GRU(embedding, hidden // 2, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(hidden, hidden)
        self.attention: Attention | None = None
        context = 0
        if score != NO_ATTENTION:
            self.attention = Attention(SCORES[score](hidden, hidden, hidden))
            context = hidden
        self.cell = library.GRUCell(embedding + context, hidden)
        self.head = nn.Linear(hidden + context, target_symbols)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Memory | None]:
        """The decoder's first state ``(B, H)``, and what it attends to."""
        states, last = run_layers(self.encoder, self.source(source), lengths)
        first = torch.tanh(self.bridge(last_hidden(last, directions=2)))
        return first, self.attention.memory(states, lengths) if self.attention else None

    def step(
        self, embedded: Tensor, state: Tensor, memory: Memory | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input of the head ``(B, H + C)``, the next state, the weights ``(B, S)``, of one step."""
        if self.attention is None or memory is None:
            state = self.cell(embedded, state)
            return state, state, None
        context, weights = self.attention(state, memory)
        state = self.cell(torch.cat([embedded, context], dim=1), state)
        return torch.cat([state, context], dim=1), state, weights

    def forward(
        self, source: Tensor, lengths: Tensor, inputs: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Scores ``(B, T, V)`` of the symbols after ``inputs (B, T)``; weights ``(B, T, S)``."""
        state, memory = self.encode(source, lengths)
        features, weights = [], []
        for embedded in self.target(inputs).unbind(1):
            feature, state, weight = self.step(embedded, state, memory)
            features.append(feature)
            weights.append(weight)
        scores = self.head(torch.stack(features, dim=1))
        attended = [weight for weight in weights if weight is not None]
        return scores, torch.stack(attended, dim=1) if attended else None

    def loss(self, batch: Batch) -> Tensor:
        """Cross entropy in nats per symbol, given the symbols before it (teacher forcing)."""
        scores, _ = self(batch.source, batch.source_lengths, batch.inputs)
        return cross_entropy(scores.flatten(0, 1), batch.outputs.flatten(), ignore_index=PAD)

    @torch.inference_mode()
    def translate(
        self, source: Tensor, lengths: Tensor, *, width: int = 1, max_length: int
    ) -> list[Hypothesis]:
        """The likeliest target of each row that a beam of ``width`` finds; 1 is greedy."""
        first, memory = self.encode(source, lengths)
        repeated = memory.repeat(width) if memory else None

        def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
            feature, after, _ = self.step(self.target(tokens), state[0], repeated)
            return self.head(feature).log_softmax(-1), (after,)

        beams = beam_search(step, (first,), width, begin=BEGIN, end=END, max_length=max_length)
        return [beam[0] for beam in beams]
