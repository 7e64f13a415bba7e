"""How a change of the state, or of an input, is carried through time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from ..backends.reference import STEPS
from .passes import Pass, State, Weights, run_layers, time_major, widened

#: Largest slope of each cell's activation, for the bound of Pascanu et al. 2013.
_SLOPES = {"rnn_tanh": 1.0, "rnn_relu": 1.0, "rnn_sigmoid": 0.25, "rnn_identity": 1.0}


@torch.no_grad()
def state_jacobians(one: Pass) -> Tensor:
    """``J_t = ds_t / ds_{t-1}`` of every step of a pass, ``(T, B, S, S)``.

    The state s is h, or h and c side by side where a cell has both: S = R, or R + H. The memory is
    ``T * B * S * S`` values, float32 of a pass in half precision.

    Args:
        one: from ``trace``.
    """
    step, units = STEPS[one.cell], one.h.shape[-1]
    weights = Weights._make(None if each is None else widened(each) for each in one.weights)

    def advance(state: Tensor, x: Tensor) -> Tensor:
        h, c = (state, None) if one.c is None else (state[:units], state[units:])
        h_next, c_next = step(x, h, c, weights)
        return h_next if c_next is None else torch.cat([h_next, c_next])

    entering = one.h_before
    if one.c_before is not None:
        entering = torch.cat([one.h_before, one.c_before], -1)
    jacobians: Tensor = vmap(vmap(jacrev(advance)))(widened(entering), widened(one.x))
    return jacobians


@torch.no_grad()
def jacobian_products(jacobians: Tensor, direction: int = 0) -> Tensor:
    """``||ds_T / ds_t||_2`` for every t: how far a small change of s_t is still felt at the end.

    The spectral norm of ``J_T J_{T-1} ... J_{t+1}``; 1 for t = T.

    Args:
        jacobians: ``(T, B, S, S)``, from ``state_jacobians``.
        direction: of their pass; with 1, the end is the first step of the sequence.

    Returns:
        ``(T, B)``.
    """
    if direction:
        return jacobian_products(jacobians.flip(0)).flip(0)
    jacobians = widened(jacobians)
    product = torch.eye(jacobians.shape[-1], dtype=jacobians.dtype, device=jacobians.device)
    product = product.expand_as(jacobians[0])
    norms = [torch.linalg.matrix_norm(product, 2)]
    for jacobian in jacobians[1:].flip(0):
        product = product @ jacobian
        norms.append(torch.linalg.matrix_norm(product, 2))
    return torch.stack(norms[::-1])


@torch.no_grad()
def jacobian_bound(one: Pass) -> Tensor:
    r"""The bound :math:`(\gamma \|W_{hh}\|_2)^{T-t}` on ``||ds_T / ds_t||_2`` of a vanilla layer.

    gamma is the largest slope of the activation: 1, or 1/4 for a sigmoid. Below 1 gradients must
    vanish, above 1 they may explode (Pascanu, Mikolov and Bengio 2013).

    Returns:
        ``(T,)``.

    Raises:
        ValueError: the pass is one of a gated cell, for which there is no such bound.
    """
    if one.cell not in _SLOPES:
        raise ValueError(f"one: expected a pass of a vanilla layer, got one of {one.cell}")
    rate = _SLOPES[one.cell] * torch.linalg.matrix_norm(widened(one.weights.w_hh), 2)
    left = torch.arange(len(one.h) - 1, -1, -1, dtype=rate.dtype, device=rate.device)
    bound: Tensor = rate**left
    return bound.flip(0) if one.direction else bound


@torch.no_grad()
def influence(module: nn.Module, input: Tensor, hx: State | None = None) -> Tensor:
    """How much the last hidden state still depends on each input: ``(T, B)``.

    For every t the module runs over the batch once more, with x_t of each row replaced by that of
    the next row, and ``||h_T - h_T'|| / ||h_T||`` is returned for the last layer's forward
    direction. That is the effect of another input, not of a small change. Of a state ``h_T = 0`` it
    is 0 if it stays 0, and else 1. All runs are one batch of ``T * B`` rows.

    Args:
        module, input, hx: as of ``trace``.

    Raises:
        TypeError, ValueError, IndexError: not such a module or input, or a batch of one row, which
            has nothing to exchange.
    """
    x, _ = time_major(module, input)
    steps, batch, features = x.shape
    if batch < 2:
        raise ValueError(f"input: expected 2 or more rows, got {batch}")
    variants = x[:, None].repeat(1, steps, 1, 1)  # (T, variant, B, I)
    each = torch.arange(steps, device=x.device)
    variants[each, each] = x.roll(1, dims=1)

    def final(sequences: Tensor, copies: int) -> Tensor:
        states: State | None = None
        if isinstance(hx, tuple):
            states = (hx[0].repeat(1, copies, 1), hx[1].repeat(1, copies, 1))
        elif hx is not None:
            states = hx.repeat(1, copies, 1)
        layers = list(run_layers(module, sequences, states))
        return widened(layers[-1].h_n[0])

    whole = final(x, 1)
    changed = final(variants.view(steps, steps * batch, features), steps)
    changed = changed.view(steps, batch, -1)
    size = whole.norm(dim=-1)
    size = torch.where(size > 0, size, changed.norm(dim=-1))
    effect: Tensor = (changed - whole).norm(dim=-1) / size
    return torch.where(size > 0, effect, 0.0)
