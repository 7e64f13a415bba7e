"""Measures cases, one line of JSON for each: ``python -m bench.gpu.measure RECORD --select gru``.

With ``--kernels`` it notes which kernels they start instead. That is for a process of its own,
after the others: once a profiler has been on, launches may take longer.

A case with wrong numbers is not timed. One that raises is noted, and the next one goes on; where a
kernel's fault has made the process useless, it ends with the status BROKEN.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fastrnn
from fastrnn import backends
from fastrnn.backends.cuda import CudaBackend

from .. import timing
from ..cases import INFERENCE, PADDED
from ..workload import OURS, THEIRS, WrongNumbers
from . import floors, kernels, plans, record
from .cases import CASES, PARTS, GpuCase, rehearsal
from .device import device
from .testing import BROKEN
from .workload import GpuWorkload, precision, refuse

#: Of a comparison, and of the timing of a case that is timed alone.
SECONDS, ALONE_SECONDS = 0.3, 0.1
#: Of a sample, which begins while the device has nothing to do: what the host takes until the first
#: kernel starts, some 50 us, is in it, and is to be less than a hundredth.
SAMPLE_SECONDS = 8e-3


def listed() -> tuple[GpuCase, ...]:
    return rehearsal() if device().rehearsed else CASES


def chosen(select: Sequence[str]) -> list[GpuCase]:
    """The cases of some parts of the table, or with some text in their name; all by default."""
    parts = [one for one in select if one in PARTS]
    texts = [one for one in select if one not in PARTS]
    return [
        case
        for case in listed()
        if not select or case.part in parts or any(text in case.name for text in texts)
    ]


def measure(case: GpuCase, waits: dict[str, float]) -> dict[str, Any]:
    """Everything that is stored of a case."""
    facts: dict[str, Any] = {
        **dataclasses.asdict(case),
        "name": case.name,
        "dtype": case.dtype_name,
        "group": case.group,
        "goal": case.goal,
        "wrong": "",
        "timing": None,
    }
    with device().serving(case.regime or None) as name, fastrnn.use_backend(name), precision(case):
        work = GpuWorkload(case)
        backend = backends.get(name)
        assert isinstance(backend, CudaBackend)
        facts |= {"backend": work.backend(), "flops": work.flops, "filled": work.filled}
        facts["ours"] = facts["backend"] == name
        facts["plan"] = plans.predicted(case, backend)
        facts["floor"] = floors.floor(work, waits)
        expected = work.expected()
        try:
            facts["error"] = work.errors(OURS, expected)
            refuse(facts["error"])
        except WrongNumbers as wrong:
            return facts | {"wrong": str(wrong)}
        facts["error_theirs"] = work.errors(THEIRS, expected)
        del expected
        with torch.inference_mode(case.mode == INFERENCE):
            facts |= timed(work)
    return facts


def timed(work: GpuWorkload) -> dict[str, Any]:
    """Times of a case whose numbers are right: beside each of its peers, judged by the fastest."""
    case, ours = work.case, work.call(OURS)
    seconds, each = device().fit(SECONDS, 0.0), device().fit(SAMPLE_SECONDS, timing.SAMPLE_SECONDS)
    found: dict[str, Any] = {}
    clock = device().event_seconds
    if case.regime:
        with timing.no_garbage_collection():
            calls = timing.calls_per_sample(timing.warm_up(ours, seconds / 20, clock), each)
        found["alone"] = timing.median_call(ours, device().fit(ALONE_SECONDS, 0.0), calls, clock)
        found["step"] = found["alone"] / (case.steps * case.layers)
        return found
    peers = {name: work.call(name) for name in work.peers()}
    results = {
        name: timing.compare(ours, theirs, seconds, clock, each) for name, theirs in peers.items()
    }
    peer = min(results, key=lambda name: results[name].ratio)
    result = results[peer]
    found["timing"] = dataclasses.asdict(result)
    found["peer"], found["unflattened"] = peer, work.unflattened
    found["timings"] = {name: dataclasses.asdict(one) for name, one in results.items()}
    found["step"] = result.ours / (case.steps * case.layers)
    found["step_theirs"] = result.theirs / (case.steps * case.layers)
    with timing.no_garbage_collection():
        calls = 5 if result.ours < 1e-3 else 1  # the queue of a stream is not endless
        found["host"] = device().host_seconds(ours, calls)
        found["host_theirs"] = min(device().host_seconds(call, calls) for call in peers.values())
    if case.ragged:
        padded = GpuWorkload(dataclasses.replace(case, ragged=PADDED))
        beside = timing.compare(ours, padded.call(OURS), seconds, clock, each)
        found["padded"] = 1 / (beside.ratio * work.filled)
    return found


def started(case: GpuCase) -> dict[str, Any]:
    """The kernels of both libraries."""
    with device().serving(case.regime or None) as name, fastrnn.use_backend(name), precision(case):
        work = GpuWorkload(case)
        with torch.inference_mode(case.mode == INFERENCE):
            found: dict[str, Any] = {"kernels": kernels.started(work.call(OURS))}
            if not case.regime:
                found["kernels_theirs"] = kernels.started(work.call(work.peers()[-1]))
    return found


def cannot_run(error: Exception) -> bool:
    """Whether a regime by force has no room, which is no fault."""
    return isinstance(error, RuntimeError) and "cannot run this" in str(error)


def line(row: dict[str, Any]) -> str:
    """What is printed of a row."""
    if row["wrong"]:
        return f"{row['name']:<58} NOT TIMED: {row['wrong']}"
    microseconds = f"{1e6 * row['step']:8.2f}"
    if row["timing"] is None:
        return f"{row['name']:<58} {microseconds} us/step"
    found = row["timing"]
    verdict = "" if found["ratio"] >= row["goal"] else f"  below {row['goal']}"
    return (
        f"{row['name']:<58} {microseconds} us/step, cuDNN {1e6 * row['step_theirs']:8.2f}, "
        f"{found['ratio']:5.2f} +- {found['spread']:.2f}{verdict}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.measure", description=__doc__)
    parser.add_argument("record", type=Path, help="file to which lines of JSON are added")
    parser.add_argument("--kernels", action="store_true", help="which are started, of cases timed")
    parser.add_argument("--select", nargs="*", default=[], help="parts, or texts in names")
    parser.add_argument("--sync", type=Path, nargs="*", default=[], help="folders of gpu-sync.json")
    options = parser.parse_args(arguments)
    if device().rehearsed:
        torch.set_num_threads(1)  # others are at work too, and waiting for threads takes longest
    waits, source = floors.known_waits(options.sync)
    events = record.read(options.record)
    done = {event.get("name") for event in events}
    note = functools.partial(record.add, options.record)
    if options.kernels:
        well = {e["name"] for e in events if "name" in e and not e["wrong"] and "step" in e}
        for case in [case for case in chosen(options.select) if case.name in well]:
            note(kernels_of=case.name, **started(case))
        return 0
    device().load()  # before a case is waited for
    print(f"floors: steps that wait for each other as {source}", flush=True)
    for case in chosen(options.select):
        if case.name in done:
            continue
        note(running=case.name)
        row: dict[str, Any] = {"name": case.name, "part": case.part, "timing": None}
        try:
            row = measure(case, waits) | {"waits": source}
        except Exception as error:
            wrong = "" if cannot_run(error) else f"{type(error).__name__}: {error}"
            row |= {"wrong": wrong, "left_out": cannot_run(error)}
            if wrong:
                row["traceback"] = traceback.format_exc()[-3000:]
        note(**row)
        if not row.get("left_out"):
            print(line(row), flush=True)
        if row["wrong"]:
            try:
                device().cuda.synchronize()
            except RuntimeError:
                os._exit(BROKEN)
        device().cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
