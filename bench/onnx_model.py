"""A layer stack as an ONNX model: weights converted, layers written by hand.

torch's weights ``(G*H, I)`` become ONNX's ``(D, G*H, I)`` with the gates in another order; its
reset-after GRU is ``linear_before_reset=1``. Weights are constants of the model: ONNX Runtime packs
them once, when the model is loaded, which neither torch.nn nor fastrnn may do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.float32]

#: For each gate of ONNX's order its number in torch's: LSTM i o f c from i f g o, GRU z r h from
#: r z n.
GATE_ORDER = {"RNN": (0,), "LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
OPSET = 14


@dataclass(frozen=True)
class Model:
    """What the worker needs to make the model.

    operator: RNN (tanh), LSTM or GRU. weights: a list for each layer, in it for each direction
    torch's ``weight_ih, weight_hh, bias_ih, bias_hh``. inputs: x ``(T, B, I)``, and for one step of
    a cell ``h0 (1, B, H)`` and ``c0``, by name; such a model returns but the states.
    """

    operator: str
    hidden_size: int
    weights: Sequence[Sequence[Sequence[Array]]]
    inputs: Mapping[str, Array]


def reordered(array: Array, operator: str) -> Array:
    """A weight or bias of torch, ``(G*H, ...)``, with the gates in ONNX's order."""
    order = GATE_ORDER[operator]
    gates = array.reshape(len(order), -1, *array.shape[1:])
    return np.ascontiguousarray(gates[list(order)]).reshape(array.shape)


def build(model: Model) -> onnx.ModelProto:
    """The model; outputs Y ``(T, B, D*H)``, or ``(T, 1, B, H)``, and Y_h, Y_c ``(L*D, B, H)``."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: NDArray[np.generic]) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    form = {"linear_before_reset": 1} if model.operator == "GRU" else {}
    states = ("h", "c") if model.operator == "LSTM" else ("h",)
    initial = [name for name in ("h0", "c0") if name in model.inputs]
    x, last = "x", len(model.weights) - 1
    for layer, directions in enumerate(model.weights):
        w, r, b = (f"{kind}{layer}" for kind in "WRB")
        w_ih, w_hh, b_ih, b_hh = (
            np.stack([reordered(direction[kind], model.operator) for direction in directions])
            for kind in range(4)
        )
        constant(w, w_ih)
        constant(r, w_hh)
        constant(b, np.concatenate((b_ih, b_hh), axis=1))
        nodes.append(
            helper.make_node(
                model.operator,
                [x, w, r, b, *(["", *initial] if initial else [])],
                ["" if initial else f"Y{layer}", *(f"Y_{state}{layer}" for state in states)],
                hidden_size=model.hidden_size,
                direction="bidirectional" if len(directions) == 2 else "forward",
                **form,
            )
        )
        x = f"Y{layer}"
        # One direction's (T, 1, B, H) is (T, B, H) in memory: at the end nothing is to be done.
        if len(directions) == 2:
            nodes.append(helper.make_node("Transpose", [x], [f"{x}_by_row"], perm=[0, 2, 1, 3]))
            x = f"{x}_by_row"
        if len(directions) == 2 or layer < last:
            shape = constant(f"shape{layer}", _joined(model, len(directions)))
            nodes.append(helper.make_node("Reshape", [x, shape], [f"X{layer + 1}"]))
            x = f"X{layer + 1}"

    rank = {x: 3 if x.startswith("X") else 4}
    results = [] if initial else [x]
    for state in states:
        parts = [f"Y_{state}{layer}" for layer in range(len(model.weights))]
        if len(parts) > 1:
            nodes.append(helper.make_node("Concat", parts, [f"Y_{state}"], axis=0))
            parts = [f"Y_{state}"]
        results += parts
    graph = helper.make_graph(
        nodes,
        "layers",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
            for name, array in model.inputs.items()
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank.get(name, 3))
            for name in results
        ],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    made.ir_version = 8  # of the opset's time: any ONNX Runtime reads it
    onnx.checker.check_model(made)
    return made


def _joined(model: Model, directions: int) -> NDArray[np.int64]:
    steps, batch, _ = model.inputs["x"].shape
    return np.array((steps, batch, directions * model.hidden_size), np.int64)
