"""The tests on a GPU (``tests/gpu``), in processes that may hang or lose their device."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from fastrnn.backends.cuda import REGIMES

from . import children
from .part import Part, Report

#: Environment of the tests: the file they write what happens to; one with tests to leave out.
RECORD, SKIP = "GPU_TEST_RECORD", "GPU_TEST_SKIP"
#: Exit status where a kernel's fault has made the process useless.
BROKEN = 86
#: No test takes as long; loading torch and making a context is part of the first.
IDLE_SECONDS = 45
MOST_RESTARTS = 12
#: So many tests of one regime that hang or break the device, and its others are left out.
MOST_OF_REGIME = 2
_REGIME = re.compile(rf"(?:{'|'.join(REGIMES)})(?:-\d+)*")
FOLDER = children.ROOT / "tests" / "gpu"
#: The most basic first.
FILES = (
    "test_gpu_basics.py",
    "test_gpu_autograd.py",
    "test_gpu_autocast.py",
    "test_gpu_graphs.py",
    "test_gpu_streams.py",
    "test_gpu_parity.py",
    "test_gpu_choices.py",
    "test_gpu_regimes.py",
    "test_gpu_large.py",
    "test_gpu_cupy.py",
    "test_gpu_sizes.py",
)


def read(record: Path) -> list[dict[str, Any]]:
    """The lines of a record; the last may have been cut off."""
    found = []
    for line in record.read_text(encoding="utf-8").splitlines() if record.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def outcomes(events: list[dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], str]:
    """What is known of each test, and the one that had begun and not ended."""
    found: dict[str, dict[str, Any]] = {}
    running = ""
    for event in events:
        if event["event"] == "start":
            running = event["test"]
        elif event["event"] in ("end", "collect", "broken"):
            worse = event["event"] == "broken" or event["test"] not in found
            if worse or found[event["test"]]["outcome"] == "passed":
                found[event["test"]] = {
                    "outcome": event.get("outcome", "failed"),
                    "text": event["text"],
                }
            running = ""
    return found, running


def regime(test: str) -> str:
    """The regime in the name of a test; empty where it leaves the choice to the plan."""
    found = _REGIME.findall(test.partition("[")[2])
    return found[-1] if found else ""


def left_out(test: str, patterns: set[str]) -> bool:
    """Whether a test is named, or of a regime that is: ``*cluster``."""
    return test in patterns or f"*{regime(test)}" in patterns


def run(part: Part) -> Report:
    """All tests; after one that hangs or breaks the device, those that are left."""
    # Beside the results: what is known is there even if somebody ends this program.
    record = part.output / "gpu-test.jsonl"
    record.unlink(missing_ok=True)
    skip, log = part.scratch / "done.txt", part.scratch / "tests.log"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    command += ["--benchmark-disable"] if part.has_module("pytest_benchmark") else []
    command += ["--tb=short", "--no-summary", "--strict-markers", *part.arguments]
    command += [str(FOLDER / name) for name in FILES]
    restarts: list[dict[str, Any]] = []
    given_up: list[str] = []
    while True:
        outcome = children.run(
            command,
            log,
            seconds=part.left(),
            idle=10 * IDLE_SECONDS if part.rehearsed else IDLE_SECONDS,
            watched=record,
            echo=True,
            environment={RECORD: str(record), SKIP: str(skip)} | _skip(skip),
        )
        found, running = outcomes(read(record))
        complete = outcome.status in ("ok", "failed") and outcome.code in (0, 1)
        if complete or part.left() <= 0 or len(restarts) >= MOST_RESTARTS:
            break
        if outcome.status == "out of time" or (not running and outcome.code != BROKEN):
            break  # nothing to leave out: another process would do the same
        restarts.append({"status": outcome.status, "code": outcome.code, "test": running})
        if running:
            with record.open("a", encoding="utf-8") as file:
                text = f"{outcome.status}, exit status {outcome.code}\n{outcome.tail[-1500:]}"
                event = {"event": "end", "test": running, "outcome": "failed", "text": text}
                file.write(json.dumps(event) + "\n")
        found, _ = outcomes(read(record))
        broken = [e["test"] for e in read(record) if e["event"] == "broken"]
        troubles = Counter(map(regime, {*broken, *(restart["test"] for restart in restarts)}))
        given_up = [name for name, n in troubles.items() if name and n >= MOST_OF_REGIME]
        skip.write_text("\n".join([*found, *(f"*{name}" for name in given_up)]) + "\n")
    counts = Counter(entry["outcome"] for entry in found.values())
    failures = {test: e["text"] for test, e in found.items() if e["outcome"] == "failed"}
    skipped = Counter(entry["text"] for entry in found.values() if entry["outcome"] == "skipped")
    messages = [f"{test}: {_last_line(text)}" for test, text in list(failures.items())[:40]]
    if not complete:
        messages.append(f"the tests did not end: {outcome.status}, exit status {outcome.code}")
    messages += [f"the tests of the regime {name} were given up" for name in given_up]
    if not counts["passed"]:
        messages.append(f"no test has passed: {_last_line(outcome.tail)}")
    collected = max((e["count"] for e in read(record) if e["event"] == "collected"), default=0)
    content = {
        "collected": collected,
        "counts": dict(counts),
        "complete": complete,
        "restarts": restarts,
        "failed": failures,
        "skipped": dict(skipped),
        "given_up": given_up,
        "largest_errors": {
            kind: worst
            for e in read(record)
            if e["event"] == "errors"
            for kind, worst in e["worst"]
        },
        "tail": outcome.tail,
    }
    record.unlink(missing_ok=True)
    said = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return Report(content, messages, f"{said or 'nothing ran'} of {collected}")


def _skip(path: Path) -> dict[str, str]:
    return {SKIP: str(path)} if path.exists() else {SKIP: ""}


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E ")]
    return (errors or lines or [""])[-1].strip()[:300]
