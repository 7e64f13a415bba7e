"""What comes out of a benchmark: rows, their summary, what is wrong with them, JSON and plots."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fastrnn
from fastrnn.backends import FusedBackend

from .cases import ALL, MODES, Case
from .timing import Timing

#: A case may be this many times slower than torch.nn before ``--check`` fails.
TOLERATED_SLOWDOWN = 1.1
#: Cells that must be ahead of torch.nn on average.
AHEAD = ("rnn_tanh", "gru")

COLORS = {"rnn_tanh": "tab:green", "gru": "tab:orange", "lstm": "tab:blue"}


@dataclasses.dataclass(frozen=True)
class Row:
    """Result of a case. timing is None where the numbers were wrong; ``wrong`` then says how.

    error: largest error as a multiple of the tolerance. flops: operations of the products.
    """

    case: Case
    backend: str
    flops: float
    error: float | None
    timing: Timing | None
    wrong: str = ""

    @property
    def ours(self) -> bool:
        """Whether kernels of this library served fastrnn's call, and not torch's operators."""
        return isinstance(fastrnn.backends.get(self.backend), FusedBackend)

    @property
    def slow(self) -> bool:
        return self.timing is not None and self.timing.ratio * TOLERATED_SLOWDOWN < 1


class Summary(NamedTuple):
    """The rows of a cell and mode that our kernels served."""

    cell: str
    mode: str
    cases: int
    geometric_mean: float
    minimum: float
    slowest: str


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def summaries(rows: Sequence[Row]) -> list[Summary]:
    result = []
    for cell in ALL:
        for mode in MODES:
            ratios = {
                row.case.name: row.timing.ratio
                for row in rows
                if row.case.cell == cell and row.case.mode == mode and row.timing and row.ours
            }
            if ratios:
                slowest = min(ratios, key=ratios.__getitem__)
                mean = geometric_mean(list(ratios.values()))
                result.append(Summary(cell, mode, len(ratios), mean, ratios[slowest], slowest))
    return result


def wrong_rows(rows: Sequence[Row]) -> list[str]:
    return [f"{row.case.name}: not timed: {row.wrong}" for row in rows if row.wrong]


def shortfalls(rows: Sequence[Row]) -> list[str]:
    """What ``--check`` fails for, as sentences."""
    found = []
    for row in rows:
        if row.timing is not None and not row.ours:
            found.append(f"{row.case.name}: served by {row.backend!r}, not by a kernel of ours")
        elif row.slow and row.timing is not None:
            found.append(f"{row.case.name}: {1 / row.timing.ratio:.2f} times torch.nn's time")
    for cell in AHEAD:
        ratios = [row.timing.ratio for row in rows if row.case.cell == cell and row.timing]
        if ratios and geometric_mean(ratios) <= 1:
            found.append(f"{cell}: not ahead of torch.nn on average")
    return found


HEADER = (
    f"{'case':<48} {'backend':<9} {'torch.nn':>10} {'fastrnn':>10} {'ratio':>7} "
    f"{'+-':>5} {'GFLOP/s':>8}"
)


def line(row: Row) -> str:
    """A line of the table; times in ms, ratio is torch.nn's time by fastrnn's."""
    start = f"{row.case.name:<48} {row.backend:<9}"
    if row.timing is None:
        return f"{start} NOT TIMED: {row.wrong}"
    timing = row.timing
    return (
        f"{start} {timing.theirs * 1e3:>10.4g} {timing.ours * 1e3:>10.4g} {timing.ratio:>7.2f} "
        f"{timing.spread:>5.2f} {row.flops / timing.ours / 1e9:>8.3g}"
        + ("" if row.ours else "  (not ours)")
    )


def summary_table(rows: Sequence[Row]) -> str:
    """Geometric means and minima of the ratio; rows that torch's operators served do not count."""
    lines = [f"{'cell':<10} {'mode':<10} {'cases':>5} {'geo. mean':>10} {'minimum':>8}  at"]
    lines += [
        f"{s.cell:<10} {s.mode:<10} {s.cases:>5} {s.geometric_mean:>10.2f} {s.minimum:>8.2f}"
        f"  {s.slowest}"
        for s in summaries(rows)
    ]
    others = sum(row.timing is not None and not row.ours for row in rows)
    if others:
        lines.append(f"{others} cases were not served by our kernels and are not counted")
    return "\n".join(lines)


