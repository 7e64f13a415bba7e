"""The least time that a case could take: arithmetic, memory, and steps that wait for each other.

Arithmetic and memory by rates measured here, in the same process; the step by what the part
``sync`` measured, of this call or an earlier one, else by what the planner assumes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastrnn.cells import CELLS

from ..cases import TRAINING
from .cases import GpuCase
from .device import device
from .sync import assumed_waits
from .workload import GpuWorkload, precision

#: Blocks of the largest clusters, which not every device has.
MOST_OF_CLUSTER = 16


@functools.cache
def _product_rate(dtype: torch.dtype, tf32: bool) -> float:
    size = device().fit(4096, 64)
    a, b = (torch.randn(size, size, device=device().type, dtype=dtype) for _ in range(2))
    flags: Any = torch.backends.cuda.matmul
    named = hasattr(flags, "fp32_precision")
    name = "fp32_precision" if named else "allow_tf32"
    before = getattr(flags, name)
    setattr(flags, name, ("tf32" if tf32 else "ieee") if named else tf32)
    try:
        # So many that the host's lead, which the first waits for, weighs nothing.
        device().event_seconds(lambda: a @ b, 3)
        seconds = min(device().event_seconds(lambda: a @ b, 40) for _ in range(3))
    finally:
        setattr(flags, name, before)
    return float(2 * size**3 / seconds)


def product_rate(case: GpuCase) -> float:
    """Operations per second of a large torch.matmul in the case's arithmetic."""
    return _product_rate(case.dtype, case.tf32)


@functools.cache
def memory_rate() -> float:
    """Bytes per second of a large copy, read and written."""
    source = torch.empty(device().fit(1 << 30, 1 << 16), dtype=torch.uint8, device=device().type)
    target = torch.empty_like(source)
    source.zero_()
    device().event_seconds(lambda: target.copy_(source), 2)
    seconds = min(device().event_seconds(lambda: target.copy_(source), 10) for _ in range(3))
    return 2 * source.numel() / seconds


def step_cost(case: GpuCase, waits: Mapping[str, float], shared_bytes: int) -> float:
    """Seconds that blocks wait for each other in a step: none, a cluster's or a grid's exchange.

    By where the recurrent weights of a direction fit.
    """
    gates = CELLS[case.cell].gates
    weights = gates * case.hidden_size**2 * case.dtype.itemsize
    if weights <= shared_bytes:
        return 0.0
    return waits["cluster"] if weights <= MOST_OF_CLUSTER * shared_bytes else waits["grid"]


def known_waits(folders: Sequence[Path]) -> tuple[dict[str, float], str]:
    """What an exchange costs, by the first of the folders that knows, and whose figures it is."""
    waits = assumed_waits()
    for path in (folder / "gpu-sync.json" for folder in folders):
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        measured: dict[str, float] = content.get("waits", {})
        if measured:
            machine = content["machine"]
            source = f"measured on {machine['gpu']}, {machine['date']}"
            missing = [name for name in waits if name not in measured]
            source += f", but for the {' and '.join(missing)}'s" if missing else ""
            return waits | measured, source
    return waits, "assumed by the planner"


def floor(work: GpuWorkload, waits: Mapping[str, float]) -> dict[str, Any]:
    """Seconds by what each bound alone would take, the largest as ``least``, and its name."""
    case = work.case
    training = case.mode == TRAINING
    weights = sum(parameter.numel() for parameter in work.modules["fastrnn"].parameters())
    # x is read and y written; back, both and their gradients are read, and that of x written.
    values = work.rows * (case.input_size + case.directions * case.hidden_size)
    size = (weights + values) * case.dtype.itemsize * (3 if training else 1)
    shared = getattr(
        device().cuda.get_device_properties(device().index), "shared_memory_per_block_optin", 0
    )
    with precision(case):
        bounds = {
            "products": work.flops / product_rate(case),
            "memory": size / memory_rate(),
            "steps": case.steps
            * case.layers
            * (2 if training else 1)
            * step_cost(case, waits, shared or 232448),
        }
    bound = max(bounds, key=bounds.__getitem__)
    return {**bounds, "least": bounds[bound], "bound": bound}
