"""Language models of characters: n-grams that count, and recurrent networks that learn.

``python -m fastrnn.examples.language_models [--data TEXT]`` measures all of them on the same
held-out end of a text: n-grams under the Markov assumption, with smoothing; then a vanilla RNN, a
GRU and an LSTM, trained by truncated backpropagation through time with carried state. It prints
the table of perplexities and a sample of each network, and writes ``language_models.json``,
``.png`` (training curves, perplexities) and ``.pt`` (all three networks) to ``--out``.

The page with formulas and results: ``docs/language_models.md``, beside this file.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..nn import NGramModel
from ..nn.ngram import Smoothing
from . import pictures
from .program import (
    common_parser,
    duration,
    execute,
    library,
    parse_options,
    positive,
    positive_float,
    print_table,
    read_checkpoint,
    size_of,
    smooth,
    stem,
    train,
    write_checkpoint,
    write_results,
)
from .text import Streams, Vocabulary, read_text, split
from .training import CharModel, State, detached, sample

KINDS = ("RNN", "GRU", "LSTM")
NAMES = {"RNN": "vanilla RNN", "GRU": "GRU", "LSTM": "LSTM"}
#: Order and smoothing of the n-grams of the table.
NGRAMS: tuple[tuple[int, Smoothing], ...] = (
    (1, "add-k"),
    (2, "add-k"),
    (3, "add-k"),
    (2, "witten-bell"),
    (3, "witten-bell"),
    (2, "kneser-ney"),
    (3, "kneser-ney"),
    (5, "kneser-ney"),
    (6, "kneser-ney"),
    (7, "kneser-ney"),
)
#: The highest learning rate of each kind.
LEARNING_RATES = {"RNN": 2e-3, "GRU": 4e-3, "LSTM": 6e-3}
TEMPERATURES = (0.5, 1.0)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common_parser(
        "language_models",
        "Perplexities of n-grams, a vanilla RNN, a GRU and an LSTM on the same held-out text.",
        data="text to learn (default: the sources of the standard library)",
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="networks")
    parser.add_argument("--steps", type=positive, default=500, help="steps of each training")
    parser.add_argument("--hidden", type=positive, default=192, help="hidden units")
    parser.add_argument("--layers", type=positive, default=1, help="recurrent layers")
    parser.add_argument("--batch", type=positive, default=32, help="streams of text side by side")
    parser.add_argument("--window", type=positive, default=50, help="steps back through time")
    parser.add_argument("--sample", type=positive, default=300, help="characters of each sample")
    parser.add_argument("--prompt", default="\n", help="text the samples go on from")
    parser.add_argument(
        "--temperatures", nargs="+", type=positive_float, default=TEMPERATURES, help="of samples"
    )
    options = parse_options(parser, arguments)
    if not options.prompt:
        parser.error("--prompt: expected at least one character")
    return options


class CarriedState:
    """The loss of one window after another, each starting from the state the last one ended in.

    The state is a number to the next window, not a function of the weights: gradients go back to
    the start of their window and no further.
    """

    def __init__(self, model: CharModel) -> None:
        self._model = model
        self._state: State = None

    def __call__(self, window: tuple[Tensor, Tensor, bool]) -> Tensor:
        inputs, targets, first = window
        loss, state = self._model.loss((inputs, targets), None if first else self._state)
        self._state = detached(state)
        return loss


def windows(streams: Streams) -> list[tuple[Tensor, Tensor, bool]]:
    """Inputs and targets of all windows, in their order; True marks the first."""
    return [(*streams.window(index), index == 0) for index in range(len(streams))]


@torch.inference_mode()
def network_loss(model: CharModel, streams: Streams) -> float:
    """Mean cross entropy over all windows, in nats per character."""
    loss = CarriedState(model)
    return sum(loss(window).item() for window in windows(streams)) / len(streams)


def ngram_loss(model: NGramModel, streams: Streams) -> float:
    """The same of an n-gram model: every stream is a text of its own, as it is to a network."""
    return -model.log_prob(streams.numbers)[:, 1:].mean().item()


def row(name: str, size: int, loss: float, seconds: float) -> dict[str, Any]:
    return {
        "model": name,
        "size": size,
        "nats": round(loss, 4),
        "perplexity": round(math.exp(loss), 3),
        "seconds": round(seconds, 2),
    }


def ngram_rows(numbers: Tensor, held_out: Streams, symbols: int) -> list[dict[str, Any]]:
    rows = []
    for order, smoothing in NGRAMS:
        start = time.perf_counter()
        model = NGramModel(numbers, symbols, order, smoothing)
        seconds = time.perf_counter() - start
        name = {1: "unigram", 2: "bigram", 3: "trigram"}.get(order, f"{order}-gram")
        rows.append(row(f"{name}, {smoothing}", len(model), ngram_loss(model, held_out), seconds))
    return rows


def build(kind: str, config: Mapping[str, Any], backend: str) -> CharModel:
    layer_class = getattr(library(backend), kind)
    return CharModel(layer_class, len(config["vocabulary"]), config["hidden"], config["layers"])


def load(path: Path, backend: str = "auto") -> tuple[dict[str, CharModel], Vocabulary]:
    """The networks of a checkpoint, by kind, on the layers of the library of one's choice."""
    checkpoint = read_checkpoint(path)
    models = {kind: build(kind, checkpoint, backend) for kind in checkpoint["models"]}
    for kind, model in models.items():
        model.load_state_dict(checkpoint["models"][kind])
        model.eval()
    return models, Vocabulary(checkpoint["vocabulary"])


