"""The GPU section of README.md and its plot, from the stored results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cases import ALL, MODES
from ..pages import table
from ..plots import COLORS, pyplot, ratio_ticks, save
from ..rows import geometric_mean
from . import kernels
from .cases import PARTS

BEGIN = "<!-- gpu performance: written by python -m bench.gpu store -->"
END = "<!-- end of gpu performance -->"
NOTHING = "No GPU has run it yet: there are no stored results."
RESULT, PLOT = "gpu.json", "gpu.png"
DTYPES = ("float16", "bfloat16", "tf32", "float32")

#: Cases shown one by one: of each part of the table the first two, inference and training.
SHOWN_OF_PART = 2

Row = Mapping[str, Any]


def timed(content: Mapping[str, Any]) -> list[Row]:
    """The cases that were compared with torch.nn."""
    return [row for row in content.get("bench", {}).get("cases", ()) if row["timing"]]


def machine_line(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['gpu']} ({facts['processors']} multiprocessors), driver {facts['driver']}, CUDA "
        f"{facts['cuda']}, cuDNN {facts['cudnn']}, torch {facts['torch']}, fastrnn "
        f"{facts['fastrnn']} {facts['commit']}, {facts['date']}"
    )


def precision_line(facts: Mapping[str, Any]) -> str:
    """What of the figures is in TF32: cases set torch's flags, however those stood before."""
    flags = facts["tf32"]
    return (
        "Both libraries round products of float32 to TF32 where the dtype says `tf32`, and nowhere "
        f"else; torch's own flags were `{flags['cudnn']}` for cuDNN, `{flags['matmul']}` for "
        "products."
    )


def floors_line(rows: Sequence[Row]) -> str:
    sources = dict.fromkeys(row["waits"] for row in rows)
    return (
        "Floors: our time by the least that it could be, of products, of memory, and of steps that "
        f"wait for each other, as {'; '.join(sources)}. bfloat16 is beside the faster of torch.nn "
        "as it is and with weights in one piece, which torch itself does not make of them."
    )


def groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, str, list[Row]]]:
    """Cell, dtype, mode and their rows that our kernels served, in the order of the tables."""
    for cell in ALL:
        for dtype in DTYPES:
            for mode in MODES:
                same = [
                    row
                    for row in rows
                    if (row["cell"], row["dtype"], row["mode"]) == (cell, dtype, mode)
                    and row["ours"]
                ]
                if same:
                    yield cell, dtype, mode, same


def summary_table(rows: Sequence[Row]) -> str:
    lines = []
    for cell, dtype, mode, same in groups(rows):
        ratios = {row["name"]: row["timing"]["ratio"] for row in same}
        slowest = min(ratios, key=ratios.__getitem__)
        mean = geometric_mean(list(ratios.values()))
        figures = [str(len(ratios)), f"{mean:.2f}", f"{ratios[slowest]:.2f}"]
        lines.append([cell, dtype, mode, *figures, f"`{slowest}`"])
    header = ("cell", "dtype", "mode", "cases", "geometric mean", "minimum", "at")
    return table(header, lines, words=(0, 1, 2, 6))


def case_table(rows: Sequence[Row]) -> str:
    """The first cases of each part: microseconds per step, and of the host per call; and where
    cuDNN's calls spend most of their time.
    """
    lines = []
    for part in PARTS:
        for row in [row for row in rows if row["part"] == part][:SHOWN_OF_PART]:
            found = row["timing"]
            lines.append(
                [
                    f"`{row['name']}`",
                    *(f"{1e6 * row[side]:.2f}" for side in ("step_theirs", "step")),
                    f"{found['ratio']:.2f} ± {found['spread']:.2f}",
                    f"{found['ours'] / row['floor']['least']:.1f}",
                    *(f"{1e6 * row[side]:.0f}" for side in ("host_theirs", "host")),
                    main_kernel(row),
                ]
            )
    header = (
        "case",
        "cuDNN, µs/step",
        "fastrnn, µs/step",
        "ratio",
        "floors",
        "cuDNN, host µs",
        "fastrnn, host µs",
        "cuDNN's main kernel",
    )
    return table(header, lines, words=(0, 7))


