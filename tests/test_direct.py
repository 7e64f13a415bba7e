"""Direct calls: what they serve, that it is the long way's result, and that nothing is left behind.

What they must not serve is in ``test_direct_declined.py``.
"""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import pickle
import resource
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cases
import pytest
import torch
from contract import CELLS, FASTRNN, SEQUENCES, flat, states
from directly import changed, compare, declined, example, served, watched, weight_names
from torch import Tensor, nn

import fastrnn
from fastrnn import backends

pytestmark = pytest.mark.skipif(not cases.NATIVE, reason="direct calls are the compiled kernels'")

KINDS = SEQUENCES + CELLS


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


# Every form of a call.

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
    ("RNN", {"nonlinearity": "sigmoid"}),
    ("RNN", {"nonlinearity": "identity"}),
    ("LSTM", {}),
    ("LSTM", {"proj_size": 2}),
    ("GRU", {}),
    ("GRU", {"reset_after": False}),
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu"}),
    ("RNNCell", {"nonlinearity": "sigmoid"}),
    ("RNNCell", {"nonlinearity": "identity"}),
    ("LSTMCell", {}),
    ("GRUCell", {}),
    ("GRUCell", {"reset_after": False}),
)


def forms(kind: str) -> Iterator[tuple[dict[str, Any], str, int, int]]:
    """Options of the module, layout, steps and rows."""
    sizes = ((1, 1), (5, 1), (1, 3), (5, 3))
    if kind in CELLS:
        for bias, layout, (_, rows) in itertools.product(
            (True, False), ("batch", "unbatched"), sizes[::2]
        ):
            yield {"bias": bias}, layout, 1, rows
        return
    for layers, both, bias, layout, (steps, rows) in itertools.product(
        (1, 2, 3), (False, True), (True, False), ("time", "batch", "unbatched"), sizes
    ):
        options = {"num_layers": layers, "bidirectional": both, "bias": bias}
        yield options | {"batch_first": layout == "batch"}, layout, steps, rows


