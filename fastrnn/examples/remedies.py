"""Remedies: initial values, forget biases, and clipping of gradients that explode.

``python -m fastrnn.examples.remedies`` trains vanilla layers from default, orthogonal, identity and
scaled weights, and LSTMs with forget biases of 0, 1 and those of chrono initialisation, on the
temporal order problem, several times each. Then a network whose gradients explode goes down its
gradient without clipping, with it by norm, and by value. It writes ``remedies.json``, ``.png`` and
``.pt`` to ``--out``. ``--data`` reads a text, in whose characters the problem then hides its
symbols.

The page with formulas and results: ``docs/remedies.md``, beside this file.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..nn import init
from .long_memory import (
    Adding,
    Network,
    Outcome,
    Reader,
    add_options,
    learn,
    length,
    load,
    problems,
    save,
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
    write_results,
)

__all__ = ["load", "main", "networks", "run"]

#: Steps of plain gradient descent, with and without clipping, its rate and momentum. (Adam divides
#: by the size of gradients, and hides what clipping does.)
DESCENT_STEPS, DESCENT_RATE, MOMENTUM = 100, 3e-3, 0.9
#: Steps of the sequences of the adding problem that it descends on.
DESCENT_LENGTH = 60
#: A loss this many times the first one has exploded.
EXPLODED = 100.0
CLIPPINGS = ("none", "norm", "value")
#: A network that needs it: nothing holds back the state of a linear unit.
UNBOUNDED = Network("RNN", init.recurrent_identity_, "relu")


def _forget(value: float) -> Callable[[nn.Module], object]:
    return lambda layer: init.forget_bias_(layer, value)


def networks(longest: int) -> dict[str, Network]:
    """By name; ``longest`` is the longest dependency, for chrono initialisation."""
    return {
        "vanilla": Network("RNN", lambda layer: layer),
        "vanilla, scaled to radius 1": Network("RNN", init.recurrent_scaled_),
        "vanilla, identity": Network("RNN", init.recurrent_identity_),
        "vanilla, orthogonal": Network("RNN", init.recurrent_orthogonal_),
        "relu": Network("RNN", lambda layer: layer, "relu"),
        "relu, identity": Network("RNN", init.recurrent_identity_, "relu"),
        "LSTM, forget bias 0": Network("LSTM", _forget(0.0)),
        "LSTM, forget bias 1": Network("LSTM", _forget(1.0)),
        "LSTM, chrono": Network("LSTM", lambda layer: init.chrono_(layer, longest)),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common_parser(
        "remedies",
        "Initial values, forget biases, and clipping of gradients that explode.",
        data="text to hide the symbols of the temporal order problem in (default: four symbols)",
    )
    parser.add_argument("--length", type=length, default=40, help="steps of the sequences")
    parser.add_argument("--repeats", type=positive, default=3, help="trainings of each network")
    add_options(parser, steps=1500, rate=1e-3)
    return parse_options(parser, arguments)


class Descent(NamedTuple):
    """Losses and norms of gradients, up to the step at which a loss is no number any more."""

    losses: list[float]
    norms: list[float]

    @property
    def exploded(self) -> bool:
        finite = math.isfinite(self.losses[-1])
        return not finite or max(self.losses) > EXPLODED * self.losses[0]

    def summary(self) -> dict[str, Any]:
        """Without what JSON has no numbers for."""
        losses = [loss for loss in self.losses if math.isfinite(loss)]
        norms = [norm for norm in self.norms if math.isfinite(norm)]
        return {
            "exploded": self.exploded,
            "first_loss": losses[0],
            "largest_loss": max(losses),
            "last_loss": losses[-1] if len(losses) == len(self.losses) else None,
            "largest_gradient": max(norms) if len(norms) == len(self.norms) else None,
            "steps": len(self.losses),
        }


def descend(clipping: str, options: argparse.Namespace) -> Descent:
    """Plain gradient descent of a network whose gradients explode, on the adding problem."""
    problem = Adding()
    generator = torch.Generator().manual_seed(options.seed)
    model = UNBOUNDED.reader(problem, options, options.seed)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, DESCENT_RATE, MOMENTUM)
    descent = Descent([], [])
    for _ in range(DESCENT_STEPS):
        inputs, target = problem.batch(DESCENT_LENGTH, options.batch, generator)
        optimizer.zero_grad(set_to_none=True)
        loss = problem.loss(model(inputs), target)
        descent.losses.append(loss.item())
        if not loss.isfinite():
            break
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        descent.norms.append(norm.item())
        if clipping == "norm":
            nn.utils.clip_grad_norm_(parameters, options.clip)
        elif clipping == "value":
            nn.utils.clip_grad_value_(parameters, options.clip / 100)
        optimizer.step()
    return descent


def median_steps(outcomes: Sequence[Outcome]) -> float:
    """Of all trainings; those that did not solve the problem took longer than any that did."""
    return statistics.median(each.steps if each.solved else math.inf for each in outcomes)


# Drawing.

#: Of a family of networks, by how its names begin; of a clipping.
COLORS = {"vanilla": "#2f7fc1", "relu": "#e69f00", "LSTM": "#c8372d"}
CLIPPING_COLORS = {"none": "#30323d", "norm": "#009e73", "value": "#b07cc6"}


def draw(
    path: Path,
    outcomes: Mapping[str, Sequence[Outcome]],
    descents: Mapping[str, Descent],
    options: argparse.Namespace,
) -> None:
    """Steps until solved as bars; losses and gradients with and without clipping."""
    plt = pyplot()
    figure = plt.figure(figsize=(16, 5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15)
    solved, losses, gradients = figure.subplots(1, 3, width_ratios=[1.1, 1, 1])
    _draw_outcomes(outcomes, options.steps, solved)
    solved.set_title(f"Temporal order, T = {options.length}: steps until solved")
    for clipping, each in descents.items():
        label = "no clipping" if clipping == "none" else f"clipped by {clipping}"
        losses.plot(each.losses, color=CLIPPING_COLORS[clipping], label=label)
        gradients.plot(each.norms, color=CLIPPING_COLORS[clipping], label=label)
    losses.set(ylabel="mean squared error", title="Plain gradient descent: loss")
    gradients.set(ylabel="norm", title="Its gradient before clipping")
    for axes, place in ((losses, (0.55, 0.2)), (gradients, (0.55, 0.75))):
        axes.set(yscale="log", xlabel="step")
        axes.legend(loc=place, frameon=False)
    _mark_explosion(descents["none"].losses, losses)
    for axes in (solved, losses, gradients):
        title = axes.get_title()
        axes.set_title("")
        axes.set_title(title, loc="left", fontsize=11, weight="bold")
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=85)
    plt.close(figure)


def _mark_explosion(losses: Sequence[float], axes: Any) -> None:
    """At the largest loss, or the last before there are no numbers."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    step = finite.index(max(finite))
    digits, exponent = f"{finite[step]:.0e}".split("e")
    text = rf"{finite[0]:.1f} to ${digits}\times 10^{{{int(exponent)}}}$ by step {step}"
    if len(finite) < len(losses):
        step, text = len(finite) - 1, "no number after this"
    axes.annotate(
        text,
        (step, finite[step]),
        xytext=(25, 0),
        textcoords="offset points",
        va="center",
        arrowprops={"arrowstyle": "->", "color": CLIPPING_COLORS["none"]},
    )


