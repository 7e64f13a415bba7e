"""The same numbers to the bit: again, on any number of threads, from any Python thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cases
import pytest
import torch
from cases import ALL_CELLS, BACKENDS, Case, Outputs, arguments, results
from torch import Tensor

import fastrnn
from fastrnn.backends import FusedBackend, Gradients, Needs
from fastrnn.problem import LayerInputs, Problem


def shapes() -> Iterator[Case]:
    """Few and many rows and units, so that each way of sharing the work among threads occurs."""
    for cell in ALL_CELLS:
        for dtype in cases.DTYPES + cases.STORAGE_DTYPES:
            yield Case(cell, dtype, steps=7, batch=1, hidden_size=129, bidirectional=True)
            yield Case(cell, dtype, steps=7, batch=37, hidden_size=33, reset="random")
            yield Case(cell, dtype, steps=2, batch=3, hidden_size=5, layers=2, lengths="random")
            yield Case(cell, dtype, steps=9, batch=16, hidden_size=64, layout="packed")
    yield Case("lstm", torch.float32, batch=13, hidden_size=65, proj_size=33, cell_states=True)


SHAPES = list(shapes())


def on_threads(case: Case, backend: str, count: int) -> Outputs:
    a = arguments(case)

    def forward(a: cases.Arguments) -> Outputs:
        torch.set_num_threads(count)
        return cases.fastrnn_forward(a)

    return results(a, forward, backend=backend)


def assert_identical(one: Outputs, other: Outputs) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


@cases.each_by_backend(SHAPES)
def test_two_runs(case: Case, backend: str) -> None:
    assert_identical(on_threads(case, backend, 2), on_threads(case, backend, 2))


@cases.each_by_backend(SHAPES)
def test_number_of_threads(case: Case, backend: str) -> None:
    """More threads than this machine has cores included: every result, gradients of weights too.

    Numba's kernels run on one thread, but torch multiplies for them what concerns all rows at once,
    and rounds differently on another number of threads: that stays within the rule of tolerances.
    """
    one = on_threads(case, backend, 1)
    for count in (2, 3, 8):
        other = on_threads(case, backend, count)
        if backend == "cpu":
            assert_identical(one, other)
        else:
            cases.check(other, one, case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_row_of_a_batch(cell: str, backend: str) -> None:
    """The outputs of a row do not depend on the rows beside it, beyond rounding."""
    case = Case(cell, torch.float32, batch=33, hidden_size=65)
    a = arguments(case)
    together = results(a, backend=backend, wanted=())
    for b in (0, 7, 8, 15, 16, 31, 32):
        own = {
            name: tensor[:, b : b + 1] if name in ("x", "h0", "c0") else tensor
            for name, tensor in a.differentiable().items()
        }
        alone = results(a.with_tensors(own), backend=backend, wanted=())
        cases.check(alone, {name: y[:, b : b + 1] for name, y in together.items()}, case)


THREADS_PROGRAM = """
import sys
import torch
import fastrnn
sys.path.insert(0, {tests!r})
import cases
case = cases.Case("lstm", torch.float32, steps=7, batch=37, hidden_size=65, bidirectional=True)
with fastrnn.use_backend({backend!r}):
    outputs = cases.fastrnn_forward(cases.arguments(case))
print(*(output.view(torch.int32).sum().item() for output in outputs.values()))
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_from_environment(backend: str) -> None:
    """FASTRNN_NUM_THREADS changes who computes, not what."""
    program = THREADS_PROGRAM.format(tests=os.path.dirname(__file__), backend=backend)
    printed = set()
    for count in ("1", "2", "3", ""):
        environment = os.environ | {"FASTRNN_NUM_THREADS": count}
        command = [sys.executable, "-c", program]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        printed.add(run.stdout)
    assert len(printed) == 1


@pytest.mark.skipif(not cases.NATIVE, reason="a pure Python install has no threads to count")
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_bad_number_of_threads_in_environment(value: str) -> None:
    program = THREADS_PROGRAM.format(tests=os.path.dirname(__file__), backend="cpu")
    environment = os.environ | {"FASTRNN_NUM_THREADS": value}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    expected = f"ValueError: FASTRNN_NUM_THREADS: expected a positive integer, got {value!r}"
    assert expected in run.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_concurrent_calls(backend: str) -> None:
    """Calls from several Python threads at once, forward and backward, do not meet."""
    every = [
        Case(cell, torch.float32, steps=9, batch=batch, hidden_size=33, bidirectional=True)
        for cell in ("lstm", "gru", "rnn_relu", "gru_reset_before")
        for batch in (1, 17)
    ]
    alone = {case: results(arguments(case), backend=backend) for case in every}
    start = threading.Barrier(4)

    def work(which: int) -> None:
        start.wait()
        for _ in range(5):
            for case in every[which:] + every[:which]:
                assert_identical(results(arguments(case), backend=backend), alone[case])

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, which) for which in range(4)]:
            future.result()


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_in_another_thread(backend: str) -> None:
    case = Case("lstm", batch=9, bidirectional=True)
    a = arguments(case)
    expected = results(a, backend=backend)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in a.differentiable().items()}
    with fastrnn.use_backend(backend):
        outputs = cases.fastrnn_forward(a.with_tensors(leaves))
    upstream = cases.upstream(outputs, case)

    def backward() -> tuple[Tensor, ...]:
        with fastrnn.use_backend(backend):
            return torch.autograd.grad(
                list(outputs.values()), list(leaves.values()), list(upstream.values())
            )

    with ThreadPoolExecutor(1) as pool:
        grads = pool.submit(backward).result()
    for name, grad in zip(leaves, grads, strict=True):
        assert torch.equal(grad, expected[f"grad {name}"])


def ticks_during(kernel: Callable[[], object]) -> int:
    """How often another Python thread got to run while ``kernel()`` did."""
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    ticker.start()
    while not ticks:
        time.sleep(0.001)
    begin = time.perf_counter()
    kernel()
    end = time.perf_counter()
    stop.set()
    ticker.join()
    return sum(begin < moment < end for moment in ticks)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gil_is_released(backend: str) -> None:
    """Other Python threads run while a kernel does, on the way forward and on the way back."""
    torch.set_num_threads(1)
    case = Case("lstm", torch.float32, steps=1500, batch=8, input_size=8, hidden_size=64)
    a = arguments(case)
    inputs = LayerInputs(a.x, a.h0, a.c0, list(a.weights.values()), None, None, None)
    problem = Problem.of("lstm", inputs, directions=1, keep_cell_states=False, training=True)
    kernels = fastrnn.backends.get(backend)
    assert isinstance(kernels, FusedBackend)
    outputs = kernels.forward(problem, inputs)
    assert outputs.c_n is not None
    assert outputs.cell_states is not None
    grads = Gradients(outputs.y, outputs.h_n, outputs.c_n, None)
    # Only the states' gradients, so that next to nothing but the recurrence takes the time.
    needs = Needs(False, True, True, [False] * 4)
    assert outputs.reserve is not None
    kept = (outputs.cell_states, outputs.reserve)
    for kernel in (
        lambda: kernels.forward(problem, inputs),
        lambda: kernels.backward(problem, inputs, *kept, grads, needs),
    ):
        # A kernel that held the GIL would let the other thread in at its two ends at most.
        best = max(ticks_during(kernel) for _ in range(5))
        assert best > 4
