"""The kernels compiled and launched by CuPy (fastrnn/backends/cupy.py), where it is installed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from cases import Case
from on_gpu import FLOAT32, MATHS, Math, compare, device, expected, run
from torch import Tensor

import fastrnn

if device().without_cupy():
    pytest.skip(device().without_cupy(), allow_module_level=True)

pytestmark = pytest.mark.gpu

#: CuPy launches no clusters.
REGIMES = (None, "stepwise", "processor", "grid-1", "tiled-1")


def parameters() -> list[Any]:
    return [
        pytest.param(math, regime, id=f"{math.name}-{regime}")
        for math, regime in device().some(list(itertools.product(MATHS, REGIMES)), 9)
    ]


@pytest.mark.parametrize(("math", "regime"), parameters())
def test_every_arithmetic(math: Math, regime: str | None) -> None:
    case = Case("lstm", math.dtype, batch=19, hidden_size=27, bidirectional=True, lengths="random")
    compare(run(case, regime, math, cupy=True), expected(case), case, math)


@pytest.mark.parametrize("cell", ["gru", "gru_reset_before", "rnn_tanh"])
def test_other_cells(cell: str) -> None:
    case = Case(cell, torch.float32, batch=19, hidden_size=27, reset="random")
    compare(run(case, cupy=True), expected(case), case, FLOAT32)


def test_two_streams() -> None:
    """Launches go to torch's current stream, and calls under way at the same time do not meet."""
    module = fastrnn.LSTM(32, device().fit(256, 17), device=device().type)
    steps = device().fit(100, 3)
    inputs = [torch.randn(steps, 16, 32, device=device().type) for _ in range(2)]

    def outputs(x: Tensor) -> list[Tensor]:
        y = module(x)[0]
        return [y.detach(), *torch.autograd.grad(y.sum(), list(module.parameters()))]

    with device().serving_cupy() as name, fastrnn.use_backend(name):
        alone = [outputs(x) for x in inputs]
        streams = [device().cuda.Stream() for _ in inputs]
        device().cuda.synchronize()
        for _ in range(device().fit(20, 2)):
            found = []
            for stream, x in zip(streams, inputs, strict=True):
                with device().cuda.stream(stream):
                    found.append(outputs(x))
            device().cuda.synchronize()
            for one, wanted in zip(found, alone, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one, wanted, strict=True))
