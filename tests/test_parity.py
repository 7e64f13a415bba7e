"""fastrnn.functional against torch.nn: outputs, states and every gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import cases
import pytest
import torch
from cases import BACKENDS, Case, Outputs, arguments, check, each, results, torch_forward
from tolerances import error_in_tolerances
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn

SERVING = (*BACKENDS, "reference")


def structures() -> Iterator[Case]:
    """The full product of what torch.nn offers, at one small odd size."""
    for cell, dtype, layers, bidirectional, bias, layout, hx in itertools.product(
        cases.TORCH_CELLS, cases.DTYPES, (1, 2, 3), (False, True), (True, False), cases.LAYOUTS,
        (True, False),
    ):  # fmt: skip
        for proj_size in (0, 2) if cell == "lstm" else (0,):
            yield Case(
                cell,
                dtype,
                layers=layers,
                bidirectional=bidirectional,
                bias=bias,
                layout=layout,
                hx=hx,
                proj_size=proj_size,
            )


def sizes() -> Iterator[Case]:
    """Each size swept through every width at which kernels change their path."""
    for cell, dtype in itertools.product(cases.TORCH_CELLS, cases.DTYPES):
        for width in cases.WIDTHS:
            yield Case(cell, dtype, hidden_size=width, input_size=6, bidirectional=True)
            yield Case(cell, dtype, input_size=width, bidirectional=True)
        for batch in cases.BATCHES:
            yield Case(cell, dtype, batch=batch, hidden_size=17, input_size=11)
            yield Case(cell, dtype, batch=batch, steps=1, hidden_size=33, input_size=7)
        for steps in (1, 2, 3, 7, 31, 127):
            yield Case(cell, dtype, steps=steps, batch=2, bidirectional=True)
        yield Case(cell, dtype, steps=1, batch=1, input_size=1, hidden_size=1)
        yield Case(cell, dtype, steps=13, batch=11, input_size=23, hidden_size=19, layers=2)
    for dtype, width in itertools.product(cases.DTYPES, cases.WIDTHS[1:]):
        yield Case("lstm", dtype, hidden_size=width, proj_size=width // 2, bidirectional=True)
        yield Case("lstm", dtype, hidden_size=width, proj_size=width - 1)


def blocks() -> Iterator[Case]:
    """Sizes above what a cache or one thread takes, and not multiples of any block."""
    for cell, dtype in itertools.product(cases.TORCH_CELLS, cases.DTYPES):
        yield Case(cell, dtype, steps=11, batch=67, input_size=131, hidden_size=257)
        yield Case(cell, dtype, steps=37, batch=1, input_size=61, hidden_size=263)
        yield Case(cell, dtype, steps=3, batch=259, input_size=5, hidden_size=37, layers=2)
        yield Case(cell, dtype, steps=211, batch=3, input_size=29, hidden_size=41, layout="packed")


def served(listed: Iterator[Case]) -> pytest.MarkDecorator:
    """Each case by each backend; by the reference, which has one source for all dtypes, in one."""
    pairs = [
        pytest.param(case, backend, id=f"{case.id}-{backend}")
        for case in dict.fromkeys(listed)
        for backend in SERVING
        if backend in BACKENDS or case.dtype == torch.float64
    ]
    return pytest.mark.parametrize(("case", "backend"), pairs)


@served(structures())
def test_structure(case: Case, backend: str) -> None:
    a = arguments(case)
    check(results(a, backend=backend), results(a, torch_forward), case)


@served(sizes())
def test_sizes(case: Case, backend: str) -> None:
    a = arguments(case)
    check(results(a, backend=backend), results(a, torch_forward), case)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@each(blocks())
def test_blocks(case: Case, backend: str) -> None:
    a = arguments(case)
    check(results(a, backend=backend), results(a, torch_forward), case)


# Memory layouts.


def transposed(tensor: Tensor) -> Tensor:
    """The same values, the last dimension far apart in memory."""
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else strided(tensor)


def strided(tensor: Tensor) -> Tensor:
    """The same values, every second element of what lies in memory; what lies between is NaN."""
    wide = torch.full((*tensor.shape, 2), float("nan"), dtype=tensor.dtype)
    return torch.cat((tensor[..., None], wide[..., :1]), -1)[..., 0]


def offset(tensor: Tensor) -> Tensor:
    """The same values, starting one element after an aligned address."""
    return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)


def expanded(tensor: Tensor) -> Tensor:
    """The first entry of the first dimension over and over, with stride 0.

    Halved, as units that are all alike add up in the recurrence.
    """
    return (tensor[:1] / 2).expand(tensor.shape)


def constant(tensor: Tensor) -> Tensor:
    """One number everywhere, all strides 0: what ``sum().backward()`` sends."""
    return tensor.flatten()[0].expand(tensor.shape)


RELAYOUTS = (transposed, strided, offset, expanded)


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("relayout", RELAYOUTS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_memory_layouts(
    cell: str, layout: str, relayout: Callable[[Tensor], Tensor], backend: str
) -> None:
    """Inputs, states, weights and upstream gradients of any strides."""
    case = Case(cell, layout=layout, bidirectional=True, hidden_size=9)
    a = arguments(case)

    def grads(outputs: Outputs, case: Case) -> Outputs:
        change = constant if relayout is expanded else relayout
        return {name: change(grad) for name, grad in cases.upstream(outputs, case).items()}

    expected = results(a, torch_forward, relayout=relayout, grads=grads)
    check(results(a, backend=backend, relayout=relayout, grads=grads), expected, case)


# Which gradients are asked for, and from which outputs they come.


def partial_gradients() -> Iterator[tuple[str, frozenset[str]]]:
    for cell in cases.TORCH_CELLS:
        names = list(arguments(Case(cell, bidirectional=True)).differentiable())
        for name in names:
            yield cell, frozenset({name})
            yield cell, frozenset(names) - {name}
        yield cell, frozenset()


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize(
    ("cell", "wanted"),
    list(partial_gradients()),
    ids=lambda value: value if isinstance(value, str) else "+".join(sorted(value)) or "nothing",
)
def test_partial_gradients(cell: str, wanted: frozenset[str], backend: str) -> None:
    """Any one tensor, or all but one, or none, requires a gradient."""
    case = Case(cell, bidirectional=True)
    a = arguments(case)
    actual = results(a, backend=backend, wanted=wanted)
    assert {name for name in actual if name.startswith("grad")} == {f"grad {w}" for w in wanted}
    check(actual, results(a, torch_forward, wanted=wanted), case)


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("losses", [("output",), ("h_n",), ("c_n",), ("h_n", "c_n")], ids="+".join)
@pytest.mark.parametrize("layout", ["time_major", "packed_unsorted"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_losses(cell: str, layers: int, layout: str, losses: tuple[str, ...], backend: str) -> None:
    """A loss on some of the outputs only."""
    if losses == ("c_n",) and cell != "lstm":
        losses = ("output", "h_n")  # without a cell state the remaining combination is both
    case = Case(cell, layers=layers, layout=layout, bidirectional=True)
    a = arguments(case)
    expected = results(a, torch_forward, losses=losses)
    check(results(a, backend=backend, losses=losses), expected, case)


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_frozen_in_place(cell: str, backend: str) -> None:
    """``.grad`` appears exactly where it is required, contiguous and in memory of its own."""
    a = arguments(Case(cell))
    leaves = {name: tensor.clone() for name, tensor in a.differentiable().items()}
    for name in ("x", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        leaves[name].requires_grad_()
    with fastrnn.use_backend(backend):
        outputs = cases.fastrnn_forward(a.with_tensors(leaves))
    sum(output.sum() for output in outputs.values()).backward()  # type: ignore[union-attr]
    found = {name for name, leaf in leaves.items() if leaf.grad is not None}
    assert found == {"x", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}
    grads = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
    assert all(grad.is_contiguous() for grad in grads)
    assert len({grad.untyped_storage().data_ptr() for grad in grads}) == len(grads)


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_bias_gradients_have_memory_of_their_own(cell: str, backend: str) -> None:
    """autograd.grad hands out what a backward returns: one tensor twice would be one memory."""
    a = arguments(Case(cell, bidirectional=True))
    grads = [grad for name, grad in results(a, backend=backend).items() if name.startswith("grad")]
    assert len({grad.untyped_storage().data_ptr() for grad in grads}) == len(grads)


# The edges of sizes and of values.


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("layout", ["time_major", "batch_first"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_no_rows(cell: str, layers: int, layout: str, backend: str) -> None:
    """B = 0 works: empty outputs, and zeros for the gradients of weights."""
    case = Case(cell, batch=0, layers=layers, layout=layout, bidirectional=True)
    a = arguments(case)
    actual = results(a, backend=backend)
    check(actual, results(a, torch_forward), case)
    assert all(not actual[f"grad {name}"].any() for name in a.weights)


@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("layout", ["time_major", "batch_first", "unbatched"])
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_no_steps(cell: str, layout: str, backend: str, batch: int) -> None:
    """T = 0 raises what torch.nn raises."""
    a = arguments(Case(cell, steps=0, layout=layout, batch=batch))
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        torch_forward(a)
    with (
        fastrnn.use_backend(backend),
        pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"),
    ):
        cases.fastrnn_forward(a)


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_saturation(cell: str, dtype: torch.dtype, backend: str) -> None:
    """Where exp overflows, gates are 0 or 1 and gradients vanish; nothing becomes NaN."""
    case = Case(cell, dtype, bidirectional=True, hidden_size=17)
    a = arguments(case)
    for scale in (30.0, 1e3, 1e10, 1e30):
        big = a.with_tensors(a.differentiable() | {"x": a.x * scale})
        actual = results(big, backend=backend)
        expected = results(big, torch_forward)
        assert all(bool(result.isfinite().all()) for result in actual.values())
        for name in ("output", "h_n", "grad h0"):
            # A preactivation of size s has an error of u s, which saturation hides where s is
            # huge; 30 is where some gates are between.
            error = error_in_tolerances(actual[name], expected[name], **case.tolerance(name))
            assert error <= 30


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_not_a_number(cell: str, dtype: torch.dtype, value: float, backend: str) -> None:
    """NaN and infinities come out where torch.nn's do, and stay in their batch row."""
    case = Case(cell, dtype, batch=9, hidden_size=17, steps=4)
    a = arguments(case)
    x = a.x.clone()
    x[1, 4, 0] = value
    a = a.with_tensors(a.differentiable() | {"x": x})
    actual, expected = results(a, backend=backend, wanted=()), results(a, torch_forward, wanted=())
    check(actual, expected, case)
    others = torch.arange(case.batch) != 4
    assert all(bool(result[:, others].isfinite().all()) for result in actual.values())


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_relu_at_zero(dtype: torch.dtype, backend: str) -> None:
    """The slope of relu at exactly 0 is 0, as torch has it."""
    case = Case("rnn_relu", dtype, bias=False, hx=False, hidden_size=17)
    a = arguments(case)
    a = a.with_tensors(a.differentiable() | {"x": torch.zeros_like(a.x)})
    actual = results(a, backend=backend)
    assert not actual["output"].any()
    assert all(not grad.any() for name, grad in actual.items() if name.startswith("grad"))
    check(actual, results(a, torch_forward), case)


