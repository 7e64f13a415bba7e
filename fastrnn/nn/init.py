"""Initial values of recurrent weights, in place: remedies for gradients that vanish or explode.

All functions take an ``RNN``, ``LSTM``, ``GRU`` or a cell of fastrnn or of torch.nn, change its
parameters of all layers and directions and return it. Each gate's ``(H, R)`` block of ``weight_hh``
is a matrix of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..diagnostics.passes import cell_of, widened

Module = TypeVar("Module", bound=nn.Module)


def recurrent_orthogonal_(module: Module, gain: float = 1.0) -> Module:
    """Random orthogonal blocks times ``gain`` (Saxe, McClelland and Ganguli 2014).

    All singular values of a block are ``gain``: with 1 a linear recurrence keeps norms exactly.
    """

    def fill(block: Tensor) -> None:
        block.copy_(nn.init.orthogonal_(widened(torch.empty_like(block)), gain))

    return _each_block_(module, fill)


def recurrent_identity_(module: Module, scale: float = 1.0) -> Module:
    """``scale`` times the identity, biases 0 (Le, Jaitly and Hinton 2015).

    Their IRNN is a vanilla layer with relu and scale 1; long dependencies are easier, and short
    ones forgotten sooner, with less.
    """
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith("bias"):
            nn.init.zeros_(parameter)

    def fill(block: Tensor) -> None:
        nn.init.eye_(block)
        block.mul_(scale)

    return _each_block_(module, fill)


def recurrent_scaled_(module: Module, radius: float = 1.0) -> Module:
    """Each block as it is, scaled to the spectral radius ``radius``.

    Raises:
        ValueError: a block is not square (a projection), or all its eigenvalues are 0.
    """

    def scale(block: Tensor) -> None:
        if block.shape[0] != block.shape[1]:
            raise ValueError(f"module: expected square blocks, got {tuple(block.shape)}")
        now = torch.linalg.eigvals(widened(block)).abs().max()
        if now == 0:
            raise ValueError("module: the eigenvalues of a block are all 0")
        block.copy_(widened(block) * (radius / now))

    return _each_block_(module, scale)


def forget_bias_(module: Module, value: float = 1.0) -> Module:
    """Biases of an LSTM's forget gates whose sum is ``value``.

    With 1 or more the gate is open at first, and gradients pass (Gers et al. 2000; Jozefowicz,
    Zaremba and Sutskever 2015).

    Raises:
        TypeError: the module is no LSTM, or has no biases.
    """
    return _keep_bias_(module, lambda bias: nn.init.constant_(bias, value), only_lstm=True)


def chrono_(module: Module, longest: int) -> Module:
    """Biases for memories of 1 to ``longest`` steps (Tallec and Ollivier 2018).

    ``b_f = log(u)``, u uniform in ``[1, longest - 1]``, and ``b_i = -b_f`` of an LSTM; ``b_z =
    log(u)`` of a GRU, whose z keeps the state.

    Raises:
        TypeError: the module is no LSTM or GRU, or has no biases.
        ValueError: longest is less than 3.
    """
    if longest < 3:
        raise ValueError(f"longest: expected 3 or more, got {longest}")
    return _keep_bias_(module, lambda bias: bias.uniform_(1, longest - 1).log_(), chrono=True)


@torch.no_grad()
def _each_block_(module: Module, fill: Callable[[Tensor], object]) -> Module:
    gates = cell_of(module).gates
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith("weight_hh"):
            for block in parameter.chunk(gates):
                fill(block)
    return module


def _biases(module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """b_ih and b_hh of every layer and direction."""
    own = dict(module.named_parameters(recurse=False))
    for name, parameter in own.items():
        if name.startswith("bias_ih"):
            yield parameter, own[name.replace("bias_ih", "bias_hh")]


@torch.no_grad()
def _keep_bias_(
    module: Module,
    fill: Callable[[Tensor], object],
    *,
    only_lstm: bool = False,
    chrono: bool = False,
) -> Module:
    """Fill the biases of the gate that keeps the state; their b_hh is 0."""
    gates = cell_of(module).gates
    biases = list(_biases(module))
    if gates == 1 or (only_lstm and gates != 4) or not biases:
        kind = "an LSTM" if only_lstm else "an LSTM or GRU"
        raise TypeError(f"module: expected {kind} with biases, got {module}")
    for b_ih, b_hh in biases:
        keep, zero = b_ih.chunk(gates)[1], b_hh.chunk(gates)[1]  # f of i f g o, z of r z n
        fill(keep)
        zero.zero_()
        if chrono and gates == 4:
            b_ih.chunk(gates)[0].copy_(-keep)
            b_hh.chunk(gates)[0].zero_()
    return module
