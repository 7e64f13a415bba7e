"""Records: what a child has to say while it runs, one line of JSON for each thing.

They lie beside the results, so that what is known is there even if somebody ends the program that
reads them: ``store`` takes such a leftover. The first line names the machine. A line may say for
how many seconds there may be no other (``patience``): who waits longer waits for a kernel that
hangs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Event = dict[str, Any]

#: The last line is read again and again, the others are not: it is no longer than this.
MOST_OF_LINE = 1 << 16


def begin(path: Path, machine: Mapping[str, Any]) -> None:
    """An empty record of this machine."""
    path.unlink(missing_ok=True)
    add(path, machine=machine)


def add(path: Path, **fields: Any) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(fields) + "\n")


def read(path: Path) -> list[Event]:
    """Its lines; the last may have been cut off."""
    return _parsed(path.read_text(encoding="utf-8")) if path.exists() else []


def patience(path: Path, otherwise: float) -> float:
    """Seconds that may pass before the next line."""
    if not path.exists():
        return otherwise
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - MOST_OF_LINE))
        events = _parsed(file.read().decode(errors="replace"))
    return float((events[-1].get("patience") if events else None) or otherwise)


def _parsed(text: str) -> list[Event]:
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
