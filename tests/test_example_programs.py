"""Every program, tiny: on both libraries, what it writes, and its checkpoint read again."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.examples import (
    char_lm,
    char_lm_parallel,
    language_models,
    one_hot,
    program,
    seq2seq,
    shapes,
    tagger,
)
from fastrnn.examples.encoder_decoder import EncoderDecoder
from fastrnn.examples.text import Streams
from fastrnn.examples.training import CharModel

PNG = b"\x89PNG\r\n\x1a\n"
DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

#: A program, and arguments that make it tiny.
TINY: dict[str, tuple[ModuleType, str]] = {
    "language_models": (
        language_models,
        "--steps 6 --hidden 12 --batch 4 --window 10 --sample 8 --temperatures 1",
    ),
    # Without dropout: its masks follow the layout of the outputs, which the libraries choose.
    "tagger": (
        tagger,
        "--sentences 30 --epochs 1 --repeats 2 --hidden 8 --embedding 8 --dropout 0",
    ),
    "shapes": (shapes, "--epochs 1 --hidden 8 --signals 8 --dates 40"),
    "seq2seq": (
        seq2seq,
        "--pairs 40 --test-pairs 10 --epochs 1 --hidden 8 --embedding 8 --beam 2",
    ),
}


def tiny(name: str, out: Path, *more: str) -> dict[str, Any]:
    """Run a program; its results."""
    module, sizes = TINY[name]
    assert module.main([*sizes.split(), "--threads", "1", "--out", str(out), *more]) == 0
    (path,) = out.glob("*.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def text_file(folder: Path) -> list[str]:
    """The language models learn this file; the other programs make their own data."""
    path = folder / "text.txt"
    path.write_text(Path(__file__).read_text())
    return ["--data", str(path)]


@pytest.mark.parametrize("name", TINY)
def test_program_runs_on_both_libraries(name: str, tmp_path: Path) -> None:
    data = text_file(tmp_path) if name == "language_models" else []
    results = {}
    for backend, layers in (("auto", "fastrnn"), ("torch", "torch.nn")):
        out = tmp_path / backend
        results[backend] = tiny(name, out, "--backend", backend, *data)
        assert results[backend]["layers"] == layers
        (picture,) = out.glob("*.png")
        assert picture.read_bytes().startswith(PNG)
    # The same weights, batches and random numbers: after a few steps the losses are still the same,
    # as far as they are stored.
    key = "nats" if name == "language_models" else "last_epoch_loss"
    ours, theirs = ([row[key] for row in results[b]["rows"]] for b in ("auto", "torch"))
    assert ours == pytest.approx(theirs, abs=2e-4)
    assert len(set(ours)) > 1


@pytest.mark.parametrize("name", TINY)
def test_checkpoint_is_read_into_both_libraries(name: str, tmp_path: Path) -> None:
    data = text_file(tmp_path) if name == "language_models" else []
    tiny(name, tmp_path / "out", *data)
    (path,) = (tmp_path / "out").glob("*.pt")
    loaded = {}
    for backend in ("auto", "torch"):
        found = TINY[name][0].load(path, backend)
        models = found if isinstance(found, dict) else found[0]
        kinds = {
            type(layers).__module__.partition(".")[0]
            for model in models.values()
            for layers in model.modules()
            if isinstance(layers, (nn.RNNBase, nn.RNNCellBase))
        }
        assert kinds == {"torch" if backend == "torch" else "fastrnn"}
        assert not any(model.training for model in models.values())
        loaded[backend] = models
    states = program.read_checkpoint(path)["models"]
    assert states.keys() == loaded["auto"].keys() == loaded["torch"].keys()
    for kind, state in states.items():
        outputs = []
        for models in loaded.values():
            own: dict[str, Tensor] = models[kind].state_dict()
            assert own.keys() == state.keys()
            assert all(torch.equal(own[key], state[key]) for key in state)
            outputs.append(output(models[kind]))
        torch.testing.assert_close(*outputs)


@torch.inference_mode()
def output(model: nn.Module) -> Tensor:
    """What a model of any of the programs makes of small numbers."""
    batch, lengths = torch.tensor([[4, 5, 6], [5, 4, 0]]), torch.tensor([3, 2])
    calls: dict[str, Callable[[Any], Any]] = {
        "CharModel": lambda m: m(batch)[0],
        "RNNTagger": lambda m: m(batch, batch, lengths),
        "EncoderDecoder": lambda m: m(batch, lengths, batch)[0],
        "NextLetter": lambda m: m(batch[0]),
        "NameWriter": lambda m: m(batch, m.first_state(torch.tensor([0, 1])))[0],
        "NameReader": lambda m: m(batch, lengths),
        "FrameLabeller": lambda m: m(torch.linspace(-1, 1, 20).view(2, 10, 1)),
    }
    result: Tensor = calls[type(model).__name__](model)
    return result


@pytest.mark.parametrize(
    "module",
    [char_lm, char_lm_parallel, language_models, one_hot, seq2seq, shapes, tagger],
    ids=lambda module: module.__name__,
)
def test_help_explains_every_option(module: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    printed = capsys.readouterr().out
    assert "None" not in printed
    for option in ("--data", "--out", "--backend", "--seed", "--threads"):
        assert option in printed


def test_numbers_of_a_list_are_one_line(tmp_path: Path) -> None:
    options = tagger.parse([])
    results = {"curve": [[1.5, -2e-7], [3, 4]], "text": "[1,  2]", "words": ["a", "b"], "none": []}
    path = tmp_path / "results.json"
    content = program.write_results(path, options, results, started=0.0)
    assert {key: content[key] for key in results} == results
    assert json.loads(path.read_text()) == content
    assert "[ 1.5, -2e-07 ]" in path.read_text()


def test_results_name_the_command_but_no_folder(tmp_path: Path) -> None:
    content = tiny("language_models", tmp_path / "out", *text_file(tmp_path), "--kinds", "GRU")
    command = content["command"]
    assert command.startswith("python -m fastrnn.examples.language_models --steps 6")
    assert command.endswith("--data text.txt --kinds GRU")
    assert str(tmp_path) not in json.dumps(content)
    assert [row["model"] for row in content["rows"]][-1] == "GRU"
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"language_models-text"}


def test_names_are_scored_as_spans(tmp_path: Path) -> None:
    content = tiny("tagger", tmp_path, "--labels", "bio", "--models", "bidirectional LSTM")
    (row,) = content["rows"]
    assert {"accuracy", "precision", "recall", "f1", "spread"} <= row.keys()
    assert content["kinds_of_labels"] == 6


def test_tagger_learns_what_follows_from_both_sides(tmp_path: Path) -> None:
    """Whether a name is a person's or a company's stands behind it."""
    sizes = {"--sentences": 300, "--epochs": 10, "--repeats": 1, "--hidden": 32, "--batch": 8}
    arguments = [str(word) for pair in sizes.items() for word in pair]
    models = ["--models", "LSTM", "bidirectional LSTM"]
    content = tiny("tagger", tmp_path, "--labels", "bio", *arguments, *models)
    one, both = (row["f1"] for row in content["rows"])
    assert both > one + 0.1
    assert both > 0.9


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("language_models", ["--data", "/no/such/file"], "/no/such/file"),
        ("language_models", ["--data", "EMPTY"], "empty: expected a text, the file is empty"),
        ("tagger", ["--test", "x"], "--test: expected --data beside it"),
        ("shapes", ["--data", "/no/such/folder"], "expected two or more files LANGUAGE.txt"),
        ("seq2seq", ["--data", "/no/such/file"], "/no/such/file"),
        ("seq2seq", ["--data", "EMPTY"], "expected lines 'source<TAB>target'"),
        ("seq2seq", ["--data", "NO_SOURCE"], "line 2: expected a source before the tab"),
        ("seq2seq", ["--data", "REPEATED"], "of two different sources or more, got 1"),
    ],
)
def test_what_cannot_be_read_is_named(
    name: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = {"EMPTY": "", "NO_SOURCE": "a\tb\n\tab\n", "REPEATED": "a\tb\n" * 40}
    for file, content in files.items():
        (tmp_path / file.lower()).write_text(content)
    options = [str(tmp_path / word.lower()) if word in files else word for word in options]
    module, sizes = TINY[name]
    assert module.main([*sizes.split(), *options]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed


@pytest.mark.skipif(not DATA.exists(), reason="no real data beside the repository")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("language_models", ["--data", DATA / "tinyshakespeare.txt", "--kinds", "RNN"]),
        (
            "tagger",
            [
                *("--data", DATA / "en_ewt-ud-test.conllu", "--models", "LSTM"),
                *("--test", DATA / "en_ewt-ud-dev.conllu", "--batch", "500", "--repeats", "1"),
            ],
        ),
        ("shapes", ["--data", DATA / "names"]),
        ("seq2seq", ["--data", DATA / "cmudict.dict", "--scores", "dot"]),
    ],
)
def test_program_on_real_data(name: str, options: list[Any], tmp_path: Path) -> None:
    tiny(name, tmp_path, *map(str, options))


# Parts that the programs share.


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_lengths_are_the_same_to_both_libraries(kind: str) -> None:
    options = {"num_layers": 2, "batch_first": True, "bidirectional": True}
    theirs = getattr(nn, kind)(3, 5, **options)
    ours = getattr(fastrnn, kind)(3, 5, **options)
    ours.load_state_dict(theirs.state_dict())
    x, lengths = torch.randn(4, 7, 3), torch.tensor([2, 5, 1, 5])
    results = [program.run_layers(layers, x, lengths) for layers in (ours, theirs)]
    torch.testing.assert_close(results[0], results[1])
    last = [program.last_hidden(states, directions=2) for _, states in results]
    torch.testing.assert_close(last[0], last[1])
    outputs = results[0][0]
    torch.testing.assert_close(last[0][1], torch.cat([outputs[1, 4, :5], outputs[1, 0, 5:]]))


def test_carried_state_reads_windows_as_one_text() -> None:
    """The loss of all windows is that of the whole text; gradients stay in the window."""
    model = CharModel(fastrnn.GRU, 9, 8, 1)
    streams = Streams.of(torch.arange(62) % 9, batch=2, steps=5)
    whole, _ = model.loss((streams.numbers[:, :-1].t(), streams.numbers[:, 1:].t()), None)
    assert language_models.network_loss(model, streams) == pytest.approx(whole.item(), rel=1e-5)

    loss = language_models.CarriedState(model)
    first, second, *_ = language_models.windows(streams)
    loss(first)
    assert [window[2] for window in (first, second)] == [True, False]
    (carried,) = torch.autograd.grad(loss(second), model.rnn.weight_hh_l0)
    h = model.rnn(model.embedding(first[0]))[1].detach()
    (alone,) = torch.autograd.grad(model.loss(second[:2], h)[0], model.rnn.weight_hh_l0)
    torch.testing.assert_close(carried, alone)


def test_ngrams_and_networks_are_measured_on_the_same_characters() -> None:
    streams = Streams.of(torch.randint(0, 4, (102,)), batch=2, steps=5)
    uniform = CharModel(fastrnn.RNN, 4, 8, 1)
    nn.init.zeros_(uniform.head.weight)
    nn.init.zeros_(uniform.head.bias)
    assert language_models.network_loss(uniform, streams) == pytest.approx(math.log(4))
    rows = language_models.ngram_rows(streams.numbers.flatten(), streams, 4)
    counts = torch.bincount(streams.numbers[:, 1:].flatten(), minlength=4)
    unigram = (torch.bincount(streams.numbers.flatten(), minlength=4) + 1.0) / (
        streams.numbers.numel() + 4
    )
    expected = -(counts * unigram.log()).sum() / counts.sum()
    assert rows[0]["nats"] == pytest.approx(expected.item(), abs=1e-4)


def test_training_warms_up_anneals_and_stops() -> None:
    weight = nn.Linear(1, 1, bias=False)
    rates = []

    def loss(batch: Tensor) -> Tensor:
        assert weight.training
        return (weight(batch) - 3 * batch).pow(2).mean()

    def steps() -> Any:
        for _ in range(7):
            rates.append(weight.weight.item())
            yield torch.ones(2, 1)

    class Batches:
        def __iter__(self) -> Any:
            return steps()

    losses, seconds = program.train(
        weight, Batches(), loss, steps=100, learning_rate=0.3, label="a line"
    )
    assert len(losses) == 100
    assert seconds > 0
    assert losses[-1] < 1e-2 < losses[0]
    moves = [abs(b - a) for a, b in itertools.pairwise(rates)]
    assert max(moves[:3]) < 0.1
    assert not weight.training
    one = program.train(weight, Batches(), loss, steps=1, learning_rate=0.1, label="")
    assert len(one.losses) == 1


@pytest.mark.parametrize("score", ["none", "additive", "dot", "general"])
def test_decoder_does_not_look_at_padding(score: str) -> None:
    """A source has the same target alone and beside longer ones; so has a search."""
    model = EncoderDecoder(fastrnn, score, 9, 7, embedding=5, hidden=6)
    source = torch.tensor([[4, 5, 6, 7, 8], [8, 7, 0, 0, 0]])
    lengths, inputs = torch.tensor([5, 2]), torch.tensor([[2, 4, 5], [2, 6, 4]])
    scores, weights = model(source, lengths, inputs)
    alone, _ = model(source[1:, :2], lengths[1:], inputs[1:])
    torch.testing.assert_close(scores[1:], alone)
    if weights is not None:
        assert (weights[1, :, 2:] == 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))

    written = model.translate(source, lengths, max_length=3)
    first = scores[:, 0].argmax(-1).tolist()
    for hypothesis, token in zip(written, first, strict=True):
        assert (hypothesis.tokens or [3])[0] == token
    wider = model.translate(source, lengths, width=4, max_length=3)
    for one, four in zip(written, wider, strict=True):
        assert four.log_prob >= one.log_prob - 1e-6


def test_the_last_state_alone_is_all_that_passes_without_attention() -> None:
    model = EncoderDecoder(fastrnn, "none", 9, 7, embedding=5, hidden=6)
    state, memory = model.encode(torch.tensor([[4, 5]]), torch.tensor([2]))
    assert memory is None
    assert state.shape == (1, 6)
