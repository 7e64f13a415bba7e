"""The 16-bit dtypes: conversions, what is rounded when, and the dtypes of what comes out.

That results are right is the business of ``test_oracles.py``, whose tables have rows of them.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator

import cases
import pytest
import torch
from cases import ALL_CELLS, Case, arguments, results
from torch import Tensor

import fastrnn
from fastrnn.autograd import layer
from fastrnn.problem import LayerInputs, LayerOutputs, Problem

if not cases.STORAGE_DTYPES:
    pytest.skip("no kernels of 16 bits: pure Python, or no AVX2", allow_module_level=True)

DTYPES = cases.STORAGE_DTYPES


@pytest.fixture(params=cases.STORAGE_TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each CPU target in turn; the one in use is put back."""
    extension = importlib.import_module("fastrnn._C")
    before = extension.active_target()
    assert extension.select_target(request.param)
    yield request.param
    assert extension.select_target(before)


def scaled(x: Tensor, weights: Tensor) -> Tensor:
    """Every x by every weight, as an RNN without recurrence, activation and bias has it."""
    units = weights.numel()
    inputs = LayerInputs(
        x.view(-1, 1, 1),
        None,
        None,
        [weights.view(-1, 1), weights.new_zeros(units, units)],
        None,
        None,
        None,
    )
    # One step: 0 times an infinite h would be NaN.
    one_step = inputs._replace(x=inputs.x.view(1, -1, 1))
    with fastrnn.use_backend("cpu"):
        return layer("rnn_identity", one_step, directions=1, keep_cell_states=False).y[0]


def all_values(dtype: torch.dtype) -> Tensor:
    """Of every bit pattern that is a number or infinity, in a random order."""
    bits = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0)) - (1 << 15)
    values = bits.to(torch.int16).view(dtype)
    return values[~values.isnan()]


def without_subnormal(x: Tensor, target: str) -> Tensor:
    """AVX512-BF16 takes them for zeros."""
    tiny = x.abs() < torch.finfo(x.dtype).tiny
    flushed = target == "avx512bf16" and x.dtype == torch.bfloat16
    return x.masked_fill(tiny, 0) if flushed else x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_value_passes(target: str, dtype: torch.dtype) -> None:
    """To float32 and back, each bit pattern stays what it is."""
    x = all_values(dtype)
    for units in (1, 5, 17):
        y = scaled(x, torch.ones(units, dtype=dtype))
        expected = without_subnormal(x, target)
        assert all(torch.equal(y[:, j], expected) for j in range(units))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_not_a_number_passes(target: str, dtype: torch.dtype) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    x = bits.view(dtype)
    x = x[x.isnan()]
    assert x.numel() > 100
    assert bool(scaled(x, torch.ones(17, dtype=dtype)).isnan().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounds_to_nearest_even(target: str, dtype: torch.dtype) -> None:
    """Products of two 16-bit values are exact in float32: what is seen is the last rounding."""
    x = all_values(dtype)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(17, generator=generator).to(dtype)
    weights[0] = 1.5  # many ties
    weights[1] = 2.0  # the largest values overflow
    weights[2] = 1 + torch.finfo(dtype).eps
    exact = without_subnormal(x, target).float()[:, None] * weights.float()
    expected = without_subnormal(exact.to(dtype), target)
    near_subnormal = expected.abs() <= 2 * torch.finfo(dtype).tiny
    skipped = near_subnormal & (target == "avx512bf16") & (dtype == torch.bfloat16)
    actual = scaled(x, weights)
    assert torch.equal(actual.masked_fill(skipped, 0), expected.masked_fill(skipped, 0))


def lstm(dtype: torch.dtype, *, kept: bool, training: bool) -> tuple[Problem, LayerInputs]:
    a = arguments(Case("lstm", dtype, proj_size=3))
    inputs = LayerInputs(a.x, a.h0, a.c0, list(a.weights.values()), None, None, None)
    options = {"directions": 1, "keep_cell_states": kept, "training": training}
    return Problem.of("lstm", inputs, **options), inputs


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, *cases.DTYPES], ids=str)
def test_what_kernels_make_is_what_is_allocated(
    dtype: torch.dtype, kept: bool, training: bool
) -> None:
    """The description that compilers see has the shapes and dtypes of what comes."""
    problem, inputs = lstm(dtype, kept=kept, training=training)

    def kinds(outputs: LayerOutputs) -> list[object]:
        return [None if t is None else (t.shape, t.dtype) for t in outputs]

    backend = fastrnn.backends.get("cpu")
    assert isinstance(backend, fastrnn.backends.FusedBackend)
    made = backend.forward(problem, inputs)
    assert kinds(made) == kinds(problem.allocate(inputs.x))
    if made.cell_states is not None:
        assert made.cell_states.dtype == (torch.float32 if dtype in DTYPES else dtype)


