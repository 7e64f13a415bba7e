"""One layer, differentiable: the autograd.Function around the fused kernels.

Everything kept for backward goes through ``save_for_backward`` (version checks, saved-tensor
hooks, no reference cycles), and nothing of it is an output that users see: outputs may be changed
in place before backward, as torch.nn allows. (Cell states that were asked for are the exception:
changing those before backward raises.)

With ``recompute`` a layer keeps its inputs and nothing else, and backward begins with the forward
it needs. What that leaves belongs to one backward only, which may always overwrite it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import _compat, backends, onnx_export, ops
from .backends.base import DifferentiableBackend, FusedBackend, Gradients, Needs
from .cells import CELLS
from .problem import LayerInputs, LayerOutputs, Problem


class _Layer(torch.autograd.Function):
    """One layer around the kernels of a fused backend.

    Returns y and h_n, then c_n of a cell that has one, then the cell states when asked for.
    ``served`` is the backend and the problem; None while tracing, where the operators of ``ops``
    stand for them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        served: tuple[FusedBackend, Problem] | None,
        cell: str,
        directions: int,
        keep_cell_states: bool,
        recompute: bool,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        reset: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = LayerInputs(x, h0, c0, weights, lengths, batch_sizes, reset)
        if served is None:
            outputs = ops.layer_forward(cell, *inputs, directions, keep_cell_states, not recompute)
        else:
            backend, problem = served
            outputs = backend.forward(
                problem._replace(training=False) if recompute else problem, inputs
            )
        y, h_n, c_n, cell_states, reserve = outputs
        ctx.served, ctx.cell, ctx.recompute = served, cell, recompute
        ctx.directions, ctx.keep_cell_states = directions, keep_cell_states
        if served is not None:
            ctx.donation, ctx.consumed = _donation(reserve), False
        kept = (None, None) if recompute else (cell_states, reserve)
        ctx.save_for_backward(*kept, x, h0, c0, lengths, batch_sizes, reset, *weights)
        if not CELLS[cell].has_cell_state:
            return y, h_n
        return (y, h_n, c_n, cell_states) if keep_cell_states else (y, h_n, c_n)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # A backward under autocast would round the products that make gradients of weights.
        if torch._C._is_any_autocast_enabled():
            with torch.autocast(grad_outputs[0].device.type, enabled=False):
                return _Layer._backward(ctx, grad_outputs)
        return _Layer._backward(ctx, grad_outputs)

    @staticmethod
    def _backward(ctx: Any, grad_outputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        cell_states, reserve, x, h0, c0, lengths, batch_sizes, reset, *weights = ctx.saved_tensors
        inputs = LayerInputs(x, h0, c0, weights, lengths, batch_sizes, reset)
        wanted = ctx.needs_input_grad
        needs = [*wanted[5:8], *wanted[11:]]
        if torch.is_grad_enabled() or (ctx.served is not None and _transformed(grad_outputs)):
            grads = _differentiable_backward(ctx, inputs, grad_outputs, needs)
        else:
            above = [grad.resolve_neg().contiguous() for grad in grad_outputs]
            above_all = Gradients(*above, *[None] * (4 - len(above)))
            if ctx.served is None:
                flat = ops.layer_backward(
                    ctx.cell,
                    *inputs,
                    ctx.directions,
                    ctx.keep_cell_states,
                    cell_states,
                    reserve,
                    *above_all,
                    needs,
                )
                grads = [grad if need else None for grad, need in zip(flat, needs, strict=True)]
            else:
                grads = _kernel_backward(ctx, inputs, cell_states, reserve, above_all, needs)
        return (None, None, None, None, None, *grads[:3], None, None, None, *grads[3:])


def _kernel_backward(
    ctx: Any,
    inputs: LayerInputs,
    cell_states: Tensor | None,
    reserve: Tensor | None,
    above: Gradients,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients by the backend that served forward."""
    backend, problem = ctx.served
    if ctx.recompute:
        cell_states, reserve = backend.forward(problem, inputs)[3:]
        donated = True
    elif ctx.consumed:
        raise RuntimeError(
            "Trying to backward through the graph a second time: a first backward "
            "did not keep it and was interrupted after saved values were overwritten"
        )
    else:
        donated = ctx.consumed = _is_donated(ctx.donation, reserve)
    result = backend.backward(
        problem,
        inputs,
        cell_states,
        reserve,
        above,
        Needs(needs[0], needs[1], needs[2], needs[3:]),
        donated=donated,
    )
    return [result.x, result.h0, result.c0, *result.weights]


def _donation(reserve: Tensor | None) -> int:
    """The reserve's address, or 0 where hooks on saved tensors may hand it to somebody."""
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    return 0 if reserve is None or hooked else reserve.data_ptr()


def _is_donated(donation: int, reserve: Tensor | None) -> bool:
    """Whether the running backward is the last to read the reserve.

    It is where the graph is not kept, and where what came back is the very memory that was saved.
    """
    if torch._C._autograd._get_current_graph_task_keep_graph():
        return False
    return reserve is not None and donation != 0 and reserve.data_ptr() == donation


def _transformed(grads: Sequence[Tensor]) -> bool:
    """Whether gradients are of a transform's own kind, with no memory for a kernel to read.

    Those of ``is_grads_batched`` have no storage, and no functorch level tells of them.
    """
    return backends.transformed() or not all(map(torch._C._has_storage, grads))


def _differentiable_backward(
    ctx: Any, inputs: LayerInputs, grad_outputs: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The same gradients by torch operations: differentiable again, and seen by transforms.

    The kernels' intermediate values would count as constants in a second derivative, so the layer
    is computed again with torch operations, in the dtype of the kernels' arithmetic. The saved
    inputs are aliased first: an initial state may itself depend on the weights, and differentiating
    with respect to both must not follow that path.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        alias = _mapped(inputs, lambda tensor: tensor.view_as(tensor))
        problem = Problem.of(
            ctx.cell,
            alias,
            directions=ctx.directions,
            keep_cell_states=ctx.keep_cell_states,
            training=False,
        )
        wide = _mapped(alias, lambda tensor: tensor.to(problem.state_dtype))
        backend = _differentiable("reference" if _transformed(grad_outputs) else "torch", problem)
        outputs = backend.layer(problem._replace(dtype=problem.state_dtype), wide)
    chosen = [outputs.y, outputs.h_n]
    if outputs.c_n is not None:
        chosen.append(outputs.c_n)
    if ctx.keep_cell_states and outputs.cell_states is not None:
        chosen.append(outputs.cell_states)
    everything = (alias.x, alias.h0, alias.c0, *alias.weights)
    sources = [t for t, need in zip(everything, needs, strict=True) if need and t is not None]
    above = [grad.to(out.dtype) for grad, out in zip(grad_outputs, chosen, strict=True)]
    grads = iter(
        torch.autograd.grad(chosen, sources, above, create_graph=create_graph, allow_unused=True)
    )
    return [next(grads) if need else None for need in needs]


def _differentiable(name: str, problem: Problem) -> DifferentiableBackend:
    """The backend of that name, made of torch operations; the reference where it cannot serve."""
    backend = backends.get(name)
    if not backend.supports(problem).ok:
        backend = backends.get("reference")
    assert isinstance(backend, DifferentiableBackend)
    return backend


def _mapped(inputs: LayerInputs, change: Callable[[Tensor], Tensor]) -> LayerInputs:
    """The inputs with ``change`` applied to all that may have a gradient."""
    return inputs._replace(
        x=change(inputs.x),
        h0=None if inputs.h0 is None else change(inputs.h0),
        c0=None if inputs.c0 is None else change(inputs.c0),
        weights=[change(weight) for weight in inputs.weights],
    )


def in_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``; for meta tensors it never is."""
    if not torch._C._is_any_autocast_enabled():
        return False
    device = x.device.type
    return _compat.is_autocast_available(device) and torch.is_autocast_enabled(device)


def layer(
    cell: str,
    inputs: LayerInputs,
    *,
    directions: int,
    keep_cell_states: bool,
    recompute: bool = False,
) -> LayerOutputs:
    """One layer, both of its directions, by whichever backend serves it.

    The result has no reserve, and cell states only where they were asked for. Under autocast the
    layer runs in the dtype of its weights, states and accumulation included.

    Args:
        recompute: keep nothing but the inputs for backward, which runs forward again.
    """
    if in_autocast(inputs.x):
        with torch.autocast(inputs.x.device.type, enabled=False):
            inputs = _in_dtype_of_weights(inputs)
            return layer(
                cell,
                inputs,
                directions=directions,
                keep_cell_states=keep_cell_states,
                recompute=recompute,
            )
    needs_grad = _needs_grad(inputs)
    problem = Problem.of(
        cell,
        inputs,
        directions=directions,
        keep_cell_states=keep_cell_states,
        training=needs_grad,
    )
    exporting = _compat.is_exporting()
    if exporting and onnx_export.is_exporting():
        return onnx_export.layer(problem, inputs)
    backend = backends.select(problem)
    if isinstance(backend, DifferentiableBackend):
        if recompute and needs_grad and not backends.transformed():
            return _checkpointed(backend, problem, inputs)
        return backend.layer(problem, inputs)
    assert isinstance(backend, FusedBackend)
    traced = ops.sees_operators(inputs)
    if not needs_grad and not traced:
        outputs = backend.forward(problem, inputs)
        if not problem.keep_cell_states:
            return outputs
        return outputs._replace(cell_states=_of_dtype(problem, outputs.cell_states))
    keep_cell_states = problem.keep_cell_states
    x, h0, c0, weights, lengths, batch_sizes, reset = inputs
    if needs_grad and not exporting:  # an exported operator is differentiable by itself
        y, h_n, *rest = _Layer.apply(
            None if traced else (backend, problem),
            cell,
            directions,
            keep_cell_states,
            recompute,
            x,
            h0,
            c0,
            lengths,
            batch_sizes,
            reset,
            *weights,
        )
    else:
        y, h_n, *rest = ops.layer_forward(cell, *inputs, directions, keep_cell_states, False)[:4]
    return LayerOutputs(
        y,
        h_n,
        rest[0] if problem.cell.has_cell_state else None,
        _of_dtype(problem, rest[1]) if keep_cell_states else None,
        None,
    )


def _of_dtype(problem: Problem, cell_states: Tensor | None) -> Tensor | None:
    """Cell states as the caller gets them: kernels keep those of 16-bit layers in float32."""
    return cell_states if cell_states is None else cell_states.to(problem.dtype)


def _checkpointed(
    backend: DifferentiableBackend, problem: Problem, inputs: LayerInputs
) -> LayerOutputs:
    """``recompute`` where autograd, not ``_Layer``, decides what is kept."""

    def run(
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        reset: Tensor | None,
        *weights: Tensor,
    ) -> LayerOutputs:
        return backend.layer(problem, LayerInputs(x, h0, c0, weights, lengths, batch_sizes, reset))

    # One by one: checkpoint watches the versions of tensors that are arguments of their own.
    x, h0, c0, weights, *masks = inputs
    outputs: LayerOutputs = checkpoint(
        run, x, h0, c0, *masks, *weights, use_reentrant=False, preserve_rng_state=False
    )
    return outputs


def _in_dtype_of_weights(inputs: LayerInputs) -> LayerInputs:
    dtype = inputs.weights[0].dtype if inputs.weights else inputs.x.dtype

    def cast(state: Tensor | None) -> Tensor | None:
        return None if state is None else state.to(dtype)

    return inputs._replace(x=inputs.x.to(dtype), h0=cast(inputs.h0), c0=cast(inputs.c0))


def _needs_grad(inputs: LayerInputs) -> bool:
    if not torch.is_grad_enabled():
        return False
    tensors = (inputs.x, inputs.h0, inputs.c0, *inputs.weights)
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


# The operators by themselves, as they stand in exported programs: differentiable too.


def _keep_for_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cell, x, h0, c0, weights, *masks, directions, keep_cell_states, training = inputs
    *_, cell_states, reserve = output
    ctx.mark_non_differentiable(reserve)
    ctx.cell, ctx.directions, ctx.keep_cell_states = cell, directions, keep_cell_states
    kept = (cell_states if cell_states.numel() else None, reserve) if training else (None, None)
    ctx.save_for_backward(*kept, x, h0, c0, *masks, *weights)


def _backward_of_operator(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
    cell_states, reserve, x, h0, c0, lengths, batch_sizes, reset, *weights = ctx.saved_tensors
    inputs = LayerInputs(x, h0, c0, weights, lengths, batch_sizes, reset)
    wanted = ctx.needs_input_grad
    needs = [*wanted[1:4], *wanted[4]]
    grad_y, grad_h_n, grad_c_n, grad_cell_states, _ = grad_outputs
    has_c = CELLS[ctx.cell].has_cell_state
    keep = has_c and ctx.keep_cell_states
    above = Gradients(
        grad_y,
        grad_h_n,
        grad_c_n if has_c else None,
        grad_cell_states if keep else None,
    )
    if torch.is_grad_enabled():
        given = [grad for grad in above if grad is not None]
        grads = _differentiable_backward(ctx, inputs, given, needs)
    else:
        flat = ops.layer_backward(
            ctx.cell,
            *inputs,
            ctx.directions,
            ctx.keep_cell_states,
            cell_states,
            reserve,
            *above,
            needs,
        )
        grads = [grad if need else None for grad, need in zip(flat, needs, strict=True)]
    return (None, *grads[:3], grads[3:], *[None] * 6)


def _no_second_derivative(ctx: Any, grads: Sequence[Tensor]) -> None:
    raise RuntimeError(
        "torch.ops.fastrnn.layer_backward: expected to be called without gradients; "
        "gradients of gradients are layer_forward's, with create_graph=True"
    )


torch.library.register_autograd(
    "fastrnn::layer_forward", _backward_of_operator, setup_context=_keep_for_operator
)
torch.library.register_autograd("fastrnn::layer_backward", _no_second_derivative)
