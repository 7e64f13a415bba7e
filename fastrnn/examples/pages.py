"""The measured parts of the pages in ``docs/``: ``python -m fastrnn.examples.pages [OUT]``.

A page names a result between two comments, and what stands between them is written from the JSON
file of that name in ``results/``: the command, its tables, its picture. With a folder, the results
that a program has written there are stored first. A test fails while a page, or a picture, differs
from its file.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import pictures
from .program import duration, span_label

HERE = Path(__file__).resolve().parent
DOCS, RESULTS = HERE / "docs", HERE / "results"
MARKED = re.compile(
    r"(<!-- results: (?P<name>[\w.-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL
)

#: Digits of an exponent.
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Content = dict[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def language_models(content: Content) -> str:
    counted = content["characters"]
    rows = [
        (
            r["model"],
            f"{r['size']:,}",
            f"{r['nats']:.3f}",
            f"{r['perplexity']:.2f}",
            duration(r["seconds"]),
        )
        for r in content["rows"]
    ]
    header = ("model", "counts or parameters", "nats per character", "perplexity", "learned in")
    quoted = "\n\n".join(
        f"{name}:\n\n```text\n{text.strip()}\n```" for name, text in content["samples"].items()
    )
    return (
        f"{counted['trained']:,} characters to learn from, {counted['held_out']:,} held out, "
        f"{content['kinds_of_characters']} kinds; {content['steps']:,} steps.\n\n"
        f"{table(header, rows)}\n\n{quoted}"
    )


def lead(scores: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Difference of two means, and its standard error (Welch 1947)."""
    variances = (statistics.variance(each) / len(each) for each in (scores, others))
    return statistics.mean(scores) - statistics.mean(others), math.sqrt(sum(variances))


def leads(content: Content) -> str:
    """How far the models of the table are ahead of one another, where there are repeats."""
    scores = {r["model"]: r["scores"] for r in content["rows"]}
    pairs = [("LSTM", "vanilla RNN"), ("bidirectional LSTM", "LSTM")]
    told = [
        f"the {first} is ahead of the {second} by {100 * difference:.2f} ± {100 * error:.2f} points"
        for first, second in pairs
        if {first, second} <= scores.keys() and content["repeats"] > 1
        for difference, error in [lead(scores[first], scores[second])]
    ]
    return (
        f"\n\nDifferences of means, and their standard errors: {'; '.join(told)}." if told else ""
    )


def tagger(content: Content) -> str:
    columns = content["columns"]
    rows = [
        (
            r["model"],
            f"{r['size']:,}",
            f"{r['rate']:g}",
            *(percent(r[column]) for column in columns),
            percent(r["spread"]),
            duration(r["seconds"]),
        )
        for r in content["rows"]
    ]
    names = {"unknown_accuracy": "of unknown words", "f1": "F1"}
    shown = (names.get(column, column) for column in columns)
    header = ("model", "parameters", "learning rate", *shown, "spread", "learned in")
    sentences, words = content["sentences"], content["words"]
    return (
        f"{sentences['trained']:,} sentences to learn from ({words['trained']:,} words), "
        f"{sentences['tested']:,} to test on ({words['tested']:,} words), "
        f"{content['kinds_of_labels']} labels; {content['epochs']} epochs. Means of "
        f"{content['repeats']} trainings; the spread is the standard deviation among them, of "
        f"{'F1' if content['score'] == 'f1' else 'accuracy'}.\n\n"
        f"{table(header, rows)}{leads(content)}"
    )


def seq2seq(content: Content) -> str:
    rows = content["rows"]
    header = (
        "attention",
        "parameters",
        "greedy",
        f"beam of {content['beam']}",
        "wrong sequences, beam",
        "learned in",
    )
    overall = [
        (
            r["score"],
            f"{r['size']:,}",
            percent(r["greedy"]["error_rate"]),
            percent(r["beam"]["error_rate"]),
            percent(r["beam"]["wrong"]),
            duration(r["seconds"]),
        )
        for r in rows
    ]
    groups = rows[0]["by_length"]
    by_length = [
        (r["score"], *(percent(group["error_rate"]) for group in r["by_length"])) for r in rows
    ]
    header_by_length = (
        "symbols of the source",
        *(span_label(group["first"], group["last"]) for group in groups),
    )
    pairs = content["pairs"]
    return (
        f"{pairs['trained']:,} pairs to learn from, {pairs['tested']:,} others to test on; "
        f"{content['epochs']} epochs. Error rates are edits per {content['unit']} of the target."
        "\n\n"
        f"{table(header, overall)}\n\nBy length, with the beam:\n\n"
        f"{table(header_by_length, by_length)}"
    )


