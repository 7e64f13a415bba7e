"""fastrnn.prepacked: the same numbers, and never those of weights that torch knows to be gone."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import cases
import numpy
import pytest
import torch
from directly import watched
from tolerances import error_in_tolerances, tolerance
from torch import Tensor, nn

import fastrnn

MODULES: dict[str, Callable[[], nn.Module]] = {
    "rnn": lambda: fastrnn.RNN(5, 7),
    "rnn-relu-2layers": lambda: fastrnn.RNN(5, 7, 2, nonlinearity="relu"),
    "gru-bi": lambda: fastrnn.GRU(5, 37, bidirectional=True),
    "gru-reset-before": lambda: fastrnn.GRU(5, 17, reset_after=False),
    "lstm-2layers-bi": lambda: fastrnn.LSTM(5, 7, 2, bidirectional=True),
    "lstm-projected": lambda: fastrnn.LSTM(5, 19, proj_size=3),
    "lstm-no-bias": lambda: fastrnn.LSTM(5, 64, bias=False),
    "rnn-cell": lambda: fastrnn.RNNCell(5, 7),
    "gru-cell": lambda: fastrnn.GRUCell(5, 7),
    "lstm-cell": lambda: fastrnn.LSTMCell(5, 33),
}


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors(part)]


def call(module: nn.Module, steps: int = 3, batch: int = 2) -> list[Tensor]:
    """Outputs and states for an input that is always the same."""
    one_step = isinstance(module, nn.RNNCellBase)
    dtype = next(module.parameters()).dtype
    generator = torch.Generator().manual_seed(steps * 100 + batch)
    shape = (batch, 5) if one_step else (steps, batch, 5)
    x = torch.randn(shape, generator=generator).to(dtype)
    with torch.no_grad():
        return tensors(module(x))


def fresh(module: nn.Module) -> list[Tensor]:
    """What a module with these weights gives that keeps nothing."""
    return call(copy.deepcopy(module))


def assert_close(actual: Tensor, expected: Tensor, *, steps: int, fan_in: int) -> None:
    assert actual.dtype == expected.dtype
    bounds = tolerance(actual.dtype, steps, fan_in)
    assert error_in_tolerances(actual, expected, **bounds) <= 1


def assert_like_fresh(module: nn.Module) -> None:
    size = sum(parameter.shape[-1] for parameter in module.parameters())
    for ours, expected in zip(call(module), fresh(module), strict=True):
        assert_close(ours, expected, steps=3, fan_in=size)


@pytest.fixture
def lstm() -> fastrnn.LSTM:
    module = fastrnn.LSTM(5, 7)
    fastrnn.prepacked(module)
    call(module)
    return module


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", cases.DTYPES + cases.STORAGE_DTYPES, ids=str)
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (3, 2), (40, 9)])
def test_same_numbers(name: str, dtype: torch.dtype, steps: int, batch: int) -> None:
    module = MODULES[name]().to(dtype)
    expected = call(module, steps, batch)
    with fastrnn.prepacked(module), watched() as spy:
        for _ in range(2):  # packs, then finds packed
            for ours, other in zip(call(module, steps, batch), expected, strict=True):
                assert_close(ours, other, steps=steps, fan_in=64)
    assert (spy.served, spy.declined) == (2, 0)


def test_the_same_bits_where_a_call_packs_anyway() -> None:
    module = fastrnn.LSTM(5, 7)
    expected = call(module, steps=30, batch=20)
    with fastrnn.prepacked(module):
        for ours, other in zip(call(module, steps=30, batch=20), expected, strict=True):
            assert torch.equal(ours, other)


@pytest.mark.skipif(not cases.STORAGE_DTYPES, reason="no kernels of 16 bits here")
def test_the_same_memory_as_another_dtype() -> None:
    module = fastrnn.LSTM(5, 7, dtype=torch.bfloat16)
    with fastrnn.prepacked(module):
        call(module)
        for parameter in module.parameters():
            # Each value below 1 in bfloat16 is one below 2 in float16.
            parameter.data = parameter.data.view(torch.float16)
        assert_like_fresh(module)


def optimizer_step(module: nn.Module) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    sum(parameter.square().sum() for parameter in module.parameters()).backward()
    optimizer.step()


def foreach_optimizer_step(module: nn.Module) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=1.0, foreach=True)
    sum(parameter.square().sum() for parameter in module.parameters()).backward()
    optimizer.step()


def load_state_dict(module: nn.Module) -> None:
    module.load_state_dict(fastrnn.LSTM(5, 7).state_dict())


def load_state_dict_assign(module: nn.Module) -> None:
    module.load_state_dict(fastrnn.LSTM(5, 7).state_dict(), assign=True)


def in_place(module: nn.Module) -> None:
    with torch.no_grad():
        module.weight_hh_l0[3].zero_()  # through a view


def bias_in_place(module: nn.Module) -> None:
    nn.init.ones_(module.bias_hh_l0)


def new_parameter(module: nn.Module) -> None:
    module.weight_ih_l0 = nn.Parameter(torch.randn(28, 5))


def data_rebound(module: nn.Module) -> None:
    module.weight_hh_l0.data = torch.randn(28, 7)


def to_double(module: nn.Module) -> None:
    module.double()


def flat_parameters(module: nn.Module) -> None:
    nn.utils.vector_to_parameters(torch.randn(28 * 14), module.parameters())


CHANGES = (
    optimizer_step,
    foreach_optimizer_step,
    load_state_dict,
    load_state_dict_assign,
    in_place,
    bias_in_place,
    new_parameter,
    data_rebound,
    to_double,
    flat_parameters,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_that_torch_counts_are_seen(
    change: Callable[[nn.Module], None], lstm: fastrnn.LSTM
) -> None:
    before = call(lstm)
    change(lstm)
    assert_like_fresh(lstm)
    if change is not to_double:
        assert not torch.allclose(call(lstm)[0], before[0])


def test_a_write_that_torch_does_not_count_is_seen_after_close() -> None:
    module = fastrnn.LSTM(5, 7)
    kept = fastrnn.prepacked(module)
    call(module)
    module.weight_hh_l0.detach().numpy()[:] = numpy.random.default_rng(0).random((28, 7))
    kept.close()
    assert_like_fresh(module)


def test_without_it_such_writes_are_seen_at_once() -> None:
    module = fastrnn.LSTM(5, 7)
    call(module)
    module.weight_hh_l0.data.add_(1)
    module.weight_ih_l0.detach().numpy()[:] = 0.5
    assert_like_fresh(module)


def test_memory_used_again_by_another_module() -> None:
    """New weights may lie where those that were packed lay, if nobody held those."""
    for seed in range(20):
        torch.manual_seed(seed)
        module = fastrnn.LSTM(5, 7)
        fastrnn.prepacked(module)
        call(module)
        del module
        gc.collect()
        other = fastrnn.LSTM(5, 7)
        fastrnn.prepacked(other)
        assert_like_fresh(other)
        other.weight_hh_l0 = nn.Parameter(torch.randn(28, 7))
        assert_like_fresh(other)


def test_copies_keep_nothing(lstm: fastrnn.LSTM) -> None:
    buffer = io.BytesIO()
    torch.save(lstm, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(lstm),
        pickle.loads(pickle.dumps(lstm)),
        torch.load(buffer, weights_only=False),
    ]
    cell = fastrnn.LSTMCell(5, 7)
    fastrnn.prepacked(cell)
    copies += [copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))]
    for other in copies:
        assert "_prepacked" not in other.__dict__
        with torch.no_grad():
            next(other.parameters()).numpy()[:] = 0
        assert_like_fresh(other)
    assert "_prepacked" in lstm.__dict__


def test_inner_modules_and_the_end_of_it() -> None:
    model = nn.Sequential(nn.Linear(5, 5), fastrnn.GRU(5, 7))
    model.cell = fastrnn.GRUCell(5, 7)
    with fastrnn.prepacked(model):
        assert "_prepacked" in model[1].__dict__
        with fastrnn.prepacked(model[1]):
            pass
        assert "_prepacked" in model[1].__dict__, "the outer one still holds"
        assert "_prepacked" in model.cell.__dict__
    assert "_prepacked" not in model[1].__dict__
    assert "_prepacked" not in model.cell.__dict__


def test_a_module_with_nothing_to_pack_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^module: expected a recurrent module .* got LSTM"):
        fastrnn.prepacked(nn.LSTM(5, 7))


def test_gradients_and_resets_are_served_as_without(lstm: fastrnn.LSTM) -> None:
    x = torch.randn(3, 2, 5)
    lstm.weight_hh_l0.data.add_(1)  # what a stale copy would not have
    other = copy.deepcopy(lstm)
    lstm(x)[0].sum().backward()
    other(x)[0].sum().backward()
    for ours, expected in zip(lstm.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, expected.grad)
    with torch.no_grad():
        reset = torch.tensor([[False, False], [True, False], [False, True]])
        assert torch.equal(lstm(x, reset=reset)[0], other(x, reset=reset)[0])


def test_parameters_made_in_inference_mode_have_no_count() -> None:
    with torch.inference_mode():
        module = fastrnn.LSTM(5, 7)
    with fastrnn.prepacked(module):
        for _ in range(2):
            assert_like_fresh(module)


def test_threads_that_call_while_weights_change() -> None:
    """Each result is that of one of the states of the weights, whole."""
    module = fastrnn.LSTM(5, 7)
    states = [fastrnn.LSTM(5, 7).state_dict() for _ in range(2)]
    x = torch.randn(2, 1, 5)
    expected = []
    with torch.no_grad():
        for state in states:
            module.load_state_dict(state)
            expected.append(module(x)[0])
    fastrnn.prepacked(module)
    wrong: list[Tensor] = []
    over = threading.Event()

    def serve() -> None:
        with torch.no_grad():
            while not over.is_set():
                got = module(x)[0]
                if not any(torch.allclose(got, one, atol=1e-5) for one in expected):
                    wrong.append(got)

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(200):
        # Another Parameter for each weight: writes in place would be seen half done by anybody.
        state = {name: value.clone() for name, value in states[turn % 2].items()}
        other = copy.deepcopy(module)
        other.load_state_dict(state, assign=True)
        module._parameters, module._flat_weights = other._parameters, other._flat_weights
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong
