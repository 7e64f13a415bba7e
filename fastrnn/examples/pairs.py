"""Pairs of sequences to translate: dates of our own, or a pronouncing dictionary."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

#: The symbols of a source, and those of its target.
Pair = tuple[list[str], list[str]]


class Pairs(NamedTuple):
    """What there is to learn, and other pairs to test on."""

    training: list[Pair]
    test: list[Pair]
    unit: str  # what a symbol of the target is called


FORMATS = (
    "{d} {B} {Y}",
    "{B} {d}, {Y}",
    "{A}, {d} {B} {Y}",
    "{A} {d} {b} {Y}",
    "{b} {d} {Y}",
    "{d}/{m}/{Y}",
    "{d}. {m}. {Y}",
    "the {d}{th} of {B} {Y}",
)


def generated_dates(count: int, seed: int) -> list[Pair]:
    """Different days, each written as people do and as ISO 8601 does; letter by letter.

    The order of the parts changes, and their length, so a decoder has to find them.
    """
    drawn = random.Random(seed)
    first, last = datetime.date(1900, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
    pairs: list[Pair] = []
    for ordinal in drawn.sample(range(first, last + 1), count):
        day = datetime.date.fromordinal(ordinal)
        parts = {letter: day.strftime(f"%{letter}") for letter in "ABbY"}
        suffix = {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10 if day.day // 10 != 1 else 0, "th")
        source = drawn.choice(FORMATS).format(d=day.day, m=day.month, th=suffix, **parts)
        pairs.append((list(source.lower()), list(day.isoformat())))
    return pairs


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of a file, one a line, in either of two forms.

    ``source<TAB>target``: both letter by letter. ``word PH OH N EM``, as in the CMU Pronouncing
    Dictionary: the word letter by letter, and symbols between blanks. Of that, marks of stress are
    left out (AH0 is AH), and so are words with anything but letters and all but the first
    pronunciation of a word.

    Raises:
        ValueError: a source is empty, or there are not two different ones.
    """
    pairs: list[Pair] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        source, tab, target = line.partition("\t")
        if tab:
            if not source:
                raise ValueError(f"{path}, line {number}: expected a source before the tab")
            pairs.append((list(source), list(target)))
            continue
        word, *phonemes = line.partition("#")[0].split() or [""]
        if phonemes and word.isalpha():
            pairs.append((list(word.lower()), [re.sub(r"\d$", "", p) for p in phonemes]))
    different = len({tuple(source) for source, _ in pairs})
    if different < 2:
        raise ValueError(
            f"{path}: expected lines 'source<TAB>target' or 'word PH OH N EM' of two different "
            f"sources or more, got {different}"
        )
    return pairs


def make_pairs(data: Path | None, seed: int, *, training: int, test: int) -> Pairs:
    """Up to so many pairs to train on, and those of so many sources to test on, at random.

    No source is in both, whatever a file repeats.
    """
    if data is None:
        pairs = generated_dates(training + test, seed)
        return Pairs(pairs[test:], pairs[:test], "letter")
    by_source: dict[tuple[str, ...], list[Pair]] = {}
    for pair in read_pairs(data):
        by_source.setdefault(tuple(pair[0]), []).append(pair)
    groups = list(by_source.values())
    random.Random(seed).shuffle(groups)
    test = min(test, max(len(groups) // 10, 1))
    held_out, trained = (
        [pair for group in part for pair in group] for part in (groups[:test], groups[test:])
    )
    several = any(len(symbol) > 1 for _, target in trained for symbol in target)
    return Pairs(trained[:training], held_out, "symbol" if several else "letter")


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Insertions, deletions and substitutions that make ``b`` of ``a`` (Levenshtein 1966)."""
    above = list(range(len(b) + 1))
    for row, symbol in enumerate(a, start=1):
        current = [row]
        for column, other in enumerate(b, start=1):
            substituted = above[column - 1] + (symbol != other)
            current.append(min(substituted, above[column] + 1, current[-1] + 1))
        above = current
    return above[-1]


def error_rates(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """Edits per symbol of the truth, and the share of sequences that are not right throughout."""
    edits = sum(edit_distance(a, b) for a, b in zip(truth, found, strict=True))
    wrong = sum(list(a) != list(b) for a, b in zip(truth, found, strict=True))
    return {
        "error_rate": edits / max(sum(map(len, truth)), 1),
        "wrong": wrong / max(len(truth), 1),
    }
