"""The pictures of the programs, drawn from their results alone.

Each function takes what a program's JSON file holds, so that a stored result can be drawn again
without the time it took to measure. A picture carries a fingerprint of the results and of this
file: ``python -m fastrnn.examples.pages`` draws again what either has changed under.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .names import WAVES
from .program import optional, pyplot, span_label

Content = Mapping[str, Any]

DPI = 110
#: Key of a picture's text that holds the ``fingerprint``.
FINGERPRINT = "Fingerprint"
#: The same colour for the same kind of network in every picture.
COLORS = {
    "vanilla RNN": "tab:orange",
    "GRU": "tab:green",
    "LSTM": "tab:blue",
    "bidirectional vanilla RNN": "tab:red",
    "bidirectional LSTM": "tab:purple",
    "deep bidirectional LSTM": "tab:cyan",
}
COLORS_OF_SMOOTHINGS = {"add-k": "0.75", "witten-bell": "0.6", "kneser-ney": "0.4"}


def language_models(content: Content) -> Any:
    """Training curves; perplexities of all models as bars."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(12, 5), layout="constrained")
    for name, (steps, losses) in content["curves"].items():
        left.plot(steps, losses, label=name, color=COLORS[name])
    left.set(title="Training", xlabel="step", ylabel="loss, nats per character")
    left.grid(alpha=0.3)
    left.legend()

    rows = content["rows"]
    colors = [
        COLORS.get(row["model"]) or COLORS_OF_SMOOTHINGS[row["model"].partition(", ")[2]]
        for row in rows
    ]
    bars = right.barh([row["model"] for row in rows], [r["perplexity"] for r in rows], color=colors)
    right.bar_label(bars, fmt="%.2f", padding=3)
    right.invert_yaxis()
    right.margins(x=0.12, y=0.02)
    right.set(title="Held-out text", xlabel="perplexity per character")
    return figure


