"""What RNN, LSTM and GRU share: checks in torch's order and words, and who serves a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import has_torch_function
from torch.utils.checkpoint import checkpoint

from .. import _compat, backends
from ..backends.cpu import DIRECT_CELL, num_threads
from ..cells import CELLS, Cell
from ..functional import are_indices, sequence, zeros_of_packed
from . import _autocast
from ._dispatch import (
    TorchForward,
    leaf_of_fx,
    recorded,
    refuse_jit_script,
    refuse_jit_trace,
    seen_by_torch_function,
)
from ._from_torch import FromTorch

CELL_OF_MODE: dict[str, Cell] = {cell.torch_mode: cell for cell in CELLS.values()}

_DIRECT_CELL_OF_MODE = {mode: DIRECT_CELL[cell.name] for mode, cell in CELL_OF_MODE.items()}

#: Methods of torch's modules that a subclass may replace to check calls its own way.
_CHECKS = (
    "check_input",
    "check_forward_args",
    "check_hidden_size",
    "get_expected_hidden_size",
    "get_expected_cell_size",
    "permute_hidden",
)


def check_flag(name: str, value: object) -> bool:
    """``value`` if it is a bool, else torch's TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    return value


#: Key in a module's ``__dict__`` of packed weights that stay (``prepacked``); direct calls look for
#: it (``csrc/bind/call_run.cpp``).
PREPACKED = "_prepacked"


def without_prepacked(state: dict[str, Any]) -> dict[str, Any]:
    """The ``__dict__`` of a module for its copies: packed weights stay behind."""
    return {key: value for key, value in state.items() if key != PREPACKED}


_TORCH_METHODS = {
    getattr(module, name)
    for module in (nn.RNNBase, nn.LSTM)
    for name in _CHECKS
    if hasattr(module, name)
}


