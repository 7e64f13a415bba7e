"""What the programs read and make up, and how they score it."""

from __future__ import annotations

import datetime
import random
from pathlib import Path

import pytest
import torch

from fastrnn.examples import names, pairs, tagged
from fastrnn.examples.tagged import Span, spans

CONLLU = """\
# text = Anna's from New York.
1-2\tAnna's\t_\t_\t_\t_\t_\t_\t_\t_
1\tAnna\tAnna\tPROPN\tNNP\t_\t0\troot\t_\t_
2\t's\tbe\tAUX\tVBZ\t_\t1\tcop\t_\t_
3\tfrom\tfrom\tADP\tIN\t_\t4\tcase\t_\t_
4\tNew\tNew\tPROPN\tNNP\t_\t1\tobl\t_\t_
5\tYork\tYork\tPROPN\tNNP\t_\t4\tflat\t_\t_
5.1\tgone\tgo\tVERB\tVBD\t_\t_\t_\t_\t_

1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_
"""


def test_conllu_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(CONLLU)
    first, second = tagged.read_conllu(path)
    assert first.words == ["Anna", "'s", "from", "New", "York"]
    assert first.labels("pos") == ["PROPN", "AUX", "ADP", "PROPN", "PROPN"]
    assert first.labels("bio") == ["B-NAME", "O", "O", "B-NAME", "I-NAME"]
    assert second.words == ["Yes"]
    assert tagged.read_sentences(path, None, 0, generated=1) == ([first], [second])
    assert tagged.read_sentences(path, path, 0, generated=1) == ([first, second], [first, second])


@pytest.mark.parametrize(
    ("text", "message"),
    [("# nothing\n", "found none"), ("1\tAnna\n", "line 1: expected 10 columns")],
)
def test_wrong_conllu_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        tagged.read_conllu(path)


@pytest.mark.parametrize(
    ("bio", "expected"),
    [
        ("", []),
        ("O O", []),
        ("B-A I-A O B-A", [(0, 2, "A"), (3, 4, "A")]),
        ("B-A B-A I-B I-B", [(0, 1, "A"), (1, 2, "A"), (2, 4, "B")]),
        ("I-A O I-B I-A", [(0, 1, "A"), (2, 3, "B"), (3, 4, "A")]),
    ],
)
def test_spans(bio: str, expected: list[tuple[int, int, str]]) -> None:
    assert spans(bio.split()) == {Span(*span) for span in expected}


def test_span_scores() -> None:
    truth = [["B-A", "I-A", "O", "B-B"], ["O", "B-A"]]
    found = [["B-A", "I-A", "O", "B-A"], ["O", "O"]]
    scores = tagged.span_scores(truth, found)
    assert scores == pytest.approx({"precision": 1 / 2, "recall": 1 / 3, "f1": 0.4})
    assert tagged.span_scores([["O"]], [["O"]])["f1"] == 0


def test_grammar_is_the_same_for_a_seed_and_labels_every_word() -> None:
    sentences = tagged.Grammar(3).sentences(200)
    assert sentences == tagged.Grammar(3).sentences(200) != tagged.Grammar(4).sentences(200)
    tags: dict[str, set[str]] = {}
    for sentence in sentences:
        assert len(sentence.words) == len(sentence.pos) == len(sentence.bio)
        for word, tag, label in zip(sentence.words, sentence.pos, sentence.bio, strict=True):
            tags.setdefault(word, set()).add(tag)
            assert (label == "O") == (tag != "PROPN")
        for span in spans(sentence.bio):
            company = sentence.words[span.end - 1] in tagged.COMPANY_ENDINGS
            assert company == (span.kind == "COMPANY")
    assert all(tags[word] == {"NOUN", "VERB"} for word in tagged.AMBIGUOUS)


