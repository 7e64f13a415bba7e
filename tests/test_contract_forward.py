"""forward of the sequence modules on tensors: shapes, checks and outputs (sections 4.1, 4.2)."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from contract import (
    FASTRNN,
    SEQUENCES,
    TORCH,
    assert_same,
    assert_same_error,
    error,
    flat,
    pair,
    states,
    variants,
)
from torch import Tensor, nn


def hx_of(kind: str, *shape: int, cell_width: int | None = None, **options: Any) -> Any:
    """``hx`` of one shape, for LSTM with a cell state of the same but the width."""
    h = torch.zeros(*shape, **options)
    width = shape[-1] if cell_width is None else cell_width
    return (h, torch.zeros(*shape[:-1], width, **options)) if kind == "LSTM" else h


@pytest.mark.parametrize(("kind", "options"), variants())
@pytest.mark.parametrize("hx_given", [True, False])
@pytest.mark.parametrize("batch", [None, 0, 1, 3])
def test_same_outputs(
    kind: str, options: dict[str, Any], hx_given: bool, batch: int | None
) -> None:
    ours, theirs = pair(kind, 3, 4, **options)
    shape = (5, 3) if batch is None else (5, batch, 3)
    if batch is not None and ours.batch_first:
        shape = (batch, 5, 3)
    x = torch.randn(shape)
    hx = states(ours, batch) if hx_given else None
    assert_same(ours(x, hx), theirs(x, hx))
    assert_same(ours(input=x, hx=hx), theirs(input=x, hx=hx))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_third_positional(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = torch.randn(5, 2, 3)
    assert type(error(lambda: ours(x, None, None))) is TypeError
    assert type(error(lambda: theirs(x, None, None))) is TypeError


#: What comes as input: torch.nn's own words are expected.
BAD_INPUTS: dict[str, Any] = {
    "none": None,
    "list": [[[1.0]]],
    "numpy": numpy.zeros((5, 2, 3), dtype=numpy.float32),
    "1-D": torch.zeros(3),
    "4-D": torch.zeros(5, 2, 3, 1),
    "features": torch.zeros(5, 2, 7),
    "features, unbatched": torch.zeros(5, 7),
    "dtype": torch.zeros(5, 2, 3, dtype=torch.float64),
    "dtype and features": torch.zeros(5, 2, 7, dtype=torch.float64),
    "integers": torch.zeros(5, 2, 3, dtype=torch.int64),
    "no steps": torch.zeros(0, 2, 3),
    "no steps, unbatched": torch.zeros(0, 3),
    "no steps, no rows": torch.zeros(0, 0, 3),
}


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("x", BAD_INPUTS.values(), ids=BAD_INPUTS)
@pytest.mark.parametrize("hx_given", [True, False])
def test_input_checks(kind: str, x: Any, hx_given: bool) -> None:
    ours, theirs = pair(kind, 3, 4)
    hx = None
    if hx_given:
        hx = states(ours, x.shape[1] if isinstance(x, Tensor) and x.dim() == 3 else None)
    assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize(
    "x", [None, torch.zeros(3), torch.zeros(5, 2, 3, 1)], ids=["none", "1-D", "4-D"]
)
@pytest.mark.parametrize("hx", [(), 5, (None, None)], ids=str)
def test_input_is_looked_at_before_states(kind: str, x: Any, hx: Any) -> None:
    ours, theirs = pair(kind, 3, 4)
    assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize(
    "shape",
    [(2, 4), (1, 2, 4), (2, 3, 4), (2, 1, 4), (2, 2, 5), (2, 2, 1), (1, 2, 2, 4), (4,)],
    ids=str,
)
@pytest.mark.parametrize("batched", [True, False])
def test_state_checks(kind: str, shape: tuple[int, ...], batched: bool) -> None:
    """No rank or size is accepted that torch refuses: nothing broadcasts."""
    ours, theirs = pair(kind, 3, 4, 2)
    x = torch.zeros(5, 2, 3) if batched else torch.zeros(5, 3)
    hx = hx_of(kind, *shape)
    if not batched and shape == (2, 4):
        assert_same(ours(x, hx), theirs(x, hx))
    else:
        assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))


def test_lstm_state_checks() -> None:
    ours, theirs = pair("LSTM", 3, 4, proj_size=2)
    x = torch.zeros(5, 2, 3)
    h, c = torch.zeros(1, 2, 2), torch.zeros(1, 2, 4)
    assert_same(ours(x, [h, c]), theirs(x, [h, c]))
    for hx in ((h, h), (c, c), (h,), (h, c, c), (h, c[0]), h, torch.zeros(2, 1, 2, 4), 5):
        same_words = not (isinstance(hx, Tensor) and hx.dim() == 4)
        assert_same_error(
            lambda hx=hx: ours(x, hx), lambda hx=hx: theirs(x, hx), message=same_words
        )
    stacked = torch.zeros(2, 1, 2, 4)  # unpacks to a pair, but is none
    ours, theirs = pair("LSTM", 3, 4)
    assert_same_error(lambda: ours(x, stacked), lambda: theirs(x, stacked), message=False)


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
def test_tuple_as_state_of_others(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    hx = (torch.zeros(1, 2, 4),)
    x = torch.zeros(5, 2, 3)
    assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_of_another_dtype(kind: str, dtype: torch.dtype) -> None:
    other = torch.float64 if dtype is torch.float32 else torch.float32
    ours, theirs = pair(kind, 3, 4, dtype=dtype)
    x = torch.zeros(5, 2, 3, dtype=dtype)
    hx = hx_of(kind, 1, 2, 4, dtype=other)
    assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("of_c", [torch.float32, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_cell_state_of_another_dtype(
    grad: bool, of_c: torch.dtype, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """It enters no product, so torch's own steps take any dtype and promote; oneDNN's do not."""
    ours, theirs = pair("LSTM", 3, 4, dtype=dtype, **options)
    x, (h, c) = torch.randn(5, 2, 3, dtype=dtype), states(ours, 2, dtype)
    hx = h, (c * 4).to(of_c)
    with torch.set_grad_enabled(grad):
        try:
            expected = theirs(x, hx)
        except RuntimeError:
            assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))
        else:
            assert_same(ours(x, hx), expected, dtype=dtype)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_devices_differ(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    here, there = torch.zeros(5, 2, 3), torch.zeros(5, 2, 3, device="meta")
    for x, device in ((here, "meta"), (there, "cpu")):
        hx = hx_of(kind, 1, 2, 4, device=device)
        message = assert_same_error(
            lambda x=x, hx=hx: ours(x, hx), lambda x=x, hx=hx: theirs(x, hx)
        )
        assert message.startswith("Input and hidden tensors are not at the same device")
    message = assert_same_error(lambda: ours(there), lambda: theirs(there))
    assert message.startswith("Input and parameter tensors are not at the same device")
    for module in (ours, theirs):
        module.bias_hh_l0 = nn.Parameter(module.bias_hh_l0.to("meta"))
    assert assert_same_error(lambda: ours(here), lambda: theirs(here)).endswith("tensor at meta")


@pytest.mark.parametrize("kind", SEQUENCES)
def test_sparse_input(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = torch.randn(5, 2, 3).to_sparse()
    for module in (ours, theirs):
        assert isinstance(error(lambda m=module: m(x)), RuntimeError)


@pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_sparse_weights(kind: str, weight: str) -> None:
    """Of a module pruned for inference."""
    ours, theirs = pair(kind, 3, 4)
    for module in (ours, theirs):
        module.requires_grad_(False)
        setattr(module, weight, nn.Parameter(getattr(module, weight).to_sparse_csr(), False))
    assert_same(ours(torch.ones(5, 2, 3)), theirs(torch.ones(5, 2, 3)))
    with torch.no_grad():
        assert_same(ours(torch.ones(5, 2, 3)), theirs(torch.ones(5, 2, 3)))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_missing_weight(kind: str, grad: bool) -> None:
    ours, theirs = pair(kind, 3, 4)
    for module in (ours, theirs):
        del module.weight_hh_l0
        module.weight_hh_l0 = None
    with torch.set_grad_enabled(grad):
        assert_same_error(lambda: ours(torch.zeros(5, 2, 3)), lambda: theirs(torch.zeros(5, 2, 3)))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_no_rows_backward(kind: str) -> None:
    ours, _ = pair(kind, 3, 4, 2)
    x = torch.randn(5, 0, 3, requires_grad=True)
    output, _ = ours(x)
    assert output.shape == (5, 0, 4)
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    for weight in ours.parameters():
        assert torch.count_nonzero(weight.grad) == 0
        assert weight.grad.shape == weight.shape


@pytest.mark.parametrize(("kind", "options"), variants())
def test_types_shapes_and_strides(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(kind, 3, 4, **options)
    x = torch.randn(5, 2, 3)
    result, expected = ours(x), theirs(x)
    assert type(result) is tuple
    assert type(result[1]) is (tuple if kind == "LSTM" else Tensor)
    assert_same(result, expected)
    output, hidden = result
    assert output.is_contiguous() or ours.batch_first
    assert output.transpose(0, 1).is_contiguous() or not ours.batch_first
    for state in flat(hidden):
        assert state.is_contiguous()
    assert output.requires_grad
    assert not output.is_leaf


@pytest.mark.parametrize("kind", SEQUENCES)
def test_where_the_last_states_are(kind: str) -> None:
    ours, _ = pair(kind, 3, 4, 2, bidirectional=True)
    output, hidden = ours(torch.randn(5, 2, 3))
    h_n = flat(hidden)[0]
    assert torch.equal(output[-1, :, :4], h_n[2])
    assert torch.equal(output[0, :, 4:], h_n[3])


@pytest.mark.parametrize(("kind", "options"), variants())
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("grad", [True, False])
def test_no_output_shares_memory(
    kind: str, options: dict[str, Any], steps: int, grad: bool
) -> None:
    ours, _ = pair(kind, 4, 4, **options)
    x, hx = torch.randn(steps, steps, 4), states(ours, steps)
    with torch.set_grad_enabled(grad):
        outputs = flat(ours(x, hx))
    everything = [*outputs, x, *flat(hx), *ours.parameters()]
    storages = [tensor.untyped_storage().data_ptr() for tensor in everything]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_states_can_be_detached_in_place(kind: str) -> None:
    """``h.detach_()`` between chunks of a long text refuses views."""
    for options in ({}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}):
        ours, theirs = pair(kind, 3, 4, **options)
        for module in (theirs, ours):
            for state in flat(module(torch.randn(5, 2, 3))[1]):
                assert state.detach_().grad_fn is None


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize(
    ("attribute", "value"),
    [("hidden_size", 5), ("hidden_size", 3), ("input_size", 2), ("bidirectional", True),
     ("num_layers", 2)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sizes_changed_behind_the_weights(
    kind: str, attribute: str, value: int, dtype: torch.dtype
) -> None:
    """An error, where torch's float32 LSTM reads out of bounds."""
    ours = FASTRNN[kind](3, 4, dtype=dtype)
    setattr(ours, attribute, value)
    with pytest.raises(RuntimeError):
        ours(torch.zeros(5, 2, 3, dtype=dtype))
    with pytest.raises(RuntimeError):
        ours(torch.zeros(5, 2, 3, dtype=dtype), states(ours, 2, dtype))


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l1"])
@pytest.mark.parametrize("how", ["shape", "rank", "dtype", "device"])
def test_wrong_weights(kind: str, name: str, how: str) -> None:
    ours = FASTRNN[kind](3, 4, 2, dtype=torch.float64)
    old = getattr(ours, name)
    new = {
        "shape": torch.zeros(old.shape[0] + 1, *old.shape[1:], dtype=old.dtype),
        "rank": torch.zeros(*old.shape, 1, dtype=old.dtype),
        "dtype": old.detach().float(),
        "device": old.detach().to("meta"),
    }[how]
    setattr(ours, name, nn.Parameter(new))
    x = torch.zeros(5, 2, 3, dtype=torch.float64)
    kind_of_error = type(error(lambda: ours(x)))
    # the first weight's dtype is the module's: ValueError as for an input of the wrong dtype
    first = name == "weight_ih_l0" and how == "dtype"
    assert kind_of_error is (ValueError if first else RuntimeError)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_batch_first_and_training_changed_later(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = torch.randn(5, 2, 3)
    ours.batch_first = theirs.batch_first = True
    assert_same(ours(x), theirs(x))
    assert type(theirs) is TORCH[kind]
    ours.batch_first = theirs.batch_first = False
    assert_same(ours.eval()(x), theirs.eval()(x))
