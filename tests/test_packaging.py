"""What is shipped and how it is built, seen from outside: nothing here imports fastrnn.

Everything is built from an unpacked source distribution, which shows that it is complete, with a
``torch`` first on the path that cannot be imported, which shows that no build needs it.
"""

from __future__ import annotations

import email
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = (
    ".clang-format",
    "CMakeLists.txt",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "bench",
    "csrc",
    "fastrnn",
    "pyproject.toml",
    "setup.py",
    "tests",
)
VERSION = re.findall(r'__version__ = "(.+)"', (ROOT / "fastrnn/_version.py").read_text())[0]
CSRC = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
X86_64 = platform.machine().lower() in ("x86_64", "amd64")
EXTRA_SETS = {"isa_avx2", "isa_avx512", "isa_avx512bf16"} if X86_64 else set()

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler"
)


@pytest.fixture(scope="module")
def poison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with a torch that nobody may import."""
    folder = tmp_path_factory.mktemp("poison")
    (folder / "torch.py").write_text("raise AssertionError('the build imported torch')\n")
    return folder


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory, poison: Path) -> Path:
    """The source distribution of a copy of this tree, in which an old build left things."""
    tree = tmp_path_factory.mktemp("tree")
    for name in TOP_LEVEL:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("*.so"))
        else:
            shutil.copy(source, tree)
    (tree / "fastrnn/_C.stale.so").touch()
    (tree / "csrc/stale.so").touch()
    (tree / "build").mkdir()
    (tree / "build/stale.h").touch()
    out = tmp_path_factory.mktemp("sdist")
    build("sdist", tree, out, poison)
    (path,) = out.iterdir()
    return path


@pytest.fixture
def tree(sdist: Path, tmp_path: Path) -> Path:
    """The source distribution unpacked."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / f"fastrnn-{VERSION}"