def shapes(content: Content) -> str:
    rows = [
        (
            r["shape"],
            r["task"],
            r["measure"],
            f"{r['value']:.3f}",
            r["baseline"],
            f"{r['of_baseline']:.3f}",
            duration(r["seconds"]),
        )
        for r in content["rows"]
    ]
    header = ("shape", "task", "measure", "network", "baseline", "of the baseline", "learned in")
    written = [(language, ", ".join(names)) for language, names in content["written"].items()]
    names = content["names"]
    source, target = content["date"]
    return (
        f"{names['trained']:,} names of {len(content['languages'])} languages to learn from, "
        f"{names['held_out']:,} held out; {content['epochs']} epochs.\n\n{table(header, rows)}\n\n"
        f"Written for each language (one to many):\n\n{table(('language', 'names'), written)}\n\n"
        f"Rewritten (unaligned): `{source}`, `{target}`."
    )


def _outcome(outcome: Content | None) -> str:
    """Steps until solved, or the error at the end; nothing of what was not tried."""
    if outcome is None:
        return ""
    if outcome["solved"]:
        return f"{outcome['steps']:,}"
    return "(diverged)" if outcome["error"] is None else f"({outcome['error']:.2g})"


def magnitude(value: float) -> str:
    """Two digits, and a power of ten where one would count zeros."""
    if value == 0 or 1e-2 <= abs(value) < 100:
        return f"{value:.2g}"
    if 100 <= abs(value) < 1e4:
        return f"{value:,.0f}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} · 10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def why_gates(content: Content) -> str:
    lengths = [str(steps) for steps in content["lengths"]]
    solved = [
        table(
            (f"{problem}: steps until solved, or (error)", *(f"T = {n}" for n in lengths)),
            [(name, *(_outcome(row.get(n)) for n in lengths)) for name, row in rows.items()],
        )
        for problem, rows in content["problems"].items()
    ]
    seconds = max(
        outcome["seconds"]
        for rows in content["problems"].values()
        for row in rows.values()
        for outcome in row.values()
    )
    return "\n\n".join(
        [
            f"At most {content['most_steps']:,} steps; the longest training took {seconds:.0f} "
            "seconds. Empty: not tried, since a shorter T was not solved.",
            *solved,
            f"Vanilla layers: the growth of a vector per multiplication after k of them by a "
            f"random W of that radius; and, over {content['pictured']} steps, the bound, the norm "
            "of the product of Jacobians, and the gradient at the first step, of that at the last.",
            _mechanism(content["mechanism"]),
            "Networks, fresh and trained on temporal order at the T in the second column:",
            _gradients(content["gradients"]),
            "\\* Of the recurrent weights through which the state feeds itself: of a GRU those of "
            "its n alone, of an LSTM those of its g, which gates scale.",
        ]
    )


def _mechanism(rows: Content) -> str:
    times = next(iter(rows.values()))["growth_of_random"]
    growth = [f"k = {int(k):,}" for k in times]
    return table(
        ("layer", "radius", *growth, "bound", "Jacobians", "gradient"),
        [
            (
                name,
                f"{each['spectral_radius']:.3g}",
                *(f"{rate:.3f}" for rate in each["growth_of_random"].values()),
                *(magnitude(each[what]) for what in ("bound", "product", "gradient")),
            )
            for name, each in rows.items()
        ],
    )


def _gradients(rows: Content) -> str:
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "spectral_radius": ("spectral radius*", "{:.2f}".format),
        "gradient": ("gradient at the first step", magnitude),
        "median_forgetting_time": ("median forgetting time", "{:.1f}".format),
    }
    return table(
        ("network: fresh, trained", "T", *(title for title, _ in columns.values())),
        [
            (name, f"{each['trained_on']}", *(_both(each, key, columns[key][1]) for key in columns))
            for name, each in rows.items()
        ],
    )


def _both(each: Content, what: str, form: Callable[[float], str]) -> str:
    """Of a network before and after training."""
    values = (each["fresh"][what], each["trained"][what])
    return ", ".join(form(value) for value in values if value is not None)


