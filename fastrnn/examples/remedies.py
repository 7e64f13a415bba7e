"""Remedies: initial values, forget biases, and clipping of gradients that explode.

``python -m fastrnn.examples.remedies`` trains vanilla layers from default, orthogonal, identity and
scaled weights, and LSTMs with forget biases of 0, 1 and those of chrono initialisation, on the
adding problem. Then a network whose gradients explode goes down its gradient without clipping, with
it by norm, and by value. It writes ``remedies.json``, ``.png`` and ``.pt`` to ``--out``. ``--data``
reads the numbers to be added from a file; without it they are uniform in [0, 1].

The page with formulas and results: ``docs/remedies.md``, beside this file.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..nn import init
from .long_memory import (
    PROBLEMS,
    Adding,
    Network,
    Outcome,
    Problem,
    Reader,
    add_options,
    cell,
    learn,
)
from .program import (
    common_parser,
    execute,
    optional,
    parse_options,
    positive,
    print_table,
    pyplot,
    stem,
    write_checkpoint,
    write_results,
)

#: Steps of plain gradient descent, with and without clipping, its rate and momentum. (Adam divides
#: by the size of gradients, and hides what clipping does.)
DESCENT_STEPS, DESCENT_RATE, MOMENTUM = 100, 0.01, 0.9
#: A loss this many times the first one has exploded.
EXPLODED = 100.0
CLIPPINGS = ("none", "norm", "value")
#: A network that needs it: its state grows by 3 % in each step.
GROWING = Network("RNN", lambda layer: init.recurrent_identity_(layer, 1.03), "relu")


def _forget(value: float) -> Callable[[nn.Module], object]:
    return lambda layer: init.forget_bias_(layer, value)


def networks(length: int) -> dict[str, Network]:
    """By name; ``length`` is the longest dependency, for chrono initialisation."""
    return {
        "vanilla": Network("RNN", lambda layer: layer),
        "vanilla, orthogonal": Network("RNN", init.recurrent_orthogonal_),
        "vanilla, scaled to radius 1": Network("RNN", init.recurrent_scaled_),
        "relu": Network("RNN", lambda layer: layer, "relu"),
        "relu, identity": Network("RNN", init.recurrent_identity_, "relu"),
        "LSTM, forget bias 0": Network("LSTM", _forget(0.0)),
        "LSTM, forget bias 1": Network("LSTM", _forget(1.0)),
        "LSTM, chrono": Network("LSTM", lambda layer: init.chrono_(layer, length)),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common_parser(
        "remedies",
        "Initial values, forget biases, and clipping of gradients that explode.",
        data="text file with numbers from 0 to 1 to add (default: uniform ones)",
    )
    parser.add_argument("--length", type=positive, default=60, help="steps of the problem")
    add_options(parser, steps=2000)
    return parse_options(parser, arguments)


class Numbers(Adding):
    """The adding problem with numbers of a list."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._numbers = numbers

    def batch(
        self, steps: int, rows: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, _ = super().batch(steps, rows, generator)
        chosen = torch.randint(len(self._numbers), (steps, rows), generator=generator)
        x[..., 0] = self._numbers[chosen]
        return x, (x[..., 0] * x[..., 1]).sum(0)[:, None]


def problem_of(path: Path | None) -> Problem:
    """The adding problem with the numbers of a file.

    Raises:
        ValueError: the file holds something else.
    """
    if path is None:
        return PROBLEMS["adding"]
    words = path.read_text(encoding="utf-8").replace(",", " ").split()
    numbers = torch.tensor([float(word) for word in words])
    if not len(numbers) or not ((numbers >= 0) & (numbers <= 1)).all():
        raise ValueError("data: expected numbers from 0 to 1")
    return Numbers(numbers)


class Descent(NamedTuple):
    """Losses of plain gradient descent, up to the step at which they are no numbers any more."""

    losses: list[float]
    largest_gradient: float

    @property
    def exploded(self) -> bool:
        return not math.isfinite(self.losses[-1]) or self.losses[-1] > EXPLODED * self.losses[0]


def descend(clipping: str, problem: Problem, options: argparse.Namespace) -> Descent:
    """Plain gradient descent of a network whose gradients explode."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    layer = GROWING.make(options.backend, problem.inputs, options.hidden)
    model = Reader(layer, problem.outputs)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, DESCENT_RATE, MOMENTUM)
    losses: list[float] = []
    largest = 0.0
    for _ in range(DESCENT_STEPS):
        inputs, target = problem.batch(options.length, options.batch, generator)
        optimizer.zero_grad(set_to_none=True)
        loss = problem.loss(model(inputs), target)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        largest = max(largest, float(norm))
        if clipping == "norm":
            nn.utils.clip_grad_norm_(parameters, options.clip)
        elif clipping == "value":
            nn.utils.clip_grad_value_(parameters, options.clip / 100)
        optimizer.step()
    return Descent(losses, largest)


def draw(path: Path, outcomes: Mapping[str, Outcome], descents: Mapping[str, Descent]) -> None:
    """Last errors as bars, and losses with and without clipping."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    names = list(outcomes)
    left.barh(names, [outcomes[name].error for name in names])
    left.axvline(Adding.solved, color="black", linewidth=0.8)
    left.invert_yaxis()
    left.set(xscale="log", xlabel=Adding.measure, title="adding problem, after training")
    for name, each in descents.items():
        finite = [loss for loss in each.losses if math.isfinite(loss)]
        right.plot(finite, label=f"clipping: {name}")
        if len(finite) < len(each.losses):
            right.plot(len(finite) - 1, finite[-1], "x", color=right.lines[-1].get_color())
    right.set(yscale="log", xlabel="step", title="loss of a network with exploding gradients")
    right.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def run(options: argparse.Namespace) -> list[str]:
    started = time.perf_counter()
    problem = problem_of(options.data)
    chosen = networks(options.length)
    outcomes: dict[str, Outcome] = {}
    models: dict[str, Reader] = {}
    total = len(chosen) * options.steps
    with optional("tqdm").tqdm(total=total, unit="step", disable=None) as bar:
        for name, network in chosen.items():
            bar.set_description(name)
            models[name], outcomes[name] = learn(network, problem, options.length, options, bar)
    descents = {clipping: descend(clipping, problem, options) for clipping in CLIPPINGS}

    print(f"adding problem, T={options.length}: steps until solved, or the last error")
    print_table(["network", "steps"], [[name, cell(each)] for name, each in outcomes.items()])
    print("\nplain gradient descent of a network whose state grows: last loss, largest gradient")
    print_table(
        ["clipping", "loss", "gradient"],
        [
            [name, f"{each.losses[-1]:.2g}", f"{each.largest_gradient:.2g}"]
            for name, each in descents.items()
        ],
    )
    name = stem(options)
    draw(options.out / f"{name}.png", outcomes, descents)
    write_checkpoint(options.out / f"{name}.pt", models, hidden=options.hidden)
    write_results(
        options.out / f"{name}.json",
        options,
        {
            "length": options.length,
            "most_steps": options.steps,
            "networks": {key: each._asdict() for key, each in outcomes.items()},
            "clipping": {
                clipping: {
                    "exploded": each.exploded,
                    "first_loss": each.losses[0],
                    "last_loss": each.losses[-1] if math.isfinite(each.losses[-1]) else None,
                    "largest_gradient": each.largest_gradient,
                    "steps": len(each.losses),
                }
                for clipping, each in descents.items()
            },
        },
        started=started,
    )
    print(f"\nwritten to {options.out}/: {name}.json, {name}.png, {name}.pt")
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parse(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
