"""Where versions of torch differ that this library runs on."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """``torch.compiler.is_exporting``, which torch 2.11 takes for True in all that it compiles."""
    return torch.compiler._is_exporting_flag


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_autocast_available(device_type: str) -> bool:
    """``torch.amp.is_autocast_available``, which torch 2.11 cannot compile."""
    return torch.amp.is_autocast_available(device_type)
