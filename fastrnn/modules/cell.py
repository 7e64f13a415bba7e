"""RNNCell, LSTMCell and GRUCell: ``torch.nn``'s modules over one step, with more options.

Shapes in the docstrings: B batch rows, I ``input_size``, H ``hidden_size``; without B for an
unbatched input.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function

from .. import backends
from ..autograd import in_autocast, layer
from ..backends.cpu import DIRECT_CELL, num_threads
from ..cells import CELLS, NONLINEARITIES
from ..functional import are_indices, look_up
from ..problem import LayerInputs
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
from .base import check_flag, without_prepacked

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class CellModule(FromTorch, nn.RNNCellBase):
    """One step as a sequence of length 1.

    Parameters and their initial values are those of ``torch.nn.RNNCellBase``. What torch's module
    would refuse goes to its forward, which knows what to say.
    """

    #: Forward of torch's module of the same name, bound at import: ``torch.nn.LSTMCell`` may later
    #: be replaced by the very class that falls back on it.
    _torch_forward: ClassVar[TorchForward]

    def _step(
        self, cell: str, input: Tensor, h: Tensor | None, c: Tensor | None
    ) -> tuple[Tensor, Tensor | None] | None:
        """h and c (if the cell has one) after one step; None: the call is torch's.

        Raises (for cells that torch lacks):
            ValueError: a tensor is neither 1-D nor 2-D.
            RuntimeError: a size, dtype or device does not fit.
            TypeError: a tensor overrides torch functions.
        """
        indices = are_indices(input, 1)
        has_torch = CELLS[cell].torch_name is not None and not indices
        w_ih, w_hh, b_ih, b_hh = weights = self._weights()
        if has_torch_function((input, h, c, *weights)) and seen_by_torch_function(
            (input, h, c, *weights),
            options=None if has_torch else "integer input" if indices else cell,
        ):
            return None
        rank = input.dim() + indices
        if indices:
            refuse_jit_trace("integer input")
        if has_torch:
            if rank not in (1, 2) or recorded():
                return None
            if in_autocast(input):
                return self._step_in_autocast(cell, input, h, c)
            state_shape = (*input.shape[:-1], w_hh.shape[-1])
            if (
                input.shape[-1] != w_ih.shape[-1]
                or not _is_like(w_ih, input)
                or not _is_like(w_hh, input)
                or not _is_state(h, state_shape, input)
                or not _is_state(c, state_shape, input)
                or self.hidden_size == 0
                or (b_ih is None) is not (b_hh is None)
            ):
                if rank == 1 and CELLS[cell].gates > 1:
                    _refuse_one_by_one(h, c)
                return None
        else:
            self._check_rank("input", rank)
            if h is not None:
                self._check_rank("hidden", h.dim())

        add_dims = _from_vector if rank == 1 else _from_matrix
        given = [weight for weight in weights if weight is not None]
        x = input.reshape(1, -1) if indices else add_dims(input)
        if indices:
            x, given = look_up(x, given, len(given), 1)
        outputs = layer(
            cell,
            LayerInputs(
                x=x,
                h0=None if h is None else add_dims(h),
                c0=None if c is None else add_dims(c),
                weights=given,
                lengths=None,
                batch_sizes=None,
                reset=None,
            ),
            directions=1,
            keep_cell_states=False,
        )
        # Copies of batched states: detach_() refuses views, and loops over cells use it.
        remove_dims = torch.flatten if rank == 1 else _without_first
        c_n = outputs.c_n
        return remove_dims(outputs.h_n), None if c_n is None else remove_dims(c_n)

    def _step_in_autocast(
        self, cell: str, input: Tensor, h: Tensor | None, c: Tensor | None
    ) -> tuple[Tensor, Tensor | None] | None:
        """``_step`` of a transformed call; None: torch's, whose roundings autocast decides."""
        states = tuple(state for state in (h, c) if isinstance(state, Tensor))
        weights = [weight for weight in self._weights() if weight is not None]
        if not backends.transformed():
            return None
        dtypes = _autocast.dtypes(CELLS[cell], input, states, weights, by_steps=True)
        if dtypes is None:
            return None
        with torch.autocast(input.device.type, enabled=False):
            h, c = (
                state.to(dtypes.compute) if isinstance(state, Tensor) else state for state in (h, c)
            )
            step = self._step(cell, input.to(dtypes.compute), h, c)
        if step is None:
            return None
        h, c = step
        return h.to(dtypes.hidden), None if c is None else c.to(dtypes.cell)

    def _step_directly(self, cell: str, input: Tensor, hx: Any) -> Any:
        """The result of a plain call that nothing but its caller looks at, or None.

        Of a call that torch.fx traces, its node.
        """
        result, direct = None, backends.direct()
        if direct is not None:
            result = direct.step(self.__dict__, input, hx, *DIRECT_CELL[cell], num_threads())
        return leaf_of_fx(self, input, hx) if result is None else result

    def _weights(self) -> Weights:
        """The weights as they are now, without the search of ``Module.__getattr__`` if possible."""
        own: dict[str, Any] = self._parameters
        try:
            return own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"]
        except KeyError:  # reparametrized, or replaced by plain tensors
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh

    def __prepare_scriptable__(self) -> None:
        """What torch.jit.script asks for instead of a module that it cannot compile."""
        refuse_jit_script(type(self).__name__)

    def __getstate__(self) -> dict[str, Any]:
        return without_prepacked(self.__dict__)

    def _check_rank(self, name: str, rank: int) -> None:
        if rank not in (1, 2):
            cell = type(self).__name__
            raise ValueError(f"{cell}: Expected {name} to be 1D or 2D, got {rank}D instead")


