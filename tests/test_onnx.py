"""torch.onnx.export: ONNX's own operators, run by ONNX Runtime with equal numbers, sizes open."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from contract import FASTRNN, SEQUENCES, assert_same, flat, states
from torch import Tensor, nn
from torch.export import Dim

import fastrnn

pytestmark = [
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    # Of the exporter of TorchScript.
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with:UserWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

BATCH, STEPS = Dim("batch", min=2), Dim("steps", min=2)

Node = tuple[str, dict[str, Any]]


def exported(model: nn.Module, arguments: tuple[Any, ...], sizes: Any = None) -> onnx.ModelProto:
    program = torch.onnx.export(
        model.eval(), arguments, dynamo=True, dynamic_shapes=sizes, verbose=False
    )
    assert program is not None
    onnx.checker.check_model(program.model_proto, full_check=True)
    return program.model_proto


def exported_by_torchscript(
    model: nn.Module, arguments: tuple[Any, ...], sizes: Any = None
) -> onnx.ModelProto:
    """By the exporter that torch had before: it traces, and torch.nn's operators are recorded."""
    file = io.BytesIO()
    names = [f"input{k}" for k in range(len(arguments))]
    torch.onnx.export(
        model.eval(), arguments, file, dynamo=False, input_names=names, dynamic_axes=sizes
    )
    program = onnx.load_from_string(file.getvalue())
    onnx.checker.check_model(program, full_check=True)
    return program


def recurrent(model: onnx.ModelProto) -> list[Node]:
    """Name and attributes of each recurrent operator, in the order of the graph."""
    return [
        (node.op_type, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
        for node in model.graph.node
        if node.op_type in ("RNN", "GRU", "LSTM")
    ]


def run(model: onnx.ModelProto, arguments: tuple[Any, ...]) -> list[Tensor]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    tensors = torch.utils._pytree.tree_leaves(arguments)
    inputs = {
        given.name: np.asarray(tensor)
        for given, tensor in zip(session.get_inputs(), tensors, strict=True)
    }
    return [torch.from_numpy(output) for output in session.run(None, inputs)]


def assert_runs_equally(
    model: nn.Module, program: onnx.ModelProto, arguments: tuple[Any, ...]
) -> None:
    with torch.no_grad():
        expected = flat(model(*arguments))
    assert_same(run(program, arguments), expected)


class Side(nn.ModuleList):
    """Modules side by side over one input: an export takes seconds, however many there are."""

    def forward(self, x: Tensor) -> Any:
        return [module(x) for module in self]


def test_every_module() -> None:
    """Layers, directions, both GRUs, every nonlinearity, with and without bias."""
    model = Side(
        [
            fastrnn.RNN(3, 4),
            fastrnn.RNN(3, 4, nonlinearity="relu", bidirectional=True),
            fastrnn.RNN(3, 4, nonlinearity="sigmoid"),
            fastrnn.RNN(3, 4, nonlinearity="identity", bidirectional=True),
            fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True),
            fastrnn.LSTM(3, 4, bias=False),
            fastrnn.GRU(3, 4, num_layers=2),
            fastrnn.GRU(3, 4, reset_after=False, bidirectional=True),
        ]
    )
    x = torch.randn(5, 2, 3)
    program = exported(model, (x,), ({0: STEPS, 1: BATCH},))
    nodes = recurrent(program)
    assert [name for name, _ in nodes] == ["RNN"] * 4 + ["LSTM"] * 3 + ["GRU"] * 3
    directions = [attributes["direction"].decode() for _, attributes in nodes]
    one, two = "forward", "bidirectional"
    assert directions == [one, two, one, two, two, two, one, one, one, two]
    assert [attributes["linear_before_reset"] for _, attributes in nodes[-3:]] == [1, 1, 0]
    activations = [attributes["activations"] for _, attributes in nodes[:4]]
    assert activations == [[b"Tanh"], [b"Relu"] * 2, [b"Sigmoid"], [b"Affine"] * 2]
    for steps, batch in ((5, 2), (9, 4)):
        assert_runs_equally(model, program, (torch.randn(steps, batch, 3),))


def test_cells() -> None:
    model = Side([fastrnn.RNNCell(3, 4), fastrnn.GRUCell(3, 4), fastrnn.LSTMCell(3, 4)])
    model.append(fastrnn.GRUCell(3, 4, reset_after=False))
    program = exported(model, (torch.randn(2, 3),), ({0: BATCH},))
    assert [name for name, _ in recurrent(program)] == ["RNN", "GRU", "LSTM", "GRU"]
    assert_runs_equally(model, program, (torch.randn(5, 3),))


