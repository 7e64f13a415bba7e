"""Which kernels a call really starts, as torch's profiler sees them: ours, and what cuDNN chose."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from .device import Call, device

MOST_SHOWN = 8
#: What of the name of a kernel of ours says how it runs.
_OURS = re.compile(
    r"run_(?:sequence|tiled)<.*?(Forward|Backward|Initial)Pass<(?:.*?(\w+Exchange))?"
)
#: The function of a kernel's name; or, as CUTLASS has one function, what it is a template of.
_FUNCTION = re.compile(
    r"(?:void )?(?:cutlass::Kernel2?<)?(?:(?:\w+|\(anonymous namespace\))::)*(\w+)"
)


def started(call: Call) -> list[dict[str, Any]]:
    """The kernels of one call that took the most time, with their count, time and grid."""
    call()
    device().cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        activity = ProfilerActivity.CPU if device().rehearsed else ProfilerActivity.CUDA
        with silent(), profile(activities=[activity]) as profiler:
            call()
            device().cuda.synchronize()
        profiler.export_chrome_trace(str(path))
        return of_trace(json.loads(path.read_text(encoding="utf-8")))


@contextmanager
def silent() -> Iterator[None]:
    """Nothing on stderr: the profiler has a few lines to say of each call."""
    sys.stderr.flush()
    before = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def of_trace(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The kernels of a trace, those that took the most time together first."""
    found: dict[str, dict[str, Any]] = {}
    for event in trace["traceEvents"]:
        if event.get("cat") != "kernel":
            continue
        details = event.get("args", {})
        entry = found.setdefault(
            event["name"],
            {
                "name": event["name"][:200],
                "role": role(event["name"]),
                "count": 0,
                "microseconds": 0.0,
                "grid": details.get("grid"),
                "block": details.get("block"),
                "registers": details.get("registers per thread"),
                "shared": details.get("shared memory"),
            },
        )
        entry["count"] += 1
        entry["microseconds"] = round(entry["microseconds"] + event["dur"], 3)
    ordered = sorted(found.values(), key=lambda entry: -entry["microseconds"])
    return ordered[:MOST_SHOWN]


def shortened(name: str) -> str:
    """What a kernel is called, without namespaces and arguments."""
    match = _FUNCTION.match(name)
    return match[1] if match else name


def role(name: str) -> str:
    """What a kernel of ours does: ``forward through GlobalExchange``, ``forward in large tiles``.

    Empty for others.
    """
    match = _OURS.search(name)
    if match is None:
        return ""
    return f"{match[1].lower()} {f'through {match[2]}' if match[2] else 'in large tiles'}"
