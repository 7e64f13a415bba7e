"""What ``torch.onnx.export`` records of a layer: ONNX's own RNN, GRU or LSTM operator.

Their sizes may stay open, batch and time alike, and any ONNX runtime has kernels for them. ONNX
stacks the weights of both directions, wants gates in another order and the two biases in one
tensor; the few operations for that are recorded too, on constants. Formulas and shapes:
https://onnx.ai/onnx/operators/onnx__LSTM.html, ``onnx__GRU.html`` and ``onnx__RNN.html``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import _compat
from .problem import LayerInputs, LayerOutputs, Problem


@dataclass(frozen=True)
class _Operator:
    """ONNX's operator for a cell.

    gates: for each of its gates the place of the same gate in torch's order.
    attributes: what makes the operator this cell. activations: for each direction.
    """

    name: str
    gates: tuple[int, ...]
    attributes: dict[str, int] = field(default_factory=dict)
    activations: dict[str, Sequence[str] | Sequence[float]] = field(default_factory=dict)


def _rnn(activation: str, **constants: float) -> _Operator:
    per_direction = {f"activation_{name}": [value] for name, value in constants.items()}
    return _Operator("RNN", (0,), {}, {"activations": [activation], **per_direction})


_OPERATORS = {
    "rnn_tanh": _rnn("Tanh"),
    "rnn_relu": _rnn("Relu"),
    "rnn_sigmoid": _rnn("Sigmoid"),
    "rnn_identity": _rnn("Affine", alpha=1.0, beta=0.0),
    "lstm": _Operator("LSTM", (0, 3, 1, 2)),  # i, o, f, c of torch's i, f, g, o
    "gru": _Operator("GRU", (1, 0, 2), {"linear_before_reset": 1}),  # z, r, h of r, z, n
    "gru_reset_before": _Operator("GRU", (1, 0, 2), {"linear_before_reset": 0}),
}


def is_exporting() -> bool:
    """Whether ``torch.onnx.export`` captures a program (not by the exporter of TorchScript)."""
    return _compat.is_exporting() and _in_onnx_export()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _in_onnx_export() -> bool:
    return torch.onnx.is_in_onnx_export()


def layer(problem: Problem, inputs: LayerInputs) -> LayerOutputs:
    """The outputs of a layer, as a node of the exported graph computes them.

    Raises:
        RuntimeError: ONNX's operator lacks an option of the call.
    """
    _refuse(problem)
    operator = _OPERATORS[problem.cell.name]
    directions, units = problem.directions, problem.hidden_size
    states = [inputs.h0, inputs.c0]
    if operator.name == "LSTM" and (inputs.h0 is None) is not (inputs.c0 is None):
        zeros = inputs.x.new_zeros(directions, problem.batch, units)
        states = [zeros if state is None else state for state in states]
    attributes: dict[str, Any] = {
        "hidden_size": units,
        "direction": "bidirectional" if directions == 2 else "forward",
        **operator.attributes,
        **{name: [*values] * directions for name, values in operator.activations.items()},
    }
    ends = [(directions, problem.batch, units)] * (2 if operator.name == "LSTM" else 1)
    y, h_n, *c_n = torch.onnx.ops.symbolic_multi_out(
        operator.name,
        (
            inputs.x,
            *_weights(problem, operator, inputs.weights),
            None if inputs.lengths is None else inputs.lengths.to(torch.int32),
            *states[: len(ends)],
        ),
        attributes,
        dtypes=[problem.dtype] * (1 + len(ends)),
        shapes=[(problem.steps, directions, problem.batch, units), *ends],
    )
    # (T, D, B, H), where a layer has (T, B, D*H)
    y = y.squeeze(1) if directions == 1 else y.transpose(1, 2).flatten(2)
    return LayerOutputs(y, h_n, c_n[0] if c_n else None, None, None)


def _refuse(problem: Problem) -> None:
    refused = {
        "proj_size": problem.projected,
        "reset": problem.reset,
        "return_cell_states": problem.keep_cell_states,
        "PackedSequence": problem.packed,
    }
    options = ", ".join(option for option, wanted in refused.items() if wanted)
    if options:
        instead = "; pass the padded tensor and lengths" if problem.packed else ""
        raise RuntimeError(
            f"torch.onnx.export: ONNX's {_OPERATORS[problem.cell.name].name} operator has no "
            f"{options}{instead}"
        )


def _weights(
    problem: Problem, operator: _Operator, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """W ``(D, G*H, I)``, R ``(D, G*H, H)`` and B ``(D, 2*G*H)`` or None, with ONNX's gates."""

    def gates(weight: Tensor) -> Tensor:
        if len(operator.gates) == 1:
            return weight
        units = problem.hidden_size
        return torch.cat([weight[place * units : (place + 1) * units] for place in operator.gates])

    own = [problem.direction_weights(weights, d) for d in range(problem.directions)]
    w = torch.stack([gates(w_ih) for w_ih, *_ in own])
    r = torch.stack([gates(w_hh) for _, w_hh, *_ in own])
    if not problem.bias:
        return w, r, None
    return w, r, torch.stack([torch.cat([gates(b_ih), gates(b_hh)]) for _, _, b_ih, b_hh in own])
