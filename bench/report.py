"""What is printed and stored of a benchmark: lines, tables, JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import contention, onnx_peer
from .contention import Slowdown
from .rows import Row, summaries
from .targets import TARGETS, met
from .workload import OURS

HEADER = (
    f"{'case':<46} {'backend':<9} {'torch.nn':>9} {'ONNX':>9} {'fastrnn':>9} {'ratio':>6} "
    f"{'+-':>5} {'GFLOP/s':>8} {'GEMM':>5} {'read':>5} {'padded':>6}"
)
LEGEND = f"""\
times in ms; ONNX is {onnx_peer.NAME}; ratio is the time of the faster of the two by fastrnn's.
GEMM: part of the rate of a large matrix product. read: part of the rate at which weights of this
size can be read from the caches. padded: time by the padded call's time times the filled part."""


def wrong_rows(rows: Sequence[Row]) -> list[str]:
    return [f"{row.case.name}: not timed: {row.wrong}" for row in rows if row.wrong]


def line(row: Row) -> str:
    """A line of the table."""
    start = f"{row.case.name:<46} {row.backend:<9}"
    timing, best = row.timing, row.best
    if timing is None or best is None:
        return f"{start} NOT TIMED: {row.wrong}"
    onnx = "" if row.onnx is None else _milliseconds(row.onnx.theirs)
    padded = "" if row.padded is None else f"{row.padded:.2f}"
    text = (
        f"{start} {_milliseconds(timing.theirs):>9} {onnx:>9} {_milliseconds(timing.ours):>9} "
        f"{best.ratio:>6.2f} {best.spread:>5.2f} {row.flops / timing.ours / 1e9:>8.3g} "
        f"{_percent(row.gemm):>5} {_percent(row.read):>5} {padded:>6}"
    )
    return text.rstrip() + ("" if row.ours else "  (not ours)")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g}"


def _percent(part: float | None) -> str:
    return "" if part is None else f"{part:.0%}"


def summary_table(rows: Sequence[Row]) -> str:
    """Geometric means and minima of the ratio; rows that torch's operators served do not count."""
    lines = [
        f"{'cell':<10} {'mode':<20} {'cases':>5} {'geometric mean':>15} {'wanted':>7} "
        f"{'minimum':>8} {'wanted':>7} {'':<6} slowest"
    ]
    for s in summaries(rows):
        wanted = TARGETS[s.cell, s.mode]
        lines.append(
            f"{s.cell:<10} {s.mode:<20} {s.cases:>5} {s.geometric_mean:>15.2f} {wanted.mean:>7.1f} "
            f"{s.minimum:>8.2f} {wanted.minimum:>7.1f} {'' if met(s) else 'BELOW':<6} {s.slowest}"
        )
    others = sum(row.timing is not None and not row.ours for row in rows)
    if others:
        lines.append(f"{others} cases were not served by our kernels and are not counted")
    return "\n".join(lines)


def worst_slowdowns(slowdowns: Sequence[Slowdown]) -> str:
    """The slowest call of fastrnn beside each number of busy processes."""
    lines = []
    for busy, most in contention.TARGETS.items():
        ours = [s for s in slowdowns if s.busy == busy and s.implementation == OURS]
        if ours:
            worst = max(ours, key=lambda slowdown: slowdown.mean)
            lines.append(f"{busy} busy: at most {worst.mean:.2f}x ({worst.case}), wanted {most}x")
    return "\n".join(lines)


def machine_line(facts: Mapping[str, Any]) -> str:
    versions = f"torch {facts['torch']}, fastrnn {facts['fastrnn']} {facts['commit']}"
    if facts.get("onnxruntime"):
        versions += f", {onnx_peer.NAME} {facts['onnxruntime']}"
    return (
        f"{facts['cpu']} ({facts['isa']}), {facts['threads']} threads of {facts['cores']} cores, "
        f"{versions}, {facts['date']}"
    )


def ceilings_lines(ceilings: Mapping[str, Any]) -> str:
    """The two roofs of this run."""
    products = ", ".join(f"{rate:.0f} ({name})" for name, rate in ceilings["gemm"].items())
    read = ", ".join(f"{rate:.0f} ({size} KiB)" for size, rate in ceilings["read"].items())
    return f"roofs: 1024^3 torch.matmul, GFLOP/s: {products}; read over and over, GB/s: {read}"


def content(
    facts: Mapping[str, Any],
    rows: Sequence[Row],
    slowdowns: Sequence[Slowdown] = (),
    ceilings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All of a run, as JSON has it."""

    def as_dict(row: Row) -> dict[str, Any]:
        return {
            "name": row.case.name,
            **dataclasses.asdict(row.case),
            "dtype": row.case.dtype_name,
            "group": row.case.group,
            "backend": row.backend,
            "ours": row.ours,
            "flops": row.flops,
            "error_in_tolerances": row.error,
            "timing": None if row.timing is None else dataclasses.asdict(row.timing),
            "onnx": None if row.onnx is None else dataclasses.asdict(row.onnx),
            "peer": row.peer,
            "ratio": None if row.best is None else row.best.ratio,
            "spread": None if row.best is None else row.best.spread,
            "gemm_fraction": row.gemm,
            "read_fraction": row.read,
            "padded_overhead": row.padded,
            "wrong": row.wrong,
        }

    return {
        "machine": dict(facts),
        "ceilings": dict(ceilings or {"gemm": {}, "read": {}}),
        "summary": [summary._asdict() for summary in summaries(rows)],
        "contention": [dataclasses.asdict(slowdown) for slowdown in slowdowns],
        "cases": [as_dict(row) for row in rows],
    }


def write_json(
    path: Path,
    facts: Mapping[str, Any],
    rows: Sequence[Row],
    slowdowns: Sequence[Slowdown] = (),
    ceilings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write all of a run, and return it."""
    written = content(facts, rows, slowdowns, ceilings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written, indent=1) + "\n")
    return written
