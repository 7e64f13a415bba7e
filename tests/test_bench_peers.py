"""The benchmark's other processes, ONNX Runtime and busy ones, and what the page shows of them."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import contention, onnx_peer, pages, plots, report
from bench.cases import CASES, INFERENCE, PACKED, TRAINING, Case
from bench.contention import Slowdown
from bench.onnx_peer import OnnxPeer
from bench.rows import Row
from bench.timing import Timing, compare_with_block
from bench.workload import IMPLEMENTATIONS, OURS, THEIRS, Workload, WrongNumbers

MODELS = (
    Case("rnn_tanh", INFERENCE, 6, 3, 5, 7),
    Case("gru", INFERENCE, 6, 3, 5, 7, bidirectional=True),
    Case("lstm", INFERENCE, 6, 3, 5, 7),
    Case("lstm", INFERENCE, 6, 3, 5, 7, layers=3, bidirectional=True),
    Case("gru", INFERENCE, 6, 3, 5, 7, layers=2),
    Case("rnn_tanh", INFERENCE, 1, 2, 5, 7, one_step=True),
    Case("gru", INFERENCE, 1, 2, 5, 7, one_step=True),
    Case("lstm", INFERENCE, 1, 2, 5, 7, one_step=True),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ONNX Runtime.


@pytest.fixture(scope="module")
def peer() -> Iterator[OnnxPeer]:
    for name in onnx_peer.NEEDED:
        pytest.importorskip(name)
    with OnnxPeer(threads=2) as started:
        yield started


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_model_computes_the_same(peer: OnnxPeer, case: Case) -> None:
    assert onnx_peer.computes(case)
    assert peer.load(Workload(case)) <= 1
    assert "run" in peer.chosen or "io_binding" in peer.chosen


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_another_model_is_refused(peer: OnnxPeer, case: Case) -> None:
    """Each weight and bias counts: the oracle has one of them changed, the model has not."""
    work = Workload(case)
    got = peer.outputs(work)
    work.check_outputs(got)
    for parameter in work.modules[THEIRS].parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter += 1
        with pytest.raises(WrongNumbers):
            work.check_outputs(got)
        with torch.no_grad():
            parameter.copy_(before)


def test_blocks_are_timed(peer: OnnxPeer) -> None:
    work = Workload(MODELS[2])
    peer.load(work)
    assert 0 < peer.block(0.01) < 0.1
    with torch.inference_mode():
        timing = compare_with_block(work.call(OURS), peer.block, 0.1)
    assert timing.ratio > 0


def test_what_fails_there_is_said_here(peer: OnnxPeer) -> None:
    with pytest.raises(RuntimeError, match=r"ONNX Runtime: AttributeError: .*no_such_method"):
        peer._ask("no_such_method")
    peer.load(Workload(MODELS[0]))  # it is still there


def test_a_worker_that_is_gone() -> None:
    with OnnxPeer(threads=1) as peer:
        peer._process.kill()
        peer._process.wait()
        with pytest.raises(RuntimeError, match="the worker is gone"):
            peer.load(Workload(MODELS[0]))


def test_what_is_not_compared() -> None:
    case = MODELS[0]
    for other in (
        replace(case, mode=TRAINING),
        replace(case, dtype=torch.float64),
        replace(case, ragged=PACKED),
    ):
        assert not onnx_peer.computes(other)


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_peer, "NEEDED", ("json", "no_such_module"))
    assert onnx_peer.missing() == "no module no_such_module: pip install 'fastrnn[bench]'"
    assert onnx_peer.version() == ""


@pytest.mark.parametrize("operator", ["RNN", "GRU", "LSTM"])
def test_gates_in_the_other_order(operator: str) -> None:
    pytest.importorskip("onnx")
    from bench.onnx_model import reordered

    names = {"RNN": "h", "GRU": "rzn", "LSTM": "ifgo"}[operator]
    wanted = {"RNN": "h", "GRU": "zrn", "LSTM": "iofg"}[operator]
    number = {gate: float(k) for k, gate in enumerate(names)}
    weight = np.repeat([[number[gate]] * 3 for gate in names], 2, axis=0)
    assert reordered(weight, operator)[::2, 0].tolist() == [number[gate] for gate in wanted]


# Busy processes.

SMALL = Case("gru", INFERENCE, 5, 2, 8, 8)


@pytest.mark.skipif(not contention.possible(), reason="processes cannot be pinned here")
def test_busy_processes_are_pinned_and_end() -> None:
    first = min(os.sched_getaffinity(0))
    with contention.busy_processes(2) as processes:
        for process in processes:
            assert os.sched_getaffinity(process.pid) == {first}
            assert process.poll() is None
    assert all(process.poll() is not None for process in processes)


@pytest.mark.skipif(not contention.possible(), reason="processes cannot be pinned here")
def test_slowdowns_are_measured() -> None:
    found = list(contention.measure(0.02, (SMALL,), levels=(1,)))
    assert [slowdown.implementation for slowdown in found] == list(IMPLEMENTATIONS)
    for slowdown in found:
        assert (slowdown.case, slowdown.busy) == (SMALL.name, 1)
        assert slowdown.calls >= 1
        assert slowdown.quiet_seconds > 0
        assert slowdown.mean > 0
        assert SMALL.name in contention.line(slowdown)


def test_durations_are_of_at_least_a_few_calls() -> None:
    assert len(contention.durations(lambda: None, 0.0)) == 1  # none fits but the first
    slow = contention.durations(lambda: sum(range(20_000)), 1e-4)
    assert 1 <= len(slow) <= contention.MIN_CALLS


# What the page shows.

FACTS = {"cpu": "Some CPU", "isa": "AVX2", "threads": 1, "cores": 2, "torch": "2.13.0"}
FACTS |= {"fastrnn": "0.1.0", "commit": "abc", "date": "2026-01-02T03:04:05+00:00"}


def stored(folder: Path, version: str) -> str:
    """The page of a run with two cases, one of them slower than ONNX Runtime."""
    names = pages.CHOSEN
    cases = {case.name: case for case in CASES}
    timing = Timing(1e-3, 3e-3, 3.0, 0.25, 9, 1)
    onnx = Timing(1e-3, 5e-4, 0.5, 0.125, 6, 1)
    rows = [
        Row(cases[names[0]], "numba", 1.0, 0.5, timing, onnx=onnx if version else None),
        Row(cases[names[6]], "numba", 1.0, 0.5, timing),
    ]
    slowdowns = [
        Slowdown("call", library, busy, 1e-3, mean, mean, 9)
        for library, means in ((OURS, (1.5, 4.0)), (THEIRS, (2.0, 99.0)))
        for busy, mean in zip(contention.TARGETS, means, strict=True)
    ]
    path = folder / "1-threads.json"
    report.write_json(path, FACTS | {"onnxruntime": version}, rows, slowdowns)
    assert json.loads(path.read_text())["cases"][0]["ratio"] == (0.5 if version else 3.0)
    return pages.details(folder)


def test_page_with_onnx_runtime(tmp_path: Path) -> None:
    found = stored(tmp_path, "1.31.1")
    assert "ONNX Runtime 1.31.1, 2026-01-02" in found
    assert "| torch.nn, ms | ONNX Runtime, ms | fastrnn, ms | ratio |" in found
    assert f"| `{pages.CHOSEN[0]}` | numba | 3 | 0.5 | 1 | 0.50 ± 0.12 |" in found
    assert f"| `{pages.CHOSEN[6]}` | numba | 3 |  | 1 | 3.00 ± 0.25 |" in found
    assert "| 1 | 2.0x | 1.5x |\n| 3 | 99.0x | 4.0x |" in found


def test_page_without_onnx_runtime(tmp_path: Path) -> None:
    found = stored(tmp_path, "")
    assert "ONNX Runtime was not installed" in found
    assert "| torch.nn, ms | fastrnn, ms | ratio |" in found


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is missing")
def test_page_with_plot(tmp_path: Path) -> None:
    folder = tmp_path / "bench" / "results"
    stored(folder, "1.31.1")
    assert "![" not in pages.section(folder)
    pages.draw(folder)
    assert (folder / pages.PLOT).read_bytes().startswith(b"\x89PNG")
    assert f"(bench/results/{pages.PLOT})" in pages.section(folder)


def test_nothing_is_drawn_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw_overview", None)
    pages.draw(tmp_path)
    assert list(tmp_path.iterdir()) == []