@pytest.mark.parametrize("dtype", cases.DTYPES + cases.STORAGE_DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_every_form_of_a_call(kind: str, variant: dict[str, Any], dtype: torch.dtype) -> None:
    for options, layout, steps, rows in forms(kind):
        module = FASTRNN[kind](3, 5, dtype=dtype, **variant, **options)
        shape: dict[str, tuple[int, ...]]
        shape = {"time": (steps, rows), "batch": (rows, steps), "unbatched": (steps,)}
        if kind in CELLS:
            shape = {"batch": (rows,), "unbatched": ()}
        lead = shape[layout]
        x = torch.randn(*lead, 3, dtype=dtype)
        hx = states(module, None if layout == "unbatched" else rows, dtype)
        served(lambda module=module, x=x: module(x))
        served(lambda module=module, x=x, hx=hx: module(x, hx))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_is_called(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spy of these tests told the truth: what the long way calls is not there."""
    module, x, hx = example(kind)
    expected = module(x, hx)

    def gone(*args: Any, **options: Any) -> None:
        raise AssertionError("the long way")

    monkeypatch.setattr("fastrnn.modules.base.sequence", gone)
    monkeypatch.setattr("fastrnn.modules.cell.layer", gone)
    monkeypatch.setattr(type(module), "_torch_forward", gone)
    for own, other in zip(flat(module(x, hx)), flat(expected), strict=True):
        assert torch.equal(own, other)
    with torch.enable_grad(), pytest.raises(AssertionError, match="the long way"):
        module(x, hx)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 7, 8, 16, 17, 65])
def test_sizes(kind: str, size: int) -> None:
    for rows in (1, 2, 9, 33):
        module = FASTRNN[kind](size, size)
        x = torch.randn(*(() if kind in CELLS else (3,)), rows, size)
        served(lambda module=module, x=x: module(x))


def strides(x: Tensor) -> dict[str, Tensor]:
    """The values of x in other memory, the features adjacent."""
    padded = torch.full((*x.shape[:-1], x.shape[-1] + 2), torch.nan)
    padded[..., 1:-1] = x
    offset = torch.full((x.numel() + 1,), torch.nan)
    offset[1:] = x.flatten()
    rows = torch.full((2 * x.shape[0], *x.shape[1:]), torch.nan)
    rows[::2] = x
    return {
        "padded": padded[..., 1:-1],
        "offset": offset[1:].view(x.shape),
        "every other": rows[::2],
        "expanded": x[:1].expand(x.shape),
        "transposed": x.transpose(0, -2).contiguous().transpose(0, -2),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["padded", "offset", "every other", "expanded", "transposed"])
def test_input_wherever_it_lies(kind: str, name: str) -> None:
    module, x, hx = example(kind)
    moved = strides(x)[name]
    result = served(lambda: module(moved, hx))
    for own, other in zip(flat(result), flat(module(moved.clone(), hx)), strict=True):
        assert torch.equal(own, other)


def test_address_between_floats() -> None:
    memory = bytearray(4 * 31 + 1)
    x = torch.frombuffer(memory, dtype=torch.float32, count=30, offset=1).view(5, 2, 3)
    x.copy_(torch.randn(5, 2, 3))
    served(lambda: example("GRU")[0](x))


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite(kind: str) -> None:
    module, x, hx = example(kind)
    x[0, 0] = torch.nan
    x[1] = torch.inf
    changed(hx, lambda state: state.view(-1)[:1].fill_(-torch.inf))
    served(lambda: module(x, hx))


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_require_grad(kind: str) -> None:
    module, x, hx = example(kind)
    x.requires_grad_()
    hx = changed(hx, lambda state: state.requires_grad_())
    result = served(lambda: module(x, hx))
    assert not any(output.requires_grad for output in flat(result))


@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode(kind: str) -> None:
    module, x, hx = example(kind)
    with torch.inference_mode():
        result = served(lambda: module(x, hx))
    assert all(output.is_inference() for output in flat(result))
    served(lambda: module(x, hx))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_training(kind: str) -> None:
    """Where no dropout is, training is no other call."""
    for options in ({"num_layers": 2}, {"num_layers": 1}):
        module, x, hx = example(kind, **options)
        served(lambda module=module, x=x, hx=hx: module.train()(x, hx))
    module, x, hx = example(kind, num_layers=2, dropout=0.5)
    served(lambda: module.eval()(x, hx))
    assert not torch.equal(declined(lambda: module.train()(x, hx))[0], module.eval()(x, hx)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_hooks(kind: str) -> None:
    module, x, hx = example(kind)
    module.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
    module.register_forward_hook(lambda module, args, result: (result, "seen"))
    result = served(lambda: module(x, hx))
    assert result[1] == "seen"
    plain = example(kind)[0]
    for own, other in zip(flat(result[0]), flat(plain(x * 2, hx)), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_subclass_that_adds_to_forward(kind: str) -> None:
    class Residual(FASTRNN[kind]):  # type: ignore[misc, name-defined]
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)[0]

    module = Residual(3, 3)
    served(lambda: module(torch.ones(5, 2, 3)))


# Weights, as they are at the moment of the call.


def load(module: nn.Module, **options: Any) -> None:
    state = {name: weight * 2 for name, weight in module.state_dict().items()}
    module.load_state_dict(state, **options)


def step_of_an_optimizer(module: nn.Module) -> None:
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)
    torch.optim.SGD(module.parameters(), lr=0.1).step()


def new_parameters(module: nn.Module) -> None:
    for name in weight_names(module):
        setattr(module, name, nn.Parameter(getattr(module, name) * 2))


def each(change: Callable[[nn.Parameter], Any]) -> Callable[[nn.Module], None]:
    def change_all(module: nn.Module) -> None:
        for weight in module.parameters():
            change(weight)

    return change_all


WRITES: dict[str, Callable[[nn.Module], None]] = {
    "in place": each(lambda weight: weight.mul_(2)),
    "data in place": each(lambda weight: weight.data.mul_(2)),
    "other data": each(lambda weight: setattr(weight, "data", weight.data * 2)),
    "numpy": each(lambda weight: weight.detach().numpy().__imul__(2)),
    "setattr": new_parameters,
    "load_state_dict": load,
    "load_state_dict(assign)": lambda module: load(module, assign=True),
    "optimizer": step_of_an_optimizer,
    "share_memory": lambda module: module.share_memory() and load(module),
    "to and fro": lambda module: load(module.double().float()),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_as_they_are_now(kind: str, write: str) -> None:
    module, x, hx = example(kind)
    before = served(lambda: module(x, hx))
    WRITES[write](module)
    after = served(lambda: module(x, hx))
    assert not torch.equal(flat(before)[0], flat(after)[0])


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_copies(kind: str, clone: Callable[[nn.Module], nn.Module]) -> None:
    module, x, hx = example(kind, bias=False)
    twin = clone(module)
    load(twin)
    result = served(lambda: twin(x, hx))
    plain = example(kind, bias=False)[0]
    load(plain)
    for own, other in zip(flat(result), flat(plain(x, hx)), strict=True):
        assert torch.equal(own, other)


def test_weight_replaced_by_another_thread() -> None:
    """The kernel reads weights while Python runs: those it began with, until it is done."""
    module, x = fastrnn.GRU(256, 256), torch.randn(20, 1, 256)
    values = [torch.full((768, 256), value) for value in (0.0, 0.001)]
    expected = []
    for value in values:
        module.weight_hh_l0 = nn.Parameter(value.clone())
        expected.append(module(x)[0])
    stop = threading.Event()

    def replace() -> None:
        with torch.no_grad():
            while not stop.is_set():
                for value in values:
                    module.weight_hh_l0 = nn.Parameter(value.clone())

    replacer = threading.Thread(target=replace)
    replacer.start()
    try:
        for _ in range(200):
            output = module(x)[0]
            assert any(torch.equal(output, one) for one in expected)
    finally:
        stop.set()
        replacer.join()


# Who is asked.


def test_choice_of_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x, hx = example("LSTM")
    with fastrnn.use_backend("cpu"):
        served(lambda: module(x, hx))
    for name in ("numba", "torch", "reference"):
        with fastrnn.use_backend(name):
            declined(lambda: module(x, hx))
    served(lambda: module(x, hx))
    for name, serves in (("cpu", True), ("numba", False), ("torch", False), ("none", False)):
        monkeypatch.setattr(backends, "_from_environment", name)
        monkeypatch.setattr(backends, "_serves_directly", {})
        (served if serves else declined)(lambda: module(x, hx))


class InFront(backends.TorchBackend):
    name = "in front"


def test_registered_backend_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_registry", "_chosen", "_serves_directly"):
        monkeypatch.setattr(backends, name, dict(getattr(backends, name)))
    module, x, hx = example("GRU")
    served(lambda: module(x, hx))
    backends.register(InFront(), before="cpu")
    declined(lambda: module(x, hx))
    with fastrnn.use_backend("cpu"):
        served(lambda: module(x, hx))


def test_choice_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "_serves_directly", {})
    caplog.set_level(logging.INFO, logger="fastrnn")
    module, x, hx = example("GRU")
    for _ in range(3):
        module(x, hx)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["calls of modules without gradients, on the CPU: served by 'cpu', directly"]


# Results.


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_memory_of_their_own(kind: str) -> None:
    module, x, hx = example(kind, **({} if kind in CELLS else {"num_layers": 3}))
    results, again = flat(module(x, hx)), flat(module(x, hx))
    everything = [*results, *again, x, *flat(hx), *module.parameters()]
    storages = {tensor.untyped_storage().data_ptr() for tensor in everything}
    assert len(storages) == len(everything)
    for output in results:
        assert type(output) is Tensor
        assert (output._version, output._base, output.is_leaf) == (0, None, True)
        before = [tensor.clone() for tensor in everything if tensor is not output]
        output.fill_(7).add_(1)
        assert output._version == 2
        others = [tensor for tensor in everything if tensor is not output]
        assert all(torch.equal(own, old) for own, old in zip(others, before, strict=True))
    copy.deepcopy(results)
    pickle.loads(pickle.dumps(results))
    with torch.enable_grad():
        grad = torch.autograd.grad((results[0].requires_grad_() * 3).sum(), results[0])[0]
    assert (grad == 3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_behind(kind: str) -> None:
    module, x, hx = example(kind)
    options = {"batch_first": True} if kind in SEQUENCES else {}
    unusual = example(kind, **options)[0]
    interned = [*weight_names(module), "_parameters", "hidden_size", "check_input", "is_neg"]
    counted = [
        module.__dict__,
        module._parameters,
        *module.parameters(),
        x,
        hx,
        *flat(hx),
        None,
        *map(sys.intern, interned),
    ]

    def calls(count: int) -> None:
        for _ in range(count):
            module(x, hx)
            module(x)
            unusual(x)
            try:
                module(x.double(), hx)
            except (RuntimeError, ValueError):
                continue

    def gained() -> list[int]:
        """References to each object, and bytes, that 1000 calls leave behind."""
        gc.collect()
        before = [*map(sys.getrefcount, counted), tracemalloc.get_traced_memory()[0]]
        calls(1000)
        gc.collect()
        after = [*map(sys.getrefcount, counted), tracemalloc.get_traced_memory()[0]]
        return [now - then for now, then in zip(after, before, strict=True)]

    calls(10)
    tracemalloc.start()
    try:
        # What other tests left to be freed changes a round; what a call leaves is in every round.
        rounds = [gained() for _ in range(3)]
    finally:
        tracemalloc.stop()
    *references, memory = (min(abs(gain) for gain in gains) for gains in zip(*rounds, strict=True))
    names = [type(one).__name__ for one in counted]
    assert not [pair for pair in zip(names, references, strict=True) if pair[1] > 100]
    assert memory < 100_000


def test_memory_of_results_is_freed() -> None:
    module, x = fastrnn.RNN(8, 64, num_layers=2), torch.randn(400, 32, 8)
    output, h_n = module(x)
    refs = [weakref.ref(output), weakref.ref(h_n)]
    del output, h_n
    assert [ref() for ref in refs] == [None, None]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):  # 3.2 MB of results and 3.2 MB between the layers each
        module(x)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_memory_that_is_not_there() -> None:
    """torch's error, where the long way has it too."""
    for kind in SEQUENCES:
        module = FASTRNN[kind](3, 4)
        for rows in (2**40, 2**61):
            result, _ = compare(lambda m=module, r=rows: m(torch.zeros(1).expand(5, r, 3)))
            assert type(result) is RuntimeError
    with watched() as spy:
        module(torch.zeros(5, 2, 3))
    assert spy.served == 1
