"""The table of GPU cases, and what is said of stored results: nothing here needs a GPU."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_emulator import runner

from bench.cases import INFERENCE, MODES, TRAINING
from bench.gpu import kernels, measure, record, report, run, store
from bench.gpu.cases import BFLOAT16, CASES, DTYPES, PARTS, STEP_GOALS, TF32, GpuCase, rehearsal
from bench.gpu.device import Device
from bench.gpu.rehearsal import Cuda
from bench.timing import Timing
from fastrnn import backends
from fastrnn.backends.cuda import FREE, CudaBackend
from fastrnn.cells import CELLS

# The table.


def test_table_is_well_formed() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 58  # the width of the printed column
    for case in CASES:
        assert CELLS[case.cell].torch_name
        assert case.dtype_name in DTYPES
        assert case.mode in MODES
        assert case.tf32 == (case.dtype_name == TF32)
    assert set(STEP_GOALS) <= set(names)
    small = rehearsal()
    assert len({case.name for case in small}) == len(small)
    assert {case.part for case in small} > {"gru", "regimes", "ragged", "headline"}


def test_cases_with_goals_come_first() -> None:
    """Time may be over before the last: nothing is lost with it that a goal depends on."""
    first = ("headline", "gru", "lstm", "rnn", "odd", "ragged", "stacked", "host", "strict")
    assert PARTS[: len(first)] == first
    assert PARTS[-1] == "regimes"
    forced = [bool(case.regime) for case in CASES]
    assert forced == sorted(forced)
    ambitious = [place for place, case in enumerate(CASES) if case.goal > 1 and not case.regime]
    wanted = {"batch", "large", "small"}  # which are to be no slower
    assert max(ambitious) < min(n for n, case in enumerate(CASES) if case.part in wanted)


def test_table_has_what_was_asked_for() -> None:
    def some(**wanted: Any) -> bool:
        return any(
            all(getattr(case, name) == value for name, value in wanted.items()) and not case.regime
            for case in CASES
        )

    for cell, dtype, hidden, mode in itertools.product(
        ("gru", "lstm", "rnn_tanh"), ("float16", BFLOAT16, TF32), (256, 512, 768, 1024), MODES
    ):
        assert some(cell=cell, dtype_name=dtype, hidden_size=hidden, mode=mode)
    for batch in (1, 4, 8, 16, 20, 32, 64, 512, 2048):
        assert some(batch=batch)
    for cell in ("gru", "lstm"):
        assert some(cell=cell, layers=2, bidirectional=True, hidden_size=512)
        assert some(cell=cell, steps=1024)
        assert some(cell=cell, dtype_name="float32")
        for ragged in ("packed", "lengths"):
            assert some(cell=cell, ragged=ragged, steps=200)
        for hidden in (200, 300, 650):
            assert some(cell=cell, hidden_size=hidden)
    assert some(hidden_size=64, batch=1, steps=16)
    regimes = {"stepwise", "processor", "cluster-16", "grid-8", "grid-1-1-32", "tiled-1", "tiled-8"}
    assert {case.regime for case in CASES} >= regimes


@pytest.mark.parametrize(
    ("case", "goal"),
    [
        (GpuCase("gru", INFERENCE, 100, 32, 512, 512, dtype=torch.float16), 2.5),
        (GpuCase("gru", TRAINING, 100, 32, 512, 512, tf32=True), 2.0),
        (GpuCase("lstm", INFERENCE, 100, 32, 512, 512, dtype=torch.bfloat16), 2.0),
        (GpuCase("lstm", TRAINING, 100, 32, 512, 512, tf32=True), 1.8),
        (GpuCase("lstm", INFERENCE, 100, 32, 512, 512, dtype=torch.float16), 1.0),
        (GpuCase("lstm", TRAINING, 100, 32, 512, 512), 1.0),
        (GpuCase("gru", TRAINING, 50, 512, 512, 512, dtype=torch.bfloat16), 1.0),
        (GpuCase("lstm", INFERENCE, 200, 32, 256, 256, ragged="packed"), 5.0),
        (GpuCase("lstm", INFERENCE, 100, 20, 300, 300, part="odd"), 2.0),
    ],
)
def test_goals(case: GpuCase, goal: float) -> None:
    assert case.goal == goal


def test_parts_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "listed", lambda: CASES)
    assert measure.chosen([]) == list(CASES)
    assert {case.part for case in measure.chosen(["gru", "odd"])} == {"gru", "odd"}
    assert all("H650" in case.name for case in measure.chosen(["H650"]))
    assert measure.chosen(["H650"])


# The profiler.


def test_kernels_of_a_trace() -> None:
    ours = (
        "void fastrnn::cuda::run_sequence<fastrnn::cuda::BackwardPass<fastrnn::cuda::Gru, "
        "fastrnn::cuda::MatrixMath<fastrnn::cuda::Half>, false>, fastrnn::cuda::TileShape<X, 2>, "
        "fastrnn::cuda::ClusterExchange>(Args)"
    )
    details = {"grid": [8, 2, 1], "block": [256, 1, 1], "registers per thread": 128}
    trace = {
        "traceEvents": [
            {"cat": "kernel", "name": ours, "dur": 5, "args": details},
            {"cat": "kernel", "name": "cudnn::gemm", "dur": 2},
            {"cat": "kernel", "name": "cudnn::gemm", "dur": 7},
            {"cat": "cpu_op", "name": "aten::mm", "dur": 99},
        ]
    }
    first, second = kernels.of_trace(trace)
    assert (first["name"], first["count"], first["microseconds"]) == ("cudnn::gemm", 2, 9)
    assert (second["role"], second["grid"]) == ("backward through ClusterExchange", [8, 2, 1])
    assert first["role"] == ""


def test_names_of_kernels() -> None:
    """As the profiler has them, shortened for a table."""
    tiled = (
        "void fastrnn::cuda::run_tiled<fastrnn::cuda::ForwardPass<fastrnn::cuda::Lstm, "
        "fastrnn::cuda::Tf32Math, false> >(fastrnn::cuda::ForwardPass<fastrnn::cuda::Lstm, "
        "fastrnn::cuda::Tf32Math, false>::Args)"
    )
    assert kernels.role(tiled) == "forward in large tiles"
    names = {
        tiled: "run_tiled",
        "void RNN_blockPersist_fp_LSTM<__half, float, 512>(cudnn::Params)": (
            "RNN_blockPersist_fp_LSTM"
        ),
        "void cudnn::rnn::elemWise<float>(int)": "elemWise",
        "void (anonymous namespace)::at::copy<int>(int)": "copy",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16>(Params)": (
            "cutlass_80_tensorop_bf16_s16816gemm_bf16"
        ),
        "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n": "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n",
        "<unknown>": "<unknown>",
    }
    for name, short in names.items():
        assert kernels.shortened(name) == short


# What is said.

MACHINE = {
    "gpu": "Some GPU",
    "processors": 132,
    "driver": "580.1",
    "cuda": "13.0",
    "cudnn": 91300,
    "torch": "2.11.0",
    "fastrnn": "0.1.0",
    "commit": "abc",
    "date": "2026-01-02T03:04:05+00:00",
    "tf32": {"cudnn": "tf32", "matmul": "none"},
    "rehearsed": False,
}


def row(case: GpuCase, ratio: float) -> dict[str, Any]:
    timing = asdict(Timing(1e-3, ratio * 1e-3, ratio, 0.25, 9, 1))
    relative = {"output": 1e-3, "h_n": 1e-3, "c_n": 2e-3}
    return {
        **asdict(case),
        "name": case.name,
        "dtype": case.dtype_name,
        "goal": case.goal,
        "ours": True,
        "wrong": "",
        "timing": timing,
        "step": 1e-6,
        "step_theirs": ratio * 1e-6,
        "host": 2e-5,
        "host_theirs": 1e-5,
        "floor": {"least": 5e-4},
        "waits": "assumed by the planner",
        "error": {"relative": relative},
        "error_theirs": {"relative": {name: 2 * value for name, value in relative.items()}},
    }


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A folder as the parts of ``make gpu`` leave it."""
    by_name = {case.name: case for case in CASES}
    lstm, gru = (
        by_name[f"{cell}-inference-T1024-B16-I768-H768-bfloat16"] for cell in ("lstm", "gru")
    )
    rows = [
        row(lstm, 1.5) | {"kernels_theirs": [{"name": "void cudnn::persist<float>(int)"}]},
        row(gru, 4.0),
        {"name": "x", "part": "gru", "timing": None, "wrong": "!"},
    ]
    parts = {
        "bench": {"cases": rows, "missed": run.missed(rows), "complete": True},
        "test": {"counts": {"passed": 7, "failed": 1}, "complete": True},
        "sanitize": {"checks": [{"status": "ok"}, {"status": "hung"}]},
    }
    for name, content in parts.items():
        text = json.dumps({"machine": MACHINE, **content})
        (tmp_path / f"gpu-{name}.json").write_text(text)
    return tmp_path


