"""What a training step keeps for backward, in values per time step, batch row and unit.

Counted by two rulers, from the outside. ``seen_by_hooks``: the memory of all tensors that autograd
offers to hooks on saved tensors, which is what checkpointing and offloading can get hold of.
``held_in_all``: what torch's allocator has handed out during the call and not got back, outputs
apart. It sees whatever is kept by other means too, and runs without hooks, in whose presence
gradients do not overwrite saved values.

What is the caller's own is alive anyway and does not count: weights, states, masks, and the input
of the first layer. The input of every further layer is nobody else's: it counts, as one value in
each layer but the first.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from cases import BACKENDS, Arguments, Case, arguments, fastrnn_forward
from contract import FASTRNN, SEQUENCES, flat
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import fastrnn

#: At most so many values: those of ``Cell.saved``, c for the LSTM, and next to nothing more.
BOUNDS: dict[str, float] = {cell: 1.1 for cell in cases.ALL_CELLS if cell.startswith("rnn")}
BOUNDS |= {"lstm": 5.1, "gru": 4.1, "gru_reset_before": 3.1}
RECOMPUTED = 0.1

#: Large enough for states (D*B*H) and lists of sizes to vanish beside the sequences (T*B*D*H).
SIZES: dict[str, Any] = {"steps": 60, "batch": 4, "input_size": 24, "hidden_size": 24}


def storages(tensors: Collection[Tensor]) -> dict[int, int]:
    """Bytes of each distinct memory that the tensors lie in, by address."""
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def seen_by_hooks(call: Callable[[], Any], own: Collection[Tensor]) -> int:
    """Bytes that autograd saves during a call, apart from what lies in the memory of ``own``."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = call()
    assert flat(outputs)
    kept = storages(saved)
    return sum(size for address, size in kept.items() if address not in storages(own))


def held_in_all(call: Callable[[], Any]) -> int:
    """Bytes that are still allocated after a call, its outputs apart."""
    call()  # whatever is made once
    gc.disable()  # what others left to collect must not be freed meanwhile
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            outputs = call()
    finally:
        gc.enable()
    net = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    return int(net) - sum(storages(flat(outputs)).values())


def leaves(case: Case) -> Arguments:
    return arguments(case).map(lambda tensor: tensor.clone().requires_grad_())


def own(a: Arguments) -> list[Tensor]:
    masks = [a.lengths, a.reset, *(() if a.packing is None else a.packing[1:])]
    return [*a.differentiable().values(), *(mask for mask in masks if mask is not None)]


def values_per_unit(case: Case) -> tuple[float, float]:
    """What is kept of a call, by both rulers."""
    a = leaves(case)
    rows = a.x.numel() / case.input_size
    unit = rows * case.layers * case.directions * case.hidden_size * a.x.element_size()

    def call() -> list[Tensor]:
        return list(fastrnn_forward(a).values())

    return seen_by_hooks(call, own(a)) / unit, held_in_all(call) / unit


def test_rulers() -> None:
    """sin keeps its input, here the result of exp, which keeps it too; neg keeps nothing."""
    x = torch.randn(1000, requires_grad=True)
    for call, expected in (
        (lambda: x.exp().sin(), 4000),
        (lambda: x.sin().sin().sin(), 8000),
        (lambda: x.neg(), 0),
    ):
        assert held_in_all(call) == expected
        assert seen_by_hooks(call, [x]) == expected