def build(
    kind: str, tree: Path, out: Path, poison: Path, *, fails: bool = False, **variables: str
) -> str:
    """Call a hook of the build backend, as pip does; returns all it printed."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CXX", "CXXFLAGS", "MAX_JOBS") and not name.startswith("FASTRNN_")
    }
    environment["PYTHONPATH"] = str(poison)
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})",
        ],
        cwd=tree,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert (result.returncode != 0) == fails, result.stdout
    return result.stdout


def only_wheel(out: Path) -> Path:
    (path,) = out.glob("*.whl")
    return path


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def text_of(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"fastrnn-{VERSION}.dist-info/{name}").decode()


def test_version_stands_in_one_place() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in settings["project"]
    attribute = settings["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "fastrnn._version.__version__"
    builders = [ROOT / name for name in ("setup.py", "CMakeLists.txt", "Makefile")]
    for path in (*builders, *(ROOT / "fastrnn").rglob("*.py"), *(ROOT / "csrc").rglob("*.[hc]*")):
        if path.name != "_version.py":
            assert f'"{VERSION}"' not in path.read_text(), path


def test_poisoned_torch_would_be_noticed(poison: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import torch"],
        env=os.environ | {"PYTHONPATH": str(poison)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the build imported torch" in result.stderr


def test_sdist_has_what_building_and_testing_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert CSRC
    assert names >= CSRC
    assert names >= {name for name in TOP_LEVEL if (ROOT / name).is_file()}
    assert names >= {"fastrnn/py.typed", "tests/test_packaging.py", "bench/__init__.py"}
    assert "fastrnn/examples/docs/tagger.md" in names
    assert not [name for name in names if "stale" in name or "__pycache__" in name]


@pytest.mark.slow
def test_pure_wheel(tree: Path, tmp_path: Path, poison: Path) -> None:
    printed = build("wheel", tree, tmp_path, poison, FASTRNN_NATIVE="0")
    assert "no C++ kernels are compiled (FASTRNN_NATIVE=0)" in printed
    wheel = only_wheel(tmp_path)
    assert wheel.name == f"fastrnn-{VERSION}-py3-none-any.whl"
    names = contents(wheel)
    assert names >= {f"fastrnn/{name}" for name in CSRC}
    assert names >= {"fastrnn/csrc/CMakeLists.txt", "fastrnn/py.typed", "fastrnn/cli.py"}
    assert {name.split("/")[0] for name in names} == {"fastrnn", f"fastrnn-{VERSION}.dist-info"}
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    python = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "fastrnn").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert names >= python

    metadata = email.message_from_string(text_of(wheel, "METADATA"))
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "MIT"
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(required) == ["numba", "numpy", "torch>=2.11"]
    assert "fastrnn = fastrnn.cli:main" in text_of(wheel, "entry_points.txt")


@pytest.mark.slow
@needs_compiler
def test_native_wheel(tree: Path, tmp_path: Path, poison: Path) -> None:
    build("wheel", tree, tmp_path, poison, FASTRNN_NATIVE="1", MAX_JOBS="2")
    wheel = only_wheel(tmp_path)
    names = contents(wheel)
    modules = sorted(name for name in names if name.endswith(".so"))
    assert [re.sub(r"\..*", "", name) for name in modules] == ["fastrnn/_C", "fastrnn/_launches"]
    assert "py3-none-any" not in wheel.name
    assert names >= {f"fastrnn/{name}" for name in CSRC} | {"fastrnn/csrc/CMakeLists.txt"}

    (commands,) = tree.glob("build/*/compile_commands.json")
    check_flags(json.loads(commands.read_text()))
    check_shared_functions(list(commands.parent.rglob("*.cpp.o")))

    with zipfile.ZipFile(wheel) as archive:
        extensions = [archive.extract(module, tmp_path) for module in modules]
    subprocess.run(
        [sys.executable, "-c", LOAD, *extensions],
        env=os.environ | {"PYTHONPATH": str(poison)},
        check=True,
    )


#: Extensions loaded from their files, without the package around them.
LOAD = """
import importlib.util, pathlib, sys
for path in sys.argv[1:]:
    name = "fastrnn." + pathlib.Path(path).name.partition(".")[0]
    spec = importlib.util.spec_from_file_location(name, path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


def check_flags(commands: list[dict[str, str]]) -> None:
    """Only the object of an instruction set is compiled for it, and no flag breaks NaN."""
    special = set()
    for entry in commands:
        name = Path(entry["file"]).stem
        flags = set(shlex.split(entry["command"]))
        assert {"-O3", "-DNDEBUG", "-std=c++17", "-fPIC", "-fvisibility=hidden"} <= flags
        assert f'-DFASTRNN_VERSION="{VERSION}"' in flags
        assert not flags & {"-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-flto"}
        if machine_flags := {flag for flag in flags if flag.startswith("-m")}:
            special.add(name)
            assert "-march=native" not in machine_flags
            assert ("-mavx512f" in machine_flags) == name.startswith("isa_avx512")
            assert ("-mavx512bf16" in machine_flags) == (name == "isa_avx512bf16")
    assert special == EXTRA_SETS


def check_shared_functions(objects: list[Path]) -> None:
    """No function of an object compiled for newer CPUs may stand in for another object's.

    Inline functions and templates that were not inlined are in each object that uses them, and
    the linker keeps any one copy: that of AVX-512 would run, and crash, on every machine.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for path in objects:
        listing = subprocess.run(
            ["nm", "--defined-only", "--format=posix", path],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for line in listing.splitlines():
            symbol, kind, *_ = line.split()
            if kind == "W":
                owners[symbol].add(path.name.removesuffix(".cpp.o"))
    assert {path.name.removesuffix(".cpp.o") for path in objects} >= EXTRA_SETS
    shared = {name: where for name, where in owners.items() if len(where) > 1}
    assert not {name: where for name, where in shared.items() if where & EXTRA_SETS}


def test_without_compiler_a_wheel_is_pure_and_says_so(
    tree: Path, tmp_path: Path, poison: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    printed = build("wheel", tree, out, poison, PATH=str(poison))
    assert "no C++ kernels are compiled (no C++ compiler" in printed
    assert only_wheel(out).name.endswith("-py3-none-any.whl")


def test_without_compiler_an_insisting_build_fails(
    tree: Path, tmp_path: Path, poison: Path
) -> None:
    printed = build(
        "wheel", tree, tmp_path, poison, fails=True, PATH=str(poison), FASTRNN_NATIVE="1"
    )
    assert "FASTRNN_NATIVE=1 insists on the C++ kernels, but there is no C++ compiler" in printed


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FASTRNN_NATIVE", "yes", "FASTRNN_NATIVE: expected 0, 1 or nothing, got 'yes'"),
        ("MAX_JOBS", "0", "MAX_JOBS: expected a positive number, got '0'"),
        ("CXX", "no-such-compiler", "compiling fastrnn's kernels failed, see above"),
    ],
)
def test_wrong_environment_fails_and_is_named(
    tree: Path, tmp_path: Path, poison: Path, variable: str, value: str, message: str
) -> None:
    # The compiler that CXX names is believed to exist, so that MAX_JOBS is read everywhere.
    environment = {"CXX": "no-such-compiler", variable: value}
    assert message in build("wheel", tree, tmp_path, poison, fails=True, **environment)


CUDA_OPTIONS = (
    "-DFASTRNN_CUDA=",
    "-DCMAKE_CUDA_COMPILER=",
    "-DFASTRNN_CUDA_DEBUG=",
    "-DFASTRNN_CUDA_ARCHS=",
    "-UFASTRNN_CUDA_ARCHS",
)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FASTRNN_CUDA": "0"}, ["-DFASTRNN_CUDA=OFF"]),
        ({"FASTRNN_CUDA": "auto"}, ["-DFASTRNN_CUDA=OFF"]),
        (
            {"FASTRNN_CUDA": "1"},
            [
                "-DFASTRNN_CUDA=ON",
                "-DCMAKE_CUDA_COMPILER=/some/nvcc",
                "-DFASTRNN_CUDA_DEBUG=OFF",
                "-UFASTRNN_CUDA_ARCHS",
            ],
        ),
        (
            {
                "FASTRNN_CUDA": "1",
                "FASTRNN_CUDA_ARCHS": "90a-real;120-real",
                "FASTRNN_CUDA_DEBUG": "1",
            },
            [
                "-DFASTRNN_CUDA=ON",
                "-DCMAKE_CUDA_COMPILER=/some/nvcc",
                "-DFASTRNN_CUDA_DEBUG=ON",
                "-DFASTRNN_CUDA_ARCHS=90a-real;120-real",
            ],
        ),
    ],
    ids=["0", "auto", "1", "of some architectures"],
)
def test_cuda_variables_reach_cmake(
    tree: Path, tmp_path: Path, poison: Path, variables: dict[str, str], expected: list[str]
) -> None:
    """The command is printed before CMake refuses this compiler."""
    environment = {"CXX": "no-such-compiler", "CUDACXX": "/some/nvcc"} | variables
    printed = build("wheel", tree, tmp_path, poison, fails=True, **environment)
    (configure,) = [line for line in printed.splitlines() if line.startswith("fastrnn: ")]
    found = [word for word in configure.split() if word.startswith(CUDA_OPTIONS)]
    assert found == expected


def test_pure_editable_install_drops_an_old_extension(
    tree: Path, tmp_path: Path, poison: Path
) -> None:
    old = [tree / "fastrnn" / f"{name}.old.so" for name in ("_C", "_launches", "_cuda")]
    for path in old:
        path.touch()
    build("editable", tree, tmp_path, poison, FASTRNN_NATIVE="0")
    assert not any(path.exists() for path in old)


SERVED_BY_NUMBA = """
import sys
# An editable install in this environment would lend the pure one its extension.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import fastrnn, torch
print(fastrnn.__file__)
for dtype in (torch.float32, torch.float64):
    weights = [torch.randn(shape, dtype=dtype) for shape in ((20, 3), (20, 5), (20,), (20,))]
    x, zero = torch.randn(4, 2, 3, dtype=dtype), torch.zeros(1, 2, 5, dtype=dtype)
    expected = torch.lstm(x, (zero, zero), weights, True, 1, 0.0, False, False, False)
    y, (h_n, c_n) = fastrnn.functional.lstm(x, weights)
    for ours, theirs in zip((y, h_n, c_n), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
"""


@pytest.mark.slow
def test_pure_install_serves_from_numba_and_says_so_once(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    # Without the cache, in which pip would keep this wheel for the next folder of the same name.
    subprocess.run(
        [*pip, "--no-build-isolation", "--no-cache-dir", "--target", target, tree],
        env=os.environ | {"FASTRNN_NATIVE": "0"},
        check=True,
    )
    result = subprocess.run(
        [sys.executable, "-c", SERVED_BY_NUMBA],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target), "FASTRNN_LOG": "info", "FASTRNN_BACKEND": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(target)
    log = result.stderr
    assert log.count("CPU calls are served by numba") == 1, log
    assert "lstm float32 on cpu: served by 'numba'" in log
