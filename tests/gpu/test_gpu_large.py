"""Tensors of more than 2**31 elements: no offset is computed in 32 bits."""

from __future__ import annotations

import pytest
import torch
from on_gpu import device
from tolerances import error_in_tolerances, tolerance
from torch import Tensor

import fastrnn

pytestmark = pytest.mark.gpu

ROWS, COMPARED, INPUT = device().fit(4096, 24), 8, 8
HIDDEN = device().fit(1024, 16)
GIB = 1 << 30


def outputs(module: torch.nn.Module, x: Tensor, above: Tensor) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    y = module(leaf)[0]
    grads = torch.autograd.grad(y, [leaf, *module.parameters()], above)
    return [y.detach()[-3:, -COMPARED:].clone(), grads[0][:, -COMPARED:].clone(), *grads[1:]]


@pytest.mark.parametrize(
    ("kind", "steps", "gib"), [("RNN", 530, 40), ("GRU", 180, 60), ("LSTM", 140, 60)]
)
def test_the_last_rows_of_a_large_batch(kind: str, steps: int, gib: int) -> None:
    """The same as of those rows alone: y of an RNN, the gates of a GRU and an LSTM are the largest.

    Only they have a gradient, so that those of the weights are theirs too.
    """
    device().cuda.empty_cache()  # what torch keeps of tests before is as good as free
    if device().cuda.mem_get_info()[0] < gib * GIB:
        pytest.skip(f"needs {gib} GiB of free memory on the device")
    steps = device().fit(steps, 3)
    torch.manual_seed(0)
    dtype = torch.float16
    module = getattr(fastrnn, kind)(INPUT, HIDDEN, device=device().type, dtype=dtype)
    x = torch.randn(steps, ROWS, INPUT, device=device().type, dtype=dtype)
    above = torch.zeros(steps, ROWS, HIDDEN, device=device().type, dtype=dtype)
    above[:, -COMPARED:] = torch.randn(steps, COMPARED, HIDDEN, device=device().type, dtype=dtype)
    assert (
        device().rehearsed or max(1, len(module.weight_ih_l0) // HIDDEN) * above.numel() > 1 << 31
    )
    with device().serving() as name, fastrnn.use_backend(name):
        alone = outputs(module, x[:, -COMPARED:].contiguous(), above[:, -COMPARED:].contiguous())
        found = outputs(module, x, above)
    for place, (one, two) in enumerate(zip(found, alone, strict=True)):
        rows = steps * COMPARED if place > 1 else 1  # a gradient of weights is a sum over these
        bounds = tolerance(torch.float32, steps, 4 * HIDDEN, rows=rows, storage=dtype)
        assert error_in_tolerances(one, two, **bounds) <= 1
    del x, above, found, alone
    device().cuda.empty_cache()
