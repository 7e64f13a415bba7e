"""torch.compile: one graph for every module and option, for any size, and equal numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cases
import pytest
import torch
from cases import Arguments, Case, Outputs, results
from contract import CELLS, SEQUENCES, assert_same, example, flat, packed, pair, states
from tolerances import tolerance
from torch import Tensor, nn
from torch._dynamo.testing import AotEagerAndRecordGraphs
from torch._dynamo.utils import counters

import fastrnn

BFLOAT16 = torch.bfloat16

ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(module: Any, backend: str = "aot_eager", **options: Any) -> Any:
    return torch.compile(module, backend=backend, fullgraph=True, **options)


def graphs() -> int:
    """How many graphs were compiled since the test began."""
    return int(counters["stats"]["unique_graphs"])


def gradients(result: Any, sources: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a loss on all that was returned."""
    loss = sum((tensor.float().cos().sum() for tensor in flat(result)), torch.zeros(()))
    return torch.autograd.grad(loss, sources)


MODULES = [(kind, {}) for kind in SEQUENCES + CELLS]
MODULES += [(kind, {"num_layers": 2, "bidirectional": True}) for kind in SEQUENCES]
MODULES += [("LSTM", {"proj_size": 2, "batch_first": True}), ("LSTMCell", {"bias": False})]


@pytest.mark.parametrize(("kind", "options"), MODULES, ids=str)
def test_modules(kind: str, options: dict[str, Any]) -> None:
    """Forward and backward with an initial state, equal to torch.nn's uncompiled."""
    ours, theirs = pair(kind, 3, 4, **options)
    x = example(kind).requires_grad_()
    hx = states(ours, 4 if options.get("batch_first") else 2)
    result, expected = compiled(ours)(x, hx), theirs(x, hx)
    assert_same(result, expected)
    found = gradients(result, [x, *ours.parameters()])
    assert_same(found, gradients(expected, [x, *theirs.parameters()]), rows=8)
    assert graphs() == 1


FUNCTIONS = [
    Case("rnn_identity", layers=2, lengths="random"),
    Case("rnn_relu", layout="unbatched", reset="random"),
    Case("gru", layout="packed", hx=False),
    Case("gru_reset_before", layout="batch_first", bidirectional=True, lengths="random"),
    Case("lstm", layers=2, lengths="random", reset="random", cell_states=True),
    Case("lstm", layout="packed_unsorted", bidirectional=True, reset="random"),
    Case("lstm", layout="packed_unsorted", hx=False, recompute=True),
]


@cases.each(FUNCTIONS)
def test_functions(case: Case) -> None:
    """The functions with every option, in one graph: outputs and gradients of the reference."""
    arguments = cases.arguments(case)

    def forward(a: Arguments) -> Outputs:
        def outputs(tensors: dict[str, Tensor]) -> Outputs:
            return cases.fastrnn_forward(arguments.with_tensors(tensors))

        return compiled(outputs)(a.differentiable())

    cases.check(results(arguments, forward), cases.reference(arguments), case)
    assert graphs() == 1


