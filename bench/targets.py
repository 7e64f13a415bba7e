"""What the figures must reach (``--check``), and how far they may fall behind the stored ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from . import contention
from .cases import LENGTHS, MODES, PACKED, PADDED, Case
from .contention import Slowdown
from .rows import Row, Summary, summaries
from .workload import OURS


class Target(NamedTuple):
    """Ratios to the fastest of the others: their geometric mean, and the smallest."""

    mean: float
    minimum: float


TARGETS: dict[tuple[str, str], Target] = {
    ("rnn_tanh", "training"): Target(2.5, 1.0),
    ("gru", "training"): Target(3.2, 1.0),
    ("lstm", "training"): Target(1.8, 1.0),
}
for _cell, _of_bfloat16 in (("rnn_tanh", 2.0), ("gru", 2.0), ("lstm", 1.0)):
    TARGETS[_cell, "inference"] = TARGETS[_cell, "inference prepacked"] = Target(1.5, 1.0)
    for _mode in MODES:
        for _ragged in (PACKED, LENGTHS):
            TARGETS[_cell, f"{_mode} {_ragged}"] = Target(3.0, 3.0)
        TARGETS[_cell, f"{_mode} float64"] = Target(1.5, 1.5)
        TARGETS[_cell, f"{_mode} bfloat16"] = Target(_of_bfloat16, _of_bfloat16)

#: The most that rows of different lengths may take of the padded time's filled part.
PADDED_OVERHEAD = 1.1
#: Of the rate of a large product, for batches of at least 32 rows.
GEMM, GEMM_BATCH = 0.85, 32
#: Of the rate that weights can be read at, for one sequence and at least 256 units.
READ, READ_UNITS = 0.60, 256

#: A ratio to torch.nn below this part of the stored one is a regression; less is noise.
NOISE = 0.85
#: What stored figures must share with new ones to be comparable.
SAME = ("cpu", "isa", "cores", "threads", "system", "torch")


def target(case: Case) -> Target:
    return TARGETS[case.cell, case.group]


def _has_roof(case: Case) -> bool:
    """Whether a roof is one of the targets: products and reading of single precision."""
    return case.dtype == torch.float32 and case.ragged == PADDED


def shortfalls(rows: Sequence[Row], slowdowns: Sequence[Slowdown] = ()) -> list[str]:
    """What ``--check`` fails for, as sentences."""
    found: list[str] = []
    for row in rows:
        found += _shortfalls_of(row)
    for summary in summaries(rows):
        wanted = TARGETS[summary.cell, summary.mode].mean
        if summary.geometric_mean < wanted:
            found.append(
                f"{summary.cell} {summary.mode}: geometric mean {summary.geometric_mean:.2f}, "
                f"wanted {wanted}"
            )
    for slowdown in slowdowns:
        most = contention.TARGETS[slowdown.busy]
        if slowdown.implementation == OURS and slowdown.mean > most:
            found.append(
                f"{slowdown.case}: {slowdown.mean:.1f} times slower beside {slowdown.busy} busy "
                f"processes, wanted {most} at most"
            )
    return found


def _shortfalls_of(row: Row) -> list[str]:
    case, best = row.case, row.best
    if best is None:
        return []  # wrong numbers, which fail whether checked or not
    if not row.ours:
        return [f"{case.name}: served by {row.backend!r}, not by a kernel of ours"]
    found = []
    wanted = target(case).minimum
    if best.ratio < wanted:
        found.append(f"{case.name}: {best.ratio:.2f} times as fast as {row.peer}, wanted {wanted}")
    if row.padded is not None and row.padded > PADDED_OVERHEAD:
        found.append(
            f"{case.name}: {row.padded:.2f} of the padded time's filled part, "
            f"wanted {PADDED_OVERHEAD} at most"
        )
    if _has_roof(case):
        if row.gemm is not None and case.batch >= GEMM_BATCH and row.gemm < GEMM:
            found.append(f"{case.name}: {row.gemm:.0%} of the products' rate, wanted {GEMM:.0%}")
        if row.read is not None and case.hidden_size >= READ_UNITS and row.read < READ:
            found.append(f"{case.name}: {row.read:.0%} of the reading rate, wanted {READ:.0%}")
    return found


def met(summary: Summary) -> bool:
    wanted = TARGETS[summary.cell, summary.mode]
    return summary.geometric_mean >= wanted.mean and summary.minimum >= wanted.minimum


class Stored:
    """Figures of an earlier run, where they are of this machine; else nothing to compare with."""

    def __init__(self, content: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> None:
        machine = content["machine"] if content else {}
        same = all(machine.get(key) == facts[key] for key in SAME)
        cases = content["cases"] if content and same else []
        self._cases = {case["name"]: case for case in cases if case["timing"] and case["ours"]}

    def __bool__(self) -> bool:
        return bool(self._cases)

    def regression(self, row: Row) -> str:
        """How a row is worse than it was, beyond noise; empty if it is not."""
        old = self._cases.get(row.case.name)
        if old is None or row.timing is None:
            return ""
        if not row.ours:
            return f"{row.case.name}: served by {row.backend!r}, was by {old['backend']!r}"
        before = old["timing"]["ratio"]
        if row.timing.ratio >= NOISE * before:
            return ""
        now = row.timing.ratio
        return f"{row.case.name}: {now:.2f} times as fast as torch.nn, was {before:.2f}"
