"""One validated description of a layer call.

``Problem.of`` turns the arguments of a layer into a frozen ``Problem`` or raises an error that
names the argument, what was expected and what came. Allocation, the fake (meta) kernels, the
choice of a backend and the C++ structure are all filled from it; nothing below it checks again.

Sizes: T steps, B batch rows, I input features, H hidden units, R output features (H, or
``proj_size``), D directions, G gates, S saved values. A *row* is one time step of one sequence:
row ``t * B + b`` of a padded batch, row ``offset[t] + b`` of packed data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch

from .cells import CELLS, Cell

W = TypeVar("W")


class LayerInputs(NamedTuple):
    """The tensors of a layer call.

    x: ``(T, B, I)``, or ``(rows, I)`` with batch_sizes; where every w_ih is of shape ``(G*H, 0)``,
    x is ``W_ih x`` itself, the directions side by side: I = ``D*G*H``. h0: ``(D, B, R)`` or None
    for zeros. c0: ``(D, B, H)`` or None. weights: per direction ``w_ih (G*H, I), w_hh (G*H, R)``,
    then ``b_ih (G*H), b_hh (G*H)`` if there are biases, then ``w_hr (R, H)`` if there is a
    projection.
    lengths: ``(B,)`` int64 on the CPU, or None. batch_sizes: ``(T,)`` int64 on the CPU, the
    number of rows of each step of packed data, or None. reset: ``(T, B)`` bool or None.
    """

    x: Tensor
    h0: Tensor | None
    c0: Tensor | None
    weights: Sequence[Tensor]
    lengths: Tensor | None
    batch_sizes: Tensor | None
    reset: Tensor | None


class LayerOutputs(NamedTuple):
    """What a backend's forward returns; None for what the cell or the call does not have.

    y: ``(T, B, D*R)`` or ``(rows, D*R)``. h_n: ``(D, B, R)``. c_n: ``(D, B, H)``.
    cell_states: ``(T, B, D*H)`` or ``(rows, D*H)``, from kernels of ``Problem.state_dtype``.
    reserve: ``(D, rows, S*H [+ R])``, see
    ``Cell.saved``; with a projection the projected h follows the saved values of each row.
    """

    y: Tensor
    h_n: Tensor
    c_n: Tensor | None
    cell_states: Tensor | None
    reserve: Tensor | None


class LayerGrads(NamedTuple):
    """What a backend's backward returns; None for what was not asked for."""

    x: Tensor | None
    h0: Tensor | None
    c0: Tensor | None
    weights: list[Tensor | None]


