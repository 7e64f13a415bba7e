"""Programs that outlive the process: torch.export, AOTInductor packages and TorchScript."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from contract import CELLS, SEQUENCES, assert_same, example, flat, pair
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

import fastrnn

OPERATOR = {"RNN": "rnn_tanh", "LSTM": "lstm", "GRU": "gru"}
OPERATOR |= {"RNNCell": "rnn_tanh_cell", "LSTMCell": "lstm_cell", "GRUCell": "gru_cell"}
OURS = "fastrnn.layer_forward.default"
#: Has kernels of its own; what is exported does not depend on which backend that is.
KERNELS = cases.BACKENDS[0]

pytestmark = [
    # torch.nn's modules have this warning too: they look whether their weights were replaced.
    pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def operators(program: ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


# torch.export.


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_torchs_operator(kind: str, strict: bool) -> None:
    """The one that every backend of exported programs knows; the batch size may be open."""
    ours, theirs = pair(kind, 3, 4)
    sizes = ({0 if kind in CELLS else 1: Dim("batch", min=2)},)
    program = torch.export.export(ours, (example(kind),), dynamic_shapes=sizes, strict=strict)
    found = operators(program)
    assert any(target.startswith(f"aten.{OPERATOR[kind]}.") for target in found), found
    x = example(kind, batch=5)
    assert_same(flat(program.module()(x)), flat(theirs(x)))


def test_torchs_operator_fixes_the_number_of_steps() -> None:
    with pytest.raises(torch._dynamo.exc.UserError, match="specialized it to be a constant"):
        torch.export.export(
            fastrnn.GRU(3, 4), (example("GRU"),), dynamic_shapes=({0: Dim("steps", min=2)},)
        )


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_our_operator(kind: str, strict: bool) -> None:
    """Where a backend with kernels is insisted on; the number of steps may be open too."""
    ours, theirs = pair(kind, 3, 4)
    batch, steps = Dim("batch", min=2), Dim("steps", min=2)
    sizes = ({0: batch} if kind in CELLS else {0: steps, 1: batch},)
    with fastrnn.use_backend(KERNELS):
        program = torch.export.export(ours, (example(kind),), dynamic_shapes=sizes, strict=strict)
    assert OURS in operators(program)
    x = example(kind, steps=7, batch=5)
    assert_same(flat(program.module()(x)), flat(theirs(x)))


class Options(nn.Module):
    """What only our operator can do."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = fastrnn.LSTM(3, 4, bidirectional=True, return_cell_states=True)
        self.gru = fastrnn.GRU(8, 4, reset_after=False)
        self.cell = fastrnn.GRUCell(4, 4, reset_after=False)

    def forward(self, x: Tensor, lengths: Tensor, reset: Tensor) -> Any:
        y, _, (cell_states,) = self.lstm(x, lengths=lengths)
        y, h = self.gru(y + cell_states, reset=reset)
        return y, self.cell(h[0])


def arguments(steps: int, batch: int) -> tuple[Tensor, ...]:
    lengths = torch.randint(steps + 1, (batch,))
    return torch.randn(steps, batch, 3), lengths, torch.rand(steps, batch) < 0.3


def exported_options() -> tuple[Options, ExportedProgram]:
    model = Options()
    batch, steps = Dim("batch", min=2), Dim("steps", min=2)
    sizes = ({0: steps, 1: batch}, {0: batch}, {0: steps, 1: batch})
    return model, torch.export.export(model, arguments(5, 3), dynamic_shapes=sizes)


def test_options_saved_and_loaded() -> None:
    model, program = exported_options()
    assert OURS in operators(program)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    given = arguments(8, 6)
    assert_same(flat(loaded(*given)), flat(model(*given)))


