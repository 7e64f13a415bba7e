"""What the tests on a GPU share: a record of what happened, and an end where nothing can follow.

``bench/gpu/testing.py`` runs them in child processes, ends one that hangs, and starts another for
the tests that are left. The record tells it which those are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tolerances import ledger

from bench.gpu import record
from bench.gpu.device import device
from bench.gpu.testing import BROKEN, LONGER, RECORD, SKIP, file_of, left_out

# Read when cuBLAS is first used: without it, deterministic algorithms refuse matrix products.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def note(**fields: object) -> None:
    """Add a line to the record, if somebody wants one."""
    path = os.environ.get(RECORD)
    if path:
        record.add(Path(path), **fields)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what an earlier process has run."""
    path = os.environ.get(SKIP)
    done = set(Path(path).read_text().splitlines()) if path else set()
    without = [item for item in items if left_out(item.nodeid, done)]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]
    if items and os.environ.get(RECORD):
        device().load()  # before a test is waited for
    note(event="collected", count=len(items))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if not report.passed:
        note(event="collect", test=report.nodeid, outcome=report.outcome, text=report.longreprtext)


def pytest_runtest_logstart(nodeid: str) -> None:
    note(event="start", test=nodeid, patience=LONGER.get(file_of(nodeid)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or not report.passed:
        if report.skipped and isinstance(report.longrepr, tuple):
            text = report.longrepr[2]
        else:
            text = report.longreprtext
        note(event="end", test=report.nodeid, outcome=report.outcome, text=text[-2000:])
    if report.failed:
        try:
            device().cuda.synchronize()
        except RuntimeError as error:  # after a fault of a kernel every call of the process fails
            note(event="broken", test=report.nodeid, text=str(error))
            os._exit(BROKEN)


def pytest_sessionfinish() -> None:
    note(event="errors", worst=sorted(ledger.worst.items()))


@pytest.fixture(autouse=True)
def _strict_and_poisoned() -> Iterator[None]:
    """float32 without TF32; and torch.empty full of NaN, so that what nobody writes shows."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = before
