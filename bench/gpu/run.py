"""The benchmark of ``make gpu``: starts ``measure``, again where a case ends its process."""

from __future__ import annotations

import json
import sys
from typing import Any

from . import children
from .cases import PADDED_GOAL, STEP_GOALS
from .part import Part, Report
from .testing import read

#: No case takes as long.
IDLE_SECONDS = 60
MOST_RESTARTS = 10
#: Of the time, for a second process that notes which kernels are started.
KERNEL_PART = 0.15


def run(part: Part) -> Report:
    # Beside the results: what was measured is there even if somebody ends this program.
    record, log = part.output / "gpu-bench.jsonl", part.scratch / "bench.log"
    record.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.gpu.measure", str(record)]
    command += ["--results", str(part.output.resolve())]
    command += ["--select", *part.arguments] if part.arguments else []
    idle = 10 * IDLE_SECONDS if part.rehearsed else IDLE_SECONDS
    kernel_seconds = KERNEL_PART * part.seconds
    restarts: list[dict[str, Any]] = []
    while True:
        outcome = children.run(
            command,
            log,
            seconds=part.left() - kernel_seconds,
            idle=idle,
            watched=record,
            echo=True,
        )
        found = [row for row in read(record) if "name" in row]
        running = unfinished(read(record))
        finished = outcome.ok or outcome.status == "out of time"
        finished = finished or part.left() <= kernel_seconds
        if finished or len(restarts) >= MOST_RESTARTS or (not running and not found):
            break
        restarts.append({"status": outcome.status, "code": outcome.code, "case": running})
        if running:
            row = {"name": running, "timing": None, "wrong": f"{outcome.status}: {outcome.tail}"}
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    started = children.run(
        [*command, "--kernels"], log, seconds=max(part.left(), 1), idle=idle, watched=record
    )
    rows = [row for row in read(record) if "name" in row and not row.get("left_out")]
    kernels = {event.pop("kernels_of"): event for event in read(record) if "kernels_of" in event}
    rows = [row | kernels.get(row["name"], {}) for row in rows]
    failures = [f"{row['name']}: {row['wrong']}" for row in rows if row["wrong"]]
    if not outcome.ok and outcome.status != "out of time":
        failures.append(f"the benchmark {outcome.status}, exit status {outcome.code}")
    if started.status in ("failed", "hung"):
        failures.append(f"naming kernels {started.status}: {started.tail[-1500:]}")
    if not any(row["timing"] for row in rows):
        failures.append(f"nothing was timed: {outcome.tail[-1500:]}")
    content = {
        "complete": outcome.ok,
        "restarts": restarts,
        "missed": missed(rows),
        "cases": rows,
    }
    record.unlink()
    return Report(content, failures, said(rows, complete=outcome.ok))


def unfinished(events: list[dict[str, Any]]) -> str:
    """The case that had begun and has no row."""
    running = ""
    for event in events:
        running = event.get("running", "") if "running" in event else ""
    return running


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """Goals that were not reached, as sentences: what there is left to do, no failure."""
    found = []
    for row in rows:
        if row["timing"] is None:
            continue
        ratio = row["timing"]["ratio"]
        if ratio < row["goal"]:
            found.append(f"{row['name']}: {ratio:.2f} times as fast, wanted {row['goal']}")
        step = STEP_GOALS.get(row["name"])
        if step is not None and 1e6 * row["step"] > step:
            found.append(f"{row['name']}: {1e6 * row['step']:.2f} us per step, wanted {step}")
        if row.get("padded", 0) > PADDED_GOAL:
            found.append(
                f"{row['name']}: {row['padded']:.2f} times the padded batch's time by filled "
                f"step, wanted {PADDED_GOAL}"
            )
        if row["part"] == "host" and row["host"] > row["host_theirs"]:
            found.append(
                f"{row['name']}: {1e6 * row['host']:.1f} us of the host per call, "
                f"torch.nn {1e6 * row['host_theirs']:.1f}"
            )
    return found


def said(rows: list[dict[str, Any]], *, complete: bool) -> str:
    timed = sum(row["timing"] is not None for row in rows)
    end = "all there are" if complete else "time was over before the others"
    return f"{len(rows)} cases, {timed} beside torch.nn, {len(missed(rows))} goals missed; {end}"
