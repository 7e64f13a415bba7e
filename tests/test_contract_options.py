"""The options beyond torch.nn, through the modules, against the reference backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import SEQUENCES, assert_same, flat, packed, states
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import fastrnn

F64 = torch.float64

#: Every kind with every option of its constructor.
MODULES: dict[str, Any] = {
    "tanh": (fastrnn.RNN, {}),
    "sigmoid": (fastrnn.RNN, {"nonlinearity": "sigmoid"}),
    "identity": (fastrnn.RNN, {"nonlinearity": "identity"}),
    "lstm": (fastrnn.LSTM, {}),
    "lstm, cell states": (fastrnn.LSTM, {"return_cell_states": True}),
    "lstm, projected": (fastrnn.LSTM, {"return_cell_states": True, "proj_size": 2}),
    "gru": (fastrnn.GRU, {}),
    "gru, reset before": (fastrnn.GRU, {"reset_after": False}),
}
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lengths": {"lengths": [4, 2, 0]},
    "reset": {"reset": True},
    "both": {"lengths": torch.tensor([1, 4, 3]), "reset": True},
}


def build(name: str, **options: Any) -> Any:
    kind, own = MODULES[name]
    return kind(3, 4, dtype=F64, **own, **options)


def results(module: Any, x: Any, hx: Any, **options: Any) -> list[Tensor]:
    """Outputs and the gradients of a weighted sum of them."""
    outputs = flat(module(x, hx, **options))
    loss: Any = 0
    for k, output in enumerate(outputs):
        loss = loss + (output * torch.linspace(-1, 1 + k, output.numel()).view_as(output)).sum()
    leaves = [flat(x)[0], *flat(hx), *module.parameters()]
    return outputs + list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("layout", ["time_major", "batch_first", "unbatched", "packed"])
def test_against_reference(name: str, call: str, layout: str) -> None:
    options = dict(CALLS[call])
    module = build(name, num_layers=2, bidirectional=True, batch_first=layout == "batch_first")
    shape = {"unbatched": (4, 3), "batch_first": (3, 4, 3)}.get(layout, (4, 3, 3))
    x: Any = torch.randn(shape, dtype=F64)
    if layout == "packed":
        options.pop("lengths", None)
        x = packed(2, 4, 3, dtype=F64)
    if options.get("reset") is True:
        options["reset"] = torch.rand(shape[:-1]) < 0.4
    if layout == "unbatched" and "lengths" in options:
        options["lengths"] = int(options["lengths"][1])
    hx = states(module, None if layout == "unbatched" else 3, F64)
    for leaf in (*flat(x), *flat(hx)):
        leaf.requires_grad_()
    actual = results(module, x, hx, **options)
    with fastrnn.use_backend("reference"):
        expected = results(module, x, hx, **options)
    assert_same(actual, expected, rows=12)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_lengths_are_like_packing(kind: str) -> None:
    module = getattr(fastrnn, kind)(3, 4, 2, bidirectional=True)
    sequence = packed(2, 4, 3)
    padded, lengths = pad_packed_sequence(sequence, padding_value=float("nan"))
    hx = states(module, 3)
    output, hidden = module(sequence, hx)
    expected = pad_packed_sequence(output)[0]
    for given in (lengths, lengths.to(torch.int32), lengths.tolist(), tuple(lengths.tolist())):
        actual, actual_hidden = module(padded, hx, lengths=given)
        assert_same(actual, expected)
        assert_same(actual_hidden, hidden)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_reset_cuts_a_sequence(kind: str) -> None:
    """Two episodes in one row are two sequences."""
    module = getattr(fastrnn, kind)(3, 4)
    x = torch.randn(7, 1, 3)
    reset = torch.zeros(7, 1, dtype=torch.bool)
    reset[4] = True
    output, hidden = module(x, states(module, 1), reset=reset)
    second, expected = module(x[4:])
    assert_same(output[4:], second)
    assert_same(hidden, expected)


@pytest.mark.parametrize("layout", ["time_major", "batch_first", "unbatched", "packed"])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_cell_states(layout: str, proj_size: int) -> None:
    """A tuple, one per layer, shaped like the output with H features; the last one is c_n."""
    module = fastrnn.LSTM(
        3, 4, 2, proj_size=proj_size, batch_first=layout == "batch_first", return_cell_states=True
    )
    x: Any = torch.randn(5, 3) if layout == "unbatched" else torch.randn(5, 2, 3)
    if layout == "packed":
        x = packed(2, 4, 3)
    output, (h_n, c_n), cell_states = module(x)
    assert type(cell_states) is tuple
    assert len(cell_states) == 2
    module.return_cell_states = False
    assert_same(module(x), (output, (h_n, c_n)))
    for k, found in enumerate(cell_states):
        if layout == "packed":
            assert type(found) is PackedSequence
            assert found.data.shape == (9, 4)
            assert torch.equal(found.unsorted_indices, x.unsorted_indices)
            padded, lengths = pad_packed_sequence(found)
            last = padded[lengths - 1, torch.arange(3)]
        else:
            assert found.shape == (*output.shape[:-1], 4)
            last = found[:, -1] if layout == "batch_first" else found[-1]
        assert_same(last, c_n[k])


def test_reset_before_differs_from_reset_after() -> None:
    """With one reset gate for all units, and no bias b_hn, both are the same; else not."""
    after, before = fastrnn.GRU(3, 4), fastrnn.GRU(3, 4, reset_after=False)
    before.load_state_dict(after.state_dict())
    x, hx = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    assert not torch.allclose(after(x, hx)[0], before(x, hx)[0])
    for module in (after, before):
        with torch.no_grad():
            for weight in module.parameters():
                weight[:4] = 0
            module.bias_hh_l0[8:] = 0
    assert_same(after(x, hx), before(x, hx))


@pytest.mark.parametrize("batch", [None, 2])
def test_cells(batch: int | None) -> None:
    """One step of a sequence module is one call of the cell."""
    for cell, module in (
        (fastrnn.RNNCell(3, 4, nonlinearity="sigmoid"), fastrnn.RNN(3, 4, nonlinearity="sigmoid")),
        (fastrnn.RNNCell(3, 4, nonlinearity="identity"), fastrnn.RNN(3, 4, 1, "identity")),
        (fastrnn.GRUCell(3, 4, reset_after=False), fastrnn.GRU(3, 4, reset_after=False)),
    ):
        module.load_state_dict({f"{k}_l0": v for k, v in cell.state_dict().items()})
        x = torch.randn(*(() if batch is None else (batch,)), 3, requires_grad=True)
        hx = torch.randn(*(() if batch is None else (batch,)), 4, requires_grad=True)
        actual = cell(x, hx)
        expected = module(x[None], hx[None])[0][0]
        assert_same(actual, expected)
        leaves = [x, hx]
        assert_same(
            torch.autograd.grad(actual.sum(), leaves), torch.autograd.grad(expected.sum(), leaves)
        )


BAD: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "lengths too long": (ValueError, {"lengths": [5, 4, 7]}),
    "lengths negative": (ValueError, {"lengths": [5, -1, 2]}),
    "lengths too few": (RuntimeError, {"lengths": [5, 4]}),
    "lengths floating": (TypeError, {"lengths": torch.tensor([5.0, 4.0, 3.0])}),
    "lengths boolean": (TypeError, {"lengths": [True, True, False]}),
    "lengths no numbers": (TypeError, {"lengths": ["a", "b", "c"]}),
    "lengths 2-D": (RuntimeError, {"lengths": [[5, 4, 3]]}),
    "reset integers": (TypeError, {"reset": torch.zeros(5, 3, dtype=torch.int64)}),
    "reset floating": (TypeError, {"reset": torch.zeros(5, 3)}),
    "reset list": (TypeError, {"reset": [[False] * 3] * 5}),
    "reset shape": (RuntimeError, {"reset": torch.zeros(3, 5, dtype=torch.bool)}),
    "reset rank": (RuntimeError, {"reset": torch.zeros(5, dtype=torch.bool)}),
    "reset device": (RuntimeError, {"reset": torch.zeros(5, 3, dtype=torch.bool, device="meta")}),
}


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("batch_first", [False, True])
def test_bad_options(kind: str, how: str, batch_first: bool) -> None:
    expected, options = BAD[how]
    module = getattr(fastrnn, kind)(3, 4, batch_first=batch_first)
    x = torch.randn(5, 3, 3)
    if batch_first:
        x = x.transpose(0, 1)
        options = {
            name: value.transpose(0, 1) if isinstance(value, Tensor) and value.dim() == 2 else value
            for name, value in options.items()
        }
    with pytest.raises(expected, match=next(iter(options))) as caught:
        module(x, **options)
    assert type(caught.value) is expected


@pytest.mark.parametrize("kind", SEQUENCES)
def test_options_of_packed(kind: str) -> None:
    module = getattr(fastrnn, kind)(3, 4)
    x = packed(2, 4, 3)
    with pytest.raises(ValueError, match="lengths: a PackedSequence carries its own"):
        module(x, lengths=[2, 4, 3])
    for shape in ((4, 2), (4, 4), (3, 3), (4,)):
        with pytest.raises(RuntimeError, match="reset: expected"):
            module(x, reset=torch.zeros(shape, dtype=torch.bool))
    with pytest.raises(TypeError, match="reset: expected"):
        module(x, reset=torch.zeros(4, 3))
    with pytest.raises(TypeError, match="reset: expected"):
        module(x, reset=[[False] * 3] * 4)


def test_options_are_keyword_only() -> None:
    module = fastrnn.LSTM(3, 4)
    with pytest.raises(TypeError, match="positional argument"):
        module(torch.randn(5, 2, 3), None, [5, 2])


def test_one_network_of_all_kinds() -> None:
    """The modules inside a container: parameters, mode and device follow."""
    network = nn.ModuleList([build(name) for name in MODULES]).eval()
    assert not any(module.training for module in network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x = torch.randn(4, 2, 3, dtype=F64)
    before = [weight.detach().clone() for weight in network.parameters()]
    sum(flat(module(x))[0].square().sum() for module in network).backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert all(moved)
