"""Text for the character model: where it comes from, and how it becomes batches."""

from __future__ import annotations

import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

#: Stands for every character that is not in the vocabulary.
UNKNOWN = "\N{REPLACEMENT CHARACTER}"

MAX_VOCABULARY = 128
MAX_CHARACTERS = 3_000_000
HELD_OUT_FRACTION = 0.05


def standard_library_text() -> str:
    """The sources of Python's own standard library, file after file in the order of their names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    parts: list[str] = []
    size = 0
    for path in sorted(folder.glob("*.py")):
        if size >= MAX_CHARACTERS:
            break
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        size += len(parts[-1])
    if not parts:
        raise ValueError(f"text: no Python sources in {folder}; name a file with --data")
    return "".join(parts)


def read_text(path: Path | None) -> str:
    """The text to learn: a file, or the standard library's sources; cut to a few megabytes.

    Raises:
        ValueError: the file is empty.
    """
    if path is None:
        return standard_library_text()[:MAX_CHARACTERS]
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(MAX_CHARACTERS)
    if not text:
        raise ValueError(f"{path}: expected a text, the file is empty")
    return text


class Vocabulary:
    """The characters a model knows, by frequency; the first stands for all others.

    A string, so that a checkpoint can carry it: character k has the number k.
    """

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._table = torch.zeros(0x110000, dtype=torch.int64)
        for number, character in enumerate(characters):
            self._table[ord(character)] = number

    @staticmethod
    def of(text: str) -> Vocabulary:
        counts = Counter(text)
        del counts[UNKNOWN]
        ranked = sorted(counts, key=lambda character: (-counts[character], character))
        return Vocabulary(UNKNOWN + "".join(ranked[: MAX_VOCABULARY - 1]))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """Numbers of the characters, ``(len(text),)`` int64."""
        raw = bytearray(text.encode("utf-32-le", errors="replace"))
        return self._table[torch.frombuffer(raw, dtype=torch.int32).long()]

    def decode(self, numbers: Tensor) -> str:
        return "".join(self.characters[number] for number in numbers.tolist())


@dataclass(frozen=True)
class Streams:
    """A text as ``batch`` streams read side by side in windows of ``steps`` characters.

    Window k + 1 goes on where window k stopped, in every stream, so that a model's state can be
    carried from one to the next: truncated backpropagation through time.
    """

    numbers: Tensor  # (batch, windows * steps + 1)
    steps: int

    @staticmethod
    def of(numbers: Tensor, batch: int, steps: int) -> Streams:
        """Cut ``numbers`` into streams; what is left over at the end is dropped.

        Raises:
            ValueError: the text is too short for one window.
        """
        windows = (numbers.numel() // batch - 1) // steps
        if windows < 1:
            raise ValueError(
                f"text: expected at least {batch * (steps + 1)} characters for {batch} streams of "
                f"{steps} steps, got {numbers.numel()}"
            )
        length = windows * steps + 1
        return Streams(numbers[: batch * length].view(batch, length), steps)

    def __len__(self) -> int:
        return (self.numbers.shape[1] - 1) // self.steps

    def window(self, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one window, both ``(steps, batch)``; the index wraps around."""
        start = index % len(self) * self.steps
        columns = self.numbers[:, start : start + self.steps + 1].t()
        return columns[:-1].contiguous(), columns[1:].contiguous()


def split(numbers: Tensor, batch: int, steps: int) -> tuple[Streams, Streams]:
    """Training streams, and the streams of the held-out end of the text.

    Raises:
        ValueError: the text is too short for a window of each.
    """
    window = batch * (steps + 1)
    if numbers.numel() < 2 * window:
        raise ValueError(
            f"text: expected at least {2 * window} characters, to learn from and held out, for "
            f"{batch} streams of {steps} steps each, got {numbers.numel()}"
        )
    held_out = max(int(numbers.numel() * HELD_OUT_FRACTION), window)
    return (
        Streams.of(numbers[:-held_out], batch, steps),
        Streams.of(numbers[-held_out:], batch, steps),
    )
