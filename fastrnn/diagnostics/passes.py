"""One run of a module, taken apart: states and gates of every layer, direction and step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from ..autograd import layer
from ..cells import CELLS, Cell
from ..functional import are_indices, look_up
from ..modules import GRUCell, LSTMCell, RNNCell
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


class Layout(NamedTuple):
    """How a module is built; a cell is a single layer."""

    cell: Cell
    layers: int
    directions: int
    batch_first: bool


def layout_of(module: nn.Module) -> Layout:
    """The layout of an RNN, LSTM, GRU or of a cell.

    Raises:
        TypeError: the module is another.
    """
    if isinstance(module, nn.RNNBase) and module.mode in _CELL_OF_MODE:
        cell = _CELL_OF_MODE[module.mode]
        return Layout(cell, module.num_layers, 1 + module.bidirectional, module.batch_first)
    name = None
    if isinstance(module, nn.RNNCell | RNNCell):
        name = f"rnn_{module.nonlinearity}"
    elif isinstance(module, nn.LSTMCell | LSTMCell):
        name = "lstm"
    elif isinstance(module, nn.GRUCell | GRUCell):
        name = "gru" if getattr(module, "reset_after", True) else "gru_reset_before"
    if name in CELLS:
        return Layout(CELLS[name], 1, 1, False)
    kind = type(module).__name__
    for path, part in module.named_modules() if isinstance(module, nn.Module) else ():
        if path and isinstance(part, nn.RNNBase | nn.RNNCellBase):
            kind += f"; of a model pass the layer itself, here .{path}"
            break
    raise TypeError(
        f"module: expected an RNN, LSTM, GRU or a cell of fastrnn or torch.nn, got {kind}"
    )


def cell_of(module: nn.Module) -> Cell:
    """The cell of an RNN, LSTM, GRU or of a cell module.

    Raises:
        TypeError: the module is another.
    """
    return layout_of(module).cell


def weights_of(module: nn.Module, layer: int = 0, direction: int = 0) -> Weights:
    """Weights of one pass, as they are now.

    Raises:
        TypeError: the module is no RNN, LSTM, GRU or cell.
        IndexError: it has no such layer or direction.
    """
    layout = layout_of(module)
    if not 0 <= layer < layout.layers:
        raise IndexError(f"layer: expected 0 to {layout.layers - 1}, got {layer}")
    if not 0 <= direction < layout.directions:
        raise IndexError(f"direction: expected 0 to {layout.directions - 1}, got {direction}")
    suffix = f"_l{layer}" + "_reverse" * direction if isinstance(module, nn.RNNBase) else ""

    def get(name: str) -> Tensor | None:
        return getattr(module, name + suffix, None)

    w_ih, w_hh = get("weight_ih"), get("weight_hh")
    assert w_ih is not None
    assert w_hh is not None
    return Weights(w_ih, w_hh, get("bias_ih"), get("bias_hh"), get("weight_hr"))


def widened(tensor: Tensor) -> Tensor:
    """float32 of a half-precision tensor: for what linear algebra does not compute in less."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


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

    x: ``(T, B, I)``, as ``time_major`` returns it. hx: in the module's form.

    ``W_ih x`` is computed apart and goes into the layer through an identity: its gradient is then
    that of the pre-activations, which backpropagation through time has inside.
    """
    cell, layers, directions, _ = layout_of(module)
    h0, c0 = _initial(hx, module)
    for k in range(layers):
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


def time_major(module: nn.Module, input: Tensor) -> tuple[Tensor, bool]:
    """``(T, B, I)`` from a module's own layout, one-hot where it holds integers.

    Returns:
        the steps, and whether the input lacks the dimension of the batch.

    Raises:
        TypeError: the input is no tensor.
        ValueError: it has another number of dimensions.
        IndexError: an integer is none from 0 to I - 1.
        RuntimeError: it has another number of features.
    """
    if isinstance(input, PackedSequence):
        raise TypeError(
            "input: expected a Tensor, got a PackedSequence; rows of one length can be looked at, "
            "each length in a call of its own"
        )
    if not isinstance(input, Tensor):
        raise TypeError(f"input: expected a Tensor, got {type(input).__name__}")
    w_ih = weights_of(module).w_ih.detach()
    features = w_ih.shape[1]
    if are_indices(input, 2):
        # With the identity as W_ih, the look-up of W_ih x gives the one-hot vectors themselves.
        identity = torch.eye(features, dtype=w_ih.dtype, device=input.device)
        input, _ = look_up(input, [identity], 1, 1)
    if input.dim() not in (2, 3):
        raise ValueError(
            f"input: expected 2 or 3 dimensions, or 1 or 2 of integers, got {input.dim()}"
        )
    if input.shape[-1] != features:
        raise RuntimeError(f"input: expected {features} features, got {input.shape[-1]}")
    if input.dim() == 2:
        return input.unsqueeze(1), True
    return (input.transpose(0, 1) if layout_of(module).batch_first else input), False


def _initial(hx: State | None, module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """h0 and c0 ``(L*D, B, H)``."""
    if hx is None:
        return None, None
    has_cell_state = cell_of(module).has_cell_state
    if isinstance(hx, tuple) is not has_cell_state:
        expected = "a pair of tensors (h0, c0)" if has_cell_state else "a tensor"
        raise TypeError(f"hx: expected {expected}, got {type(hx).__name__}")

    def batched(state: Tensor) -> Tensor:
        if isinstance(module, nn.RNNCellBase):  # (B, H) or (H,)
            return state.reshape(1, -1, state.shape[-1])
        return state.unsqueeze(1) if state.dim() == 2 else state

    h0, c0 = hx if isinstance(hx, tuple) else (hx, None)
    return batched(h0), None if c0 is None else batched(c0)


@torch.no_grad()
def trace(module: nn.Module, input: Tensor, hx: State | None = None) -> list[Pass]:
    """Run a module and return states and gates of all its passes.

    Args:
        module: an RNN, LSTM, GRU or a cell of fastrnn or torch.nn. Its dropout is left out.
        input: ``(T, B, I)``, ``(B, T, I)`` if batch_first, or ``(T, I)``; or integers without the
            last dimension, which stand for one-hot vectors. No ``PackedSequence``.
        hx: initial states in the module's own form; None for zeros.

    Returns:
        one ``Pass`` for each direction of each layer, layer by layer.

    Raises:
        TypeError, ValueError, IndexError: not such a module or input.
        RuntimeError: sizes, dtypes or devices do not fit.
    """
    cell, _, directions, _ = layout_of(module)
    passes = []
    x, _ = time_major(module, input)
    for k, run in enumerate(run_layers(module, x, hx)):
        for d in range(directions):
            weights = weights_of(module, k, d)

            def part(tensor: Tensor | None, d: int = d) -> Tensor | None:
                return None if tensor is None else tensor.chunk(directions, -1)[d]

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