def remedies(content: Content) -> str:
    repeats = len(next(iter(content["networks"].values()))["trainings"])
    first = [
        (name, f"{each['solved']} of {repeats}", *map(_outcome, each["trainings"]))
        for name, each in content["networks"].items()
    ]
    header = (
        "steps until solved, or (error)",
        "solved",
        *(f"training {k + 1}" for k in range(repeats)),
    )
    second = [
        (
            name,
            magnitude(each["first_loss"]),
            magnitude(each["largest_loss"]),
            "not a number" if each["last_loss"] is None else magnitude(each["last_loss"]),
            "infinite" if each["largest_gradient"] is None else magnitude(each["largest_gradient"]),
        )
        for name, each in content["clipping"].items()
    ]
    columns = ("clipping", "first loss", "largest loss", "last loss", "largest gradient")
    return (
        f"T = {content['length']}, at most {content['most_steps']:,} steps.\n\n"
        f"{table(header, first)}\n\n{table(columns, second)}"
    )


def crossover(content: Content) -> str:
    """From which measured size on numbers cost less than vectors, as a sentence."""
    few, rows = content["multiplied_up_to"], content["step_seconds"]
    said = f"Up to {few} symbols the layer makes the vectors of numbers itself"
    sizes = [int(size) for size in rows if int(size) > few]
    dearer = [n for n in sizes if rows[str(n)]["numbers"] >= rows[str(n)]["one-hot vectors"]]
    cheaper = [n for n in sizes if n > max(dearer, default=0)]
    return f"{said}; from {min(cheaper):,} on, numbers cost less." if cheaper else f"{said}."


def one_hot(content: Content) -> str:
    rows = content["step_seconds"]
    forms = next(iter(rows.values()))
    body = [
        (f"{int(n):,}", *(f"{1e3 * s:.2f} ms" for s in row.values())) for n, row in rows.items()
    ]
    worst = max(content["differences"].values())
    differ = f"differ by at most {worst:.0e} of the largest value" if worst else "are equal"
    sequences = f"{content['batch']} sequences of {content['length']} steps"
    return (
        f"{content['hidden']} units, {sequences}. At these sizes outputs and gradients of numbers "
        f"and of one-hot vectors {differ}. {crossover(content)}\n\n"
        f"{table(('symbols', *forms), body)}"
    )


RENDERERS: dict[str, Callable[[Content], str]] = {
    "language_models": language_models,
    "tagger": tagger,
    "seq2seq": seq2seq,
    "shapes": shapes,
    "why_gates": why_gates,
    "remedies": remedies,
    "one_hot": one_hot,
}


def program_of(name: str) -> str:
    """The program that wrote a result: ``tagger`` wrote ``tagger-en_ewt-ud-dev-pos``."""
    return name.partition("-")[0]


def stored(name: str) -> Content:
    """A result in ``results/``."""
    content: Content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def section(name: str) -> str:
    """What a page says of one stored result."""
    content = stored(name)
    body = RENDERERS[program_of(name)](content)
    threads = f"{content['threads']} thread{'s' * (content['threads'] != 1)}"
    machine = (
        f"torch {content['torch']}, fastrnn {content['fastrnn']}, layers of `{content['layers']}`, "
        f"{threads}{' of ' + content['cpu'] if 'cpu' in content else ''}."
    )
    return (
        f"\n```sh\n{content['command']}\n```\n\n{body}\n\n![{name}](../results/{name}.png)\n\n"
        f"{machine}\n\n"
    )


def rewritten(page: str) -> str:
    """The page, with every marked part as its stored result says."""
    return MARKED.sub(lambda found: found[1] + section(found["name"]) + found[3], page)


def named(page: str) -> list[str]:
    """The results that a page names."""
    return [found["name"] for found in MARKED.finditer(page)]


def is_current(name: str) -> bool:
    """Whether the picture of a stored result shows this result, as it is drawn today."""
    picture = RESULTS / f"{name}.png"
    return picture.exists() and pictures.drawn_from(picture) == pictures.fingerprint(stored(name))


def update_picture(name: str) -> None:
    """Draw the picture of a stored result again, if it has become another."""
    if program_of(name) in pictures.PICTURES and not is_current(name):
        pictures.draw(program_of(name), RESULTS / f"{name}.png", stored(name))


def main(arguments: Sequence[str] | None = None) -> int:
    folders = sys.argv[1:] if arguments is None else list(arguments)
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        for name in named(page):
            for folder in folders:
                for ending in (".json", ".png"):
                    measured = Path(folder, name + ending)
                    if measured.exists():
                        shutil.copyfile(measured, RESULTS / measured.name)
            update_picture(name)
        path.write_text(rewritten(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
