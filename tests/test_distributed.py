"""Two processes, one batch: gradients and training are those of a single process.

The processes are started once for all tests of this file, and leave what they computed in a folder.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from contract import assert_same, flat
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.nn.parallel import DistributedDataParallel

import fastrnn

F64 = torch.float64
PROCESSES, ROWS, STEPS = 2, 4, 5
BOTH = {"num_layers": 2, "bidirectional": True, "dtype": F64}


class Loop(nn.Module):
    """A cell called step by step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> tuple[Tensor]:
        hx, outputs = None, []
        for step in x:
            hx = self.cell(step, hx)
            outputs.append(flat(hx)[0])
        return (torch.stack(outputs),)


#: Layers by name, of either library.
LAYERS: dict[str, Callable[[Any], nn.Module]] = {
    "RNN": lambda library: library.RNN(3, 4, **BOTH),
    "LSTM": lambda library: library.LSTM(3, 4, proj_size=2, **BOTH),
    "GRU": lambda library: library.GRU(3, 4, **BOTH),
    "LSTMCell": lambda library: Loop(library.LSTMCell(3, 4, dtype=F64)),
}


class Model(nn.Module):
    """Layers between two that are not recurrent, and a parameter that nothing uses."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Linear(3, 3, dtype=F64)
        self.layers = layers
        self.head = nn.LazyLinear(2, dtype=F64)
        self.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=F64)))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(flat(self.layers(self.embedding(x)))[0])
        return scores


def build(name: str, library: Any) -> tuple[Model, Tensor]:
    """The same model and batch in every process."""
    torch.manual_seed(3)
    model, x = Model(LAYERS[name](library)), torch.randn(STEPS, ROWS, 3, dtype=F64)
    model(x)  # gives the head its size
    return model, x


def train(model: nn.Module, batches: list[Tensor], *, accumulate: Any = nullcontext) -> None:
    """Three steps; with several batches, their gradients are added up before each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        for x in batches[:-1]:
            with accumulate():
                (model(x).square().mean() / len(batches)).backward()
        (model(batches[-1]).square().mean() / len(batches)).backward()
        optimizer.step()


# In the processes.


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    options = StateDictOptions(full_state_dict=True)
    return {k: v.clone() for k, v in get_model_state_dict(model, options=options).items()}


def replicated(model: nn.Module, x: Tensor) -> nn.Module:
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    train(parallel, [x])
    return parallel


def bucket_views(model: nn.Module, x: Tensor) -> nn.Module:
    """Gradients that are views of the buffers which are sent."""
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
    train(parallel, [x])
    return parallel


def accumulated(model: nn.Module, x: Tensor) -> nn.Module:
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    train(parallel, list(x.split(1, dim=1)), accumulate=parallel.no_sync)
    return parallel


def sharded(model: nn.Module, x: Tensor) -> nn.Module:
    """FSDP2: each parameter split by rows, whole while its layer runs."""
    mesh = init_device_mesh("cpu", (PROCESSES,))
    fully_shard(model.layers, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(model, [x])
    return model


def sharded_and_recomputed(model: nn.Module, x: Tensor) -> nn.Module:
    for layers in model.modules():
        if isinstance(layers, nn.RNNBase):
            layers.recompute = True
    return sharded(model, x)


def flattened(model: nn.Module, x: Tensor) -> nn.Module:
    """FSDP1: one flat Parameter, of which the weights are views."""
    parallel = FullyShardedDataParallel(model, use_orig_params=False, device_id=torch.device("cpu"))
    assert len(list(parallel.parameters())) == 1
    train(parallel, [x])
    return parallel


HOW: dict[str, Callable[[Any, Tensor], nn.Module]] = {
    function.__name__: function
    for function in (
        replicated,
        bucket_views,
        accumulated,
        sharded,
        sharded_and_recomputed,
        flattened,
    )
}


def mixed_precision(rank: int) -> dict[str, Any]:
    """FSDP2 with weights and inputs cast to bfloat16, gradients summed in float32."""
    torch.manual_seed(3)
    layers, x = fastrnn.LSTM(3, 4), torch.randn(STEPS, ROWS, 3)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(layers, mesh=init_device_mesh("cpu", (PROCESSES,)), mp_policy=policy)
    output = layers(x[:, rank::PROCESSES])[0]
    output.float().square().mean().backward()
    gradients = {name: weight.grad.full_tensor() for name, weight in layers.named_parameters()}
    return {"output": output.dtype, "gradients": gradients}


def work(rank: int, folder: str) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", PROCESSES)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=PROCESSES, timeout=timedelta(minutes=2)
    )
    try:
        found: dict[Any, Any] = {}
        for name in LAYERS:
            for how, run in HOW.items():
                model, x = build(name, fastrnn)
                found[name, how] = whole_weights(run(model, x[:, rank::PROCESSES]))
        found["mixed precision"] = mixed_precision(rank)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


# Here.


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of the processes computed."""
    folder: Path = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("how", HOW)
def test_training_is_that_of_one_process(name: str, how: str, found: list[dict[Any, Any]]) -> None:
    """Of one process with torch.nn; the weights after some steps hold all gradients on the way."""
    model, x = build(name, nn)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    train(model, [x])
    expected = model.state_dict()
    for weights in found:
        own = weights[name, how]
        assert own.keys() == expected.keys()
        for key, weight in expected.items():
            assert_same(own[key], weight, rows=ROWS * STEPS)
            assert torch.equal(weight, before[key]) == (key == "unused")


def test_mixed_precision(found: list[dict[Any, Any]]) -> None:
    torch.manual_seed(3)
    layers, x = fastrnn.LSTM(3, 4), torch.randn(STEPS, ROWS, 3)
    layers(x)[0].square().mean().backward()
    for results in found:
        assert results["mixed precision"]["output"] == torch.bfloat16
        for name, weight in layers.named_parameters():
            actual = results["mixed precision"]["gradients"][name]
            assert actual.dtype == torch.float32
            assert_same(actual, weight.grad, rows=ROWS * STEPS, dtype=torch.bfloat16)
