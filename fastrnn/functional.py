"""Recurrent layers as functions: ``rnn``, ``lstm`` and ``gru``.

Shapes: T steps, B batch rows, I input features, H hidden units, R output features (H, or
``proj_size``), L layers, D directions (1, or 2 when bidirectional).

All three take

* ``input``: ``(T, B, I)``; ``(B, T, I)`` with ``batch_first``; ``(T, I)`` unbatched; or a
  ``PackedSequence``. Without the last dimension, in int64 or int32: numbers from 0 to I - 1, which
  stand for the one-hot vectors of size I. Columns of ``weight_ih`` are then looked up instead of
  multiplied, forward and backward, but for very few. Beyond ``lengths`` too they are from 0 to
  I - 1.
* ``weights``: the flat sequence of a module's parameters in torch's order: layer by layer, and in
  a layer direction by direction, ``weight_ih (G*H, I)``, ``weight_hh (G*H, R)``, then ``bias_ih``
  and ``bias_hh (G*H,)`` if there are biases, then ``weight_hr (R, H)`` if there is a projection.
* ``hx``: the initial state ``(L*D, B, R)`` (``lstm``: a pair with ``(L*D, B, H)``), None for zeros.
* ``lengths``: ``(B,)`` integers from 0 to T. Row b of a padded batch ends after ``lengths[b]``
  steps: outputs beyond are 0, the last state is that of the last valid step, the reverse
  direction starts there. What the input holds beyond is never read into a result.
* ``reset``: boolean ``(T, B)`` (``(B, T)`` with batch_first, ``(T,)`` unbatched): where True, the
  state that enters step t is replaced by zeros, as at the first step of an episode. The reverse
  direction drops the state it carries from t + 1 into t at the same places. For a PackedSequence
  the rows are in the user's order.
* ``dropout`` on the outputs of all layers but the last, while ``training``.
* ``recompute``: keep nothing for backward but the input of each layer, 1 float per unit and step
  instead of 5 more for LSTM, 4 for GRU, 1 for a vanilla layer; backward runs forward again. The
  same numbers, in up to 1.4 times the time.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import onnx_export
from .autograd import layer
from .cells import NONLINEARITIES
from .problem import LayerInputs, LayerOutputs, is_concrete

Output = Tensor | PackedSequence

_INDEX_DTYPES = (torch.int64, torch.int32)
#: Of up to so many columns of weight_ih a product with one-hot vectors costs no more than looking
#: one up for each number and adding up its gradient, which writes and reads all gates once more.
FEW_COLUMNS = 64


def lstm(
    input: Output,
    weights: Sequence[Tensor],
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    return_cell_states: bool = False,
    recompute: bool = False,
) -> (
    tuple[Output, tuple[Tensor, Tensor]] | tuple[Output, tuple[Tensor, Tensor], tuple[Output, ...]]
):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

    ``i, f, o = sigmoid(...)``, ``g = tanh(...)`` of ``W_ih x + b_ih + W_hh h + b_hh``;
    ``c' = f c + i g``; ``h' = o tanh(c')``, or ``W_hr (o tanh(c'))`` with a projection (Sak et al.
    2014). Same numbers as ``torch.nn.LSTM``.

    Returns:
        output, ``(h_n, c_n)`` and, with ``return_cell_states``, a tuple with the cell states of
        every layer, each ``(T, B, D*H)`` in the layout of the output.

    Raises:
        RuntimeError, ValueError, TypeError: see ``Problem.of``; the message names the argument,
            what was expected and what came.
    """
    if hx is not None and (not isinstance(hx, tuple | list) or len(hx) != 2):
        raise TypeError(f"hx: expected a pair of tensors (h0, c0), got {type(hx).__name__}")
    h0, c0 = (None, None) if hx is None else hx
    output, h_n, c_n, cell_states = sequence(
        "lstm",
        input,
        weights,
        h0,
        c0,
        num_layers=num_layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        dropout=dropout,
        training=training,
        lengths=lengths,
        reset=reset,
        return_cell_states=return_cell_states,
        recompute=recompute,
    )
    assert c_n is not None
    return (output, (h_n, c_n), cell_states) if return_cell_states else (output, (h_n, c_n))


