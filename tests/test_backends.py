"""The registry: who serves a call, who refuses and why, and how to insist."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import cases
import pytest
import torch
from cases import ALL_CELLS, BACKENDS, Case, arguments, check, results

import fastrnn
from fastrnn import backends
from fastrnn.backends import Backend, DifferentiableBackend, FusedBackend, Verdict
from fastrnn.backends.reference import ReferenceBackend
from fastrnn.problem import LayerInputs, LayerOutputs, Problem


class Spy(ReferenceBackend):
    """The reference, under another name, counting what it serves."""

    name = "spy"

    def __init__(self) -> None:
        self.served: list[Problem] = []

    def layer(self, problem: Problem, inputs: LayerInputs) -> LayerOutputs:
        self.served.append(problem)
        return super().layer(problem, inputs)


def problem(cell: str = "lstm", dtype: torch.dtype = torch.float32, **options: Any) -> Problem:
    a = arguments(Case(cell, dtype, **options))
    inputs = LayerInputs(a.x, a.h0, a.c0, list(a.weights.values()), a.lengths, None, a.reset)
    return Problem.of(cell, inputs, directions=1, keep_cell_states=False, training=False)


# What is there.


def test_order() -> None:
    """Kernels first, the oracle last."""
    assert list(backends.backends()) == ["cpu", "cuda", "cupy", "numba", "torch", "reference"]


def test_kinds() -> None:
    for name, backend in backends.backends().items():
        assert backends.get(name) is backend
        assert backend.name == name
        assert isinstance(backend, FusedBackend | DifferentiableBackend)
        assert backend.differentiable == isinstance(backend, DifferentiableBackend)


def test_cpu_is_there_where_it_was_built() -> None:
    """An install with the extension has a ``cpu`` that works, one without says what is missing."""
    verdict = backends.get("cpu").available()
    assert verdict.ok == (importlib.util.find_spec("fastrnn._C") is not None) == cases.NATIVE
    assert verdict.ok or "extension" in verdict.reason


@pytest.mark.parametrize("name", ["numba", "torch", "reference"])
def test_others_are_always_there(name: str) -> None:
    assert backends.get(name).available().ok


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_kernels_serve_every_option(cell: str, dtype: torch.dtype, backend: str) -> None:
    for options in ({}, {"lengths": "random"}, {"reset": "random"}, {"bias": False}):
        assert backends.get(backend).supports(problem(cell, dtype, **options)).ok


@pytest.mark.parametrize("dtype", cases.STORAGE_DTYPES, ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_compiled_kernels_serve_16_bits(cell: str, dtype: torch.dtype) -> None:
    for options in ({}, {"lengths": "random"}, {"reset": "random"}, {"bias": False}):
        assert backends.get("cpu").supports(problem(cell, dtype, **options)).ok


@pytest.mark.parametrize(
    ("name", "dtype", "reason"),
    [
        ("numba", torch.float16, "float32 and float64"),
        ("numba", torch.bfloat16, "float32 and float64"),
        ("numba", torch.complex64, "float32 and float64"),
        ("cpu", torch.complex64, "float32, float64, bfloat16, float16 only"),
    ],
    ids=str,
)
def test_kernels_refuse_other_dtypes(name: str, dtype: torch.dtype, reason: str) -> None:
    verdict = backends.get(name).supports(problem(dtype=dtype))
    assert not verdict.ok
    assert reason in verdict.reason
    assert str(dtype).removeprefix("torch.") in verdict.reason


@pytest.mark.parametrize("name", ["cpu", "numba"])
def test_kernels_refuse_other_devices(name: str) -> None:
    a = arguments(Case("gru")).map(lambda tensor: tensor.to("meta"))
    inputs = LayerInputs(a.x, a.h0, a.c0, list(a.weights.values()), None, None, None)
    there = Problem.of("gru", inputs, directions=1, keep_cell_states=False, training=False)
    verdict = backends.get(name).supports(there)
    assert not verdict.ok
    assert "meta" in verdict.reason


@pytest.mark.parametrize(
    ("cell", "options", "reason"),
    [
        ("rnn_sigmoid", {}, "torch.nn has no rnn_sigmoid"),
        ("rnn_identity", {}, "torch.nn has no rnn_identity"),
        ("gru_reset_before", {}, "torch.nn has no gru_reset_before"),
        ("gru", {"lengths": "random"}, "torch.nn has no lengths"),
        ("gru", {"reset": "random"}, "torch.nn has no reset"),
    ],
)
def test_torch_refuses_what_it_lacks(cell: str, options: dict[str, Any], reason: str) -> None:
    assert backends.get("torch").supports(problem(cell, **options)) == (False, reason)


def test_torch_refuses_cell_states() -> None:
    a = arguments(Case("lstm"))
    inputs = LayerInputs(a.x, a.h0, a.c0, list(a.weights.values()), None, None, None)
    asked = Problem.of("lstm", inputs, directions=1, keep_cell_states=True, training=False)
    assert backends.get("torch").supports(asked) == (False, "torch.nn has no cell_states")


# The automatic choice.


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_kernels_are_chosen(cell: str, dtype: torch.dtype) -> None:
    assert backends.select(problem(cell, dtype)).name == BACKENDS[0]
    assert backends.select(problem(cell, dtype, lengths="random")).name == BACKENDS[0]


def test_other_dtypes_go_to_torch_or_reference() -> None:
    dtype = torch.complex64
    assert backends.select(problem(dtype=dtype)).name == "torch"
    assert backends.select(problem(dtype=dtype, reset="random")).name == "reference"
    assert backends.select(problem("gru_reset_before", dtype)).name == "reference"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_go_to_the_compiled_kernels(dtype: torch.dtype) -> None:
    """Where there are none, they are what other dtypes are."""
    for cell in ALL_CELLS:
        serving = "torch" if cell in cases.TORCH_CELLS else "reference"
        expected = "cpu" if cases.STORAGE_DTYPES else serving
        assert backends.select(problem(cell, dtype)).name == expected


def test_other_devices_go_to_torch() -> None:
    """Meta tensors, shapes only, as torch.nn computes them."""
    for cell in cases.TORCH_CELLS:
        case = Case(cell, torch.float32, layers=2, bidirectional=True)
        a = arguments(case).map(lambda tensor: tensor.to("meta"))
        outputs = cases.fastrnn_forward(a)
        for name, output in cases.torch_forward(arguments(case)).items():
            assert outputs[name].is_meta
            assert outputs[name].shape == output.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_torch_serves_as_torch(cell: str, dtype: torch.dtype) -> None:
    """What torch serves is torch's to the bit, gradients included."""
    a = arguments(Case(cell, dtype, bidirectional=True))
    expected = results(a, cases.torch_forward)
    for name, result in results(a, backend="torch").items():
        assert torch.equal(result, expected[name])


