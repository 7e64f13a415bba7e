"""What synchronisation costs on this GPU, beside what the planner assumes (``sync.cu``).

Run as a program, ``python -m bench.gpu.sync LIBRARY``, it prints the figures of a compiled library.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import children
from .building import architecture, shared_library
from .device import device
from .part import Part, Report
from .rehearsal import MULTIPROCESSORS, emulated

SOURCE = Path(__file__).resolve().parent / "sync.cu"
PLAN = children.ROOT / "csrc" / "cuda" / "plan.cpp"


def assumed(text: str | None = None) -> dict[str, float]:
    """The constants of ``Rates`` in csrc/cuda/plan.cpp by name."""
    text = PLAN.read_text(encoding="utf-8") if text is None else text
    body = re.search(r"struct Rates \{(.*?)^\};", text, re.DOTALL | re.MULTILINE)
    if body is None:
        return {}
    found = re.findall(r"static constexpr double (k\w+) = ([\d.e+-]+);", body[1])
    return {name: float(value) for name, value in found}


def rates(figures: Mapping[str, Any]) -> dict[str, float]:
    """The same by what was measured; those that this cannot measure are left out.

    kBlock is a lower bound: two barriers of a block, without the arithmetic of a tile. kCluster and
    kFlag are with the stores that a training step leaves under way, which both wait for.
    """
    sources = {
        "kLaunch": ("launch_full", 1.0),
        "kBlock": ("block_barrier", 2.0),
        "kCluster": ("cluster_barrier_full_8_storing", 1.0),
        "kFlag": ("value_hop_storing", 1.0),
        "kShared": ("shared", 1.0),
        "kFromL2": ("l2_one", 1.0),
        "kL2": ("l2_all_own", 1.0),
        "kMemory": ("memory", 1.0),
    }
    return {
        name: factor * figures[figure]
        for name, (figure, factor) in sources.items()
        if figures.get(figure)
    }


#: What blocks exchange through, the planner's constant for it, and what was measured of the least
#: that it costs: with nothing else under way.
WAITS = {"cluster": ("kCluster", "cluster_barrier_full_8"), "grid": ("kFlag", "value_hop")}


def waits(figures: Mapping[str, Any]) -> dict[str, float]:
    """The least seconds of an exchange by what it goes through, for floors."""
    return {name: figures[figure] for name, (_, figure) in WAITS.items() if figures.get(figure)}


def assumed_waits() -> dict[str, float]:
    """The same by the planner's constants, which are of a training step."""
    constants = assumed()
    return {name: constants[constant] for name, (constant, _) in WAITS.items()}


def read(text: str) -> tuple[dict[str, float], list[str]]:
    """The figures that the program has printed, and what it could not measure, as sentences."""
    figures, errors = {}, []
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        name, _, value = rest.partition(" ")
        if kind == "figure":
            figures[name] = float(value)
        elif kind == "error":
            errors.append(f"{name}: {value}")
    return figures, errors


def measure(library: Path) -> None:
    """Print the figures of a compiled library."""
    if device().rehearsed:
        loaded = emulated().runner.Emulated(library)
        loaded.configure(multiprocessors=MULTIPROCESSORS)
        function = loaded.library.fastrnn_sync
    else:
        function = ctypes.CDLL(str(library)).fastrnn_sync
    function.restype = None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    rounds, memory = device().fit(2000, 2), device().fit(4 << 30, 1 << 22)
    function(device().index, rounds, memory)


def run(part: Part) -> Report:
    log = part.scratch / "sync.log"
    if part.rehearsed:
        library = emulated().runner.build([SOURCE], checked=False, flags=("-O1",))
    else:
        library = part.scratch / "sync.so"
        command = shared_library(SOURCE, library, architecture())
        outcome = children.run(command, log, seconds=part.left())
        if not outcome.ok:
            return Report({"tail": outcome.tail}, [f"nvcc failed:\n{outcome.tail}"], "not compiled")
    command = [sys.executable, "-m", "bench.gpu.sync", str(library)]
    outcome = children.run(command, log, seconds=part.left())
    figures, errors = read(log.read_text(errors="replace"))
    if not outcome.ok or not figures:
        last = list(figures)[-1] if figures else "nothing"
        sentence = f"the program {outcome.status}, exit status {outcome.code}, after {last}"
        errors.append(f"{sentence}: {outcome.tail[-500:]}")
    measured, expected = rates(figures), assumed()
    for name in expected:
        beside = f"{measured[name]:.3g}" if name in measured else "not measured"
        print(f"  {name:<10} assumed {expected[name]:.3g}, measured {beside}", flush=True)
    content = {"figures": figures, "rates": measured, "assumed": expected, "errors": errors}
    content |= {"waits": waits(figures)}
    return Report(content, errors, f"{len(figures)} figures, {len(errors)} could not be measured")


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
