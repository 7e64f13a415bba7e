"""Forked processes: OpenMP's threads stay behind, and nothing may wait for them."""

from __future__ import annotations

import multiprocessing

import torch

import fastrnn


def _in_child(queue: multiprocessing.SimpleQueue) -> None:  # type: ignore[type-arg]
    torch.set_num_threads(1)  # torch's own loops would hang
    queue.put(_layer_on_many_threads().tolist())


def _layer_on_many_threads() -> torch.Tensor:
    """Large enough to be worth a parallel region, with as many threads as the kernel likes."""
    torch.manual_seed(0)
    lstm, x = fastrnn.LSTM(64, 64), torch.randn(30, 16, 64)
    with torch.no_grad():
        return lstm(x)[0].sum(0)


def test_forked_child_computes_the_same(monkeypatch) -> None:
    """With the threads forced, as a variable of the environment would: torch's setting is 1."""
    from fastrnn.backends import cpu

    monkeypatch.setattr(cpu, "num_threads", lambda: 2)
    expected = _layer_on_many_threads().tolist()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    child.join(60)
    hung = child.is_alive()
    if hung:
        child.kill()
    assert not hung
    assert child.exitcode == 0
    assert queue.get() == expected
