"""What the pages claim holds in the stored results, and their pictures show these results."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastrnn.examples import one_hot, pages, pictures

STORED = sorted(path.stem for path in pages.RESULTS.glob("*.json"))
#: Where a lead is claimed, it is this many times its standard error or more.
CLEARLY = 3.0


def rows(name: str, key: str = "model") -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in pages.stored(name)["rows"]}


def test_lstm_reaches_the_target_and_networks_with_gates_beat_all_counts() -> None:
    models = rows("language_models-tinyshakespeare")
    counted = {name: row["nats"] for name, row in models.items() if "gram" in name}
    assert len(counted) >= 8
    assert models["LSTM"]["nats"] <= 1.60
    for gated in ("GRU", "LSTM"):
        assert models[gated]["nats"] < min(counted.values())
    # As the page says: the vanilla RNN does not, and longer contexts than 6 do not help.
    assert models["vanilla RNN"]["nats"] > counted["5-gram, kneser-ney"]
    assert min(counted, key=counted.__getitem__) == "6-gram, kneser-ney"


def leads(name: str, *models: str) -> list[float]:
    """Leads of each model over the next, as multiples of their standard errors."""
    scores = [rows(name)[model]["scores"] for model in models]
    both = [pages.lead(a, b) for a, b in itertools.pairwise(scores)]
    return [difference / error for difference, error in both]


def test_both_directions_are_ahead_of_one_and_lstm_of_vanilla() -> None:
    name = "tagger-en_ewt-ud-dev-pos"
    assert min(leads(name, "bidirectional LSTM", "LSTM", "vanilla RNN")) > CLEARLY
    assert leads(name, "bidirectional LSTM", "bidirectional vanilla RNN")[0] > CLEARLY


def test_both_directions_find_more_names() -> None:
    """As the page says: of few names, only the widest lead is clear."""
    name = "tagger-en_ewt-ud-dev-bio"
    assert leads(name, "bidirectional LSTM", "vanilla RNN")[0] > CLEARLY
    for cell in ("LSTM", "vanilla RNN"):
        assert leads(name, f"bidirectional {cell}", cell)[0] > 1


def test_attention_makes_fewer_errors() -> None:
    rates = rows("seq2seq-cmudict", "score")
    without = rates.pop("none")
    for row in rates.values():
        for search in ("greedy", "beam"):
            assert row[search]["error_rate"] < 0.7 * without[search]["error_rate"]
        # It matters the more, the longer the source is.
        groups = zip(without["by_length"], row["by_length"], strict=True)
        gains = [one["error_rate"] - other["error_rate"] for one, other in groups]
        assert min(gains) > 0
        assert gains[-1] == max(gains)


def test_every_shape_is_ahead_of_what_does_not_look() -> None:
    for row in rows("shapes-names", "task").values():
        if row["measure"] == "accuracy":
            assert row["value"] > row["of_baseline"] + 0.2
        elif row["shape"] == "one to one":  # a bigram model, learned
            assert row["value"] == pytest.approx(row["of_baseline"], rel=0.01)
        else:
            assert row["value"] < 0.8 * row["of_baseline"]


def test_numbers_are_one_hot_vectors() -> None:
    content = pages.stored("one_hot")
    assert content["differences"].keys() == content["step_seconds"].keys()
    assert max(content["differences"].values()) <= one_hot.AGREEMENT
    largest = list(content["step_seconds"].values())[-1]
    assert largest["numbers"] < 0.5 * largest["one-hot vectors"]


@pytest.mark.parametrize("name", [n for n in STORED if pages.program_of(n) in pictures.PICTURES])
def test_results_say_how_long_they_took_and_on_what(name: str) -> None:
    content = pages.stored(name)
    assert content["cpu"]
    if "rows" in content:
        assert all(row["seconds"] > 0 for row in content["rows"])


@pytest.mark.parametrize("name", [n for n in STORED if pages.program_of(n) in pictures.PICTURES])
def test_pictures_show_the_stored_results(name: str) -> None:
    assert pages.is_current(name), "python -m fastrnn.examples.pages draws it again"


def test_a_picture_of_other_results_is_noticed_and_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ending in (".json", ".png"):
        shutil.copy(pages.RESULTS / f"one_hot{ending}", tmp_path)
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    assert pages.is_current("one_hot")
    content = pages.stored("one_hot")
    content["step_seconds"]["32"]["numbers"] *= 1.001
    (tmp_path / "one_hot.json").write_text(json.dumps(content), encoding="utf-8")
    assert not pages.is_current("one_hot")
    pages.update_picture("one_hot")
    assert pages.is_current("one_hot")


@pytest.mark.parametrize(
    ("numbers", "end"),
    [
        ((3, 1, 1, 1), "itself; from 128 on, numbers cost less."),
        ((1, 3, 1, 1), "itself; from 512 on, numbers cost less."),
        ((1, 1, 3, 1), "itself; from 1,024 on, numbers cost less."),
        ((1, 1, 1, 3), "itself."),
    ],
)
def test_crossover(numbers: tuple[float, ...], end: str) -> None:
    measured = {
        size: {"numbers": each, "one-hot vectors": 2}
        for size, each in zip(("64", "128", "512", "1024"), numbers, strict=True)
    }
    sentence = pages.crossover({"multiplied_up_to": 64, "step_seconds": measured})
    assert sentence == f"Up to 64 symbols the layer makes the vectors of numbers {end}"


def test_lead_of_means() -> None:
    difference, error = pages.lead([0.5, 0.7], [0.2, 0.2, 0.2])
    assert difference == pytest.approx(0.4)
    assert error == pytest.approx(0.1)
