"""The recurrent weights as a linear map: eigenvalues, spectral radius, power iteration."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .passes import cell_of, weights_of, widened

#: Gates in the order of the rows of ``weight_hh``.
_ROWS = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "gru_reset_before": ("r", "z", "n")}


def recurrent_weight(
    module: nn.Module, gate: str | None = None, *, layer: int = 0, direction: int = 0
) -> Tensor:
    """The ``(H, R)`` block of ``weight_hh`` of one gate, detached.

    Args:
        module: an RNN, LSTM, GRU or a cell of fastrnn or torch.nn.
        gate: ``i f g o`` of an LSTM, ``r z n`` of a GRU; None for a vanilla layer, and else for
            the candidate, g or n, through which the state feeds itself.

    Raises:
        TypeError: the module is another.
        ValueError: it has no such gate.
        IndexError: it has no such layer or direction.
    """
    cell = cell_of(module)
    w_hh = weights_of(module, layer, direction).w_hh.detach()
    names = _ROWS.get(cell.name)
    if names is None:
        if gate is not None:
            raise ValueError(f"gate: a vanilla layer has none, expected None, got {gate!r}")
        return w_hh
    if gate is None:
        gate = "g" if cell.name == "lstm" else "n"
    if gate not in names:
        raise ValueError(f"gate: expected one of {', '.join(names)}, got {gate!r}")
    return w_hh.chunk(cell.gates)[names.index(gate)]


def eigenvalues(
    module: nn.Module, gate: str | None = None, *, layer: int = 0, direction: int = 0
) -> Tensor:
    """Eigenvalues of ``recurrent_weight``, ``(H,)`` complex, the largest in absolute value first.

    In float32 at least. Of a gated cell they are those of one block, which gates scale: only for a
    vanilla layer do they tell by themselves what becomes of a state.

    Raises:
        ValueError: the block is not square (a projection), see also ``recurrent_weight``.
    """
    matrix = recurrent_weight(module, gate, layer=layer, direction=direction)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"module: expected square recurrent weights, got {tuple(matrix.shape)}")
    values: Tensor = torch.linalg.eigvals(widened(matrix))
    return values[values.abs().argsort(descending=True)]


def spectral_radius(
    module: nn.Module, gate: str | None = None, *, layer: int = 0, direction: int = 0
) -> float:
    """The largest absolute eigenvalue of ``recurrent_weight``, see ``eigenvalues``."""
    return float(eigenvalues(module, gate, layer=layer, direction=direction)[0].abs())


class PowerIteration(NamedTuple):
    """What multiplying a vector again and again by a matrix shows.

    Attributes:
        norms: ``(n + 1,)`` of the vector ``W^k v``, v a unit vector: they vanish or explode.
        rates: ``(n,)``, ``||W^k v||^(1/k)``, which converges to the spectral radius.
        vector: ``W^n v`` scaled to norm 1, the dominant eigenvector if there is one (a pair of
            complex eigenvalues keeps turning it).
    """

    norms: Tensor
    rates: Tensor
    vector: Tensor


@torch.no_grad()
def power_iteration(
    matrix: Tensor, steps: int = 100, *, generator: torch.Generator | None = None
) -> PowerIteration:
    """Multiply a random vector by a square matrix ``steps`` times.

    A linear recurrence does nothing else with its state and its gradient: ``h_k = W^k h_0`` grows
    or shrinks like the k-th power of the spectral radius. The vector is scaled to norm 1 after
    each step, so that nothing overflows.

    Raises:
        ValueError: the matrix is not square, or steps is less than 1.
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix: expected a square matrix, got shape {tuple(matrix.shape)}")
    if steps < 1:
        raise ValueError(f"steps: expected 1 or more, got {steps}")
    matrix = widened(matrix)
    vector = torch.randn(len(matrix), dtype=matrix.dtype, device=matrix.device, generator=generator)
    vector = vector / vector.norm()
    logs = []
    for _ in range(steps):
        vector = matrix @ vector
        norm = vector.norm()
        logs.append(norm.log())
        vector = vector / norm.clamp_min(torch.finfo(matrix.dtype).tiny)
    grown = torch.stack(logs).cumsum(0)
    count = torch.arange(1, steps + 1, dtype=matrix.dtype, device=matrix.device)
    norms = torch.cat([torch.ones_like(grown[:1]), grown.exp()])
    return PowerIteration(norms, (grown / count).exp(), vector)
