"""The language model on several processes, as torchrun starts them, at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import tolerance
from torch import nn

import fastrnn
from fastrnn.examples import char_lm_parallel
from fastrnn.examples.text import split
from fastrnn.examples.training import held_out_loss, load_checkpoint

STEPS = 8
SIZES = ["--hidden", "16", "--batch", "4", "--window", "10", "--steps", str(STEPS)]
OPTIONS = ["--text", __file__, *SIZES]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "char_lm_parallel.json").read_text())
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run in this process."""
    folder = tmp_path_factory.mktemp("alone")
    assert char_lm_parallel.main([*OPTIONS, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("more", [[], ["--sharded"]], ids=["replicated", "sharded"])
def test_two_processes_train_as_one(more: list[str], alone: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "fastrnn.examples.char_lm_parallel", *OPTIONS, "--out", str(tmp_path), *more],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "2 processes" in run.stdout
    expected, actual = results(alone), results(tmp_path)
    assert (expected["processes"], actual["processes"]) == (1, 2)
    bound = tolerance(torch.float32, STEPS * 10, 2 * 16, rows=4 * 10)
    close = {"rel": bound["rtol"], "abs": bound["atol"]}
    assert actual["losses"] == pytest.approx(expected["losses"], **close)
    assert actual["held_out"] == pytest.approx(expected["held_out"], **close)
    assert actual["losses"][-1] < actual["losses"][0]
    for library in (fastrnn, nn):
        model, vocabulary = load_checkpoint(tmp_path / "char_lm_parallel.pt", library.LSTM)
        _, streams = split(vocabulary.encode(Path(__file__).read_text()), batch=4, steps=10)
        assert held_out_loss(model, streams) == pytest.approx(actual["held_out"], **close)


def test_layers_of_torch(alone: Path, tmp_path: Path) -> None:
    backend = ["--backend", "torch", "--data", __file__, *SIZES, "--out", str(tmp_path)]
    assert char_lm_parallel.main(backend) == 0
    assert results(tmp_path)["layers"] == "torch.nn"
    bound = tolerance(torch.float32, STEPS * 10, 2 * 16, rows=4 * 10)
    close = {"rel": bound["rtol"], "abs": bound["atol"]}
    assert results(tmp_path)["losses"] == pytest.approx(results(alone)["losses"], **close)
    assert (tmp_path / "char_lm_parallel.png").read_bytes().startswith(b"\x89PNG")


def test_batch_must_be_divisible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(char_lm_parallel.dist, "get_world_size", lambda: 3)
    assert char_lm_parallel.main([*OPTIONS, "--out", str(tmp_path)]) == 2
    assert "error: --batch: expected a multiple of 3 processes" in capsys.readouterr().err


def test_text_too_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert char_lm_parallel.main([*OPTIONS, "--batch=5000", "--out", str(tmp_path)]) == 2
    assert "error: text: expected at least" in capsys.readouterr().err
