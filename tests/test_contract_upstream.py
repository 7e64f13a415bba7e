"""PyTorch's own samples for its module tests: what they ask of torch.nn's modules, of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from contract import CELLS, SEQUENCES

HERE = Path(__file__).resolve().parent
CHECKS = (
    "forward",
    "factory_options",
    "representations",
    "copies",
    "not_contiguous",
    "gradcheck",
    "gradgradcheck",
    "training_is_read",
    "conversions",
    "errors",
)


@pytest.fixture(scope="module")
def report() -> Any:
    """For each kind of module and check: how many samples it had, what failed."""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "upstream_modules.py")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("check", CHECKS)
def test_samples(report: Any, kind: str, check: str) -> None:
    entry = report.pop(f"{kind} {check}")
    assert entry["failure"] is None, entry["failure"]
    assert entry["samples"] >= 2


def test_no_check_is_left_out(report: Any) -> None:
    """Runs last: the tests above have taken what there was."""
    assert not report