class Model(nn.Module):
    """A larger model with every kind of module in it, and every option around them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = fastrnn.LSTM(6, 5, bidirectional=True, return_cell_states=True)
        self.middle = fastrnn.GRU(10, 7, reset_after=False, batch_first=True)
        self.last = fastrnn.RNN(7, 5, nonlinearity="sigmoid", recompute=True)
        self.cells = nn.ModuleList(
            [fastrnn.RNNCell(5, 4), fastrnn.GRUCell(5, 4), fastrnn.LSTMCell(5, 4)]
        )
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor, lengths: Tensor, reset: Tensor) -> Tensor:
        x, _, (cell_states,) = self.encoder(self.embedding(tokens), lengths=lengths)
        x, _ = self.middle((x + cell_states).relu().transpose(0, 1), reset=reset.T)
        x, _ = self.last(x.transpose(0, 1))
        rnn, gru, lstm = (cell(x[-1]) for cell in self.cells)
        logits: Tensor = self.head(rnn + gru + lstm[0])
        return logits


def batch(steps: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(11, (steps, rows))
    return tokens, torch.randint(steps + 1, (rows,)), torch.rand(steps, rows) < 0.3


def assert_trains_equally(model: nn.Module, fast: Any, arguments: tuple[Tensor, ...]) -> None:
    weights = list(model.parameters())
    result, expected = fast(*arguments), model(*arguments)
    assert_same(result, expected)
    assert_same(gradients(result, weights), gradients(expected, weights), rows=arguments[0].numel())


def test_larger_model_of_changing_sizes() -> None:
    """Sizes that a compiler may not take for granted: all differ from each other and from 1."""
    model = Model()
    fast = compiled(model, dynamic=True)
    for steps, rows in ((9, 8), (13, 12)):
        assert_trains_equally(model, fast, batch(steps, rows))
    known = graphs()
    assert known == 1
    for steps, rows in ((8, 15), (14, 9), (20, 2)):
        assert_trains_equally(model, fast, batch(steps, rows))
    assert graphs() == known


@pytest.mark.parametrize("kind", SEQUENCES)
def test_sizes_found_to_change(kind: str) -> None:
    """Without ``dynamic``, the second size is the last that is compiled for."""
    module = getattr(fastrnn, kind)(3, 5)
    fast = compiled(module)
    for steps, rows in ((9, 8), (13, 12), (7, 10), (22, 6)):
        x = torch.randn(steps, rows, 3)
        assert_same(fast(x), module(x))
    assert graphs() == 2


@pytest.mark.parametrize("sorted", [False, True])
@pytest.mark.parametrize("kind", SEQUENCES)
def test_packed_data_of_changing_sizes(kind: str, sorted: bool) -> None:
    module = getattr(fastrnn, kind)(3, 9, bidirectional=True)
    fast = compiled(module, dynamic=True)
    for lengths in ((7, 5, 5, 2), (8, 6, 4, 4, 2), (10, 9, 3, 3, 2, 1)):
        sequence = packed(*lengths[:: 1 if sorted else -1], sorted=sorted)
        sequence.data.requires_grad_()
        sources = [sequence.data, *module.parameters()]
        result, expected = fast(sequence), module(sequence)
        assert_same(result, expected)
        rows = sequence.data.shape[0]
        assert_same(gradients(result, sources), gradients(expected, sources), rows=rows)
    assert graphs() == 1


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_A_GPU)], ids=str)
def test_reduce_overhead(device: str) -> None:
    """The whole way through Inductor; on a GPU with CUDA graphs."""
    model = Model().to(device)
    fast = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for _ in range(3):
        tokens, lengths, reset = batch(6, 5)
        assert_trains_equally(model, fast, (tokens.to(device), lengths, reset.to(device)))
    assert graphs() == 1


def autocast_inputs(kind: str) -> dict[str, tuple[Any, Any]]:
    """``(input, hx)`` of every kind whose dtype has a say in that of the results."""
    x, sequence = torch.randn(6, 2, 3), packed(4, 6)
    module = getattr(fastrnn, kind)(3, 4)
    hx = states(module, 2)
    narrow = tuple(h.to(BFLOAT16) for h in flat(hx))
    hx_narrow = narrow if kind == "LSTM" else narrow[0]
    return {
        "x": (x, None),
        "x and hx": (x, hx),
        "hx in bfloat16": (x, hx_narrow),
        "x in bfloat16": (x.to(BFLOAT16), None),
        "packed": (sequence, None),
        "packed and hx in bfloat16": (sequence, hx_narrow),
    }


@pytest.mark.skipif(BFLOAT16 not in cases.STORAGE_DTYPES, reason="no kernels for bfloat16")
@pytest.mark.parametrize("given", list(autocast_inputs("RNN")))
@pytest.mark.parametrize("kind", SEQUENCES)
def test_autocast(kind: str, given: str) -> None:
    """torch.nn's dtypes and, within the rounding of bfloat16, its numbers and gradients."""
    assert_autocast(kind, *autocast_inputs(kind)[given])


@pytest.mark.skipif(BFLOAT16 not in cases.STORAGE_DTYPES, reason="no kernels for bfloat16")
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_autocast_with_a_projection(layout: str) -> None:
    x = torch.randn(6, 2, 3) if layout == "padded" else packed(4, 6)
    assert_autocast("LSTM", x, None, proj_size=2, num_layers=2, bidirectional=True)


@pytest.mark.parametrize("kind", CELLS)
def test_autocast_of_cells(kind: str) -> None:
    assert_autocast(kind, torch.randn(2, 3), None)


@pytest.mark.slow
def test_autocast_through_inductor() -> None:
    """The case that torch.nn's own operators take minutes for, unrolled: many steps."""
    assert_autocast("LSTM", torch.randn(200, 2, 3), None, backend="inductor")


def assert_autocast(
    kind: str, input: Any, hx: Any, backend: str = "aot_eager", **options: Any
) -> None:
    ours, theirs = pair(kind, 3, 4, **options)
    recorder = AotEagerAndRecordGraphs()
    with torch.autocast("cpu", BFLOAT16):
        result = compiled(ours, recorder if backend == "aot_eager" else backend)(input, hx)
        expected = theirs(input, hx)
    if kind in SEQUENCES and recorder.fw_graphs:
        targets = {str(node.target) for graph in recorder.fw_graphs for node in graph.graph.nodes}
        assert "fastrnn.layer_forward.default" in targets

    rows = flat(input)[0][..., 0].numel()
    steps = rows * options.get("num_layers", 1)
    bound = tolerance(torch.float32, steps, 32, storage=BFLOAT16)
    for own, other in zip(flat(result), flat(expected), strict=True):
        torch.testing.assert_close(own, other, **bound)
    weights = [list(module.parameters()) for module in (ours, theirs)]
    bound = tolerance(torch.float32, steps, 32, rows=rows, storage=BFLOAT16)
    found, wanted = gradients(result, weights[0]), gradients(expected, weights[1])
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, **bound)


def test_autocast_leaves_float64_alone() -> None:
    ours, theirs = pair("LSTM", 3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    with torch.autocast("cpu", BFLOAT16):
        assert_same(compiled(ours)(x), theirs(x))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_autocast_with_options_keeps_the_dtype_of_weights(kind: str) -> None:
    module = getattr(fastrnn, kind)(3, 4)
    x, lengths = torch.randn(5, 2, 3), torch.tensor([5, 2])
    with torch.autocast("cpu", BFLOAT16):
        result = compiled(module)(x, lengths=lengths)
    assert_same(result, module(x, lengths=lengths))
