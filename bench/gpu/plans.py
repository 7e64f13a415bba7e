"""What the planner chooses for a case on this device, and the seconds of a step by prediction."""

from __future__ import annotations

from typing import Any

from fastrnn.backends.cuda import CudaBackend
from fastrnn.cells import CELLS

from ..cases import TRAINING
from .cases import BFLOAT16, FLOAT16, FLOAT32, TF32, GpuCase
from .device import device

#: The kernels' arithmetics, in the order of CudaMath (csrc/cuda/kernels.h).
MATHS = (FLOAT16, BFLOAT16, FLOAT32, TF32)


def predicted(case: GpuCase, backend: CudaBackend) -> dict[str, Any]:
    """``forward``, and of training ``backward``: the plan of a layer, as its calls find it.

    Raises:
        RuntimeError: the backend insists on a regime that cannot run the case here.
    """
    sizes = (
        case.steps,
        case.batch,
        case.steps * case.batch,
        case.input_size,
        case.hidden_size,
        case.hidden_size,
        case.directions,
    )
    math, cell = MATHS.index(case.dtype_name), list(CELLS).index(case.cell)
    passes = {"forward": False, "backward": True} if case.mode == TRAINING else {"forward": False}
    return {
        name: backend.extension().planned(
            backward, math, cell, device().index, sizes, backend.choice
        )
        for name, backward in passes.items()
    }