class SequenceModule(FromTorch, nn.RNNBase):
    """A stack of recurrent layers behind the interface of ``torch.nn.RNNBase``.

    Parameters, initial values, pickling and the check methods, which subclasses may override, are
    those of ``torch.nn.RNNBase``. ``mode`` decides the cell, as in torch.
    """

    #: Forward of torch's module of the same name, bound at import: ``torch.nn.LSTM`` may later be
    #: replaced by the very class that falls back on it.
    _torch_forward: ClassVar[TorchForward]
    #: What torch's module says of an input that is neither 2-D nor 3-D.
    _rank_message: ClassVar[str]
    #: Class attributes so that a state pickled by torch.nn, which lacks them, has the defaults.
    return_cell_states: bool = False
    recompute: bool = False
    #: Whether the class has the check methods of torch.
    _checks_as_torch: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = (getattr(cls, name, None) for name in _CHECKS)
        cls._checks_as_torch = all(check is None or check in _TORCH_METHODS for check in own)

    def __init__(self, mode: str, /, *args: Any, recompute: bool = False, **kwargs: Any) -> None:
        super().__init__(mode, *args, **kwargs)
        self.recompute = check_flag("recompute", recompute)

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        lengths: Tensor | Sequence[int] | None,
        reset: Tensor | None,
    ) -> Any:
        if reset is None:
            result = self._run_directly(input, hx, lengths)
            if result is not None:
                return result
        node = leaf_of_fx(self, input, hx, lengths=lengths, reset=reset)
        if node is not None:
            return node
        self._update_flat_weights()
        # Weights are read at each call, and never kept in another form: writes through .data,
        # numpy or another process go unnoticed by any cache.
        weights: list[Tensor] = self._flat_weights  # type: ignore[assignment]
        if isinstance(input, PackedSequence):
            x = input.data
            self._check_states_of_packed(input, hx)
        else:
            x = input
            rank = x.dim() + are_indices(x, 2)
            if rank not in (2, 3):
                raise ValueError(self._rank_message.format(rank))
        states = () if hx is None else self._states(hx)
        if has_torch_function((x, *states, *weights)):
            options = self._options(input, lengths, reset)
            if seen_by_torch_function((x, *states, *weights), options=options):
                return self._torch_forward(input, hx)
        dtypes = None
        dense = all(isinstance(w, Tensor) and w.layout is torch.strided for w in weights)
        mixed = any(isinstance(s, Tensor) and s.dtype != x.dtype for s in states)
        autocast = _autocast.casts(x, *states, *weights) and not _compat.is_exporting()
        if autocast or mixed or not dense or recorded():
            options = self._options(input, lengths, reset)
            if options is None:
                if autocast and dense:
                    dtypes = _autocast.dtypes(
                        CELL_OF_MODE[self.mode],
                        input,
                        states,
                        weights,
                        projected=self.proj_size > 0,
                        by_steps=isinstance(input, PackedSequence),
                    )
                if dtypes is None:
                    if self.recompute and not recorded():  # nobody records a backward
                        return checkpoint(self._torch_forward, input, hx, use_reentrant=False)
                    return self._torch_forward(input, hx)
            else:
                refuse_jit_trace(options)
        if isinstance(input, PackedSequence):
            return self._run_packed(input, hx, weights, lengths, reset, dtypes)

        for state in states:
            if state.dim() != rank:
                raise RuntimeError(self._state_rank_message(rank, states))
        x = self._described(x, 2)
        if rank == 3:
            self._check(x, hx, None)
        else:
            batched = tuple(state.unsqueeze(1) for state in states)
            hx_batched = hx if hx is None else batched if len(batched) == 2 else batched[0]
            self._check(x.unsqueeze(0 if self.batch_first else 1), hx_batched, None)
        output, hidden, cell_states = self._layers(input, states, weights, lengths, reset, dtypes)
        return (output, hidden, cell_states) if self.return_cell_states else (output, hidden)

    def _run_directly(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        lengths: Tensor | Sequence[int] | None,
    ) -> Any:
        """The result of a plain call that nothing but its caller looks at, or None."""
        direct = backends.direct()
        if direct is None or self.return_cell_states or not self._checks_as_torch:
            return None
        cell = _DIRECT_CELL_OF_MODE[self.mode]
        if type(input) is not PackedSequence:
            return direct.sequence(self.__dict__, input, hx, lengths, *cell, num_threads())
        result = None
        if lengths is None:
            result = direct.packed(self.__dict__, input, hx, *cell, num_threads())
        return result and (PackedSequence._make((result[0], *input[1:])), result[1])

    def _run_packed(
        self,
        input: PackedSequence,
        hx: Any,
        weights: list[Tensor],
        lengths: Tensor | Sequence[int] | None,
        reset: Tensor | None,
        dtypes: _autocast.Dtypes | None,
    ) -> Any:
        """States and reset come in the user's order of the rows, the layers want the sorted one."""
        x, batch_sizes, sorted_indices, unsorted_indices = input
        if batch_sizes.shape[0] == 0:
            raise IndexError("index 0 is out of bounds for dimension 0 with size 0")
        if hx is not None:
            hx = self.permute_hidden(hx, sorted_indices)
        tracing = torch.compiler.is_compiling()
        # torch's check of hx reads batch_sizes[0], a value that a trace does not know.
        self._check(
            self._described(x, 1), None if tracing and self._checks_as_torch else hx, batch_sizes
        )
        if sorted_indices is not None and isinstance(reset, Tensor) and reset.dim() == 2:
            rows = 0 if self.batch_first else 1
            if reset.shape[rows] == sorted_indices.shape[0]:  # else: refused further down
                reset = reset.index_select(rows, sorted_indices)

        states = () if hx is None else self._states(hx)
        if tracing and not states:
            states = (zeros_of_packed(input, weights, len(self._all_weights)),)
        in_order = PackedSequence(x, batch_sizes)
        output, hidden, cell_states = self._layers(
            in_order, states, weights, lengths, reset, dtypes
        )
        hidden = self.permute_hidden(hidden, unsorted_indices)

        def like_input(sequence: PackedSequence) -> PackedSequence:
            return PackedSequence(sequence.data, batch_sizes, sorted_indices, unsorted_indices)

        if self.return_cell_states:
            return like_input(output), hidden, tuple(like_input(c) for c in cell_states)
        return like_input(output), hidden

    def _layers(
        self,
        input: Tensor | PackedSequence,
        states: tuple[Tensor, ...],
        weights: list[Tensor],
        lengths: Tensor | Sequence[int] | None,
        reset: Tensor | None,
        dtypes: _autocast.Dtypes | None,
    ) -> tuple[Any, Any, tuple[Any, ...]]:
        """Output, last state in the form of ``hx``, cell states of each layer."""
        if dtypes is not None:
            input = _autocast.cast(input, dtypes.compute)
            states = tuple(state.to(dtypes.compute) for state in states)
            weights = [weight.to(dtypes.compute) for weight in weights]
        output, h_n, c_n, cell_states = sequence(
            CELL_OF_MODE[self.mode].name,
            input,
            weights,
            states[0] if states else None,
            states[1] if len(states) == 2 else None,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            dropout=self.dropout,
            training=self.training,
            lengths=lengths,
            reset=reset,
            return_cell_states=self.return_cell_states,
            recompute=self.recompute,
        )
        if dtypes is not None:
            output, h_n = _autocast.cast(output, dtypes.hidden), h_n.to(dtypes.hidden)
            c_n = None if c_n is None else c_n.to(dtypes.cell)
        return output, (h_n if c_n is None else (h_n, c_n)), cell_states

    def _described(self, x: Tensor, most_dims: int) -> Tensor:
        """What torch's checks are to look at: of numbers, the one-hot vectors they stand for."""
        if not are_indices(x, most_dims):
            return x
        weight: Tensor = self._flat_weights[0]  # type: ignore[assignment]
        return weight.new_empty(1).expand(*x.shape, self.input_size)

    def _check(self, input: Tensor, hx: Any, batch_sizes: Tensor | None) -> None:
        """torch's ``check_forward_args``, sparing zeros for states that are not given."""
        if hx is not None:
            self.check_forward_args(input, hx, batch_sizes)
            return
        if not (self._checks_as_torch and "check_forward_args" not in self.__dict__):
            self.check_forward_args(input, self._zeros(input, batch_sizes), batch_sizes)
            return
        self.check_input(input, batch_sizes)
        # With a given state its size would tell; a hidden_size changed later must not go unseen.
        width = self._flat_weights[1].shape[-1]  # type: ignore[union-attr]
        if width != (self.proj_size or self.hidden_size):
            raise RuntimeError(
                f"{self._flat_weights_names[1]}: expected {self.proj_size or self.hidden_size} "
                f"columns, the size of the hidden state of the module, got {width}"
            )

    def _check_states_of_packed(self, input: PackedSequence, hx: Any) -> None:
        """What has to hold before anything looks into ``hx``."""

    def _zeros(self, input: Tensor, batch_sizes: Tensor | None) -> Any:
        """The initial states that None stands for."""
        return input.new_zeros(self.get_expected_hidden_size(input, batch_sizes))

    def _states(self, hx: Any) -> tuple[Tensor, ...]:
        """The tensors of ``hx``."""
        return (hx,)

    def _state_rank_message(self, rank: int, states: tuple[Tensor, ...]) -> str:
        batched = "batched 3-D" if rank == 3 else "unbatched 2-D"
        return f"For {batched} input, hx should also be {rank}-D but got {states[0].dim()}-D tensor"

    def _options(
        self, input: Tensor | PackedSequence, lengths: object, reset: object
    ) -> str | None:
        """What this call wants that torch has no operator for, in words."""
        options = []
        packed = isinstance(input, PackedSequence)
        if are_indices(input.data if isinstance(input, PackedSequence) else input, 2 - packed):
            options.append("integer input")
        if lengths is not None:
            options.append("lengths")
        if reset is not None:
            options.append("reset")
        if self.return_cell_states:
            options.append("return_cell_states")
        if CELL_OF_MODE[self.mode].torch_name is None:
            options.append(f"mode {self.mode}")
        return ", ".join(options) or None

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        return f"{extra}, recompute=True" if self.recompute else extra

    def _slow_forward(self, *input: Any, **kwargs: Any) -> Any:
        """What calls forward while torch.jit traces.

        The exporter to ONNX that does so gives the defaults of all arguments by position, those of
        lengths and reset too, which have none.
        """
        if torch.onnx.is_in_onnx_export() and all(default is None for default in input[2:]):
            input = input[:2]
        return super()._slow_forward(*input, **kwargs)

    def __prepare_scriptable__(self) -> None:
        """What torch.jit.script asks for instead of a module that it cannot compile."""
        refuse_jit_script(type(self).__name__)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return without_prepacked(state)

    def flatten_parameters(self) -> None:
        """torch's own, for its fallback on GPUs; it does not know the modes torch lacks."""
        if CELL_OF_MODE[self.mode].torch_name is not None:
            super().flatten_parameters()

    def _update_flat_weights(self) -> None:
        """torch's own, preceded by a quick look for the common case of untouched Parameters."""
        parameters = self._parameters
        for ref, name in zip(self._flat_weight_refs, self._flat_weights_names, strict=True):
            weight = parameters.get(name)
            if weight is None or ref is None or ref() is not weight:
                super()._update_flat_weights()
                return