def test_exported_programs_train() -> None:
    """Gradients of an exported program are those of the module it was made of."""
    model, program = exported_options()
    module, given = program.module(), arguments(6, 4)
    expected, actual = (
        torch.autograd.grad(
            torch.stack([tensor.cos().sum() for tensor in flat(called(*given))]).sum(),
            list(called.parameters()),
        )
        for called in (model, module)
    )
    named = dict(zip((name for name, _ in module.named_parameters()), actual, strict=True))
    in_order = tuple(named[name] for name, _ in model.named_parameters())
    assert_same(in_order, expected, rows=24)


# AOTInductor.


class Everything(nn.Module):
    """A model with each module."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.gru = fastrnn.RNN(3, 4), fastrnn.GRU(3, 4)
        self.lstm = fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True)
        self.cells = nn.ModuleList([getattr(fastrnn, kind)(3, 4) for kind in CELLS])

    def forward(self, x: Tensor) -> Any:
        cells = [cell(x[0]) for cell in self.cells]
        return self.rnn(x), self.lstm(x), self.gru(x), cells


LOADING = """
import sys, torch
from torch.utils._pytree import tree_leaves
package, results, needs_fastrnn = sys.argv[1:]
if needs_fastrnn == "True":
    try:
        torch._inductor.aoti_load_package(package)
    except RuntimeError as error:
        assert "fastrnn::layer_forward" in str(error), error
    else:
        raise AssertionError("loaded without the operator")
    import fastrnn
model, (x, expected) = torch._inductor.aoti_load_package(package), torch.load(results)
torch.testing.assert_close(tree_leaves(model(x)), expected)
assert ("fastrnn" in sys.modules) == (needs_fastrnn == "True")
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", [None, KERNELS], ids=["torch's operators", "ours"])
def test_packaged(backend: str | None, tmp_path: Path) -> None:
    """Loaded in a process of its own: where our operator is inside, fastrnn comes first."""
    model = Everything().eval()
    sizes = {1: Dim("batch", min=2)} | ({} if backend is None else {0: Dim("steps", min=2)})
    with torch.no_grad(), fastrnn.use_backend(backend):
        program = torch.export.export(model, (example("RNN", steps=2),), dynamic_shapes=(sizes,))
    package, results = str(tmp_path / "model.pt2"), str(tmp_path / "results.pt")
    torch._inductor.aoti_compile_and_package(program, package_path=package)

    x = example("RNN", steps=2 if backend is None else 6, batch=5)
    with torch.no_grad():
        expected = tree_leaves(model(x))
    loaded = tree_leaves(torch._inductor.aoti_load_package(package)(x))
    assert_same(tuple(loaded), tuple(expected))
    torch.save((x, expected), results)
    program_arguments = [sys.executable, "-c", LOADING, package, results, str(backend is not None)]
    run = subprocess.run(program_arguments, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


# TorchScript.


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_jit_trace_records_the_operator(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    traced = torch.jit.trace(ours, (example(kind),))
    graphs = [str(torch.jit.trace(m, (example(kind),)).inlined_graph) for m in (ours, theirs)]
    assert (f"aten::{OPERATOR[kind]}(" in graphs[0]) == (f"aten::{OPERATOR[kind]}(" in graphs[1])
    assert (f"aten::{OPERATOR[kind]}(" in graphs[0]) == (kind in SEQUENCES)  # cells decompose
    x = example(kind, steps=7)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    for module in (traced, torch.jit.load(file)):
        assert_same(flat(module(x)), flat(theirs(x)))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_jit_script_says_what_to_use_instead(kind: str) -> None:
    module = getattr(fastrnn, kind)(3, 4)
    model = nn.Sequential(nn.Linear(3, 3), module)
    for scripted in (module, model):
        with pytest.raises(
            RuntimeError, match=r"use torch\.jit\.trace, torch\.export or"
        ) as caught:
            torch.jit.script(scripted)
        assert f"fastrnn.{kind} " in str(caught.value)
        assert f"torch.nn.{kind} " in str(caught.value)
    assert model[1] is module
