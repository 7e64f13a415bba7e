"""The programs why_gates, remedies and one_hot, tiny, and the problems they pose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn.examples import one_hot, remedies, why_gates
from fastrnn.examples.long_memory import PROBLEMS, Adding, Reader, TemporalOrder
from fastrnn.examples.program import read_checkpoint

PNG = b"\x89PNG\r\n\x1a\n"


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_adding() -> None:
    x, target = Adding().batch(11, 200, generator())
    assert x.shape == (11, 200, 2)
    assert target.shape == (200, 1)
    marks = x[..., 1]
    assert (marks[:5].sum(0) == 1).all()
    assert (marks[5:].sum(0) == 1).all()
    torch.testing.assert_close(target[:, 0], (x[..., 0] * marks).sum(0))
    guess = torch.full_like(target, 1.0)
    assert Adding().error(guess, target) == pytest.approx(Adding.chance, rel=0.2)


@pytest.mark.parametrize("steps", [10, 60])
def test_temporal_order(steps: int) -> None:
    x, target = TemporalOrder().batch(steps, 300, generator())
    assert x.shape == (steps, 300)
    assert set(x.unique().tolist()) == set(range(6))
    told = x < 2
    assert (told.sum(0) == 2).all()
    places = told.float().argmax(0)
    assert places.min() >= steps // 10
    assert places.max() < max(steps // 5, steps // 10 + 1)
    for row in range(300):
        first, second = x[told[:, row], row].tolist()
        assert target[row] == 2 * first + second
    assert set(target.tolist()) == {0, 1, 2, 3}


def test_reader_takes_integers_with_both_libraries() -> None:
    ours = Reader(why_gates.NETWORKS["GRU"].make("auto", 6, 5), 4)
    theirs = Reader(why_gates.NETWORKS["GRU"].make("torch", 6, 5), 4)
    theirs.load_state_dict(ours.state_dict())
    x, _ = TemporalOrder().batch(10, 3, generator())
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_program(tmp_path: Path, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--steps", "3", "--lengths", "10", "12", "--hidden", "6", "--batch", "4"]
    words += ["--pictured", "12", "--backend", backend, "--out", str(tmp_path)]
    assert why_gates.main(words) == 0
    printed = capsys.readouterr().out
    assert "T=12" in printed
    results = json.loads((tmp_path / "why_gates.json").read_text(encoding="utf-8"))
    assert list(results["problems"]) == list(PROBLEMS)
    for rows in results["problems"].values():
        assert list(rows) == list(why_gates.NETWORKS)
        for row in rows.values():
            assert [each["steps"] for each in row.values()] == [3, 3]
    radii = {name: each["spectral_radius"] for name, each in results["gradients"].items()}
    assert radii["vanilla, radius 1.5"] == pytest.approx(1.5, rel=1e-3)
    assert (tmp_path / "why_gates.png").read_bytes().startswith(PNG)
    checkpoint = read_checkpoint(tmp_path / "why_gates.pt")
    network = why_gates.NETWORKS["LSTM"].make(backend, 2, checkpoint["hidden"])
    Reader(network, 1).load_state_dict(checkpoint["models"]["adding, LSTM"])


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_remedies(tmp_path: Path, backend: str) -> None:
    words = ["--steps", "3", "--length", "10", "--hidden", "6", "--batch", "4"]
    assert remedies.main([*words, "--backend", backend, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "remedies.json").read_text(encoding="utf-8"))
    chosen = remedies.networks(10)
    assert list(results["networks"]) == list(chosen)
    assert (tmp_path / "remedies.png").read_bytes().startswith(PNG)
    checkpoint = read_checkpoint(tmp_path / "remedies.pt")
    network = chosen["LSTM, chrono"].make(backend, 2, checkpoint["hidden"])
    Reader(network, 1).load_state_dict(checkpoint["models"]["LSTM, chrono"])


def test_gradients_explode_without_clipping() -> None:
    options, problem = remedies.parse([]), PROBLEMS["adding"]
    descents = {kind: remedies.descend(kind, problem, options) for kind in remedies.CLIPPINGS}
    assert descents["none"].exploded
    assert not descents["norm"].exploded
    assert not descents["value"].exploded
    assert descents["norm"].losses[-1] < descents["norm"].losses[0]


def test_numbers_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("0.25, 0.5 1\n0", encoding="utf-8")
    x, target = remedies.problem_of(path).batch(8, 50, generator())
    assert set(x[..., 0].unique().tolist()) == {0, 0.25, 0.5, 1}
    torch.testing.assert_close(target[:, 0], (x[..., 0] * x[..., 1]).sum(0))
    path.write_text("0.25 1.5", encoding="utf-8")
    with pytest.raises(ValueError, match="data: expected numbers from 0 to 1"):
        remedies.problem_of(path)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_one_hot(tmp_path: Path, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "some.txt"
    text.write_text("the cat sat on the mat " * 20, encoding="utf-8")
    words = ["--symbols", "7", "40", "--hidden", "6", "--batch", "3", "--length", "5"]
    words += ["--repeats", "1", "--backend", backend, "--out", str(tmp_path)]
    assert one_hot.main([*words, "--data", str(text)]) == 0
    assert "one-hot vectors" in capsys.readouterr().out
    results = json.loads((tmp_path / "one_hot-some.json").read_text(encoding="utf-8"))
    forms = ["one-hot vectors", "embeddings"]
    for row in results["step_seconds"].values():
        assert list(row) == (["numbers", *forms] if backend == "auto" else forms)
    assert (tmp_path / "one_hot-some.png").read_bytes().startswith(PNG)
    states = read_checkpoint(tmp_path / "one_hot-some.pt")["models"]
    loaded = [one_hot.load(tmp_path / "one_hot-some.pt", each) for each in ("auto", "torch")]
    for name, state in states.items():
        for models in loaded:
            own = models[name].state_dict()
            assert own.keys() == state.keys()
            assert all(torch.equal(own[key], state[key]) for key in state)
    ours, theirs = ({name: type(each) for name, each in models.items()} for models in loaded)
    assert set(ours.values()) == {fastrnn.LSTM, torch.nn.Embedding}
    assert set(theirs.values()) == {torch.nn.LSTM, torch.nn.Embedding}


def test_one_hot_notices_another_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(one_hot.Forms, "numbers", lambda self: self.one_hot() * 1.01)
    words = ["--symbols", "7", "--hidden", "6", "--repeats", "1", "--out", str(tmp_path)]
    assert one_hot.main(words) == 1
    assert "FAILED: 7 symbols: results differ by" in capsys.readouterr().err


def test_pictures_read_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "some.txt"
    text.write_text("the cat sat on the mat " * 20, encoding="utf-8")
    options = why_gates.parse(["--data", str(text), "--pictured", "20"])
    inputs = why_gates.sequences(options)
    assert inputs.shape[:2] == (20, 8)
    assert (inputs.sum(-1) == 1).all()
    assert why_gates.main(["--data", str(text), "--pictured", "2000"]) == 2
    assert "data: expected 16000 characters or more, got 460" in capsys.readouterr().err
