"""Two problems whose answer lies many steps back, of any length T, and networks that learn them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from .program import library, positive, positive_float, read_checkpoint, write_checkpoint

#: Steps between two looks at held-out sequences.
BLOCK = 50
#: Held-out sequences.
HELD_OUT = 500
#: Steps of the shortest sequences: two symbols at places that do not overlap.
SHORTEST = 3


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

    Args:
        text: its characters are the symbols without meaning, in their order.
    """

    outputs = 4
    measure, solved, chance = "wrong answers", 0.01, 3 / 4

    def __init__(self, text: str | None = None) -> None:
        self.inputs, self._text = 6, None
        if text is not None:
            numbers = {character: 2 + k for k, character in enumerate(sorted(set(text)))}
            self.inputs = 2 + len(numbers)
            self._text = torch.tensor([numbers[character] for character in text])

    def batch(self, steps: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if self._text is None:
            symbols = torch.randint(2, self.inputs, (steps, rows), generator=generator)
        else:
            begins = torch.randint(len(self._text) - steps + 1, (rows,), generator=generator)
            symbols = self._text[begins + torch.arange(steps)[:, None]]
        each = torch.arange(rows)
        first, second = torch.randint(2, (2, rows), generator=generator)
        for symbol, (low, high) in zip((first, second), self.places(steps), strict=True):
            symbols[torch.randint(low, high, (rows,), generator=generator), each] = symbol
        return symbols, 2 * first + second

    @staticmethod
    def places(steps: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where the two symbols stand: from the first of these steps to before the other."""
        first, second = int(0.1 * steps), int(0.4 * steps)
        return (
            (first, max(first + 1, int(0.2 * steps))),
            (second, max(second + 1, int(0.5 * steps))),
        )

    def loss(self, answer: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(answer, target)

    def error(self, answer: Tensor, target: Tensor) -> float:
        return (answer.argmax(-1) != target).float().mean().item()


def problems(data: Path | None, longest: int) -> dict[str, Problem]:
    """Both problems; ``data`` is a text for the second.

    Raises:
        ValueError: it is no text, or shorter than the longest sequence.
    """
    text = None
    if data is not None:
        try:
            text = data.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{data}: expected a text in UTF-8, {error.reason}") from None
        if len(text) < longest:
            raise ValueError(f"{data}: expected {longest} characters or more, got {len(text)}")
    return {"adding": Adding(), "temporal order": TemporalOrder(text)}


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


class Network(NamedTuple):
    """Which layer, how its weights begin, and whether its gradients are clipped."""

    layer: str
    prepare: Callable[[nn.Module], object]
    nonlinearity: str = "tanh"
    clipped: bool = True

    def make(self, backend: str, inputs: int, hidden: int) -> nn.RNNBase:
        made = layers(self.layer, self.nonlinearity, backend, inputs, hidden)
        self.prepare(made)
        return made

    def reader(self, problem: Problem, options: argparse.Namespace, seed: int) -> Reader:
        """A fresh model; the same seed gives the same weights."""
        torch.manual_seed(seed)
        made = self.make(options.backend, problem.inputs, options.hidden)
        return Reader(made, problem.outputs)


def layers(kind: str, nonlinearity: str, backend: str, inputs: int, hidden: int) -> nn.RNNBase:
    more = {"nonlinearity": nonlinearity} if kind == "RNN" else {}
    made: nn.RNNBase = getattr(library(backend), kind)(inputs, hidden, **more)
    return made


class Outcome(NamedTuple):
    """How a training went: steps made, whether the problem was solved, the error at the end.

    The error is None if the model's answers were no numbers any more.
    """

    steps: int
    solved: bool
    error: float | None
    seconds: float

    def __str__(self) -> str:
        """As a cell of a table."""
        if self.solved:
            return f"{self.steps:,}"
        return "(diverged)" if self.error is None else f"({self.error:.2g})"


def length(text: str) -> int:
    """A length of sequences, as an argument."""
    value = int(text)
    if value < SHORTEST:
        raise argparse.ArgumentTypeError(f"expected {SHORTEST} or more steps, got {value}")
    return value


def add_options(parser: argparse.ArgumentParser, *, steps: int, rate: float) -> None:
    """Options of a training."""
    parser.add_argument("--steps", type=positive, default=steps, help="most steps of a training")
    parser.add_argument("--hidden", type=positive, default=48, help="units")
    parser.add_argument("--batch", type=positive, default=32, help="sequences in a batch")
    parser.add_argument("--rate", type=positive_float, default=rate, help="learning rate of Adam")
    parser.add_argument("--clip", type=positive_float, default=1.0, help="bound of gradients")


def learn(
    network: Network,
    problem: Problem,
    steps: int,
    options: argparse.Namespace,
    bar: Any,
    *,
    seed: int,
) -> tuple[Reader, Outcome]:
    """Train on sequences of so many steps until the problem is solved or the time is up."""
    started = time.perf_counter()
    model = network.reader(problem, options, seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.rate)
    x, y = problem.batch(steps, HELD_OUT, torch.Generator().manual_seed(seed + 1))
    done, solved, error = 0, False, None
    while done < options.steps and not solved:
        for _ in range(min(BLOCK, options.steps - done)):
            inputs, target = problem.batch(steps, options.batch, generator)
            optimizer.zero_grad(set_to_none=True)
            problem.loss(model(inputs), target).backward()
            if network.clipped:
                nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.step()
            done += 1
            bar.update()
        with torch.no_grad():
            answer = model(x)
        if not answer.isfinite().all():
            error = None
            break
        error = problem.error(answer, y)
        solved = error <= problem.solved
    bar.update(options.steps - done)
    return model, Outcome(done, solved, error, round(time.perf_counter() - started, 2))


def save(path: Path, models: Mapping[str, Reader]) -> None:
    """Write the weights of models and the kinds of their layers."""
    write_checkpoint(path, models, modes={name: each.layers.mode for name, each in models.items()})


def load(path: Path, backend: str = "auto") -> dict[str, Reader]:
    """The models of a checkpoint, by name, on the layers of the library of one's choice."""
    checkpoint = read_checkpoint(path)
    models = {}
    for name, state in checkpoint["models"].items():
        kind, _, nonlinearity = checkpoint["modes"][name].partition("_")
        inputs, (outputs, hidden) = (
            state["layers.weight_ih_l0"].shape[1],
            state["head.weight"].shape,
        )
        made = layers(kind, nonlinearity.lower(), backend, inputs, hidden)
        models[name] = Reader(made, outputs)
        models[name].load_state_dict(state)
        models[name].eval()
    return models
