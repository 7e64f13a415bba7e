"""Names by their language: from files, or made up; and signals made of pieces of waves."""

from __future__ import annotations

import math
import random
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..nn import SymbolTable

#: Pieces of made-up names: beginnings of syllables, vowels, ends of syllables, ends of names. The
#: languages share most letters; their order and the endings tell them apart.
MADE_UP: Mapping[str, tuple[str, str, str, str]] = {
    "Alvari": ("l r v m n al", "a i e", "- - n r", "a ia ara ello"),
    "Borsk": ("b g k br kr st", "o u a", "r l sk -", "ov sky ak in"),
    "Chenu": ("ch t sh n k m", "e u o i", "- -", "u e en o"),
    "Drithe": ("dr th f g h w", "i e y", "th n ld -", "e er wyn son"),
    "Estalo": ("s t p m c r", "e a o", "- s n", "ez os ado ina"),
    "Fjornen": ("f n j sv h l", "o e u", "rn n ll -", "sen en dal vik"),
}
SPECIALS = (SymbolTable.PAD, SymbolTable.UNKNOWN, SymbolTable.BEGIN, SymbolTable.END)
PAD, UNKNOWN, BEGIN, END = range(len(SPECIALS))
HELD_OUT_FRACTION = 0.2


class Names(NamedTuple):
    """Names with the numbers of their languages, to train on and held out."""

    training: list[tuple[str, int]]
    held_out: list[tuple[str, int]]
    languages: list[str]
    letters: SymbolTable


def made_up_names(count: int, seed: int) -> dict[str, list[str]]:
    """So many different names of each made-up language."""
    drawn = random.Random(seed)
    found = {}
    for language, pieces in MADE_UP.items():
        begins, vowels, ends, last = (
            [piece.replace("-", "") for piece in text.split()] for text in pieces
        )
        names: dict[str, None] = {}  # a set would forget the order, and with it the seed
        while len(names) < count:
            syllables = drawn.choice((1, 2, 2, 3))
            name = "".join(
                drawn.choice(begins) + drawn.choice("".join(vowels)) + drawn.choice(ends)
                for _ in range(syllables)
            )
            names[name + drawn.choice(last)] = None
        found[language] = list(names)
    return found


def plain(name: str) -> str:
    """Small letters without marks above or below them."""
    split = unicodedata.normalize("NFD", name.strip().lower())
    return "".join(letter for letter in split if not unicodedata.combining(letter))


def read_names(folder: Path) -> dict[str, list[str]]:
    """The names of each language: of the lines of ``LANGUAGE.txt``, each once.

    Raises:
        ValueError: fewer than two files with names.
    """
    found = {}
    for path in sorted(folder.glob("*.txt")):
        lines = path.read_text(encoding="utf-8").splitlines()
        if names := list(dict.fromkeys(plain(line) for line in lines if line.strip())):
            found[path.stem] = names
    if len(found) < 2:
        raise ValueError(f"{folder}: expected two or more files LANGUAGE.txt, got {len(found)}")
    return found


def make_names(data: Path | None, seed: int, *, made_up: int = 300) -> Names:
    """Names of a folder, or ``made_up`` of each made-up language; a part of them held out."""
    by_language = read_names(data) if data else made_up_names(made_up, seed)
    languages = sorted(by_language)
    labelled = [(name, k) for k, language in enumerate(languages) for name in by_language[language]]
    random.Random(seed).shuffle(labelled)
    cut = int(len(labelled) * HELD_OUT_FRACTION)
    letters = SymbolTable.of((name for name, _ in labelled[cut:]), SPECIALS)
    return Names(labelled[cut:], labelled[:cut], languages, letters)


#: Waves of one cycle per unit of phase, by name.
WAVES = ("sine", "square", "saw")


def make_signals(count: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Signals ``(count, steps, 1)`` of pieces of waves, in noise; the wave of each frame.

    One frame tells next to nothing: every wave takes every value between -1 and 1.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = random.Random(seed)
    signals, labels = torch.empty(count, steps), torch.empty(count, steps, dtype=torch.int64)
    for row in range(count):
        begin = 0
        while begin < steps:
            end = min(begin + drawn.randint(12, 30), steps)
            kind = drawn.randrange(len(WAVES))
            phase = torch.arange(end - begin) / drawn.uniform(7, 12) + drawn.random()
            signals[row, begin:end] = wave(WAVES[kind], phase)
            labels[row, begin:end] = kind
            begin = end
    signals += 0.3 * torch.randn(count, steps, generator=generator)
    return signals[..., None], labels


def wave(name: str, phase: Tensor) -> Tensor:
    if name == "sine":
        return torch.sin(2 * math.pi * phase)
    ramp = 2 * (phase - phase.floor()) - 1
    return ramp.sign() if name == "square" else ramp


def majority(labels: Sequence[int]) -> float:
    """Accuracy of always naming the most frequent label."""
    return max(labels.count(label) for label in set(labels)) / len(labels)
