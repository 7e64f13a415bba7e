"""A GPU case made real: the workload of the CPU benchmark, on the device and in its precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..workload import THEIRS, Workload, WrongNumbers
from .cases import GpuCase
from .device import device

#: torch.nn with its weights in one piece, where it does not do that itself.
FLAT = "torch.nn, flattened"


@contextmanager
def precision(case: GpuCase) -> Iterator[None]:
    """Products of float32 as the case wants them, in both libraries: cuDNN's flag decides."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = case.tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class GpuWorkload(Workload):
    """Modules, input and gradients on the device."""

    case: GpuCase
    #: Why torch.nn could not be flattened where it should have been.
    unflattened = ""

    def __init__(self, case: GpuCase) -> None:
        super().__init__(case, device().type)
        packing: Any = self.inputs.packing
        if packing is not None:
            self.inputs = replace(self.inputs, packing=packing.to(device().type))

    def peers(self) -> list[str]:
        """What ours is compared with: torch.nn as it is, and where that packs its weights again in
        each call, once more with weights that cuDNN takes as they lie; unless it refuses them.
        """
        if self.case.dtype != torch.bfloat16:
            return [THEIRS]
        try:
            self.modules[FLAT] = flattened(self.modules[THEIRS])
            self.call(FLAT)()
        except RuntimeError as error:
            self.unflattened = str(error)
            return [THEIRS]
        return [THEIRS, FLAT]

    @property
    def _rounded(self) -> torch.dtype:
        # float16 has the mantissa of TF32. What is stored in 16 bits is computed in float32.
        return torch.float16 if self.case.tf32 else torch.float32

    def _tolerance_arguments(self, name: str) -> dict[str, Any]:
        storage = self.case.dtype if self.case.dtype.itemsize == 2 else None
        return super()._tolerance_arguments(name) | {"storage": storage}

    def expected(self) -> dict[str, Tensor]:
        """All results from torch.nn in float64, on the device."""
        return self.results(THEIRS, torch.float64)

    def errors(self, implementation: str, expected: dict[str, Tensor]) -> dict[str, Any]:
        """How far a library is from that: in tolerances, by result, and relative to its norm."""
        found = self.results(implementation, self.case.dtype)
        errors = {name: self.error(name, found[name], wanted) for name, wanted in expected.items()}
        worst = max(errors, key=errors.__getitem__)
        return {
            "worst": worst,
            "in_tolerances": errors[worst],
            "relative": {
                name: relative(found[name], wanted)
                for name, wanted in expected.items()
                if not name.startswith("grad")
            },
            "relative_gradient": max(
                (
                    relative(found[name], wanted)
                    for name, wanted in expected.items()
                    if name.startswith("grad")
                ),
                default=None,
            ),
        }


def flattened(module: nn.Module) -> nn.Module:
    """A copy whose weights lie in one piece.

    torch's ``flatten_parameters`` passes bfloat16 over, as its list of cuDNN's dtypes is older than
    cuDNN's bfloat16: each call then begins with a copy of all weights. A user can spare that by
    adding to the list, so a comparison without it would flatter us.

    Raises:
        RuntimeError: cuDNN refuses, or they are in several pieces all the same.
    """
    dtypes: set[torch.dtype] = torch.backends.cudnn.CUDNN_TENSOR_DTYPES
    with torch.inference_mode(False):
        copied: Any = copy.deepcopy(module)
        added = {parameter.dtype for parameter in copied.parameters()} - dtypes
        dtypes |= added
        try:
            copied.flatten_parameters()
        finally:
            dtypes -= added
    pieces = {parameter.untyped_storage().data_ptr() for parameter in copied.parameters()}
    if len(pieces) > 1:
        raise RuntimeError(f"flatten_parameters has left the weights in {len(pieces)} pieces")
    flat: nn.Module = copied
    return flat


def relative(got: Tensor, wanted: Tensor) -> float:
    """Norm of the error by the norm of what was expected."""
    got, wanted = got.detach().double(), wanted.detach()
    return float((got - wanted).norm() / wanted.norm())


def refuse(errors: dict[str, Any]) -> None:
    """Raise WrongNumbers where an error of ours is above its tolerance."""
    if not errors["in_tolerances"] <= 1:
        raise WrongNumbers(
            f"{errors['worst']}: off by {errors['in_tolerances']:.3g} times the tolerance"
        )
