"""One run of a module, taken apart: states and gates of every layer, direction and step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..autograd import layer
from ..cells import CELLS, Cell
from ..problem import LayerInputs

State = Tensor | tuple[Tensor, Tensor]

_CELL_OF_MODE = {cell.torch_mode: cell for cell in CELLS.values()}


class Weights(NamedTuple):
    """Weights of a pass; None for what the module does not have."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None

    def given(self) -> list[Tensor]:
        """Those that exist, in the order of the module's parameters."""
        return [weight for weight in self if weight is not None]


class Pass(NamedTuple):
    """One direction of one layer over a sequence.

    ``t`` counts steps of the sequence in both directions; what is "before" a step of the reverse
    direction is at ``t + 1``.

    Attributes:
        layer, direction: which one; direction 1 reads the sequence from its end.
        cell: its name, a key of ``fastrnn.cells.CELLS``.
        weights: as in the module.
        x: ``(T, B, I)``, the input.
        h: ``(T, B, R)``, the outputs. h_before: ``(T, B, R)``, what entered each step.
        c: ``(T, B, H)`` cell states and c_before, or None for a cell without.
        gates: ``(T, B, H)`` each, after their activation: ``i f g o`` of an LSTM, ``r z n`` of a
            GRU, ``h`` of a vanilla layer.
    """

    layer: int
    direction: int
    cell: str
    weights: Weights
    x: Tensor
    h: Tensor
    h_before: Tensor
    c: Tensor | None
    c_before: Tensor | None
    gates: dict[str, Tensor]


def cell_of(module: nn.Module) -> Cell:
    """The cell of an RNN, LSTM or GRU.

    Raises:
        TypeError: the module is another.
    """
    if not isinstance(module, nn.RNNBase) or module.mode not in _CELL_OF_MODE:
        raise TypeError(
            "module: expected an RNN, LSTM or GRU of fastrnn or torch.nn, "
            f"got {type(module).__name__}"
        )
    return _CELL_OF_MODE[module.mode]


def weights_of(module: nn.Module, layer: int = 0, direction: int = 0) -> Weights:
    """Weights of one pass of an RNN, LSTM or GRU, as they are now.

    Raises:
        TypeError: the module is another.
        IndexError: it has no such layer or direction.
    """
    cell_of(module)
    assert isinstance(module, nn.RNNBase)
    if not 0 <= layer < module.num_layers:
        raise IndexError(f"layer: expected 0 to {module.num_layers - 1}, got {layer}")
    if not 0 <= direction < 1 + module.bidirectional:
        raise IndexError(f"direction: expected 0 to {int(module.bidirectional)}, got {direction}")
    suffix = f"_l{layer}" + "_reverse" * direction

    def get(name: str) -> Tensor | None:
        return getattr(module, name + suffix, None)

    w_ih, w_hh = get("weight_ih"), get("weight_hh")
    assert w_ih is not None
    assert w_hh is not None
    return Weights(w_ih, w_hh, get("bias_ih"), get("bias_hh"), get("weight_hr"))


class LayerRun(NamedTuple):
    """A layer in a run: its gates before its kernels saw them, and what came out.

    gates: ``(T, B, D*G*H)``, ``W_ih x`` of all directions. y: ``(T, B, D*R)``. h_n: ``(D, B, R)``.
    c_n: ``(D, B, H)`` and cell_states: ``(T, B, D*H)``, None for a cell without.
    """

    x: Tensor
    gates: Tensor
    h0: Tensor | None
    c0: Tensor | None
    y: Tensor
    h_n: Tensor
    c_n: Tensor | None
    cell_states: Tensor | None


def run_layers(module: nn.Module, x: Tensor, hx: State | None) -> Iterator[LayerRun]:
    """The layers of a module one by one, without dropout.

    x: ``(T, B, I)``. hx: of batches, in the module's form.

    ``W_ih x`` is computed apart and goes into the layer through an identity: its gradient is then
    that of the pre-activations, which backpropagation through time has inside.
    """
    cell = cell_of(module)
    assert isinstance(module, nn.RNNBase)
    directions = 1 + module.bidirectional
    h0, c0 = _initial(hx, cell)
    for k in range(module.num_layers):
        own = slice(k * directions, (k + 1) * directions)
        passes = [weights_of(module, k, d) for d in range(directions)]
        gates = torch.cat([linear(x, weights.w_ih) for weights in passes], dim=-1)
        identity = torch.eye(gates.shape[-1], dtype=gates.dtype, device=gates.device)
        weights: list[Tensor] = []
        for d, given in enumerate(passes):
            rows = given.w_ih.shape[0]
            weights += given._replace(w_ih=identity[d * rows : (d + 1) * rows]).given()
        h0_own = None if h0 is None else h0[own]
        c0_own = None if c0 is None else c0[own]
        outputs = layer(
            cell.name,
            LayerInputs(gates, h0_own, c0_own, weights, None, None, None),
            directions=directions,
            keep_cell_states=cell.has_cell_state,
        )
        yield LayerRun(x, gates, h0_own, c0_own, *outputs[:4])
        x = outputs.y