class Problem(NamedTuple):
    """Sizes, dtype, device and options of one layer call. See the module for the letters."""

    cell: Cell
    dtype: torch.dtype
    device: torch.device
    steps: int
    batch: int
    rows: int
    input_size: int
    hidden_size: int
    output_size: int
    directions: int
    bias: bool
    packed: bool
    lengths: bool
    reset: bool
    keep_cell_states: bool
    training: bool
    x_is_gates: bool = False

    @property
    def projected(self) -> bool:
        return self.weights_per_direction in (3, 5)

    @property
    def weights_per_direction(self) -> int:
        return 2 + 2 * self.bias + (self.output_size != self.hidden_size)

    @property
    def state_dtype(self) -> torch.dtype:
        """Of cell states between the steps: what sums up over time is not kept in 16 bits."""
        narrow = self.dtype in (torch.bfloat16, torch.float16)
        return torch.float32 if narrow else self.dtype

    @property
    def reserve_width(self) -> int:
        """Floats kept for backward per row and direction, cell states apart."""
        width = len(self.cell.saved) * self.hidden_size
        return width + self.output_size if self.projected else width

    def direction_weights(self, weights: Sequence[W], direction: int) -> list[W]:
        """The part of a list with an entry per weight that belongs to one direction."""
        count = self.weights_per_direction
        return list(weights[direction * count : (direction + 1) * count])

    def sequence_shape(self, features: int) -> tuple[int, ...]:
        """Shape of a tensor with ``features`` values for every row, in the layout of the input."""
        return (self.rows, features) if self.packed else (self.steps, self.batch, features)

    def allocate(self, like: Tensor) -> LayerOutputs:
        """Uninitialised outputs of forward (fake tensors when ``like`` is fake)."""
        d, h, r = self.directions, self.hidden_size, self.output_size
        has_c = self.cell.has_cell_state
        new = like.new_empty
        wants_cell_states = has_c and (self.keep_cell_states or self.training)
        states = None
        if wants_cell_states:
            states = new(self.sequence_shape(d * h), dtype=self.state_dtype)
        return LayerOutputs(
            y=new(self.sequence_shape(d * r)),
            h_n=new((d, self.batch, r)),
            c_n=new((d, self.batch, h)) if has_c else None,
            cell_states=states,
            reserve=new((d, self.rows, self.reserve_width)) if self.training else None,
        )

    @staticmethod
    def of(
        cell: str,
        inputs: LayerInputs,
        *,
        directions: int,
        keep_cell_states: bool,
        training: bool,
    ) -> Problem:
        """Validate the arguments of a layer call.

        Raises:
            RuntimeError: a tensor has the wrong shape, dtype or device.
            ValueError: lengths or batch_sizes hold impossible values.
            TypeError: an argument is not a tensor, or reset is not boolean.
        """
        x, h0, c0, weights, lengths, batch_sizes, reset = inputs
        spec = CELLS.get(cell)
        if spec is None:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {cell!r}")
        packed = batch_sizes is not None
        if x.dim() != (2 if packed else 3):
            raise RuntimeError(f"input: expected {2 if packed else 3} dimensions, got {x.dim()}")
        if x.layout is not torch.strided:
            raise RuntimeError(f"input: expected a dense tensor (torch.strided), got {x.layout}")
        if not x.dtype.is_floating_point and not x.dtype.is_complex:
            raise RuntimeError(f"input: expected a floating point dtype, got {x.dtype}")

        per_direction, leftover = divmod(len(weights), directions)
        if leftover or not 2 <= per_direction <= 5:
            raise RuntimeError(
                f"weights: expected 2 to 5 tensors for each of {directions} directions, "
                f"got {len(weights)} in all"
            )
        bias = per_direction >= 4
        projected = per_direction in (3, 5)
        if projected and not spec.has_cell_state:
            raise RuntimeError(f"weights: a projection (weight_hr) is for lstm only, not {cell}")
        given: Sequence[object] = weights
        for index, weight in enumerate(given):
            if not isinstance(weight, Tensor):
                name = _weight_names(bias, projected)[index % per_direction]
                raise TypeError(f"{name}: expected a Tensor, got {type(weight).__name__}")
        gate_rows = weights[0].shape[0] if weights[0].dim() else 0
        hidden_size = gate_rows // spec.gates
        output_size = hidden_size
        if projected:
            w_hr = weights[per_direction - 1]
            output_size = w_hr.shape[0] if w_hr.dim() else 0
            if not 0 < output_size < hidden_size:
                raise RuntimeError(
                    f"weight_hr: expected 1 to {hidden_size - 1} rows, "
                    f"got shape {tuple(w_hr.shape)}"
                )

        if batch_sizes is not None:
            steps, batch = _check_batch_sizes(batch_sizes, x.shape[0], h0)
            rows = x.shape[0]
            if lengths is not None:
                raise ValueError("lengths: a PackedSequence carries its own, expected None")
        else:
            steps, batch = x.shape[0], x.shape[1]
            rows = steps * batch
        if steps == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")

        problem = Problem(
            cell=spec,
            dtype=x.dtype,
            device=x.device,
            steps=steps,
            batch=batch,
            rows=rows,
            input_size=x.shape[-1],
            hidden_size=hidden_size,
            output_size=output_size,
            directions=directions,
            bias=bias,
            packed=packed,
            lengths=lengths is not None,
            reset=reset is not None,
            keep_cell_states=keep_cell_states and spec.has_cell_state,
            training=training,
            x_is_gates=x.shape[-1] > 0 and weights[0].dim() == 2 and weights[0].shape[1] == 0,
        )
        if problem.x_is_gates and x.shape[-1] != directions * gate_rows:
            raise RuntimeError(
                f"input: expected {directions * gate_rows} features with a weight_ih of no "
                f"columns, those of all gates, got {x.shape[-1]}"
            )
        problem._check_devices((h0, c0), weights)
        problem._check_weights(weights)
        if h0 is not None:
            problem._check_tensor("h0", h0, (directions, batch, output_size))
        if c0 is not None:
            if not spec.has_cell_state:
                raise RuntimeError(f"c0: {cell} has no cell state, expected None")
            problem._check_tensor("c0", c0, (directions, batch, hidden_size))
        if lengths is not None:
            _check_lengths(lengths, steps, batch, x)
        if reset is not None:
            problem._check_reset(reset)
        return problem

    def _check_tensor(
        self, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None
    ) -> None:
        if tensor.shape != shape:
            raise RuntimeError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != (dtype or self.dtype):
            if dtype not in (None, self.dtype):
                raise RuntimeError(f"{name}: expected {dtype}, got {tensor.dtype}")
            raise RuntimeError(
                f"{name}: expected {self.dtype}, the dtype of the input, got {tensor.dtype}"
            )
        if tensor.device != self.device:
            raise RuntimeError(
                f"{name}: expected device {self.device}, that of the input, got {tensor.device}"
            )

    def _check_devices(self, states: Sequence[Tensor | None], weights: Sequence[Tensor]) -> None:
        """In torch's order and words."""
        for kind, tensors in (("hidden", states), ("parameter", weights)):
            for tensor in tensors:
                if tensor is not None and tensor.device != self.device:
                    raise RuntimeError(
                        f"Input and {kind} tensors are not at the same device, found input tensor "
                        f"at {self.device} and {kind} tensor at {tensor.device}"
                    )

    def _check_weights(self, weights: Sequence[Tensor]) -> None:
        gate_rows = self.cell.gates * self.hidden_size
        shapes: list[tuple[int, ...]] = [
            (gate_rows, 0 if self.x_is_gates else self.input_size),
            (gate_rows, self.output_size),
        ]
        if self.bias:
            shapes += [(gate_rows,), (gate_rows,)]
        if self.projected:
            shapes += [(self.output_size, self.hidden_size)]
        for index, weight in enumerate(weights):
            shape = shapes[index % len(shapes)]
            if weight.shape != shape or weight.dtype != self.dtype:
                name = _weight_names(self.bias, self.projected)[index % len(shapes)]
                suffix = "_reverse" if index >= len(shapes) else ""
                self._check_tensor(f"{name}{suffix}", weight, shape)

    def check_backward(
        self, saved: Sequence[Tensor | None], grads: Sequence[Tensor | None]
    ) -> None:
        """Validate what a backward is given beside the inputs: saved tensors and gradients.

        Args:
            saved: cell_states and reserve; neither, if forward is to run again.
            grads: of y, h_n, c_n and cell_states.

        Raises:
            RuntimeError: one is missing, or has the wrong shape, dtype or device.
        """
        d, h, r = self.directions, self.hidden_size, self.output_size
        has_c = self.cell.has_cell_state
        states = self.sequence_shape(d * h)
        kept = any(tensor is not None for tensor in saved)
        expected = (
            ("cell_states", saved[0], states, has_c and kept),
            ("reserve", saved[1], (d, self.rows, self.reserve_width), kept),
            ("grad_y", grads[0], self.sequence_shape(d * r), True),
            ("grad_h_n", grads[1], (d, self.batch, r), True),
            ("grad_c_n", grads[2], (d, self.batch, h), False),
            ("grad_cell_states", grads[3], states, False),
        )
        for name, tensor, shape, required in expected:
            if tensor is not None and (required or (has_c and name.startswith("grad"))):
                dtype = self.state_dtype if name.endswith("cell_states") else self.dtype
                self._check_tensor(name, tensor, shape, dtype)
            elif required:
                raise RuntimeError(f"{name}: expected shape {shape}, got None")

    def _check_reset(self, reset: Tensor) -> None:
        if not isinstance(reset, Tensor):
            raise TypeError(f"reset: expected a tensor of torch.bool, got {type(reset).__name__}")
        if reset.dtype != torch.bool:
            raise TypeError(f"reset: expected dtype torch.bool, got {reset.dtype}")
        if reset.shape != (self.steps, self.batch):
            raise RuntimeError(
                f"reset: expected shape {(self.steps, self.batch)}, one flag for each step of each "
                f"row, got {tuple(reset.shape)}"
            )
        if reset.device != self.device:
            raise RuntimeError(
                f"reset: expected device {self.device}, that of the input, got {reset.device}"
            )