def test_goals_that_are_missed() -> None:
    by_name = {case.name: case for case in CASES}
    lstm = row(by_name["lstm-inference-T1024-B16-I768-H768-bfloat16"], 1.5) | {"step": 2e-6}
    host = row(by_name["gru-inference-T16-B1-I64-H64-bfloat16"], 4.0)
    ragged = row(by_name["gru-inference-T200-B32-I256-H256-packed-bfloat16"], 6.0)
    assert run.missed([ragged | {"padded": 1.1}]) == []
    assert run.missed([lstm, host, ragged | {"padded": 1.3}]) == [
        f"{lstm['name']}: 1.50 times as fast, wanted 2.0",
        f"{lstm['name']}: 2.00 us per step, wanted 1.9",
        f"{host['name']}: 20.0 us of the host per call, torch.nn 10.0",
        f"{ragged['name']}: 1.30 times the padded batch's time by filled step, wanted 1.2",
    ]
    assert run.missed([row(by_name[lstm["name"]], 2.5)]) == []


def test_nothing_is_said_of_no_results(tmp_path: Path) -> None:
    assert report.section(tmp_path) == report.NOTHING
    assert store.merged([tmp_path]) == {}


def test_section(stored: Path) -> None:
    content = store.merged([stored])
    (stored / store.NAME).write_text(json.dumps(content))
    found = report.section(stored)
    said, precision, summary, cases, errors = found.split("\n\n")
    assert said.startswith("Some GPU (132 multiprocessors), driver 580.1, CUDA 13.0, cuDNN 91300")
    assert "Tests: 1 failed, 7 passed." in said
    assert "compute-sanitizer: 1 of 2 checks without error." in said
    assert "3 cases, 1 goals missed; 1 were not timed" in said
    assert "flags were `tf32` for cuDNN, `none` for products." in precision
    assert "steps that wait for each other, as assumed by the planner." in precision
    lstm = "lstm-inference-T1024-B16-I768-H768-bfloat16"
    assert f"| lstm | bfloat16 | inference | 1 | 1.50 | 1.50 | `{lstm}` |" in summary
    assert f"| `{lstm}` | 1.50 | 1.00 | 1.50 ± 0.25 | 2.0 | 10 | 20 | `persist` |" in cases
    assert "| 4.00 ± 0.25 | 2.0 | 10 | 20 |  |" in cases  # whose kernels nobody has noted
    assert f"| `{lstm}` | 0.002 | 0.001 | 0.004 | 0.002 |" in errors


