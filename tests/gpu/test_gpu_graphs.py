"""CUDA graphs: a captured call gives for other numbers in its memory what a new call gives."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from cases import Case, arguments, call
from on_gpu import REGIMES, device, moved, refusable, to_device
from torch import Tensor

import fastrnn
from bench.gpu import children

pytestmark = pytest.mark.gpu

CASES = (
    Case("lstm", torch.float32, steps=6, batch=9, hidden_size=40, input_size=12),
    Case("gru", torch.bfloat16, steps=6, batch=9, hidden_size=40, lengths="random"),
    Case("gru_reset_before", torch.float32, bidirectional=True, reset="random", batch=18),
    Case("lstm", torch.float16, steps=4, batch=5, hidden_size=200, proj_size=30),
)
FITTING = CASES[: device().fit(4, 3)]  # the last is large for an emulator
PRODUCT = tuple(itertools.product(FITTING, REGIMES, (False, True)))


@pytest.mark.parametrize(
    ("case", "regime", "training"),
    [
        pytest.param(*entry, id=f"{entry[0].id}-{entry[1]}-{'training' if entry[2] else ''}")
        for entry in device().some(PRODUCT, 7)
    ],
)
def test_replay(case: Case, regime: str | None, training: bool) -> None:
    a = moved(arguments(case))
    sources = [tensor.requires_grad_(training) for tensor in a.differentiable().values()]
    torch.manual_seed(1)
    above = to_device(torch.randn(case.steps, case.batch, case.directions * case.output_size))
    above = above.to(case.dtype)

    def compute() -> list[Tensor]:
        y = call(a)[0]
        grads = torch.autograd.grad(y, sources, above, allow_unused=True) if training else ()
        return [y.detach(), *(grad for grad in grads if grad is not None)]

    with (
        device().serving(regime) as name,
        fastrnn.use_backend(name),
        torch.set_grad_enabled(training),
    ):
        with refusable(regime):
            compute()
        captured = device().capture(compute)
        for seed in (2, 3):
            torch.manual_seed(seed)
            with torch.no_grad():
                for source in sources:
                    source.copy_(to_device(torch.randn(source.shape) / 4))
            before = device().allocations()
            captured.replay()
            captured.replay()
            assert device().allocations() == before
            device().cuda.synchronize()
            for replayed, wanted in zip(captured.result, compute(), strict=True):
                assert torch.equal(replayed, wanted)


COLD = """
import torch
import fastrnn
from bench.gpu.device import device, to_device

lstm = fastrnn.LSTM(12, 40).to(device().type)
x = to_device(torch.randn(6, 9, 12))
torch.mm(x[0], x[0].t())  # cuBLAS cannot be made ready during a capture
with device().serving() as name, fastrnn.use_backend(name), torch.no_grad():
    device().cuda.synchronize()
    graph = device().cuda.CUDAGraph()
    try:
        with device().cuda.graph(graph):
            y = lstm(x)[0]
    except RuntimeError as error:
        while isinstance(error.__context__, RuntimeError):  # a capture that failed ends in another
            error = error.__context__
        print(error)
        raise SystemExit
    graph.replay()
    device().cuda.synchronize()
    print("as called" if torch.equal(y, lstm(x)[0]) else "something else")
"""


def test_a_capture_without_a_call_before() -> None:
    """It is right, or CUDA has refused it: nothing in between. Kernels load at their first use, and
    no document says that all this may be done during a capture."""
    program = [sys.executable, "-c", COLD]
    found = subprocess.run(
        program, cwd=children.ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == "as called\n" or "captur" in found.stdout, found.stdout