def _weight_names(bias: bool, projected: bool) -> list[str]:
    """Names of the weights of a direction, in order."""
    names = ["weight_ih", "weight_hh"]
    return names + ["bias_ih", "bias_hh"] * bias + ["weight_hr"] * projected


def is_concrete(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be read now: not while tracing, nor inside vmap."""
    if torch.compiler.is_compiling() or tensor.is_meta or _is_fake(tensor):
        return False
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return False
        tensor = _functorch.get_unwrapped(tensor)
    return True


def _is_fake(tensor: Tensor) -> bool:
    if type(tensor) is Tensor or type(tensor) is torch.nn.Parameter:
        return False
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def _check_lengths(lengths: Tensor, steps: int, batch: int, x: Tensor) -> None:
    readable = lengths.device.type == "cpu" or (lengths.is_meta and x.is_meta)
    if lengths.dtype != torch.int64 or not readable:
        raise TypeError(
            f"lengths: expected torch.int64 on the CPU, got {lengths.dtype} on {lengths.device}"
        )
    if lengths.shape != (batch,):
        raise RuntimeError(
            f"lengths: expected shape {(batch,)}, one length for each row, "
            f"got {tuple(lengths.shape)}"
        )
    if batch and is_concrete(lengths):
        low, high = (int(bound) for bound in torch.aminmax(lengths))
        if low < 0 or high > steps:
            raise ValueError(
                f"lengths: expected values from 0 to {steps}, the number of steps of the input, "
                f"got {low if low < 0 else high}"
            )


def _check_batch_sizes(batch_sizes: Tensor, rows: int, h0: Tensor | None) -> tuple[int, int]:
    """Number of steps and batch size of packed data.

    While tracing, when values cannot be read, h0 tells the batch size.
    """
    if batch_sizes.dtype != torch.int64 or batch_sizes.device.type not in ("cpu", "meta"):
        raise RuntimeError(
            f"batch_sizes: expected torch.int64 on the CPU, "
            f"got {batch_sizes.dtype} on {batch_sizes.device}"
        )
    if batch_sizes.dim() != 1:
        raise RuntimeError(f"batch_sizes: expected 1 dimension, got {batch_sizes.dim()}")
    steps = batch_sizes.shape[0]
    if steps == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if h0 is not None and h0.dim() == 3 and not is_concrete(batch_sizes):
        return steps, h0.shape[1]
    batch: int = batch_sizes[0].item()  # type: ignore[assignment]  # a symbol, while tracing
    if is_concrete(batch_sizes):
        total = int(batch_sizes.sum())
        if total != rows:
            raise RuntimeError(
                f"batch_sizes: expected a sum of {rows}, the rows of the data, got {total}"
            )
        if int(batch_sizes.min()) <= 0:
            raise RuntimeError("batch_sizes: expected positive values, got one that is not")
        if steps > 1 and bool((batch_sizes[1:] > batch_sizes[:-1]).any()):
            raise RuntimeError(
                "batch_sizes: expected values that do not increase, got some that do"
            )
    return steps, batch