def _draw_outcomes(outcomes: Mapping[str, Sequence[Outcome]], most: int, axes: Any) -> None:
    """The median as a bar, hatched up to the end where it is not solved; each training as a dot."""
    for row, (name, each) in enumerate(outcomes.items()):
        color = next(color for family, color in COLORS.items() if name.startswith(family))
        median = median_steps(each)
        bar = min(median, most)
        unsolved = {"fill": False, "hatch": "////", "edgecolor": color, "alpha": 0.5}
        axes.barh(row, bar, height=0.7, **({"color": color} if median <= most else unsolved))
        dots = [(one.steps, k) for k, one in enumerate(each) if one.solved]
        for steps, k in dots:  # one below the other
            place = row + 0.4 * (k + 0.5) / len(each) - 0.2
            axes.plot(steps, place, "o", markersize=5, color="white", markeredgecolor="black")
        text = f"{median:,.0f}" if median <= most else "not solved"
        axes.text(max([bar, *(x for x, _ in dots)]) + 0.03 * most, row, text, va="center")
    axes.set_yticks(range(len(outcomes)), list(outcomes))
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1.2 * most), xlabel="steps (bar: median, dot: a training)")
    axes.set_xticks([k * most / 3 for k in range(4)], [f"{k * most / 3:,.0f}" for k in range(4)])


def run(options: argparse.Namespace) -> list[str]:
    started, used = time.perf_counter(), time.process_time()
    problem = problems(options.data, options.length)["temporal order"]
    chosen = networks(options.length)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in chosen}
    models: dict[str, Reader] = {}
    total = len(chosen) * options.repeats * options.steps
    with optional("tqdm").tqdm(total=total, unit="step", disable=None) as bar:
        for name, network in chosen.items():
            bar.set_description(name)
            for seed in range(options.seed, options.seed + options.repeats):
                models[name], outcome = learn(
                    network, problem, options.length, options, bar, seed=seed
                )
                outcomes[name].append(outcome)
    descents = {clipping: descend(clipping, options) for clipping in CLIPPINGS}

    print(f"temporal order, T={options.length}: steps until solved, or the last error")
    numbers = [f"training {k + 1}" for k in range(options.repeats)]
    print_table(["network", *numbers], [[name, *map(str, e)] for name, e in outcomes.items()])
    print("\nplain gradient descent of a network without bounds: losses, largest gradient")
    print_table(
        ["clipping", "first", "largest", "last", "gradient"],
        [
            [name, *(f"{x:.2g}" for x in (e.losses[0], max(e.losses), e.losses[-1], max(e.norms)))]
            for name, e in descents.items()
        ],
    )
    name = stem(options)
    draw(options.out / f"{name}.png", outcomes, descents, options)
    save(options.out / f"{name}.pt", models)
    write_results(
        options.out / f"{name}.json",
        options,
        {
            "processor_seconds": round(time.process_time() - used, 1),
            "length": options.length,
            "most_steps": options.steps,
            "networks": {
                key: {
                    "solved": sum(each.solved for each in row),
                    "trainings": [each._asdict() for each in row],
                }
                for key, row in outcomes.items()
            },
            "clipping": {key: each.summary() for key, each in descents.items()},
        },
        started=started,
    )
    print(f"\nwritten to {options.out}/: {name}.json, {name}.png, {name}.pt")
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parse(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
