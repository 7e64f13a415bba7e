"""fastrnn.diagnostics: each figure against the same thing computed step by step with autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import fastrnn
import fastrnn.nn
from fastrnn import diagnostics
from fastrnn.backends.reference import STEPS
from fastrnn.diagnostics.gradients import Loss
from fastrnn.diagnostics.passes import cell_of, weights_of

MODULES = {
    "rnn_tanh": (fastrnn.RNN, {}),
    "rnn_relu": (fastrnn.RNN, {"nonlinearity": "relu"}),
    "rnn_sigmoid": (fastrnn.RNN, {"nonlinearity": "sigmoid"}),
    "rnn_identity": (fastrnn.RNN, {"nonlinearity": "identity"}),
    "lstm": (fastrnn.LSTM, {}),
    "lstm_projected": (fastrnn.LSTM, {"proj_size": 3}),
    "gru": (fastrnn.GRU, {}),
    "gru_reset_before": (fastrnn.GRU, {"reset_after": False}),
    "torch_rnn": (nn.RNN, {}),
    "torch_lstm": (nn.LSTM, {"bias": False}),
    "torch_gru": (nn.GRU, {"batch_first": True}),
}


def make(name: str, **options: object) -> nn.RNNBase:
    torch.manual_seed(1)
    module_class, own = MODULES[name]
    return module_class(4, 6, **own, dtype=torch.float64, **options)


def states(module: nn.RNNBase, batch: int = 3) -> Tensor | tuple[Tensor, Tensor]:
    shape = (module.num_layers * (1 + module.bidirectional), batch)
    h0 = torch.randn(*shape, module.proj_size or 6, dtype=torch.float64)
    return (h0, torch.randn(*shape, 6, dtype=torch.float64)) if module.mode == "LSTM" else h0


def by_steps(
    module: nn.RNNBase, x: Tensor, hx: Tensor | tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor], list[tuple[list[Tensor], list[Tensor]]]]:
    """Output, last states, and h_t and c_t of every pass as nodes of one autograd graph."""
    directions = 1 + module.bidirectional
    h0, c0 = hx if isinstance(hx, tuple) else (hx, None)
    nodes, h_n, c_n = [], [], []
    for k in range(module.num_layers):
        outputs = []
        for d in range(directions):
            step = STEPS[cell_of(module).name]
            weights = weights_of(module, k, d)
            h, c = h0[k * directions + d], None if c0 is None else c0[k * directions + d]
            hs: list[Tensor] = [h] * len(x)
            cs: list[Tensor] = [h] * len(x)
            for t in reversed(range(len(x))) if d else range(len(x)):
                h, c = step(x[t], h, c, weights)
                hs[t] = h
                if c is not None:
                    cs[t] = c
            nodes.append((hs, cs if c is not None else []))
            outputs.append(torch.stack(hs))
            h_n.append(h)
            c_n.append(c)
        x = torch.cat(outputs, -1)
    last = torch.stack(h_n)
    return x, last if c0 is None else (last, torch.stack(c_n)), nodes


def weighted(output: Tensor, state: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """A loss of all outputs and last states, no two of which have the same weight."""
    parts = [output, *(state if isinstance(state, tuple) else (state,))]
    return sum(
        (part * torch.arange(1, part.numel() + 1).view_as(part).cos()).sum() for part in parts
    )


SHAPES = [{}, {"num_layers": 2, "bidirectional": True}]


@pytest.mark.parametrize("options", SHAPES, ids=["one", "deep"])
@pytest.mark.parametrize("name", MODULES)
def test_state_gradients(name: str, options: dict[str, object]) -> None:
    """dL/dh_t and dL/dc_t are those that autograd finds at the nodes of a loop over steps."""
    module = make(name, **options)
    x, hx = torch.randn(5, 3, 4, dtype=torch.float64), states(module)
    found = diagnostics.state_gradients(
        module, x.transpose(0, 1) if module.batch_first else x, by_time(module, weighted), hx
    )
    start = tuple(s.requires_grad_() for s in hx) if isinstance(hx, tuple) else hx.requires_grad_()
    output, state, nodes = by_steps(module, x, start)
    loss = weighted(output, state)
    for gradients, (hs, cs) in zip(found, nodes, strict=True):
        expected = torch.stack(torch.autograd.grad(loss, hs, retain_graph=True))
        assert_close(gradients.h, expected)
        assert_close(gradients.norms(), expected.flatten(1).norm(dim=1))
        if cs:
            assert_close(gradients.c, torch.stack(torch.autograd.grad(loss, cs, retain_graph=True)))
        else:
            assert gradients.c is None
    assert [(g.layer, g.direction) for g in found] == [
        (k, d) for k in range(module.num_layers) for d in range(1 + module.bidirectional)
    ]
    assert all(parameter.grad is None for parameter in module.parameters())


def by_time(module: nn.RNNBase, loss: Loss) -> Loss:
    """The loss for outputs in the module's layout."""
    if not module.batch_first:
        return loss
    return lambda output, state: loss(output.transpose(0, 1), state)


