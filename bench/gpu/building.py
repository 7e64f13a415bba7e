"""Builds the extensions in place for the GPU that is there, with the interpreter of this."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import children
from .device import device
from .part import Part, Report

#: What the build imports or calls; pip is not used, as nothing may be downloadable.
MODULES = ("setuptools", "pybind11", "torch", "numpy", "pytest")


def architecture() -> str:
    """The GPU's own, as CMake names it: ``90a-real`` has what only Hopper has."""
    major, minor = device().cuda.get_device_capability()
    number = 10 * major + minor
    return f"{number}{'a' if number == 90 else ''}-real"


def version(program: str) -> str:
    """What a program says it is; empty where it is not there."""
    path = shutil.which(program) or shutil.which(program, path="/usr/local/cuda/bin")
    if path is None:
        return ""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+\.\d+\.\d+", said)  # nvcc names its release before, with two numbers
    return found[0] if found else "unknown"


def run(part: Part) -> Report:
    missing = [name for name in MODULES if not part.has_module(name)]
    tools = {name: version(name) for name in ("nvcc", "cmake", "ninja", "c++", "compute-sanitizer")}
    arch = architecture()
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = {"FASTRNN_NATIVE": "1", "FASTRNN_CUDA": "1", "FASTRNN_CUDA_ARCHS": arch}
    content: dict[str, Any] = {
        "command": command,
        "environment": environment,
        "python": sys.version.split()[0],
        "tools": tools,
        "cores": os.cpu_count(),
        "missing": missing,
    }
    print(f"building for {arch} with {tools}", flush=True)
    if part.rehearsed:  # what would be run is known; it takes minutes
        command = [sys.executable, "setup.py", "--version"]
        environment = {}
    failures = [f"the build needs the module {name}" for name in missing]
    outcome = children.run(
        command,
        part.scratch / "build.log",
        seconds=part.left(),
        echo=True,
        environment=environment,
    )
    content |= {"seconds": outcome.seconds, "status": outcome.status, "tail": outcome.tail}
    if not outcome.ok:
        failures.append(f"the build {outcome.status}, exit status {outcome.code}:\n{outcome.tail}")
    elif not part.rehearsed:
        failures += loads(part)
    return Report(content, failures, f"{outcome.status} after {outcome.seconds:.0f} s for {arch}")


def loads(part: Part) -> list[str]:
    """Whether Python finds what was built and the library would use it."""
    program = (
        "import fastrnn; from fastrnn.backends import get; "
        "v = [get(n).available() for n in ('cpu', 'cuda')]; print(fastrnn.__file__, v); "
        "raise SystemExit(not all(x.ok for x in v))"
    )
    command = [sys.executable, "-c", program]
    outcome = children.run(command, part.scratch / "build.log", seconds=max(part.left(), 1))
    return [] if outcome.ok else [f"what was built cannot be used: {outcome.tail}"]


def shared_library(source: Path, target: Path, arch: str) -> list[str]:
    """The command that compiles one source to a library for a GPU."""
    number = arch.removesuffix("-real")
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    command = [nvcc, "-std=c++17", "-O2", f"-I{children.ROOT / 'csrc'}", "-shared"]
    command += [f"-gencode=arch=compute_{number},code=sm_{number}", "-Xcompiler", "-fPIC"]
    return [*command, "-o", str(target), str(source)]
