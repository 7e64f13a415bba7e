"""PackedSequence (section 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract import (
    SEQUENCES,
    assert_same,
    assert_same_error,
    assert_same_gradients,
    error,
    flat,
    packed,
    pair,
    states,
    variants,
)
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

LENGTHS: tuple[tuple[int, ...], ...] = ((4,), (3, 3, 3), (5, 3, 1), (2, 5, 1, 5))


@pytest.mark.parametrize(("kind", "options"), variants())
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("hx_given", [True, False])
def test_same_outputs(
    kind: str, options: dict[str, Any], lengths: tuple[int, ...], hx_given: bool
) -> None:
    ours, theirs = pair(kind, 3, 4, **options)
    hx = states(ours, len(lengths)) if hx_given else None
    ascending = sorted(lengths, reverse=True) == list(lengths)
    for already_sorted in (False, True)[: 1 + ascending]:
        x = packed(*lengths, sorted=already_sorted)
        assert (x.sorted_indices is None) == already_sorted
        result = ours(x, hx)
        assert_same(result, theirs(x, hx))
        assert type(result[0]) is PackedSequence
        assert all(state.is_contiguous() for state in flat(result[1]))


@pytest.mark.parametrize(("kind", "options"), variants())
def test_same_gradients(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=torch.float64, **options)
    x = packed(2, 5, 1, 5, dtype=torch.float64)
    x.data.requires_grad_()
    hx = states(ours, 4, torch.float64)
    for state in flat(hx):
        state.requires_grad_()
    assert_same_gradients(ours, theirs, x, hx)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_states_are_in_the_users_order(kind: str) -> None:
    """Row k of hx enters, and of h_n leaves, the k-th sequence as the user gave them."""
    ours, _ = pair(kind, 3, 4, bidirectional=True)
    sequences = [torch.randn(length, 3) for length in (2, 5, 3)]
    hx = states(ours, 3)
    output, hidden = ours(pack_sequence(sequences, enforce_sorted=False), hx)
    padded, _ = pad_packed_sequence(output)
    for k, sequence in enumerate(sequences):
        alone = tuple(state[:, k] for state in hx) if kind == "LSTM" else hx[:, k]
        expected_output, expected = ours(sequence, alone)
        assert_same(padded[: len(sequence), k], expected_output)
        assert_same([state[:, k] for state in flat(hidden)], flat(expected))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_no_output_shares_memory(kind: str) -> None:
    ours, _ = pair(kind, 4, 4)
    for lengths in ((3, 1), (1, 3), (1,)):
        x, hx = packed(*lengths, features=4), states(ours, len(lengths))
        everything = [*flat(ours(x, hx)), x.data, *flat(hx), *ours.parameters()]
        storages = [tensor.untyped_storage().data_ptr() for tensor in everything]
        assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_data_not_contiguous(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    data = torch.randn(3, 8).t()[::2]
    x = PackedSequence(torch.cat([data, data])[1:7].t().contiguous().t(), torch.tensor([3, 2, 1]))
    assert not x.data.is_contiguous()
    assert_same(ours(x), theirs(x))
    x = PackedSequence(torch.randn(1, 3).expand(6, 3), torch.tensor([3, 2, 1]))
    assert_same(ours(x), theirs(x))


#: Bad arguments that RNN and GRU check; nn.LSTM runs into errors of the operators below.
BAD_CALLS: dict[str, Callable[[], tuple[PackedSequence, Any]]] = {
    "features": lambda: (packed(3, 2, features=7), None),
    "dtype": lambda: (packed(3, 2, dtype=torch.float64), None),
    "rank": lambda: (PackedSequence(torch.zeros(5, 2, 3), torch.tensor([3, 2])), None),
    "rows of state": lambda: (packed(3, 2, sorted=True), torch.zeros(1, 3, 4)),
    "one row of state": lambda: (packed(3, 2, sorted=True), torch.zeros(1, 1, 4)),
    "width of state": lambda: (packed(2, 3), torch.zeros(1, 2, 5)),
    "layers of state": lambda: (packed(2, 3), torch.zeros(2, 2, 4)),
    "rank of state": lambda: (packed(3, 2, sorted=True), torch.zeros(2, 4)),
}


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
def test_checks(kind: str, call: Callable[[], tuple[PackedSequence, Any]]) -> None:
    ours, theirs = pair(kind, 3, 4)
    x, hx = call()
    if kind != "LSTM":
        assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))
        return
    hx = None if hx is None else (hx, hx)
    assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx), message=False)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_more_rows_of_state_than_of_data(kind: str) -> None:
    """An accident of torch.nn: the permutation picks rows, the rest is not looked at."""
    ours, theirs = pair(kind, 3, 4)
    x, hx = packed(2, 3), states(ours, 3)
    assert_same(ours(x, hx), theirs(x, hx))


#: batch_sizes made by hand, with 6 rows of data.
BAD_BATCH_SIZES: dict[str, Tensor] = {
    "too many rows": torch.tensor([3, 3, 1]),
    "increasing": torch.tensor([1, 2, 3]),
    "increasing later": torch.tensor([2, 1, 2, 1]),
    "negative": torch.tensor([3, 2, -1]),
    "int32": torch.tensor([3, 2, 1], dtype=torch.int32),
    "empty": torch.tensor([], dtype=torch.int64),
}


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("batch_sizes", BAD_BATCH_SIZES.values(), ids=BAD_BATCH_SIZES)
@pytest.mark.parametrize("hx_given", [True, False])
def test_bad_batch_sizes(kind: str, batch_sizes: Tensor, hx_given: bool) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = PackedSequence(torch.zeros(6, 3), batch_sizes)
    hx = states(ours, int(batch_sizes[0]) if batch_sizes.numel() else 1) if hx_given else None
    assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx), message=False)


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize(
    "batch_sizes",
    [torch.tensor([3, 0]), torch.tensor([[3, 2, 1]]), torch.tensor(6), torch.tensor([2**62] * 4)],
    ids=["zero", "2-D", "0-D", "overflowing"],
)
def test_batch_sizes_that_no_kernel_may_see(kind: str, batch_sizes: Tensor) -> None:
    """Whatever torch does with these, ours refuses."""
    ours, _ = pair(kind, 3, 4)
    x = PackedSequence(torch.zeros(6, 3), batch_sizes)
    assert isinstance(error(lambda: ours(x)), (RuntimeError, IndexError))


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("hx_given", [True, False])
def test_rows_beyond_batch_sizes_are_ignored(kind: str, hx_given: bool) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = PackedSequence(torch.randn(6, 3), torch.tensor([2, 1, 1]))
    hx = states(ours, 2) if hx_given else None
    assert_same(ours(x, hx), theirs(x, hx))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_wrong_states_of_lstm(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x = packed(3, 2, sorted=True)
    h = torch.zeros(1, 2, 4)
    bad = ((h, h, h), (h,), h) if kind == "LSTM" else ((h, h),)
    for hx in bad:
        assert_same_error(lambda hx=hx: ours(x, hx), lambda hx=hx: theirs(x, hx), message=False)
