"""A backend insisted on: by ``use_backend``, and by the environment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import cases
import pytest
import torch
from cases import BACKENDS, Case, arguments, check, results
from test_backends import Spy, problem

import fastrnn
from fastrnn import backends
from fastrnn.backends import Verdict


@pytest.mark.parametrize("backend", [*BACKENDS, "torch", "reference"])
def test_use_backend(backend: str) -> None:
    a = arguments(Case("lstm"))
    with fastrnn.use_backend(backend):
        assert backends.select(problem()).name == backend
        inside = cases.fastrnn_forward(a)
    assert backends.select(problem()).name == BACKENDS[0]
    check(inside, cases.fastrnn_forward(a), a.case)


def test_use_backend_nests() -> None:
    with fastrnn.use_backend("reference"):
        with fastrnn.use_backend("numba"):
            assert backends.select(problem()).name == "numba"
            with fastrnn.use_backend(None):
                assert backends.select(problem()).name == BACKENDS[0]
            assert backends.select(problem()).name == "numba"
        assert backends.select(problem()).name == "reference"


def test_use_backend_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), fastrnn.use_backend("reference"):
        raise KeyError
    assert backends.select(problem()).name == BACKENDS[0]


def test_use_backend_is_of_one_thread() -> None:
    seen = []
    with fastrnn.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.select(problem()).name))
        thread.start()
        thread.join()
    assert seen == [BACKENDS[0]]


def test_use_backend_unknown() -> None:
    known = "cpu, cuda, cupy, numba, torch, reference"
    with (
        pytest.raises(ValueError, match=rf"^backend: expected one of {known}, got 'mkl'$"),
        fastrnn.use_backend("mkl"),
    ):
        pass
    with pytest.raises(ValueError, match=r"^backend: expected one of"):
        backends.get("mkl")


def test_use_backend_unavailable(registry: None) -> None:
    class Broken(Spy):
        name = "broken"

        def available(self) -> Verdict:
            return Verdict(False, "no such machine")

    backends.register(Broken())
    with (
        pytest.raises(RuntimeError, match=r"^backend 'broken' is not available: no such machine$"),
        fastrnn.use_backend("broken"),
    ):
        pass


def test_insisting_on_one_that_cannot() -> None:
    expected = r"^backend 'torch' cannot serve this call: torch.nn has no reset$"
    with fastrnn.use_backend("torch"), pytest.raises(RuntimeError, match=expected):
        cases.fastrnn_forward(arguments(Case("gru", reset="random")))


@pytest.mark.parametrize("backend", BACKENDS)
def test_insisting_on_kernels_inside_a_transform(backend: str) -> None:
    """An error that says why, or the right answer; never a wrong one."""
    a = arguments(Case("gru", steps=2))

    def output(x: torch.Tensor) -> torch.Tensor:
        return cases.fastrnn_forward(a.with_tensors(a.differentiable() | {"x": x}))["output"]

    with (
        fastrnn.use_backend(backend),
        pytest.raises(
            RuntimeError, match=rf"^backend '{backend}' cannot serve this call: .*functorch"
        ),
    ):
        torch.func.vmap(output)(a.x.expand(2, *a.x.shape))


@pytest.mark.parametrize("inside", ["torch", "reference"])
def test_insisting_during_backward_only(inside: str) -> None:
    """A backward of kernels inside ``use_backend`` of torch operations still has its gradients."""
    a = arguments(Case("lstm"))
    expected = results(a, backend=BACKENDS[0])
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in a.differentiable().items()}
    outputs = cases.fastrnn_forward(a.with_tensors(leaves))
    grads = list(cases.upstream(outputs, a.case).values())
    with fastrnn.use_backend(inside):
        found = torch.autograd.grad(list(outputs.values()), list(leaves.values()), grads)
    named = {f"grad {name}": grad for name, grad in zip(leaves, found, strict=True)}
    check(named, {name: expected[name] for name in named}, a.case)


# The environment, read by a fresh process.

PROGRAM = """
import torch, fastrnn
weights = [torch.zeros(4, 3), torch.zeros(4, 4)]
y, h_n = fastrnn.functional.rnn(torch.zeros(2, 1, 3), weights)
print(tuple(y.shape))
"""


def run(**environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FASTRNN_")}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True)


@pytest.mark.parametrize("backend", [*BACKENDS, "torch", "reference"])
def test_backend_from_environment(backend: str) -> None:
    finished = run(FASTRNN_BACKEND=backend)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "(2, 1, 4)\n"


def test_automatic_choice_is_logged_to_stderr() -> None:
    finished = run(FASTRNN_LOG="info")
    assert f"fastrnn INFO: rnn_tanh float32 on cpu: served by '{BACKENDS[0]}'" in finished.stderr
    assert not run().stderr


def test_bad_log_level_is_not_fatal() -> None:
    finished = run(FASTRNN_LOG="loud")
    assert finished.returncode == 0, finished.stderr
    assert "FASTRNN_LOG='loud' is not a log level" in finished.stderr


def test_unknown_backend_in_environment() -> None:
    finished = run(FASTRNN_BACKEND="mkl")
    assert finished.returncode == 1
    known = "cpu, cuda, cupy, numba, torch, reference"
    assert f"ValueError: backend: expected one of {known}, got 'mkl'" in finished.stderr


def test_use_backend_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_from_environment", "torch")
    assert backends.select(problem()).name == "torch"
    with fastrnn.use_backend("reference"):
        assert backends.select(problem()).name == "reference"


def test_unavailable_backend_in_environment(
    registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Spy):
        name = "broken"

        def available(self) -> Verdict:
            return Verdict(False, "no such machine")

    backends.register(Broken())
    monkeypatch.setattr(backends, "_from_environment", "broken")
    with pytest.raises(RuntimeError, match=r"'broken' cannot serve this call: no such machine"):
        backends.select(problem())
