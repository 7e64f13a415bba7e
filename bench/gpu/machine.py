"""What a figure of a GPU depends on beside the code."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from typing import Any

import torch

from .. import machine
from .building import version
from .device import device

#: Environment: the commit, where the tree is no clone.
COMMIT = "GPU_COMMIT"


def _driver() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip().partition("\n")[0]


@functools.cache
def _constant() -> dict[str, Any]:
    found = device().cuda.get_device_properties(device().index)
    return {
        "gpu": found.name,
        "capability": f"{found.major}.{found.minor}",
        "processors": found.multi_processor_count,
        "gpu_memory": found.total_memory,
        "l2_bytes": getattr(found, "L2_cache_size", None),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": version("nvcc"),
        "rehearsed": device().rehearsed,
    }


def facts() -> dict[str, Any]:
    """Machine, driver, versions, the flags of TF32 as they stand, commit and date."""
    found = machine.facts() | _constant()
    found["commit"] = found["commit"] or os.environ.get(COMMIT, "")
    found["tf32"] = {
        "cudnn": _precision(torch.backends.cudnn),
        "matmul": _precision(torch.backends.cuda.matmul),
    }
    return found


def _precision(flags: Any) -> str:
    """torch's flag, by its newer name where it has one."""
    flags = getattr(flags, "rnn", flags)
    named = getattr(flags, "fp32_precision", None)
    return str(flags.allow_tf32 if named is None else named)
