"""The benchmark: its table, its gate, its clockwork, its verdicts. Nothing is timed in earnest."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path

import pytest
import torch

import fastrnn
from bench import report, run, timing
from bench.cases import ALL, CASES, INFERENCE, MODES, TRAINING, Case
from bench.timing import Timing
from bench.workload import OURS, THEIRS, Workload, WrongNumbers
from fastrnn.cells import CELLS

SMALL = Case("lstm", TRAINING, 6, 3, 5, 7)
SMALL_CASES = (
    SMALL,
    Case("gru", INFERENCE, 1, 1, 8, 8),
    Case("gru", TRAINING, 6, 3, 5, 7, packed=True),
    Case("lstm", INFERENCE, 9, 4, 5, 7, layers=2, bidirectional=True, packed=True),
    Case("rnn_tanh", TRAINING, 6, 3, 5, 7, layers=2, bidirectional=True, dtype=torch.float64),
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small sizes: a second thread would only wait where other programs are busy."""
    torch.set_num_threads(1)


def test_table_is_well_formed() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 48  # the width of the printed column
    for case in CASES:
        assert case.mode in MODES
        assert case.cell in ALL
        assert CELLS[case.cell].torch_name
        assert min(case.steps, case.batch, case.input_size, case.hidden_size, case.layers) >= 1
        assert case.dtype in (torch.float32, torch.float64)


def test_table_covers_what_models_do() -> None:
    for cell, mode in itertools.product(ALL, MODES):
        assert any(case.cell == cell and case.mode == mode for case in CASES)
    for cell in ALL:
        assert any(case.cell == cell and case.steps == case.batch == 1 for case in CASES)
        assert any(case.cell == cell and case.hidden_size % 8 for case in CASES)
    for option in ("packed", "bidirectional"):
        assert {case.mode for case in CASES if getattr(case, option)} == set(MODES)


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_gate_passes_right_numbers(case: Case) -> None:
    work = Workload(case)
    assert 0 <= work.check() <= 1
    assert work.backend() in fastrnn.backends.backends()
    assert work.flops > 0
    with torch.inference_mode(case.mode == INFERENCE):
        for implementation in (OURS, THEIRS):
            result = work.call(implementation)()
            assert isinstance(result, tuple)


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("error", [1e-3, math.nan])
def test_gate_refuses_wrong_numbers(case: Case, error: float) -> None:
    work = Workload(case)
    with torch.no_grad():
        next(work.modules[OURS].parameters()).view(-1)[0] += error
    with pytest.raises(WrongNumbers, match="times the tolerance"):
        work.check()


def test_gate_sees_a_wrong_gradient_behind_right_outputs() -> None:
    work = Workload(SMALL)
    work.modules[OURS].register_forward_hook(
        lambda module, inputs, result: (result[0].detach() + 0 * result[0], result[1])
    )
    with pytest.raises(WrongNumbers, match=r"^grad_"):
        work.check()


def test_wrong_numbers_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Workload) -> float:
        raise WrongNumbers("output: off by 7 times the tolerance")

    def time_nothing(*arguments: object) -> Timing:
        raise AssertionError("timed although the numbers are wrong")

    monkeypatch.setattr(Workload, "check", refuse)
    monkeypatch.setattr(run, "compare", time_nothing)
    path = tmp_path / "result.json"
    assert run.main(["--filter", "gru-inference-T1-B1-I64-H64", "--output", str(path)]) == 1
    printed = capsys.readouterr()
    assert "NOT TIMED: output: off by 7" in printed.out
    assert "FAILED: gru-inference-T1-B1-I64-H64" in printed.err
    assert json.loads(path.read_text())["cases"][0]["timing"] is None