class States(nn.Module):
    """batch_first, and states that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = fastrnn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.lstm(x, (h, c)), self.gru(x, h[:1])


def test_initial_states_and_batch_first() -> None:
    def arguments(batch: int, steps: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, steps, 3), torch.randn(4, batch, 4), torch.randn(4, batch, 4)

    model, sizes = States(), ({0: BATCH, 1: STEPS}, {1: BATCH}, {1: BATCH})
    program = exported(model, arguments(2, 5), sizes)
    assert [name for name, _ in recurrent(program)] == ["LSTM", "LSTM", "GRU"]
    for batch, steps in ((2, 5), (6, 3)):
        assert_runs_equally(model, program, arguments(batch, steps))


class Lengths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = fastrnn.LSTM(3, 4, bidirectional=True)
        self.gru = fastrnn.GRU(8, 4, num_layers=2)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        y, states = self.lstm(x, lengths=lengths)
        return states, self.gru(y, lengths=lengths)


def test_lengths() -> None:
    """ONNX's operators know them; rows that are empty are among them."""
    model = Lengths()
    given = (torch.randn(5, 2, 3), torch.tensor([5, 2]))
    program = exported(model, given, ({0: STEPS, 1: BATCH}, {0: BATCH}))
    assert len(recurrent(program)) == 3
    for lengths in ([5, 2], [3, 7, 0, 1]):
        x = torch.randn(max(lengths), len(lengths), 3)
        assert_runs_equally(model, program, (x, torch.tensor(lengths)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_integers(dtype: torch.dtype) -> None:
    """ONNX's operators multiply the input themselves, so they are given one-hot vectors."""
    model = Side([fastrnn.RNN(7, 4), fastrnn.GRU(7, 4, 2), fastrnn.LSTM(7, 4, bidirectional=True)])
    x = torch.randint(7, (5, 2), dtype=dtype)
    program = exported(model, (x,), ({0: STEPS, 1: BATCH},))
    assert [name for name, _ in recurrent(program)] == ["RNN", "GRU", "GRU", "LSTM"]
    assert_runs_equally(model, program, (torch.randint(7, (9, 4), dtype=dtype),))


def test_integers_of_cells() -> None:
    model = Side([fastrnn.RNNCell(7, 4), fastrnn.GRUCell(7, 4), fastrnn.LSTMCell(7, 4)])
    program = exported(model, (torch.tensor([3, 6]),), ({0: BATCH},))
    assert_runs_equally(model, program, (torch.tensor([0, 6, 6, 1]),))


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_exporter_of_torchscript(kind: str, options: dict[str, Any], bare: bool) -> None:
    """A module by itself is called with the defaults of all its arguments, by position."""
    module = FASTRNN[kind](3, 4, **options)
    model = module if bare else nn.Sequential(module)
    sizes = {"input0": {0: "steps", 1: "batch"}}
    program = exported_by_torchscript(model, (torch.randn(5, 2, 3),), sizes)
    assert {name for name, _ in recurrent(program)} == {kind}
    assert_runs_equally(model, program, (torch.randn(9, 2, 3),))
    given = torch.randn(5, 2, 3), states(module, 2)
    if bare:
        program = exported_by_torchscript(model, given)
        assert_runs_equally(model, program, (torch.randn(5, 2, 3), states(module, 2)))


def test_exporter_of_torchscript_has_no_options_that_torch_lacks() -> None:
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace: .* got lengths; use torch.export"):
        exported_by_torchscript(Lengths(), (torch.randn(5, 2, 3), torch.tensor([5, 2])))


class Reset(fastrnn.GRU):
    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x, reset=x[:, :, 0] > 0)


@pytest.mark.parametrize(
    ("model", "option"),
    [
        (fastrnn.LSTM(3, 4, proj_size=2), "LSTM operator has no proj_size"),
        (fastrnn.LSTM(3, 4, return_cell_states=True), "LSTM operator has no return_cell_states"),
        (Reset(3, 4), "GRU operator has no reset"),
    ],
    ids=["proj_size", "return_cell_states", "reset"],
)
def test_what_onnx_lacks(model: nn.Module, option: str) -> None:
    with pytest.raises(Exception, match=f"torch.onnx.export: ONNX's {option}") as caught:
        exported(model, (torch.randn(5, 2, 3),))
    assert type(caught.value).__name__ == "TorchExportError"


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.RNN(3, 4)

    def forward(self, data: Tensor, batch_sizes: Tensor) -> Any:
        return self.rnn(nn.utils.rnn.PackedSequence(data, batch_sizes))[1]


def test_packed_sequences_become_lengths() -> None:
    with pytest.raises(Exception, match="no PackedSequence; pass the padded tensor and lengths"):
        exported(Packed(), (torch.randn(3, 3), torch.tensor([2, 1])))
