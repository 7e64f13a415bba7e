"""dtypes, and devices without storage (section 5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import (
    CELLS,
    FASTRNN,
    SEQUENCES,
    TORCH,
    assert_same,
    assert_same_error,
    example,
    flat,
    packed,
    pair,
    states,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.utils.rnn import PackedSequence

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64)

#: complex numbers round like their parts.
ROUNDING = {torch.complex64: torch.float32}


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    options = {} if kind in CELLS else {"num_layers": 2, "bidirectional": True}
    ours, theirs = pair(kind, 3, 4, dtype=dtype, **options)
    x = example(kind, dtype).requires_grad_()
    hx = states(ours, 2, dtype)
    rounding = ROUNDING.get(dtype, dtype)
    assert_same(ours(x), theirs(x), dtype=rounding)
    assert_same(ours(x, hx), theirs(x, hx), dtype=rounding)

    def of_real_loss(module: Any) -> list[Tensor]:
        outputs = flat(module(x, hx))
        loss = sum(torch.view_as_real(o).sum() if o.is_complex() else o.sum() for o in outputs)
        assert isinstance(loss, Tensor)
        return list(torch.autograd.grad(loss, [x, *module.parameters()]))

    assert_same(of_real_loss(ours), of_real_loss(theirs), rows=10, dtype=rounding)


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64], ids=str)
def test_dtypes_of_packed(kind: str, dtype: torch.dtype) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=dtype)
    x = packed(2, 4, 3, dtype=dtype)
    assert_same(ours(x), theirs(x), dtype=ROUNDING.get(dtype, dtype))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_integers(kind: str) -> None:
    assert_same_error(
        lambda: FASTRNN[kind](3, 4, dtype=torch.int64), lambda: TORCH[kind](3, 4, dtype=torch.int64)
    )
    assert_same_error(
        lambda: FASTRNN[kind](3, 4).to(torch.int64), lambda: TORCH[kind](3, 4).to(torch.int64)
    )


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_converted_modules(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        before = list(ours.parameters())
        ours.to(dtype)
        theirs.to(dtype)
        assert all(a is b for a, b in zip(before, ours.parameters(), strict=True))
        x = example(kind, dtype)
        assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_are_contiguous(kind: str, steps: int, layers: int, dtype: torch.dtype) -> None:
    """Whatever layout the states come in, and whoever serves the call."""
    ours, theirs = pair(kind, 3, 4, layers, dtype=dtype)
    x = torch.randn(steps, 5, 3, dtype=dtype)
    given = flat(states(ours, 5, dtype))
    transposed = [state.transpose(0, 2).contiguous().transpose(0, 2) for state in given]
    hx = tuple(transposed) if kind == "LSTM" else transposed[0]
    for module in (ours, theirs):
        assert all(output.is_contiguous() for output in flat(module(x, hx)))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("hx_given", [True, False])
def test_meta(kind: str, hx_given: bool) -> None:
    ours, theirs = FASTRNN[kind](3, 4, device="meta"), TORCH[kind](3, 4, device="meta")
    x = example(kind, torch.float32).to("meta")
    hx: Any = None
    if hx_given:
        hx = states(ours, 2)
        hx = tuple(s.to("meta") for s in hx) if "LSTM" in kind else hx.to("meta")
    actual, expected = flat(ours(x, hx)), flat(theirs(x, hx))
    assert [(a.device.type, a.shape, a.dtype) for a in actual] == [
        (e.device.type, e.shape, e.dtype) for e in expected
    ]
    assert actual[0].is_meta
    sum(a.sum() for a in actual).backward()
    assert all(weight.grad.is_meta for weight in ours.parameters())


@pytest.mark.parametrize("kind", SEQUENCES)
def test_meta_packed(kind: str) -> None:
    ours = FASTRNN[kind](3, 4, device="meta")
    x = packed(2, 4, 3)
    output, hidden = ours(PackedSequence(x.data.to("meta"), x.batch_sizes))
    assert output.data.is_meta
    assert output.data.shape == (9, 4)
    assert flat(hidden)[0].shape == (1, 3, 4)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("grad", [True, False])
def test_fake_tensors(kind: str, grad: bool) -> None:
    with FakeTensorMode(), torch.set_grad_enabled(grad):
        ours, theirs = FASTRNN[kind](3, 4), TORCH[kind](3, 4)
        x = example(kind, torch.float32)
        actual, expected = flat(ours(x)), flat(theirs(x))
        for a, e in zip(actual, expected, strict=True):
            assert isinstance(a, FakeTensor)
            assert (a.device, a.shape, a.dtype) == (e.device, e.shape, e.dtype)
        if grad:
            actual[0].sum().backward()
            assert isinstance(next(ours.parameters()).grad, FakeTensor)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_fake_tensors_of_real_modules(kind: str) -> None:
    ours, _ = pair(kind, 3, 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(flat(ours(example(kind, torch.float32)))[0], FakeTensor)
