"""Why gates: gradients over time, and which networks learn what lies many steps back.

``python -m fastrnn.examples.why_gates`` draws, for vanilla layers with a small, a critical and a
large spectral radius, with relu and identity, and for a GRU and an LSTM, what of a gradient reaches
each step, the eigenvalues of the recurrent weights, and how long an input still moves the last
state. Then each learns the adding problem and the temporal order problem at growing lengths. It
writes ``why_gates.json``, ``.png`` and ``.pt`` to ``--out``. ``--data`` reads a text, whose
characters are the sequences for the pictures.

The page with formulas and results: ``docs/why_gates.md``, beside this file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import diagnostics, use_backend
from ..diagnostics import plots
from ..nn import init
from .long_memory import PROBLEMS, Network, Outcome, Reader, add_options, cell, learn
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
    add_options(parser, steps=1500)
    parser.add_argument("--pictured", type=positive, default=100, help="steps in the pictures")
    return parse_options(parser, arguments)


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


def draw(
    path: Path, pictures: Mapping[str, Picture], gates: Mapping[str, diagnostics.Saturation]
) -> None:
    """Gradients, influence, eigenvalues, and gates of the LSTM that learned the longest sums."""
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
    plots.plot_saturation(
        gates, panels[1, 1], title="gates of the LSTM that learned the adding problem"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def gates_of(
    models: Mapping[str, Reader], options: argparse.Namespace
) -> dict[str, diagnostics.Saturation]:
    """Saturation of the trained LSTM's gates; empty where there is none."""
    model = models.get("adding, LSTM")
    if model is None:
        return {}
    generator = torch.Generator().manual_seed(options.seed)
    inputs, _ = PROBLEMS["adding"].batch(max(options.lengths), 32, generator)
    with use_backend(None):
        return diagnostics.saturation(diagnostics.trace(model.layers, inputs)[0])


def run(options: argparse.Namespace) -> list[str]:
    started = time.perf_counter()
    inputs = sequences(options)
    pictures = {name: picture(NETWORKS[name], inputs, options) for name in options.networks}
    outcomes: dict[str, dict[str, dict[int, Outcome]]] = {}
    models: dict[str, Reader] = {}
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
    name = stem(options)
    draw(options.out / f"{name}.png", pictures, gates_of(models, options))
    write_checkpoint(options.out / f"{name}.pt", models, hidden=options.hidden)
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


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parse(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
