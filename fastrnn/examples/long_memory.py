"""Two problems whose answer lies many steps back, of any length T."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss


class Problem(Protocol):
    """A source of sequences and what is asked about them."""

    #: Features of the input (of integer inputs: numbers), and of the answer.
    inputs: int
    outputs: int
    #: What ``error`` is, and below which a model has solved the problem.
    measure: str
    solved: float
    #: The error of one that knows nothing of the sequence.
    chance: float

    def batch(self, steps: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs ``(T, B, I)``, or integers ``(T, B)``, and targets ``(B, ...)``."""

    def loss(self, answer: Tensor, target: Tensor) -> Tensor: ...

    def error(self, answer: Tensor, target: Tensor) -> float: ...


class Adding:
    """The sum of two marked numbers (Hochreiter and Schmidhuber 1997; Le et al. 2015).

    A step holds a number, uniform in [0, 1], and a mark; one number in the first half of the steps
    and one in the second are marked.
    """

    inputs, outputs = 2, 1
    measure, solved, chance = "mean squared error", 0.01, 1 / 6

    def batch(self, steps: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        numbers = torch.rand(steps, rows, generator=generator)
        half, each = steps // 2, torch.arange(rows)
        marks = torch.zeros(steps, rows)
        marks[torch.randint(half, (rows,), generator=generator), each] = 1
        marks[torch.randint(half, steps, (rows,), generator=generator), each] = 1
        return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)[:, None]

    def loss(self, answer: Tensor, target: Tensor) -> Tensor:
        return mse_loss(answer, target)

    def error(self, answer: Tensor, target: Tensor) -> float:
        return mse_loss(answer, target).item()


class TemporalOrder:
    """In which order two symbols came (Hochreiter and Schmidhuber 1997; Pascanu et al. 2013).

    Among four symbols without meaning stand two of A or B, one between 10 and 20 per cent of the
    way and one between 40 and 50; the answer is one of AA, AB, BA and BB. Symbols are integers,
    which fastrnn takes for one-hot vectors.
    """

    inputs, outputs = 6, 4
    measure, solved, chance = "wrong answers", 0.01, 3 / 4

    def batch(self, steps: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        symbols = torch.randint(2, 6, (steps, rows), generator=generator)
        each = torch.arange(rows)
        first, second = torch.randint(2, (2, rows), generator=generator)
        for symbol, begin, end in ((first, 0.1, 0.2), (second, 0.4, 0.5)):
            low = int(begin * steps)
            high = max(low + 1, int(end * steps))
            symbols[torch.randint(low, high, (rows,), generator=generator), each] = symbol
        return symbols, 2 * first + second

    def loss(self, answer: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(answer, target)

    def error(self, answer: Tensor, target: Tensor) -> float:
        return (answer.argmax(-1) != target).float().mean().item()


PROBLEMS: dict[str, Problem] = {"adding": Adding(), "temporal order": TemporalOrder()}


class Reader(nn.Module):
    """Recurrent layers that read a sequence, and a linear layer that answers at its end."""

    def __init__(self, layers: nn.RNNBase, outputs: int) -> None:
        super().__init__()
        self.layers, self.inputs = layers, layers.input_size
        self.head = nn.Linear(layers.hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(T, B, I)`` or integers ``(T, B)`` to ``(B, outputs)``."""
        if type(self.layers).__module__.startswith("torch.") and not x.is_floating_point():
            x = nn.functional.one_hot(x, self.inputs).to(self.head.weight.dtype)
        output, _ = self.layers(x)
        answer: Tensor = self.head(output[-1])
        return answer


class Outcome(NamedTuple):
    """How a training went: steps made, whether the problem was solved, the error at the end."""

    steps: int
    solved: bool
    error: float
