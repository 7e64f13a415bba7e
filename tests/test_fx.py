"""torch.fx: our modules are leaves of a traced graph, as those of torch.nn are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import CELLS, FASTRNN, SEQUENCES, assert_same, flat, pair, states
from torch import Tensor, fx, nn

import fastrnn


class Model(nn.Module):
    """A recurrent module between operations that are traced."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        if isinstance(self.recurrent, nn.RNNCellBase):
            return self.recurrent(x * 2)
        output, state = self.recurrent(x * 2)
        return self.head(output), state


class WithStates(Model):
    def forward(self, x: Tensor, hx: Any) -> Any:  # type: ignore[override]
        return self.recurrent(x * 2, hx)


def calls(traced: fx.GraphModule) -> list[tuple[str, int, list[str]]]:
    """Of each recurrent module in a graph: where, how many arguments by position, keywords."""
    modules = [node for node in traced.graph.nodes if node.op == "call_module"]
    found = [(str(node.target), len(node.args), list(node.kwargs)) for node in modules]
    return [call for call in found if call[0] != "head"]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_leaves(kind: str, given: bool, grad: bool) -> None:
    """The same graph as with torch.nn's module, and the same numbers."""
    ours, theirs = pair(kind, 3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    inputs = (x, states(ours, 2)) if given else (x,)
    models = [(WithStates if given else Model)(module) for module in (ours, theirs)]
    models[0].head = models[1].head
    with torch.set_grad_enabled(grad):
        traced = [fx.symbolic_trace(model) for model in models]
        assert calls(traced[0]) == [("recurrent", len(inputs), [])]
        assert str(traced[0].graph) == str(traced[1].graph)
        assert_same(traced[0](*inputs), models[1](*inputs))
        assert_same(fx.symbolic_trace(traced[0])(*inputs), models[1](*inputs))


class Padded(nn.Module):
    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([recurrent])

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        zeros = torch.zeros(1, 2, 3)
        padded = self.layers[0](x, lengths=lengths, reset=x[:, :, 0] > 0)
        return padded, self.layers[0](zeros, lengths=lengths.clamp(max=1))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_options_that_torch_lacks(kind: str) -> None:
    """They are in the graph by name, also where the input itself is no part of it."""
    model = Padded(FASTRNN[kind](3, 4))
    traced = fx.symbolic_trace(model)
    assert calls(traced) == [
        ("layers.0", 1, ["lengths", "reset"]),
        ("layers.0", 1, ["lengths"]),
    ]
    for lengths in ([5, 2], [0, 4]):
        inputs = torch.randn(5, 2, 3), torch.tensor(lengths)
        assert all(map(torch.equal, flat(traced(*inputs)), flat(model(*inputs))))


def test_calls_on_constants_are_none_of_the_graph() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = fastrnn.GRUCell(3, 4)

        def forward(self, x: Tensor) -> Any:
            return x + self.cell(torch.ones(2, 3))

    model, x = Constant(), torch.randn(2, 4)
    traced = fx.symbolic_trace(model)
    assert not calls(traced)
    assert_same(traced(x), model(x))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_hooks_would_run_twice(kind: str, before: bool) -> None:
    """So they are refused, unless the tracer knows of the leaf before it calls it."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return type(m) is FASTRNN[kind] or super().is_leaf_module(m, module_qualified_name)

    module = FASTRNN[kind](3, 4)
    if before:
        module.register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))
    else:
        module.register_forward_hook(lambda module, args, result: [2 * r for r in flat(result)])
    model = nn.Sequential(module)
    with pytest.raises(RuntimeError, match=rf"'0' has some; use a Tracer .* fastrnn\.{kind}"):
        fx.symbolic_trace(model)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    traced = fx.GraphModule(model, Tracer().trace(model))
    assert_same(flat(traced(x)), flat(model(x)))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_module_by_itself_is_no_leaf(kind: str) -> None:
    """torch.nn's cannot be traced either."""
    for module in pair(kind, 3, 4):
        with pytest.raises(fx.proxy.TraceError):
            fx.symbolic_trace(module)
