"""The tests on a GPU (``tests/gpu``), in processes that may hang or lose their device."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from fastrnn.backends.cuda import REGIMES

from . import children, record
from .part import Part, Report

#: Environment of the tests: the file they write what happens to; one with tests to leave out.
RECORD, SKIP = "GPU_TEST_RECORD", "GPU_TEST_SKIP"
#: Exit status where a kernel's fault has made the process useless.
BROKEN = 86
#: pytest's, of no test: all that is left has been left out.
NOTHING_LEFT = 5
#: Until a process has its tests: libraries are loaded from a cold disk, and thousands collected.
FIRST_SECONDS = 150
#: No test takes as long ...
IDLE_SECONDS = 20
#: ... but of these files: torch's compiler is loaded, kernels are compiled, the device is filled.
LONGER = {"test_gpu_autograd.py": 60, "test_gpu_cupy.py": 150, "test_gpu_large.py": 60}
MOST_RESTARTS = 12
#: So many processes that end with no test to blame, and another would do the same.
MOST_UNEXPLAINED = 2
#: So many tests of one regime that hang or break the device, and its others are left out.
MOST_OF_REGIME = 2
_REGIME = re.compile(rf"(?:{'|'.join(REGIMES)})(?:-\d+)*")
FOLDER = children.ROOT / "tests" / "gpu"
#: The most basic first; a regime that hangs in one of the first file is given up at once.
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
#: torch's warning where a thread has no context yet, which cuBLAS then makes: whoever calls first
#: is blamed, and our own warnings are errors.
HARMLESS = "Attempting to run cuBLAS, but there was no current CUDA context"


def file_of(test: str) -> str:
    return Path(test.partition("::")[0]).name


def outcomes(events: list[record.Event]) -> tuple[dict[str, dict[str, Any]], str]:
    """What is known of each test, and the one that had begun and not ended."""
    found: dict[str, dict[str, Any]] = {}
    running = ""
    for event in events:
        kind = event.get("event")
        if kind == "start":
            running = event["test"]
        elif kind in ("end", "collect", "broken"):
            worse = kind == "broken" or event["test"] not in found
            if worse or found[event["test"]]["outcome"] == "passed":
                found[event["test"]] = {
                    "outcome": event.get("outcome", "failed"),
                    "text": event["text"],
                }
            running = ""
    return found, running


def summary(events: list[record.Event]) -> dict[str, Any]:
    """What a record says, whether all tests have run or not."""
    found, _ = outcomes(events)
    return {
        "collected": max((e["count"] for e in events if e.get("event") == "collected"), default=0),
        "counts": dict(Counter(entry["outcome"] for entry in found.values())),
        "failed": {t: e["text"] for t, e in found.items() if e["outcome"] == "failed"},
        "skipped": dict(Counter(e["text"] for e in found.values() if e["outcome"] == "skipped")),
        "largest_errors": {
            kind: worst for e in events if e.get("event") == "errors" for kind, worst in e["worst"]
        },
    }


def regime(test: str) -> str:
    """The regime in the name of a test; empty where it leaves the choice to the plan."""
    found = _REGIME.findall(test.partition("[")[2])
    return found[-1] if found else ""


def hopeless(events: list[record.Event]) -> list[str]:
    """The regimes whose tests nobody tries any more."""
    troubles: Counter[str] = Counter()
    for test in {e["test"] for e in events if e.get("event") == "broken" or e.get("fatal")}:
        troubles[regime(test)] += 1
    for event in events:
        if event.get("fatal") and file_of(event["test"]) == FILES[0]:
            troubles[regime(event["test"])] += MOST_OF_REGIME
    return [name for name, count in troubles.items() if name and count >= MOST_OF_REGIME]


def left_out(test: str, patterns: set[str]) -> bool:
    """Whether a test is named, or of a regime that is: ``*cluster``."""
    return test in patterns or f"*{regime(test)}" in patterns


def command(part: Part) -> list[str]:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    words += ["--benchmark-disable"] if part.has_module("pytest_benchmark") else []
    words += ["--tb=short", "--no-summary", "--strict-markers", "-W", f"ignore:{HARMLESS}"]
    words += ["--continue-on-collection-errors", *part.arguments]
    return words + [str(FOLDER / name) for name in FILES]


def run(part: Part) -> Report:
    """All tests; after one that hangs or breaks the device, those that are left."""
    path = part.output / "gpu-test.jsonl"
    record.begin(path, part.machine)
    skip, log = part.scratch / "done.txt", part.scratch / "tests.log"
    skip.write_text("")
    restarts: list[dict[str, Any]] = []
    while True:
        record.add(path, event="process", patience=FIRST_SECONDS)
        outcome = children.run(
            command(part),
            log,
            seconds=part.left(),
            idle=lambda: part.slowness * record.patience(path, IDLE_SECONDS),
            watched=path,
            echo=True,
            environment={RECORD: str(path), SKIP: str(skip)},
        )
        events = record.read(path)
        _, running = outcomes(events)
        ended = (0, 1, NOTHING_LEFT) if restarts else (0, 1)
        complete = outcome.status in ("ok", "failed") and outcome.code in ended
        if complete or outcome.status == "out of time" or part.left() <= 0:
            break
        explained = running or outcome.code == BROKEN
        restarts.append({"status": outcome.status, "code": outcome.code, "test": running})
        restarts[-1] |= {} if explained else {"tail": outcome.tail[-1500:]}
        unexplained = sum("tail" in restart for restart in restarts)
        if unexplained >= MOST_UNEXPLAINED or len(restarts) > MOST_RESTARTS:
            break
        if running:
            text = f"{outcome.status}, exit status {outcome.code}\n{outcome.tail[-1500:]}"
            record.add(path, event="end", test=running, outcome="failed", text=text, fatal=True)
        events = record.read(path)
        given_up = [f"*{name}" for name in hopeless(events)]
        skip.write_text("\n".join([*outcomes(events)[0], *given_up]) + "\n")
    content = {
        **summary(events),
        "complete": complete,
        "restarts": restarts,
        "given_up": hopeless(events),
        "tail": outcome.tail,
    }
    path.unlink(missing_ok=True)
    said = ", ".join(f"{count} {name}" for name, count in sorted(content["counts"].items()))
    said = f"{said or 'nothing ran'} of {content['collected']}"
    return Report(content, messages(content, outcome), said)


def messages(content: dict[str, Any], outcome: children.Outcome) -> list[str]:
    """The failures as sentences; of many, the first."""
    failed = list(content["failed"].items())
    found = [f"{test}: {_last_line(text)}" for test, text in failed[:40]]
    found += [f"and {len(failed) - 40} others"] if len(failed) > 40 else []
    if not content["complete"]:
        found.append(f"the tests did not end: {outcome.status}, exit status {outcome.code}")
    found += [
        f"a process with no test to blame {restart['status']}, exit status {restart['code']}:\n"
        f"{restart['tail']}"
        for restart in content["restarts"]
        if "tail" in restart
    ]
    found += [f"the tests of the regime {name} were given up" for name in content["given_up"]]
    if not content["counts"].get("passed"):
        found.append(f"no test has passed: {_last_line(outcome.tail)}")
    return found


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E ")]
    return (errors or lines or [""])[-1].strip()[:300]
