"""What pages show of the stored results: ``python -m bench.pages``.

README.md gets an overview between two comments, and its plot; RESULTS.md beside this file all else.
``tests/test_readme.py`` fails while a page and the stored results differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import plots, whole_model
from .cases import ALL
from .contention import TARGETS
from .onnx_peer import NAME as ONNX
from .report import machine_line
from .rows import geometric_mean
from .run import RESULTS
from .workload import IMPLEMENTATIONS

README = Path(__file__).resolve().parent.parent / "README.md"
DETAILS = Path(__file__).resolve().parent / "RESULTS.md"
#: Results that the pages show, in this order; those that are not stored are left out.
SHOWN = ("2-threads.json", "1-threads.json")
WHOLE_MODELS = whole_model.RESULTS.name
PLOT = "overview.png"
BEGIN = "<!-- performance: written by python -m bench.pages -->"
END = "<!-- end of performance -->"
NOTHING = "no stored results yet"
#: Groups of cases of the overview.
GROUPS = ("inference", "training", "inference packed", "training packed")
INTRODUCTION = """\
# Results

Written by `python -m bench.pages` from `results/`. What is compared with what, and how, is in
[NOTES.md](NOTES.md). The ratio is the other's time by fastrnn's, more than 1 where fastrnn is
faster, and of two others that of the faster. T steps, B rows, I input features, H units. Rows named
`prepacked` keep packed weights from call to call, as ONNX Runtime always does."""

#: Cases that are shown one by one: of each cell and mode a small one and a large one, and one
#: of each layout. Whoever chooses by hand could choose well; the summary above them has all.
CHOSEN = (
    "rnn_tanh-inference-T1-B1-I200-H200",
    "gru-inference-T1-B1-I200-H200",
    "lstm-inference-T1-B1-I200-H200",
    "rnn_tanh-inference-T50-B32-I256-H256",
    "gru-inference-T50-B32-I256-H256",
    "lstm-inference-T50-B32-I256-H256",
    "rnn_tanh-training-T50-B32-I256-H256",
    "gru-training-T50-B32-I256-H256",
    "lstm-training-T50-B32-I256-H256",
    "gru-training-T35-B20-I650-H650",
    "lstm-training-T35-B20-I650-H650-2layers",
    "gru-training-T150-B16-I64-H64-bi-packed",
    "lstm-training-T150-B16-I64-H64-bi-packed",
    "lstm-training-T50-B8-I128-H128-float64",
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[int]) -> str:
    """A Markdown table; the columns in ``words`` are aligned left, all others right."""
    rule = ["---" if column in words else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def summary_table(content: Mapping[str, Any]) -> str:
    header = ("cell", "mode", "cases", "geometric mean", "minimum", "at")
    rows = [
        [
            s["cell"],
            s["mode"],
            str(s["cases"]),
            f"{s['geometric_mean']:.2f}",
            f"{s['minimum']:.2f}",
            f"`{s['slowest']}`",
        ]
        for s in content["summary"]
    ]
    return table(header, rows, words=(0, 1, 5))


def case_table(content: Mapping[str, Any]) -> str:
    """The chosen cases; with a column for ONNX Runtime where it was compared with."""
    cases = content["cases"]
    with_onnx = any(case["onnx"] for case in cases)
    others = ("torch.nn, ms", f"{ONNX}, ms") if with_onnx else ("torch.nn, ms",)
    header = ("case", "backend", *others, "fastrnn, ms", "ratio")
    return table(header, list(case_rows(cases, with_onnx)), words=(0, 1))


def case_rows(cases: Sequence[Mapping[str, Any]], with_onnx: bool) -> Iterator[list[str]]:
    by_name = {case["name"]: case for case in cases}
    for name in CHOSEN:
        case = by_name.get(name)
        if case is None:
            continue
        timing, onnx = case["timing"], case["onnx"]
        if timing is None:
            nothing = [""] * (3 if with_onnx else 2)
            yield [f"`{name}`", case["backend"], "wrong numbers: not timed", *nothing]
            continue
        shown = [f"{timing[side] * 1e3:.4g}" for side in ("theirs", "ours")]
        if with_onnx:
            shown.insert(1, f"{onnx['theirs'] * 1e3:.4g}" if onnx else "")
        ratio = f"{case['ratio']:.2f} ± {case['spread']:.2f}"
        yield [f"`{name}`", case["backend"], *shown, ratio]


def contention_table(content: Mapping[str, Any]) -> str:
    """The slowest call of each library beside so many busy processes; empty if not measured."""
    measured = content["contention"]
    if not measured:
        return ""
    rows = []
    for busy in TARGETS:
        worst = [
            max(s["mean"] for s in measured if s["busy"] == busy and s["implementation"] == library)
            for library in reversed(IMPLEMENTATIONS)
        ]
        rows.append([str(busy), *(f"{slowdown:.1f}x" for slowdown in worst)])
    header = ("busy processes on one core", "slowest torch.nn call", "slowest fastrnn call")
    return table(header, rows, words=())


def sentences(content: Mapping[str, Any]) -> str:
    """Machine and versions, and what is not counted."""
    facts, cases = content["machine"], content["cases"]
    elsewhere = sum(case["timing"] is not None and not case["ours"] for case in cases)
    wrong = sum(bool(case["wrong"]) for case in cases)
    said = [f"{machine_line(facts)}. {len(cases)} cases."]
    if facts.get("onnxruntime") == "":
        said.append(f"{ONNX} was not installed: inference is compared with torch.nn only.")
    if elsewhere:
        said.append(f"{elsewhere} of them were not served by our kernels and are not counted.")
    if wrong:
        said.append(f"{wrong} of them had wrong numbers and were not timed.")
    return " ".join(said)


def part(content: Mapping[str, Any]) -> str:
    """What RESULTS.md says of one file of results."""
    heading = f"## {count(content['machine']['threads'], 'thread')}"
    paragraphs = (heading, sentences(content), summary_table(content), case_table(content))
    busy = contention_table(content)
    return "\n\n".join((*paragraphs, busy) if busy else paragraphs)


def whole_models(content: Mapping[str, Any]) -> str:
    """What RESULTS.md says of whole models, as they are and compiled."""
    facts = content["machine"]
    rows = [
        [
            row["model"],
            row["mode"],
            row["library"],
            str(row["graphs"]) if row["compiled"] else "",
            f"{row['compile_seconds']:.2g}" if row["compiled"] else "",
            f"{row['seconds'] * 1e3:.4g}",
            f"{row['ratio']:.2f} ± {row['spread']:.2f}",
        ]
        for row in content["rows"]
    ]
    header = ("model", "mode", "library", "graphs", "first call, s", "ms", "ratio")
    said = (
        f"{machine_line(facts)}. Where there are graphs the model is compiled; the ratio is the "
        "time of the model on torch.nn, not compiled, by that of the row. Compiling pays for "
        "neither library here: the kernels of the layers stay the same, little is fused around "
        "them, and each call has guards to check, which in a single step of the policy is a third "
        "of the time. With fastrnn the whole model is one graph."
    )
    return "\n\n".join(("## Whole models", said, table(header, rows, words=(0, 1, 2))))


def overview_table(contents: Sequence[Mapping[str, Any]]) -> str:
    """Geometric mean and least ratio of each cell and group, by thread count."""
    threads = [f"{count(content['machine']['threads'], 'thread')}" for content in contents]
    header = ["cell", "mode"]
    header += [f"{other}, {number}" for other in ("torch.nn", "the best") for number in threads]
    rows = [
        [cell, group, *map(mean_and_least, columns)]
        for group in GROUPS
        for cell in ALL
        if any(columns := ratios(contents, cell, group))
    ]
    return table(header, rows, words=(0, 1))


def ratios(contents: Sequence[Mapping[str, Any]], cell: str, group: str) -> list[list[float]]:
    """For each column of the overview those of the cases that our kernels served."""
    rows = [
        [
            case
            for case in content["cases"]
            if (case["cell"], case["group"]) == (cell, group) and case["ours"] and case["timing"]
        ]
        for content in contents
    ]
    theirs = [[case["timing"]["ratio"] for case in cases] for cases in rows]
    return theirs + [[case["ratio"] for case in cases] for cases in rows]


def mean_and_least(ratios: Sequence[float]) -> str:
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else ""


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def stored(results: Path) -> list[dict[str, Any]]:
    paths = [results / name for name in SHOWN]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def section(results: Path = RESULTS) -> str:
    """What stands between the two comments of README.md."""
    contents = stored(results)
    if not contents:
        return NOTHING
    said = [f"{machine_line(content['machine'])}." for content in contents]
    parts = [overview_table(contents), "  \n".join(said)]
    if (results / PLOT).exists():
        where = f"{results.parent.name}/{results.name}/{PLOT}"
        parts.insert(0, f"![Times as fast as the best of the others, by cell and mode]({where})")
    return "\n\n".join(parts)


def details(results: Path = RESULTS) -> str:
    """All of RESULTS.md."""
    parts = [part(content) for content in stored(results)]
    models = results / WHOLE_MODELS
    if models.exists():
        parts.append(whole_models(json.loads(models.read_text(encoding="utf-8"))))
    return "\n\n".join((INTRODUCTION, *(parts or [NOTHING]))) + "\n"


def rewritten(page: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with ``section`` between its two comments.

    Raises:
        ValueError: the page has not one of each comment, in this order.
    """
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in rest or end in before + after:
        raise ValueError(f"README.md: expected {begin!r} and {end!r} once each, in this order")
    return f"{before}{begin}\n{section}\n{end}{after}"


def draw(results: Path = RESULTS) -> None:
    """The page's plot, where matplotlib is installed and there is something to show."""
    contents = stored(results)
    if not contents:
        return
    try:
        plots.draw_overview(results / PLOT, contents)
    except ImportError as error:
        print(f"plot not drawn: {error}; pip install matplotlib", file=sys.stderr)


def main() -> int:
    draw()
    pages = {README: rewritten(README.read_text(encoding="utf-8"), section()), DETAILS: details()}
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
        print(f"{path.name} shows the stored results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
