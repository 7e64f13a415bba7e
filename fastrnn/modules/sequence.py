"""RNN, LSTM and GRU: ``torch.nn``'s modules over whole sequences, with more options.

Shapes in the docstrings: T steps, B batch rows, I ``input_size``, H ``hidden_size``, R output
features (H, or ``proj_size``), L ``num_layers``, D directions (2 if bidirectional, else 1),
G gates (RNN 1, GRU 3, LSTM 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..cells import NONLINEARITIES
from ._dispatch import TorchForward
from .base import SequenceModule, check_flag

Lengths = Tensor | Sequence[int]


def _refuse_proj_size(kwargs: dict[str, Any]) -> None:
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


class RNN(SequenceModule):
    r"""Vanilla recurrent layers (Elman 1990), in place of ``torch.nn.RNN``.

    .. math:: h_t = g(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    with g the ``nonlinearity``. Layer k > 0 reads the outputs of layer k - 1, of both directions,
    through dropout while training.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the hidden state.
        num_layers: L.
        nonlinearity: ``'tanh'`` or ``'relu'``, and, beyond torch.nn, ``'sigmoid'`` or
            ``'identity'``. ``mode`` is ``'RNN_TANH'``, ..., ``'RNN_IDENTITY'``.
        bias: whether there are ``b_ih`` and ``b_hh``.
        batch_first: inputs and outputs are ``(B, T, ...)``; states stay ``(L*D, B, H)``.
        dropout: probability of an element of a layer's output (but the last's) to be zeroed.
        bidirectional: a second set of weights reads the sequence from its end.
        device, dtype: of the parameters.
        recompute: (beyond torch.nn, keyword only) keep nothing for backward but the input of each
            layer, which backward runs forward again from: the same numbers, memory for time. See
            ``fastrnn.functional``.

    Parameters, for each layer k, and again with the suffix ``_reverse`` if bidirectional:
    ``weight_ih_l{k} (H, I or D*H)``, ``weight_hh_l{k} (H, H)``, ``bias_ih_l{k}`` and
    ``bias_hh_l{k} (H,)``, drawn from ``U(-1/sqrt(H), 1/sqrt(H))`` exactly as torch.nn does.

    Raises:
        ValueError, TypeError: at construction, as torch.nn.

    Example::

        rnn = fastrnn.RNN(10, 20, num_layers=2, nonlinearity="relu")
        output, h_n = rnn(torch.randn(5, 3, 10), torch.randn(2, 3, 20))
    """

    _torch_class = nn.RNN
    _torch_forward: ClassVar[TorchForward] = nn.RNN.forward
    _rank_message = "RNN: Expected input to be 2D or 3D, got {}D tensor instead"

    nonlinearity: str

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_proj_size(kwargs)
        if len(args) > 3:
            nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in NONLINEARITIES:
            *others, last = (f"'{name}'" for name in NONLINEARITIES)
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from {', '.join(others)} or {last}."
            )
        # RNNBase knows torch's modes only; the parameters are the same for all.
        super().__init__("RNN_TANH", *args, **kwargs)
        self.nonlinearity = nonlinearity
        self.mode = f"RNN_{nonlinearity.upper()}"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run the layers over a batch of sequences.

        Args:
            input: ``(T, B, I)``; ``(B, T, I)`` with batch_first; ``(T, I)`` unbatched; or a
                ``PackedSequence``; or (beyond torch.nn) integers from 0 to I - 1 without the last
                dimension, which stand for one-hot vectors: see ``fastrnn.functional``.
            hx: initial states ``(L*D, B, H)``, or ``(L*D, H)`` unbatched; None for zeros.
            lengths: (beyond torch.nn) ``(B,)`` integers from 0 to T: row b ends after
                ``lengths[b]`` steps; outputs beyond are 0, ``h_n`` is that of the last step
                within, the reverse direction starts there.
            reset: (beyond torch.nn) boolean ``(T, B)``, ``(B, T)`` with batch_first, ``(T,)``
                unbatched: where True, the state that enters the step is replaced by zeros.

        Returns:
            output ``(T, B, D*H)`` in the layout of the input, and h_n ``(L*D, B, H)``.

        Raises:
            ValueError: the input is neither 2-D nor 3-D, or not of the dtype of the weights;
                lengths out of range.
            RuntimeError: a size, dtype or device does not fit; T is 0.
            TypeError: reset is not boolean, lengths are no integers; lengths or reset with
                tensors that override torch functions.
        """
        result: tuple[Any, Tensor] = self._run(input, hx, lengths, reset)
        return result

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        if self.mode not in ("RNN_TANH", "RNN_RELU"):  # torch's module does not print those
            extra += f", nonlinearity={self.nonlinearity}"
        return extra

    def __setstate__(self, d: dict[str, Any]) -> None:
        super().__setstate__(d)
        if "nonlinearity" not in d:  # pickles of torch.nn.RNN before 1.5
            self.nonlinearity = self.mode.removeprefix("RNN_").lower()


