"""The programs why_gates, remedies and one_hot, tiny, and the problems they pose."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn.examples import long_memory, one_hot, pages, remedies, why_gates
from fastrnn.examples.long_memory import Adding, Network, Outcome, Reader, TemporalOrder
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


@pytest.mark.parametrize("steps", [3, 5, 10, 60])
def test_temporal_order(steps: int) -> None:
    x, target = TemporalOrder().batch(steps, 300, generator())
    assert x.shape == (steps, 300)
    assert set(x.unique().tolist()) == set(range(6))
    told = x < 2
    assert (told.sum(0) == 2).all()
    (first_low, first_high), (second_low, second_high) = TemporalOrder.places(steps)
    assert told[first_low:first_high].sum() == told[second_low:second_high].sum() == 300
    for row in range(300):
        first, second = x[told[:, row], row].tolist()
        assert target[row] == 2 * first + second
    assert set(target.tolist()) == {0, 1, 2, 3}


def test_temporal_order_in_a_text() -> None:
    """Windows of the text, with two of its characters replaced by the symbols."""
    text = "the cat sat on the mat"
    problem = TemporalOrder(text)
    kinds = sorted(set(text))
    assert problem.inputs == 2 + len(kinds)
    x, _ = problem.batch(10, 40, generator())
    for column in x.t().tolist():
        window = [None if symbol < 2 else kinds[symbol - 2] for symbol in column]
        assert window.count(None) == 2
        assert any(
            all(seen in (None, given) for seen, given in zip(window, text[k:], strict=False))
            for k in range(len(text) - 9)
        )


def test_reader_takes_integers_with_both_libraries() -> None:
    ours = Reader(why_gates.NETWORKS["GRU"].make("auto", 6, 5), 4)
    theirs = Reader(why_gates.NETWORKS["GRU"].make("torch", 6, 5), 4)
    theirs.load_state_dict(ours.state_dict())
    x, _ = TemporalOrder().batch(10, 3, generator())
    torch.testing.assert_close(ours(x), theirs(x))


class Bar:
    def __init__(self) -> None:
        self.count = 0

    def update(self, count: int = 1) -> None:
        self.count += count


def options(**more: Any) -> argparse.Namespace:
    given = {"steps": 120, "hidden": 8, "batch": 8, "rate": 1e-2, "clip": 1.0, "backend": "auto"}
    return argparse.Namespace(**given, seed=0, **more)


def test_learning_stops_when_solved_or_diverged() -> None:
    bar, plain = Bar(), Network("LSTM", lambda layer: layer)
    _, outcome = long_memory.learn(plain, TemporalOrder(), 3, options(), bar, seed=0)
    assert outcome.solved
    assert outcome.steps < 120
    assert bar.count == 120
    assert str(outcome) == f"{outcome.steps}"
    wild = Network("RNN", lambda layer: nn.init.constant_(layer.weight_hh_l0, 1e30), "relu")
    _, outcome = long_memory.learn(wild, Adding(), 5, options(), bar, seed=0)
    assert outcome[:3] == (long_memory.BLOCK, False, None)
    assert str(outcome) == "(diverged)"
    assert str(Outcome(1500, False, 0.1234, 1.0)) == "(0.12)"


def test_gradients_are_clipped_unless_the_network_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = []
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda parameters, bound: bounds.append(bound))
    for clipped in (True, False):
        network = Network("GRU", lambda layer: layer, clipped=clipped)
        long_memory.learn(network, Adding(), 4, options(), Bar(), seed=0)
        assert bounds == [1.0] * 120  # of the first


WHY_GATES = "--steps 3 --lengths 10 12 --hidden 6 --batch 4 --pictured 12"
REMEDIES = "--steps 3 --length 10 --hidden 6 --batch 4 --repeats 2"


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_why_gates(tmp_path: Path, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert why_gates.main([*WHY_GATES.split(), "--backend", backend, "--out", str(tmp_path)]) == 0
    assert "T=12" in capsys.readouterr().out
    results = json.loads((tmp_path / "why_gates.json").read_text(encoding="utf-8"))
    assert list(results["problems"]) == ["adding", "temporal order"]
    for rows in results["problems"].values():
        assert list(rows) == list(why_gates.NETWORKS)
        for row in rows.values():  # not solved, and so not tried on longer sequences
            assert [(n, each["steps"], each["solved"]) for n, each in row.items()] == [
                ("10", 3, False)
            ]
            assert row["10"]["seconds"] >= 0
    assert list(results["mechanism"]) == [f"vanilla, radius {r}" for r in ("0.5", "1", "1.5")]
    assert list(results["gradients"]) == list(why_gates.NETWORKS)
    assert (tmp_path / "why_gates.png").read_bytes().startswith(PNG)
    page = pages.why_gates(results)
    assert "| GRU |" in page
    assert "nan" not in page


@pytest.mark.parametrize("networks", [["GRU"], ["relu, identity"]])
def test_why_gates_of_some_networks(
    tmp_path: Path, networks: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    """No empty panel, and no warning of one."""
    assert (
        why_gates.main([*WHY_GATES.split(), "--networks", *networks, "--out", str(tmp_path)]) == 0
    )
    assert [str(warning.message) for warning in recwarn] == []


def test_why_gates_of_what_diverges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert why_gates.main([*WHY_GATES.split(), "--rate", "1e30", "--out", str(tmp_path)]) == 0
    assert "(diverged)" in capsys.readouterr().out
    results = json.loads((tmp_path / "why_gates.json").read_text(encoding="utf-8"))
    assert results["problems"]["adding"]["GRU"]["10"]["error"] is None
    assert "(diverged)" in pages.why_gates(results)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_remedies(tmp_path: Path, backend: str) -> None:
    assert remedies.main([*REMEDIES.split(), "--backend", backend, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "remedies.json").read_text(encoding="utf-8"))
    assert list(results["networks"]) == list(remedies.networks(10))
    assert all(len(row["trainings"]) == 2 for row in results["networks"].values())
    assert (tmp_path / "remedies.png").read_bytes().startswith(PNG)
    assert "vanilla, orthogonal | 0 of 2 |" in pages.remedies(results)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the rest of a tiny run."""
    for module in (why_gates, remedies):
        monkeypatch.setattr(module, "draw", lambda *arguments: None)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("module", "words", "name"),
    [(why_gates, WHY_GATES, "temporal order, LSTM"), (remedies, REMEDIES, "LSTM, chrono")],
)
def test_checkpoint_is_read_into_both_libraries(
    tmp_path: Path, module: ModuleType, words: str, name: str
) -> None:
    assert module.main([*words.split(), "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.pt")
    ours, theirs = (module.load(path, backend) for backend in ("auto", "torch"))
    states = read_checkpoint(path)["models"]
    assert name in states
    assert ours.keys() == theirs.keys() == states.keys()
    for key, state in states.items():
        for model, library in ((ours[key], "fastrnn"), (theirs[key], "torch")):
            assert type(model.layers).__module__.partition(".")[0] == library
            assert not model.training
            own = model.state_dict()
            assert own.keys() == state.keys()
            assert all(torch.equal(own[part], state[part]) for part in state)
        problem = Adding() if ours[key].inputs == 2 else TemporalOrder()
        x, _ = problem.batch(10, 3, generator())
        torch.testing.assert_close(ours[key](x), theirs[key](x))


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("module", [why_gates, remedies])
def test_data_is_a_text(
    tmp_path: Path, module: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    text, short, binary = (tmp_path / name for name in ("some.txt", "short.txt", "binary"))
    text.write_text("the cat sat on the mat " * 20, encoding="utf-8")
    short.write_text("the cat", encoding="utf-8")
    binary.write_bytes(b"\x00\xff\xfe")
    sizes = WHY_GATES if module is why_gates else REMEDIES
    words = [*sizes.split(), "--out", str(tmp_path / "out")]
    assert module.main([*words, "--data", str(text)]) == 0
    (path,) = (tmp_path / "out").glob("*-some.pt")
    symbols = 2 + len(set("the cat sat on the mat "))
    assert {model.inputs for model in module.load(path).values()} <= {2, symbols}
    for path, message in (
        (short, "characters or more, got 7"),
        (binary, "expected a text in UTF-8"),
        (tmp_path / "missing", "No such file"),
    ):
        capsys.readouterr()
        assert module.main([*words, "--data", str(path)]) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: ")
        assert message in printed
        assert path.name in printed


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (why_gates, ["--lengths", "30", "2"]),
        (why_gates, ["--pictured", "2"]),
        (remedies, ["--length", "2"]),
    ],
)
def test_sequences_too_short_for_an_answer(
    module: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        module.main(words)
    assert stopped.value.code == 2
    assert f"argument {words[0]}: expected 3 or more steps, got 2" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_shortest_sequences_are_learned(tmp_path: Path) -> None:
    words = ["--steps", "2", "--hidden", "4", "--out", str(tmp_path)]
    assert why_gates.main([*words, "--lengths", "3", "--pictured", "3"]) == 0
    assert remedies.main([*words, "--length", "3", "--repeats", "1"]) == 0


def test_gradients_explode_without_clipping() -> None:
    parsed = remedies.parse([])
    descents = {kind: remedies.descend(kind, parsed) for kind in remedies.CLIPPINGS}
    assert descents["none"].exploded
    for kind in ("norm", "value"):
        assert not descents[kind].exploded
        assert descents[kind].losses[-1] < descents[kind].losses[0]
    overflown = remedies.Descent([1.0, 5.0, math.inf], [2.0, math.inf])
    assert overflown.exploded
    assert overflown.summary() == {
        "exploded": True,
        "first_loss": 1.0,
        "largest_loss": 5.0,
        "last_loss": None,
        "largest_gradient": None,
        "steps": 3,
    }


# What is stored.


def stored(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((pages.RESULTS / f"{name}.json").read_text("utf-8"))
    return content


@pytest.mark.parametrize("name", ["why_gates", "remedies"])
def test_stored_results_took_less_than_two_minutes(name: str) -> None:
    content = stored(name)
    assert content["threads"] <= 2
    assert content["seconds"] < 120


def test_stored_gates_learn_longer_sequences() -> None:
    for rows in stored("why_gates")["problems"].values():
        longest = {
            name: max([int(steps) for steps, each in row.items() if each["solved"]], default=0)
            for name, row in rows.items()
        }
        vanilla = longest["vanilla, radius 0.5"]
        assert max(longest["GRU"], longest["LSTM"]) > vanilla
        assert min(longest["GRU"], longest["LSTM"]) >= vanilla
        assert longest["relu, identity"] > longest["relu, identity, unclipped"]


def test_stored_gradients_are_below_their_bounds() -> None:
    content = stored("why_gates")
    for each in content["mechanism"].values():
        assert each["gradient"] <= each["product"] <= each["bound"] * (1 + 1e-9)
        *_, last = each["growth_of_random"].values()
        assert last == pytest.approx(each["spectral_radius"], rel=0.01)
    small, large = (content["mechanism"][f"vanilla, radius {r}"] for r in ("0.5", "1.5"))
    assert 0 < small["gradient"] < 1e-20
    assert large["gradient"] > 1
    for kind in ("GRU", "LSTM"):  # training keeps the memory that the problem needs
        each = content["gradients"][kind]
        assert each["trained"]["gradient"] > each["fresh"]["gradient"]


def test_stored_remedies_help() -> None:
    content = stored("remedies")
    solved = {name: each["solved"] for name, each in content["networks"].items()}
    assert solved["vanilla, orthogonal"] > solved["vanilla"]
    assert solved["relu, identity"] > solved["relu"]
    assert solved["LSTM, chrono"] > solved["LSTM, forget bias 0"]
    clipping = content["clipping"]
    assert clipping["none"]["exploded"]
    assert not clipping["norm"]["exploded"]
    assert not clipping["value"]["exploded"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.5, "0.5"),
        (-12.3, "-12"),
        (512.2, "512"),
        (1.14e-13, "1.1 · 10⁻¹³"),
        (1.63e10, "1.6 · 10¹⁰"),
    ],
)
def test_magnitude(value: float, text: str) -> None:
    assert pages.magnitude(value) == text


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
