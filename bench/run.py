"""Time fastrnn beside torch.nn: ``python -m bench.run``.

Every case is checked before it is timed; a case with wrong numbers is not timed and the exit
status is 1. With ``--check`` it is also 1 where fastrnn is slower than it should be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import fastrnn

from . import machine, report
from .cases import ALL, CASES, INFERENCE, MODES, Case
from .timing import compare
from .workload import OURS, THEIRS, Workload, WrongNumbers

RESULTS = Path(__file__).resolve().parent / "results"
SECONDS = 4.0
QUICK_SECONDS = 0.3
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
    parser.add_argument(
        "--check", action="store_true", help="exit status 1 if fastrnn is slower than it should be"
    )
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace) -> list[Case]:
    return [
        case
        for case in CASES
        if case.cell in options.cells and case.mode in options.modes and options.filter in case.name
    ]


def measure(case: Case, seconds: float, *, again: bool = False) -> report.Row:
    """Check a case, then time it.

    again: if it seems slower than it should be, time it a second time, for longer; the longer
    measurement counts, whatever it says.
    """
    work = Workload(case)
    backend = work.backend()
    try:
        error = work.check()
    except WrongNumbers as wrong:
        return report.Row(case, backend, work.flops, None, None, str(wrong))
    with torch.inference_mode(case.mode == INFERENCE):  # entered once: it costs a microsecond
        timing = compare(work.call(OURS), work.call(THEIRS), seconds)
    row = report.Row(case, backend, work.flops, error, timing)
    return measure(case, 3 * seconds) if again and row.slow else row


def measure_all(cases: Sequence[Case], options: argparse.Namespace) -> Iterator[report.Row]:
    """The rows, each printed as soon as it is there."""
    seconds = QUICK_SECONDS if options.quick else SECONDS
    waiting = sys.stdout.isatty()
    print(report.HEADER)
    for number, case in enumerate(cases, 1):
        if waiting:
            print(f"[{number}/{len(cases)}] {case.name}", end="\r", flush=True)
        row = measure(case, seconds, again=options.check)
        # The line is longer than the note it replaces.
        print(report.line(row), flush=True)
        yield row


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
        facts = machine.facts()  # before the benchmark itself loads the machine
        print(f"{report.machine_line(facts)}\ntimes in ms; ratio is torch.nn's time by fastrnn's\n")
        if facts["load"] > BUSY * facts["cores"]:
            print("note: other programs keep this machine busy; figures will scatter\n")
        with fastrnn.use_backend(options.backend):
            rows = list(measure_all(cases, options))
    finally:
        torch.set_num_threads(before)
    print(f"\n{report.summary_table(rows)}\n")

    partial = options.quick or len(cases) < len(CASES)
    if options.output is None and partial:
        print("not stored: a part of the cases, or --quick (--output FILE stores it)")
        return finish(rows, options)
    path = options.output or RESULTS / f"{facts['threads']}-threads.json"
    report.write_json(path, facts, rows)
    print(f"written: {path}")
    try:
        if any(row.timing for row in rows):
            report.draw(path.with_suffix(".png"), facts, rows)
            print(f"written: {path.with_suffix('.png')}")
    except ImportError as error:
        print(f"no plots: {error}; pip install matplotlib", file=sys.stderr)
    return finish(rows, options)


def finish(rows: Sequence[report.Row], options: argparse.Namespace) -> int:
    """Exit status, after what failed has been said."""
    wrong = report.wrong_rows(rows) + (report.shortfalls(rows) if options.check else [])
    for sentence in wrong:
        print(f"FAILED: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