@pytest.mark.parametrize("options", SHAPES, ids=["one", "deep"])
@pytest.mark.parametrize("name", MODULES)
def test_trace(name: str, options: dict[str, object]) -> None:
    """States are those of the loop, and each step's formula turns gates into them."""
    module = make(name, **options)
    x, hx = torch.randn(5, 3, 4, dtype=torch.float64), states(module)
    passes = diagnostics.trace(module, x.transpose(0, 1) if module.batch_first else x, hx)
    _, _, nodes = by_steps(module, x, hx)
    for one, (hs, cs) in zip(passes, nodes, strict=True):
        assert_close(one.h, torch.stack(hs))
        gates = one.gates
        if one.cell == "lstm":
            assert one.c is not None
            assert_close(one.c, torch.stack(cs))
            assert_close(gates["f"] * one.c_before + gates["i"] * gates["g"], one.c)
            h = gates["o"] * one.c.tanh()
            w_hr = one.weights.w_hr
            assert_close(h if w_hr is None else h @ w_hr.t(), one.h)
        elif one.cell.startswith("gru"):
            assert one.c is None
            assert_close((1 - gates["z"]) * gates["n"] + gates["z"] * one.h_before, one.h)
            assert list(gates) == ["r", "z", "n"]
        else:
            assert torch.equal(gates["h"], one.h)


def test_trace_unbatched_is_a_batch_of_one() -> None:
    module = make("lstm")
    x, hx = torch.randn(5, 4, dtype=torch.float64), states(module, 1)
    alone = diagnostics.trace(module, x, tuple(state[:, 0] for state in hx))[0]
    batch = diagnostics.trace(module, x[:, None], hx)[0]
    assert torch.equal(alone.h, batch.h)
    gradients = diagnostics.state_gradients(module, x, hx=tuple(state[:, 0] for state in hx))[0]
    assert_close(gradients.h, diagnostics.state_gradients(module, x[:, None], hx=hx)[0].h)


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("name", ["rnn_relu", "lstm_projected", "torch_rnn", "torch_gru"])
def test_integers_are_one_hot_vectors(name: str, unbatched: bool) -> None:
    module = make(name, num_layers=2)
    numbers = torch.randint(4, (5,) if unbatched else (3, 5) if module.batch_first else (5, 3))
    vectors = nn.functional.one_hot(numbers, 4).double()
    for one, other in zip(*(diagnostics.trace(module, x) for x in (numbers, vectors)), strict=True):
        assert torch.equal(one.h, other.h)
        assert torch.equal(one.x, other.x)
    found = (diagnostics.state_gradients(module, x) for x in (numbers, vectors))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.h, other.h)
    if not unbatched:
        moved = diagnostics.influence(module, numbers)
        assert torch.equal(moved, diagnostics.influence(module, vectors))


CELL_MODULES = {
    "rnn_sigmoid": (fastrnn.RNNCell, {"nonlinearity": "sigmoid"}, fastrnn.RNN),
    "lstm": (fastrnn.LSTMCell, {}, fastrnn.LSTM),
    "gru_reset_before": (fastrnn.GRUCell, {"reset_after": False}, fastrnn.GRU),
    "torch_rnn": (nn.RNNCell, {"nonlinearity": "relu"}, nn.RNN),
    "torch_lstm": (nn.LSTMCell, {}, nn.LSTM),
    "torch_gru": (nn.GRUCell, {}, nn.GRU),
}


