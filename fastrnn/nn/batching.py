"""From sequences of symbols to padded batches with lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler


class SymbolTable:
    """Numbers for symbols: words, letters, phonemes, tags.

    ``symbols`` starts with whatever is no symbol of the data; ``unknown``, if it is among them,
    stands for every symbol without a number of its own.

    Raises:
        ValueError: a symbol comes twice.
    """

    PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = list(symbols)
        self._numbers = {symbol: number for number, symbol in enumerate(self.symbols)}
        if len(self._numbers) != len(self.symbols):
            (twice, _), *_ = Counter(self.symbols).most_common(1)
            raise ValueError(f"symbols: {twice!r} comes twice")

    @classmethod
    def of(
        cls,
        sequences: Iterable[Iterable[str]],
        specials: Sequence[str] = (),
        *,
        least: int = 1,
    ) -> SymbolTable:
        """``specials``, then what occurs at least ``least`` times, the most frequent first."""
        counts = Counter(symbol for sequence in sequences for symbol in sequence)
        for special in specials:
            counts.pop(special, None)
        ranked = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
        return cls([*specials, *(symbol for symbol in ranked if counts[symbol] >= least)])

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._numbers

    def __getitem__(self, symbol: str) -> int:
        """Number of a symbol.

        Raises:
            KeyError: it has none, and ``UNKNOWN`` is not in the table.
        """
        number = self._numbers.get(symbol, self._numbers.get(self.UNKNOWN))
        if number is None:
            raise KeyError(symbol)
        return number

    def encode(self, sequence: Iterable[str]) -> Tensor:
        """``(T,)`` int64.

        Raises:
            KeyError: a symbol has no number, and ``UNKNOWN`` is not in the table.
        """
        return torch.tensor([self[symbol] for symbol in sequence], dtype=torch.int64)

    def decode(self, numbers: Tensor | Iterable[int]) -> list[str]:
        if isinstance(numbers, Tensor):
            numbers = numbers.tolist()
        return [self.symbols[number] for number in numbers]


def pad(sequences: Sequence[Tensor], value: float = 0) -> tuple[Tensor, Tensor]:
    """Sequences of unlike lengths as one batch ``(B, T, ...)``, and their lengths ``(B,)``."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return pad_sequence(list(sequences), batch_first=True, padding_value=value), lengths


class LengthBuckets(Sampler[list[int]]):
    """Batches of sequences of like length, in random order, for little padding.

    In each epoch the sequences are shuffled, cut into pools of ``pool`` batches and sorted by
    length within each pool; then the batches are shuffled. For ``DataLoader(batch_sampler=...)``.

    Args:
        lengths: of the sequences of the dataset, in its order.
        batch_size: sequences in a batch; the last of an epoch may have fewer.
        generator: for the order; torch's own if None.
        pool: batches that are sorted together: the greater, the less padding and chance.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        generator: torch.Generator | None = None,
        *,
        pool: int = 50,
    ) -> None:
        self._lengths = torch.tensor(lengths)
        self._batch_size = batch_size
        self._generator = generator
        self._pool = pool

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self._lengths), generator=self._generator)
        batches: list[Tensor] = []
        for pool in order.split(self._pool * self._batch_size):
            by_length = pool[self._lengths[pool].argsort()]
            batches += by_length.split(self._batch_size)
        for k in torch.randperm(len(batches), generator=self._generator).tolist():
            yield batches[k].tolist()
