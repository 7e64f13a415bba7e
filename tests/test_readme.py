"""README.md says what is: its code runs, and its tables and names are those of the tree."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from torch import nn

import fastrnn
from bench import pages, report
from bench.cases import CASES
from bench.gpu import __main__ as gpu
from bench.gpu import report as gpu_report
from bench.timing import Timing
from fastrnn import _env, backends
from fastrnn.cells import CELLS
from fastrnn.problem import LayerInputs, Problem

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")


def chapter(title: str) -> str:
    """The text under a heading of the second level."""
    (found,) = re.findall(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL
    )
    return str(found)


def rows(text: str) -> list[list[str]]:
    """The cells of a table of Markdown, without its header and rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert set(lines[1]) <= set("|- :")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


# Code.


def test_python_runs() -> None:
    """All blocks in one namespace, from the top of the page on."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_drop_in_example_is_short() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", chapter("Drop-in"), re.MULTILINE | re.DOTALL)
    assert len(block.splitlines()) <= 10


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):(?!=)", makefile, re.MULTILINE))
    shown = set(re.findall(r"^make (\w+)", PAGE, re.MULTILINE))
    named = shown | {match for span in code(PAGE) for match in re.findall(r"^make (\w+)", span)}
    assert {"demo", "test", "bench", "lint"} <= named <= targets
    for variable in re.findall(r"make \w+ ([A-Z]+)=", PAGE):
        assert f"$({variable})" in makefile


# Tables.


def test_environment_variables() -> None:
    expected = [
        [f"`{v.name}`", "build" if v.build_time else "library", _meaning(v)] for v in _env.VARIABLES
    ]
    assert rows(chapter("Environment variables")) == expected


def _meaning(variable: _env.Variable) -> str:
    return variable.meaning + (f" (default {variable.default})" if variable.default else "")


def support() -> list[tuple[str, list[str]]]:
    """Each cell, and who the page says serves it.

    On the CPU, there in 16 bits, elsewhere, elsewhere with options.
    """
    (table,) = re.findall(r"<!-- support -->\n(.*?)<!-- end of support -->", PAGE, re.DOTALL)
    return [
        (cell, served)
        for cells, *served in rows(table)
        for cell in code(cells)
        if cell != "proj_size"
    ]


def test_every_cell_is_in_the_table() -> None:
    assert sorted(cell for cell, _ in support()) == sorted(CELLS)


def served_by(cell: str, like: torch.Tensor, *, proj_size: int = 0, **options: Any) -> str:
    """Name of the backend that serves a layer of tensors like ``like``, with or without options."""

    def tensor(*shape: int) -> torch.Tensor:
        return like.new_empty(shape)

    gate_rows, width = 4 * CELLS[cell].gates, proj_size or 4
    weights = [tensor(gate_rows, 3), tensor(gate_rows, width)]
    if proj_size:
        weights.append(tensor(proj_size, 4))
    keep = options.pop("keep_cell_states", False)
    masks = {"lengths": None, "batch_sizes": None, "reset": None} | options
    inputs = LayerInputs(tensor(5, 2, 3), None, None, weights, **masks)
    problem = Problem.of(cell, inputs, directions=1, keep_cell_states=keep, training=True)
    return backends.select(problem).name


@pytest.mark.parametrize(("cell", "served"), support())
def test_support(cell: str, served: list[str]) -> None:
    kernels, in_16_bits, elsewhere, with_options = map(code, served)
    assert kernels == ["cpu", "numba"]
    own = "cpu" if cases.NATIVE else "numba"
    sizes: list[dict[str, Any]] = [{}] + [{"proj_size": 2}] * (cell == "lstm")
    for dtype in (torch.float32, torch.float64):
        like = torch.empty(0, dtype=dtype)
        for options in sizes + _options(cell, like):
            assert served_by(cell, like, **options) == own
    halves = [torch.empty(0, dtype=dtype) for dtype in (torch.float16, torch.bfloat16)]
    for like in halves if cases.STORAGE_DTYPES else ():
        for options in sizes + _options(cell, like):
            assert [served_by(cell, like, **options)] == in_16_bits
    others = [torch.empty(0, dtype=torch.complex64), torch.empty(0, device="meta")]
    for like in others if cases.STORAGE_DTYPES else (*others, *halves):
        for options in sizes:
            assert [served_by(cell, like, **options)] == elsewhere
        for options in _options(cell, like):
            assert [served_by(cell, like, **options)] == with_options


def _options(cell: str, like: torch.Tensor) -> list[dict[str, Any]]:
    options: list[dict[str, Any]] = [
        {"lengths": torch.tensor([5, 2])},
        {"reset": like.new_zeros(5, 2, dtype=torch.bool)},
    ]
    return options + [{"keep_cell_states": True}] * CELLS[cell].has_cell_state


def test_every_row_of_what_works_is_a_test() -> None:
    """A function that pytest finds: at the top of a test file, without a double in the table."""
    listed = rows(chapter("Works with"))
    assert len(listed) >= 20
    named = [tests for _, tests in listed]
    assert len(set(named)) == len(named)
    for tests in named:
        (span,) = code(tests)
        path, _, name = span.partition("::")
        assert re.fullmatch(r"tests/test_\w+\.py", path)
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), span
        assert name.startswith("test_")


# What stands about calls inside something.


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_what_torch_lacks() -> None:
    module, x = fastrnn.RNN(3, 4, nonlinearity="sigmoid"), torch.randn(5, 2, 3)
    with pytest.raises(RuntimeError):
        torch.jit.trace(module, (x,), check_trace=False)
    exported = torch.export.export(module, (x,))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert "fastrnn.layer_forward.default" in targets
    torch.testing.assert_close(exported.module()(x)[0], module(x)[0])


COMPILED = """
import torch, fastrnn
module, x = {module}, torch.randn(5, 2, 3)
result = torch.compile(module, backend="aot_eager", fullgraph=True)(x)
torch.testing.assert_close(result[0], module(x)[0])
"""


@pytest.mark.parametrize(
    "module", ["fastrnn.LSTM(3, 4)", "fastrnn.GRU(3, 4, reset_after=False)"], ids=str
)
def test_compile_is_the_first_call(module: str) -> None:
    """In a process of its own: nothing was called, loaded or chosen before."""
    program = [sys.executable, "-c", COMPILED.format(module=module)]
    run = subprocess.run(program, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_classes_and_modes() -> None:
    assert not isinstance(fastrnn.LSTM(3, 4), nn.LSTM)
    assert isinstance(fastrnn.LSTM(3, 4), nn.RNNBase)
    (item,) = re.findall(r"^- `mode` .*?(?=^- )", PAGE, re.MULTILINE | re.DOTALL)
    modes = {cell.torch_mode for cell in CELLS.values() if cell.torch_name is None}
    assert set(code(item)) - {"mode", "repr"} == modes


def test_graph_of_lstm_cell() -> None:
    paths = []
    for kind in (nn.LSTMCell, fastrnn.LSTMCell):
        h, c = kind(3, 4)(torch.randn(2, 3))
        (grad,) = torch.autograd.grad(h.sum(), c, allow_unused=True)
        paths.append(grad is not None)
    assert paths == [True, False]


# Names.


def test_layout_exists() -> None:
    paths = re.findall(r"^    (\S+)\s", chapter("Layout"), re.MULTILINE)
    assert len(paths) >= 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_files_named_anywhere_exist() -> None:
    named = re.findall(r"\]\(([^)#]+)\)", PAGE) + [
        span for span in code(PAGE) if re.fullmatch(r"(fastrnn|csrc|tests|bench)/[\w./]*", span)
    ]
    assert len(named) >= 15
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("title", ["How to add a cell", "How to add a backend"])
def test_at_most_six_steps(title: str) -> None:
    steps = re.findall(r"^(\d+)\. ", chapter(title), re.MULTILINE)
    assert steps == [str(k + 1) for k in range(len(steps))]
    assert 1 <= len(steps) <= 6


def test_names_in_the_steps_exist() -> None:
    """What the steps tell the reader to look for is in the file they name."""
    for name, path in (
        ("CellKind", "csrc/core/arguments.h"),
        ("kCellKinds", "csrc/core/arguments.h"),
        ("kSlot", "csrc/core/cells/gru.h"),
        ("kSlot", "csrc/cpu/gradients.h"),
        ("kTwoStage", "csrc/core/cells/gru.h"),
        ("kTwoStage", "csrc/cpu/gradients.h"),
        ("call", "tests/cases.py"),
        ("formula", "tests/test_kernels.py"),
        ("FusedBackend", "fastrnn/backends/base.py"),
        ("DifferentiableBackend", "fastrnn/backends/base.py"),
        ("BACKENDS", "tests/cases.py"),
    ):
        assert f"`{name}`" in PAGE
        assert path in PAGE
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8"))


# Performance.


def test_performance_is_that_of_the_stored_results() -> None:
    for path, text in (
        (pages.README, pages.rewritten(PAGE, pages.section())),
        (pages.DETAILS, pages.details()),
    ):
        assert path.read_text(encoding="utf-8") == text, "python -m bench.pages writes both"


def test_gpu_performance_is_that_of_the_stored_results() -> None:
    section = gpu_report.section(pages.RESULTS)
    current = pages.rewritten(PAGE, section, gpu_report.BEGIN, gpu_report.END)
    assert current == PAGE, "make gpu-store brings README.md up to date"


def test_gpu_parts_are_those_there_are() -> None:
    listed = rows(chapter("On a GPU").partition("\n<!--")[0])
    assert [row[0] for row in listed] == [f"`make gpu-{name}`" for name in gpu.PARTS]
    assert [code(row[2])[0] for row in listed] == [f"gpu-{name}.json" for name in gpu.PARTS]
    makefile = (ROOT / "Makefile").read_text()
    for name in (*gpu.PARTS, "store", "rehearse"):
        assert re.search(rf"^[\w -]*\bgpu-{name}\b[\w -]*:", makefile, re.MULTILINE)


def test_chosen_cases_exist() -> None:
    assert set(pages.CHOSEN) <= {case.name for case in CASES}


def test_pages_without_results(tmp_path: Path) -> None:
    assert pages.section(tmp_path) == pages.NOTHING
    assert pages.details(tmp_path).endswith(f"\n\n{pages.NOTHING}\n")


def test_pages_of_results(tmp_path: Path) -> None:
    """As ``bench.run`` writes them: rows of ours, torch's, a wrong one, one not shown."""
    facts = {"cpu": "Some CPU", "isa": "AVX2", "threads": 1, "cores": 2, "torch": "2.13.0"}
    facts |= {"fastrnn": "0.1.0", "commit": "abc", "date": "2026-01-02T03:04:05+00:00"}
    by_name = {case.name: case for case in CASES}
    first, second, third = (by_name[name] for name in pages.CHOSEN[:3])
    (other, *_) = (case for case in CASES if case.name not in pages.CHOSEN)
    timing = Timing(1e-3, 2e-3, 2.0, 0.25, 9, 1)
    results = [
        report.Row(third, "cpu", 1.0, None, None, "output: 3 tolerances"),
        report.Row(second, "torch", 1.0, 0.5, timing),
        report.Row(first, "numba", 1.0, 0.5, timing),
        report.Row(other, "numba", 1.0, 0.5, timing),
    ]
    report.write_json(tmp_path / "1-threads.json", facts, results)
    machine = "Some CPU (AVX2), 1 threads of 2 cores, torch 2.13.0"
    overview = pages.section(tmp_path)
    assert f"\n\n{machine}" in overview
    assert rows(overview) == [["rnn_tanh", "inference", "2.00 (2.00)", "2.00 (2.00)"]]
    _, found = pages.details(tmp_path).split("\n\n## 1 thread\n\n")
    assert found.startswith(machine)
    assert "1 of them were not served by our kernels" in found
    assert "1 of them had wrong numbers" in found
    summary, chosen = (rows(text) for text in found.split("\n\n")[1:])
    content = json.loads((tmp_path / "1-threads.json").read_text())
    assert [row[:3] for row in summary] == [
        [s["cell"], s["mode"], str(s["cases"])] for s in content["summary"]
    ]
    assert all(math.isclose(float(row[3]), 2.0) for row in summary)
    assert chosen == [
        [f"`{first.name}`", "numba", "2", "1", "2.00 ± 0.25"],
        [f"`{second.name}`", "torch", "2", "1", "2.00 ± 0.25"],
        [f"`{third.name}`", "cpu", "wrong numbers: not timed", "", ""],
    ]


@pytest.mark.parametrize(
    "page",
    [
        "nothing",
        pages.BEGIN,
        f"{pages.END}\n{pages.BEGIN}",
        f"{pages.BEGIN}\n{pages.END}\n" * 2,
    ],
    ids=["none", "no end", "wrong order", "twice"],
)
def test_page_without_place(page: str) -> None:
    with pytest.raises(ValueError, match=r"README\.md: expected"):
        pages.rewritten(page, "")
