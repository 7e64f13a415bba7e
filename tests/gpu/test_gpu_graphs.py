"""CUDA graphs: a captured call gives for other numbers in its memory what a new call gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import Case, arguments, call
from on_gpu import REGIMES, device, moved, refusable, to_device
from torch import Tensor

import fastrnn

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