@pytest.mark.parametrize("name", CELL_MODULES)
def test_a_cell_is_a_layer(name: str) -> None:
    """Every function finds of a cell what it finds of the layer with its weights."""
    cell_class, options, layer_class = CELL_MODULES[name]
    cell = cell_class(4, 6, **options, dtype=torch.float64)
    layer = layer_class(4, 6, **options, dtype=torch.float64)
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    x, hx = torch.randn(5, 3, 4, dtype=torch.float64), states(layer)
    own = tuple(state[0] for state in hx) if isinstance(hx, tuple) else hx[0]  # (B, H)
    assert torch.equal(diagnostics.eigenvalues(cell), diagnostics.eigenvalues(layer))
    (one,), (other,) = diagnostics.trace(cell, x, own), diagnostics.trace(layer, x, hx)
    assert torch.equal(one.h, other.h)
    assert torch.equal(*(diagnostics.state_jacobians(each) for each in (one, other)))
    for loss in (diagnostics.gradients.last_output, weighted):
        (ours,) = diagnostics.state_gradients(cell, x, loss, own)
        (theirs,) = diagnostics.state_gradients(layer, x, loss, hx)
        assert torch.equal(ours.h, theirs.h)
    assert torch.equal(diagnostics.influence(cell, x, own), diagnostics.influence(layer, x, hx))
    with torch.no_grad():  # a loop over the cell
        h = own
        for step in x:
            h = cell(step, h)
    assert_close(one.h[-1], h[0] if isinstance(h, tuple) else h)
    alone = tuple(state[0] for state in own) if isinstance(own, tuple) else own[0]  # (H,)
    assert_close(diagnostics.trace(cell, x[:, 0], alone)[0].h, one.h[:, :1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["rnn_tanh", "lstm", "gru", "torch_lstm"])
def test_half_precision_is_looked_at_in_single(name: str, dtype: torch.dtype) -> None:
    wide = make(name).float()
    half = make(name).to(dtype)
    wide.load_state_dict(half.state_dict())
    x = torch.randn(5, 3, 4).to(dtype)
    assert torch.equal(diagnostics.eigenvalues(half), diagnostics.eigenvalues(wide))
    one, other = (diagnostics.trace(m, x.to(m.weight_hh_l0.dtype))[0] for m in (half, wide))
    products, expected = (
        diagnostics.jacobian_products(diagnostics.state_jacobians(each)) for each in (one, other)
    )
    assert products.dtype == torch.float32
    rounded = {"rtol": 0.05, "atol": 0.01}
    assert_close(products, expected, **rounded)
    norms = diagnostics.state_gradients(half, x)[0].norms()
    assert_close(norms, diagnostics.state_gradients(wide, x.float())[0].norms(), **rounded)
    assert diagnostics.influence(half, x).dtype == torch.float32
    matrix = diagnostics.recurrent_weight(half)
    assert diagnostics.power_iteration(matrix, 5).rates.dtype == torch.float32
    if name == "rnn_tanh":
        assert torch.equal(diagnostics.jacobian_bound(one), diagnostics.jacobian_bound(other))
    else:
        assert_close(
            diagnostics.forgetting_time(one), diagnostics.forgetting_time(other), **rounded
        )


@pytest.mark.parametrize("name", ["rnn_tanh", "lstm", "lstm_projected", "gru", "gru_reset_before"])
@pytest.mark.parametrize("direction", [0, 1])
def test_jacobians(name: str, direction: int) -> None:
    """Products of Jacobians carry a change of the first state to the last."""
    module = make(name, bidirectional=True)
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    one = diagnostics.trace(module, x, states(module, 2))[direction]
    jacobians = diagnostics.state_jacobians(one)
    order = range(5, -1, -1) if direction else range(6)
    first, last = order[0], order[-1]

    def end(state: Tensor) -> Tensor:
        """The last state of row 0, from the state after the first step."""
        units = one.h.shape[-1]
        h, c = (state, None) if one.c is None else (state[:units], state[units:])
        for t in order[1:]:
            h, c = STEPS[one.cell](x[t, 0], h, c, one.weights)
        return h if c is None else torch.cat([h, c])

    start = one.h[first, 0] if one.c is None else torch.cat([one.h[first, 0], one.c[first, 0]])
    whole = torch.func.jacrev(end)(start)
    product = torch.eye(len(start), dtype=torch.float64)
    for t in order[1:]:
        product = jacobians[t, 0] @ product
    assert_close(product, whole)
    norms = diagnostics.jacobian_products(jacobians, direction)
    assert_close(norms[first, 0], torch.linalg.matrix_norm(whole, 2))
    assert_close(norms[last], torch.ones(2, dtype=torch.float64))


def test_jacobian_bound_holds_and_is_reached() -> None:
    module = make("rnn_identity")
    fastrnn.nn.init.recurrent_orthogonal_(module, 0.9)
    x = torch.randn(8, 2, 4, dtype=torch.float64)
    one = diagnostics.trace(module, x)[0]
    products = diagnostics.jacobian_products(diagnostics.state_jacobians(one))
    bound = diagnostics.jacobian_bound(one)
    assert_close(products, bound[:, None].expand(8, 2))  # equal: linear, and orthogonal
    for name in ("rnn_tanh", "rnn_sigmoid"):
        one = diagnostics.trace(make(name), x)[0]
        products = diagnostics.jacobian_products(diagnostics.state_jacobians(one))
        assert (products <= diagnostics.jacobian_bound(one)[:, None] * (1 + 1e-12)).all()
    with pytest.raises(ValueError, match="vanilla layer, got one of gru"):
        diagnostics.jacobian_bound(diagnostics.trace(make("gru"), x)[0])


def test_influence() -> None:
    """Each row is what running with another input at that step gives."""
    module = make("gru", num_layers=2)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    found = diagnostics.influence(module, x)
    whole = module(x)[1][-1]
    for t in range(5):
        other = x.clone()
        other[t] = x[t].roll(1, dims=0)
        change = (module(other)[1][-1] - whole).norm(dim=-1) / whole.norm(dim=-1)
        assert_close(found[t], change)
    with torch.no_grad():
        module.weight_hh_l0.zero_(), module.weight_hh_l1.zero_()
        module.bias_hh_l0[6:12] = module.bias_hh_l1[6:12] = -1e3  # z = 0: nothing is kept
    found = diagnostics.influence(module, x)
    assert (found[:-1] < 1e-12).all()
    assert (found[-1] > 0).all()
    with pytest.raises(ValueError, match="expected 2 or more rows, got 1"):
        diagnostics.influence(module, x[:, :1])


def test_influence_on_a_state_of_zero() -> None:
    """0 where it stays 0, and 1 where it does not: relu of the last input alone."""
    module = fastrnn.RNN(1, 2, nonlinearity="relu", bias=False)
    with torch.no_grad():
        module.weight_ih_l0.fill_(1)
        module.weight_hh_l0.zero_()
    x = torch.tensor([[1.0, 1, 1], [-1, -2, 3]])[..., None]
    assert_close(diagnostics.influence(module, x), torch.tensor([[0.0, 0, 0], [1, 0, 1]]))


def test_saturation_and_forgetting_time() -> None:
    module = make("lstm")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0[6:12] = torch.tensor([-9.0, -9, -9, 9, 9, 9])  # f
        module.bias_ih_l0[12:18] = torch.tensor([-9.0, 0, 9, -9, 0, 9])  # g
    one = diagnostics.trace(module, torch.randn(4, 2, 4, dtype=torch.float64))[0]
    gates = diagnostics.saturation(one)
    assert gates["f"].shut.tolist() == [1, 1, 1, 0, 0, 0]
    assert gates["f"].open.tolist() == [0, 0, 0, 1, 1, 1]
    assert gates["g"].shut.tolist() == [1, 0, 0, 1, 0, 0]
    assert gates["g"].open.tolist() == [0, 0, 1, 0, 0, 1]
    assert not gates["i"].shut.any()
    assert not gates["i"].open.any()
    f = torch.sigmoid(torch.tensor([-9.0, 9.0], dtype=torch.float64))
    assert_close(diagnostics.forgetting_time(one)[[0, 3]], -1 / f.log())
    with pytest.raises(ValueError, match="margin"):
        diagnostics.saturation(one, 0.5)
    with pytest.raises(ValueError, match="LSTM or GRU"):
        diagnostics.forgetting_time(
            diagnostics.trace(make("rnn_tanh"), torch.randn(2, 1, 4).double())[0]
        )


def test_spectrum() -> None:
    module = make("gru")
    w_n = module.weight_hh_l0.detach()[12:]
    assert torch.equal(diagnostics.recurrent_weight(module), w_n)
    expected = torch.linalg.eigvals(w_n).abs().max()
    assert diagnostics.spectral_radius(module) == pytest.approx(float(expected))
    matrix = torch.diag(torch.tensor([0.5, -1.25, 0.25], dtype=torch.float64))
    run = diagnostics.power_iteration(matrix, 400, generator=torch.Generator().manual_seed(0))
    assert float(run.rates[-1]) == pytest.approx(1.25, rel=0.01)
    assert_close(run.vector.abs(), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    assert len(run.norms) == 401
    assert run.norms[0] == 1
    for wrong, words in ((torch.ones(2, 3), "square"), (torch.ones(3), "square")):
        with pytest.raises(ValueError, match=words):
            diagnostics.power_iteration(wrong)
    with pytest.raises(ValueError, match="one of r, z, n, got 'f'"):
        diagnostics.recurrent_weight(module, "f")
    with pytest.raises(IndexError, match="layer: expected 0 to 0, got 1"):
        diagnostics.recurrent_weight(module, layer=1)


def test_bad_calls() -> None:
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    with pytest.raises(
        TypeError, match=r"expected an RNN, LSTM, GRU or a cell of fastrnn or torch\.nn, got Linear"
    ):
        diagnostics.trace(nn.Linear(4, 4), x)
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"reader": make("gru")}))
    for function in (diagnostics.spectral_radius, fastrnn.nn.init.recurrent_orthogonal_):
        with pytest.raises(
            TypeError, match=r"got Sequential; .* the layer itself, here \.1\.reader"
        ):
            function(model)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]))
    with pytest.raises(TypeError, match=r"expected a Tensor, got a PackedSequence; rows of one"):
        diagnostics.trace(make("gru"), packed)
    with pytest.raises(RuntimeError, match="input: expected 4 features, got 3"):
        diagnostics.trace(make("gru"), x[..., :3])
    with pytest.raises(IndexError, match=r"expected values from 0 to 3, .*, got 4"):
        diagnostics.trace(make("gru"), torch.tensor([[1, 4]]))
    with pytest.raises(TypeError, match="pair of tensors"):
        diagnostics.trace(make("lstm"), x, torch.zeros(1, 2, 6))
    with pytest.raises(
        ValueError, match="expected 2 or 3 dimensions, or 1 or 2 of integers, got 1"
    ):
        diagnostics.trace(make("gru"), x[0, 0])
    with pytest.raises(ValueError, match="loss: expected a scalar"):
        diagnostics.state_gradients(make("gru"), x, lambda output, state: output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["orthogonal", "identity", "scaled"])