def run(options: argparse.Namespace) -> list[str]:
    started = time.perf_counter()
    text = read_text(options.data)
    vocabulary = Vocabulary.of(text)
    streams, held_out = split(vocabulary.encode(text), options.batch, options.window)
    counted = streams.numbers.flatten()  # the streams are pieces of one text, in order
    config = {
        "vocabulary": vocabulary.characters,
        "hidden": options.hidden,
        "layers": options.layers,
    }
    rows = ngram_rows(counted, held_out, len(vocabulary))

    models: dict[str, CharModel] = {}
    curves = {}
    for kind in options.kinds:
        torch.manual_seed(options.seed)
        models[kind] = build(kind, config, options.backend)
        training = train(
            models[kind],
            windows(streams),
            CarriedState(models[kind]),
            steps=options.steps,
            learning_rate=LEARNING_RATES[kind],
            label=NAMES[kind],
        )
        loss = network_loss(models[kind], held_out)
        rows.append(row(NAMES[kind], size_of(models[kind]), loss, training.seconds))
        curves[NAMES[kind]] = smooth(training.losses)

    print_table(
        ("model", "counts or parameters", "nats/character", "perplexity", "learned in"),
        [
            (
                r["model"],
                f"{r['size']:,}",
                f"{r['nats']:.3f}",
                f"{r['perplexity']:.2f}",
                duration(r["seconds"]),
            )
            for r in rows
        ],
    )
    samples = {}
    for kind, model in models.items():
        for temperature in options.temperatures:
            drawn = sample(
                model, vocabulary, options.prompt, options.sample, temperature, options.seed
            )
            samples[f"{NAMES[kind]}, temperature {temperature}"] = drawn
            indented = drawn.strip().replace("\n", "\n    ")
            print(f"\n{NAMES[kind]}, temperature {temperature}:\n\n    {indented}")

    path = options.out / stem(options)
    results = {
        "characters": {"trained": len(counted), "held_out": held_out.numbers[:, 1:].numel()},
        "kinds_of_characters": len(vocabulary),
        "steps": options.steps,
        "rows": rows,
        "curves": curves,
        "samples": samples,
    }
    content = write_results(path.with_suffix(".json"), options, results, started=started)
    write_checkpoint(path.with_suffix(".pt"), models, **config)
    pictures.draw(options.program, path.with_suffix(".png"), content)
    print(f"\nwritten: {path}.json, .pt, .png")
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parse(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
