"""fastrnn.nn against definitions written out: counts, sums over all outputs, loops over rows."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrnn.nn import (
    AdditiveScore,
    Attention,
    DotScore,
    GeneralScore,
    LengthBuckets,
    NGramModel,
    SymbolTable,
    beam_search,
    greedy_search,
    length_mask,
    masked_softmax,
    pad,
)
from fastrnn.nn.ngram import SMOOTHINGS
from fastrnn.nn.search import State, Step

# Batches.


def test_symbol_table_ranks_encodes_and_decodes() -> None:
    table = SymbolTable.of(["abb", "cccb"], [SymbolTable.PAD, SymbolTable.UNKNOWN])
    assert table.symbols == ["<pad>", "<unk>", "b", "c", "a"]
    assert table.encode("cabx").tolist() == [3, 4, 2, 1]
    assert table.decode(table.encode("cab")) == ["c", "a", "b"]
    assert "a" in table
    assert "x" not in table
    assert SymbolTable.of(["abb", "b"], least=2).symbols == ["b"]


def test_symbol_table_refuses() -> None:
    with pytest.raises(KeyError, match="x"):
        SymbolTable("ab").encode("x")
    with pytest.raises(ValueError, match="'a' comes twice"):
        SymbolTable("aba")


def test_pad() -> None:
    batch, lengths = pad([torch.tensor([1, 2]), torch.tensor([3])], value=9)
    assert batch.tolist() == [[1, 2], [3, 9]]
    assert lengths.tolist() == [2, 1]


def test_length_buckets_have_every_sequence_once_and_little_padding() -> None:
    lengths = torch.randint(1, 40, (503,)).tolist()
    batches = LengthBuckets(lengths, 8, torch.Generator().manual_seed(1), pool=20)
    first, second = list(batches), list(batches)
    assert len(first) == len(batches) == 63
    assert sorted(itertools.chain(*first)) == list(range(503))
    assert first != second
    padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in first)
    assert padded < 1.2 * sum(lengths)


# n-grams.


class Counted:
    """The same model, by its formula, from dictionaries."""

    def __init__(self, text: list[int], symbols: int, order: int, smoothing: str, k: float) -> None:
        self.symbols, self.order, self.smoothing, self.k = symbols, order, smoothing, k
        seen = {
            m: Counter(tuple(text[i : i + m]) for i in range(len(text) - m + 1))
            for m in range(1, order + 1)
        }
        self.counts = dict(seen)
        if smoothing == "kneser-ney":
            for m in range(1, order):
                self.counts[m] = Counter(gram[1:] for gram in seen[m + 1])

    def p(self, word: int, history: tuple[int, ...]) -> float:
        m = min(self.order, len(history) + 1)
        if self.smoothing == "add-k":
            follow = self._following(m, history[len(history) - m + 1 :])
            return (follow[word] + self.k) / (follow.total() + self.k * self.symbols)
        return self._interpolated(m, word, history[len(history) - m + 1 :])

    def _following(self, m: int, context: tuple[int, ...]) -> Counter[int]:
        return Counter({gram[-1]: n for gram, n in self.counts[m].items() if gram[:-1] == context})

    def _interpolated(self, m: int, word: int, context: tuple[int, ...]) -> float:
        if m == 0:
            return 1 / self.symbols
        lower = self._interpolated(m - 1, word, context[1:])
        follow = self._following(m, context)
        if not follow:
            return lower
        if self.smoothing == "witten-bell":
            return (follow[word] + len(follow) * lower) / (follow.total() + len(follow))
        sizes = Counter(self.counts[m].values())
        d = sizes[1] / (sizes[1] + 2 * sizes[2]) if sizes[1] else 0.5
        return (max(follow[word] - d, 0) + d * len(follow) * lower) / follow.total()


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ngram_is_its_formula(order: int, smoothing: Any) -> None:
    text = torch.randint(0, 5, (60,)).pow(2) % 7  # 5 and 6 never occur, 1 and 4 often
    rows = torch.randint(0, 7, (3, 12))
    model = NGramModel(text, 7, order, smoothing, k=0.3)
    counted = Counted(text.tolist(), 7, order, smoothing, k=0.3)
    expected = [
        [counted.p(row[t], tuple(row[:t])) for t in range(len(row))] for row in rows.tolist()
    ]
    torch.testing.assert_close(
        model.log_prob(rows).exp(), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("context", [[], [3], [0, 1], [6, 6], [4, 0, 1]])
def test_ngram_probabilities_sum_to_one(smoothing: Any, context: list[int]) -> None:
    model = NGramModel(torch.randint(0, 6, (200,)), 7, 3, smoothing)
    p = model.distribution(torch.tensor(context, dtype=torch.int64))
    assert p.min() > 0
    assert p.sum().item() == pytest.approx(1, abs=1e-12)


def test_higher_orders_fit_a_text_with_a_rule() -> None:
    text = torch.tensor([0, 1, 2, 0, 2, 1] * 100)
    losses = [-NGramModel(text, 3, n).log_prob(text).mean().item() for n in (1, 2, 3)]
    assert losses[0] > losses[1] + 0.3 > losses[2] + 0.6
    assert losses[0] == pytest.approx(math.log(3), abs=1e-3)


def test_ngram_sample() -> None:
    text = torch.tensor([0, 1, 2] * 50)
    model = NGramModel(text, 3, 2)
    generator = torch.Generator().manual_seed(0)
    cold = model.sample(torch.tensor([1]), 8, temperature=1e-3, generator=generator)
    assert cold.tolist() == [1, 2, 0, 1, 2, 0, 1, 2, 0]
    hot = model.sample(torch.tensor([1]), 200, temperature=1e3, generator=generator)
    assert Counter(hot.tolist()).most_common()[-1][1] > 40


@pytest.mark.parametrize(
    ("numbers", "arguments", "message"),
    [
        ([0, 1], (3, 3), "shorter than one n-gram"),
        ([0, 3], (3, 2), "expected 0 to 2"),
        ([0, 1], (3, 0), "order: 0"),
        ([0, 1], (100, 10), "order: 10"),
        ([0, 1], (3, 2, "none"), "smoothing: expected"),
    ],
)
def test_ngram_refuses(numbers: list[int], arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NGramModel(torch.tensor(numbers), *arguments)
    with pytest.raises(ValueError, match="k: expected"):
        NGramModel(torch.tensor([0, 1]), 2, 1, "add-k", k=0)


# Attention.


def test_masked_softmax_is_that_of_each_row_alone() -> None:
    scores = torch.randn(4, 6, requires_grad=True)
    lengths = torch.tensor([6, 1, 3, 0])
    weights = masked_softmax(scores, length_mask(lengths, 6))
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(weights[row, :length], scores[row, :length].softmax(0))
        assert (weights[row, length:] == 0).all()
    (weights * torch.randn(4, 6)).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert (scores.grad[length_mask(lengths, 6).logical_not()] == 0).all()
    torch.testing.assert_close(masked_softmax(scores, None), scores.softmax(-1))


def additive(score: AdditiveScore, s: Tensor, h: Tensor) -> Tensor:
    w, b, u = score.query.weight, score.query.bias, score.key.weight
    return score.combine.weight[0] @ torch.tanh(w @ s + b + u @ h)


def dot(score: DotScore, s: Tensor, h: Tensor) -> Tensor:
    return s @ h


def general(score: GeneralScore, s: Tensor, h: Tensor) -> Tensor:
    return s @ score.key.weight @ h


@pytest.mark.parametrize(
    ("score", "formula", "key_size"),
    [
        (AdditiveScore(4, 5, 3), additive, 5),
        (DotScore(4, 4), dot, 4),
        (GeneralScore(4, 5), general, 5),
    ],
    ids=["additive", "dot", "general"],
)
def test_attention_is_its_formula(
    score: Any, formula: Callable[[Any, Tensor, Tensor], Tensor], key_size: int
) -> None:
    states, query = torch.randn(3, 6, key_size), torch.randn(3, 4)
    lengths = torch.tensor([6, 2, 4])
    attention = Attention(score)
    memory = attention.memory(states, lengths)
    context, weights = attention(query, memory)
    for row, length in enumerate(lengths.tolist()):
        scores = torch.stack([formula(score, query[row], h) for h in states[row, :length]])
        torch.testing.assert_close(weights[row, :length], scores.softmax(0))
        torch.testing.assert_close(context[row], scores.softmax(0) @ states[row, :length])
        assert (weights[row, length:] == 0).all()

    # What stands beyond a row's length is not looked at.
    beyond = states.clone()
    beyond[length_mask(lengths, 6).logical_not()] = 1e3
    assert torch.equal(attention(query, attention.memory(beyond, lengths))[0], context)
    twice, _ = attention(query.repeat_interleave(2, 0), memory.repeat(2))
    torch.testing.assert_close(twice, context.repeat_interleave(2, 0))


def test_dot_score_needs_one_size() -> None:
    with pytest.raises(ValueError, match="key_size: expected the query's 4, got 5"):
        DotScore(4, 5)


# Search.

BEGIN, END, SYMBOLS = 0, 1, 4


def markov(rows: int, seed: int = 0) -> tuple[Step, State]:
    """A decoder whose next symbol depends on the row, the time and the last symbol."""
    tables = torch.randn(rows, 4, SYMBOLS, SYMBOLS, generator=torch.Generator().manual_seed(seed))
    tables = (2 * tables).log_softmax(-1)

    def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
        row, time = state
        return tables[row, time, tokens], (row, time + 1)

    return step, (torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def every_output(step: Step, row: int, max_length: int) -> dict[tuple[int, ...], float]:
    """Log probabilities of all outputs of a row, each of them stepped through alone."""
    found: dict[tuple[int, ...], float] = {}
    for symbols in itertools.product(range(SYMBOLS), repeat=max_length):
        cut = symbols.index(END) + 1 if END in symbols else max_length
        total, last = 0.0, BEGIN
        for time, symbol in enumerate(symbols[:cut]):
            state = (torch.tensor([row]), torch.tensor([time]))
            total += step(torch.tensor([last]), state)[0][0, symbol].item()
            last = symbol
        found[tuple(symbol for symbol in symbols[:cut] if symbol != END)] = total
    return found


def test_wide_beam_is_the_exact_search() -> None:
    step, state = markov(rows=3)
    beams = beam_search(step, state, 4**4, begin=BEGIN, end=END, max_length=4)
    for row, beam in enumerate(beams):
        expected = sorted(every_output(step, row, 4).items(), key=lambda item: -item[1])
        # An output of all four steps and the same with an end thereafter are one sequence.
        assert [tuple(tokens) for tokens, _ in beam] == [tokens for tokens, _ in expected]
        for (_, own), (_, log_prob) in zip(beam, expected, strict=True):
            assert own == pytest.approx(log_prob, abs=1e-4)


def test_greedy_takes_the_likeliest_at_every_step() -> None:
    step, state = markov(rows=5, seed=1)
    for row, found in enumerate(greedy_search(step, state, begin=BEGIN, end=END, max_length=4)):
        last, tokens, total = BEGIN, [], 0.0
        for time in range(4):
            scores, _ = step(torch.tensor([last]), (torch.tensor([row]), torch.tensor([time])))
            last = int(scores.argmax())
            total += scores.max().item()
            if last == END:
                break
            tokens.append(last)
        assert found.tokens == tokens
        assert found.log_prob == pytest.approx(total, abs=1e-5)


def test_wider_beams_find_likelier_outputs() -> None:
    step, state = markov(rows=200, seed=2)
    best = [
        sum(beam[0].log_prob for beam in beam_search(step, state, w, begin=0, end=1, max_length=4))
        for w in (1, 2, 8)
    ]
    assert best[0] < best[1] < best[2]


def test_length_penalty_favours_longer_outputs() -> None:
    step, state = markov(rows=50, seed=3)
    options: dict[str, Any] = {"begin": BEGIN, "end": END, "max_length": 4}
    lengths = [
        sum(
            len(beam[0].tokens)
            for beam in beam_search(step, state, 8, length_penalty=penalty, **options)
        )
        for penalty in (0.0, 1.0)
    ]
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize(("width", "max_length"), [(0, 4), (2, 0)])
def test_search_refuses(width: int, max_length: int) -> None:
    step, state = markov(rows=1)
    with pytest.raises(ValueError, match="expected 1 or more"):
        beam_search(step, state, width, begin=0, end=1, max_length=max_length)
