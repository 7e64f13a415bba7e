"""Build of the extensions ``fastrnn._C``, ``fastrnn._launches`` and, of CUDA kernels,
``fastrnn._cuda``; what is declarative stands in pyproject.toml.

CMakeLists.txt is the only list of sources and flags, this file drives it. torch is not imported:
pip's build isolation works, and one build serves every version of torch.

Environment:
    FASTRNN_NATIVE: 0 installs the pure-Python package; 1 makes a missing compiler an error; unset
        compiles where there are a C++ compiler and CMake, and installs pure Python elsewhere.
    FASTRNN_CUDA: 1 compiles the CUDA kernels, and makes a missing nvcc an error; 0 does not, nor
        does auto, the default, as long as no GPU has run them. 1 needs neither a GPU nor a driver,
        and no value of it needs a CUDA build of torch.
    FASTRNN_CUDA_DEBUG: 1 compiles CUDA kernels that end with an error instead of waiting for ever,
        should a block miss what another one owes it; 0, the default, does not.
    FASTRNN_CUDA_ARCHS: GPUs to compile for, as in CMake: ``90a-real;120-real``, or ``native``,
        which takes the least time. Default: all from Ampere on, and PTX.
    MAX_JOBS: parallel compile jobs; default one per CPU.
    CXX, CXXFLAGS: read by CMake when the folder build/ is new.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


def find_cmake() -> str | None:
    """CMake of the Python package that pyproject.toml requires, else that of the PATH."""
    try:
        from cmake import CMAKE_BIN_DIR
    except ImportError:
        return shutil.which("cmake")
    return str(Path(CMAKE_BIN_DIR) / "cmake")


def find_ninja() -> str | None:
    """ninja, found the same way."""
    try:
        from ninja import BIN_DIR  # empty where it is on the PATH, as in an isolated build
    except ImportError:
        return shutil.which("ninja")
    return str(Path(BIN_DIR) / "ninja")


def missing_tools() -> list[str]:
    """What compiling would need and this machine lacks. A CXX that was named is believed."""
    missing = []
    if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        missing.append("no C++ compiler")
    if find_cmake() is None:
        missing.append("no CMake")
    return missing


def why_pure() -> str:
    """Why nothing is compiled; empty where the extension is to be built."""
    native = os.environ.get("FASTRNN_NATIVE", "").strip()
    if native not in ("", "0", "1"):
        raise SystemExit(f"FASTRNN_NATIVE: expected 0, 1 or nothing, got {native!r}")
    if native == "0":
        return "FASTRNN_NATIVE=0"
    missing = " and ".join(missing_tools())
    if missing and native == "1":
        raise SystemExit(f"FASTRNN_NATIVE=1 insists on the C++ kernels, but there is {missing}")
    return missing


def jobs() -> int:
    text = os.environ.get("MAX_JOBS", "").strip()
    if not text:
        return os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise SystemExit(f"MAX_JOBS: expected a positive number, got {text!r}")
    return int(text)


def find_nvcc() -> str | None:
    return (
        os.environ.get("CUDACXX")
        or shutil.which("nvcc")
        or shutil.which("nvcc", path="/usr/local/cuda/bin")
    )


def is_set(name: str) -> bool:
    value = os.environ.get(name, "").strip()
    if value not in ("", "0", "1"):
        raise SystemExit(f"{name}: expected 0, 1 or nothing, got {value!r}")
    return value == "1"


def builds_cuda() -> bool:
    wanted = os.environ.get("FASTRNN_CUDA", "").strip() or "auto"
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"FASTRNN_CUDA: expected auto, 0 or 1, got {wanted!r}")
    if wanted == "1" and find_nvcc() is None:
        raise SystemExit("FASTRNN_CUDA=1 insists on the CUDA kernels, but there is no nvcc")
    return wanted == "1"


WHY_PURE = why_pure()
CUDA = not WHY_PURE and builds_cuda()
NATIVE = ("_C", "_launches")
CUDA_DEBUG = is_set("FASTRNN_CUDA_DEBUG")


class CMakeBuild(build_ext):
    """Configures and builds with CMake, then copies the module to where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        # Not setuptools' build_temp: that is a new folder for each editable install, and an edit
        # of one C++ file would then compile them all.
        ninja = find_ninja()
        tool = "make" if ninja is None else "ninja"
        tree = ROOT / "build" / f"{tool}-{self.plat_name}-{sys.implementation.cache_tag}"
        configure = [
            find_cmake() or "cmake",
            f"-S{ROOT}",
            f"-B{tree}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DFASTRNN_VERSION={self.distribution.get_version()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFASTRNN_CUDA={'ON' if CUDA else 'OFF'}",
        ]
        archs = os.environ.get("FASTRNN_CUDA_ARCHS", "").strip()
        if CUDA:
            configure += [f"-DCMAKE_CUDA_COMPILER={find_nvcc()}"]
            configure += [f"-DFASTRNN_CUDA_DEBUG={'ON' if CUDA_DEBUG else 'OFF'}"]
            # Unset, the default of CMakeLists.txt, not what the tree was configured for before.
            configure += [f"-DFASTRNN_CUDA_ARCHS={archs}" if archs else "-UFASTRNN_CUDA_ARCHS"]
        if ninja is None:
            configure += ["-GUnix Makefiles"]
        else:
            # Named at each build: the one of an isolated build is gone by the next.
            configure += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        # All at once, in as many jobs; there is nothing left to do for the others.
        modules = [extension.name.rpartition(".")[2] for extension in self.extensions]
        build = [configure[0], "--build", str(tree), "--target", *modules]
        build += ["--parallel", str(jobs())]
        for command in (configure, build):
            print("fastrnn:", *command, flush=True)
            try:
                subprocess.run(command, check=True)
            except subprocess.CalledProcessError as error:
                raise CompileError(
                    "compiling fastrnn's kernels failed, see above for the reason; FASTRNN_CUDA=0 "
                    "installs the package without those for GPUs, FASTRNN_NATIVE=0 without any"
                ) from error
        target = Path(self.get_ext_fullpath(ext.name))
        self.mkpath(str(target.parent))
        self.copy_file(str(tree / target.name), str(target))


class BuildPython(build_py):
    """Adds the C++ sources to the wheel, for what compiles them at run time."""

    def run(self) -> None:
        super().run()
        if WHY_PURE:
            print(
                f"fastrnn: no C++ kernels are compiled ({WHY_PURE}). The package is pure Python; "
                "calls on the CPU are served by numba, which is slower.",
                file=sys.stderr,
            )
        if self.editable_mode:
            # An editable install is the tree itself: no copy of csrc/ is needed, and an extension
            # that an earlier build left would go on serving an install that asks for none.
            if WHY_PURE:
                for name in ("_C", "_launches", "_cuda"):
                    for stale in (ROOT / "fastrnn").glob(f"{name}.*.so"):
                        stale.unlink()
            return
        target = Path(self.build_lib, "fastrnn", "csrc")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(ROOT / "csrc", target)
        shutil.copy(ROOT / "CMakeLists.txt", target)


setup(
    ext_modules=[
        *([] if WHY_PURE else [Extension(f"fastrnn.{name}", sources=[]) for name in NATIVE]),
        *([Extension("fastrnn._cuda", sources=[])] if CUDA else []),
    ],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildPython},
)
