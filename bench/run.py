"""Time fastrnn beside torch.nn and ONNX Runtime: ``python -m bench.run``.

Every case is checked before it is timed; a case with wrong numbers is not timed and the exit
status is 1. It is also 1 where a case has become slower than the stored results of this machine
have it; those are then kept, unless ``--accept`` is given. With ``--check`` it is also 1 where a
target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import fastrnn

from . import ceilings, contention, machine, onnx_peer, plots, report
from .cases import ALL, CASES, INFERENCE, MODES, PADDED, Case
from .contention import Slowdown
from .onnx_peer import OnnxPeer
from .rows import Row
from .targets import Stored, shortfalls, target
from .timing import compare, compare_with_block
from .workload import OURS, THEIRS, Workload, WrongNumbers

RESULTS = Path(__file__).resolve().parent / "results"
#: Of each comparison; a run of all cases then takes about eight minutes.
SECONDS = 1.2
QUICK_SECONDS = 0.2
#: A row that seems too slow is measured again, so many times as long.
AGAIN = 3
#: Load average per core, before the benchmark starts, above which figures are not to be trusted.
BUSY = 0.25


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {value}")
    return value


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--threads", type=positive, help="threads (default: as torch chooses)")
    parser.add_argument("--cells", nargs="+", choices=ALL, default=ALL, help="only these cells")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="only these modes")
    parser.add_argument("--filter", default="", help="only cases with this in their name")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--quick", action="store_true", help="a few samples of each case")
    parser.add_argument("--backend", choices=list(fastrnn.backends.backends()), help="insist on it")
    parser.add_argument("--output", type=Path, help="JSON file; plots get its name with .png")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a target is missed")
    parser.add_argument(
        "--accept", action="store_true", help="store the figures even if some became slower"
    )
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> list[Case]:
    return [
        case
        for case in CASES
        if case.cell in options.cells and case.mode in options.modes and options.filter in case.name
    ]


def measure(case: Case, seconds: float, peer: OnnxPeer | None = None) -> Row:
    """Check a case, then time it, beside ONNX Runtime where that computes it."""
    work = Workload(case)
    row = Row(case, work.backend(), work.flops, None, None)
    beside = peer if peer is not None and onnx_peer.computes(case) else None
    try:
        error = work.check()
        if beside is not None:
            beside.load(work)
    except WrongNumbers as wrong:
        return replace(row, wrong=str(wrong))
    ours, onnx, padded = work.call(OURS), None, None
    with torch.inference_mode(case.mode == INFERENCE):  # entered once: it costs a microsecond
        timing = compare(ours, work.call(THEIRS), seconds)
        if beside is not None:
            onnx = compare_with_block(ours, beside.block, seconds)
        if case.ragged:
            same_padded = Workload(replace(case, ragged=PADDED))
            ratio = compare(ours, same_padded.call(OURS), seconds).ratio
            padded = 1 / (ratio * work.filled)
    threads = torch.get_num_threads()
    gemm = work.flops / timing.ours / ceilings.gemm_rate(case.dtype, threads)
    read = None
    if case.batch == 1:
        read = work.bytes_read / timing.ours / ceilings.read_rate(work.bytes_resident, threads)
    return replace(row, error=error, timing=timing, onnx=onnx, gemm=gemm, read=read, padded=padded)


def measure_all(
    cases: Sequence[Case], options: argparse.Namespace, stored: Stored, peer: OnnxPeer | None
) -> Iterator[Row]:
    """The rows, each printed as soon as it is there.

    A row that seems slower than it was, or with ``--check`` than it should be, is measured a second
    time, for longer; the longer measurement counts, whatever it says.
    """
    seconds = QUICK_SECONDS if options.quick else SECONDS
    waiting = sys.stdout.isatty()
    print(report.HEADER)
    for number, case in enumerate(cases, 1):
        if waiting:
            print(f"[{number}/{len(cases)}] {case.name}", end="\r", flush=True)
        row = measure(case, seconds, peer)
        below = options.check and row.best is not None and row.best.ratio < target(case).minimum
        if below or stored.regression(row):
            row = measure(case, AGAIN * seconds, peer)
        # The line is longer than the note it replaces.
        print(report.line(row), flush=True)
        yield row


def measure_contention(options: argparse.Namespace) -> list[Slowdown]:
    """The calls beside busy processes, each printed as soon as it is there."""
    print("\nbeside busy processes on one core; multiples of the quiet time, which is in ms")
    if not contention.possible():
        print("not measured: needs Linux and two cores")
        return []
    print(contention.HEADER)
    found = []
    for slowdown in contention.measure(QUICK_SECONDS if options.quick else contention.SECONDS):
        print(contention.line(slowdown), flush=True)
        found.append(slowdown)
    print(report.worst_slowdowns(found))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    cases = chosen(options)
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    if not cases:
        print("error: no case fits --cells, --modes and --filter", file=sys.stderr)
        return 2
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(options.threads or before)
        return run(cases, options)
    finally:
        torch.set_num_threads(before)


def run(cases: Sequence[Case], options: argparse.Namespace) -> int:
    facts = machine.facts()  # before the benchmark itself loads the machine
    default = RESULTS / f"{facts['threads']}-threads.json"
    # A few samples are too few to tell a regression from noise.
    stored = Stored(None if options.quick else load(default), facts)
    print(f"{report.machine_line(facts)}\n{report.LEGEND}")
    if facts["load"] > BUSY * facts["cores"]:
        print("note: other programs keep this machine busy; figures will scatter")
    missing = onnx_peer.missing()
    if missing:
        print(f"note: inference is compared with torch.nn only: {missing}")
    print()
    with contextlib.ExitStack() as stack:
        stack.enter_context(fastrnn.use_backend(options.backend))
        peer = None
        if not missing and any(map(onnx_peer.computes, cases)):
            peer = stack.enter_context(OnnxPeer(facts["threads"]))
        rows = list(measure_all(cases, options, stored, peer))
    whole = len(cases) == len(CASES)
    slowdowns = measure_contention(options) if whole else []
    roofs = ceilings.measured(facts["threads"])
    print(f"\n{report.ceilings_lines(roofs)}\n\n{report.summary_table(rows)}\n")

    failed = report.wrong_rows(rows)
    slower = [sentence for sentence in map(stored.regression, rows) if sentence]
    if slower and not options.accept:
        failed += [f"regression: {sentence}" for sentence in slower]
    if options.output is None and (options.quick or not whole):
        print("not stored: a part of the cases, or --quick (--output FILE stores it)")
    elif options.output is None and failed:
        print(f"not stored: {default} keeps what it has (--accept replaces it by slower figures)")
    else:
        path = options.output or default
        draw(path, report.write_json(path, facts, rows, slowdowns, roofs))
    if options.check:
        failed += shortfalls(rows, slowdowns)
    for sentence in failed:
        print(f"FAILED: {sentence}", file=sys.stderr)
    return 1 if failed else 0


def load(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def draw(path: Path, content: dict[str, Any]) -> None:
    """The plots beside the JSON file, where matplotlib is installed."""
    print(f"written: {path}")
    try:
        if any(case["timing"] for case in content["cases"]):
            plots.draw_run(path.with_suffix(".png"), content)
            print(f"written: {path.with_suffix('.png')}")
    except ImportError as error:
        print(f"no plots: {error}; pip install matplotlib", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
