"""Gradients against finite differences, and the manners of the autograd node."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from cases import ALL_CELLS, BACKENDS, Arguments, Case, Outputs, arguments, check, results
from tiny import CHECKED, as_function, tiny, total
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastrnn

SERVING = (*BACKENDS, "reference")


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize(("cell", "option"), CHECKED)
def test_gradcheck(cell: str, option: str, backend: str) -> None:
    function, tensors = as_function(tiny(cell, option))
    with fastrnn.use_backend(backend):
        assert torch.autograd.gradcheck(function, tensors)


def graph(a: Arguments, backend: str) -> tuple[Outputs, dict[str, Tensor], list[Tensor]]:
    """Outputs that hang on a graph, its leaves, and upstream gradients."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in a.differentiable().items()}
    with fastrnn.use_backend(backend):
        outputs = cases.fastrnn_forward(a.with_tensors(leaves))
    return outputs, leaves, list(cases.upstream(outputs, a.case).values())


def gradients(
    outputs: Outputs, leaves: dict[str, Tensor], upstream: Sequence[Tensor], **options: bool
) -> Outputs:
    grads = torch.autograd.grad(list(outputs.values()), list(leaves.values()), upstream, **options)
    return {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_backward_twice(cell: str, backend: str) -> None:
    """retain_graph keeps everything as it was: the second gradients are those of the first."""
    outputs, leaves, upstream = graph(arguments(Case(cell, bidirectional=True)), backend)
    with fastrnn.use_backend(backend):
        first = gradients(outputs, leaves, upstream, retain_graph=True)
        second = gradients(outputs, leaves, upstream)
        for name, grad in first.items():
            assert torch.equal(grad, second[name])
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            gradients(outputs, leaves, upstream)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_graphs_do_not_share_memory(cell: str, backend: str) -> None:
    """Two calls alive at once, backward in either order."""
    both = [arguments(Case(cell, bidirectional=True), seed=seed) for seed in (1, 2)]
    expected = [results(a, backend=backend) for a in both]
    for order in ((0, 1), (1, 0)):
        graphs = [graph(a, backend) for a in both]
        for k in order:
            with fastrnn.use_backend(backend):
                grads = gradients(*graphs[k])
            for name, grad in grads.items():
                assert torch.equal(grad, expected[k][name])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_outputs_changed_in_place(cell: str, steps: int, backend: str) -> None:
    """``out += residual`` and ``relu_(out)`` before backward: nothing kept is an output."""
    a = arguments(Case(cell, steps=steps, bidirectional=True))
    outputs, leaves, upstream = graph(a, backend)
    for output in outputs.values():
        output.add_(1).mul_(2)
    with fastrnn.use_backend(backend):
        changed = gradients(outputs, leaves, upstream)
    expected = cases.reference(a)
    check(changed, {name: 2 * expected[name] for name in changed}, a.case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("proj_size", [0, 2])
def test_cell_states_changed_in_place(proj_size: int, backend: str) -> None:
    """Cell states are what backward needs, so they may be kept themselves: refused, never wrong."""
    case = Case("lstm", bidirectional=True, cell_states=True, proj_size=proj_size)
    a = arguments(case)
    outputs, leaves, upstream = graph(a, backend)
    outputs["cell_states_l0"].mul_(2)
    expected = cases.reference(a, grads=lambda outputs, case: {
        name: grad * (2 if name == "cell_states_l0" else 1)
        for name, grad in cases.upstream(outputs, case).items()
    })  # fmt: skip
    with fastrnn.use_backend(backend):
        try:
            changed = gradients(outputs, leaves, upstream)
        except RuntimeError as error:
            refused = "modified by an inplace operation" in str(error)
        else:
            refused = False
            check(changed, {name: expected[name] for name in changed}, case)
    assert refused or changed


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_inputs_changed_in_place(cell: str, backend: str) -> None:
    """Backward refuses to use what is no longer there."""
    a = arguments(Case(cell))
    for name in a.differentiable():
        outputs, leaves, upstream = graph(a, backend)
        with torch.no_grad():
            leaves[name].add_(1)
        with (
            fastrnn.use_backend(backend),
            pytest.raises(RuntimeError, match="modified by an inplace operation"),
        ):
            gradients(outputs, leaves, upstream)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["lengths", "reset"])
def test_masks_changed_in_place(name: str, backend: str) -> None:
    """Masks are kept for backward by reference too: a change of one is refused."""
    a = arguments(
        Case(
            "gru",
            lengths="random" if name == "lengths" else "",
            reset="random" if name == "reset" else "",
        )
    )
    mask = getattr(a, name)
    outputs, leaves, upstream = graph(a, backend)
    mask.copy_(mask.roll(1, -1))
    with (
        fastrnn.use_backend(backend),
        pytest.raises(RuntimeError, match="modified by an inplace operation"),
    ):
        gradients(outputs, leaves, upstream)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_no_reference_cycle(cell: str, backend: str) -> None:
    """Dropping the outputs frees all that was kept, at once: no cycle for gc to find."""
    more: dict[str, Any] = {"cell_states": True} if cell == "lstm" else {}
    a = arguments(Case(cell, **more))
    gc.collect()
    gc.disable()
    try:
        for run_backward in (False, True):
            outputs, leaves, upstream = graph(a, backend)
            watched = [weakref.ref(tensor) for tensor in (*outputs.values(), *leaves.values())]
            nodes = list(map(weakref.ref, (output.grad_fn for output in outputs.values())))
            if run_backward:
                with fastrnn.use_backend(backend):
                    gradients(outputs, leaves, upstream)
            del outputs, leaves, upstream
            assert all(ref() is None for ref in watched)
            assert all(ref() is None for ref in nodes)
    finally:
        gc.enable()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_saved_tensors_hooks(cell: str, backend: str) -> None:
    """All that backward uses goes through the hooks, as save_on_cpu and offloading want it."""
    more: dict[str, Any] = {"cell_states": True} if cell == "lstm" else {}
    a = arguments(Case(cell, bidirectional=True, lengths="random", **more))
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor.clone())
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda index: packed[index]):
        outputs, leaves, upstream = graph(a, backend)
    for saved in packed:
        assert saved.untyped_storage().data_ptr() not in {
            output.untyped_storage().data_ptr() for output in outputs.values()
        }
    with torch.no_grad(), fastrnn.use_backend(backend):
        grads = gradients(outputs, leaves, upstream)
    check(grads, {name: cases.reference(a)[name] for name in grads}, a.case)
    assert {tensor.shape for tensor in packed} >= {leaf.shape for leaf in leaves.values()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("cell", ["rnn_relu", "lstm", "gru"])
def test_checkpoint(cell: str, use_reentrant: bool, backend: str) -> None:
    """Activation checkpointing of both kinds: recomputed, and equal to the bit."""
    a = arguments(Case(cell, bidirectional=True))
    function, tensors = as_function(a)

    def backward(outputs: tuple[Tensor, ...]) -> list[Tensor]:
        loss = total(outputs)
        loss.backward()
        grads = [tensor.grad for tensor in tensors if tensor.grad is not None]
        for tensor in tensors:
            tensor.grad = None
        return grads

    with fastrnn.use_backend(backend):
        direct = backward(function(*tensors))
        again = backward(checkpoint(function, *tensors, use_reentrant=use_reentrant))
    assert len(direct) == len(tensors)
    assert all(torch.equal(one, two) for one, two in zip(direct, again, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_anomaly_mode(cell: str, backend: str) -> None:
    a = arguments(Case(cell, bidirectional=True))
    expected = cases.reference(a)
    with torch.autograd.detect_anomaly(check_nan=True):
        check(results(a, backend=backend), expected, a.case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", cases.TORCH_CELLS)
def test_truncated_backpropagation(cell: str, backend: str) -> None:
    """A long sequence in pieces, state carried over and detached, is torch.nn's truncated BPTT."""
    a = arguments(Case(cell, steps=12))

    def run(forward: cases.Forward) -> Outputs:
        leaves = {k: v.clone().requires_grad_() for k, v in a.differentiable().items()}
        call = a.with_tensors(leaves)
        pieces = leaves["x"].split(4)
        for piece in pieces:
            outputs = forward(replace(call, x=piece))
            total(outputs.values()).backward()
            call = replace(
                call,
                h0=outputs["h_n"].detach(),
                c0=outputs["c_n"].detach() if "c_n" in outputs else None,
            )
        return {f"grad {k}": v.grad for k, v in leaves.items() if v.grad is not None}

    with fastrnn.use_backend(backend):
        actual = run(cases.fastrnn_forward)
    check(actual, run(cases.torch_forward), a.case)
