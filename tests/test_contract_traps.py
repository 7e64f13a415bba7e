"""The ways in which replacements of torch.nn's RNNs have gone wrong (section 11), one test each."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from contract import (
    CELLS,
    FASTRNN,
    SEQUENCES,
    TORCH,
    Duck,
    Subclass,
    assert_same,
    assert_same_gradients,
    error,
    example,
    flat,
    packed,
    pair,
    states,
)
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import PackedSequence

import fastrnn

F64 = torch.float64


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_01_stale_cache_of_packed_weights(kind: str) -> None:
    """None of these writes moves a version counter."""
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x = example(kind, F64)
    assert_same(ours(x), theirs(x))

    def scale_data(weight: nn.Parameter) -> None:
        weight.data.mul_(0.5)

    def replace_data(weight: nn.Parameter) -> None:
        weight.data = weight.data.clone() * 2

    def write_numpy(weight: nn.Parameter) -> None:
        weight.detach().numpy()[...] += 0.25

    for write in (scale_data, replace_data, write_numpy):
        for module in (ours, theirs):
            for weight in module.parameters():
                write(weight)
        with torch.no_grad():
            assert_same(ours(x), theirs(x))
        assert_same(ours(x), theirs(x))
    vector_to_parameters(parameters_to_vector(ours.parameters()) * 0.5, ours.parameters())
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_02_gradients_under_torch_func(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x = example(kind, F64)

    def of_norm_of_gradient(module: nn.Module) -> list[Tensor]:
        def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return flat(torch.func.functional_call(module, weights, (x,)))[0].sin().sum()

        def norm(weights: dict[str, Tensor]) -> Tensor:
            return torch.func.grad(loss, argnums=1)(weights, x).square().sum()

        weights = {name: weight.detach() for name, weight in module.named_parameters()}
        return list(torch.func.grad(norm)(weights).values())

    assert_same(of_norm_of_gradient(ours), of_norm_of_gradient(theirs), rows=8)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_03_double_backward_through_a_state_that_depends_on_the_weights(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x0, x1 = example(kind, F64), example(kind, F64)
    results = []
    for module in (ours, theirs):
        weights = list(module.parameters())
        first = module(x0)
        hx = first if kind in CELLS else first[1]
        outputs = flat(module(x1, hx))
        wanted = [flat(hx)[0], *weights]
        grads = torch.autograd.grad(outputs[0].sin().mean(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().mean() for g in grads), weights)
        results.append((list(grads), list(second)))
    assert_same(*results, rows=16)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_04_gradients_of_both_biases_have_their_own_memory(kind: str) -> None:
    ours, _ = pair(kind, 3, 4)
    biases = [w for name, w in ours.named_parameters() if name.startswith("bias")]
    loss = flat(ours(example(kind, torch.float32)))[0].sum()
    first, second = torch.autograd.grad(loss, biases)
    before = second.clone()
    first.zero_()
    assert torch.equal(second, before)


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("steps", [1, 4])
def test_05_last_state_is_no_view_of_the_output(kind: str, steps: int) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x = torch.randn(steps, 2, 3, dtype=F64, requires_grad=True)
    expected = torch.autograd.grad(flat(theirs(x)[1])[0].sum(), x)
    output, hidden = ours(x)
    h_n = flat(hidden)[0]
    before = h_n.clone()
    output.zero_()
    assert torch.equal(h_n, before)
    assert_same(torch.autograd.grad(h_n.sum(), x), expected)
    output, hidden = ours(x)
    before = output.clone()
    flat(hidden)[0].zero_()
    assert torch.equal(output, before)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_06_packed_sequences(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, bidirectional=True)
    x, hx = packed(1, 4, 2), states(ours, 3)
    assert_same(ours(x, hx), theirs(x, hx))  # hx is permuted in, h_n out
    bad = PackedSequence(torch.zeros(3, 3), torch.tensor([2, 2]))
    assert type(error(lambda: ours(bad))) is RuntimeError


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_07_everything_kept_for_backward_is_saved_through_autograd(kind: str) -> None:
    """Backward lives on what the hooks return, although the originals are overwritten."""
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, hx = example(kind, F64).requires_grad_(), states(ours, 2, F64)
    leaves = [x, *ours.parameters()]
    expected = torch.autograd.grad(flat(theirs(x, hx))[0].sum(), [x, *theirs.parameters()])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        outputs = flat(ours(x, hx))
        loss = outputs[0].sum()
    for tensor in (*leaves, *flat(hx), *outputs):
        tensor.data.fill_(float("nan"))
    assert_same(torch.autograd.grad(loss, leaves), expected, rows=8)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_08_no_workspace_on_the_module(kind: str) -> None:
    ours, _ = pair(kind, 3, 4)
    names, size = set(vars(ours)), len(pickle.dumps(ours))
    long = example(kind, torch.float32).repeat_interleave(50, 0)
    first = flat(ours(long))[0]
    before = first.clone()
    ours(long * 2)
    assert torch.equal(first, before)
    assert set(vars(ours)) == names
    assert len(pickle.dumps(ours)) == size
    assert_same(copy.deepcopy(ours)(long), ours(long))


def test_09_type_of_the_error_of_a_wrong_dtype() -> None:
    for kind in SEQUENCES:
        with pytest.raises(ValueError, match=r"^RNN input dtype \(torch.float64\) does not match"):
            FASTRNN[kind](3, 4)(example(kind, F64))
    for kind in CELLS:
        assert type(error(lambda k=kind: FASTRNN[k](3, 4)(example(k, F64)))) is RuntimeError
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for kind in SEQUENCES + CELLS:
            assert FASTRNN[kind](3, 4)(example(kind, torch.bfloat16)) is not None


def test_10_forms_of_the_initial_state() -> None:
    ours, theirs = pair("LSTM", 3, 4, proj_size=2)
    x, (h, c) = torch.randn(5, 2, 3), states(ours, 2)
    assert (h.shape[-1], c.shape[-1]) == (2, 4)
    assert_same(ours(x, [h, c]), theirs(x, [h, c]))
    assert_same(ours(x[:, 0], [h[:, 0], c[:, 0]]), theirs(x[:, 0], [h[:, 0], c[:, 0]]))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_11_objects_that_override_torch_functions(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    x, hx = example(kind, torch.float32), states(ours, 2)
    result = ours(x.as_subclass(Subclass), hx)
    assert all(type(output) is Subclass for output in flat(result))
    plain = theirs(x, hx)
    assert_same([output.as_subclass(Tensor) for output in flat(result)], flat(plain))
    ducks = ours(Duck(x))
    leaves = torch.utils._pytree.tree_leaves(ducks)
    assert all(type(leaf) is Duck for leaf in leaves)
    assert_same(leaves[0].tensor, flat(theirs(x))[0])
    if kind in SEQUENCES:
        for options in ({"lengths": [4, 2]}, {"reset": torch.zeros(4, 2, dtype=torch.bool)}):
            for strange in (x.as_subclass(Subclass), Duck(x)):
                with pytest.raises(
                    TypeError, match=f"{next(iter(options))}: expected plain tensor"
                ):
                    ours(strange, **options)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_11_expanded_weights(kind: str) -> None:
    """Per-sample gradients by ``__torch_function__`` of the weights."""
    ours, theirs = pair(kind, 3, 4, batch_first=True, dtype=F64)
    x = torch.randn(3, 4, 3, dtype=F64)
    for module in (ours, theirs):
        call_for_per_sample_grads(module, batch_size=3)(x)[0].sin().sum().backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_same(own.grad_sample, other.grad_sample, rows=4)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_12_changes_after_construction(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, 2, dtype=F64)
    x = torch.randn(4, 2, 3, dtype=F64, requires_grad=True)
    for change in (
        {"dropout": 1.0},
        {"batch_first": True},
        {"training": False},
        {"weight_hh_l0": nn.Parameter(torch.randn_like(ours.weight_hh_l0))},
    ):
        for module in (ours, theirs):
            for name, value in change.items():
                setattr(module, name, value)
        assert_same_gradients(ours, theirs, x)
    for module in (ours, theirs):
        module.weight_ih_l0.requires_grad_(False)
        module.bias_hh_l1.requires_grad_(False)
    assert_same_gradients(ours, theirs, x)


def test_13_initial_values_of_the_projection() -> None:
    """Drawn from U(-1/sqrt(H), 1/sqrt(H)) with H the hidden size, and in torch's order."""
    torch.manual_seed(1)
    theirs = TORCH["LSTM"](3, 64, proj_size=4)
    expected_next = torch.rand(1)
    torch.manual_seed(1)
    ours = fastrnn.LSTM(3, 64, proj_size=4)
    assert torch.equal(torch.rand(1), expected_next)
    assert torch.equal(ours.weight_hr_l0, theirs.weight_hr_l0)
    assert 0.9 / 8 < float(ours.weight_hr_l0.detach().abs().max()) <= 1 / 8