@pytest.mark.parametrize("backend", [*BACKENDS, "torch", "reference"])
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_forward_inside_autocast(cell: str, backend: str) -> None:
    """The functions compute in the dtype of their arguments; autocast is the modules' business."""
    a = arguments(Case(cell, torch.float32, bidirectional=True))
    expected = results(a, backend=backend, wanted=())
    with torch.autocast("cpu", torch.bfloat16):
        actual = results(a, backend=backend, wanted=())
    for name, result in actual.items():
        assert torch.equal(result, expected[name])


def test_transforms_choose_each_time() -> None:
    """The choice inside one functorch transform is not remembered for another."""
    case = Case("gru", steps=2)
    a = arguments(case)

    def output(x: torch.Tensor) -> torch.Tensor:
        return cases.fastrnn_forward(a.with_tensors(a.differentiable() | {"x": x}))["output"]

    expected = output(a.x)
    torch.func.grad(lambda x: output(x).sum())(a.x)
    batched = torch.func.vmap(output)(a.x.expand(2, *a.x.shape))
    check({"output": batched[1]}, {"output": expected}, case)
    torch.func.grad(lambda x: output(x).sum())(a.x)
    assert backends.select(problem("gru")).name == BACKENDS[0]


def test_backward_inside_autocast() -> None:
    """Of a forward outside it: the matrix products of a backward round to bfloat16, as torch's."""
    a = arguments(Case("lstm", torch.float32))
    expected = results(a)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in a.differentiable().items()}
    outputs = cases.fastrnn_forward(a.with_tensors(leaves))
    grads = list(cases.upstream(outputs, a.case).values())
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(list(outputs.values()), list(leaves.values()), grads)
    assert {grad.dtype for grad in found} == {torch.float32}
    named = {f"grad {name}": grad for name, grad in zip(leaves, found, strict=True)}
    check(named, {name: expected[name] for name in named}, a.case, torch.bfloat16)


# Registering another.


def test_on_request_only(registry: None) -> None:
    spy = Spy()
    spy.on_request = "still on trial"  # type: ignore[misc]
    backends.register(spy, before=BACKENDS[0])
    case = Case("gru")
    results(arguments(case))
    assert not spy.served
    problem = backends.example("gru", torch.float64, torch.device("cpu"), *[False] * 4)
    assert "served by 'spy'" not in backends.explain(problem)
    results(arguments(case), backend="spy")
    assert spy.served


