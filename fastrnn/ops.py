"""The two operators of the library, ``torch.ops.fastrnn.layer_forward`` and ``layer_backward``.

They exist for what looks at torch operators (compile, export, fake tensors); eager calls on plain
tensors go to the backends directly, which saves the dispatcher's microseconds. The backend is
chosen inside, on real tensors, so one fake kernel describes them all. An operator has a fixed
number of outputs: what a cell or a call does not have is an empty tensor here.

``layer_backward`` without cell_states and reserve runs forward first. That is part of the one
operator, which needs the gradients of the outputs: no partitioner of a compiler can then move the
forward out of backward and keep its results.

``layer_forward`` is differentiable by itself (``autograd`` registers how), as it has to be in an
exported program; called by ``autograd``'s Function, it is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import backends
from .backends.base import FusedBackend, Gradients, Needs
from .problem import LayerInputs, LayerOutputs, Problem

_library = torch.library.Library("fastrnn", "DEF")

_INPUTS = (
    "str cell, Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? lengths, "
    "Tensor? batch_sizes, Tensor? reset, int directions, bool keep_cell_states"
)
_library.define(
    f"layer_forward({_INPUTS}, bool training) "
    "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor cell_states, Tensor reserve)"
)
_library.define(
    f"layer_backward({_INPUTS}, Tensor? cell_states, Tensor? reserve, Tensor grad_y, "
    "Tensor grad_h_n, Tensor? grad_c_n, Tensor? grad_cell_states, bool[] needs) -> Tensor[]"
)


def _problem(
    cell: str, inputs: LayerInputs, directions: int, keep_cell_states: bool, training: bool
) -> Problem:
    return Problem.of(
        cell,
        inputs,
        directions=directions,
        keep_cell_states=keep_cell_states,
        training=training,
    )


def _forward_backend(problem: Problem) -> FusedBackend:
    backend = backends.select(problem)
    return backend if isinstance(backend, FusedBackend) else backends.select_fused(problem)


def _filled(x: Tensor, outputs: LayerOutputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    y, h_n, c_n, cell_states, reserve = (
        x.new_empty(0) if tensor is None else tensor for tensor in outputs
    )
    return y, h_n, c_n, cell_states, reserve


def _forward(
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    directions: int,
    keep_cell_states: bool,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = LayerInputs(x, h0, c0, weights, lengths, batch_sizes, reset)
    problem = _problem(cell, inputs, directions, keep_cell_states, training)
    outputs = _forward_backend(problem).forward(problem, inputs)
    if lengths is not None and outputs.reserve is not None and outputs.reserve.is_cpu:
        # Undefined beyond the end of a sequence; what an operator returns should not be. On a GPU
        # the lengths would have to be copied there, which no CUDA graph can capture.
        beyond = torch.arange(problem.steps, device="cpu")[:, None] >= lengths
        outputs.reserve[:, beyond.flatten()] = 0
    return _filled(x, outputs)


def _forward_fake(
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    directions: int,
    keep_cell_states: bool,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = LayerInputs(x, h0, c0, weights, lengths, batch_sizes, reset)
    problem = _problem(cell, inputs, directions, keep_cell_states, training)
    return _filled(x, problem.allocate(x))


def _backward(
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    directions: int,
    keep_cell_states: bool,
    cell_states: Tensor | None,
    reserve: Tensor | None,
    grad_y: Tensor,
    grad_h_n: Tensor,
    grad_c_n: Tensor | None,
    grad_cell_states: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of x, h0, c0 and the weights; empty where ``needs`` says no, or of what is None.

    Runs forward first where neither cell_states nor reserve were kept.
    """
    inputs = LayerInputs(x, h0, c0, weights, lengths, batch_sizes, reset)
    problem = _problem(cell, inputs, directions, keep_cell_states, training=True)
    problem.check_backward((cell_states, reserve), (grad_y, grad_h_n, grad_c_n, grad_cell_states))
    grads = Gradients(
        grad_y.contiguous(),
        grad_h_n.contiguous(),
        None if grad_c_n is None else grad_c_n.contiguous(),
        None if grad_cell_states is None else grad_cell_states.contiguous(),
    )
    backend = backends.select_fused(problem)
    needed = Needs(needs[0], needs[1] and h0 is not None, needs[2] and c0 is not None, needs[3:])
    if reserve is None:
        cell_states, reserve = backend.forward(problem, inputs)[3:]
        assert reserve is not None
        donated = True
    else:
        cell_states = None if cell_states is None else cell_states.contiguous()
        reserve, donated = reserve.contiguous(), False
    result = backend.backward(problem, inputs, cell_states, reserve, grads, needed, donated=donated)
    flat = (result.x, result.h0, result.c0, *result.weights)
    return [x.new_empty(0) if grad is None else grad for grad in flat]


def _backward_fake(
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    directions: int,
    keep_cell_states: bool,
    cell_states: Tensor | None,
    reserve: Tensor | None,
    grad_y: Tensor,
    grad_h_n: Tensor,
    grad_c_n: Tensor | None,
    grad_cell_states: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    inputs = (x, h0, c0, *weights)
    return [
        x.new_empty(tensor.shape if needed and tensor is not None else (0,))
        for tensor, needed in zip(inputs, needs, strict=True)
    ]


_library.impl("layer_forward", torch.no_grad()(_forward), "CompositeExplicitAutograd")
_library.impl("layer_backward", torch.no_grad()(_backward), "CompositeExplicitAutograd")
torch.library.register_fake("fastrnn::layer_forward", _forward_fake, lib=_library)
torch.library.register_fake("fastrnn::layer_backward", _backward_fake, lib=_library)

layer_forward = torch.ops.fastrnn.layer_forward.default
layer_backward = torch.ops.fastrnn.layer_backward.default


_PLAIN = (Tensor, torch.nn.Parameter)


def sees_operators(inputs: LayerInputs) -> bool:
    """Whether something looks at the operators of a call: tracing, modes, tensor subclasses."""
    x, h0, c0, weights, *_ = inputs
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or x.is_meta:
        return True
    return not (
        type(x) in _PLAIN
        and (h0 is None or type(h0) in _PLAIN)
        and (c0 is None or type(c0) in _PLAIN)
        and all(type(weight) in _PLAIN for weight in weights)
    )
