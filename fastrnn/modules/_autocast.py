"""Compiled calls under autocast: kernels in autocast's dtype, results in the dtypes of torch.nn's.

Uncompiled calls are torch.nn's forward, rounding for rounding. A compiler would unroll that, one
step after the other, for minutes; and each number of steps anew.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import backends
from ..backends.base import FusedBackend
from ..cells import Cell

_CASTED = (torch.float32, torch.bfloat16, torch.float16)


class Dtypes(NamedTuple):
    """Of the arithmetic's inputs, of the results output and h_n, and of the result c_n."""

    compute: torch.dtype
    hidden: torch.dtype
    cell: torch.dtype


def dtypes(
    cell: Cell,
    input: Tensor | PackedSequence,
    states: tuple[Tensor, ...],
    weights: list[Tensor],
    *,
    projected: bool,
) -> Dtypes | None:
    """Those of a call; None where it is torch.nn's forward that has to know.

    That is where nobody compiles, autocast is off for the device, there is a dtype that it does
    not cast (float64), or no kernels of ours are for its dtype.
    """
    packed = isinstance(input, PackedSequence)
    x = input.data if isinstance(input, PackedSequence) else input
    device = x.device.type
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return None
    if not torch.is_autocast_enabled(device):
        return None
    compute = torch.get_autocast_dtype(device)
    if any(tensor.dtype not in _CASTED for tensor in (x, *states, *weights)):
        return None
    like = backends.example(cell.name, compute, x.device, packed)
    if not isinstance(backends.select(like), FusedBackend):
        return None
    # In torch.nn on the CPU a state keeps the wider of its own dtype and that of the gates; what
    # torch computes by one operator, or the result of a product, is of autocast's dtype.
    kept = torch.promote_types(compute, states[-1].dtype if states else x.dtype)
    if device != "cpu" or cell.torch_name not in ("lstm", "gru"):
        return Dtypes(compute, compute, compute)
    if cell.torch_name == "gru":
        return Dtypes(compute, kept, kept)
    if projected:
        return Dtypes(compute, compute, kept)
    return Dtypes(compute, kept, kept) if packed else Dtypes(compute, compute, compute)


def cast(sequence: Tensor | PackedSequence, dtype: torch.dtype) -> Tensor | PackedSequence:
    """The tensor, or the data of the PackedSequence, in ``dtype``."""
    if isinstance(sequence, PackedSequence):
        return sequence._replace(data=sequence.data.to(dtype))
    return sequence.to(dtype)
