"""The benchmark: its table, its gate, its clockwork, its verdicts. Nothing is timed in earnest."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastrnn
from bench import ceilings, onnx_peer, report, run, timing
from bench.cases import ALL, CASES, INFERENCE, LENGTHS, MODES, PACKED, RAGGED, TRAINING, Case
from bench.contention import Slowdown
from bench.rows import Row, summaries
from bench.targets import TARGETS, Stored, shortfalls
from bench.timing import Timing
from bench.workload import IMPLEMENTATIONS, OURS, THEIRS, Workload, WrongNumbers
from fastrnn.cells import CELLS

SMALL = Case("lstm", TRAINING, 6, 3, 5, 7)
SMALL_CASES = (
    SMALL,
    Case("gru", INFERENCE, 1, 1, 8, 8),
    Case("gru", INFERENCE, 1, 2, 5, 8, one_step=True),
    Case("lstm", TRAINING, 1, 2, 5, 8, one_step=True),
    Case("gru", TRAINING, 6, 3, 5, 7, ragged=PACKED),
    Case("lstm", INFERENCE, 9, 4, 5, 7, layers=2, bidirectional=True, ragged=PACKED),
    Case("lstm", TRAINING, 9, 4, 5, 7, bidirectional=True, ragged=LENGTHS),
    Case("rnn_tanh", TRAINING, 6, 3, 5, 7, layers=2, bidirectional=True, dtype=torch.float64),
    Case("gru", INFERENCE, 6, 3, 5, 7, dtype=torch.bfloat16),
    Case("lstm", INFERENCE, 6, 3, 5, 7, prepacked=True),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small sizes: a second thread would only wait where other programs are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The table.


def test_table_is_well_formed() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 46  # the width of the printed column
    for case in CASES:
        assert case.mode in MODES
        assert case.cell in ALL
        assert CELLS[case.cell].torch_name
        assert min(case.steps, case.batch, case.input_size, case.hidden_size, case.layers) >= 1
        assert case.ragged in ("", *RAGGED)
        assert case.steps == 1 or not case.one_step


def test_table_covers_what_models_do() -> None:
    for cell, mode in itertools.product(ALL, MODES):
        plain = [case for case in CASES if case.cell == cell and case.group == mode]
        assert len(plain) >= 12
        assert any(case.hidden_size % 8 for case in plain)
        assert any(case.layers == 3 for case in plain)
        assert any(case.bidirectional for case in plain)
        assert any(case.input_size != case.hidden_size for case in plain)
        ragged = {case.ragged for case in CASES if case.cell == cell and case.mode == mode}
        assert ragged == {"", *RAGGED}
    for cell, size, one_step in itertools.product(ALL, (64, 200, 512), (False, True)):
        assert Case(cell, INFERENCE, 1, 1, size, size, one_step=one_step) in CASES


def test_every_group_has_a_target() -> None:
    assert {(case.cell, case.group) for case in CASES} <= set(TARGETS)


# The gate.


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_gate_passes_right_numbers(case: Case) -> None:
    work = Workload(case)
    assert 0 <= work.check() <= 1
    assert work.backend() in fastrnn.backends.backends()
    assert 0 < work.filled <= 1
    with torch.inference_mode(case.mode == INFERENCE):
        ours, theirs = (work.call(implementation)() for implementation in IMPLEMENTATIONS)
    assert type(ours) is type(theirs)


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("roundings", [1e4, math.nan])
def test_gate_refuses_wrong_numbers(case: Case, roundings: float) -> None:
    work, error = Workload(case), roundings * torch.finfo(case.dtype).eps
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
    chosen = ["--filter", "gru-training-T20-B128-I40-H40", "--output", str(path)]
    assert run.main(chosen) == 1
    printed = capsys.readouterr()
    assert "NOT TIMED: output: off by 7" in printed.out
    assert "FAILED: gru-training-T20-B128-I40-H40" in printed.err
    assert json.loads(path.read_text())["cases"][0]["timing"] is None


# Counting.


def test_operations_and_bytes_of_a_call() -> None:
    inference = Workload(Case("gru", INFERENCE, 7, 1, 5, 8, layers=2, bidirectional=True))
    first, second = 24 * 5, 24 * 16  # elements of the weights of the input, one direction
    recurrent = 24 * 8
    assert inference.flops == 2 * 7 * 2 * (first + second + 2 * recurrent)
    assert inference.bytes_read == 4 * 2 * (first + second + 7 * 2 * recurrent)
    assert inference.bytes_resident == 4 * 2 * recurrent
    training = Workload(Case("gru", TRAINING, 7, 1, 5, 8, layers=2, bidirectional=True))
    assert training.flops == 3 * inference.flops
    assert training.bytes_read == 2 * inference.bytes_read
    step = Workload(Case("lstm", INFERENCE, 1, 1, 8, 8, one_step=True))
    assert step.bytes_resident == step.bytes_read == 4 * 2 * 32 * 8


def test_operations_count_what_is_filled() -> None:
    padded, packed = (
        Workload(Case("gru", INFERENCE, 12, 4, 5, 8, ragged=ragged)) for ragged in ("", PACKED)
    )
    assert packed.flops == pytest.approx(padded.flops * packed.filled)
    assert 0.5 <= packed.filled < 1


def test_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SECONDS", 0.01)
    monkeypatch.setattr(ceilings, "ORDER", 64)
    monkeypatch.setattr(ceilings, "_gemm_rates", {})
    monkeypatch.setattr(ceilings, "_read_rates", {})
    rate = ceilings.gemm_rate(torch.float32, 1)
    assert rate == ceilings.gemm_rate(torch.float32, 1) > 0
    read = ceilings.read_rate(60_000, 2)
    assert read == ceilings.read_rate(70_000, 2) > 0
    assert ceilings.measured(1) == {"gemm": {"float32": rate / 1e9}, "read": {}}
    assert ceilings.measured(2) == {"gemm": {}, "read": {"64": read / 1e9}}
    assert "(float32)" in report.ceilings_lines(ceilings.measured(1))


def test_reading_reads_again_each_time() -> None:
    """A compiler that read but once would promise any rate."""
    values = ceilings._aligned(1 << 18)
    assert values.ctypes.data % 64 == 0
    reader = ceilings._reader()

    def shortest(repeats: int) -> float:
        return min(timing.sample(lambda: reader(values, repeats), 1) for _ in range(5))

    assert shortest(100) > 10 * shortest(1)


# Timing.


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

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


def test_calls_alternate_and_the_ratio_is_theirs_by_ours(clock: Clock) -> None:
    result = timing.compare(clock.call("a", 0.25), clock.call("b", 0.75), seconds=10)
    assert (result.ours, result.theirs, result.ratio) == (0.25, 0.75, 3.0)
    assert result.calls_per_sample == 1
    assert result.pairs == 10
    assert "".join(clock.log[-2 * result.pairs :]).startswith("abbaabba")


def test_short_calls_are_repeated(clock: Clock) -> None:
    result = timing.compare(clock.call("a", 2**-12), clock.call("b", 2**-11), seconds=1)
    assert result.calls_per_sample == 4
    assert result.ratio == 2.0
    assert result.pairs <= timing.MAX_PAIRS


def test_samples_may_be_longer(clock: Clock) -> None:
    a, b = clock.call("a", 2**-12), clock.call("b", 2**-11)
    assert timing.compare(a, b, seconds=1, sample_seconds=2**-7).calls_per_sample == 32


def test_one_slow_moment_changes_nothing(clock: Clock) -> None:
    slow = [0.5] * 9 + [64.0]
    result = timing.compare(clock.call("a", *slow), clock.call("b", 1.0), seconds=200)
    assert (result.ours, result.ratio) == (0.5, 2.0)


def test_long_calls_get_a_few_pairs_all_the_same(clock: Clock) -> None:
    assert timing.compare(clock.call("a", 8.0), clock.call("b", 8.0), 0.5).pairs == timing.MIN_PAIRS


def test_blocks_alternate(clock: Clock) -> None:
    def block(seconds: float) -> float:
        clock.log.append("b")
        clock.sleep(seconds)
        return 0.75

    result = timing.compare_with_block(clock.call("a", 0.25), block, seconds=12)
    assert (result.ours, result.theirs, result.ratio) == (0.25, 0.75, 3.0)
    assert result.pairs == timing.BLOCKS
    order = "".join(name for name, _ in itertools.groupby(clock.log))
    assert order == "ababab" + "a"  # each block of one is between two halves of the other


def test_settling_waits_for_threads_that_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    used = itertools.chain([0.0, 0.002, 0.002, 0.004, 0.004], itertools.repeat(0.004))
    naps: list[float] = []
    monkeypatch.setattr(time, "process_time", lambda: next(used))
    monkeypatch.setattr(time, "sleep", naps.append)
    timing.settle()
    assert len(naps) == 3


# Verdicts.


def row(cell: str, ratio: float, backend: str = "numba", mode: str = INFERENCE, **more: Any) -> Row:
    case = Case(cell, mode, 1, 1, 8, int(ratio * 100), **more.pop("case", {}))
    return Row(case, backend, 1e6, 0.1, timing_of(ratio), **more)


def timing_of(ratio: float) -> Timing:
    return Timing(1e-3, ratio * 1e-3, ratio, 0.0, 9, 1)


def test_summary_has_geometric_mean_and_minimum_of_what_our_kernels_served() -> None:
    rows = [row("gru", 2.0), row("gru", 8.0), row("gru", 100.0, "torch"), row("lstm", 3.0)]
    gru, lstm = summaries(rows)
    assert (gru.cell, gru.cases, gru.minimum) == ("gru", 2, 2.0)
    assert gru.geometric_mean == pytest.approx(4.0)
    assert gru.slowest == rows[0].case.name
    assert (lstm.cell, lstm.geometric_mean) == ("lstm", pytest.approx(3.0))
    assert "1 cases were not served by our kernels" in report.summary_table(rows)


def test_the_fastest_of_the_others_counts() -> None:
    beaten = row("gru", 2.0, onnx=timing_of(4.0))
    ahead = row("gru", 3.0, onnx=timing_of(0.5))
    assert (beaten.peer, ahead.peer) == (THEIRS, onnx_peer.NAME)
    (summary,) = summaries([beaten, ahead])
    assert summary.geometric_mean == pytest.approx(1.0)
    assert "BELOW" in report.summary_table([beaten, ahead])
    assert "  0.50 " in report.line(ahead)


def test_groups_are_summed_up_apart() -> None:
    rows = [row("gru", 2.0), row("gru", 8.0, case={"ragged": PACKED})]
    assert [summary.mode for summary in summaries(rows)] == [INFERENCE, "inference packed"]


def slowdown(busy: int, mean: float, implementation: str = OURS) -> Slowdown:
    return Slowdown("gru-training", implementation, busy, 1e-3, mean, 2 * mean, 9)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([row("lstm", 0.85)], "0.85 times as fast as torch.nn, wanted 1.0"),
        ([row("lstm", 9.0, onnx=timing_of(0.9))], "0.90 times as fast as ONNX Runtime"),
        ([row("gru", 1.4), row("gru", 1.45)], "gru inference: geometric mean 1.42, wanted 1.5"),
        ([row("gru", 3.1, mode=TRAINING)], "gru training: geometric mean 3.10, wanted 3.2"),
        ([row("lstm", 2.5, case={"ragged": PACKED})], "2.50 times as fast as torch.nn, wanted 3.0"),
        ([row("lstm", 9.0, padded=1.2)], "1.20 of the padded time's filled part"),
        ([row("lstm", 9.0, "torch")], "served by 'torch'"),
        ([row("lstm", 9.0, "reference")], "served by 'reference'"),
        ([row("lstm", 9.0, read=0.5)], "50% of the reading rate, wanted 60%"),
    ],
)
def test_check_fails_for(rows: list[Row], sentence: str) -> None:
    assert any(sentence in found for found in shortfalls(rows))


def test_check_wants_the_rate_of_products_of_large_batches() -> None:
    few, many = (
        Row(Case("gru", INFERENCE, 9, batch, 8, 8), "numba", 1e6, 0.1, timing_of(2.0), gemm=0.8)
        for batch in (31, 32)
    )
    assert shortfalls([few]) == []
    assert shortfalls([many]) == [f"{many.case.name}: 80% of the products' rate, wanted 85%"]


def test_check_of_slowdowns() -> None:
    fine = [slowdown(1, 2.5), slowdown(3, 4.9), slowdown(3, 100.0, THEIRS)]
    assert shortfalls([], fine) == []
    (found,) = shortfalls([], [*fine, slowdown(3, 5.1)])
    assert "5.1 times slower beside 3 busy processes, wanted 5.0 at most" in found
    assert "1 busy: at most 2.50x" in report.worst_slowdowns(fine)


def test_check_passes() -> None:
    rows = [row("lstm", 1.6), row("gru", 1.7), row("rnn_tanh", 2.6, mode=TRAINING)]
    assert shortfalls(rows) == []
    assert "BELOW" not in report.summary_table(rows)


# Regressions.

FACTS = {"cpu": "Some CPU", "isa": "AVX2", "cores": 2, "threads": 1, "system": "Linux x86_64"}
FACTS |= {"torch": "2.13.0", "fastrnn": "0.1.0", "commit": "abc", "load": 0.0}
FACTS |= {"onnxruntime": "", "date": "2026-01-02T03:04:05+00:00"}


def test_regression_is_what_exceeds_the_noise() -> None:
    case = Case("gru", INFERENCE, 9, 1, 8, 8)

    def of(ratio: float, backend: str = "numba") -> Row:
        return Row(case, backend, 1e6, 0.1, timing_of(ratio))

    content = report.content(FACTS, [of(2.0)])
    stored = Stored(content, FACTS)
    assert stored
    assert stored.regression(of(1.71)) == ""
    assert stored.regression(of(1.69)) == f"{case.name}: 1.69 times as fast as torch.nn, was 2.00"
    assert "served by 'torch', was by 'numba'" in stored.regression(of(2.0, "torch"))
    assert stored.regression(row("lstm", 0.1)) == ""  # not among the stored cases
    for nothing in (
        Stored(None, FACTS),
        Stored(content, FACTS | {"cpu": "Another CPU"}),
        Stored(content, FACTS | {"threads": 2}),
        Stored(report.content(FACTS, [of(2.0, "torch")]), FACTS),
    ):
        assert not nothing
        assert nothing.regression(of(0.1)) == ""


NAME = "gru-training-T20-B128-I40-H40"


@pytest.fixture
def one_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """A benchmark of one case, its ratio 1 at first; returns the seconds that were asked for."""
    (case,) = (case for case in CASES if case.name == NAME)
    asked: list[float] = []

    def measure(case: Case, seconds: float, peer: object) -> Row:
        asked.append(seconds)
        return Row(case, "numba", 1e6, 0.1, timing_of(1.0))

    monkeypatch.setattr(run, "CASES", (case,))
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(run.machine, "facts", lambda: FACTS)
    monkeypatch.setattr(run.contention, "measure", lambda seconds: iter([slowdown(1, 2.0)]))
    monkeypatch.setattr(run.contention, "possible", lambda: True)
    return asked


def test_whole_run_is_stored(one_case: list[float], tmp_path: Path) -> None:
    assert run.main([]) == 0
    content = json.loads((tmp_path / "1-threads.json").read_text())
    assert [case["name"] for case in content["cases"]] == [NAME]
    assert content["contention"][0]["mean"] == 2.0
    assert (tmp_path / "1-threads.png").read_bytes().startswith(b"\x89PNG")


def test_regression_fails_and_keeps_what_is_stored(
    one_case: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (case,) = run.CASES
    path = tmp_path / "1-threads.json"
    report.write_json(path, FACTS, [Row(case, "numba", 1e6, 0.1, timing_of(2.0))])
    before = path.read_text()
    assert run.main([]) == 1
    printed = capsys.readouterr()
    assert f"FAILED: regression: {NAME}: 1.00 times as fast as torch.nn, was 2.00" in printed.err
    assert "keeps what it has" in printed.out
    assert path.read_text() == before
    assert one_case == [run.SECONDS, run.AGAIN * run.SECONDS]  # measured again, for longer
    assert run.main(["--accept"]) == 0
    assert path.read_text() != before
    assert run.main([]) == 0


def test_check_fails_a_run(one_case: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--check"]) == 1
    assert "FAILED: gru training: geometric mean 1.00, wanted 3.2" in capsys.readouterr().err
    assert one_case == [run.SECONDS]  # its own minimum is 1.0


# Whole runs.


def test_run_of_a_part_writes_json_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "QUICK_SECONDS", 0.01)
    monkeypatch.setattr(ceilings, "SECONDS", 0.01)
    monkeypatch.setattr(onnx_peer, "NEEDED", ("no_such_module",))
    path = tmp_path / "results" / "result.json"
    options = ["--quick", "--threads", "1", "--filter", "T1-B1-I64-H64", "--output", str(path)]
    before = torch.get_num_threads()
    assert run.main(options) == 0
    assert torch.get_num_threads() == before
    content = json.loads(path.read_text())
    assert [case["cell"] for case in content["cases"]] == list(ALL) * 2
    assert content["machine"]["threads"] == 1
    assert content["machine"]["onnxruntime"] == ""
    assert content["ceilings"]["gemm"]["float32"] > 0
    for fact in ("cpu", "cores", "isa", "torch", "fastrnn", "date"):
        assert content["machine"][fact]
    printed = capsys.readouterr().out
    assert "compared with torch.nn only: no module no_such_module" in printed
    for case in content["cases"]:
        assert case["timing"]["ratio"] == case["ratio"] > 0
        assert case["error_in_tolerances"] <= 1
        assert case["gemm_fraction"] > 0
        assert case["read_fraction"] > 0
        assert case["name"] in printed
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_ragged_row_knows_its_padded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SECONDS", 0.01)
    found = iter([timing_of(4.0), timing_of(2.0)])  # beside torch.nn; the padded call beside ours
    monkeypatch.setattr(run, "compare", lambda ours, theirs, seconds: next(found))
    case = Case("gru", INFERENCE, 12, 4, 5, 8, ragged=LENGTHS)
    measured = run.measure(case, 1.0)
    assert measured.timing == timing_of(4.0)
    assert measured.padded == pytest.approx(0.5 / Workload(case).filled)


def test_nothing_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--filter", "no such case"]) == 2
    assert "no case" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list", "--cells", "gru", "--modes", INFERENCE]) == 0
    listed = capsys.readouterr().out.split()
    assert listed == [c.name for c in CASES if c.cell == "gru" and c.mode == INFERENCE]
