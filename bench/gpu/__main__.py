"""What is run on a machine with a GPU: ``make gpu``, or ``python -m bench.gpu PART ...``.

Parts, in this order: build, test, sanitize, sync, bench; ``all`` for all of them. Each writes
``gpu-PART.json`` as soon as it has ended, well or not, and a failure of one keeps no other from
running. Exit status 1 if any failed. With ``--total`` they share so many seconds. ``store`` puts
the files of one or several such folders together as bench/results/gpu.json, from which the README's
section is made.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..run import RESULTS
from . import building, sanitizing, store, sync, testing
from . import run as benchmark
from .device import REHEARSAL, device
from .machine import COMMIT, facts
from .part import Part, Report


class Kind(NamedTuple):
    """run: what runs a part. most: seconds that it may take. least: those that the parts before it
    leave it of a total.
    """

    run: Callable[[Part], Report]
    most: float
    least: float


PARTS = {
    "build": Kind(building.run, 480, 120),
    "test": Kind(testing.run, 480, 90),
    "sanitize": Kind(sanitizing.run, 480, 40),
    "sync": Kind(sync.run, 200, 40),
    "bench": Kind(benchmark.run, 480, 100),
}


def share(names: Sequence[str], left: float) -> float:
    """Seconds for the first of some parts, of those that are left for all of them."""
    first = PARTS[names[0]]
    kept = sum(PARTS[name].least for name in names[1:])
    # Where not even the least of each is left, all get as much less.
    return min(first.most, max(left - kept, left * first.least / (first.least + kept)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    names = [*PARTS, "all", "store"]
    parser.add_argument("parts", nargs="+", metavar="PART", help=", ".join(names))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for JSON files")
    parser.add_argument("--seconds", type=float, help="that a part may take, at most")
    parser.add_argument("--total", type=float, default=math.inf, help="seconds of all together")
    parser.add_argument("--select", default="", help="parts of the benchmark, as gru,ragged")
    parser.add_argument(
        "--earlier", type=Path, nargs="+", default=[], help="folders with gpu-sync.json, for bench"
    )
    parser.add_argument("--commit", default="", help="where this is no clone: what is measured")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at tiny sizes")
    parser.add_argument("--from", type=Path, nargs="+", dest="sources", help="folders to store")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], help="for the tests")
    options = parser.parse_args(arguments)
    for part in options.parts:
        if part not in names:
            parser.error(f"PART: expected one of {', '.join(names)}, got {part!r}")
    if "all" in options.parts:
        options.parts = list(PARTS)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    start = time.monotonic()
    options = parse(arguments)
    if options.parts == ["store"]:
        return store.main(options.sources or [options.output])
    if options.rehearse:
        os.environ[REHEARSAL] = "1"
    if options.commit:
        os.environ[COMMIT] = options.commit
    if not device().rehearsed and not device().cuda.is_available():
        print("error: torch sees no GPU (--rehearse runs everything on the CPU)", file=sys.stderr)
        return 2
    failed: list[str] = []
    for place, name in enumerate(options.parts):
        left = options.total - (time.monotonic() - start)
        if left <= 0:
            failed.append(f"{name}: not begun, as the {options.total:.0f} seconds were over")
            continue
        seconds = share(options.parts[place:], left)
        failed += [f"{name}: {sentence}" for sentence in run(name, options, seconds)]
    print(f"\n{'=' * 72}")
    for sentence in failed:
        print(f"FAILED: {sentence}")
    print(f"{len(failed)} failures in {', '.join(options.parts)}; results in {options.output}")
    return 1 if failed else 0


def run(name: str, options: argparse.Namespace, seconds: float) -> list[str]:
    """Run a part and write what it found; returns its failures as sentences."""
    scratch = Path(tempfile.mkdtemp(prefix=f"fastrnn-gpu-{name}-"))
    extra = options.pytest if name == "test" else options.select.split(",")
    part = Part(
        options.output,
        scratch,
        min(options.seconds or seconds, seconds),
        [one for one in extra if one],
        options.rehearse,
        facts(),
        options.earlier,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"\n{'=' * 72}\n{name}: at most {part.seconds:.0f} s", flush=True)
    try:
        report = PARTS[name].run(part)
    except Exception:  # the others run all the same
        report = Report({}, [traceback.format_exc()], "failed")
    took = part.seconds - part.left()
    content = {
        "part": name,
        "machine": part.machine,
        "seconds": round(took, 1),
        "failures": report.failures,
        **report.content,
    }
    path = options.output / f"gpu-{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(
        f"{name}: {report.said}; {len(report.failures)} failures, {took:.0f} s; {path}", flush=True
    )
    for sentence in report.failures:
        print(f"  {sentence}", flush=True)
    shutil.rmtree(scratch, ignore_errors=True)
    return report.failures


if __name__ == "__main__":
    sys.exit(main())