STRUCTURES: dict[str, dict[str, Any]] = {
    "one layer": {},
    "float64": {"dtype": torch.float64},
    "bidirectional": {"bidirectional": True},
    "batch first": {"layout": "batch_first"},
    "packed": {"layout": "packed_unsorted"},
    "lengths and reset": {"lengths": "random", "reset": "random"},
    "stack": {"layers": 3, "bidirectional": True},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("cell", cases.ALL_CELLS)
def test_values_kept(cell: str, structure: str, recompute: bool, backend: str) -> None:
    options = {"dtype": torch.float32} | SIZES | STRUCTURES[structure]
    case = Case(cell, recompute=recompute, **options)
    between_layers = (case.layers - 1) / case.layers
    bound = (RECOMPUTED if recompute else BOUNDS[cell]) + between_layers
    with fastrnn.use_backend(backend):
        hooked, held = values_per_unit(case)
    assert max(hooked, held) <= bound
    assert hooked == pytest.approx(held, abs=0.1)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cell_states", [False, True])
def test_values_kept_of_projected_layers(cell_states: bool, recompute: bool) -> None:
    """R more for the projected h: getting it back would take a product."""
    case = Case(
        "lstm", torch.float32, proj_size=12, cell_states=cell_states, recompute=recompute, **SIZES
    )
    assert max(values_per_unit(case)) <= (RECOMPUTED if recompute else BOUNDS["lstm"] + 12 / 24)


@pytest.mark.parametrize("cell", cases.ALL_CELLS)
def test_input_of_nobody(cell: str) -> None:
    """All that ``recompute`` keeps is the input, where nobody else does."""
    case = Case(cell, torch.float32, recompute=True, **SIZES)
    a = leaves(case)

    def call() -> list[Tensor]:
        return list(fastrnn_forward(replace(a, x=a.x * 2)).values())

    unit = a.x.numel() * a.x.element_size()
    assert seen_by_hooks(call, own(a)) / unit <= 1.1
    assert held_in_all(call) / unit <= 1.1


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("partitioner", ["aot_eager", "aot_eager_decomp_partition"])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_values_kept_when_compiled(kind: str, partitioner: str, recompute: bool) -> None:
    """Neither partitioner moves the second forward, with its results, in front of backward."""
    module: Any = FASTRNN[kind](24, 24, 2, recompute=recompute)
    x = torch.randn(60, 4, 24, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend=partitioner, fullgraph=True)
    kept = seen_by_hooks(lambda: compiled(x), [x, *module.parameters()])
    bound = RECOMPUTED if recompute else BOUNDS[kind.lower().replace("rnn", "rnn_tanh")]
    assert kept / (2 * x.numel() * x.element_size()) <= bound + 0.5


@pytest.mark.parametrize("served", ["autocast", "torch", "reference"])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_recompute_of_torch_operations(kind: str, served: str) -> None:
    """Where autograd keeps what it wants, ``recompute`` keeps the inputs of layers as well."""
    module: Any = FASTRNN[kind](24, 24, 2, recompute=True)
    x = torch.randn(20, 12, 24, requires_grad=True)

    def call() -> Any:
        if served == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return module(x)
        with fastrnn.use_backend(served):
            return module(x)

    # Between layers there is one value, and a stack under autocast is checkpointed as one.
    assert held_in_all(call) / (2 * x.numel() * x.element_size()) <= RECOMPUTED + 0.5
    module.recompute = False
    assert held_in_all(call) / (2 * x.numel() * x.element_size()) > 1


# Saved values are overwritten by gradients where nobody will read them again, and only there.


def offload(tensor: Tensor) -> Any:
    """To somewhere else, as ``save_on_cpu`` does for a device."""
    return tensor.detach().clone()


def backward_of(how: str, forward: Callable[[Tensor], Tensor], x: Tensor, leaves: Any) -> Any:
    """Gradients of a loss on ``forward(x)``, found in one of several ways."""
    hooks = torch.autograd.graph.saved_tensors_hooks
    if how == "hooks":
        with hooks(lambda tensor: tensor, lambda tensor: tensor):
            return torch.autograd.grad(forward(x).sin().sum(), leaves)
    if how == "offloaded":
        with hooks(offload, lambda tensor: tensor):
            loss = forward(x).sin().sum()
        return torch.autograd.grad(loss, leaves)
    if how == "offloaded, kept":
        with hooks(offload, lambda tensor: tensor):
            loss = forward(x).sin().sum()
        torch.autograd.grad(loss, leaves, retain_graph=True)
        return torch.autograd.grad(loss, leaves)
    if how == "hooks in backward":
        loss = forward(x).sin().sum()
        with hooks(offload, lambda tensor: tensor):
            return torch.autograd.grad(loss, leaves)
    if how == "three times":
        loss = forward(x).sin().sum()
        for _ in range(2):
            torch.autograd.grad(loss, leaves, retain_graph=True)
        return torch.autograd.grad(loss, leaves)
    if how == "reentrant":
        loss = checkpoint(forward, x, use_reentrant=True).sin().sum()
        for leaf in leaves:
            leaf.grad = None
        loss.backward()
        return [leaf.grad for leaf in leaves]
    if how == "not reentrant":
        loss = checkpoint(forward, x, use_reentrant=False).sin().sum()
        torch.autograd.grad(loss, leaves, retain_graph=True)
        return torch.autograd.grad(loss, leaves)
    return torch.autograd.grad(forward(x).sin().sum(), leaves)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "how",
    ["hooks", "offloaded", "offloaded, kept", "hooks in backward", "three times", "reentrant",
     "not reentrant"],
)  # fmt: skip
@pytest.mark.parametrize("kind", SEQUENCES)
def test_same_gradients(kind: str, how: str, recompute: bool) -> None:
    torch.manual_seed(0)
    module: Any = FASTRNN[kind](3, 17, 2, bidirectional=True)
    x = torch.randn(7, 5, 3, requires_grad=True)
    leaves = [x, *module.parameters()]
    expected = backward_of("once", lambda x: module(x)[0], x, leaves)
    module.recompute = recompute
    actual = backward_of(how, lambda x: module(x)[0], x, leaves)
    for ours, once in zip(actual, expected, strict=True):
        assert torch.equal(ours, once)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_graph_that_was_not_kept(kind: str) -> None:
    """With ``recompute``, too, a second backward is refused, and in torch's words."""
    module: Any = FASTRNN[kind](3, 4, recompute=True)
    assert isinstance(module, nn.Module)
    loss = module(torch.randn(5, 2, 3))[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
