"""Autocast on the device: torch.nn's dtypes, and numbers as near as its own roundings allow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import CELLS, SEQUENCES, assert_same, example, gradients, packed, pair
from on_gpu import device
from test_autocast import AUTOCAST_CALLS, taggers, train

import fastrnn

pytestmark = pytest.mark.gpu

# On the CPU, torch's own LSTM has no float16.
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16][: device().fit(2, 1)], ids=str
)


@DTYPES
@pytest.mark.parametrize(("kind", "how", "layers"), AUTOCAST_CALLS)
def test_autocast(kind: str, how: str, layers: int, dtype: torch.dtype) -> None:
    options = {} if kind in CELLS else {"num_layers": layers}
    where = device().type
    ours, theirs = (module.to(where) for module in pair(kind, 3, 4, **options))
    x: Any = packed(2, 4, 3) if how == "packed" else example(kind, steps=5)
    x = x.to(where, dtype) if how == "16 bits" else x.to(where)
    with torch.autocast(where, dtype=dtype):
        assert_same(ours(x), theirs(x), dtype=dtype)
        expected = {k: g if g is None else g.clone() for k, g in gradients(theirs, x).items()}
        actual = gradients(ours, x)
    for name, gradient in expected.items():
        assert_same(actual[name], gradient, rows=10, dtype=dtype)


@DTYPES
@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_grad_scaler(kind: str, dtype: torch.dtype) -> None:
    x = example(kind).to(device().type)
    results, scales = [], []
    for model in taggers(kind, device().type):
        scaler = torch.amp.GradScaler(device().type, init_scale=2.0**10)
        results.append(train(model, x, dtype, scaler=scaler))
        scales.append(scaler.get_scale())
    assert scales == [2.0**9] * 2
    assert_same(*results, dtype=dtype)


def test_options_beyond_torch() -> None:
    """The kernels, in the dtype of the weights."""
    lstm = fastrnn.LSTM(8, 16, device=device().type)
    x = torch.randn(5, 3, 8, device=device().type)
    with device().serving() as name, fastrnn.use_backend(name):
        plain = lstm(x, lengths=[5, 0, 2])[0]
        with torch.autocast(device().type, dtype=torch.bfloat16):
            again = lstm(x, lengths=[5, 0, 2])[0]
    assert again.dtype == torch.float32
    assert torch.equal(plain, again)
