"""Integer inputs: the numbers of one-hot vectors, against the one-hot vectors themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from cases import (
    ALL_CELLS,
    LAYOUTS,
    STORAGE_DTYPES,
    TORCH_CELLS,
    Arguments,
    Case,
    arguments,
    each,
    each_by_backend,
    fastrnn_forward,
    torch_forward,
)
from cuda_emulator import runner
from torch import Tensor, nn
from torch.testing import assert_close

import fastrnn
from fastrnn import functional, use_backend

#: Looked up, and multiplied.
COLUMNS, FEW = 7, 3


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "FEW_COLUMNS", FEW)


def one_hot(case: Case) -> tuple[Arguments, Tensor]:
    """The arguments of a case with one-hot vectors as x, and their numbers."""
    a = arguments(case)
    generator = torch.Generator().manual_seed(case.seed)
    indices = torch.randint(0, case.input_size, a.x.shape[:-1], generator=generator)
    x = nn.functional.one_hot(indices, case.input_size).to(case.dtype)
    return replace(a, x=x), indices


def of_indices(case: Case) -> tuple[Arguments, Arguments]:
    a, indices = one_hot(case)
    return a, replace(a, x=indices)


def results_of(a: Arguments, forward: object = fastrnn_forward) -> dict[str, Tensor]:
    """Outputs, and gradients of all but x."""
    leaves = {
        k: v.detach().clone().requires_grad_() for k, v in a.differentiable().items() if k != "x"
    }
    outputs = forward(a.with_tensors(leaves | {"x": a.x}))
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (value * torch.randn(value.shape, generator=generator).bfloat16().to(value.dtype)).sum()
        for value in outputs.values()
    )
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return outputs | {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def compare(case: Case, actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, **case.tolerance(name), msg=lambda m, n=name: f"{n}: {m}")


def cases() -> Iterator[Case]:
    for cell in ALL_CELLS:
        for layout in LAYOUTS:
            yield Case(cell, layout=layout, input_size=COLUMNS, bidirectional=True, layers=2)
        for dtype in (torch.float32, *STORAGE_DTYPES):
            yield Case(cell, dtype, input_size=COLUMNS, hidden_size=17, batch=9)
        yield Case(cell, input_size=COLUMNS, lengths="random", reset="random", bidirectional=True)
        yield Case(cell, input_size=400, hidden_size=9)  # more columns than numbers
        yield Case(cell, input_size=FEW, bidirectional=True, layers=2, lengths="random")
        yield Case(cell, input_size=COLUMNS, bias=False, hx=False, recompute=True)
    yield Case("lstm", input_size=COLUMNS, proj_size=3, bidirectional=True, cell_states=True)


@each_by_backend(cases())
def test_equals_one_hot(case: Case, backend: str) -> None:
    """Outputs and gradients are those of the one-hot vectors, by the reference in that dtype."""
    dense, indexed = of_indices(case)
    with use_backend(backend):
        actual = results_of(indexed)
    wide = torch.float64
    with use_backend("reference"):
        expected = results_of(dense.map(lambda t: t.to(wide)) if case.stored else dense)
    compare(case, {k: v.to(expected[k].dtype) for k, v in actual.items()}, expected)


@pytest.mark.skipif(runner.compiler() is None, reason="no C++ compiler")
@each(
    Case(cell, torch.float32, input_size=COLUMNS, bidirectional=True, lengths="random", batch=4)
    for cell in ALL_CELLS
)
def test_cuda_kernels_equal_one_hot(case: Case) -> None:
    from cuda_cases import rnn_precision
    from cuda_emulated import registered

    dense, indexed = of_indices(case)
    strict = rnn_precision(tf32=False)
    with strict, registered("grid-1", multiprocessors=16) as name, use_backend(name):
        actual = results_of(indexed)
    compare(case, actual, results_of(dense))


@each(Case(cell, input_size=COLUMNS, layout=layout) for cell in TORCH_CELLS for layout in LAYOUTS)
def test_equals_torch(case: Case) -> None:
    dense, indexed = of_indices(case)
    compare(case, results_of(indexed), results_of(dense, torch_forward))


@each(Case(cell, input_size=COLUMNS) for cell in ALL_CELLS)
def test_reference_equals_one_hot(case: Case) -> None:
    dense, indexed = of_indices(case)
    with use_backend("reference"):
        compare(case, results_of(indexed), results_of(dense))


MODULES = {
    "rnn": lambda columns=COLUMNS, **kw: fastrnn.RNN(columns, 5, **kw),
    "lstm": lambda columns=COLUMNS, **kw: fastrnn.LSTM(columns, 5, **kw),
    "gru": lambda columns=COLUMNS, **kw: fastrnn.GRU(columns, 5, **kw),
    "gru_reset_before": lambda columns=COLUMNS, **kw: fastrnn.GRU(
        columns, 5, reset_after=False, **kw
    ),
}


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
@pytest.mark.parametrize("columns", [FEW, COLUMNS])
@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str, columns: int, kind: torch.dtype) -> None:
    module = MODULES[name](columns, num_layers=2, batch_first=True)
    indices = torch.randint(0, columns, (3, 4))
    dense = nn.functional.one_hot(indices, columns).float()
    expected = module(dense)
    assert_close(module(indices.to(kind)), expected)
    with torch.no_grad():
        assert_close(module(indices.to(kind)), expected)
    assert_close(module(indices[0].to(kind)), module(dense[0]))
    packed = nn.utils.rnn.pack_padded_sequence(indices, [2, 4, 1], True, enforce_sorted=False)
    dense_packed = nn.utils.rnn.pack_padded_sequence(dense, [2, 4, 1], True, enforce_sorted=False)
    assert_close(module(packed)[0].data, module(dense_packed)[0].data)
    assert_close(module(packed)[1], module(dense_packed)[1])
    hx = module(dense)[1]
    assert_close(module(indices, hx), module(dense, hx))


@pytest.mark.parametrize(
    "cell",
    [
        fastrnn.RNNCell(FEW, 5),
        fastrnn.RNNCell(COLUMNS, 5),
        fastrnn.LSTMCell(COLUMNS, 5),
        fastrnn.GRUCell(COLUMNS, 5),
        fastrnn.GRUCell(COLUMNS, 5, reset_after=False),
    ],
    ids=lambda cell: str(cell),
)
def test_cells(cell: nn.RNNCellBase) -> None:
    indices = torch.randint(0, cell.input_size, (4,))
    dense = nn.functional.one_hot(indices, cell.input_size).float()
    state = cell(dense)
    assert_close(cell(indices), state)
    assert_close(cell(indices, state), cell(dense, state))
    assert_close(cell(indices[0]), cell(dense[0]))
    with torch.no_grad():
        assert_close(cell(indices), state)
    first = state[0] if isinstance(state, tuple) else state
    (expected,) = torch.autograd.grad(first.sum(), cell.weight_ih)
    again = cell(indices)
    first = again[0] if isinstance(again, tuple) else again
    assert_close(torch.autograd.grad(first.sum(), cell.weight_ih)[0], expected)


def test_compiles() -> None:
    module = MODULES["gru"]()
    indices = torch.randint(0, COLUMNS, (6, 3))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert_close(compiled(indices), module(indices))


def test_double_backward() -> None:
    module = MODULES["lstm"](dtype=torch.float64)
    weights = list(module.parameters())
    indices = torch.randint(0, COLUMNS, (3, 2))
    dense = nn.functional.one_hot(indices, COLUMNS).double()

    def penalty(x: Tensor) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(module(x)[0].square().sum(), weights, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in grads), weights)

    assert_close(penalty(indices), penalty(dense))


@pytest.mark.parametrize("value", [-1, COLUMNS])
def test_values_out_of_range(value: int) -> None:
    expected = f"input: expected values from 0 to 6, the columns of weight_ih, got {value}"
    with pytest.raises(IndexError, match=expected):
        MODULES["gru"]()(torch.tensor([[0, value]]))
    with pytest.raises(IndexError, match=expected):
        fastrnn.GRUCell(COLUMNS, 5)(torch.tensor([value]))


def test_wrong_calls() -> None:
    gru = MODULES["gru"]()
    with pytest.raises(
        ValueError, match=r"input dtype \(torch\.int64\) does not match"
    ):  # as torch.nn says it
        gru(torch.zeros(2, 3, COLUMNS, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="hx"):
        gru(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 5))
    with pytest.raises(RuntimeError, match="integer input"):
        torch.jit.trace(gru, torch.zeros(2, 3, dtype=torch.int64))
    weights = [torch.randn(15, 0), torch.randn(15, 5)]
    with pytest.raises(
        RuntimeError, match="input: expected 15 features with a weight_ih of no col"
    ):
        fastrnn.functional.gru(torch.randn(2, 3, 14), weights)
