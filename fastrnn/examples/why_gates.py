"""Why gates: gradients over time, and which networks learn what lies many steps back.

``python -m fastrnn.examples.why_gates`` draws, for vanilla layers with a small, a critical and a
large spectral radius, with relu and identity, and for a GRU and an LSTM, what of a gradient reaches
each step, the eigenvalues of the recurrent weights, and how long an input still moves the last
state. Then each learns the adding problem and the temporal order problem at growing lengths; and a
network whose gradients explode learns without clipping, with it by norm, and by value. It writes
``why_gates.json``, ``.png`` and ``.pt`` to ``--out``. ``--data`` reads a text, whose characters are
the sequences for the pictures.

The page with formulas and results: ``docs/why_gates.md``, beside this file.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import diagnostics, use_backend
from ..diagnostics import plots
from ..nn import init
from .long_memory import PROBLEMS, Outcome, Problem, Reader
from .program import (
    common_parser,
    execute,
    library,
    optional,
    parse_options,
    positive,
    positive_float,
    print_table,
    pyplot,
    stem,
    write_checkpoint,
    write_results,
)

#: Steps between two looks at held-out sequences.
BLOCK = 50
#: Held-out sequences.
HELD_OUT = 500
#: Steps of plain gradient descent, with and without clipping.
DESCENT_STEPS = 100
#: A loss this many times the first one has exploded.
EXPLODED = 100.0


class Network(NamedTuple):
    """A row of the table: which layer, and how its weights begin."""

    layer: str
    prepare: Callable[[nn.Module], object]
    nonlinearity: str = "tanh"

    def make(self, backend: str, inputs: int, hidden: int) -> nn.RNNBase:
        more = {"nonlinearity": self.nonlinearity} if self.layer == "RNN" else {}
        layer: nn.RNNBase = getattr(library(backend), self.layer)(inputs, hidden, **more)
        self.prepare(layer)
        return layer


def _scaled(radius: float) -> Callable[[nn.Module], object]:
    return lambda layer: init.recurrent_scaled_(init.recurrent_orthogonal_(layer), radius)


def _gated(layer: nn.Module) -> None:
    init.recurrent_orthogonal_(layer)
    if isinstance(layer, nn.RNNBase) and layer.mode == "LSTM":
        init.forget_bias_(layer, 1.0)


NETWORKS: dict[str, Network] = {
    "vanilla, radius 0.5": Network("RNN", _scaled(0.5)),
    "vanilla, radius 1": Network("RNN", _scaled(1.0)),
    "vanilla, radius 1.5": Network("RNN", _scaled(1.5)),
    "relu, identity": Network("RNN", init.recurrent_identity_, "relu"),
    "GRU": Network("GRU", _gated),
    "LSTM": Network("LSTM", _gated),
}
#: What is done to gradients, and a network that needs it: its state grows by 3 % in each step.
CLIPPINGS = ("none", "norm", "value")
GROWING = Network("RNN", lambda layer: init.recurrent_identity_(layer, 1.03), "relu")
#: Momentum and rate of plain gradient descent there; Adam divides by the size of gradients.
DESCENT_RATE, MOMENTUM = 0.01, 0.9


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common_parser(
        "why_gates",
        "Gradients over time, and which networks learn what lies many steps back.",
        data="text whose characters are the sequences for the pictures (default: random symbols)",
    )
    parser.add_argument(
        "--lengths", nargs="+", type=positive, default=[10, 30, 60], help="steps of the problems"
    )
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK"
    )
    parser.add_argument("--steps", type=positive, default=600, help="most steps of a training")
    parser.add_argument("--hidden", type=positive, default=48, help="units")
    parser.add_argument("--batch", type=positive, default=32, help="sequences in a batch")
    parser.add_argument("--rate", type=positive_float, default=3e-3, help="learning rate")
    parser.add_argument("--clip", type=positive_float, default=1.0, help="bound of gradients")
    parser.add_argument("--pictured", type=positive, default=100, help="steps in the pictures")
    return parse_options(parser, arguments)


def learn(
    network: Network,
    problem: Problem,
    length: int,
    options: argparse.Namespace,
    bar: Any,
) -> tuple[Reader, Outcome]:
    """Train until the problem is solved, the loss has exploded, or the steps are used up."""
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


class Descent(NamedTuple):
    """Losses of plain gradient descent, up to the step at which they are no numbers any more."""

    losses: list[float]
    largest_gradient: float

    @property
    def exploded(self) -> bool:
        return not math.isfinite(self.losses[-1]) or self.losses[-1] > EXPLODED * self.losses[0]


def descend(clipping: str, length: int, options: argparse.Namespace) -> Descent:
    """Learn the adding problem by a network whose gradients explode."""
    problem = PROBLEMS["adding"]
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    layer = GROWING.make(options.backend, problem.inputs, options.hidden)
    model = Reader(layer, problem.outputs)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, DESCENT_RATE, MOMENTUM)
    losses: list[float] = []
    largest = 0.0
    for _ in range(DESCENT_STEPS):
        inputs, target = problem.batch(length, options.batch, generator)
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


class Picture(NamedTuple):
    """What is drawn of a fresh network."""

    norms: Tensor  # (T,) of dL/dh_t
    influence: Tensor  # (T,) mean over rows
    eigenvalues: Tensor  # (H,) of the recurrent weights that feed the state
    forgetting: float | None  # median forgetting time


def picture(network: Network, inputs: Tensor, options: argparse.Namespace) -> Picture:
    """inputs: ``(T, B, I)``."""
    torch.manual_seed(options.seed)
    layer = network.make("auto", inputs.shape[-1], options.hidden)
    forgetting = None
    with use_backend(None):  # torch.nn's layers do not give what is wanted here
        norms = diagnostics.state_gradients(layer, inputs)[0].norms()
        influence = diagnostics.influence(layer, inputs).mean(1)
        if network.layer != "RNN":
            times = diagnostics.forgetting_time(diagnostics.trace(layer, inputs)[0])
            forgetting = times.median().item()
    return Picture(norms, influence, diagnostics.eigenvalues(layer), forgetting)


def sequences(options: argparse.Namespace) -> Tensor:
    """One-hot symbols ``(T, B, I)`` for the pictures: of a text, or drawn at random."""
    steps, rows = options.pictured, 8
    if options.data is None:
        generator = torch.Generator().manual_seed(options.seed)
        symbols = torch.randint(0, 32, (rows, steps), generator=generator)
    else:
        text = options.data.read_text(encoding="utf-8")
        if len(text) < rows * steps:
            raise ValueError(f"data: expected {rows * steps} characters or more, got {len(text)}")
        kinds = {character: k for k, character in enumerate(sorted(set(text)))}
        symbols = torch.tensor([kinds[character] for character in text[: rows * steps]])
        symbols = symbols.view(rows, steps)
    return nn.functional.one_hot(symbols.t()).float()


def draw(path: Path, pictures: Mapping[str, Picture], descents: Mapping[str, Descent]) -> None:
    """Gradients, influence, eigenvalues, and losses with and without clipping."""
    plt = pyplot()
    figure, panels = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    plots.plot_norms(
        {name: each.norms for name, each in pictures.items()},
        panels[0, 0],
        title="norm of the last state's gradient at each step",
    )
    plots.plot_norms(
        {name: each.influence for name, each in pictures.items()},
        panels[0, 1],
        title="how much another input at a step changes the last state",
    )
    plots.plot_eigenvalues(
        {name: each.eigenvalues for name, each in pictures.items() if name.startswith("vanilla")},
        panels[1, 0],
        title="eigenvalues of the recurrent weights",
    )
    axis = panels[1, 1]
    for name, each in descents.items():
        finite = [loss for loss in each.losses if math.isfinite(loss)]
        axis.plot(finite, label=f"clipping: {name}")
        if len(finite) < len(each.losses):
            axis.plot(len(finite) - 1, finite[-1], "x", color=axis.lines[-1].get_color())
    axis.set(yscale="log", xlabel="step", title="loss of a network with exploding gradients")
    axis.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def run(options: argparse.Namespace) -> list[str]:
    started = time.perf_counter()
    inputs = sequences(options)
    pictures = {name: picture(NETWORKS[name], inputs, options) for name in options.networks}
    longest = max(options.lengths)
    descents = {clipping: descend(clipping, longest, options) for clipping in CLIPPINGS}
    outcomes: dict[str, dict[str, dict[int, Outcome]]] = {}
    models: dict[str, nn.Module] = {}
    total = len(PROBLEMS) * len(options.networks) * len(options.lengths) * options.steps
    with optional("tqdm").tqdm(total=total, unit="step", disable=None) as bar:
        for problem_name, problem in PROBLEMS.items():
            rows = outcomes.setdefault(problem_name, {})
            for name in options.networks:
                for length in options.lengths:
                    bar.set_description(f"{problem_name}, {name}, T={length}")
                    model, outcome = learn(NETWORKS[name], problem, length, options, bar)
                    rows.setdefault(name, {})[length] = outcome
                models[f"{problem_name}, {name}"] = model

    for problem_name, rows in outcomes.items():
        problem = PROBLEMS[problem_name]
        print(f"\n{problem_name}: steps until solved ({problem.measure} <= {problem.solved:g}),")
        print(f"or the last {problem.measure} (chance: {problem.chance:.2g})")
        print_table(
            ["network", *(f"T={length}" for length in options.lengths)],
            [[name, *(cell(each) for each in row.values())] for name, row in rows.items()],
        )
    print(f"\nadding problem, T={longest}, plain gradient descent: last loss, largest gradient")
    print_table(
        ["clipping", "loss", "gradient"],
        [
            [name, f"{each.losses[-1]:.2g}", f"{each.largest_gradient:.2g}"]
            for name, each in descents.items()
        ],
    )
    name = stem(options)
    draw(options.out / f"{name}.png", pictures, descents)
    sizes = {"hidden": options.hidden, "longest": longest}
    write_checkpoint(options.out / f"{name}.pt", models, **sizes)
    write_results(
        options.out / f"{name}.json",
        options,
        {
            "problems": {
                problem_name: {
                    row_name: {
                        str(length): {
                            "solved": each.solved,
                            "steps": each.steps,
                            "error": each.error,
                        }
                        for length, each in row.items()
                    }
                    for row_name, row in rows.items()
                }
                for problem_name, rows in outcomes.items()
            },
            "clipping": {
                clipping: {
                    "exploded": each.exploded,
                    "first_loss": each.losses[0],
                    "last_loss": each.losses[-1] if math.isfinite(each.losses[-1]) else None,
                    "steps": len(each.losses),
                }
                for clipping, each in descents.items()
            },
            "gradients": {
                picture_name: {
                    "first_over_last": (each.norms[0] / each.norms[-1]).item(),
                    "spectral_radius": each.eigenvalues.abs().max().item(),
                    "median_forgetting_time": each.forgetting,
                }
                for picture_name, each in pictures.items()
            },
        },
        started=started,
    )
    print(f"\nwritten to {options.out}/: {name}.json, {name}.png, {name}.pt")
    return []


def cell(outcome: Outcome) -> str:
    """An outcome as a cell of the table."""
    return f"{outcome.steps}" if outcome.solved else f"({outcome.error:.2g})"


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parse(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
