"""compute-sanitizer over small calls of every regime (``sanitized.py``)."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import children
from .part import Part, Report
from .sanitized import CANNOT

#: The quickest first; racecheck follows every access to shared memory.
TOOLS = ("memcheck", "synccheck", "racecheck")
#: First a block that waits for no other, yet runs all of the recurrence; then those that exchange.
REGIMES = ("processor", "cluster", "grid-4", "tiled-4", "stepwise", "grid-1", "tiled-1")
NOT_BEGUN = "not begun"
#: Exit status of the tool where it has found something.
FOUND = 77
SECONDS = 240
#: No check is begun with less.
LEAST_SECONDS = 10
#: Programs on the GPU at the same time; most of their time is the tool's, on the CPU.
BESIDE = 4


def options(tool: str) -> list[str]:
    """Ours are the only kernels that are watched, and what calls of the driver return is not: torch
    asks for functions that there may not be, we for clusters that a device may not have.
    """
    found = ["--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
    return [*found, "--report-api-errors", "no", "--kernel-name", "kns=fastrnn"]


def find_tool() -> str | None:
    name = "compute-sanitizer"
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def check(part: Part, entry: tuple[str, str], program: str | None) -> dict[str, Any]:
    """One tool over one regime; without a program, the calls alone."""
    tool, regime = entry
    if part.left() < LEAST_SECONDS:
        return {"tool": tool, "regime": regime, "status": NOT_BEGUN, "errors": None}
    log = part.scratch / f"{tool}-{regime}.log"
    command = [sys.executable, "-m", "bench.gpu.sanitized", regime]
    if program is not None:
        command = [program, *options(tool), *command]
    # Each tensor its own allocation, so that what lies beyond it belongs to nobody.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    seconds = min(SECONDS, part.left())
    outcome = children.run(command, log, seconds=seconds, environment=environment)
    text = log.read_text(errors="replace")
    found = re.findall(r"ERROR SUMMARY: (\d+) error", text)
    found += re.findall(r"RACECHECK SUMMARY: (\d+) hazard", text)
    status = outcome.status
    if status == "ok" and program is not None and not found:
        status = "no summary of the tool"
    if status == "failed":
        status = {FOUND: "found something", CANNOT: "cannot run here"}.get(outcome.code, status)
    result: dict[str, Any] = {"tool": tool, "regime": regime}
    result |= {"status": status, "code": outcome.code}
    result |= {"seconds": outcome.seconds, "errors": int(found[-1]) if found else None}
    if status != "ok":
        result["output"] = _shown(text)
    print(f"  {tool:<10} {regime:<10} {status}, {outcome.seconds:.0f} s", flush=True)
    return result


def _shown(text: str) -> str:
    """What the tool says, which comes first, and the end."""
    lines = [line for line in text.splitlines() if line.startswith("=====")]
    return "\n".join(lines[:60])[:5000] + "\n...\n" + text[-1500:]


def run(part: Part) -> Report:
    program = find_tool()
    if program is None and not part.rehearsed:
        return Report({}, ["compute-sanitizer is not installed"], "not installed")
    product = list(itertools.product(TOOLS, REGIMES))
    if part.rehearsed:  # the same programs, which nobody watches
        program, product = None, product[5::6]
    # The first alone: where nothing runs, nobody waits for the rest.
    results = [check(part, product[0], program)]
    with ThreadPoolExecutor(min(BESIDE, os.cpu_count() or 1)) as pool:
        results += pool.map(lambda entry: check(part, entry, program), product[1:])
    failures = [
        f"{r['tool']} of {r['regime']}: {r['status']} ({r['errors']} errors)"
        for r in results
        if r["status"] not in ("ok", "cannot run here", NOT_BEGUN)
    ]
    late = sum(r["status"] == NOT_BEGUN for r in results)
    failures += [f"time was over before {late} of {len(results)} checks"] if late else []
    if not any(r["status"] == "ok" for r in results):
        failures.append("no check has ended well")
    ended_well = sum(r["status"] == "ok" for r in results)
    return Report({"checks": results}, failures, f"{ended_well} of {len(results)} without error")
