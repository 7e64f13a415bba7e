"""How calls slow down on a busy server: ``python -m bench.contention``.

Processes that compute without pause are pinned to one of the cores this process may use. A call
whose threads wait for each other at every step then waits for the one that shares that core.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

import fastrnn

from .cases import INFERENCE, MODES, Case
from .timing import no_garbage_collection, settle, warm_up
from .workload import IMPLEMENTATIONS, Workload

#: Calls of many short steps, which is where waiting shows.
CASES = tuple(Case(cell, mode, 35, 20, 200, 200) for cell in ("gru", "lstm") for mode in MODES)
#: Busy processes, and how many times slower than on a quiet machine a call of ours may then be.
TARGETS = {1: 2.6, 3: 5.0}

SECONDS = 1.0
MIN_CALLS = 5
#: However slow the calls are, a measurement starts no other call after so many times as long.
LONGEST = 4.0

#: Ends by itself when the process that started it is gone.
BUSY = """
import os, sys
core, parent = map(int, sys.argv[1:])
os.sched_setaffinity(0, {core})
print(flush=True)
while os.getppid() == parent:
    sum(range(100_000))
"""


@dataclass(frozen=True)
class Slowdown:
    """A call beside so many busy processes, as a multiple of its median time beside none.

    mean: of all calls, what throughput suffers. worst: of the slowest tenth, the fastest.
    """

    case: str
    implementation: str
    busy: int
    quiet_seconds: float
    mean: float
    worst: float
    calls: int


def possible() -> bool:
    """Whether processes can be pinned here, and there is a core to leave free."""
    return hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes that compute on the first core that this process may use."""
    core = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", BUSY, str(core), str(os.getpid())]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # it is pinned and about to compute
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def durations(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each of as many calls as fit, but of ``MIN_CALLS`` if those end in time."""
    result: list[float] = []
    with no_garbage_collection():
        begin = now = time.perf_counter()
        while not result or (
            now - begin < (seconds if len(result) >= MIN_CALLS else LONGEST * seconds)
        ):
            call()
            then, now = now, time.perf_counter()
            result.append(now - then)
    return result


def measure(
    seconds: float = SECONDS, cases: Sequence[Case] = CASES, levels: Sequence[int] = tuple(TARGETS)
) -> Iterator[Slowdown]:
    """All calls of both libraries, first on a quiet machine, then beside so many processes."""
    quiet: dict[tuple[Case, str], float] = {}
    works = {case: Workload(case) for case in cases}
    for busy in (0, *levels):
        with busy_processes(busy):
            for case, work in works.items():
                for implementation in IMPLEMENTATIONS:
                    with torch.inference_mode(case.mode == INFERENCE):
                        call = work.call(implementation)
                        if not busy:
                            warm_up(call, seconds / 5)
                        times = durations(call, seconds)
                    settle()
                    if not busy:
                        quiet[case, implementation] = statistics.median(times)
                        continue
                    base = quiet[case, implementation]
                    yield Slowdown(
                        case.name,
                        implementation,
                        busy,
                        base,
                        statistics.mean(times) / base,
                        sorted(times)[int(0.9 * len(times))] / base,
                        len(times),
                    )


HEADER = (
    f"{'call':<38} {'library':<9} {'busy':>5} {'quiet':>9} {'mean':>8} {'9 of 10':>8} {'calls':>6}"
)


def line(row: Slowdown) -> str:
    """A line of the table: quiet in ms, the rest as multiples of it."""
    return (
        f"{row.case:<38} {row.implementation:<9} {row.busy:>5} {row.quiet_seconds * 1e3:>9.4g} "
        f"{row.mean:>7.2f}x {row.worst:>7.2f}x {row.calls:>6}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.contention", description=__doc__)
    parser.add_argument("--threads", type=int, help="threads (default: as torch chooses)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    options = parser.parse_args(arguments)
    if not possible():
        print("not measured: needs Linux and two cores")
        return 0
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(options.threads or before)
        print(f"{torch.get_num_threads()} threads, fastrnn {fastrnn.__version__}\n{HEADER}")
        for row in measure(options.seconds):
            print(line(row), flush=True)
    finally:
        torch.set_num_threads(before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
