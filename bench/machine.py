"""What a figure depends on beside the code: machine, versions, threads, commit."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import fastrnn

from . import onnx_peer

#: What /proc/cpuinfo calls the numbers of a processor.
_NUMBERS = {"family": "cpu family", "model": "model"}


def _cpu_model() -> str:
    """The processor's name, family and model: virtual machines give several processors one name."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        first = ""  # not Linux
    lines = [line.partition(":") for line in first.splitlines()]
    known = {key.strip(): value.strip() for key, _, value in lines}
    if "model name" not in known:
        return platform.processor() or platform.machine()
    numbers = [f"{name} {known[key]}" for name, key in _NUMBERS.items() if key in known]
    return ", ".join([known["model name"], *numbers])


def _commit() -> str:
    """Commit of the working tree, with a mark if it was changed; empty outside a clone."""
    folder = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def facts() -> dict[str, Any]:
    """All of it, for the JSON file and for the line under the table."""
    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "onnxruntime": onnx_peer.version(),
        "fastrnn": fastrnn.__version__,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
