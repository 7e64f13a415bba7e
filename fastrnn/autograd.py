"""One layer, differentiable: the autograd.Function around the fused kernels.

Everything kept for backward goes through ``save_for_backward`` (version checks, saved-tensor
hooks, no reference cycles), and nothing of it is an output that users see: outputs may be changed
in place before backward, as torch.nn allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import backends, ops
from .backends.base import DifferentiableBackend, Gradients
from .problem import LayerInputs, LayerOutputs, Problem


class _Layer(torch.autograd.Function):
    """``(cell, directions, keep_cell_states, x, h0, c0, lengths, batch_sizes, reset, *weights)``.

    Returns y and h_n, then c_n of a cell that has one, then the cell states when asked for.
    """

    @staticmethod
    def forward(
        ctx: Any,
        cell: str,
        directions: int,
        keep_cell_states: bool,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        reset: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = LayerInputs(x, h0, c0, weights, lengths, batch_sizes, reset)
        y, h_n, c_n, cell_states, reserve = ops.layer_forward(
            cell, inputs, directions, keep_cell_states, True
        )
        ctx.cell, ctx.directions, ctx.keep_cell_states = cell, directions, keep_cell_states
        ctx.save_for_backward(
            cell_states, reserve, x, h0, c0, lengths, batch_sizes, reset, *weights
        )
        if keep_cell_states:
            return y, h_n, c_n, cell_states
        if c_n.numel() or cell == "lstm":
            return y, h_n, c_n
        return y, h_n

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        cell_states, reserve, x, h0, c0, lengths, batch_sizes, reset, *weights = ctx.saved_tensors
        inputs = LayerInputs(x, h0, c0, weights, lengths, batch_sizes, reset)
        wanted = ctx.needs_input_grad
        needs = [wanted[3], wanted[4], wanted[5], *wanted[9:]]
        if torch.is_grad_enabled():
            grads = _differentiable_backward(ctx, inputs, grad_outputs, needs)
        else:
            grad_y, grad_h_n, *rest = (grad.contiguous() for grad in grad_outputs)
            grad_c_n = rest[0] if rest else None
            grad_cell_states = rest[1] if len(rest) > 1 else None
            flat = ops.layer_backward(
                ctx.cell,
                inputs,
                ctx.directions,
                ctx.keep_cell_states,
                cell_states,
                reserve,
                Gradients(grad_y, grad_h_n, grad_c_n, grad_cell_states),
                needs,
            )
            grads = [grad if need else None for grad, need in zip(flat, needs, strict=True)]
        return (None, None, None, *grads[:3], None, None, None, *grads[3:])


def _differentiable_backward(
    ctx: Any, inputs: LayerInputs, grad_outputs: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The same gradients as a graph that can itself be differentiated.

    The kernels' intermediate values would count as constants in a second derivative, so the layer
    is computed again with torch operations. The saved inputs are aliased first: an initial state
    may itself depend on the weights, and differentiating with respect to both must not follow
    that path.
    """
    aliased = [
        None if tensor is None else tensor.view_as(tensor)
        for tensor in (inputs.x, inputs.h0, inputs.c0, *inputs.weights)
    ]
    x, h0, c0, *weights = aliased
    assert x is not None
    alias = inputs._replace(x=x, h0=h0, c0=c0, weights=weights)
    problem = Problem.of(
        ctx.cell,
        alias,
        directions=ctx.directions,
        keep_cell_states=ctx.keep_cell_states,
        training=False,
    )
    outputs = _reference().layer(problem, alias)
    chosen = [outputs.y, outputs.h_n]
    if problem.cell.has_cell_state:
        chosen.append(outputs.c_n)
    if ctx.keep_cell_states:
        chosen.append(outputs.cell_states)
    sources = [tensor for tensor, need in zip(aliased, needs, strict=True) if need]
    grads = iter(
        torch.autograd.grad(chosen, sources, list(grad_outputs), create_graph=True, allow_unused=True)
    )
    return [next(grads) if need else None for need in needs]


def _reference() -> DifferentiableBackend:
    backend = backends.get("reference")
    assert isinstance(backend, DifferentiableBackend)
    return backend


def layer(
    cell: str, inputs: LayerInputs, *, directions: int, keep_cell_states: bool
) -> LayerOutputs:
    """One layer, both of its directions, by whichever backend serves it.

    The reserve of the result is always empty; ``c_n`` and ``cell_states`` are empty where the
    cell, or the call, has none.
    """
    problem = Problem.of(
        cell, inputs, directions=directions, keep_cell_states=keep_cell_states, training=False
    )
    keep_cell_states = problem.keep_cell_states
    backend = backends.select(problem)
    if isinstance(backend, DifferentiableBackend):
        return backend.layer(problem, inputs)
    if not _needs_grad(inputs):
        outputs = ops.layer_forward(cell, inputs, directions, keep_cell_states, False)
        return LayerOutputs(*outputs)
    x, h0, c0, weights, lengths, batch_sizes, reset = inputs
    y, h_n, *rest = _Layer.apply(
        cell, directions, keep_cell_states, x, h0, c0, lengths, batch_sizes, reset, *weights
    )
    empty = x.new_empty(0)
    c_n = rest[0] if rest else empty
    return LayerOutputs(y, h_n, c_n, rest[1] if len(rest) > 1 else empty, empty)


def _needs_grad(inputs: LayerInputs) -> bool:
    if not torch.is_grad_enabled():
        return False
    tensors = (inputs.x, inputs.h0, inputs.c0, *inputs.weights)
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
