"""What the planner predicts for a case: the regime and the seconds of a step, forward and back."""

from __future__ import annotations

from typing import Any

from fastrnn.backends.cuda import FREE, CudaBackend, choice_of
from fastrnn.cells import CELLS

from .cases import GpuCase
from .device import device

#: Bytes of a brick, in which weights and states lie (csrc/cuda/README.md).
BRICK = 64


def stage(units: int, gates: int, values: int, itemsize: int) -> tuple[int, int, int, int]:
    """A product of ``gates * units`` rows with states of so many values, as ``plan`` takes it."""
    bricks = -(-values * itemsize // BRICK)
    return units, gates, bricks, (bricks | 1) * BRICK


def predicted(case: GpuCase, backend: CudaBackend, processors: int) -> dict[str, Any]:
    """``forward`` and ``backward``: what the planner chooses for one layer, empty where it cannot.

    For a device on which everything that fits is resident.
    """
    properties = device().cuda.get_device_properties(device().index)
    gates, hidden, itemsize = CELLS[case.cell].gates, case.hidden_size, case.dtype.itemsize
    matrix = case.tf32 or itemsize == 2
    choice = choice_of(case.regime) if case.regime else FREE
    shared = getattr(properties, "shared_memory_per_block_optin", 0) or 232448
    clusters = 8 if properties.major >= 9 else 1  # blocks of one, of the size that is portable
    passes = {
        "forward": stage(hidden, gates, hidden, itemsize),
        "backward": stage(hidden, 1, gates * hidden, itemsize),
    }
    return {
        name: backend.extension().plan(
            1,
            [sizes],
            case.steps,
            case.batch,
            case.directions,
            matrix,
            itemsize,
            processors,
            shared,
            clusters,
            processors,
            choice,
        )
        for name, sizes in passes.items()
    }
