"""Why gates: gradients over time, and which networks learn what lies many steps back.

``python -m fastrnn.examples.why_gates`` shows the mechanism on vanilla layers of a small, a
critical and a large spectral radius: power iteration, and products of Jacobians with their bound.
Then these, a layer with relu and identity, a GRU and an LSTM learn the adding problem and the
temporal order problem at growing lengths, some also without clipping; a network that fails at one
length is not tried at longer ones. Of each, fresh and as it solved the longest sequences, it draws
what of the loss's gradient reaches each step, how long an input moves the last state, and what the
gates do. It writes
``why_gates.json``, ``.png`` and ``.pt`` to ``--out``. ``--data`` reads a text, in whose characters
the temporal order problem then hides its symbols.

The page with formulas and results: ``docs/why_gates.md``, beside this file.
"""

from __future__ import annotations

import itertools
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from .. import use_backend
from ..nn import init
from .long_memory import (
    Network,
    Outcome,
    Problem,
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
    print_table,
    stem,
    write_results,
)
from .why_gates_pictures import draw, mechanism, picture

__all__ = ["NETWORKS", "load", "main", "run"]

#: Sequences in the pictures.
ROWS = 32


def _orthogonal(radius: float) -> Callable[[nn.Module], object]:
    return lambda layer: init.recurrent_orthogonal_(layer, radius)


def _gated(layer: nn.Module) -> None:
    init.recurrent_orthogonal_(layer)
    if isinstance(layer, nn.RNNBase) and layer.mode == "LSTM":
        init.forget_bias_(layer, 1.0)


#: Of a small, a critical and a large spectral radius.
VANILLA = {f"vanilla, radius {r:g}": Network("RNN", _orthogonal(r)) for r in (0.5, 1.0, 1.5)}
NETWORKS: dict[str, Network] = {
    **VANILLA,
    "vanilla, radius 1.5, unclipped": Network("RNN", _orthogonal(1.5), clipped=False),
    "relu, identity": Network("RNN", init.recurrent_identity_, "relu"),
    "relu, identity, unclipped": Network("RNN", init.recurrent_identity_, "relu", clipped=False),
    "GRU": Network("GRU", _gated),
    "LSTM": Network("LSTM", _gated),
}
#: The problem of the pictures: where its symbols stand can be seen in them.
PICTURED = "temporal order"


def parse(arguments: Sequence[str] | None) -> Namespace:
    parser = common_parser(
        "why_gates",
        "Gradients over time, and which networks learn what lies many steps back.",
        data="text to hide the symbols of the temporal order problem in (default: four symbols)",
    )
    parser.add_argument(
        "--lengths", nargs="+", type=length, default=[10, 30, 100, 200], help="steps of sequences"
    )
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK"
    )
    add_options(parser, steps=1500, rate=3e-3)
    parser.add_argument("--pictured", type=length, default=100, help="steps in the pictures")
    return parse_options(parser, arguments)


class Training(NamedTuple):
    """What became of the networks.

    Attributes:
        outcomes: by problem, network and length.
        models: by problem and network, as it solved its longest sequences; where it solved none,
            as it left the shortest, unless its training diverged.
        lengths: of these sequences.
    """

    outcomes: dict[str, dict[str, dict[int, Outcome]]]
    models: dict[str, dict[str, Reader]]
    lengths: dict[str, dict[str, int]]


def train(posed: Mapping[str, Problem], lengths: Sequence[int], options: Namespace) -> Training:
    result = Training({p: {} for p in posed}, {p: {} for p in posed}, {p: {} for p in posed})
    total = len(posed) * len(options.networks) * len(lengths) * options.steps
    with optional("tqdm").tqdm(total=total, unit="step", disable=None) as bar:
        for problem, name in itertools.product(posed, options.networks):
            row = result.outcomes[problem][name] = {}
            for steps in lengths:
                bar.set_description(f"{problem}, {name}, T={steps}")
                model, row[steps] = learn(
                    NETWORKS[name], posed[problem], steps, options, bar, seed=options.seed
                )
                if row[steps].solved or (len(row) == 1 and row[steps].error is not None):
                    result.models[problem][name] = model
                    result.lengths[problem][name] = steps
                if not row[steps].solved:
                    bar.update((len(lengths) - len(row)) * options.steps)
                    break
    return result


def run(options: Namespace) -> list[str]:
    started, used = time.perf_counter(), time.process_time()
    lengths = sorted(set(options.lengths))
    posed = problems(options.data, max(*lengths, options.pictured))
    training = train(posed, lengths, options)

    problem, models = posed[PICTURED], training.models[PICTURED]
    generator = torch.Generator().manual_seed(options.seed)
    batch = problem.batch(options.pictured, ROWS, generator)
    with use_backend(None):  # torch.nn's kernels do not give what the pictures need
        fresh_models = {
            name: network.reader(problem, options, options.seed)
            for name, network in NETWORKS.items()
        }
        # Of all radii, whichever networks are trained.
        mechanisms = {name: mechanism(fresh_models[name], batch, problem) for name in VANILLA}
        fresh = {name: picture(fresh_models[name], batch, problem) for name in models}
        trained = {name: picture(model, batch, problem) for name, model in models.items()}

    for problem_name, rows in training.outcomes.items():
        problem = posed[problem_name]
        print(f"\n{problem_name}: steps until solved ({problem.measure} <= {problem.solved:g}),")
        print(f"or the last {problem.measure} (chance: {problem.chance:.2g})")
        print_table(
            ["network", *(f"T={steps}" for steps in lengths)],
            [[name, *(str(row.get(n, "")) for n in lengths)] for name, row in rows.items()],
        )
    name = stem(options)
    draw(options.out / f"{name}.png", mechanisms, fresh, trained, training.outcomes)
    saved = {
        f"{p}, {key}": model for p, row in training.models.items() for key, model in row.items()
    }
    save(options.out / f"{name}.pt", saved)
    write_results(
        options.out / f"{name}.json",
        options,
        {
            "processor_seconds": round(time.process_time() - used, 1),
            "lengths": lengths,
            "most_steps": options.steps,
            "pictured": options.pictured,
            "problems": {
                problem_name: {
                    key: {str(steps): each._asdict() for steps, each in row.items()}
                    for key, row in rows.items()
                }
                for problem_name, rows in training.outcomes.items()
            },
            "mechanism": {key: each.summary() for key, each in mechanisms.items()},
            "gradients": {
                key: {
                    "trained_on": training.lengths[PICTURED][key],
                    "fresh": fresh[key].summary(),
                    "trained": each.summary(),
                }
                for key, each in trained.items()
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