def _is_like(tensor: Tensor, input: Tensor) -> bool:
    """Whether both are dense, of the same dtype and on the same device."""
    return (
        tensor.layout is input.layout is torch.strided
        and tensor.dtype == input.dtype
        and tensor.device == input.device
    )


def _is_state(state: Tensor | None, shape: tuple[int, ...], input: Tensor) -> bool:
    return state is None or (
        isinstance(state, Tensor) and state.shape == shape and _is_like(state, input)
    )


def _refuse_one_by_one(*states: Tensor | None) -> None:
    """Of all matrices that are no state of an unbatched input, torch reads this out of bounds."""
    for k, state in enumerate(states):
        if isinstance(state, Tensor) and state.shape == (1, 1):
            raise RuntimeError(f"hidden{k}: expected a vector with an unbatched input, got (1, 1)")


def _from_vector(tensor: Tensor) -> Tensor:
    return tensor[None, None]


def _from_matrix(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0)


def _without_first(tensor: Tensor) -> Tensor:
    if backends.transformed():  # torch has no batching rule for squeeze_copy
        return tensor.squeeze(0).clone()
    return torch.squeeze_copy(tensor, 0)


class RNNCell(CellModule):
    r"""One step of a vanilla recurrence (Elman 1990), in place of ``torch.nn.RNNCell``.

    .. math:: h' = g(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    Args:
        input_size: I.
        hidden_size: H; 0 is allowed.
        bias: whether there are ``b_ih`` and ``b_hh``.
        nonlinearity: g, ``'tanh'`` or ``'relu'``, and, beyond torch.nn, ``'sigmoid'`` or
            ``'identity'``. Read at each call.
        device, dtype: of the parameters.

    Parameters: ``weight_ih (H, I)``, ``weight_hh (H, H)``, ``bias_ih`` and ``bias_hh (H,)``.
    """

    __constants__ = [*nn.RNNCellBase.__constants__, "nonlinearity"]  # noqa: RUF012
    _torch_class = nn.RNNCell
    _torch_forward: ClassVar[TorchForward] = nn.RNNCell.forward

    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next hidden state.

        Args:
            input: ``(B, I)`` or ``(I,)``; or (beyond torch.nn) integers ``(B,)`` or ``()`` from 0
                to I - 1, which stand for one-hot vectors.
            hx: ``(B, H)`` or ``(H,)``; None for zeros.

        Returns:
            ``(B, H)`` or ``(H,)``.

        Raises:
            ValueError: a tensor is neither 1-D nor 2-D.
            RuntimeError: a size, dtype or device does not fit; the nonlinearity is unknown.
        """
        step = None
        if self.nonlinearity in NONLINEARITIES:
            cell = f"rnn_{self.nonlinearity}"
            result: Tensor | None = self._step_directly(cell, input, hx)
            if result is not None:
                return result
            step = self._step(cell, input, hx, None)
        if step is None:
            from_torch: Tensor = self._torch_forward(input, hx)
            return from_torch
        return step[0]


class LSTMCell(CellModule):
    r"""One step of a long short-term memory, in place of ``torch.nn.LSTMCell``.

    .. math::
        i, f, o &= \sigma(W_{ih} x + b_{ih} + W_{hh} h + b_{hh}) \\
        g &= \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh}) \\
        c' &= f \odot c + i \odot g \\
        h' &= o \odot \tanh(c')

    each gate with its own rows of the weights, in the order i, f, g, o.

    Args:
        input_size: I.
        hidden_size: H; 0 is allowed.
        bias: whether there are ``b_ih`` and ``b_hh``.
        device, dtype: of the parameters.

    Parameters: ``weight_ih (4H, I)``, ``weight_hh (4H, H)``, ``bias_ih`` and ``bias_hh (4H,)``.
    """

    _torch_class = nn.LSTMCell
    _torch_forward: ClassVar[TorchForward] = nn.LSTMCell.forward

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next hidden and cell state.

        Args:
            input: ``(B, I)`` or ``(I,)``; or (beyond torch.nn) integers ``(B,)`` or ``()`` from 0
                to I - 1, which stand for one-hot vectors.
            hx: h and c, each ``(B, H)`` or ``(H,)``; None for zeros.

        Returns:
            h' and c', each ``(B, H)`` or ``(H,)``.

        Raises:
            ValueError: a tensor is neither 1-D nor 2-D.
            RuntimeError: a size, dtype or device does not fit; hx has not two items.
            TypeError: hx is a tensor.
        """
        result: tuple[Tensor, Tensor] | None = self._step_directly("lstm", input, hx)
        if result is not None:
            return result
        step = None
        if hx is None:
            step = self._step("lstm", input, None, None)
        elif isinstance(hx, (tuple, list)) and len(hx) == 2 and all(s is not None for s in hx):
            step = self._step("lstm", input, hx[0], hx[1])
        if step is None:
            from_torch: tuple[Tensor, Tensor] = self._torch_forward(input, hx)
            return from_torch
        h, c = step
        assert c is not None
        return h, c