def time_major(module: nn.RNNBase, input: Tensor) -> Tensor:
    """``(T, B, I)`` from a module's own layout.

    Raises:
        TypeError: the input is no tensor.
        ValueError: it is neither 2-D nor 3-D.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected a Tensor, got {type(input).__name__}")
    if input.dim() not in (2, 3):
        raise ValueError(f"input: expected 2 or 3 dimensions, got {input.dim()}")
    if input.dim() == 2:
        return input.unsqueeze(1)
    return input.transpose(0, 1) if module.batch_first else input


def _initial(hx: State | None, cell: Cell) -> tuple[Tensor | None, Tensor | None]:
    """h0 and c0 ``(L*D, B, H)``."""
    if hx is None:
        return None, None
    if isinstance(hx, tuple) is not cell.has_cell_state:
        expected = "a pair of tensors (h0, c0)" if cell.has_cell_state else "a tensor"
        raise TypeError(f"hx: expected {expected}, got {type(hx).__name__}")
    h0, c0 = hx if isinstance(hx, tuple) else (hx, None)
    # Of an unbatched input, the batch is the one that is missing.
    return _batched(h0), None if c0 is None else _batched(c0)


def _batched(state: Tensor) -> Tensor:
    return state.unsqueeze(1) if state.dim() == 2 else state


@torch.no_grad()
def trace(module: nn.Module, input: Tensor, hx: State | None = None) -> list[Pass]:
    """Run a module and return states and gates of all its passes.

    Args:
        module: an RNN, LSTM or GRU of fastrnn or torch.nn. Its dropout is left out.
        input: ``(T, B, I)``, ``(B, T, I)`` if batch_first, or ``(T, I)``.
        hx: initial states in the module's own form; None for zeros.

    Returns:
        one ``Pass`` for each direction of each layer, layer by layer.

    Raises:
        TypeError, ValueError: not such a module or input.
        RuntimeError: sizes, dtypes or devices do not fit.
    """
    cell = cell_of(module)
    assert isinstance(module, nn.RNNBase)
    passes = []
    for k, run in enumerate(run_layers(module, time_major(module, input), hx)):
        for d in range(1 + module.bidirectional):
            weights = weights_of(module, k, d)

            def part(tensor: Tensor | None, d: int = d) -> Tensor | None:
                return None if tensor is None else tensor.chunk(1 + module.bidirectional, -1)[d]

            h, c = part(run.y), part(run.cell_states)
            assert h is not None
            h_before = before(h, None if run.h0 is None else run.h0[d], d)
            c_before = None
            if c is not None:
                c_before = before(c, None if run.c0 is None else run.c0[d], d)
            gates = part(run.gates)
            assert gates is not None
            values = gate_values(cell, weights, gates, h, h_before)
            passes.append(Pass(k, d, cell.name, weights, run.x, h, h_before, c, c_before, values))
    return passes


def before(states: Tensor, first: Tensor | None, direction: int) -> Tensor:
    """Of the states ``(T, B, H)`` of all steps those that entered them; ``first``: None for 0."""
    start = torch.zeros_like(states[:1]) if first is None else first[None]
    return torch.cat([states[1:], start] if direction else [start, states[:-1]])


def after(values: Tensor, direction: int) -> Tensor:
    """Of values ``(T, B, H)`` of all steps those of the step that follows; 0 where none does."""
    nothing = torch.zeros_like(values[:1])
    return torch.cat([nothing, values[:-1]] if direction else [values[1:], nothing])


def gate_values(
    cell: Cell, weights: Weights, gates: Tensor, h: Tensor, h_before: Tensor
) -> dict[str, Tensor]:
    """Gates after their activations, ``(T, B, H)`` each.

    gates: ``W_ih x``. h, h_before: after and before each step. Formulas: ``fastrnn.functional``.
    """
    if cell.gates == 1:
        return {"h": h}
    a = gates if weights.b_ih is None else gates + weights.b_ih
    if cell.name == "lstm":
        i, f, g, o = (a + linear(h_before, weights.w_hh, weights.b_hh)).chunk(4, -1)
        return {"i": i.sigmoid(), "f": f.sigmoid(), "g": g.tanh(), "o": o.sigmoid()}
    units = h.shape[-1]
    a_rz, a_n = a.split([2 * units, units], -1)
    w_rz, w_n = weights.w_hh.split([2 * units, units])
    b_rz, b_n = (None, None) if weights.b_hh is None else weights.b_hh.split([2 * units, units])
    r, z = (a_rz + linear(h_before, w_rz, b_rz)).sigmoid().chunk(2, -1)
    inner = r * linear(h_before, w_n, b_n) if cell.name == "gru" else linear(r * h_before, w_n, b_n)
    return {"r": r, "z": z, "n": (a_n + inner).tanh()}
