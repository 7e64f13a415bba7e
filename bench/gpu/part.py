"""A part of ``make gpu``: what it is given, and what it gives back."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """content: for the JSON file. failures: sentences; none where all is well. said: a summary."""

    content: dict[str, Any]
    failures: list[str]
    said: str


@dataclass
class Part:
    """Folders, time and options of a part that is run.

    output: where results go. scratch: for logs and files that nobody wants later. arguments: what
    follows the part on the command line, for the program that it starts. machine: its facts.
    earlier: folders with results of other calls.
    """

    output: Path
    scratch: Path
    seconds: float
    arguments: Sequence[str] = ()
    rehearsed: bool = False
    machine: Mapping[str, Any] = field(default_factory=dict)
    earlier: Sequence[Path] = ()
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds until the part must have ended."""
        return self.seconds - (time.monotonic() - self.started)

    @property
    def slowness(self) -> float:
        """How many times as long a child may be silent as on a GPU."""
        return 10.0 if self.rehearsed else 1.0

    def has_module(self, name: str) -> bool:
        return importlib.util.find_spec(name) is not None