def main_kernel(row: Row) -> str:
    """Of torch.nn's call the kernel that takes the most time; empty where nobody looked."""
    started = row.get("kernels_theirs")
    return f"`{kernels.shortened(started[0]['name'])}`" if started else ""


def error_table(rows: Sequence[Row]) -> str:
    """Errors against float64 of cases that have a c, by norm; the largest by dtype."""
    lines = []
    for dtype in DTYPES:
        same = [row for row in rows if row["dtype"] == dtype and row["cell"] == "lstm"]
        if same:
            row = max(same, key=lambda row: row["steps"])
            sides = [row[side]["relative"] for side in ("error_theirs", "error")]
            figures = [f"{side[name]:.2g}" for name in ("output", "c_n") for side in sides]
            lines.append([f"`{row['name']}`", *figures])
    header = ("case", "output: cuDNN", "fastrnn", "c: cuDNN", "fastrnn")
    return table(header, lines, words=(0,))


def verdicts(content: Mapping[str, Any]) -> str:
    """What the other parts found, in a sentence each."""
    said = []
    if "test" in content:
        counts = content["test"]["counts"]
        found = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
        said.append(f"Tests: {found}{_ended(content['test'])}.")
    if "sanitize" in content:
        checks = content["sanitize"].get("checks", ())
        well = sum(check["status"] == "ok" for check in checks)
        said.append(f"compute-sanitizer: {well} of {len(checks)} checks without error.")
    if "bench" in content:
        bench = content["bench"]
        said.append(
            f"{len(bench['cases'])} cases, {len(bench['missed'])} goals missed; "
            f"{sum(bool(row['wrong']) for row in bench['cases'])} were not timed, as something "
            f"was wrong{_ended(bench)}."
        )
    return " ".join(said)


def _ended(part: Mapping[str, Any]) -> str:
    return "" if part["complete"] else "; time was over before the others"


def section(results: Path) -> str:
    """What stands between the two comments."""
    path = results / RESULT
    if not path.exists():
        return NOTHING
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    machine = next(content[part]["machine"] for part in reversed(content))
    paragraphs = [f"{machine_line(machine)}. {verdicts(content)}"]
    rows = timed(content)
    if rows:
        if (results / PLOT).exists():
            where = f"{results.parent.name}/{results.name}/{PLOT}"
            paragraphs.append(f"![Times as fast as cuDNN, by cell, dtype and mode]({where})")
        precision = precision_line(content["bench"]["machine"])
        paragraphs.append(f"{precision} {floors_line(rows)}")
        paragraphs += [summary_table(rows), case_table(rows), error_table(rows)]
    return "\n\n".join(paragraphs)


def draw(path: Path, content: Mapping[str, Any]) -> None:
    """A dot for each case, a bar for each geometric mean.

    Raises:
        ImportError: matplotlib is missing.
    """
    rows = timed(content)
    if not rows:
        return
    plt = pyplot()
    shown = list(groups(rows))
    figure, axis = plt.subplots(figsize=(max(6.0, 0.5 * len(shown)), 4), layout="constrained")
    for place, (cell, _, _, same) in enumerate(shown):
        ratios = [row["timing"]["ratio"] for row in same]
        axis.plot([place] * len(ratios), ratios, "o", color=COLORS[cell], alpha=0.5, markersize=4)
        axis.hlines(geometric_mean(ratios), place - 0.35, place + 0.35, color="black", linewidth=2)
    labels = [f"{cell}\n{dtype}\n{mode}" for cell, dtype, mode, _ in shown]
    axis.set_xticks(range(len(labels)), labels, fontsize="xx-small")
    axis.set(yscale="log", ylabel="times as fast as cuDNN")
    axis.set_title(machine_line(content["bench"]["machine"]), fontsize="xx-small")
    ratio_ticks(axis.yaxis, [row["timing"]["ratio"] for row in rows])
    axis.axhline(1, color="black", linewidth=1)
    axis.grid(axis="y", alpha=0.3)
    save(figure, path)