class GRUCell(CellModule):
    r"""One step of a gated recurrent unit, in both forms, in place of ``torch.nn.GRUCell``.

    .. math::
        r, z &= \sigma(W_{ih} x + b_{ih} + W_{hh} h + b_{hh}) \\
        n &= \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \\
        h' &= (1 - z) \odot n + z \odot h

    each gate with its own rows of the weights, in the order r, z, n.

    Args:
        input_size: I.
        hidden_size: H; 0 is allowed.
        bias: whether there are ``b_ih`` and ``b_hh``.
        device, dtype: of the parameters.
        reset_after: (beyond torch.nn, keyword only) False for the form of Cho et al. 2014, see
            ``fastrnn.GRU``. Read at each call.

    Parameters: ``weight_ih (3H, I)``, ``weight_hh (3H, H)``, ``bias_ih`` and ``bias_hh (3H,)``.
    """

    _torch_class = nn.GRUCell
    _torch_forward: ClassVar[TorchForward] = nn.GRUCell.forward
    #: Class attribute so that a state pickled by torch.nn, which lacks it, has the default.
    reset_after: bool = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        self.reset_after = check_flag("reset_after", reset_after)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next hidden state; arguments and errors are those of ``RNNCell``."""
        cell = "gru" if self.reset_after else "gru_reset_before"
        result: Tensor | None = self._step_directly(cell, input, hx)
        if result is not None:
            return result
        step = self._step(cell, input, hx, None)
        if step is None:
            from_torch: Tensor = self._torch_forward(input, hx)
            return from_torch
        return step[0]

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        return extra if self.reset_after else f"{extra}, reset_after=False"