def tagger(content: Content) -> Any:
    """Scores of all trainings and their means; training curves of the first."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    rows, score = content["rows"], content["score"]
    for place, row in enumerate(rows):
        color = COLORS[row["model"]]
        scores, mean = [100 * each for each in row["scores"]], 100 * row[score]
        left.plot(scores, [place] * len(scores), "|", color=color, markersize=14, alpha=0.6)
        left.plot(mean, place, "o", color=color)
        left.annotate(
            f"{mean:.2f}", (mean, place), (0, 11), textcoords="offset points", ha="center"
        )
    left.set_yticks(range(len(rows)), [row["model"] for row in rows])
    left.invert_yaxis()
    left.margins(x=0.08, y=0.15)
    left.grid(axis="x", alpha=0.3)
    named = {"accuracy": "Accuracy", "f1": "F1 of names"}[score]
    trainings = f"the mean, and each of {content['repeats']} trainings"
    left.set(title=f"{named} on other sentences", xlabel=f"% ({trainings})")

    for row in rows:
        right.plot(*row["curve"], label=row["model"], color=COLORS[row["model"]])
    right.set(title="Training, the first of each", xlabel="step", ylabel="loss, nats per word")
    right.set_yscale("log")
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]
    right.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    right.minorticks_off()
    losses = [loss for row in rows for loss in row["curve"][1]]
    right.set_ylim(0.9 * min(losses), 1.1 * max(losses))
    right.grid(alpha=0.3)
    right.legend()
    return figure


def seq2seq(content: Content) -> Any:
    """Heat maps of all attentions on one source; error rates by its length."""
    maps, rows = content["attention"], content["rows"]
    count = len(maps)
    figure, axes = pyplot().subplots(
        1, count + 1, figsize=(4 * (count + 1), 4), layout="constrained", squeeze=False
    )
    figure.get_layout_engine().set(w_pad=0.1)
    *heat, last = axes[0]
    for axis, (score, found) in zip(heat, maps.items(), strict=True):
        image = axis.imshow(found["weights"], cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(content["shown"])), list(content["shown"]))
        axis.set_yticks(range(len(found["written"])), found["written"])
        axis.set(title=f"Attention, {score} score", xlabel="read")
    if heat:
        heat[0].set_ylabel("written")
        figure.colorbar(image, ax=heat, label="weight", fraction=0.03, pad=0.01)

    for row, color in zip(rows, ("0.3", "tab:blue", "tab:orange", "tab:green"), strict=False):
        groups = row["by_length"]
        spans = [span_label(group["first"], group["last"]) for group in groups]
        rates = [100 * group["error_rate"] for group in groups]
        last.plot(spans, rates, marker="o", label=row["score"], color=color)
    highest = max(group["error_rate"] for row in rows for group in row["by_length"])
    last.set(title="Errors by length", xlabel="symbols of the source", ylabel="error rate, %")
    last.set_ylim(0, 108 * highest or 1)
    last.grid(axis="y", alpha=0.3)
    last.legend(title="attention")
    return figure


def shapes(content: Content) -> Any:
    """Which language is taken for which; a signal, and the wave of each frame."""
    plt = pyplot()
    figure = plt.figure(figsize=(13, 5), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.35), height_ratios=(4, 1))
    confusion = figure.add_subplot(grid[:, 0])
    signal = figure.add_subplot(grid[0, 1])
    frames = figure.add_subplot(grid[1, 1], sharex=signal)

    languages = content["languages"]
    shares = [[n / max(sum(row), 1) for n in row] for row in content["taken_for"]]
    image = confusion.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    confusion.set_xticks(range(len(languages)), languages, rotation=90)
    confusion.set_yticks(range(len(languages)), languages)
    confusion.set(title="Many to one: names", xlabel="taken for", ylabel="language of the names")
    figure.colorbar(image, ax=confusion, label="share of a language's names", shrink=0.8)

    labelled = content["signal"]
    signal.plot(labelled["values"], color="0.4", linewidth=1)
    signal.set(title="Many to many, aligned: the wave of each frame", ylabel="signal")
    signal.tick_params(labelbottom=False)
    signal.grid(alpha=0.3)
    colors = plt.get_cmap("Set2").colors[: len(WAVES)]
    frames.imshow(
        [labelled["truth"], labelled["found"]],
        cmap=optional("matplotlib.colors").ListedColormap(colors),
        vmin=-0.5,
        vmax=len(WAVES) - 0.5,
        aspect="auto",
        interpolation="none",
    )
    frames.set_yticks([0, 1], ["truth", "found"])
    frames.axhline(0.5, color="white", linewidth=3)
    frames.set(xlabel="frame")
    patch = optional("matplotlib.patches").Patch
    frames.legend(
        handles=[patch(color=color, label=wave) for color, wave in zip(colors, WAVES, strict=True)],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.55),
        ncols=len(WAVES),
        frameon=False,
    )
    return figure


def one_hot(content: Content) -> Any:
    """Times of all forms by the number of symbols."""
    figure, axis = pyplot().subplots(figsize=(7.5, 4.8), layout="constrained")
    rows = content["step_seconds"]
    symbols = [int(each) for each in rows]
    for name in next(iter(rows.values())):
        axis.plot(symbols, [1e3 * row[name] for row in rows.values()], "o-", label=name)
    axis.set(
        title=f"A training step of an LSTM of {content['hidden']} units",
        xscale="log",
        yscale="log",
        xlabel="symbols",
        ylabel="forward and backward, ms",
    )
    axis.set_xticks(symbols, [f"{each:,}" for each in symbols])
    axis.xaxis.set_minor_locator(optional("matplotlib.ticker").NullLocator())
    for subs, which in (
        ((1, 2, 5), axis.yaxis.set_major_locator),
        ((), axis.yaxis.set_minor_locator),
    ):
        which(optional("matplotlib.ticker").LogLocator(subs=subs))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def char_lm_parallel(content: Content) -> Any:
    """The loss of every step."""
    figure, axis = pyplot().subplots(figsize=(6.5, 4), layout="constrained")
    axis.plot(range(1, len(content["losses"]) + 1), content["losses"], color=COLORS["LSTM"])
    axis.set(
        title=f"Training, processes: {content['processes']}",
        xlabel="step",
        ylabel="loss, nats per character",
    )
    axis.grid(alpha=0.3)
    return figure


PICTURES: dict[str, Callable[[Content], Any]] = {
    function.__name__: function
    for function in (language_models, tagger, seq2seq, shapes, one_hot, char_lm_parallel)
}


def fingerprint(content: Content) -> str:
    """Changes with every number of a result, and with the code that draws it."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(Path(__file__).read_bytes() + text.encode()).hexdigest()


def draw(program: str, path: Path, content: Content) -> None:
    """Write the picture of a program's results as PNG."""
    figure = PICTURES[program](content)
    figure.savefig(path, dpi=DPI, metadata={FINGERPRINT: fingerprint(content)})
    pyplot().close(figure)


def drawn_from(path: Path) -> str | None:
    """The fingerprint that a picture carries."""
    with optional("PIL.Image").open(path) as picture:
        found: str | None = picture.info.get(FINGERPRINT)
    return found