PROGRAM = """
import torch, fastrnn
from fastrnn import _C
for dtype in (torch.bfloat16, torch.float16):
    ours, theirs = (nn.LSTM(3, 5, dtype=dtype) for nn in (fastrnn, torch.nn))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 3, dtype=dtype)
    assert torch.equal(ours(x)[0], theirs(x)[0])
    with torch.no_grad():  # a direct call declines
        assert torch.equal(ours(x)[0], theirs(x)[0])
    print(fastrnn.explain(ours))
    with fastrnn.use_backend("cpu"):
        try:
            ours(x)
        except RuntimeError as error:
            print(error)
"""


def test_the_baseline_has_none() -> None:
    """torch serves there, and who insists on the kernels is told what they need."""
    environment = os.environ | {"FASTRNN_ISA": "baseline"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    for dtype in DTYPES:
        reason = f"{dtype} needs AVX2 kernels, not those for baseline"
        assert f"lstm, {dtype}, cpu: served by 'torch'\n  cpu        cannot: {reason}" in run.stdout
        assert f"backend 'cpu' cannot serve this call: {reason}" in run.stdout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_themselves_refuse_what_their_target_lacks(dtype: torch.dtype) -> None:
    """A choice may be older than the target: an error, not a crash."""
    extension = importlib.import_module("fastrnn._C")
    problem, inputs = lstm(dtype, kept=False, training=False)
    backend = fastrnn.backends.get("cpu")
    assert isinstance(backend, fastrnn.backends.FusedBackend)
    before = extension.active_target()
    assert extension.select_target("baseline")
    try:
        with pytest.raises(TypeError, match="no kernels of this dtype for baseline"):
            backend.forward(problem, inputs)
    finally:
        assert extension.select_target(before)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_outputs(dtype: torch.dtype, grad: bool) -> None:
    """Cell states too: callers get everything in the dtype of the input."""
    a = arguments(Case("lstm", dtype, cell_states=True, layers=2))
    found = results(a, backend="cpu", wanted=None if grad else ())
    assert {result.dtype for result in found.values()} == {dtype}
    assert {"c_n", "cell_states_l0", "cell_states_l1"} <= found.keys()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cell_state_is_not_rounded_between_steps(dtype: torch.dtype) -> None:
    """Additions far below the roundoff of c add up in it."""
    steps, eps = 64, torch.finfo(dtype).eps
    gates = {"i": 50.0, "f": 50.0, "g": eps / 8, "o": 50.0}  # 1, 1, eps / 8, 1
    bias = torch.tensor(list(gates.values()), dtype=dtype)
    zeros = torch.zeros(4, 1, dtype=dtype)
    one = torch.ones(1, 1, 1, dtype=dtype)
    inputs = LayerInputs(
        one.new_zeros(steps, 1, 1), None, one, [zeros, zeros, bias, bias * 0], None, None, None
    )
    for kept in (False, True):
        with fastrnn.use_backend("cpu"):
            outputs = layer("lstm", inputs, directions=1, keep_cell_states=kept)
        assert outputs.c_n is not None
        assert float(outputs.c_n) == 1 + steps * eps / 8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_over_rows_are_rounded_once(dtype: torch.dtype) -> None:
    """The gradient of a bias is a count here, beyond what the dtype counts in ones."""
    rows = 8192
    weights = [torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1), torch.zeros(1)]
    leaves = [weight.to(dtype).requires_grad_() for weight in weights]
    inputs = LayerInputs(torch.ones(2, rows // 2, 1, dtype=dtype), None, None, leaves, *[None] * 3)
    with fastrnn.use_backend("cpu"):
        y = layer("rnn_identity", inputs, directions=1, keep_cell_states=False).y
    grads = torch.autograd.grad(y, [leaves[0], *leaves[2:]], torch.ones_like(y))
    assert [float(grad) for grad in grads] == [rows] * 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_second_derivatives(cell: str, dtype: torch.dtype) -> None:
    """By torch's operations in the dtype, cell states among the outputs."""
    case = Case(cell, dtype, steps=2, cell_states=cell == "lstm")
    a = arguments(case)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in a.differentiable().items()}
    with fastrnn.use_backend("cpu"):
        outputs = cases.fastrnn_forward(a.with_tensors(leaves))
        loss = torch.stack([output.float().square().sum() for output in outputs.values()]).sum()
        (first,) = torch.autograd.grad(loss, leaves["x"], create_graph=True)
        (second,) = torch.autograd.grad(first.float().square().sum(), leaves["weight_ih_l0"])
    assert first.dtype == second.dtype == dtype
    assert bool(second.isfinite().all())
    assert bool(second.any())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_compiled(kind: str, dtype: torch.dtype) -> None:
    options = {"return_cell_states": True} if kind == "LSTM" else {}
    module = getattr(fastrnn, kind)(3, 5, dtype=dtype, **options)
    x = torch.randn(4, 2, 3, dtype=dtype)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    expected, actual = module(x), compiled(x)
    assert torch.equal(actual[0], expected[0])
    if kind == "LSTM":
        assert actual[2][0].dtype == dtype
        assert torch.equal(actual[2][0], expected[2][0])
    expected[0].sum().backward()
    grads = [weight.grad for weight in module.parameters()]
    module.zero_grad()
    actual[0].sum().backward()
    for weight, grad in zip(module.parameters(), grads, strict=True):
        assert grad is not None
        assert torch.equal(weight.grad, grad)
