"""A character language model, trained by fastrnn.LSTM and by torch.nn.LSTM side by side.

``python -m fastrnn.examples.char_lm [--data TEXT]`` trains the same model twice, from the same
initial weights and on the same batches: truncated backpropagation through time with carried state
and clipped gradients. The two take turns of a few steps, so that whatever else the machine does
meets both. A third training, the control, shows how far rounding alone drives two such trainings
apart; the program fails (exit status 1) if the two libraries differ by more than that accounts
for.

Written to ``--out``: ``char_lm.png`` (loss curves, their distance, throughput) and ``char_lm.pt``
(a checkpoint that loads with either library).
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import fastrnn
from fastrnn.problem import LayerInputs, Problem

from .program import (
    common_parser,
    execute,
    optional,
    parse_options,
    positive,
    positive_float,
    pyplot,
)
from .text import Streams, Vocabulary, read_text, split
from .training import (
    BLOCK,
    CharModel,
    Control,
    Learner,
    allowed_differences,
    held_out_loss,
    load_checkpoint,
    sample,
    save_checkpoint,
)

CURVE_ROWS = 15


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common_parser(
        "char_lm",
        "Train a character LSTM with fastrnn and with torch.nn, side by side.",
        data="text to learn (default: the sources of the standard library)",
        aliases=["--text"],
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds", type=positive_float, default=55.0, help="time for all trainings together"
    )
    length.add_argument("--steps", type=positive, help="steps of each training, whatever they take")
    parser.add_argument("--hidden", type=positive, default=256, help="hidden units of a layer")
    parser.add_argument("--layers", type=positive, default=1, help="layers of the LSTM")
    parser.add_argument("--batch", type=positive, default=32, help="streams of text side by side")
    parser.add_argument("--window", type=positive, default=50, help="steps back through time")
    parser.add_argument("--sample", type=positive, default=400, help="characters to write")
    parser.add_argument("--prompt", default="\n", help="text the sample goes on from")
    parser.add_argument("--temperature", type=positive_float, default=0.7, help="of the sample")
    options = parse_options(parser, arguments)
    if not options.prompt:
        parser.error("--prompt: expected at least one character")
    return options


def serving_backend(model: CharModel, streams: Streams) -> str:
    """Name of the backend that serves the first layer of a training step."""
    x = torch.empty(streams.steps, streams.numbers.shape[0], model.embedding.embedding_dim)
    weights = list(model.rnn.parameters())[:4]
    problem = Problem.of(
        "lstm",
        LayerInputs(x, None, None, weights, None, None, None),
        directions=1,
        keep_cell_states=False,
        training=True,
    )
    return fastrnn.backends.select(problem).name


def make_learners(vocabulary: Vocabulary, options: argparse.Namespace) -> list[Learner]:
    """fastrnn, torch.nn and the control, all with the same weights."""
    sizes = (len(vocabulary), options.hidden, options.layers)
    torch.manual_seed(options.seed)
    original = CharModel(nn.LSTM, *sizes)
    ours = CharModel(fastrnn.LSTM, *sizes)
    ours.load_state_dict(original.state_dict())
    return [
        Learner("fastrnn.LSTM", ours),
        Learner("torch.nn.LSTM", original),
        Control("control", copy.deepcopy(original), options.seed),
    ]


def train(learners: Sequence[Learner], streams: Streams, options: argparse.Namespace) -> None:
    """Let the learners take turns until each has made the same number of steps."""
    for learner in learners:  # a first call sets up threads, caches, perhaps compiles: not timed
        Learner("warm-up", copy.deepcopy(learner.model)).train(streams, 2)
    start = time.perf_counter()
    total = options.steps or 2 * BLOCK
    bar = optional("tqdm").tqdm(total=total, unit="step", disable=None)  # None: on a terminal
    done = turn = 0
    while done < total:
        steps = min(BLOCK, total - done)
        for place in range(len(learners)):
            learners[(turn + place) % len(learners)].train(streams, steps)
        done, turn = done + steps, turn + 1
        bar.set_postfix({learner.name: f"{learner.losses[-1]:.3f}" for learner in learners[:2]})
        bar.update(steps)
        if options.steps is None and turn == 2:
            # The first turns tell how many fit into the time.
            total = max(total, int(options.seconds / (time.perf_counter() - start) * done))
            bar.total = total
            bar.refresh()
    bar.close()


def print_curves(learners: Sequence[Learner], allowed: Sequence[float]) -> None:
    ours, theirs, _ = learners
    print(f"\n{'step':>6} {ours.name:>14} {theirs.name:>14} {'difference':>12} {'allowed':>10}")
    steps = len(allowed)
    rows = min(CURVE_ROWS, steps)
    for row in range(rows):
        k = row * (steps - 1) // max(rows - 1, 1)
        a, b = ours.losses[k], theirs.losses[k]
        print(f"{k + 1:>6} {a:>14.6f} {b:>14.6f} {abs(a - b):>12.1e} {allowed[k]:>10.1e}")


def draw(
    path: Path, learners: Sequence[Learner], allowed: Sequence[float], speeds: Sequence[float]
) -> None:
    """Loss curves, their distance and the throughputs, as one picture."""
    plt = pyplot()
    ours, theirs, _ = learners
    steps = range(1, len(allowed) + 1)
    distance = [abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
    figure, (curves, apart, speed) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")

    curves.plot(steps, theirs.losses, color="tab:orange", linewidth=4, alpha=0.5)
    curves.plot(steps, ours.losses, color="tab:blue", linewidth=1)
    curves.set(title="Training loss", xlabel="step", ylabel="nats per character")
    curves.legend([theirs.name, ours.name])

    # Where two losses are equal to the last bit there is no logarithm to draw.
    apart.semilogy(steps, [value or float("nan") for value in distance], ".", color="tab:blue")
    apart.semilogy(steps, allowed, color="tab:gray")
    apart.set(title="Distance of the two curves", xlabel="step", ylabel="nats per character")
    apart.legend(["distance", "explained by rounding"])

    bars = speed.bar([ours.name, theirs.name], speeds, color=["tab:blue", "tab:orange"])
    speed.bar_label(bars, fmt="{:,.0f}")
    speed.margins(y=0.1)
    speed.set(title="Training throughput", ylabel="characters per second")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def failures(
    learners: Sequence[Learner], allowed: Sequence[float], held_out: Sequence[float]
) -> list[str]:
    """What shows that the two trainings are not the same, as sentences."""
    ours, theirs, _ = learners
    found = []
    for k, (a, b) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        if not abs(a - b) <= allowed[k]:  # also when one is NaN
            found.append(f"step {k + 1}: losses {a} and {b} differ by more than {allowed[k]:.1e}")
            break
    if not abs(held_out[0] - held_out[1]) <= allowed[-1]:
        found.append(
            f"held-out losses {held_out[0]} and {held_out[1]} differ by more than {allowed[-1]:.1e}"
        )
    return found


def swap_libraries(
    path: Path, held_out: float, streams: Streams, vocabulary: Vocabulary
) -> list[str]:
    """Load a checkpoint with either library and compare with the model it was written from."""
    found = []
    for name, lstm_class in (("torch.nn.LSTM", nn.LSTM), ("fastrnn.LSTM", fastrnn.LSTM)):
        model, loaded = load_checkpoint(path, lstm_class)
        loss = held_out_loss(model, streams)
        print(f"  loaded with {name:<14} {loss:.6f} nats per character on held-out text")
        # The same weights on the same text: only the last digits may depend on the library.
        if loaded.characters != vocabulary.characters or not abs(loss - held_out) <= 1e-5 * loss:
            found.append(f"checkpoint loaded with {name}: {loss}, saved with {held_out}")
    return found


def run(options: argparse.Namespace) -> list[str]:
    """Train, compare, print and write; returns what is wrong."""
    text = read_text(options.data)
    vocabulary = Vocabulary.of(text)
    streams, held_out_streams = split(vocabulary.encode(text), options.batch, options.window)
    learners = make_learners(vocabulary, options)
    ours, theirs, _ = learners
    print(
        f"text        {options.data or 'sources of the standard library'}: {len(text):,} "
        f"characters, {len(vocabulary)} kinds\n"
        f"model       embedding, LSTM of {options.layers} x {options.hidden} units, linear: "
        f"{sum(p.numel() for p in ours.model.parameters()):,} parameters\n"
        f"batch       {options.batch} streams, {options.window} steps\n"
        f"served by   {serving_backend(ours.model, streams)!r}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        flush=True,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    train(learners, streams, options)

    allowed = allowed_differences(theirs.losses, learners[2].losses, options.hidden)
    print_curves(learners, allowed)
    distances = (abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    distance = max(distances, key=lambda d: math.inf if math.isnan(d) else d)
    print(
        f"\nlargest difference of the two curves {distance:.1e} nats per character; rounding alone "
        f"explains up to {max(allowed):.1e}"
    )
    held_out = [held_out_loss(learner.model, held_out_streams) for learner in (ours, theirs)]
    speeds = [learner.characters_per_second(streams) for learner in (ours, theirs)]
    print(f"\n{'':<16} {'held-out nats/char':>20} {'training chars/s':>18}")
    for learner, loss, speed in zip((ours, theirs), held_out, speeds, strict=True):
        print(f"{learner.name:<16} {loss:>20.6f} {speed:>18,.0f}")
    print(f"{'ratio':<16} {'':>20} {speeds[0] / speeds[1]:>18.2f}")

    checkpoint = options.out / "char_lm.pt"
    save_checkpoint(checkpoint, ours.model, vocabulary)
    print(f"\ncheckpoint {checkpoint}, written from the model trained with fastrnn.LSTM")
    wrong = failures(learners, allowed, held_out)
    wrong += swap_libraries(checkpoint, held_out[0], held_out_streams, vocabulary)

    picture = options.out / "char_lm.png"
    draw(picture, learners, allowed, speeds)
    print(f"plot       {picture}")
    if wrong:  # the scores may be NaN, and nobody reads what a wrong model writes
        return wrong
    print(f"\nsample at temperature {options.temperature}:\n")
    drawn = sample(
        ours.model, vocabulary, options.prompt, options.sample, options.temperature, options.seed
    )
    print("    " + drawn.strip().replace("\n", "\n    "))
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    return execute(parse(arguments), run)


if __name__ == "__main__":
    sys.exit(main())
