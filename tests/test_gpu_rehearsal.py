"""``make gpu`` without a GPU: its programs run, and what they do when something goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cuda_emulator import runner

from bench.cases import INFERENCE
from bench.gpu import __main__ as program
from bench.gpu import building, children, floors, record, run, sanitizing, store, sync, testing
from bench.gpu.device import REHEARSAL
from bench.gpu.part import Part, Report

ROOT = Path(__file__).resolve().parents[1]
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")


def part(tmp_path: Path, seconds: float = 60) -> Part:
    output, scratch = tmp_path / "output", tmp_path / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir()
    return Part(output, scratch, seconds)


# All of it.


@pytest.mark.slow
@pytest.mark.skipif(runner.compiler() is None, reason="no C++ compiler for the emulator")
def test_rehearsal(tmp_path: Path) -> None:
    """Every part on the emulated device, as ``make gpu-rehearse`` does it."""
    command = [sys.executable, "-m", "bench.gpu", "all", "--rehearse", "--output", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "0 failures in build, test, sanitize, sync, bench" in result.stdout
    found = {
        name: json.loads((tmp_path / f"gpu-{name}.json").read_text()) for name in program.PARTS
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"gpu-{name}.json" for name in program.PARTS
    )
    for content in found.values():
        assert content["failures"] == []
        assert {"gpu", "driver", "torch", "cudnn", "tf32", "commit", "date"} <= set(
            content["machine"]
        )
    assert found["build"]["environment"]["FASTRNN_CUDA_ARCHS"] == "90a-real"
    assert found["test"]["complete"]
    assert found["test"]["counts"]["passed"] == found["test"]["collected"] > 100
    assert {check["status"] for check in found["sanitize"]["checks"]} == {"ok"}
    unmeasured = {"kLatency", "kFar"}  # of single loads, which the micro-benchmark does not time
    assert set(found["sync"]["rates"]) == set(found["sync"]["assumed"]) - unmeasured
    figures = found["sync"]["figures"]
    for name, figure in {"cluster": "cluster_barrier_full_8", "grid": "value_hop"}.items():
        assert found["sync"]["waits"][name] == figures[figure]
        assert figures[f"{figure}_storing"] > 0
    rows = found["bench"]["cases"]
    assert {row["regime"] for row in rows} > {""}
    for row in rows:
        assert row["wrong"] == ""
        assert row["step"] > 0
        assert row["floor"]["least"] > 0
        assert row["error"]["in_tolerances"] <= 1
        assert row["error_theirs"]["relative"].keys() == row["error"]["relative"].keys()
        passes = {"forward"} if row["mode"] == INFERENCE else {"forward", "backward"}
        assert set(row["plan"]) == passes
        assert row["plan"]["forward"]["step"] > 0
        assert row["kernels"] == []  # a GPU's profiler names them
        assert (row["timing"] is None) == bool(row["regime"])
        assert row["waits"].startswith("measured on emulated, ")
    assert store.merged([tmp_path])["bench"]["cases"] == rows
    assert store.main([tmp_path]) == 1  # a rehearsal is not stored


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program.device().cuda, "is_available", lambda: False)
    assert program.main(["all", "--output", str(tmp_path)]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_a_part_that_fails_keeps_no_other_from_running(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(part: Part) -> Report:
        raise RuntimeError("something broke")

    def well(part: Part) -> Report:
        assert part.output.is_dir()
        return Report({"figure": 1, "given": list(part.arguments)}, [], "well")

    kinds = {"build": program.Kind(broken, 9, 1), "bench": program.Kind(well, 9, 1)}
    monkeypatch.setattr(program, "PARTS", kinds)
    monkeypatch.setattr(program.device().cuda, "is_available", lambda: True)
    monkeypatch.setattr(program, "facts", dict)
    output = tmp_path / "new"
    assert program.main(["all", "--output", str(output), "--select", "gru,odd"]) == 1
    assert "something broke" in json.loads((output / "gpu-build.json").read_text())["failures"][0]
    content = json.loads((output / "gpu-bench.json").read_text())
    assert content["figure"] == 1
    assert content["given"] == ["gru", "odd"]
    assert "FAILED: build: Traceback" in capsys.readouterr().out


def test_a_total_is_shared() -> None:
    """Each part has its own limit, and leaves the later ones their least."""
    kinds, names = program.PARTS, list(program.PARTS)
    assert [program.share(names[n:], 1e9) for n in range(5)] == [k.most for k in kinds.values()]
    kept = sum(kind.least for kind in kinds.values()) - kinds["build"].least
    assert program.share(names, 570) == 570 - kept >= kinds["build"].least
    assert program.share(["sync", "bench"], 570) == kinds["sync"].most
    assert program.share(["bench"], 30) == 30
    left = 100.0  # less than all the least ones
    for place in range(5):
        given = program.share(names[place:], left)
        assert 0 < given < kinds[names[place]].least
        left -= given
    assert left == pytest.approx(0)


def test_no_part_is_begun_after_the_total(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = []

    def slow(part: Part) -> Report:
        given.append(part.seconds)
        time.sleep(0.5)
        return Report({}, [], "slow")

    names = ("build", "test", "bench")
    monkeypatch.setattr(program, "PARTS", {name: program.Kind(slow, 9, 0.1) for name in names})
    monkeypatch.setattr(program.device().cuda, "is_available", lambda: True)
    monkeypatch.setattr(program, "facts", dict)
    assert program.main(["all", "--total", "0.6", "--output", str(tmp_path)]) == 1
    assert len(given) == 2
    assert sum(given) < 0.7
    assert "FAILED: bench: not begun, as the 1 seconds were over" in capsys.readouterr().out


# Children.


def child(tmp_path: Path, code: str, **options: Any) -> children.Outcome:
    return children.run([sys.executable, "-c", code], tmp_path / "log", **options)


def test_a_child_that_ends(tmp_path: Path) -> None:
    well = child(tmp_path, "print('said')", seconds=60)
    assert well.ok
    assert well.tail.strip() == "said"
    failed = child(tmp_path, "raise SystemExit(3)", seconds=60)
    assert (failed.status, failed.code) == ("failed", 3)


def test_a_child_that_does_not_end(tmp_path: Path) -> None:
    start = time.monotonic()
    forever = "import time; print('began', flush=True); time.sleep(100)"
    assert child(tmp_path, forever, seconds=60, idle=lambda: 1.0).status == "hung"
    assert child(tmp_path, forever, seconds=1.0).status == "out of time"
    assert time.monotonic() - start < 30


def test_a_child_of_a_child_ends_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '100'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(100)"
    )
    assert child(tmp_path, code, seconds=3.0).status == "out of time"
    state = Path(f"/proc/{pid.read_text()}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and ") Z " not in state.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not state.exists() or ") Z " in state.read_text()


def test_the_last_line_says_how_long_nothing_may_follow(tmp_path: Path) -> None:
    path = tmp_path / "record"
    assert record.patience(path, 7) == 7
    record.begin(path, {"gpu": "some"})
    assert record.patience(path, 7) == 7
    record.add(path, text="x" * record.MOST_OF_LINE)
    record.add(path, event="process", patience=150)
    assert record.patience(path, 7) == 150
    record.add(path, event="start", patience=None)
    assert record.patience(path, 7) == 7
    with path.open("a") as file:
        file.write('{"cut of')
    assert record.patience(path, 7) == 7
    assert [*record.read(path)[0]] == ["machine"]
    record.begin(path, {})
    assert len(record.read(path)) == 1


# Tests that hang, crash, break the device.

TROUBLE = """
import os, time, warnings, pytest
def test_first(): pass
@pytest.mark.parametrize("regime", ["None", "grid-4"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_regime(number, regime):
    if regime == "grid-4": os._exit(86)
def test_wrong(): assert 1 == 2
@pytest.mark.parametrize("said", [
    "Attempting to run cuBLAS, but there was no current CUDA context! Attempting to set the "
    "primary context...",
    "something of ours",
])
def test_warns(said):
    warnings.warn_explicit(said, UserWarning, "layer.py", 1, module="fastrnn.layer")
def test_skipped(): pytest.skip("no such device")
def test_hangs(): time.sleep(100)
def test_last(): pass
"""


@pytest.mark.slow
def test_every_test_has_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    shutil.copy(ROOT / "tests" / "gpu" / "conftest.py", folder)
    (folder / "test_basics.py").write_text("")
    (folder / "test_broken.py").write_text("import no_such_module")
    (folder / "test_trouble.py").write_text(TROUBLE)
    monkeypatch.setattr(testing, "FOLDER", folder)
    monkeypatch.setattr(testing, "FILES", ("test_basics.py", "test_broken.py", "test_trouble.py"))
    monkeypatch.setattr(testing, "IDLE_SECONDS", 25)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setenv(REHEARSAL, "1")
    options = folder / "pytest.ini"
    options.write_text("[pytest]\nfilterwarnings =\n    error:::fastrnn(\\..*)?$\n")
    given = part(tmp_path, 300)
    given.arguments = ["--rootdir", str(folder), "-c", str(options)]
    report = testing.run(given)
    assert report.content["counts"] == {"passed": 6, "failed": 6, "skipped": 1}
    assert report.content["collected"] == 13
    assert [restart["status"] for restart in report.content["restarts"]] == [
        "failed",
        "failed",
        "hung",
    ]
    assert report.content["given_up"] == ["grid-4"]  # after two of three
    assert "the tests of the regime grid-4 were given up" in report.failures
    names = {name.rpartition("::")[2] for name in report.content["failed"]}
    assert names == {
        "test_broken.py",
        "test_wrong",
        "test_warns[something of ours]",
        "test_hangs",
        "test_regime[1-grid-4]",
        "test_regime[2-grid-4]",
    }
    assert len(report.failures) == 7
    assert report.content["skipped"] == {"Skipped: no such device": 1}
    assert list(given.output.iterdir()) == []


def test_no_test_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "FILES", ("no_such_file.py",))
    report = testing.run(part(tmp_path))
    assert any("no_such_file.py" in sentence for sentence in report.failures)


Fake = Callable[..., children.Outcome]


def of_tests(*processes: tuple[str, int, Sequence[Mapping[str, Any]]]) -> tuple[Fake, list[Any]]:
    """Stands for processes that run tests: how each ends, and what it has said before."""
    left, asked = list(processes), []

    def fake(words: list[str], log: Path, *, idle: Any, watched: Path, **rest: Any) -> Any:
        skip = Path(rest["environment"][testing.SKIP]).read_text().split()
        asked.append((idle(), skip))
        status, code, events = left.pop(0)
        for event in events:
            record.add(watched, **event)
        return children.Outcome(status, code, 1.0, "its last words")

    return fake, asked


def began(name: str) -> dict[str, Any]:
    return {"event": "start", "test": name}


def ended(name: str, outcome: str = "passed") -> dict[str, Any]:
    return {"event": "end", "test": name, "outcome": outcome, "text": ""}


def test_a_regime_that_hangs_in_the_basics_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once; elsewhere it takes two tests. What is left then may be nothing."""
    basic, other = (
        f"x/{name}.py::test_a[grid-{k}]"
        for name, k in (("test_gpu_basics", 4), ("test_gpu_sizes", 1))
    )
    fake, asked = of_tests(
        ("hung", -9, [ended("first"), began(basic)]),
        ("hung", -9, [began(other)]),
        ("failed", testing.NOTHING_LEFT, []),
    )
    monkeypatch.setattr(children, "run", fake)
    report = testing.run(part(tmp_path))
    assert report.content["complete"]
    assert report.content["given_up"] == ["grid-4"]
    assert asked == [
        (testing.FIRST_SECONDS, []),
        (testing.FIRST_SECONDS, ["first", basic, "*grid-4"]),
        (testing.FIRST_SECONDS, ["first", basic, other, "*grid-4"]),
    ]


def test_a_process_that_says_nothing_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, asked = of_tests(("hung", -9, []), ("ok", 0, [ended("first")]))
    monkeypatch.setattr(children, "run", fake)
    report = testing.run(part(tmp_path))
    assert (report.content["complete"], report.content["counts"]) == (True, {"passed": 1})
    assert report.failures == [
        "a process with no test to blame hung, exit status -9:\nits last words"
    ]
    fake, asked = of_tests(*[("failed", -11, [])] * 3)
    monkeypatch.setattr(children, "run", fake)
    report = testing.run(part(tmp_path / "again"))
    assert len(asked) == 2
    assert not report.content["complete"]


def test_who_may_take_longer() -> None:
    assert set(testing.LONGER) < set(testing.FILES)
    assert testing.file_of("tests/gpu/test_gpu_large.py::test_a[b]") in testing.LONGER


# A benchmark that hangs.


def test_a_case_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process said of the cases before it counts, and the others follow."""
    row = {"timing": None, "wrong": "", "part": "gru", "step": 1e-6}

    def fake(command: list[str], log: Path, *, seconds: float, **options: Any) -> children.Outcome:
        path = Path(command[3])
        known = [event.get("name") for event in record.read(path)]
        assert options["idle"]() == run.FIRST_SECONDS
        with path.open("a") as file:
            if "--kernels" in command:
                file.write(json.dumps({"kernels_of": "c", "kernels": [1]}) + "\n")
                return children.Outcome("ok", 0, 1.0, "")
            for name in ("a", "b", "c"):
                if name in known:
                    continue
                file.write(json.dumps({"running": name}) + "\n")
                if name == "b":
                    return children.Outcome("hung", -9, 1.0, "stuck")
                file.write(json.dumps(row | {"name": name}) + "\n")
        return children.Outcome("ok", 0, 1.0, "")

    monkeypatch.setattr(children, "run", fake)
    report = run.run(part(tmp_path))
    assert [case["name"] for case in report.content["cases"]] == ["a", "b", "c"]
    assert report.content["cases"][2]["kernels"] == [1]
    assert report.content["restarts"] == [{"status": "hung", "code": -9, "case": "b"}]
    assert report.failures[0] == "b: hung, exit status -9: stuck"
    assert report.failures[1].startswith("nothing was timed")


def test_a_benchmark_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried once more, and what it has printed is among the failures."""
    calls = []

    def fake(words: list[str], log: Path, **options: Any) -> children.Outcome:
        calls.append(words)
        options["watched"].unlink()  # nor may its record be there
        return children.Outcome("failed", 1, 1.0, "libcudnn.so.9: cannot open")

    monkeypatch.setattr(children, "run", fake)
    report = run.run(part(tmp_path))
    assert ["--kernels" in words for words in calls] == [False, False, True]
    assert "libcudnn.so.9: cannot open" in report.failures[0]


# compute-sanitizer.


def test_what_the_sanitizer_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our kernels alone, the quickest check first; and none is begun that has no time."""
    ran: list[list[str]] = []

    def fake(words: list[str], log: Path, **options: Any) -> children.Outcome:
        ran.append(words)
        log.write_text("" if "synccheck" in words else "========= ERROR SUMMARY: 0 errors\n")
        return children.Outcome("ok", 0, 1.0, "")

    monkeypatch.setattr(children, "run", fake)
    monkeypatch.setattr(sanitizing, "find_tool", lambda: "compute-sanitizer")
    report = sanitizing.run(part(tmp_path))
    assert ran[0][1:3] == ["--tool", "memcheck"]
    assert ran[0][-1] == "processor"
    for words in ran:
        assert words[words.index("--kernel-name") + 1] == "kns=fastrnn"
        assert words[words.index("--report-api-errors") + 1] == "no"
    wrong = {check["tool"]: check["status"] for check in report.content["checks"]}
    assert wrong == {
        "memcheck": "ok",
        "synccheck": "no summary of the tool",
        "racecheck": "ok",
    }
    late = sanitizing.run(part(tmp_path / "late", seconds=sanitizing.LEAST_SECONDS / 2))
    assert late.failures == ["time was over before 21 of 21 checks", "no check has ended well"]


@pytest.mark.skipif(sanitizing.find_tool() is None, reason="no compute-sanitizer")
@pytest.mark.parametrize("tool", sanitizing.TOOLS)
def test_the_sanitizer_knows_its_options(tool: str) -> None:
    command = [str(sanitizing.find_tool()), *sanitizing.options(tool), "--require-cuda-init", "no"]
    result = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


# The micro-benchmark.


def test_figures_of_a_program_that_died() -> None:
    text = "figure flag_hop 6.5e-07\nnoise\nerror cluster_barrier_16 not supported\nfigure l2_one"
    figures, errors = sync.read(text.replace("figure l2_one", "figure l2_one 4.5e10"))
    assert figures == {"flag_hop": 6.5e-7, "l2_one": 4.5e10}
    assert errors == ["cluster_barrier_16: not supported"]


def test_rates_are_those_of_the_planner() -> None:
    assert set(sync.assumed()) >= {"kLaunch", "kCluster", "kFlag", "kShared", "kFromL2", "kL2"}
    assert sync.assumed("struct Other {};") == {}
    figures = {"value_hop": 7e-7, "value_hop_storing": 9e-7, "shared": 2e11, "block_barrier": 1e-8}
    assert sync.rates(figures) == {"kFlag": 9e-7, "kShared": 2e11, "kBlock": 2e-8}


def test_floors_are_of_the_results_that_are_named(tmp_path: Path) -> None:
    """And of nothing but the wait itself: a floor is the least."""
    here, earlier = tmp_path / "here", tmp_path / "earlier"
    here.mkdir()
    earlier.mkdir()
    assumed, source = floors.known_waits([here, earlier])
    assert (assumed["grid"], source) == (sync.assumed()["kFlag"], "assumed by the planner")
    waits = sync.waits({"value_hop": 7e-7, "value_hop_storing": 9e-7})
    machine = {"gpu": "Some GPU", "date": "2026-01-02"}
    text = json.dumps({"machine": machine, "waits": waits})
    (earlier / "gpu-sync.json").write_text(text)
    found, source = floors.known_waits([here, earlier])
    assert found == {"cluster": assumed["cluster"], "grid": 7e-7}
    assert source == "measured on Some GPU, 2026-01-02, but for the cluster's"
    (here / "gpu-sync.json").write_text(text.replace("Some", "This").replace("7e-07", "6e-07"))
    found, source = floors.known_waits([here, earlier])
    assert (found["grid"], source[:19]) == (6e-7, "measured on This GP")


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("arch", ["90a", pytest.param("80", marks=pytest.mark.slow)])
def test_the_micro_benchmark_compiles(arch: str, tmp_path: Path) -> None:
    target = tmp_path / "sync.so"
    command = building.shared_library(sync.SOURCE, target, f"{arch}-real")
    command += ["-Werror", "all-warnings"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert target.stat().st_size > 0