def test_plot(stored: Path) -> None:
    pytest.importorskip("matplotlib")
    report.draw(stored / report.PLOT, store.merged([stored]))
    assert (stored / report.PLOT).stat().st_size > 1000
    (stored / store.NAME).write_text(json.dumps(store.merged([stored])))
    assert f"{stored.name}/{report.PLOT})" in report.section(stored)


def test_cases_of_several_runs_add_up(stored: Path, tmp_path: Path) -> None:
    """Of one machine and commit; those of another begin anew."""
    later = tmp_path / "later"
    later.mkdir()
    name = "gru-inference-T1024-B16-I768-H768-bfloat16"
    again = row(next(case for case in CASES if case.name == name), 2.0)
    content = {"machine": MACHINE, "cases": [again], "missed": run.missed([again])}
    content["complete"] = True
    (later / "gpu-bench.json").write_text(json.dumps(content))
    found = store.merged([stored, later])
    assert [case["name"] for case in found["bench"]["cases"]].count(name) == 1
    ratios = {
        case["name"]: case["timing"] and case["timing"]["ratio"] for case in found["bench"]["cases"]
    }
    assert ratios[name] == 2.0
    assert len(ratios) == 3
    assert len(found["bench"]["missed"]) == 2
    content["machine"] = MACHINE | {"commit": "def"}
    (later / "gpu-bench.json").write_text(json.dumps(content))
    assert len(store.merged([stored, later])["bench"]["cases"]) == 1


