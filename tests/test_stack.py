"""Stacks of layers in one call: the bits of the layers called one by one, on any number of threads.

Layers of few units and one row run side by side, each on a thread of its own (csrc/cpu/stack.h);
others one after the other. The sizes here have both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from directly import watched
from torch import Tensor, nn

import fastrnn
from fastrnn import backends

pytestmark = pytest.mark.skipif(
    not backends.get("cpu").available().ok, reason="stacks of layers need the compiled kernels"
)

KINDS = {
    "rnn": lambda *sizes: fastrnn.RNN(*sizes),
    "gru": lambda *sizes: fastrnn.GRU(*sizes),
    "gru-reset-before": lambda *sizes: fastrnn.GRU(*sizes, reset_after=False),
    "lstm": lambda *sizes: fastrnn.LSTM(*sizes),
    "lstm-projected": lambda *sizes: fastrnn.LSTM(*sizes, proj_size=5),
}
#: T, B, I, H, L: shorter than the chunks, more layers than threads, and than lanes there can be.
SIZES = (
    (100, 1, 12, 64, 2),
    (1, 1, 12, 64, 3),
    (5, 2, 12, 33, 3),
    (33, 1, 7, 48, 9),
    (50, 1, 7, 16, 19),
    (40, 12, 7, 130, 3),
)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def one_by_one(module: nn.RNNBase, x: Tensor, states: tuple[Tensor, ...]) -> list[Tensor]:
    """Output and last states, each layer in a call of its own."""
    last: list[list[Tensor]] = [[] for _ in states]
    for layer in range(module.num_layers):
        own = type(module)(
            x.shape[-1],
            module.hidden_size,
            **{"proj_size": module.proj_size} if module.proj_size else {},
            **{"reset_after": False} if module.mode == "GRU_RESET_BEFORE" else {},
        )
        weights = zip(own.parameters(), module.all_weights[layer], strict=True)
        with torch.no_grad():
            for mine, given in weights:
                mine.copy_(given)
            hx = tuple(state[layer : layer + 1] for state in states)
            x, result = own(x, hx if len(hx) == 2 else hx[0])
        for collected, state in zip(last, result if len(hx) == 2 else (result,), strict=True):
            collected.append(state)
    return [x, *(torch.cat(states) for states in last)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_as_layer_by_layer(kind: str, size: tuple[int, int, int, int, int]) -> None:
    steps, batch, features, units, layers = size
    torch.manual_seed(0)
    module = KINDS[kind](features, units, layers)
    x = torch.randn(steps, batch, features)
    states: tuple[Tensor, ...] = (torch.randn(layers, batch, module.proj_size or units),)
    if kind.startswith("lstm"):
        states += (torch.randn(layers, batch, units),)
    torch.set_num_threads(1)
    expected = one_by_one(module, x, states)
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        with watched() as spy, torch.no_grad():
            output, last = module(x, states if len(states) == 2 else states[0])
        assert (spy.served, spy.declined) == (1, 0)
        got = [output, *(last if len(states) == 2 else (last,))]
        for ours, other in zip(got, expected, strict=True):
            assert torch.equal(ours, other)


def test_prepacked_stack() -> None:
    """Long enough that weights are packed anyway: the same bits."""
    torch.manual_seed(0)
    module = fastrnn.LSTM(12, 64, 3)
    x = torch.randn(100, 1, 12)
    with torch.no_grad():
        expected, _ = module(x)
        with fastrnn.prepacked(module):
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                assert torch.equal(module(x)[0], expected)


@pytest.mark.parametrize("callers", [2, 5])
def test_many_callers_at_once(callers: int) -> None:
    """More teams than cores: layers that follow each other all finish, with the right bits."""
    torch.manual_seed(0)
    module = fastrnn.GRU(12, 64, 3)
    x = torch.randn(100, 1, 12)
    with torch.no_grad():
        expected = module(x)[0]
    right: list[bool] = []

    def serve() -> None:
        with torch.no_grad():
            right.extend(torch.equal(module(x)[0], expected) for _ in range(20))

    threads = [threading.Thread(target=serve) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a layer waits for one that nobody computes"
    assert len(right) == 20 * callers
    assert all(right)
