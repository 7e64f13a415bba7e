"""Compiled and transformed calls under autocast: ours, with results in the dtypes of torch.nn's.

Other calls are torch.nn's forward, rounding for rounding. A compiler would unroll that, one step
after the other, for minutes, and each number of steps anew: our kernels compute in autocast's
dtype. For vmap and forward mode torch.nn's operators have no rules: ours are plain operations, in
the dtype of the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import _compat, backends
from ..autograd import in_autocast
from ..backends.base import FusedBackend
from ..cells import Cell

_CASTED = (torch.float32, torch.bfloat16, torch.float16)


class Dtypes(NamedTuple):
    """Of the arithmetic's inputs, of the results output and h_n, and of the result c_n."""

    compute: torch.dtype
    hidden: torch.dtype
    cell: torch.dtype


def casts(x: Tensor, *others: Tensor) -> bool:
    """Whether a call is in a region of autocast, and not all in float64, which it leaves alone."""
    if not in_autocast(x):
        return False
    # What is no tensor is refused further on, in words for every call.
    tensors = (tensor for tensor in (x, *others) if isinstance(tensor, Tensor))
    return any(tensor.dtype != torch.float64 for tensor in tensors)


def dtypes(
    cell: Cell,
    input: Tensor | PackedSequence,
    states: tuple[Tensor, ...],
    weights: list[Tensor],
    *,
    projected: bool = False,
    by_steps: bool = False,
) -> Dtypes | None:
    """Those of a call in a region of autocast; None where it is torch.nn's forward that knows them.

    That is where nobody compiles nor transforms, there is a dtype that autocast does not cast, or
    a compiled call would have no kernels of ours.

    Args:
        by_steps: torch.nn has no operator for the whole call: a cell's, or of packed data.
    """
    x = input.data if isinstance(input, PackedSequence) else input
    device = x.device.type
    compute = low = torch.get_autocast_dtype(device)
    if any(tensor.dtype not in _CASTED for tensor in (x, *states, *weights)):
        return None
    if backends.transformed():
        compute = weights[0].dtype
    elif torch.compiler.is_compiling() and not _compat.is_exporting():
        like = backends.example(cell.name, low, x.device, isinstance(input, PackedSequence))
        if not isinstance(backends.select(like), FusedBackend):
            return None
    else:
        return None
    # In torch.nn on the CPU a state keeps the wider of its own dtype and that of the gates; what
    # torch computes by one operator, or the result of a product, is of autocast's dtype.
    kept = torch.promote_types(low, states[-1].dtype if states else x.dtype)
    if device != "cpu" or cell.torch_name not in ("lstm", "gru"):
        return Dtypes(compute, low, low)
    if cell.torch_name == "gru":
        return Dtypes(compute, kept, kept)
    if projected:
        return Dtypes(compute, low, kept)
    return Dtypes(compute, kept, kept) if by_steps else Dtypes(compute, low, low)


def cast(sequence: Tensor | PackedSequence, dtype: torch.dtype) -> Tensor | PackedSequence:
    """The tensor, or the data of the PackedSequence, in ``dtype``."""
    if isinstance(sequence, PackedSequence):
        return sequence._replace(data=sequence.data.to(dtype))
    return sequence.to(dtype)
