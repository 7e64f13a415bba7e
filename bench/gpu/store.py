"""Results of the parts put together as ``bench/results/gpu.json``, and what README.md says of them.

``python -m bench.gpu store --from FOLDER ...``: of several folders with the same part the last
counts, but for the benchmark, of which cases add up while they are of one machine and commit. Where
somebody ended a part its record was left behind, and counts as far as it goes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..pages import README, rewritten
from ..run import RESULTS
from . import record, report, testing
from . import run as benchmark

NAME = "gpu.json"
PARTS = ("build", "test", "sanitize", "sync", "bench")
#: Of the parts that keep a record while they run, what it says.
RECORDED = {"test": testing.summary, "bench": benchmark.summary}
#: What makes figures comparable.
SAME = ("gpu", "driver", "torch", "cudnn", "fastrnn", "commit")


def merged(folders: Sequence[Path], before: dict[str, Any] | None = None) -> dict[str, Any]:
    """One dictionary by part, of the files of all folders, after what was stored before."""
    found = dict(before or {})
    for folder in folders:
        for part in PARTS:
            for content in _written(folder, part):
                old = found.get(part)
                if part == "bench" and old and _same(old, content):
                    found[part] = _with_cases(old, content)
                else:
                    found[part] = content
    return found


def _written(folder: Path, part: str) -> Iterator[dict[str, Any]]:
    """What a part has left in a folder: its file, and the record of a later run that was ended."""
    path = folder / f"gpu-{part}.json"
    if path.exists():
        yield json.loads(path.read_text(encoding="utf-8"))
    events = record.read(folder / f"gpu-{part}.jsonl")
    if part in RECORDED and events and events[0].get("machine"):
        yield {
            "part": part,
            "machine": events[0]["machine"],
            "failures": ["the part was ended before it was over"],
            "complete": False,
            **RECORDED[part](events),
        }


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one["machine"].get(key) == other["machine"].get(key) for key in SAME)


def _with_cases(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    rows = {row["name"]: row for row in [*old["cases"], *new["cases"]]}
    named = {sentence.partition(": ")[0] for sentence in new["missed"]}
    kept = [s for s in old["missed"] if s.partition(": ")[0] not in named]
    new_names = {row["name"] for row in new["cases"]}
    kept = [s for s in kept if s.partition(": ")[0] not in new_names]
    return new | {"cases": list(rows.values()), "missed": kept + new["missed"]}


def main(folders: Sequence[Path]) -> int:
    path = RESULTS / NAME
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    content = merged(folders, before)
    if not content:
        print(f"nothing to store in {', '.join(map(str, folders))}", file=sys.stderr)
        return 1
    if any(part["machine"]["rehearsed"] for part in content.values()):
        print("not stored: figures of a rehearsal mean nothing", file=sys.stderr)
        return 1
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    try:
        report.draw(RESULTS / report.PLOT, content)
    except ImportError as error:
        print(f"plot not drawn: {error}; pip install matplotlib", file=sys.stderr)
    page = README.read_text(encoding="utf-8")
    README.write_text(
        rewritten(page, report.section(RESULTS), report.BEGIN, report.END), encoding="utf-8"
    )
    print(f"written: {path} and the section of README.md")
    return 0
