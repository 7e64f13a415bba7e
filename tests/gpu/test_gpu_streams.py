"""The same bits on every run, beside other work, on any stream; and nobody waits."""

from __future__ import annotations

import threading

import pytest
import torch
from cases import Case, arguments, call, upstream
from on_gpu import FLOAT32, REGIMES, device, moved, refusable, run, same_bits, to_device
from torch import Tensor

import fastrnn

pytestmark = pytest.mark.gpu

CASE = Case(
    "lstm",
    torch.float32,
    steps=device().fit(60, 3),
    batch=device().fit(40, 9),
    hidden_size=device().fit(120, 17),
    bidirectional=True,
)
OF_16_BITS = Case(
    "gru",
    torch.bfloat16,
    steps=device().fit(200, 3),
    batch=device().fit(33, 5),
    hidden_size=device().fit(256, 17),
    lengths="random",
)
ROUNDS = device().fit(20, 2)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("case", [CASE, OF_16_BITS], ids=["lstm", "gru"])
def test_same_bits_every_time(case: Case, regime: str | None) -> None:
    first = run(case, regime)
    for _ in range(ROUNDS):
        same_bits(run(case, regime), first)


@pytest.mark.parametrize("regime", device().some(REGIMES, 2))
def test_same_bits_while_the_device_is_busy(regime: str | None) -> None:
    """Another stream keeps it so: what multiprocessors are free, and when, changes all the time."""
    quiet = run(CASE, regime, FLOAT32)
    stream = device().cuda.Stream()
    size = device().fit(3000, 10)
    load = torch.randn(size, size, device=device().type) / size
    device().cuda.synchronize()
    for round_ in range(ROUNDS):
        with device().cuda.stream(stream):
            for _ in range(1 + 3 * round_):
                load = load @ load.mT / size
        same_bits(run(CASE, regime, FLOAT32), quiet)
    device().cuda.synchronize()


def outputs(module: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients, on the current stream."""
    leaf = x.detach().requires_grad_()
    y = module(leaf)[0]
    return [y.detach(), *torch.autograd.grad(y.sum(), [leaf, *module.parameters()])]


@pytest.mark.parametrize("regime", REGIMES)
def test_two_streams(regime: str | None) -> None:
    """Calls under way at the same time do not meet, whether both fit on the device or not."""
    hidden = device().fit(512, 17)
    module = fastrnn.LSTM(32, hidden, device=device().type, dtype=torch.bfloat16)
    inputs = [
        torch.randn(device().fit(100, 3), 16, 32, device=device().type, dtype=torch.bfloat16)
        for _ in range(2)
    ]
    streams = [device().cuda.Stream() for _ in inputs]
    with device().serving(regime) as name, fastrnn.use_backend(name):
        with refusable(regime):
            alone = [outputs(module, x) for x in inputs]
        device().cuda.synchronize()
        for _ in range(ROUNDS):
            found = []
            for stream, x in zip(streams, inputs, strict=True):
                with device().cuda.stream(stream):
                    found.append(outputs(module, x))
            device().cuda.synchronize()
            for one, wanted in zip(found, alone, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one, wanted, strict=True))


def test_two_threads_of_the_host() -> None:
    """Of different sizes: they launch the same kernels with different shared memory."""
    sizes = [device().fit(200, 9), device().fit(64, 5)]
    modules = [fastrnn.GRU(8, hidden, device=device().type) for hidden in sizes]
    x = torch.randn(10, 4, 8, device=device().type)
    found: dict[int, list[list[Tensor]]] = {}
    with device().serving() as name:

        def work(number: int) -> None:
            with fastrnn.use_backend(name), device().cuda.stream(device().cuda.Stream()):
                found[number] = [outputs(modules[number], x) for _ in range(ROUNDS)]

        with fastrnn.use_backend(name):
            wanted = [outputs(module, x) for module in modules]
        device().cuda.synchronize()
        # The emulator's streams are one: there the threads follow one another.
        workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for worker in workers:
            worker.start()
            if device().rehearsed:
                worker.join()
        for worker in workers:
            worker.join()
    device().cuda.synchronize()
    assert sorted(found) == [0, 1]
    for number, rounds in found.items():
        for one in rounds:
            assert all(torch.equal(a, b) for a, b in zip(one, wanted[number], strict=True))


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("lengths", ["", "random"], ids=["padded", "lengths"])
def test_the_host_never_waits(regime: str | None, lengths: str) -> None:
    case = Case("lstm", torch.float32, batch=9, hidden_size=24, lengths=lengths, reset="random")
    a = moved(arguments(case))
    sources = [tensor.requires_grad_() for tensor in a.differentiable().values()]
    with device().serving(regime) as name, fastrnn.use_backend(name):
        with refusable(regime):
            y = call(a)[0]
        above = to_device(upstream({"output": y.detach().cpu()}, case)["output"])
        wanted = torch.autograd.grad(y, sources, above)
        with device().no_synchronization():
            found = torch.autograd.grad(call(a)[0], sources, above)
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one, two)


def test_every_device() -> None:
    """Not the current one, where there are several; and the current one stays it."""
    count = device().cuda.device_count()
    before = device().index
    for number in range(count):
        where = f"{device().type}:{number}" if not device().rehearsed else device().type
        module = fastrnn.LSTM(4, 20, device=where, dtype=torch.float64)
        x = torch.randn(5, 3, 4, device=where, dtype=torch.float64)
        with device().serving() as name, fastrnn.use_backend(name):
            y = module(x)[0]
            grads = torch.autograd.grad(y.sum(), list(module.parameters()))
        assert {value.device for value in (y, *grads)} == {x.device}
        torch.testing.assert_close(
            y.cpu(), torch.nn.LSTM.forward(as_torch(module), x.cpu())[0], check_device=False
        )
        assert device().index == before


def as_torch(module: fastrnn.LSTM) -> torch.nn.LSTM:
    """torch.nn's module with the same weights, on the CPU."""
    theirs = torch.nn.LSTM(module.input_size, module.hidden_size, dtype=torch.float64)
    theirs.load_state_dict({name: value.cpu() for name, value in module.state_dict().items()})
    return theirs