class LSTM(SequenceModule):
    r"""Long short-term memory layers, in place of ``torch.nn.LSTM``.

    .. math::
        i, f, o &= \sigma(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}) \\
        g &= \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}) \\
        c_t &= f \odot c_{t-1} + i \odot g \\
        h_t &= o \odot \tanh(c_t)

    each gate with its own rows of the weights, in the order i, f, g, o (Hochreiter and
    Schmidhuber 1997; Gers et al. 2000). With ``proj_size`` the last line reads
    :math:`h_t = W_{hr} (o \odot \tanh(c_t))` (Sak et al. 2014).

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the cell state.
        num_layers: L.
        bias: whether there are ``b_ih`` and ``b_hh``.
        batch_first: inputs and outputs are ``(B, T, ...)``; states stay ``(L*D, B, ...)``.
        dropout: probability of an element of a layer's output (but the last's) to be zeroed.
        bidirectional: a second set of weights reads the sequence from its end.
        proj_size: R, features of the hidden state if they are projected; 0 for R = H.
        device, dtype: of the parameters.
        return_cell_states: (beyond torch.nn, keyword only) forward also returns the cell states
            of every step.
        recompute: (beyond torch.nn, keyword only) keep nothing for backward but the input of each
            layer, which backward runs forward again from: the same numbers, memory for time. See
            ``fastrnn.functional``.

    Parameters, for each layer k, and again with the suffix ``_reverse`` if bidirectional:
    ``weight_ih_l{k} (4H, I or D*R)``, ``weight_hh_l{k} (4H, R)``, ``bias_ih_l{k}`` and
    ``bias_hh_l{k} (4H,)``, ``weight_hr_l{k} (R, H)`` if projected, drawn from
    ``U(-1/sqrt(H), 1/sqrt(H))`` exactly as torch.nn does.

    Raises:
        ValueError, TypeError: at construction, as torch.nn.

    Example::

        lstm = fastrnn.LSTM(10, 20, num_layers=2)
        output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
    """

    _torch_class = nn.LSTM
    _torch_forward: ClassVar[TorchForward] = nn.LSTM.forward
    _rank_message = "LSTM: Expected input to be 2D or 3D, got {}D instead"

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        return_cell_states: bool = False,
        recompute: bool = False,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, return_cell_states: bool = False, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)
        self.return_cell_states = check_flag("return_cell_states", return_cell_states)

    # torch's own: the cell state is H wide even when the hidden state is projected.
    get_expected_cell_size: Any = nn.LSTM.get_expected_cell_size
    check_forward_args: Any = nn.LSTM.check_forward_args
    permute_hidden: Any = nn.LSTM.permute_hidden

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
    ) -> Any:
        """Run the layers over a batch of sequences.

        Args:
            input: ``(T, B, I)``; ``(B, T, I)`` with batch_first; ``(T, I)`` unbatched; or a
                ``PackedSequence``; or (beyond torch.nn) integers from 0 to I - 1 without the last
                dimension, which stand for one-hot vectors: see ``fastrnn.functional``.
            hx: initial states, a pair ``(L*D, B, R)`` and ``(L*D, B, H)``, without B when
                unbatched; None for zeros.
            lengths: (beyond torch.nn) ``(B,)`` integers from 0 to T: row b ends after
                ``lengths[b]`` steps; outputs beyond are 0, ``h_n`` and ``c_n`` are those of the
                last step within, the reverse direction starts there.
            reset: (beyond torch.nn) boolean ``(T, B)``, ``(B, T)`` with batch_first, ``(T,)``
                unbatched: where True, the states that enter the step are replaced by zeros.

        Returns:
            output ``(T, B, D*R)`` in the layout of the input, and the pair h_n ``(L*D, B, R)``,
            c_n ``(L*D, B, H)``. With ``return_cell_states`` a third item: a tuple with the cell
            states of each layer, ``(T, B, D*H)`` in the layout of the output.

        Raises:
            ValueError: the input is neither 2-D nor 3-D, or not of the dtype of the weights;
                lengths out of range.
            RuntimeError: a size, dtype or device does not fit; T is 0.
            TypeError: reset is not boolean, lengths are no integers; an option beyond torch.nn
                with tensors that override torch functions.
        """
        return self._run(input, hx, lengths, reset)

    def _check(self, input: Tensor, hx: Any, batch_sizes: Tensor | None) -> None:
        dtype = self._flat_weights[0].dtype  # type: ignore[union-attr]
        if batch_sizes is not None and input.dtype != dtype:
            # torch's LSTM does not check packed input, and fails in its product: no ValueError.
            raise RuntimeError(f"input: expected {dtype}, that of the weights, got {input.dtype}")
        super()._check(input, hx, batch_sizes)
        if hx is None:
            return
        if not isinstance(hx, (tuple, list)):
            raise TypeError(f"hx: expected a tuple of two tensors, got {type(hx).__name__}")
        if len(hx) != 2:
            raise RuntimeError("lstm expects two hidden states")

    def _check_states_of_packed(self, input: PackedSequence, hx: Any) -> None:
        # torch's LSTM leaves the checks of packed calls to its operators. The same errors here, and
        # in the same order: states are taken one by one only where they have to be sorted.
        if hx is None:
            return
        if input.sorted_indices is None:
            if not isinstance(hx, (tuple, list)) or not all(isinstance(s, Tensor) for s in hx):
                raise TypeError(f"hx: expected a tuple of two tensors, got {type(hx).__name__}")
            if len(hx) != 2:
                raise RuntimeError("lstm expects two hidden states")
        for state in self._states(hx):
            if state.dim() < 3:
                raise IndexError(f"hx: expected states of 3 dimensions, got {state.dim()}")

    def _zeros(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        c_zeros = input.new_zeros(self.get_expected_cell_size(input, batch_sizes))
        return super()._zeros(input, batch_sizes), c_zeros

    def _states(self, hx: Any) -> tuple[Tensor, ...]:
        hx[0].dim()  # as in torch, what is wrong with the first is found before a second is missed
        return hx[0], hx[1]

    def _state_rank_message(self, rank: int, states: tuple[Tensor, ...]) -> str:
        batched = "batched 3-D" if rank == 3 else "unbatched 2-D"
        return (
            f"For {batched} input, hx and cx should also be {rank}-D "
            f"but got ({states[0].dim()}-D, {states[1].dim()}-D) tensors"
        )

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        return f"{extra}, return_cell_states=True" if self.return_cell_states else extra


class GRU(SequenceModule):
    r"""Gated recurrent layers, in both forms of the literature, in place of ``torch.nn.GRU``.

    .. math::
        r, z &= \sigma(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}) \\
        n &= \tanh(W_{in} x_t + b_{in} + r \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z) \odot n + z \odot h_{t-1}

    each gate with its own rows of the weights, in the order r, z, n. This is the form of torch.nn
    and cuDNN; with ``reset_after=False`` it is that of Cho et al. 2014,
    :math:`n = \tanh(W_{in} x_t + b_{in} + W_{hn} (r \odot h_{t-1}) + b_{hn})`. Texts that write
    :math:`h_t = (1 - z) \odot h_{t-1} + z \odot n` call z what is 1 - z here: negate the rows of z
    in weights and biases.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the hidden state.
        num_layers: L.
        bias: whether there are ``b_ih`` and ``b_hh``.
        batch_first: inputs and outputs are ``(B, T, ...)``; states stay ``(L*D, B, H)``.
        dropout: probability of an element of a layer's output (but the last's) to be zeroed.
        bidirectional: a second set of weights reads the sequence from its end.
        device, dtype: of the parameters.
        reset_after: (beyond torch.nn, keyword only) False for the form of Cho et al.; ``mode`` is
            then ``'GRU_RESET_BEFORE'``.
        recompute: (beyond torch.nn, keyword only) keep nothing for backward but the input of each
            layer, which backward runs forward again from: the same numbers, memory for time. See
            ``fastrnn.functional``.

    Parameters, for each layer k, and again with the suffix ``_reverse`` if bidirectional:
    ``weight_ih_l{k} (3H, I or D*H)``, ``weight_hh_l{k} (3H, H)``, ``bias_ih_l{k}`` and
    ``bias_hh_l{k} (3H,)``, drawn from ``U(-1/sqrt(H), 1/sqrt(H))`` exactly as torch.nn does.

    Raises:
        ValueError, TypeError: at construction, as torch.nn.

    Example::

        gru = fastrnn.GRU(10, 20, bidirectional=True)
        output, h_n = gru(torch.randn(5, 3, 10))
    """

    _torch_class = nn.GRU
    _torch_forward: ClassVar[TorchForward] = nn.GRU.forward
    _rank_message = "GRU: Expected input to be 2D or 3D, got {}D instead"

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        recompute: bool = False,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, reset_after: bool = True, **kwargs: Any) -> None:
        _refuse_proj_size(kwargs)
        super().__init__("GRU", *args, **kwargs)
        if not check_flag("reset_after", reset_after):
            self.mode = "GRU_RESET_BEFORE"

    @property
    def reset_after(self) -> bool:
        """Whether the reset gate scales the recurrent product (torch.nn) or the state before it."""
        return self.mode == "GRU"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run the layers over a batch of sequences; arguments and errors are those of ``RNN``.

        Returns:
            output ``(T, B, D*H)`` in the layout of the input, and h_n ``(L*D, B, H)``.
        """
        result: tuple[Any, Tensor] = self._run(input, hx, lengths, reset)
        return result

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        return extra if self.reset_after else f"{extra}, reset_after=False"
