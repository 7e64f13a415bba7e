"""The cells (section 4.4)."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from contract import (
    CELLS,
    FASTRNN,
    assert_same,
    assert_same_error,
    assert_same_gradients,
    error,
    flat,
    pair,
    states,
)
from torch import Tensor, nn

OPTIONS: list[Any] = [
    pytest.param(kind, options, id=f"{kind}-{options}")
    for kind in CELLS
    for options in ({}, {"bias": False}, {"dtype": torch.float64})
] + [pytest.param("RNNCell", {"nonlinearity": "relu"}, id="RNNCell-relu")]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
@pytest.mark.parametrize("batch", [None, 0, 1, 3])
@pytest.mark.parametrize("hx_given", [True, False])
@pytest.mark.parametrize("hidden_size", [0, 1, 4])
def test_same_outputs(
    kind: str, options: dict[str, Any], batch: int | None, hx_given: bool, hidden_size: int
) -> None:
    ours, theirs = pair(kind, 3, hidden_size, **options)
    dtype = options.get("dtype", torch.float32)
    x = torch.randn(3, dtype=dtype) if batch is None else torch.randn(batch, 3, dtype=dtype)
    hx = states(ours, batch, dtype) if hx_given else None
    assert_same(ours(x, hx), theirs(x, hx))
    assert_same(ours(input=x, hx=hx), theirs(input=x, hx=hx))
    if kind == "LSTMCell" and hx_given:
        assert_same(ours(x, list(hx)), theirs(x, list(hx)))


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
@pytest.mark.parametrize("batch", [None, 3])
def test_same_gradients(kind: str, options: dict[str, Any], batch: int | None) -> None:
    options = options | {"dtype": torch.float64}
    ours, theirs = pair(kind, 3, 4, **options)
    x = torch.randn(*(() if batch is None else (batch,)), 3, dtype=torch.float64)
    x.requires_grad_()
    hx = states(ours, batch, torch.float64)
    for state in flat(hx):
        state.requires_grad_()
    assert_same_gradients(ours, theirs, x, hx)


BAD_INPUTS: dict[str, Any] = {
    "none": None,
    "list": [1.0, 2.0, 3.0],
    "numpy": numpy.zeros(3, dtype=numpy.float32),
    "0-D": torch.zeros(()),
    "3-D": torch.zeros(1, 2, 3),
    "features": torch.zeros(2, 7),
    "one feature": torch.zeros(2, 1),
    "features, unbatched": torch.zeros(7),
    "dtype": torch.zeros(2, 3, dtype=torch.float64),
    "integers": torch.zeros(2, 3, dtype=torch.int64),
    "device": torch.zeros(2, 3, device="meta"),
}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("x", BAD_INPUTS.values(), ids=BAD_INPUTS)
@pytest.mark.parametrize("hx_given", [True, False])
def test_input_checks(kind: str, x: Any, hx_given: bool) -> None:
    ours, theirs = pair(kind, 3, 4)
    hx = states(ours, None if isinstance(x, Tensor) and x.dim() == 1 else 2) if hx_given else None
    assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(
    "shape", [(), (4,), (2, 4), (1, 4), (3, 4), (2, 5), (2, 1), (5,), (1, 2, 4)], ids=str
)
@pytest.mark.parametrize("batch", [None, 1, 2])
def test_state_checks(kind: str, shape: tuple[int, ...], batch: int | None) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = torch.randn(*(() if batch is None else (batch,)), 3)
    wrong = torch.zeros(shape)
    right = torch.zeros(*(() if batch is None else (batch,)), 4)
    candidates = [(wrong, right), (right, wrong)] if kind == "LSTMCell" else [wrong]
    for hx in candidates:
        if shape == right.shape:
            assert_same(ours(x, hx), theirs(x, hx))
        else:
            assert_same_error(lambda hx=hx: ours(x, hx), lambda hx=hx: theirs(x, hx))


def test_states_of_lstm_cell() -> None:
    ours, theirs = pair("LSTMCell", 3, 4)
    x, h = torch.randn(2, 3), torch.zeros(2, 4)
    for hx in (h, torch.zeros(2, 2, 4), (h, h, h), (h,), (), 5, (h, None), (None, h)):
        assert_same_error(lambda hx=hx: ours(x, hx), lambda hx=hx: theirs(x, hx))
    assert str(error(lambda: ours(x, (h, h, h)))) == "lstm_cell expects two hidden states"
    result = ours(x, [h, h])
    assert type(result) is tuple


@pytest.mark.parametrize("kind", CELLS)
def test_dtype_of_state(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    hx = states(ours, 2, torch.float64)
    x = torch.randn(2, 3)
    assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))


@pytest.mark.parametrize("kind", CELLS)
def test_device_of_state(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    h = torch.zeros(2, 4)
    there = [(h.to("meta"), h), (h, h.to("meta"))] if kind == "LSTMCell" else [h.to("meta")]
    for hx in there:
        x = torch.randn(2, 3)
        assert_same_error(lambda x=x, hx=hx: ours(x, hx), lambda x=x, hx=hx: theirs(x, hx))


SPARSE = ("to_sparse", "to_sparse_csr", "to_sparse_csc")


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("kind", CELLS)
def test_sparse_input(kind: str, layout: str, grad: bool) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = getattr(torch.randn(2, 3).relu(), layout)()
    hx = states(ours, 2)
    with torch.set_grad_enabled(grad):
        assert_same(ours(x), theirs(x))
        assert_same(ours(x, hx), theirs(x, hx))
    if grad:
        results = []
        for module in (ours, theirs):
            flat(module(x, hx))[0].sum().backward()
            results.append([weight.grad for weight in module.parameters()])
        assert_same(*results, rows=2)


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("kind", CELLS)
def test_sparse_states(kind: str, layout: str) -> None:
    """torch has the products, but not each of the sums."""
    ours, theirs = pair(kind, 3, 4)
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    sparse = getattr(h, layout)()
    for hx in ((sparse, h), (h, sparse)) if kind == "LSTMCell" else (sparse,):
        try:
            expected = theirs(x, hx)
        except RuntimeError:
            assert_same_error(lambda hx=hx: ours(x, hx), lambda hx=hx: theirs(x, hx))
        else:
            assert_same(ours(x, hx), expected)


@pytest.mark.parametrize("weight", ["weight_ih", "weight_hh"])
@pytest.mark.parametrize("kind", CELLS)
def test_sparse_weights(kind: str, weight: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    for module in (ours, theirs):
        module.requires_grad_(False)
        setattr(module, weight, nn.Parameter(getattr(module, weight).to_sparse_csr(), False))
    assert_same(ours(torch.ones(2, 3)), theirs(torch.ones(2, 3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_dtype_of_cell_state(dtype: torch.dtype, grad: bool) -> None:
    """c enters no product, so torch.nn takes any dtype and promotes."""
    ours, theirs = pair("LSTMCell", 3, 4)
    x, h, c = torch.randn(2, 3), torch.randn(2, 4), torch.ones(2, 4, dtype=dtype)
    with torch.set_grad_enabled(grad):
        assert_same(ours(x, (h, c)), theirs(x, (h, c)), dtype=torch.float32)


@pytest.mark.parametrize("kind", CELLS)
def test_states_that_are_no_tensors(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = torch.zeros(2, 3)
    array = numpy.zeros((2, 4), dtype=numpy.float32)
    candidates: tuple[Any, ...] = (array, "x", 5)
    if kind != "LSTMCell":
        candidates += ((torch.zeros(2, 4),), [torch.zeros(2, 4)])
    for state in candidates:
        hx = (state, torch.zeros(2, 4)) if kind == "LSTMCell" else state
        assert_same_error(lambda hx=hx: ours(x, hx), lambda hx=hx: theirs(x, hx))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize("grad", [True, False])
def test_no_output_shares_memory(kind: str, batch: int | None, grad: bool) -> None:
    ours, _ = pair(kind, 4, 4)
    x = torch.randn(*(() if batch is None else (batch,)), 4)
    hx = states(ours, batch)
    with torch.set_grad_enabled(grad):
        outputs = flat(ours(x, hx))
    everything = [*outputs, x, *flat(hx), *ours.parameters()]
    storages = [tensor.untyped_storage().data_ptr() for tensor in everything]
    assert len(set(storages)) == len(storages)
    assert all(output.is_contiguous() for output in outputs)


@pytest.mark.parametrize("kind", CELLS)
def test_states_can_be_detached_in_place(kind: str) -> None:
    ours, _ = pair(kind, 3, 4)
    for state in flat(ours(torch.randn(2, 3))):
        assert state.detach_().grad_fn is None


@pytest.mark.parametrize("grad", [True, False])
def test_where_torch_reads_out_of_bounds(grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        for state in (torch.zeros(1, 1), torch.zeros(1)):
            for kind, hx in (
                ("GRUCell", torch.zeros(1, 1)),
                ("LSTMCell", (torch.zeros(1, 1), state)),
            ):
                with pytest.raises(RuntimeError, match="hidden0: expected a vector"):
                    FASTRNN[kind](3, 1)(torch.zeros(3), hx)
        with pytest.raises(RuntimeError, match="hidden1: expected a vector"):
            FASTRNN["LSTMCell"](3, 1)(torch.zeros(3), (torch.zeros(1), torch.zeros(1, 1)))


@pytest.mark.parametrize("kind", CELLS)
def test_loop_over_cells(kind: str) -> None:
    """Several steps through one cell, as users write them, forward and backward."""
    ours, theirs = pair(kind, 3, 4, dtype=torch.float64)
    xs = torch.randn(5, 2, 3, dtype=torch.float64)
    results = []
    for module in (ours, theirs):
        hx, outputs = None, []
        for x in xs:
            hx = module(x, hx)
            outputs.append(flat(hx)[0])
        grads = torch.autograd.grad(torch.stack(outputs).square().sum(), list(module.parameters()))
        results.append((outputs, list(grads)))
    assert_same(results[0][0], results[1][0])
    assert_same(results[0][1], results[1][1], rows=10)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_wrong_weights(kind: str, name: str) -> None:
    ours = FASTRNN[kind](3, 4)
    old = getattr(ours, name)
    setattr(ours, name, nn.Parameter(torch.zeros(old.shape[0] + 1, *old.shape[1:])))
    assert type(error(lambda: ours(torch.zeros(2, 3)))) is RuntimeError


@pytest.mark.parametrize(
    ("kind", "options"),
    [("RNNCell", {"nonlinearity": "sigmoid"}), ("GRUCell", {"reset_after": False})],
    ids=["sigmoid", "reset before"],
)
def test_checks_of_cells_that_torch_lacks(kind: str, options: dict[str, Any]) -> None:
    ours = FASTRNN[kind](3, 4, **options)
    x = torch.zeros(2, 3)
    for bad in (torch.zeros(2, 2, 3), torch.zeros(())):
        with pytest.raises(ValueError, match=f"{kind}: Expected input to be 1D or 2D, got"):
            ours(bad)
    with pytest.raises(ValueError, match=f"{kind}: Expected hidden to be 1D or 2D, got 3D instead"):
        ours(x, torch.zeros(1, 2, 4))
    for bad_hx in (torch.zeros(3, 4), torch.zeros(1, 4), torch.zeros(4), torch.zeros(2, 5)):
        with pytest.raises(RuntimeError, match="h0: expected"):
            ours(x, bad_hx)
    with pytest.raises(RuntimeError, match="h0: expected"):
        ours(x[0], torch.zeros(1, 4))
    with pytest.raises(RuntimeError, match="weight_ih: expected"):
        ours(torch.zeros(2, 7))
    with pytest.raises(RuntimeError, match="float64"):
        ours(x.double())
    assert ours(torch.zeros(0, 3)).shape == (0, 4)


@pytest.mark.parametrize("grad", [True, False])
def test_hidden_size_zero_of_cells_that_torch_lacks(grad: bool) -> None:
    x = torch.zeros(2, 3)
    with torch.set_grad_enabled(grad):
        assert FASTRNN["RNNCell"](3, 0, nonlinearity="sigmoid")(x).shape == (2, 0)
        assert FASTRNN["GRUCell"](3, 0, reset_after=False)(x[0]).shape == (0,)