def gru(
    input: Output,
    weights: Sequence[Tensor],
    hx: Tensor | None = None,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    reset_after: bool = True,
    recompute: bool = False,
) -> tuple[Output, Tensor]:
    """Gated recurrent unit, in both forms of the literature.

    ``r, z = sigmoid(...)``; ``reset_after=True``, as ``torch.nn.GRU`` and cuDNN:
    ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``; ``reset_after=False``, as Cho et al. 2014:
    ``n = tanh(W_in x + b_in + W_hn (r h) + b_hn)``; ``h' = (1 - z) n + z h``. Texts that write
    ``h' = (1 - z) h + z n`` have the roles of z and 1 - z exchanged: negate the rows of z in
    weights and biases to carry one over to the other.

    Returns:
        output and h_n.

    Raises:
        RuntimeError, ValueError, TypeError: see ``Problem.of``.
    """
    output, h_n, _, _ = sequence(
        "gru" if reset_after else "gru_reset_before",
        input,
        weights,
        hx,
        None,
        num_layers=num_layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        dropout=dropout,
        training=training,
        lengths=lengths,
        reset=reset,
        recompute=recompute,
    )
    return output, h_n


def rnn(
    input: Output,
    weights: Sequence[Tensor],
    hx: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Output, Tensor]:
    """Vanilla recurrence ``h' = g(W_ih x + b_ih + W_hh h + b_hh)`` (Elman 1990).

    g is ``nonlinearity``: tanh, relu, sigmoid or identity. Same numbers as ``torch.nn.RNN``.

    Returns:
        output and h_n.

    Raises:
        RuntimeError, ValueError, TypeError: see ``Problem.of``; ValueError also for an unknown
            nonlinearity.
    """
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(
            f"nonlinearity: expected one of {', '.join(NONLINEARITIES)}, got {nonlinearity!r}"
        )
    output, h_n, _, _ = sequence(
        f"rnn_{nonlinearity}",
        input,
        weights,
        hx,
        None,
        num_layers=num_layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        dropout=dropout,
        training=training,
        lengths=lengths,
        reset=reset,
        recompute=recompute,
    )
    return output, h_n