def test_14_empty_sizes() -> None:
    for kind in SEQUENCES:
        ours = FASTRNN[kind](3, 4)
        assert ours(torch.zeros(5, 0, 3))[0].shape == (5, 0, 4)
        for shape in ((0, 2, 3), (0, 3), (0, 0, 3)):
            with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
                ours(torch.zeros(shape))
    for kind in CELLS:
        assert flat(FASTRNN[kind](3, 0)(torch.zeros(2, 3)))[0].shape == (2, 0)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_15_swapped_names_do_not_recurse(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = TORCH[kind](3, 4)
    for name in SEQUENCES + CELLS:
        monkeypatch.setattr(torch.nn, name, FASTRNN[name])
        monkeypatch.setattr(torch.nn.modules.rnn, name, FASTRNN[name])
    ours: Any = getattr(torch.nn, kind)(3, 4)
    assert type(ours) is FASTRNN[kind]
    theirs.load_state_dict(ours.state_dict())
    x = example(kind, torch.float32)
    assert_same(ours(x), theirs(x))
    assert_same(flat(ours(x.as_subclass(Subclass)))[0].as_subclass(Tensor), flat(theirs(x))[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(ours(x), theirs(x))
    assert_same(ours.bfloat16()(x.bfloat16()), theirs.bfloat16()(x.bfloat16()))
    assert isinstance(ours, getattr(torch.nn, kind))


def _transposed(tensor: Tensor) -> Tensor:
    """The same values, the first and last dimension exchanged in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_16_nothing_contiguous(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    for module in (ours, theirs):
        for weight in module.parameters():
            weight.data = torch.stack([weight.data, weight.data], -1)[..., 0]
    x, hx = example(kind, F64), states(ours, 2, F64)
    strided = [s.repeat_interleave(2, -1)[..., ::2] for s in flat(hx)]
    hx = tuple(strided) if "LSTM" in kind else strided[0]
    for given in (
        _transposed(x),
        x[..., :1].expand(x.shape),
        x.flip(0)[::1],
        x[:, :1].expand_as(x),
    ):
        leaf = given.detach().requires_grad_()
        results = []
        for module in (ours, theirs):
            outputs = flat(module(leaf, hx))
            upstream = [torch.ones((), dtype=F64).expand_as(o) for o in outputs]  # stride 0
            grads = torch.autograd.grad(outputs, [leaf, *module.parameters()], upstream)
            results.append((outputs, list(grads)))
        assert_same(*results, rows=8)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("wanted", ["weight_ih", "weight_hh", "bias_ih", "hx", "input", "nothing"])
def test_17_only_some_require_gradients(kind: str, wanted: str) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=F64)
    x, hx = example(kind, F64), states(ours, 2, F64)
    for module in (ours, theirs):
        for name, weight in module.named_parameters():
            weight.requires_grad_(name.startswith(wanted))
    x.requires_grad_(wanted == "input")
    for state in flat(hx):
        state.requires_grad_(wanted == "hx")
    if wanted == "nothing":
        assert not any(output.requires_grad for output in flat(ours(x, hx)))
    else:
        assert_same_gradients(ours, theirs, x, hx)


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_18_saturation_and_nan(kind: str, dtype: torch.dtype) -> None:
    ours, theirs = pair(kind, 3, 4, dtype=dtype)
    for scale in (1e2, 1e4, 1e30):
        x = example(kind, dtype) * scale
        results = [(flat(m(x)), [g / scale for g in gradients_of(m, x)]) for m in (ours, theirs)]
        assert torch.isfinite(results[0][0][0]).all()
        assert_same(*results, rows=8)
    x = example(kind, dtype)
    clean = flat(ours(x))
    x[..., 0, 1] = float("nan")
    for output, expected in zip(flat(ours(x)), clean, strict=True):
        assert output[..., 0, :].isnan().all()
        assert torch.equal(output[..., 1, :], expected[..., 1, :])
    x[..., 0, 1] = float("inf")
    for actual, expected in zip(flat(ours(x)), flat(theirs(x)), strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)


def gradients_of(module: Any, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    return list(torch.autograd.grad(flat(module(x))[0].sum(), [x, *module.parameters()]))


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_19_threads(kind: str) -> None:
    """Several threads in one module at once, forward and backward."""
    ours, _ = pair(kind, 3, 16)
    inputs = [example(kind, torch.float32) for _ in range(4)]
    expected = [(flat(ours(x)), gradients_of(ours, x)) for x in inputs]
    wrong: list[Any] = []

    def work(k: int) -> None:
        for _ in range(20):
            found = (flat(ours(inputs[k])), gradients_of(ours, inputs[k]))
            for a, e in zip(found[0] + found[1], expected[k][0] + expected[k][1], strict=True):
                if not torch.equal(a, e):
                    wrong.append((k, a, e))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", SEQUENCES)
def test_20_flat_weights(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, 2, bidirectional=True)
    for module in (ours, copy.deepcopy(ours), ours.double(), pickle.loads(pickle.dumps(ours))):
        assert type(module._flat_weights) is list
        assert module._flat_weights_names == theirs._flat_weights_names
        named = dict(module.named_parameters())
        for name, weight in zip(module._flat_weights_names, module._flat_weights, strict=True):
            assert weight is named[name]
