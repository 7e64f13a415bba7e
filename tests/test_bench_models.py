"""The benchmark of whole models: both libraries compute the same, and the page shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import pages, whole_model
from bench.cases import INFERENCE, MODES
from bench.whole_model import LIBRARIES, MODELS, OURS, THEIRS, Row, Runs, WrongNumbers


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_libraries_agree(name: str, mode: str) -> None:
    runs = Runs(name, mode)
    for library in LIBRARIES:
        runs.check(library, runs.call(library, compiled=False))


def test_wrong_numbers_are_found() -> None:
    runs = Runs("policy", INFERENCE)
    call = runs.call(OURS, compiled=False)
    with torch.no_grad():
        next(runs.models[OURS].memory.parameters())[0, 0] += 0.1
    with pytest.raises(WrongNumbers, match="fastrnn: off by"):
        runs.check(OURS, call)


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One model and mode, compiled too: ours is one graph. Then the page."""
    path = tmp_path / whole_model.RESULTS.name
    given = ["--models", "policy", "--modes", INFERENCE, "--quick", "--output", str(path)]
    assert whole_model.main(given) == 0
    rows = [Row(**row) for row in json.loads(path.read_text())["rows"]]
    assert [(row.library, row.compiled) for row in rows] == [
        (library, compiled) for library in (THEIRS, OURS) for compiled in (False, True)
    ]
    assert [row.graphs for row in rows if row.library == OURS] == [0, 1]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [whole_model.HEADER, *map(whole_model.line, rows)]

    page = pages.details(tmp_path)
    assert "\n\n## Whole models\n\n" in page
    for row in rows:
        graphs = f"{row.graphs} | {row.compile_seconds:.2g}" if row.compiled else " | "
        shown = f"{row.seconds * 1e3:.4g} | {row.ratio:.2f} ± {row.spread:.2f}"
        assert f"| policy | inference | {row.library} | {graphs} | {shown} |" in page
