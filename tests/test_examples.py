"""The character model: its text, its checks, and a whole small run of the program."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.examples import char_lm, text, training
from fastrnn.examples.text import UNKNOWN, Streams, Vocabulary
from fastrnn.examples.training import CharModel, load_checkpoint, save_checkpoint

PNG = b"\x89PNG\r\n\x1a\n"
STEPS = 12
Program = Callable[..., int]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The program at toy size, on the text of this file; returns its exit status."""

    def run(*options: str) -> int:
        sizes = ["--hidden", "16", "--batch", "4", "--window", "10", "--steps", str(STEPS)]
        files = ["--text", __file__, "--out", str(tmp_path / "out")]
        return char_lm.main([*files, *sizes, "--sample", "20", "--threads", "1", *options])

    return run


def test_program_trains_compares_and_writes(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program() == 0
    printed = capsys.readouterr().out
    for part in ("training chars/s", "held-out nats/char", "largest difference", "sample at"):
        assert part in printed
    assert (tmp_path / "out" / "char_lm.png").read_bytes().startswith(PNG)

    losses = []
    for lstm_class in (fastrnn.LSTM, nn.LSTM):
        model, vocabulary = load_checkpoint(tmp_path / "out" / "char_lm.pt", lstm_class)
        assert type(model.rnn) is lstm_class
        window = Streams.of(vocabulary.encode(Path(__file__).read_text()), 4, 10).window(0)
        losses.append(model.loss(window, None)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("option", ["--layers=2", "--backend=reference", "--seed=5"])
def test_program_with_options(program: Program, option: str) -> None:
    assert program(option) == 0


def test_time_instead_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    print_curves = char_lm.print_curves

    def spy(learners: Any, allowed: Any) -> None:
        steps.append([len(learner.losses) for learner in learners])
        print_curves(learners, allowed)

    monkeypatch.setattr(char_lm, "print_curves", spy)
    arguments = ["--text", __file__, "--out", str(tmp_path), "--hidden", "8", "--batch", "2"]
    sizes = ["--window", "5", "--sample", "5", "--threads", "1"]
    assert char_lm.main([*arguments, *sizes, "--seconds", "0.2"]) == 0
    assert min(steps[0]) == max(steps[0]) >= 2 * training.BLOCK


class WrongOutput(nn.LSTM):
    """Off by one part in ten thousand."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        y, states = super().forward(input, hx)
        return y * (1 + 1e-4), states


class LostGradient(nn.LSTM):
    """Right outputs, but the gradient that reaches the first step is lost."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        y, states = super().forward(input, hx)
        return torch.cat([y[:1].detach(), y[1:]]), states


class NotANumber(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        y, states = super().forward(input, hx)
        return y * math.nan, states


@pytest.mark.parametrize("broken", [WrongOutput, LostGradient, NotANumber])
def test_program_fails_if_the_libraries_differ(
    program: Program,
    broken: type[nn.LSTM],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fastrnn, "LSTM", broken)
    assert program() == 1
    assert "FAILED: step " in capsys.readouterr().err


def test_allowed_difference_follows_the_control() -> None:
    allowed = training.allowed_differences([4.0, 3.0, 2.0], [4.0, 3.1, 2.0], hidden=128)
    own = training.roundoff(256)
    assert own == 2.0**-24 * 16
    assert allowed == pytest.approx([4 * own, 3 * own + 0.4, 2 * own + 0.4])


def test_control_moves_weights_by_their_rounding_only() -> None:
    model = CharModel(nn.LSTM, 5, 16, 2)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    training.Control("control", model, seed=0).before_step()
    for name, weight in model.named_parameters():
        distance = ((weight - before[name]) / before[name]).abs().max().item()
        if name.startswith("rnn.weight"):
            # u sqrt(16), and the rounding of the factor and of the product.
            assert 0 < distance <= 2.0**-24 * (4 + 2)
        elif not name.startswith("rnn"):
            assert distance == 0


def test_standard_library_is_text_enough_and_always_the_same() -> None:
    first = text.read_text(None)
    assert len(first) > 1_000_000
    assert first == text.read_text(None)
    assert "def " in first


def test_vocabulary_encodes_and_decodes() -> None:
    vocabulary = Vocabulary.of("abbccc\N{SNOWMAN}")
    assert vocabulary.characters == UNKNOWN + "cba\N{SNOWMAN}"
    assert vocabulary.encode("cab").tolist() == [1, 3, 2]
    unknown = vocabulary.encode("cxc\U0001f600")
    assert vocabulary.decode(unknown) == "c" + UNKNOWN + "c" + UNKNOWN


def test_vocabulary_is_limited() -> None:
    many = "".join(map(chr, range(32, 1000)))
    assert len(Vocabulary.of(many + "zz")) == text.MAX_VOCABULARY
    assert Vocabulary.of(many + "zz").characters[1] == "z"


def test_windows_follow_one_another() -> None:
    streams = Streams.of(torch.arange(2 * 13 + 1), batch=2, steps=4)
    assert len(streams) == 3
    for k in range(3):
        inputs, targets = streams.window(k)
        assert inputs.tolist() == [[4 * k + t, 13 + 4 * k + t] for t in range(4)]
        assert torch.equal(targets, inputs + 1)
    assert torch.equal(streams.window(3)[0], streams.window(0)[0])


def test_held_out_text_is_not_trained_on() -> None:
    trained, held_out = text.split(torch.arange(1000), batch=2, steps=5)
    assert int(trained.numbers.max()) < int(held_out.numbers.min())


def test_state_is_carried_and_dropped_at_the_start_of_the_text() -> None:
    entered: list[bool] = []

    class Spy(nn.LSTM):
        def forward(self, input: Any, hx: Any = None) -> Any:
            entered.append(hx is not None)
            assert hx is None or not hx[0].requires_grad
            return super().forward(input, hx)

    learner = training.Learner("spy", CharModel(Spy, 30, 8, 1))
    learner.train(Streams.of(torch.arange(28) % 30, batch=2, steps=4), 7)
    assert entered == [False, True, True, False, True, True, False]


def test_sample_is_reproducible_and_cold_sampling_takes_the_likeliest() -> None:
    torch.manual_seed(3)
    vocabulary = Vocabulary.of("abcdef")
    model = CharModel(nn.LSTM, len(vocabulary), 16, 1)

    def draw(temperature: float, seed: int) -> str:
        return training.sample(model, vocabulary, "ab", 30, temperature, seed)

    assert draw(1.0, 0) == draw(1.0, 0) != draw(1.0, 1)
    assert len(draw(1.0, 0)) == 32
    assert draw(1.0, 0).startswith("ab")
    assert draw(1e-4, 0) == draw(1e-4, 1)


@pytest.mark.parametrize(
    ("saved", "loaded"), [("fastrnn", "torch"), ("torch", "fastrnn"), ("fastrnn", "fastrnn")]
)
def test_checkpoint_goes_from_either_library_to_either(
    saved: str, loaded: str, tmp_path: Path
) -> None:
    classes = {"fastrnn": fastrnn.LSTM, "torch": nn.LSTM}
    vocabulary = Vocabulary.of("abcdef")
    model = CharModel(classes[saved], len(vocabulary), 16, 2)
    save_checkpoint(tmp_path / "model.pt", model, vocabulary)
    other, characters = load_checkpoint(tmp_path / "model.pt", classes[loaded])
    assert characters.characters == vocabulary.characters
    weights: dict[str, Tensor] = other.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], own) for name, own in model.state_dict().items())


def test_text_too_short(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert program("--batch", "5000") == 2
    assert "error: text: expected at least 110000 characters" in capsys.readouterr().err


def test_no_such_file(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert program("--text", "/no/such/file") == 2
    assert "/no/such/file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--hidden", "0"), ("--temperature", "-1"), ("--prompt", ""), ("--backend", "none")],
)
def test_options_are_checked(
    program: Program, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        program(option, value)
    assert option in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["matplotlib", "tqdm"])
def test_missing_package_is_named(
    program: Program, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(SystemExit, match=f"needs {missing}: pip install"):
        program()


def test_threads_are_put_back(program: Program) -> None:
    before = torch.get_num_threads()
    assert before > 1
    assert program("--threads", "1") == 0
    assert torch.get_num_threads() == before
