"""The performance tables of README.md, from the stored results: ``python -m bench.readme_table``.

Rewrites what stands between two comments in README.md. ``tests/test_readme.py`` fails while the
page and the stored results differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .report import machine_line
from .run import RESULTS

README = Path(__file__).resolve().parent.parent / "README.md"
#: Results that the page shows, in this order; those that are not stored are left out.
SHOWN = ("2-threads.json", "1-threads.json")
BEGIN = "<!-- performance: written by python -m bench.readme_table -->"
END = "<!-- end of performance -->"
NOTHING = "no stored results yet"

#: Cases that the page shows one by one: of each cell and mode a small one and a large one, and one
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


def summary_rows(summary: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for s in summary:
        mean, minimum = f"{s['geometric_mean']:.2f}", f"{s['minimum']:.2f}"
        yield [s["cell"], s["mode"], str(s["cases"]), mean, minimum, f"`{s['slowest']}`"]


def case_rows(cases: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    by_name = {case["name"]: case for case in cases}
    for name in CHOSEN:
        case = by_name.get(name)
        if case is None:
            continue
        timing = case["timing"]
        if timing is None:
            yield [f"`{name}`", case["backend"], "wrong numbers: not timed", "", ""]
            continue
        yield [
            f"`{name}`",
            case["backend"],
            f"{timing['theirs'] * 1e3:.4g}",
            f"{timing['ours'] * 1e3:.4g}",
            f"{timing['ratio']:.2f} ± {timing['spread']:.2f}",
        ]


def part(content: Mapping[str, Any]) -> str:
    """What the page says of one file of results."""
    facts, cases = content["machine"], content["cases"]
    threads = facts["threads"]
    elsewhere = sum(case["timing"] is not None and not case["ours"] for case in cases)
    wrong = sum(bool(case["wrong"]) for case in cases)
    sentences = [f"{machine_line(facts)}. {len(cases)} cases."]
    if elsewhere:
        sentences.append(f"{elsewhere} of them were not served by our kernels and are not counted.")
    if wrong:
        sentences.append(f"{wrong} of them had wrong numbers and were not timed.")
    summary = table(
        ("cell", "mode", "cases", "geometric mean", "minimum", "at"),
        list(summary_rows(content["summary"])),
        words=(0, 1, 5),
    )
    chosen = table(
        ("case", "backend", "torch.nn, ms", "fastrnn, ms", "ratio"),
        list(case_rows(cases)),
        words=(0, 1),
    )
    heading = f"### {threads} thread{'' if threads == 1 else 's'}"
    return "\n\n".join((heading, " ".join(sentences), summary, chosen))


def section(results: Path = RESULTS) -> str:
    """What stands between the two comments."""
    stored = [results / name for name in SHOWN if (results / name).exists()]
    parts = [part(json.loads(path.read_text(encoding="utf-8"))) for path in stored]
    return "\n\n".join(parts) or NOTHING


def rewritten(page: str, section: str) -> str:
    """The page with ``section`` between its two comments.

    Raises:
        ValueError: the page has not one of each comment, in this order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"README.md: expected {BEGIN!r} and {END!r} once each, in this order")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def main() -> int:
    page = README.read_text(encoding="utf-8")
    new = rewritten(page, section())
    if new == page:
        print("README.md shows the stored results already")
    else:
        README.write_text(new, encoding="utf-8")
        print("README.md rewritten from bench/results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
