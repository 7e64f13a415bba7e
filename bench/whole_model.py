"""Whole models, as they are and compiled: ``python -m bench.whole_model``.

What a recurrent layer costs a model is more than its own time: ``torch.compile`` breaks its graph
at the modules of ``torch.nn``, and without lengths and resets a model works around them. Each model
is written once, with what either library has a user write where they differ. It is checked against
``torch.nn`` in float64 before it is timed.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn

from . import machine
from .cases import INFERENCE, MODES, TRAINING
from .timing import Timing, compare
from .workload import OURS, THEIRS, WrongNumbers, shared_rule

RESULTS = Path(__file__).resolve().parent / "results" / "whole-model.json"
SECONDS = 4.0
QUICK_SECONDS = 0.2

LIBRARIES: dict[str, Any] = {THEIRS: nn, OURS: fastrnn}


class Tagger(nn.Module):
    """Labels for the words of sentences of different lengths (Huang et al. 2015, without a CRF)."""

    steps, batch, words, features, units, labels = 40, 16, 10_000, 100, 128, 20

    def __init__(self, library: str) -> None:
        super().__init__()
        self.library = library
        self.embedding = nn.Embedding(self.words, self.features)
        self.encoder = LIBRARIES[library].LSTM(self.features, self.units, bidirectional=True)
        self.head = nn.Linear(2 * self.units, self.labels)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens ``(T, B)``, lengths ``(B,)``; scores ``(T, B, labels)``."""
        x = self.embedding(tokens)
        if self.library == OURS:
            y, _ = self.encoder(x, lengths=lengths)
        else:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            y, _ = pad_packed_sequence(self.encoder(packed)[0], total_length=x.shape[0])
        scores: Tensor = self.head(y)
        return scores

    def arguments(self, mode: str) -> tuple[Tensor, ...]:
        lengths = torch.randint(self.steps // 2, self.steps + 1, (self.batch,))
        return torch.randint(self.words, (self.steps, self.batch)), lengths


class Policy(nn.Module):
    """Actions and values with a memory that ends where an episode ends.

    In training over rollouts, as recurrent PPO has them. Inference is one step of all environments.
    """

    steps, batch, observed, features, units, actions = 32, 16, 24, 64, 128, 6

    def __init__(self, library: str) -> None:
        super().__init__()
        self.library = library
        self.body = nn.Sequential(nn.Linear(self.observed, self.features), nn.Tanh())
        self.memory = LIBRARIES[library].GRU(self.features, self.units)
        self.actor, self.critic = nn.Linear(self.units, self.actions), nn.Linear(self.units, 1)

    def forward(self, observations: Tensor, begins: Tensor, h: Tensor) -> Tensor:
        """Observations ``(T, B, observed)``, begins ``(T, B)``, h ``(1, B, units)``.

        Returns:
            ``(T, B, actions + 1)``: logits of the actions, then the value.
        """
        x = self.body(observations)
        if self.library == OURS:
            y, _ = self.memory(x, h, reset=begins)
        else:  # as CleanRL's recurrent PPO, a step at a time
            ys = []
            for step, begin in zip(x, begins, strict=True):
                y, h = self.memory(step[None], h * ~begin[None, :, None])
                ys.append(y)
            y = torch.cat(ys)
        return torch.cat([self.actor(y), self.critic(y)], dim=-1)

    def arguments(self, mode: str) -> tuple[Tensor, ...]:
        steps = self.steps if mode == TRAINING else 1
        begins = torch.rand(steps, self.batch) < 0.05
        h = torch.randn(1, self.batch, self.units)
        return torch.randn(steps, self.batch, self.observed), begins, h


MODELS: dict[str, Callable[[str], Any]] = {"tagger": Tagger, "policy": Policy}


@dataclass(frozen=True)
class Row:
    """One way to run a model. ratio: times as fast as torch.nn's as it is; spread: of that.

    compile_seconds: of the first call, 0 where nothing is compiled. graphs: how many were.
    """

    model: str
    mode: str
    library: str
    compiled: bool
    seconds: float
    ratio: float
    spread: float
    compile_seconds: float
    graphs: int


class Runs:
    """A model of both libraries with the same weights, and what it is called with."""

    def __init__(self, name: str, mode: str) -> None:
        self.mode = mode
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.models = {library: MODELS[name](library) for library in LIBRARIES}
            self.arguments = self.models[THEIRS].arguments(mode)
            self.upstream = torch.randn_like(self.models[THEIRS](*self.arguments))
        self.models[OURS].load_state_dict(self.models[THEIRS].state_dict())

    def call(self, library: str, *, compiled: bool) -> Callable[[], object]:
        model = self.models[library]
        # No part of a model on torch.nn can be said to be one graph.
        run = torch.compile(model, fullgraph=library == OURS) if compiled else model
        if self.mode == INFERENCE:
            return lambda: run(*self.arguments)
        weights = list(model.parameters())
        return lambda: torch.autograd.grad(run(*self.arguments), weights, self.upstream)

    def check(self, library: str, call: Callable[[], object]) -> None:
        """Compare what a call returns with torch.nn's in float64.

        Raises:
            WrongNumbers: an output or gradient is not within the tests' tolerance.
        """
        exact = copy.deepcopy(self.models[THEIRS]).double()
        given = [t.double() if t.is_floating_point() else t for t in self.arguments]
        expected = exact(*given)
        gradients = self.mode == TRAINING
        if gradients:
            upstream = self.upstream.double()
            expected = torch.autograd.grad(expected, list(exact.parameters()), upstream)
        tolerance, error_in_tolerances = shared_rule()
        model = self.models[library]
        rows = model.steps * model.batch if gradients else 1
        # A gradient sums over the gates of both directions, an output over their units.
        fan_in = (8 if gradients else 2) * model.units
        bounds = tolerance(torch.float32, model.steps, fan_in, rows=rows)
        for got, exactly in zip(_list(call()), _list(expected), strict=True):
            error = error_in_tolerances(got, exactly, **bounds)
            if not error <= 1:
                raise WrongNumbers(f"{library}: off by {error:.3g} times the tolerance")


def _list(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def measure(name: str, mode: str, seconds: float) -> Iterator[Row]:
    """All ways to run a model, each timed in turn with torch.nn's as it is.

    Raises:
        WrongNumbers: see ``Runs.check``.
    """
    runs = Runs(name, mode)
    with torch.inference_mode(mode == INFERENCE):
        base = runs.call(THEIRS, compiled=False)
        for library in LIBRARIES:
            for compiled in (False, True):
                torch._dynamo.reset()
                counters.clear()
                call = runs.call(library, compiled=compiled)
                start = time.perf_counter()
                call()
                first = time.perf_counter() - start
                graphs = int(counters["stats"]["unique_graphs"])
                with torch.inference_mode(False):
                    runs.check(library, call)
                timing: Timing = compare(call, base, seconds)
                yield Row(
                    name,
                    mode,
                    library,
                    compiled,
                    timing.ours,
                    timing.ratio,
                    timing.spread,
                    first if compiled else 0.0,
                    graphs,
                )


HEADER = (
    f"{'model':<7} {'mode':<9} {'library':<9} {'':<9} {'ms':>9} {'ratio':>6} {'+-':>5} "
    f"{'graphs':>6} {'first call, s':>13}"
)


def line(row: Row) -> str:
    """A line of the printed table."""
    text = (
        f"{row.model:<7} {row.mode:<9} {row.library:<9} {'compiled' * row.compiled:<9} "
        f"{row.seconds * 1e3:>9.4g} {row.ratio:>6.2f} {row.spread:>5.2f}"
    )
    return text + (f" {row.graphs:>6} {row.compile_seconds:>13.3g}" if row.compiled else "")


def content(facts: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """All of a run, as JSON has it."""
    return {"machine": dict(facts), "rows": [dataclasses.asdict(row) for row in rows]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.whole_model", description=__doc__)
    parser.add_argument("--threads", type=int, help="threads (default: as torch chooses)")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--quick", action="store_true", help="short measurements")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the JSON file goes")
    options = parser.parse_args(arguments)
    before = torch.get_num_threads()
    rows = []
    try:
        torch.set_num_threads(options.threads or before)
        facts = machine.facts()
        print(HEADER)
        for name in options.models:
            for mode in options.modes:
                for row in measure(name, mode, QUICK_SECONDS if options.quick else SECONDS):
                    rows.append(row)
                    print(line(row), flush=True)
    finally:
        torch.set_num_threads(before)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content(facts, rows), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