def test_register(registry: None) -> None:
    spy = Spy()
    backends.register(spy)
    assert list(backends.backends()) == [
        "cpu",
        "cuda",
        "cupy",
        "numba",
        "torch",
        "reference",
        "spy",
    ]
    backends.register(spy, before="cpu")
    assert list(backends.backends()) == [
        "spy",
        "cpu",
        "cuda",
        "cupy",
        "numba",
        "torch",
        "reference",
    ]
    case = Case("gru", layers=2)
    cases.fastrnn_forward(arguments(case))
    assert [each.hidden_size for each in spy.served] == [case.hidden_size] * 2


def test_devices_of_a_type_are_chosen_for_apart(registry: None) -> None:
    """One GPU of a machine may be too old for what serves another."""

    class Newer(ReferenceBackend):
        name = "newer"

        def supports(self, problem: Problem) -> Verdict:
            return Verdict(problem.device.index == 1, "device 1 only")

    backends.register(Newer(), before="cpu")
    for index, wanted in ((0, "torch"), (1, "newer"), (0, "torch")):
        asked = backends.example("lstm", torch.float32, torch.device("meta", index))
        assert backends.select(asked).name == wanted


def test_register_is_seen_by_calls_made_before(registry: None) -> None:
    """A choice made once is not kept beyond a change of the registry."""
    assert backends.select(problem()).name == BACKENDS[0]
    backends.register(Spy(), before=BACKENDS[0])
    assert backends.select(problem()).name == "spy"


def test_register_before_unknown(registry: None) -> None:
    known = "cpu, cuda, cupy, numba, torch, reference"
    with pytest.raises(ValueError, match=rf"^before: expected one of {known}, got 'mkl'$"):
        backends.register(Spy(), before="mkl")


def test_backends_is_a_copy() -> None:
    backends.backends().clear()
    assert "cpu" in backends.backends()


def test_nobody_serves(registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(Spy):
        name = "refusing"

        def supports(self, problem: Problem) -> Verdict:
            return Verdict(False, "not today")

    monkeypatch.setattr(backends, "_registry", {"refusing": Refusing()})
    with pytest.raises(RuntimeError, match=r"^no backend: refusing: not today$"):
        backends.select(problem())


def test_interface_is_abstract() -> None:
    for kind in (Backend, DifferentiableBackend, FusedBackend):
        with pytest.raises(TypeError, match="abstract"):
            kind()  # type: ignore[abstract]


# Saying so.


def test_explain() -> None:
    text = fastrnn.explain(problem("lstm", torch.float32, reset="random"))
    first, *lines = text.splitlines()
    assert first == f"lstm, torch.float32, cpu: served by '{BACKENDS[0]}'"
    verdicts = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert list(verdicts) == list(backends.backends())
    assert verdicts["torch"] == "cannot: torch.nn has no reset"
    assert verdicts["reference"].startswith("can: ")
    assert verdicts[BACKENDS[0]].startswith("can: ")


def test_explain_a_module() -> None:
    lstm = fastrnn.LSTM(2, 3)
    text = fastrnn.explain(lstm, torch.zeros(4, 1, 2), lengths=[4])
    assert text.startswith(f"lstm, torch.float32, cpu: served by {BACKENDS[0]!r}")
    assert "torch      cannot: torch.nn has no lengths" in text
    assert "served by 'torch'" in fastrnn.explain(lstm.to(torch.complex64))
    with pytest.raises(
        TypeError, match=r"subject: expected a fastrnn\.RNN, LSTM or GRU, or a Prob"
    ):
        fastrnn.explain(torch.nn.LSTM(2, 3))


def test_explain_follows_use_backend() -> None:
    with fastrnn.use_backend("reference"):
        assert "served by 'reference'" in fastrnn.explain(problem())


def test_candidates() -> None:
    found = dict(backends.candidates(problem("rnn_sigmoid", torch.complex64)))
    assert list(found) == list(backends.backends())
    assert [name for name, verdict in found.items() if verdict.ok] == ["reference"]
    assert all(verdict.reason for verdict in found.values())


def test_choice_is_logged_once(registry: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fastrnn")
    for _ in range(3):
        backends.select(problem("gru", torch.complex64, reset="random"))
    messages = [r.getMessage() for r in caplog.records if "served by" in r.getMessage()]
    assert len(messages) == 1
    assert messages[0].startswith("gru complex64 on cpu: served by 'reference'; cpu: ")
    assert "torch: torch.nn has no reset" in messages[0]
