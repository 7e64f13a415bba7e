"""The pages of the examples say what was measured, and show what is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fastrnn
from fastrnn.examples import pages

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(pages.DOCS.glob("*.md"))
PROGRAMS = {
    "language_models",
    "tagger",
    "shapes",
    "seq2seq",
    "why_gates",
    "remedies",
    "one_hot",
}


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_every_program_has_a_page_that_the_readme_links() -> None:
    readme = text(ROOT / "README.md")
    assert {path.stem for path in PAGES} >= PROGRAMS
    for path in PAGES:
        assert f"({path.relative_to(ROOT)})" in readme


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_measured_parts_are_the_stored_results(path: Path) -> None:
    page = text(path)
    assert pages.rewritten(page) == page


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_pages_show_results(name: str) -> None:
    assert pages.named(text(pages.DOCS / f"{name}.md"))


def test_every_stored_result_is_shown() -> None:
    shown = {name for path in PAGES for name in pages.named(text(path))}
    assert {path.stem for path in pages.RESULTS.glob("*.json")} == shown
    assert {path.stem for path in pages.RESULTS.glob("*.png")} == shown


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_numbers_stand_in_measured_parts_only(path: Path) -> None:
    """Nothing measured is written by hand: outside of them, no fraction and no percentage."""
    prose = pages.MARKED.sub("", text(path))
    prose = re.sub(r"```.*?```", "", prose, flags=re.DOTALL)
    assert re.findall(r"\d+\.\d+|\d\s*%", prose) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", text(path))
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_programs_of_the_readme_exist() -> None:
    chapter = text(ROOT / "README.md").partition("\n## Examples\n")[2].partition("\n## ")[0]
    names = re.findall(r"^\| \[?`(\w+)`", chapter, re.MULTILINE)
    assert {"char_lm", "char_lm_parallel", *PROGRAMS} == set(names)
    for name in names:
        assert callable(importlib.import_module(f"fastrnn.examples.{name}").main)


def what_a_page_takes_for_granted() -> dict[str, Any]:
    return {
        "torch": torch,
        "fastrnn": fastrnn,
        "numbers": torch.arange(50) % 7,
        "other_numbers": torch.arange(20) % 7,
        "vocabulary": 7,
        "lstm": fastrnn.LSTM(8, 8, batch_first=True),
        "states": torch.randn(3, 5, 128),
        "lengths": torch.tensor([5, 2, 4]),
        "state": torch.randn(3, 128),
        "embedded": torch.randn(3, 5, 8),
        "cell": fastrnn.GRUCell(8 + 128, 128),
    }


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_python_of_a_page_runs(path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", text(path), re.MULTILINE | re.DOTALL)
    assert blocks
    namespace = what_a_page_takes_for_granted()
    if path.stem == "seq2seq":  # one step of a decoder
        namespace["embedded"] = namespace["embedded"][:, 0]
    for block in blocks:
        exec(compile(block.replace("epochs=8", "epochs=1"), path.name, "exec"), namespace)


def test_a_changed_number_is_noticed() -> None:
    (name, *_) = pages.named(text(pages.DOCS / "tagger.md"))
    page = f"<!-- results: {name} -->\n{pages.section(name)}<!-- end of results -->"
    assert pages.rewritten(page) == page
    digit = re.search(r"\d\.\d", page)
    assert digit is not None
    assert pages.rewritten(page.replace(digit[0], "99.9", 1)) == page