# PackedSequence.


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_packed_fields(cell: str, enforce_sorted: bool, backend: str) -> None:
    """What comes out is packed exactly as what went in."""
    case = Case(cell, layout="packed" if enforce_sorted else "packed_unsorted")
    a = arguments(case)
    with fastrnn.use_backend(backend):
        y = cases.call(a)[0]
    assert isinstance(y, PackedSequence)
    assert a.packing is not None
    assert y.batch_sizes is a.packing.batch_sizes
    assert y.sorted_indices is a.packing.sorted_indices
    assert y.unsorted_indices is a.packing.unsorted_indices


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_packed_equals_padded(cell: str, backend: str) -> None:
    """Packed and padded with lengths are one computation: the same rows, the same states."""
    case = Case(cell, lengths="random", bidirectional=True, batch=5, layers=2)
    a = arguments(case)
    lengths = torch.tensor([2, 5, 1, 3, 5])
    x = a.x.nan_to_num()
    with fastrnn.use_backend(backend):
        padded = cases.fastrnn_forward(replace(a, x=x, lengths=lengths))
        packing = pack_padded_sequence(x, lengths, enforce_sorted=False)
        packed = cases.fastrnn_forward(replace(a, x=packing.data, lengths=None, packing=packing))
    padded["output"] = pack_padded_sequence(padded["output"], lengths, enforce_sorted=False).data
    check(packed, padded, case)


# Aliasing: no output shares memory with an input or with another output.


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_outputs_share_no_memory(cell: str, layout: str, steps: int, backend: str) -> None:
    a = arguments(Case(cell, steps=steps, layout=layout))
    with fastrnn.use_backend(backend):
        outputs = cases.fastrnn_forward(a)
    tensors = [*outputs.values(), *a.differentiable().values()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