def test_dates_are_the_days_they_say() -> None:
    made = pairs.generated_dates(300, seed=0)
    assert made == pairs.generated_dates(300, seed=0)
    assert len({tuple(target) for _, target in made}) == 300
    for source, target in made:
        day = datetime.date.fromisoformat("".join(target))
        text = "".join(source)
        assert str(day.year) in text
        assert str(day.day) in text
        assert day.strftime("%b").lower() in text or f"{day.month}" in text
    texts = " ".join("".join(source) for source, _ in made)
    assert "1th" not in texts.replace("11th", "")
    assert "the 1st of" in texts or "the 21st of" in texts or "the 31st of" in texts


def test_dictionary_and_tabs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs"
    path.write_text(
        "'bout B AW1 T\nAbbey AE1 B IY0 # a place\nabbey(2) AH0\n\nab\tBA\na.b EY1\nzoo Z UW1\n"
    )
    read = pairs.read_pairs(path)
    assert read == [
        (list("abbey"), ["AE", "B", "IY"]),
        (list("ab"), list("BA")),
        (list("zoo"), ["Z", "UW"]),
    ]
    made = pairs.make_pairs(path, seed=0, training=1, test=5)
    assert (len(made.training), len(made.test), made.unit) == (1, 1, "symbol")


def test_pairs_to_test_on_are_not_trained_on() -> None:
    made = pairs.make_pairs(None, seed=1, training=200, test=50)
    assert (len(made.training), len(made.test)) == (200, 50)
    days = [{tuple(target) for _, target in part} for part in made[:2]]
    assert not days[0] & days[1]


def test_a_source_that_a_file_repeats_is_in_one_part_only(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    lines = [f"{source}\t{target}" for source in "abcdefghij" for target in "xyx"]
    path.write_text("\n".join(lines))
    for seed in range(5):
        made = pairs.make_pairs(path, seed, training=1000, test=3)
        assert (len(made.training), len(made.test)) == (27, 3)
        sources = [{tuple(source) for source, _ in part} for part in made[:2]]
        assert not sources[0] & sources[1]


def by_recursion(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(
        by_recursion(a[1:], b) + 1,
        by_recursion(a, b[1:]) + 1,
        by_recursion(a[1:], b[1:]) + (a[0] != b[0]),
    )


def test_edit_distance() -> None:
    drawn = random.Random(0)
    for _ in range(40):
        a, b = ("".join(drawn.choices("abc", k=drawn.randrange(6))) for _ in range(2))
        assert pairs.edit_distance(a, b) == by_recursion(a, b)
    rates = pairs.error_rates(["abc", "ab"], ["abd", "ab"])
    assert rates == {"error_rate": 1 / 5, "wrong": 1 / 2}


def test_names_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "French.txt").write_text("Évreux\nAbel\nAbel\n", encoding="utf-8")
    (tmp_path / "Irish.txt").write_text("O'Neal\n")
    assert names.read_names(tmp_path) == {"French": ["evreux", "abel"], "Irish": ["o'neal"]}
    made = names.make_names(tmp_path, seed=0)
    assert made.languages == ["French", "Irish"]
    assert len(made.training) == 3


def test_made_up_names() -> None:
    made = names.made_up_names(50, seed=0)
    assert made == names.made_up_names(50, seed=0)
    assert all(len(set(found)) == 50 for found in made.values())
    split = names.make_names(None, seed=0, made_up=50)
    assert not set(split.training) & set(split.held_out)
    assert len(split.held_out) == 60


def test_signals_are_waves_in_noise() -> None:
    signals, labels = names.make_signals(30, 80, seed=0)
    assert signals.shape == (30, 80, 1)
    assert set(labels.flatten().tolist()) == set(range(len(names.WAVES)))
    again, _ = names.make_signals(30, 80, seed=0)
    assert torch.equal(signals, again)
    square = signals[..., 0][labels == names.WAVES.index("square")]
    torch.testing.assert_close(square.abs().mean(), torch.tensor(1.0), atol=0.03, rtol=0)
    phase = torch.linspace(0, 1, 101)[:-1]
    for kind in names.WAVES:
        assert names.wave(kind, phase).mean().abs() < 0.02
    assert names.majority([1, 1, 0]) == pytest.approx(2 / 3)
