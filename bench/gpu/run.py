"""The benchmark of ``make gpu``: starts ``measure``, again where a case ends its process."""

from __future__ import annotations

import sys
from typing import Any

from . import children, record
from .cases import PADDED_GOAL, STEP_GOALS
from .part import Part, Report

#: Until a process has its first case: torch, cuBLAS and cuDNN are loaded from a cold disk.
FIRST_SECONDS = 150
#: No case takes as long.
IDLE_SECONDS = 30
MOST_RESTARTS = 10
#: So many processes that end with no case to blame, and another would do the same.
MOST_UNEXPLAINED = 2
#: Of the time, for a second process that notes which kernels are started.
KERNEL_PART = 0.15


def run(part: Part) -> Report:
    path, log = part.output / "gpu-bench.jsonl", part.scratch / "bench.log"
    record.begin(path, part.machine)
    command = [sys.executable, "-m", "bench.gpu.measure", str(path)]
    folders = [str(folder.resolve()) for folder in (part.output, *part.earlier)]
    command += ["--sync", *folders]
    command += ["--select", *part.arguments] if part.arguments else []

    def child(words: list[str], seconds: float) -> children.Outcome:
        record.add(path, patience=FIRST_SECONDS)
        return children.run(
            words,
            log,
            seconds=seconds,
            idle=lambda: part.slowness * record.patience(path, IDLE_SECONDS),
            watched=path,
            echo=True,
        )

    kernel_seconds = KERNEL_PART * part.seconds
    restarts: list[dict[str, Any]] = []
    while True:
        outcome = child(command, part.left() - kernel_seconds)
        running = unfinished(record.read(path))
        if outcome.ok or outcome.status == "out of time" or part.left() <= kernel_seconds:
            break
        restarts.append({"status": outcome.status, "code": outcome.code, "case": running})
        if running:
            wrong = f"{outcome.status}, exit status {outcome.code}: {outcome.tail}"
            record.add(path, name=running, timing=None, wrong=wrong)
        else:
            restarts[-1]["tail"] = outcome.tail[-1500:]
        unexplained = sum("tail" in restart for restart in restarts)
        if unexplained >= MOST_UNEXPLAINED or len(restarts) > MOST_RESTARTS:
            break
    started = child([*command, "--kernels"], max(part.left(), 1))
    content = {"complete": outcome.ok, "restarts": restarts, **summary(record.read(path))}
    rows = content["cases"]
    failures = [f"{row['name']}: {row['wrong']}" for row in rows if row["wrong"]]
    failures += [
        f"a process with no case to blame {restart['status']}, exit status {restart['code']}:\n"
        f"{restart['tail']}"
        for restart in restarts
        if "tail" in restart
    ]
    if not outcome.ok and outcome.status != "out of time":
        failures.append(f"the benchmark {outcome.status}, exit status {outcome.code}")
    if started.status in ("failed", "hung"):
        failures.append(f"naming kernels {started.status}: {started.tail[-1500:]}")
    if not any(row["timing"] for row in rows):
        failures.append(f"nothing was timed: {outcome.tail[-1500:]}")
    path.unlink(missing_ok=True)
    return Report(content, failures, said(rows, complete=outcome.ok))


def unfinished(events: list[record.Event]) -> str:
    """The case that had begun and has no row."""
    running = ""
    for event in events:
        running = event.get("running", "")
    return running


def summary(events: list[record.Event]) -> dict[str, Any]:
    """What a record says, whether all cases have been measured or not."""
    rows = [event for event in events if "name" in event and not event.get("left_out")]
    kernels = {event.pop("kernels_of"): event for event in events if "kernels_of" in event}
    rows = [row | kernels.get(row["name"], {}) for row in rows]
    return {"missed": missed(rows), "cases": rows}


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
