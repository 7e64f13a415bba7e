"""Direct calls of batches whose rows end early: ``lengths`` and PackedSequence."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import cases
import pytest
import torch
from contract import FASTRNN, SEQUENCES, Subclass, flat, states
from directly import declined, example, served
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn

pytestmark = pytest.mark.skipif(not cases.NATIVE, reason="direct calls are the compiled kernels'")

DTYPES = cases.DTYPES + cases.STORAGE_DTYPES


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def pack(x: Tensor, lengths: list[int], *, batch_first: bool = False) -> PackedSequence:
    return pack_padded_sequence(x, torch.tensor(lengths), batch_first, enforce_sorted=False)


VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("RNN", {"nonlinearity": "sigmoid"}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 2}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
)
LENGTHS = ([5, 3, 1], [1, 5, 2], [5, 5, 5], [2, 4, 5])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_every_form_of_a_call(kind: str, variant: dict[str, Any], dtype: torch.dtype) -> None:
    for layers, both, batch_first in itertools.product((1, 3), (False, True), (False, True)):
        options = {"num_layers": layers, "bidirectional": both, "batch_first": batch_first}
        module = FASTRNN[kind](3, 5, dtype=dtype, **variant, **options)
        x = torch.randn((3, 5, 3) if batch_first else (5, 3, 3), dtype=dtype)
        hx = states(module, 3, dtype)
        for lengths in LENGTHS:
            for given in (lengths, torch.tensor(lengths)):
                served(lambda m=module, x=x, n=given: m(x, lengths=n))
                served(lambda m=module, x=x, n=given, hx=hx: m(x, hx, lengths=n))
            sequence = pack(x, lengths, batch_first=batch_first)
            served(lambda m=module, s=sequence: m(s))
            served(lambda m=module, s=sequence, hx=hx: m(s, hx))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_lengths_of_zero(kind: str) -> None:
    module, x, hx = example(kind, bidirectional=True)
    hx = states(module, 2, torch.float32)
    served(lambda: module(x, hx, lengths=[0, 5]))
    served(lambda: module(x, hx, lengths=[0, 0]))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_sorted_sequence_has_no_indices(kind: str) -> None:
    module, x, hx = example(kind)
    sequence = pack_padded_sequence(x, torch.tensor([5, 2]))
    assert sequence.sorted_indices is None
    served(lambda: module(sequence, hx))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_indices_each_on_its_own(kind: str) -> None:
    """Made by hand: torch permutes states going in by the one, coming out by the other."""
    module, x, hx = example(kind)
    one = pack_padded_sequence(x, torch.tensor([5, 2]))
    swap = torch.tensor([1, 0])
    for indices in ((None, swap), (torch.tensor([1, 1]), swap)):
        sequence = PackedSequence._make((one.data, one.batch_sizes, *indices))
        served(lambda sequence=sequence: module(sequence, hx))
    sequence = PackedSequence._make((one.data, one.batch_sizes, swap, None))
    declined(lambda: module(sequence, hx))  # torch makes up for the missing one


@pytest.mark.parametrize("kind", SEQUENCES)
def test_many_rows(kind: str) -> None:
    module = FASTRNN[kind](7, 33, 2)
    lengths = [1 + (17 * b) % 40 for b in range(50)]
    x = torch.randn(40, 50, 7)
    sequence = pack(x[: max(lengths)], lengths)
    hx = states(module, 50, torch.float32)
    served(lambda: module(sequence, hx))
    served(lambda: module(x, hx, lengths=lengths))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_what_lies_beyond_is_not_read(kind: str) -> None:
    module, x, _ = example(kind, num_layers=2)
    clean = flat(module(x, lengths=[5, 3]))
    x[3:, 1] = torch.nan
    for one, other in zip(flat(module(x, lengths=[5, 3])), clean, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_results_are_memory_of_their_own(kind: str) -> None:
    module, x, hx = example(kind)
    sequence = pack(x, [2, 5])
    output, _ = module(sequence, hx)
    before = [part.clone() for part in sequence if part is not None]
    output.data.zero_()
    for own, other in zip((part for part in sequence if part is not None), before, strict=True):
        assert torch.equal(own, other)


def test_prepacked() -> None:
    module, x, hx = example("LSTM")
    sequence = pack(x, [2, 5])
    expected = module(sequence, hx)
    with fastrnn.prepacked(module):
        got = module(sequence, hx)
    torch.testing.assert_close(got, expected)


BAD_LENGTHS: dict[str, Any] = {
    "too large": [6, 2],
    "negative": [5, -1],
    "one too few": [5],
    "one too many": [5, 2, 1],
    "floats": [5.0, 2.0],
    "bools": [True, False],
    "larger than 64 bits": [5, 2**70],
    "nested": [[5], [2]],
    "empty": [],
    "tuple": (5, 2),
    "int32": torch.tensor([5, 2], dtype=torch.int32),
    "float tensor": torch.tensor([5.0, 2.0]),
    "not contiguous": torch.tensor([5, 0, 2, 0])[::2],
    "matrix": torch.tensor([[5, 2]]),
    "meta": torch.empty(2, dtype=torch.int64, device="meta"),
    "subclass": torch.tensor([5, 2]).as_subclass(Subclass),
    "range": range(4, 6),
    "a number": 5,
    "text": "52",
}


@pytest.mark.parametrize("name", BAD_LENGTHS)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_lengths_for_the_long_way(kind: str, name: str) -> None:
    module, x, hx = example(kind)
    declined(lambda: module(x, hx, lengths=BAD_LENGTHS[name]))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_lengths_of_other_calls(kind: str) -> None:
    module, x, hx = example(kind)
    declined(lambda: module(x[:, 0], lengths=[3]))
    declined(lambda: module(pack(x, [5, 2]), hx, lengths=[5, 2]))
    declined(lambda: module(x, hx, lengths=[5, 3], reset=torch.ones(5, 2, dtype=torch.bool)))


def with_parts(**parts: Any) -> Callable[[PackedSequence], PackedSequence]:
    """A PackedSequence made by hand, unchecked."""
    return lambda sequence: PackedSequence._make(
        parts.get(field, getattr(sequence, field)) for field in sequence._fields
    )


SEQUENCES_FOR_THE_LONG_WAY: dict[str, Callable[[PackedSequence], Any]] = {
    "no steps": with_parts(batch_sizes=torch.empty(0, dtype=torch.int64)),
    "a step without rows": with_parts(batch_sizes=torch.tensor([2, 2, 2, 1, 0])),
    "growing": with_parts(batch_sizes=torch.tensor([1, 2, 2, 1, 1])),
    "too many rows": with_parts(batch_sizes=torch.tensor([2, 2, 2, 2, 2])),
    "rows left over": with_parts(batch_sizes=torch.tensor([2, 1])),
    "more rows than there are": with_parts(batch_sizes=torch.tensor([2**62, 1])),
    "int32": with_parts(batch_sizes=torch.tensor([2, 2, 1, 1, 1], dtype=torch.int32)),
    "list": with_parts(batch_sizes=[2, 2, 1, 1, 1]),
    "three dimensions": lambda s: with_parts(data=s.data.unsqueeze(0))(s),
    "other dtype": lambda s: with_parts(data=s.data.double())(s),
    "columns": lambda s: with_parts(data=s.data.t().contiguous().t())(s),
    "order too short": with_parts(sorted_indices=torch.tensor([0])),
    "order int32": with_parts(unsorted_indices=torch.tensor([1, 0], dtype=torch.int32)),
    "subclass of the class": lambda s: type("Mine", (PackedSequence,), {})._make(s),
}


@pytest.mark.parametrize("name", SEQUENCES_FOR_THE_LONG_WAY)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_sequences_for_the_long_way(kind: str, name: str) -> None:
    module, x, hx = example(kind)
    sequence = SEQUENCES_FOR_THE_LONG_WAY[name](pack(x, [2, 5]))
    declined(lambda: module(sequence, hx))


@pytest.mark.parametrize("indices", [[0, 2], [-1, 0]])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_indices_that_point_nowhere(kind: str, indices: list[int]) -> None:
    module, x, hx = example(kind)
    sequence = with_parts(sorted_indices=torch.tensor(indices))(pack(x, [2, 5]))
    declined(lambda: module(sequence, hx))
