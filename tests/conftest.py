"""What every test shares: threads, seeds, the header and the summary of a session."""

from __future__ import annotations

from collections.abc import Iterator

import cases
import pytest
import torch
from tolerances import ledger

import fastrnn
from fastrnn import backends


def pytest_report_header() -> list[str]:
    """Which fastrnn is under test, and what runs in it."""
    lines = [f"fastrnn {fastrnn.__version__} from {fastrnn.__path__[0]}, torch {torch.__version__}"]
    for name, backend in backends.backends().items():
        verdict = backend.available()
        lines.append(f"  {name}: {'' if verdict.ok else 'NOT AVAILABLE, '}{verdict.reason}")
    if not cases.NATIVE:
        lines.append("  pure Python install: no cases for the cpu backend")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How near to its bound each kind of result came: a bound far above is not a test."""
    if ledger.worst:
        terminalreporter.section("largest errors, as a fraction of the tolerance")
        for kind, (error, where) in sorted(ledger.worst.items()):
            terminalreporter.write_line(f"{error:8.3f}  {kind}: {where}")


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> Iterator[None]:
    """Two threads, and a state of torch's generator that no test changes for another."""
    torch.set_num_threads(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of its own for a test that registers."""
    monkeypatch.setattr(backends, "_registry", backends.backends())
    monkeypatch.setattr(backends, "_chosen", {})
