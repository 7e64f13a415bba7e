"""Programs run by themselves, with an end: a kernel that hangs ends its process and no more."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..workload import TESTS

ROOT = TESTS.parent
#: How often somebody looks after a child.
POLL_SECONDS = 0.1
TAIL = 4000


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    status: ``ok`` for exit status 0, ``failed`` for another (in ``code``), ``hung`` where nothing
    new was written for too long, ``out of time`` where the time of the part was over.
    """

    status: str
    code: int
    seconds: float
    tail: str

    @property
    def ok(self) -> bool:
        return self.status == "ok"


def run(
    command: Sequence[str],
    log: Path,
    *,
    seconds: float,
    idle: Callable[[], float] | None = None,
    watched: Path | None = None,
    echo: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a program to its end, or to ours.

    Args:
        log: what it prints is added to this file.
        seconds: after which it is killed, with all processes that it has started.
        idle: seconds after which it is killed if ``watched`` (by default ``log``) has not grown.
        echo: what it prints is printed here too, as it comes.
    """
    start = grown = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(command)}\n".encode())
        output.flush()
        before = size = shown = log.stat().st_size
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            process_group=0,  # to end all that it starts
        )
        status = ""
        try:
            while child.poll() is None and not status:
                time.sleep(POLL_SECONDS)
                shown = _echo(log, shown) if echo else shown
                now, current = time.monotonic(), _size(watched or log)
                if current != size:
                    size, grown = current, now
                if now - start > seconds:
                    status = "out of time"
                elif idle is not None and now - grown > idle():
                    status = "hung"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
            if echo:
                _echo(log, shown)
    with log.open("rb") as written:
        written.seek(max(before, log.stat().st_size - TAIL))
        tail = written.read().decode(errors="replace")
    status = status or ("ok" if code == 0 else "failed")
    return Outcome(status, code, round(time.monotonic() - start, 2), tail)


def _echo(log: Path, shown: int) -> int:
    """Print what a log has from a place on; returns where it ends."""
    with log.open("rb") as written:
        written.seek(shown)
        new = written.read()
    sys.stdout.write(new.decode(errors="replace"))
    sys.stdout.flush()
    return shown + len(new)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