def test_initialisations_in_half_precision(kind: str, dtype: torch.dtype) -> None:
    """Those of single precision, rounded."""
    half, wide = fastrnn.GRU(4, 6).to(dtype), nn.GRU(4, 6)
    wide.load_state_dict(half.state_dict())
    for module in (half, wide):
        torch.manual_seed(2)
        getattr(fastrnn.nn.init, f"recurrent_{kind}_")(module, 0.7)
    assert torch.equal(half.weight_hh_l0, wide.weight_hh_l0.to(dtype))


@pytest.mark.parametrize("module_class", [fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU, nn.LSTM])
@pytest.mark.parametrize("kind", ["orthogonal", "identity", "scaled"])
def test_recurrent_initialisations(module_class: type[nn.RNNBase], kind: str) -> None:
    module = module_class(4, 6, num_layers=2, bidirectional=True)
    result = getattr(fastrnn.nn.init, f"recurrent_{kind}_")(module, 0.7)
    assert result is module
    for name, parameter in module.named_parameters():
        if not name.startswith("weight_hh"):
            continue
        for block in parameter.detach().chunk(parameter.shape[0] // 6):
            if kind == "orthogonal":
                assert_close(block @ block.t(), 0.49 * torch.eye(6))
            elif kind == "identity":
                assert torch.equal(block, 0.7 * torch.eye(6))
            else:
                assert float(torch.linalg.eigvals(block).abs().max()) == pytest.approx(
                    0.7, rel=1e-4
                )


def test_forget_bias_and_chrono() -> None:
    for module in (fastrnn.LSTM(4, 6, num_layers=2), nn.LSTMCell(4, 6)):
        fastrnn.nn.init.forget_bias_(module, 2.0)
        own = dict(module.named_parameters())
        for name in own:
            if name.startswith("bias_ih"):
                both = own[name] + own[name.replace("ih", "hh")]
                assert (both[6:12] == 2).all()
    lstm = fastrnn.nn.init.chrono_(fastrnn.LSTM(4, 500), 100)
    forget = lstm.bias_ih_l0.detach()[500:1000]
    assert forget.min() >= 0
    assert forget.max() <= math.log(99)
    assert torch.equal(lstm.bias_ih_l0.detach()[:500], -forget)
    one = diagnostics.trace(lstm, torch.zeros(1, 1, 4))[0]
    assert one.gates["f"].min() >= 0.4
    gru = fastrnn.nn.init.chrono_(fastrnn.GRUCell(4, 6), 10)
    assert (gru.bias_ih[6:12] >= 0).all()
    with pytest.raises(TypeError, match="an LSTM with biases"):
        fastrnn.nn.init.forget_bias_(fastrnn.GRU(4, 6))
    with pytest.raises(TypeError, match="with biases"):
        fastrnn.nn.init.chrono_(fastrnn.LSTM(4, 6, bias=False), 10)
    with pytest.raises(TypeError, match="got Linear"):
        fastrnn.nn.init.recurrent_orthogonal_(nn.Linear(4, 6))
