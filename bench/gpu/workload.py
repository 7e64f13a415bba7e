"""A GPU case made real: the workload of the CPU benchmark, on the device and in its precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..workload import THEIRS, Workload, WrongNumbers
from .cases import GpuCase
from .device import device


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

    def __init__(self, case: GpuCase) -> None:
        super().__init__(case, device().type)
        packing: Any = self.inputs.packing
        if packing is not None:
            self.inputs = replace(self.inputs, packing=packing.to(device().type))

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
