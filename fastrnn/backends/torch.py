"""torch's own fused operators, for what torch.nn offers and our kernels do not serve.

Other dtypes (complex), other devices, tracing. A row of a benchmark that this
backend served is torch's, not ours.
"""

from __future__ import annotations

import torch
from torch import _VF, Tensor
from torch.autograd import forward_ad

from ..problem import LayerInputs, LayerOutputs, Problem
from .base import DifferentiableBackend, Verdict

_NAMES = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_FUNCTIONS = {name: getattr(_VF, name) for name in _NAMES}
_STEPS = {name: getattr(_VF, f"{name}_cell") for name in _NAMES}


class TorchBackend(DifferentiableBackend):
    name = "torch"

    def available(self) -> Verdict:
        return Verdict(True, f"torch {torch.__version__}")

    def supports(self, problem: Problem) -> Verdict:
        if problem.cell.torch_name is None:
            return Verdict(False, f"torch.nn has no {problem.cell.name}")
        if problem.x_is_gates:
            return Verdict(False, "torch.nn multiplies the input itself")
        for option in ("lengths", "reset", "keep_cell_states"):
            if getattr(problem, option):
                return Verdict(False, f"torch.nn has no {option.removeprefix('keep_')}")
        # torch has batching and forward-mode rules for the steps, not for the whole sequence.
        forward_mode = forward_ad._current_level >= 0
        if forward_mode or any(level != "Grad" for level in _functorch_levels()):
            return Verdict(False, "torch.nn has no rule for vmap and forward mode")
        return Verdict(True, "whatever torch.nn offers")

    def layer(self, problem: Problem, inputs: LayerInputs) -> LayerOutputs:
        x, cell = inputs.x, problem.cell

        def zeros(units: int) -> Tensor:
            return x.new_zeros(problem.directions, problem.batch, units)

        h0 = zeros(problem.output_size) if inputs.h0 is None else inputs.h0
        hx: Tensor | tuple[Tensor, Tensor] = h0
        if cell.has_cell_state:
            hx = (h0, zeros(problem.hidden_size) if inputs.c0 is None else inputs.c0)
        if (
            problem.steps == 1
            and problem.directions == 1
            and not (problem.packed or problem.projected)
        ):
            return self._step(problem, inputs, hx)
        batch = () if inputs.batch_sizes is None else (inputs.batch_sizes,)
        bidirectional = problem.directions == 2
        options = (problem.bias, 1, 0.0, False, bidirectional)
        layout = () if problem.packed else (False,)
        function = _FUNCTIONS[str(cell.torch_name)]
        y, h_n, *c_n = function(x, *batch, hx, list(inputs.weights), *options, *layout)
        return LayerOutputs(y, h_n, c_n[0] if c_n else None, None, None)

    def _step(
        self, problem: Problem, inputs: LayerInputs, hx: Tensor | tuple[Tensor, Tensor]
    ) -> LayerOutputs:
        """One step by torch's cell, which costs a third of its sequence function.

        The state of a cell has the layout that its arguments lead to, that of a sequence none but
        the contiguous one.
        """
        step = _STEPS[str(problem.cell.torch_name)]
        weights = list(inputs.weights) + [None] * (4 - len(inputs.weights))
        if isinstance(hx, tuple):
            h, c = map(Tensor.contiguous, step(inputs.x[0], [hx[0][0], hx[1][0]], *weights))
            return LayerOutputs(h.unsqueeze(0), h.unsqueeze(0).clone(), c.unsqueeze(0), None, None)
        h = step(inputs.x[0], hx[0], *weights).contiguous()
        return LayerOutputs(h.unsqueeze(0), h.unsqueeze(0).clone(), None, None, None)


def _functorch_levels() -> list[str]:
    if torch._C._functorch.maybe_current_level() is None:
        return []
    stack = torch._C._functorch.get_interpreter_stack() or []
    return [interpreter.key().name for interpreter in stack]