def sequence(
    cell: str,
    input: Output,
    weights: Sequence[Tensor],
    h0: Tensor | None,
    c0: Tensor | None,
    *,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    lengths: Tensor | Sequence[int] | None,
    reset: Tensor | None,
    return_cell_states: bool = False,
    recompute: bool = False,
) -> tuple[Output, Tensor, Tensor | None, tuple[Output, ...]]:
    """A stack of layers of any cell: what the functions above and the modules share.

    Brings every layout to the time-major one of a layer, and the results back.

    Returns:
        output, h_n, c_n (None for a cell without) and the cell states of each layer.
    """
    directions = 2 if bidirectional else 1
    if num_layers < 1:
        raise ValueError(f"num_layers: expected 1 or more, got {num_layers}")
    _check_probability("dropout", dropout)
    _check_tensor("h0", h0)
    _check_tensor("c0", c0)
    _check_tensor("reset", reset, "tensor of torch.bool")
    packed = input if isinstance(input, PackedSequence) else None
    x = input.data if isinstance(input, PackedSequence) else input
    if not isinstance(x, Tensor):
        raise TypeError(f"input: expected a Tensor or a PackedSequence, got {type(x).__name__}")
    indices = are_indices(x, 1 if packed is not None else 2)
    rank = x.dim() + indices
    unbatched = packed is None and rank == 2
    if packed is None and rank not in (2, 3):
        expected = "1 or 2 dimensions of numbers" if indices else "2 or 3 dimensions"
        raise ValueError(f"input: expected {expected}, got {x.dim()}")
    batch_sizes = None
    if packed is not None:
        batch_sizes = packed.batch_sizes
        x = _without_surplus(x, batch_sizes)
        if batch_first and reset is not None and reset.dim() == 2:
            reset = reset.transpose(0, 1)
        if packed.sorted_indices is not None:
            h0 = _in_order_of_rows("h0", h0, packed.sorted_indices, 3)
            c0 = _in_order_of_rows("c0", c0, packed.sorted_indices, 3)
            reset = _in_order_of_rows("reset", reset, packed.sorted_indices, 2)
        if h0 is None and torch.compiler.is_compiling() and len(weights) > 1:
            h0 = zeros_of_packed(packed, weights, num_layers * directions)
    elif unbatched:
        x = x.unsqueeze(1)
        h0, c0, reset = (
            None if state is None else _add_batch(name, state, rank)
            for name, state, rank in (("h0", h0, 2), ("c0", c0, 2), ("reset", reset, 1))
        )
    elif batch_first:
        x = x.transpose(0, 1)
        if reset is not None and reset.dim() == 2:
            reset = reset.transpose(0, 1)
    if lengths is not None:
        lengths = _as_lengths(lengths, unbatched)

    per_layer, leftover = divmod(len(weights), num_layers)
    if leftover:
        raise RuntimeError(
            f"weights: expected the same number of tensors for each of {num_layers} layers, "
            f"got {len(weights)} in all"
        )
    for name, state in (("h0", h0), ("c0", c0)):
        if state is not None and (state.dim() != 3 or state.shape[0] != num_layers * directions):
            raise RuntimeError(
                f"{name}: expected 3 dimensions, the first of size {num_layers * directions} "
                f"(layers x directions), got shape {tuple(state.shape)}"
            )

    if indices:
        x, weights = look_up(x, weights, per_layer // directions, directions)
    layers: list[LayerOutputs] = []
    for k in range(num_layers):
        if k and dropout and training:
            x = torch.dropout(x, dropout, True)
        own = slice(k * directions, (k + 1) * directions)
        inputs = LayerInputs(
            x,
            None if h0 is None else h0[own],
            None if c0 is None else c0[own],
            weights[k * per_layer : (k + 1) * per_layer],
            lengths,
            batch_sizes,
            reset,
        )
        outputs = layer(
            cell,
            inputs,
            directions=directions,
            keep_cell_states=return_cell_states,
            recompute=recompute,
        )
        x = outputs.y
        layers.append(outputs)

    h_n, c_n = layers[0].h_n, layers[0].c_n
    if num_layers > 1:
        h_n = torch.cat([outputs.h_n for outputs in layers])
        c_n = None if c_n is None else torch.cat([o.c_n for o in layers if o.c_n is not None])
    cell_states = [o.cell_states for o in layers if o.cell_states is not None]
    if not return_cell_states:
        cell_states = []

    if packed is not None:
        if packed.unsorted_indices is not None:
            h_n = h_n.index_select(1, packed.unsorted_indices)
            c_n = None if c_n is None else c_n.index_select(1, packed.unsorted_indices)
        repack = (packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return (
            PackedSequence(x, *repack),
            h_n,
            c_n,
            tuple(PackedSequence(c, *repack) for c in cell_states),
        )

    def to_user(tensor: Tensor) -> Tensor:
        if unbatched:
            return tensor.squeeze(1)
        return tensor.transpose(0, 1) if batch_first else tensor

    if unbatched:
        h_n, c_n = h_n.squeeze(1), None if c_n is None else c_n.squeeze(1)
    return (
        to_user(x),
        h_n,
        c_n,
        tuple(to_user(c) for c in cell_states),
    )


def zeros_of_packed(packed: PackedSequence, weights: Sequence[Tensor], states: int) -> Tensor:
    """The initial h that None stands for: while a compiler traces, it tells the batch size.

    That of packed data is a value, ``batch_sizes[0]``, and every reading of a value is an unknown
    of its own in a trace; so it is read once at most, and not at all where a shape tells it.
    """
    order = packed.sorted_indices
    batch: Any = packed.batch_sizes[0].item() if order is None else order.shape[0]
    return weights[1].new_zeros(states, batch, weights[1].shape[-1])


def are_indices(x: object, most_dims: int) -> bool:
    """Whether an input holds numbers that stand for one-hot vectors, in so many dimensions."""
    return isinstance(x, Tensor) and x.dtype in _INDEX_DTYPES and x.dim() <= most_dims


def look_up(
    indices: Tensor, weights: Sequence[Tensor], per_direction: int, directions: int
) -> tuple[Tensor, list[Tensor]]:
    """Input and weights of a layer whose input is one-hot: ``W_ih x`` and a ``W_ih`` of no columns.

    On a CPU, the one-hot vectors themselves where ``W_ih`` has few columns.

    Args:
        indices: of any shape, values from 0 to I - 1.
        weights: of the layer, and then of any others.

    Returns:
        ``(*indices.shape, D*G*H)`` and the weights, see ``LayerInputs.x``; or, of few columns and
        for ONNX, ``(*indices.shape, I)`` and the weights as they came.

    Raises:
        IndexError: a value is not a column of weight_ih.
    """
    rows = indices.reshape(-1)
    columns = weights[0].shape[1] if weights and weights[0].dim() == 2 else 0
    exporting = onnx_export.is_exporting()
    known = rows.numel() > 0 and not rows.is_cuda and not exporting and is_concrete(rows)
    if known:
        low, high = (int(bound) for bound in torch.aminmax(rows))
        if low < 0 or high >= columns:
            raise IndexError(
                f"input: expected values from 0 to {columns - 1}, the columns of weight_ih, "
                f"got {low if low < 0 else high}"
            )
    if exporting or (known and columns <= FEW_COLUMNS):
        one_hot = torch.nn.functional.one_hot(indices.long(), columns)
        return one_hot.to(weights[0].dtype), list(weights)
    places = [d * per_direction for d in range(directions)]
    w_ih = [weights[place] for place in places]
    # Of few columns a copy with neighbouring values pays, of many only those that occur are read.
    if rows.numel() * 4 > columns:
        gates = torch.nn.functional.embedding(rows, torch.cat([w.t() for w in w_ih], dim=1))
    else:
        gates = torch.cat([w.index_select(1, rows).t() for w in w_ih], dim=1)
    left = list(weights)
    for place in places:
        left[place] = left[place][:, :0]
    return gates.view(*indices.shape, -1), left


def _check_probability(name: str, value: object) -> None:
    if type(value) is not float and not isinstance(value, numbers.Real | Tensor):
        raise TypeError(f"{name}: expected a number from 0 to 1, got {type(value).__name__}")


def _check_tensor(name: str, value: object, kind: str = "Tensor") -> None:
    if value is not None and not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a {kind}, got {type(value).__name__}")


def _in_order_of_rows(name: str, tensor: Tensor | None, order: Tensor, rank: int) -> Tensor | None:
    """What the user gave in the order of his rows, in that of the packed ones."""
    if tensor is None or tensor.dim() != rank:
        return tensor  # refused further on, in words for every layout
    if tensor.shape[1] != order.shape[0]:
        expected = (tensor.shape[0], order.shape[0], *tensor.shape[2:])
        raise RuntimeError(f"{name}: expected shape {expected}, got {tuple(tensor.shape)}")
    return tensor.index_select(1, order)


def _add_batch(name: str, state: Tensor, rank: int) -> Tensor:
    if state.dim() != rank:
        raise RuntimeError(
            f"{name}: expected {rank} dimensions with an unbatched input, got {state.dim()}"
        )
    return state.unsqueeze(1)


def _without_surplus(data: Tensor, batch_sizes: Tensor) -> Tensor:
    """Packed data without rows beyond the last step; torch ignores such rows too."""
    if batch_sizes.is_meta or torch.compiler.is_compiling() or batch_sizes.dtype != torch.int64:
        return data
    total = int(batch_sizes.sum())
    return data[:total] if 0 <= total < data.shape[0] else data


def _as_lengths(lengths: Tensor | Sequence[int], unbatched: bool) -> Tensor:
    """Lengths as a Problem wants them: ``(B,)`` int64 on the CPU."""
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.tensor(lengths, device="cpu")
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise TypeError(f"lengths: expected integers, got {lengths!r}") from error
    integral = not (lengths.dtype == torch.bool or lengths.dtype.is_floating_point)
    if (not integral or lengths.is_complex()) and lengths.numel():  # tensor([]) is of a float dtype
        raise TypeError(f"lengths: expected integers, got {lengths.dtype}")
    if unbatched and lengths.dim() == 0:
        lengths = lengths.unsqueeze(0)
    return lengths.to(device="cpu", dtype=torch.int64)
