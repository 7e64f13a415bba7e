"""Other processes: forked ones, from which OpenMP's threads stay behind, spawned ones, workers."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch
from contract import CELLS, FASTRNN, SEQUENCES, assert_same, example, flat, pair
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fastrnn
from fastrnn.backends import cpu


def in_forked_child(function: Any, *arguments: Any) -> None:
    """Run it; fail where it fails, and where it waits for threads that are not there."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()
    child.join(60)
    hung = child.is_alive()
    if hung:
        child.kill()
    assert not hung
    assert child.exitcode == 0


def _layer_on_many_threads() -> Tensor:
    """Large enough to be worth a parallel region, with as many threads as the kernel likes."""
    torch.manual_seed(0)
    lstm, x = fastrnn.LSTM(64, 64), torch.randn(30, 16, 64)
    with torch.no_grad():
        output: Tensor = lstm(x)[0].sum(0)
    return output


def _put_layer(queue: Any) -> None:
    torch.set_num_threads(1)  # torch's own loops would hang
    queue.put(_layer_on_many_threads().tolist())


def test_forked_child_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the threads forced, as a variable of the environment would: torch's setting is 1."""
    monkeypatch.setattr(cpu, "num_threads", lambda: 2)
    expected = _layer_on_many_threads().tolist()
    queue = multiprocessing.get_context("fork").SimpleQueue()
    in_forked_child(_put_layer, queue)
    assert queue.get() == expected


# Workers of a DataLoader.


class Encoded(Dataset[list[Tensor]]):
    """Sequences that a module encodes where they are loaded, with and without gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(20, 4, 32, generator=generator, requires_grad=True)
        output = self.module(x)[0]
        (gradient,) = torch.autograd.grad(output.sum(), x)
        with torch.no_grad():
            return [self.module(x)[0], output.detach(), gradient]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers(context: str) -> None:
    """What they compute is what this process computes, which has used its threads before."""
    for kind in SEQUENCES if context == "fork" else ("LSTM",):
        dataset = Encoded(FASTRNN[kind](32, 32, 2, bidirectional=True))
        expected = [dataset[k] for k in range(len(dataset))]
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=2 if context == "fork" else 1,
            multiprocessing_context=context,
            timeout=120,
        )
        for actual, here in zip(loader, expected, strict=True):
            assert_same(actual, here)


class Padded(Dataset[Tensor]):
    """Sequences of several lengths, for a module in the process that loads them."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(index % 5 + 1, 3, generator=torch.Generator().manual_seed(index))


def pad(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    return nn.utils.rnn.pad_sequence(rows), torch.tensor([len(row) for row in rows])


def test_training_beside_forked_workers() -> None:
    """Workers come and go by each epoch, between calls that use the threads of this process."""
    losses = []
    for workers in (0, 2):
        torch.manual_seed(0)
        module = fastrnn.GRU(3, 64)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        loader = DataLoader(Padded(), 4, collate_fn=pad, num_workers=workers, timeout=60 * workers)
        for _ in range(2):
            for x, lengths in loader:
                optimizer.zero_grad()
                loss = module(x, lengths=lengths)[0].square().mean()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    assert losses[:6] == losses[6:]


# Shared weights.


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_share_memory(kind: str) -> None:
    """Weights of another process change under us, and no version counter moves."""
    ours, theirs = pair(kind, 3, 4)
    ours.share_memory()
    assert all(weight.is_shared() for weight in ours.parameters())
    if kind in SEQUENCES:
        assert all(weight.is_shared() for weight in ours._flat_weights)
    x = example(kind)
    ours(x)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        own.detach().numpy()[...] *= 2
        other.data.mul_(2)
    assert_same(ours(x), theirs(x))


def _train(module: nn.Module, x: Tensor) -> None:
    torch.set_num_threads(1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        flat(module(x))[0].square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_training_of_shared_weights_by_another_process(kind: str) -> None:
    """Hogwild (Niu et al. 2011): a child's steps are ours too, in the next call."""
    ours, theirs = pair(kind, 3, 4)
    ours.share_memory()
    x = example(kind)
    versions = [weight._version for weight in ours.parameters()]
    with torch.no_grad():
        before = flat(ours(x))[0].clone()
    in_forked_child(_train, ours, x)
    assert versions == [weight._version for weight in ours.parameters()]
    _train(theirs, x)
    with torch.no_grad():
        assert_same(ours(x), theirs(x))
        assert not torch.allclose(flat(ours(x))[0], before)