class Clock:
    """Time that passes only while a timed call runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def call(self, name: str, *seconds: float) -> timing.Call:
        durations = itertools.cycle(seconds)

        def run() -> None:
            self.log.append(name)
            self.now += next(durations)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_calls_alternate_and_the_ratio_is_theirs_by_ours(clock: Clock) -> None:
    result = timing.compare(clock.call("a", 0.25), clock.call("b", 0.75), seconds=10)
    assert (result.ours, result.theirs, result.ratio) == (0.25, 0.75, 3.0)
    assert result.calls_per_sample == 1
    assert result.pairs == 10
    assert "".join(clock.log[-2 * result.pairs :]).startswith("abbaabba")


def test_short_calls_are_repeated_within_a_sample(clock: Clock) -> None:
    result = timing.compare(clock.call("a", 2.0**-16), clock.call("b", 2.0**-16), seconds=1)
    assert result.calls_per_sample == round(timing.SAMPLE_SECONDS * 2**16)
    assert result.ratio == 1
    assert result.pairs <= timing.MAX_PAIRS


def test_one_slow_moment_changes_nothing(clock: Clock) -> None:
    slow = [0.5] * 9 + [64.0]
    result = timing.compare(clock.call("a", *slow), clock.call("b", 1.0), seconds=200)
    assert (result.ours, result.ratio) == (0.5, 2.0)


def test_long_calls_get_a_few_pairs_all_the_same(clock: Clock) -> None:
    assert timing.compare(clock.call("a", 8.0), clock.call("b", 8.0), 0.5).pairs == timing.MIN_PAIRS


def row(cell: str, ratio: float, backend: str = "numba", mode: str = INFERENCE) -> report.Row:
    case = Case(cell, mode, 1, 1, 8, int(ratio * 100))
    return report.Row(case, backend, 1e6, 0.1, Timing(1e-3, ratio * 1e-3, ratio, 0.0, 9, 1))


def test_summary_has_geometric_mean_and_minimum_of_what_our_kernels_served() -> None:
    rows = [row("gru", 2.0), row("gru", 8.0), row("gru", 100.0, "torch"), row("lstm", 3.0)]
    gru, lstm = report.summaries(rows)
    assert (gru.cell, gru.cases, gru.minimum) == ("gru", 2, 2.0)
    assert gru.geometric_mean == pytest.approx(4.0)
    assert gru.slowest == rows[0].case.name
    assert (lstm.cell, lstm.geometric_mean) == ("lstm", pytest.approx(3.0))
    assert "1 cases were not served by our kernels" in report.summary_table(rows)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([row("lstm", 0.85)], "1.18 times torch.nn's time"),
        ([row("gru", 0.95), row("gru", 1.01)], "gru: not ahead"),
        ([row("rnn_tanh", 0.95)], "rnn_tanh: not ahead"),
        ([row("lstm", 1.5, "torch")], "served by 'torch'"),
        ([row("lstm", 1.5, "reference")], "served by 'reference'"),
    ],
)
def test_check_fails_for(rows: list[report.Row], sentence: str) -> None:
    assert any(sentence in found for found in report.shortfalls(rows))


def test_check_passes() -> None:
    assert not report.shortfalls([row("lstm", 0.95), row("gru", 1.1), row("rnn_tanh", 1.2)])


def test_a_row_that_seems_slow_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compare(ours: timing.Call, theirs: timing.Call, seconds: float) -> Timing:
        asked.append(seconds)
        return Timing(1.0, 0.5, 0.5, 0.0, 5, 1)

    monkeypatch.setattr(run, "compare", compare)
    assert run.measure(SMALL, 1.0, again=True).slow
    assert asked == [1.0, 3.0]


def test_whole_run_writes_json_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "QUICK_SECONDS", 0.01)
    path = tmp_path / "results" / "result.json"
    options = ["--quick", "--threads", "1", "--filter", "T1-B1-I64-H64", "--output", str(path)]
    before = torch.get_num_threads()
    assert run.main(options) == 0
    assert torch.get_num_threads() == before
    content = json.loads(path.read_text())
    assert [case["cell"] for case in content["cases"]] == list(ALL)
    assert content["machine"]["threads"] == 1
    for fact in ("cpu", "cores", "isa", "torch", "fastrnn", "date"):
        assert content["machine"][fact]
    printed = capsys.readouterr().out
    for case in content["cases"]:
        assert case["timing"]["ratio"] > 0
        assert case["error_in_tolerances"] <= 1
        assert case["name"] in printed
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_nothing_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--filter", "no such case"]) == 2
    assert "no case" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list", "--cells", "gru", "--modes", INFERENCE]) == 0
    listed = capsys.readouterr().out.split()
    assert listed == [c.name for c in CASES if c.cell == "gru" and c.mode == INFERENCE]