def test_what_an_ended_part_has_left_is_stored(stored: Path) -> None:
    """Its record, which is later than its file; a line that was cut off is none."""
    name = "gru-inference-T1024-B16-I768-H768-bfloat16"
    again = row(next(case for case in CASES if case.name == name), 2.0)
    bench, tests = stored / "gpu-bench.jsonl", stored / "gpu-test.jsonl"
    record.begin(bench, MACHINE)
    record.add(bench, running=name)
    record.add(bench, **again)
    record.add(bench, running="another")
    bench.write_text(bench.read_text() + '{"name": "anot')
    record.begin(tests, MACHINE)
    record.add(tests, event="collected", count=9)
    record.add(tests, event="end", test="a", outcome="passed", text="")
    record.add(tests, event="start", test="b")
    content = store.merged([stored])
    cases = {case["name"]: case for case in content["bench"]["cases"]}
    assert len(cases) == 3
    assert cases[name]["timing"]["ratio"] == 2.0
    assert content["test"]["counts"] == {"passed": 1}
    assert content["test"]["collected"] == 9
    (stored / store.NAME).write_text(json.dumps(content))
    said = report.section(stored)
    assert "Tests: 1 passed; time was over before the others." in said
    assert "as something was wrong; time was over before the others." in said


def test_storing(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    results = tmp_path / "results"
    results.mkdir()
    monkeypatch.setattr(store, "README", page)
    monkeypatch.setattr(store, "RESULTS", results)
    assert store.main([stored]) == 0
    assert "Some GPU" in page.read_text()
    assert "old" not in page.read_text()
    assert store.main([tmp_path / "nothing"]) == 0  # what is stored stays
    monkeypatch.setattr(store, "RESULTS", tmp_path / "other")
    assert store.main([tmp_path / "nothing"]) == 1


# The planner's prediction.


@pytest.mark.skipif(runner.compiler() is None, reason="no C++ compiler for the emulator")
def test_predictions_are_the_planners(monkeypatch: pytest.MonkeyPatch) -> None:
    """What calls find on that device: its clusters are those that the occupancy query allows."""
    from cuda_emulated import registered

    from bench.gpu import plans
    from bench.gpu.rehearsal import Rehearsal

    monkeypatch.setattr(plans, "device", Rehearsal)

    hopper = {"multiprocessors": 132, "multiprocessors_per_group": 22, "cluster_limit": 16}

    def predicted(case: GpuCase, regime: str | None = None, **other: int) -> dict[str, Any]:
        with registered(regime, **hopper | other) as name:
            backend = backends.get(name)
            assert isinstance(backend, CudaBackend)
            return plans.predicted(case, backend)

    inference, training = (case for case in CASES if case.name in STEP_GOALS)
    assert predicted(inference).keys() == {"forward"}
    found = predicted(training)
    assert found["forward"] == predicted(inference)["forward"]
    assert found["forward"]["regime"] == found["backward"]["regime"] == "grid"
    assert 0 < found["forward"]["step"] < found["backward"]["step"] < 1e-5
    assert predicted(training, "stepwise")["forward"]["regime"] == "stepwise"
    small = replace(inference, hidden_size=256)
    assert predicted(small)["forward"]["cluster"] == 16
    # Groups of 12 multiprocessors, each with registers for one block only. What is resident is
    # asked once for a device of so many: hence another batch.
    crowded = {"multiprocessors_per_group": 12, "registers_per_thread": 255}
    assert predicted(replace(small, batch=15), **crowded)["forward"]["cluster"] < 16
    with pytest.raises(RuntimeError, match="the regime processor cannot run this"):
        predicted(training, "processor")
    assert set(PARTS) == {case.part for case in CASES}


# The device.


def test_regimes_by_force() -> None:
    """What insists on a regime on a GPU; without one, or without room, nobody is asked."""
    device = Device()
    assert (device.type, device.fit(3, 4), device.some([1, 2, 3], 1)) == ("cuda", 3, [1, 2, 3])
    before = list(backends.backends())
    with device.serving() as name:
        assert name == "cuda"
    for regime, choice in {"stepwise": (0, -1, -1, -1), "grid-4": (3, 4, -1, -1)}.items():
        with device.serving(regime) as name:
            forced = backends.get(name)
            assert isinstance(forced, CudaBackend)
            assert forced.choice == choice
            assert forced.device_type == "cuda"
    with device.serving_cupy() as name:
        assert name == "cupy"
    with device.serving_cupy("tiled-1") as name:
        cupy = backends.get(name)
        assert isinstance(cupy, CudaBackend)
        assert cupy.choice == (4, 1, -1, -1)
    assert cupy.choice == FREE
    assert list(backends.backends()) == before


def test_stand_ins_are_named_as_torch_has_them() -> None:
    """A rehearsal reaches nothing that a GPU would not have."""
    names = {name for name in dir(Cuda()) if not name.startswith("_")}
    assert {name for name in names if not hasattr(torch.cuda, name)} == set()
