"""Two problems whose answer lies many steps back, of any length T, and networks that learn them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from .program import library, positive, positive_float

#: Steps between two looks at held-out sequences.
BLOCK = 50
#: Held-out sequences.
HELD_OUT = 500


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


class Network(NamedTuple):
    """Which layer, and how its weights begin."""

    layer: str
    prepare: Callable[[nn.Module], object]
    nonlinearity: str = "tanh"

    def make(self, backend: str, inputs: int, hidden: int) -> nn.RNNBase:
        more = {"nonlinearity": self.nonlinearity} if self.layer == "RNN" else {}
        layer: nn.RNNBase = getattr(library(backend), self.layer)(inputs, hidden, **more)
        self.prepare(layer)
        return layer


def add_options(parser: argparse.ArgumentParser, *, steps: int) -> None:
    """Options of a training."""
    parser.add_argument("--steps", type=positive, default=steps, help="most steps of a training")
    parser.add_argument("--hidden", type=positive, default=48, help="units")
    parser.add_argument("--batch", type=positive, default=32, help="sequences in a batch")
    parser.add_argument("--rate", type=positive_float, default=3e-3, help="learning rate")
    parser.add_argument("--clip", type=positive_float, default=1.0, help="bound of gradients")


def learn(
    network: Network,
    problem: Problem,
    length: int,
    options: argparse.Namespace,
    bar: Any,
) -> tuple[Reader, Outcome]:
    """Train until the problem is solved or the steps are used up."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    layer = network.make(options.backend, problem.inputs, options.hidden)
    model = Reader(layer, problem.outputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.rate)
    x, y = problem.batch(length, HELD_OUT, torch.Generator().manual_seed(options.seed + 1))
    steps, error = 0, math.inf
    while steps < options.steps and error > problem.solved:
        for _ in range(min(BLOCK, options.steps - steps)):
            inputs, target = problem.batch(length, options.batch, generator)
            optimizer.zero_grad(set_to_none=True)
            problem.loss(model(inputs), target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.step()
            steps += 1
            bar.update()
        with torch.no_grad():
            error = problem.error(model(x), y)
    bar.update(options.steps - steps)
    return model, Outcome(steps, error <= problem.solved, error)


def cell(outcome: Outcome) -> str:
    """An outcome as a cell of a table."""
    return f"{outcome.steps}" if outcome.solved else f"({outcome.error:.2g})"
