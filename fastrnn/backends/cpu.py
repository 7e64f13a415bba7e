"""Placeholder until the extension lands: refuses with its reason."""

from __future__ import annotations

from torch import Tensor

from ..problem import LayerGrads, LayerInputs, LayerOutputs, Problem
from .base import FusedBackend, Gradients, Needs, Verdict


class CpuBackend(FusedBackend):
    name = "cpu"

    def available(self) -> Verdict:
        return Verdict(False, "not built")

    def supports(self, problem: Problem) -> Verdict:
        return Verdict(False, "not built")

    def forward(self, problem: Problem, inputs: LayerInputs) -> LayerOutputs:
        raise RuntimeError("not built")

    def backward(self, problem: Problem, inputs: LayerInputs, cell_states: Tensor, reserve: Tensor, grads: Gradients, needs: Needs) -> LayerGrads:
        raise RuntimeError("not built")