def machine_line(facts: dict[str, Any]) -> str:
    return (
        f"{facts['cpu']} ({facts['isa']}), {facts['threads']} threads of {facts['cores']} cores, "
        f"torch {facts['torch']}, fastrnn {facts['fastrnn']} {facts['commit']}, {facts['date']}"
    )


def write_json(path: Path, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    def as_dict(row: Row) -> dict[str, Any]:
        case = {**dataclasses.asdict(row.case), "dtype": str(row.case.dtype).removeprefix("torch.")}
        return {
            "name": row.case.name,
            **case,
            "backend": row.backend,
            "ours": row.ours,
            "flops": row.flops,
            "error_in_tolerances": row.error,
            "timing": None if row.timing is None else dataclasses.asdict(row.timing),
            "wrong": row.wrong,
        }

    content = {
        "machine": facts,
        "summary": [summary._asdict() for summary in summaries(rows)],
        "cases": [as_dict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def draw(path: Path, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    """Ratios as bars, and operations per second over the hidden size, of the timed rows.

    Raises:
        ImportError: matplotlib is missing.
    """
    importlib.import_module("matplotlib").use("Agg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    timed = [(row, row.timing) for row in rows if row.timing is not None]
    height = max(6.0, 0.22 * len(timed) + 1.5)
    figure, axes = plt.subplot_mosaic(
        [["ratio", MODES[0]], ["ratio", MODES[1]]], figsize=(14, height), layout="constrained"
    )
    figure.suptitle(machine_line(facts), fontsize="small")

    bars = axes["ratio"]
    ratios = [timing.ratio for _, timing in timed]
    bars.barh(
        [row.case.name for row, _ in timed],
        [ratio - 1 for ratio in ratios],
        left=1,
        color=[COLORS[row.case.cell] if row.ours else "lightgray" for row, _ in timed],
    )
    bars.set(xscale="log", title="times as fast as torch.nn (gray: not served by our kernels)")
    low, high = min(0.5, *ratios), max(2.0, *ratios)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100) if low <= t <= high]
    bars.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    bars.minorticks_off()
    bars.grid(axis="x", alpha=0.3)
    bars.axvline(1, color="black", linewidth=1)
    bars.invert_yaxis()
    bars.margins(y=0.01)
    bars.tick_params(axis="y", labelsize="x-small")

    for mode in MODES:
        axis = axes[mode]
        axis.set(title=mode, xlabel="hidden units", ylabel="GFLOP/s")
        if all(row.case.mode != mode for row, _ in timed):
            continue  # nothing to choose the limits of a logarithmic axis by
        for cell, color in COLORS.items():
            chosen = [(r, t) for r, t in timed if r.case.cell == cell and r.case.mode == mode]
            sizes = [row.case.hidden_size for row, _ in chosen]
            rates = [row.flops / timing.ours / 1e9 for row, timing in chosen]
            others = [row.flops / timing.theirs / 1e9 for row, timing in chosen]
            axis.vlines(sizes, others, rates, color=color, linewidth=0.5)
            axis.plot(sizes, rates, "o", color=color, label=f"{cell}, fastrnn")
            axis.plot(sizes, others, "x", color=color, label=f"{cell}, torch.nn")
        axis.set(xscale="log", yscale="log")
        powers = (32, 64, 128, 256, 512, 1024)
        axis.set_xticks(powers, [str(power) for power in powers])
        axis.minorticks_off()
        axis.legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
