"""Plots of stored results.

Raises (all functions):
    ImportError: matplotlib is missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cases import MODES
from .report import machine_line

COLORS = {"rnn_tanh": "tab:green", "gru": "tab:orange", "lstm": "tab:blue"}
RATIO_TICKS = (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)
SIZES = (32, 64, 128, 256, 512, 1024)


def draw_run(path: Path, content: Mapping[str, Any]) -> None:
    """All of a run: ratios as bars, and operations per second over the hidden size."""
    plt = pyplot()
    timed = [case for case in content["cases"] if case["timing"]]
    height = max(6.0, 0.2 * len(timed) + 1.5)
    figure, axes = plt.subplot_mosaic(
        [["ratio", MODES[0]], ["ratio", MODES[1]]], figsize=(14, height), layout="constrained"
    )
    figure.suptitle(machine_line(content["machine"]), fontsize="small")
    _bars(axes["ratio"], timed)
    roof = content["ceilings"]["gemm"].get("float32")
    for mode in MODES:
        axis = axes[mode]
        axis.set(title=f"{mode}, float32", xlabel="hidden units", ylabel="GFLOP/s")
        shown = [case for case in timed if case["mode"] == mode and case["dtype"] == "float32"]
        if shown:  # else nothing to choose the limits of a logarithmic axis by
            _rates(axis, shown, roof)
    save(figure, path)


def draw_overview(path: Path, contents: Sequence[Mapping[str, Any]]) -> None:
    """Of each run one panel: a dot for each case, a bar for each geometric mean."""
    plt = pyplot()
    width = max(9.0, 0.6 * max(len(content["summary"]) for content in contents))
    figure, panels = plt.subplots(
        len(contents), figsize=(width, 3.2 * len(contents)), layout="constrained", squeeze=False
    )
    for axis, content in zip(panels[:, 0], contents, strict=True):
        for place, summary in enumerate(content["summary"]):
            color = COLORS[summary["cell"]]
            ratios = [case["ratio"] for case in content["cases"] if _counts(case, summary)]
            axis.plot([place] * len(ratios), ratios, "o", color=color, alpha=0.5, markersize=4)
            mean = summary["geometric_mean"]
            axis.hlines(mean, place - 0.35, place + 0.35, color="black", linewidth=2)
        labels = [f"{s['cell']}\n{s['mode'].replace(' ', chr(10))}" for s in content["summary"]]
        axis.set_xticks(range(len(labels)), labels, fontsize="xx-small")
        threads = content["machine"]["threads"]
        axis.set(yscale="log", ylabel="times as fast as the best other")
        axis.set_title(f"threads: {threads} (dots: cases; bars: geometric means)")
        ratio_ticks(axis.yaxis, [case["ratio"] for case in content["cases"] if case["ratio"]])
        axis.axhline(1, color="black", linewidth=1)
        axis.grid(axis="y", alpha=0.3)
    save(figure, path)


def pyplot() -> Any:
    importlib.import_module("matplotlib").use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot().close(figure)


def _counts(case: Mapping[str, Any], summary: Mapping[str, Any]) -> bool:
    same = case["cell"] == summary["cell"] and case["group"] == summary["mode"]
    return bool(same and case["ours"] and case["ratio"])


def ratio_ticks(axis: Any, ratios: Sequence[float]) -> None:
    low, high = min(0.5, *ratios), max(2.0, *ratios)
    ticks = [tick for tick in RATIO_TICKS if low <= tick <= high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def _bars(axis: Any, timed: Sequence[Mapping[str, Any]]) -> None:
    ratios = [case["ratio"] for case in timed]
    axis.barh(
        [case["name"] for case in timed],
        [ratio - 1 for ratio in ratios],
        left=1,
        color=[COLORS[case["cell"]] if case["ours"] else "lightgray" for case in timed],
    )
    axis.set(xscale="log", title="times as fast as the others (gray: not our kernels)")
    ratio_ticks(axis.xaxis, ratios)
    axis.grid(axis="x", alpha=0.3)
    axis.axvline(1, color="black", linewidth=1)
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.tick_params(axis="y", labelsize="x-small")


def _rates(axis: Any, shown: Sequence[Mapping[str, Any]], roof: float | None) -> None:
    for cell, color in COLORS.items():
        cases = [case for case in shown if case["cell"] == cell]
        sizes = [case["hidden_size"] for case in cases]
        rates = [case["flops"] / case["timing"]["ours"] / 1e9 for case in cases]
        others = [rate / case["ratio"] for case, rate in zip(cases, rates, strict=True)]
        axis.vlines(sizes, others, rates, color=color, linewidth=0.5)
        axis.plot(sizes, rates, "o", color=color, label=f"{cell}, fastrnn")
        axis.plot(sizes, others, "x", color=color, label=f"{cell}, best of the others")
    if roof is not None:
        axis.axhline(roof, color="black", linestyle="--", linewidth=1, label="1024^3 matmul")
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(SIZES, [str(size) for size in SIZES])
    axis.minorticks_off()
    axis.legend(fontsize="x-small")
