"""``python -m fastrnn doctor``: what is installed, what runs here, and whether it is right."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib import metadata
from typing import Any

import torch

from . import _env, backends
from ._version import __version__
from .backends import cpu
from .cells import CELLS
from .problem import LayerInputs

#: Largest difference from ``reference`` in float64 that the self-check accepts.
SELF_CHECK_BOUND = 1e-12


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's own name where the system tells it, else its kind."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def self_check(backend: str) -> float:
    """Largest difference between a backend and ``reference``: every cell, forward and backward.

    A small bidirectional layer in float64 with lengths and resets, seeded, on the device that the
    backend is for.
    """
    from .autograd import layer

    device, worst = getattr(backends.get(backend), "device_type", "cpu"), 0.0
    steps, batch, features, hidden = 5, 3, 4, 6
    for cell in CELLS.values():
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int, source: torch.Generator = generator) -> torch.Tensor:
            values = torch.randn(*shape, dtype=torch.float64, generator=source)
            return values.to(device).requires_grad_()

        rows = cell.gates * hidden
        weights = [
            (0.3 * random(*shape)).detach().requires_grad_()
            for _ in range(2)
            for shape in ((rows, features), (rows, hidden), (rows,), (rows,))
        ]
        inputs = LayerInputs(
            x=random(steps, batch, features),
            h0=random(2, batch, hidden),
            c0=random(2, batch, hidden) if cell.has_cell_state else None,
            weights=weights,
            lengths=torch.tensor([5, 2, 3]),
            batch_sizes=None,
            reset=torch.arange(steps * batch, device=device).view(steps, batch) % 7 == 3,
        )
        results = []
        for name in (backend, "reference"):
            with backends.use_backend(name):
                outputs = layer(cell.name, inputs, directions=2, keep_cell_states=False)
            kept = [outputs.y, outputs.h_n, *([] if outputs.c_n is None else [outputs.c_n])]
            loss = torch.stack([tensor.sin().sum() for tensor in kept]).sum()
            sources = [t for t in (inputs.x, inputs.h0, inputs.c0, *weights) if t is not None]
            results.append([*kept, *torch.autograd.grad(loss, sources)])
        differences = [(a - b).abs().max().item() for a, b in zip(*results, strict=True)]
        worst = max(worst, *differences)
    return worst


def report() -> dict[str, Any]:
    """Everything ``doctor`` prints, as plain values."""
    try:
        extension, reason = cpu.load()
    except ValueError as error:
        extension, reason = None, str(error)
    native: dict[str, Any] = {"built": extension is not None, "reason": reason}
    if extension is not None:
        native |= {
            "version": extension.__version__,
            "compiler": extension.compiler,
            "openmp": extension.openmp,
            "isa": extension.active_target(),
            "isa_usable": extension.targets(),
        }
    entries = {}
    for name, backend in backends.backends().items():
        entry: dict[str, Any] = {}
        entries[name] = entry
        try:
            entry["usable"], entry["reason"] = backend.available()
            # torch has neither lengths nor resets, so it has nothing to be checked on here.
            if entry["usable"] and isinstance(backend, backends.FusedBackend):
                entry["self_check"] = self_check(name)
                entry["failed"] = not entry["self_check"] <= SELF_CHECK_BOUND
        except Exception as error:  # a doctor reports whatever is wrong and goes on
            entry["reason"], entry["failed"] = f"{type(error).__name__}: {error}", True
        entry["usable"] = entry.get("usable", False) and not entry.get("failed", False)
    return {
        "fastrnn": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "packages": {
            name: _version_of(name)
            for name in ("torch", "numpy", "numba", "cupy-cuda13x", "pybind11")
        },
        "threads": {"torch": torch.get_num_threads(), "fastrnn": _kernel_threads()},
        "cpu_count": os.cpu_count(),
        "native": native,
        "backends": entries,
        "environment": {
            variable.name: _env.get(variable.name)
            for variable in _env.VARIABLES
            if os.environ.get(variable.name)
        },
    }


def _kernel_threads() -> int | str:
    try:
        return cpu.num_threads()
    except ValueError as error:
        return str(error)


def healthy(found: dict[str, Any]) -> bool:
    """Whether what was built belongs to this version and no backend failed or is wrong."""
    native = found["native"]
    if native["built"] and native["version"] != found["fastrnn"]:
        return False
    forced = found["environment"].get("FASTRNN_BACKEND")
    if forced and not found["backends"].get(forced, {}).get("usable"):
        return False
    if not isinstance(found["threads"]["fastrnn"], int):
        return False
    return not any(entry.get("failed") for entry in found["backends"].values())


def _print(found: dict[str, Any]) -> None:
    native = found["native"]
    packages = ", ".join(f"{name} {version or '-'}" for name, version in found["packages"].items())
    print(f"fastrnn {found['fastrnn']}, Python {found['python']}, {found['platform']}")
    print(f"  {packages}")
    print(f"  {found['processor']}, {found['cpu_count']} CPUs, threads {found['threads']}")
    if native["built"]:
        print(
            f"  extension {native['version']}, compiler {native['compiler']}, OpenMP "
            f"{'yes' if native['openmp'] else 'no'}, kernels {native['isa']} "
            f"of {', '.join(native['isa_usable'])}"
        )
        if native["version"] != found["fastrnn"]:
            print("  MISMATCH: the extension was built for another version; build it again")
    for name, value in found["environment"].items():
        print(f"  {name}={value}")
    print("backends")
    for name, entry in found["backends"].items():
        check = entry.get("self_check")
        shown = "" if check is None else f"; self-check against reference: {check:.1e}"
        state = "usable" if entry["usable"] else "NOT USABLE"
        print(f"  {name:<10} {state}: {entry['reason']}{shown}")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of ``python -m fastrnn``; returns the exit status, 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="fastrnn", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="versions, build, backends and a self-check")
    doctor.add_argument("--json", action="store_true", help="the same as JSON")
    options = parser.parse_args(arguments)
    found = report()
    if options.json:
        json.dump(found, sys.stdout, indent=2)
        print()
    else:
        _print(found)
    return 0 if healthy(found) else 1
