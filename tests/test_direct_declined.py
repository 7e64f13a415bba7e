"""What direct calls decline: every unusual call has exactly the long way's result or error."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import cases
import numpy as np
import pytest
import torch
from contract import CELLS, FASTRNN, SEQUENCES, Duck, Subclass, flat, packed
from directly import changed, compare, declined, example, served, the_long_way, watched
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from fastrnn import backends

pytestmark = pytest.mark.skipif(not cases.NATIVE, reason="direct calls are the compiled kernels'")

KINDS = SEQUENCES + CELLS


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


# Inputs and states.


def columns(t: Tensor) -> Tensor:
    """The same values, features not adjacent."""
    return t.mT.contiguous().mT if t.dim() > 1 else t


#: Declined; what torch takes as well has a result, the rest an error.
INPUTS: dict[str, Callable[[Tensor], Any]] = {
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "int64": lambda x: x.long(),
    "complex64": lambda x: x.cfloat(),
    "one feature more": lambda x: torch.cat([x, x[..., :1]], -1),
    "one feature": lambda x: x[..., :1],
    "no features": lambda x: x[..., :0],
    "no rows": lambda x: x[..., :0, :],
    "no steps": lambda x: x[:0],
    "scalar": lambda x: x.flatten()[0],
    "four dimensions": lambda x: x.view(*[1] * (4 - x.dim()), *x.shape),
    "columns": columns,
    "negated lazily": torch._neg_view,
    "imaginary part": lambda x: torch.complex(x, -x).conj().imag,
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "Parameter": nn.Parameter,
    "subclass": lambda x: x.as_subclass(Subclass),
    "duck": Duck,
    "list": lambda x: x.tolist(),
    "array": lambda x: x.numpy(),
    "None": lambda x: None,
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "mkldnn": lambda x: x.to_mkldnn(),
    "packed": lambda x: packed(2, 1)._replace(data=x),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_input(kind: str, name: str) -> None:
    module, x, hx = example(kind)
    unusual = INPUTS[name](x)
    for states in ((), (hx,)):
        declined(lambda states=states: module(unusual, *states))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_state(kind: str, name: str) -> None:
    module, x, hx = example(kind)
    if name != "None" or isinstance(hx, tuple):  # no state at all is served
        declined(lambda: module(x, changed(hx, INPUTS[name])))
    if isinstance(hx, tuple):
        declined(lambda: module(x, (INPUTS[name](hx[0]), hx[1])))
        declined(lambda: module(x, (hx[0], INPUTS[name](hx[1]))))


@pytest.mark.parametrize("kind", KINDS)
def test_form_of_the_state(kind: str) -> None:
    module, x, hx = example(kind)
    h = flat(hx)[0]
    c = flat(hx)[-1]
    forms = [[h, c], (h,), (h, c, c), (), [], ((h, c),), {"h": h}, 0, "h", (h, None), (None, c)]
    forms.append((h, c) if "LSTM" not in kind else h)
    for form in forms:
        declined(lambda form=form: module(x, form))


@pytest.mark.parametrize("kind", KINDS)
def test_shape_of_the_state(kind: str) -> None:
    module, x, hx = example(kind)
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda h: h[..., :3],
        lambda h: h[..., :1, :],
        lambda h: torch.cat([h, h], -2),
        lambda h: h.squeeze(0) if h.dim() == 3 else h[0],
        lambda h: h.unsqueeze(0),
        lambda h: h.transpose(0, -1),
        lambda h: h.flatten(),
        lambda h: torch.cat([h, h]),
    ]
    for change in changes:
        declined(lambda change=change: module(x, changed(hx, change)))
    unbatched = x[:, 0] if kind in SEQUENCES else x[0]
    declined(lambda: module(unbatched, hx))


def test_states_of_a_projection() -> None:
    module, x, (h, c) = example("LSTM", proj_size=2)
    served(lambda: module(x, (h, c)))
    for wrong in ((c, c), (h, h), (c, h)):
        declined(lambda wrong=wrong: module(x, wrong))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_options_of_a_call(kind: str) -> None:
    module, x, hx = example(kind)
    declined(lambda: module(x, hx, reset=torch.ones(5, 2, dtype=torch.bool)))


def test_cell_states() -> None:
    module, x, hx = example("LSTM", return_cell_states=True)
    assert len(declined(lambda: module(x, hx))) == 3


# Weights.


def transpose(module: nn.Module) -> None:
    for weight in module.parameters():
        weight.data = columns(weight.data)


def negate(module: nn.Module) -> None:
    for weight in module.parameters():
        weight.data = torch._neg_view(weight.data)


def first(module: nn.Module) -> str:
    return next(name for name, _ in module.named_parameters())


def norm(module: nn.Module) -> None:
    parametrizations.weight_norm(module, first(module).replace("ih", "hh"))


def old_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module, first(module).replace("ih", "hh"))


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def edit_list(module: nn.Module) -> None:
    """As some implementations of weight dropout do; cells have no such list."""
    if isinstance(module, nn.RNNBase):
        flat_weights: list[Any] = module._flat_weights
        flat_weights[1] = torch.zeros_like(flat_weights[1])
    else:
        weight = module._parameters.pop("weight_hh")
        assert weight is not None
        module.weight_hh = torch.zeros_like(weight)


def grow(name: str) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        setattr(module, name, getattr(module, name) + 1)

    return change


def cut(module: nn.Module) -> None:
    weight = getattr(module, first(module))
    weight.data = weight.data[:-1].clone()


def replaced(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def change_first(module: nn.Module) -> None:
        weight = getattr(module, first(module)).detach()
        setattr(module, first(module), nn.Parameter(change(weight)))

    return change_first


def without_memory(module: nn.Module) -> None:
    getattr(module, first(module)).data.untyped_storage().resize_(0)


MODULES: dict[str, Callable[[nn.Module], object]] = {
    "transposed": transpose,
    "negated lazily": negate,
    "weight_norm": norm,
    "weight_norm, old": old_norm,
    "parametrized": lambda m: parametrize.register_parametrization(m, first(m), Double()),
    "pruned": lambda m: prune.l1_unstructured(m, first(m), 0.5),
    "edited list": edit_list,
    "hidden_size": grow("hidden_size"),
    "no hidden_size": lambda m: setattr(m, "hidden_size", 0),
    "one weight float64": replaced(lambda weight: weight.double()),
    "float64": lambda m: m.double(),
    "float16": lambda m: m.half(),
    "meta": lambda m: m.to("meta"),
    "one row less": cut,
    "no memory": without_memory,
    "subclass": replaced(lambda weight: weight.as_subclass(Subclass)),
    "uninitialized": lambda m: setattr(m, first(m), nn.UninitializedParameter()),
    "removed": lambda m: delattr(m, first(m)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("kind", KINDS)
def test_module(kind: str, name: str) -> None:
    module, x, hx = example(kind)
    MODULES[name](module)
    declined(lambda: module(x))
    declined(lambda: module(x, hx))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_attributes_of_a_sequence_module(kind: str) -> None:
    changes: dict[str, Any] = {
        "input_size": (4, 3.0, None),
        "num_layers": (2, 0, 1.0, 2**62),
        "bidirectional": (True, 1, 0, np.bool_(False)),
        "bias": (False, 1, np.bool_(True)),
        "proj_size": (2, -1),
        "batch_first": (1, 0, 2, "yes", None, np.bool_(True), np.bool_(False)),
        "mode": ("RNN_SWISH",),
    }
    for name, values in changes.items():
        for value in values:
            module, x, _ = example(kind)
            setattr(module, name, value)
            declined(lambda module=module, x=x: module(x))


@pytest.mark.parametrize("kind", CELLS)
def test_attributes_of_a_cell(kind: str) -> None:
    """torch's cells, and so the long way, look at the weights alone."""
    for name in ("input_size", "bias"):
        for value in (False, 7, None):
            module, x, hx = example(kind)
            expected = flat(module(x, hx))
            setattr(module, name, value)
            result = served(functools.partial(module, x, hx))
            for own, other in zip(flat(result), expected, strict=True):
                assert torch.equal(own, other)
    module, x, hx = example(kind)
    module.bias_hh = None
    declined(lambda: module(x, hx))
    module, x, hx = example(kind)
    module.bias_hh = module.bias_ih = None
    served(lambda: module(x, hx))


@pytest.mark.parametrize("kind", KINDS)
def test_functional_call(kind: str) -> None:
    module, x, hx = example(kind)
    before = flat(module(x, hx))[0]
    weights = {name: weight * 2 for name, weight in module.named_parameters()}
    for given in (weights, {name: nn.Parameter(weight) for name, weight in weights.items()}):
        result, _ = compare(lambda g=given: torch.func.functional_call(module, g, (x, hx)))
        assert not torch.equal(flat(result)[0], before)
    compare(lambda: module(x, hx))  # torch's list of weights is only now brought up to date
    after = served(lambda: module(x, hx))
    assert torch.equal(flat(after)[0], before)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_without_units_or_features(kind: str) -> None:
    shape = (2,) if kind in CELLS else (5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for features, units in ((0, 4), (3, 0)):
            try:
                module = FASTRNN[kind](features, units)
            except ValueError:  # torch's sequence modules have at least one unit
                continue
            declined(lambda m=module, f=features: m(torch.randn(*shape, f)))


# Checks of the user's.


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize(
    "name", ["check_input", "check_forward_args", "check_hidden_size", "get_expected_hidden_size"]
)
def test_checks_of_the_users(kind: str, name: str) -> None:
    """Replaced in a subclass, or on an instance."""
    seen: list[str] = []

    def check(*args: Any) -> Any:
        seen.append(name)
        return (1, 2, 4)

    _, x, hx = example(kind)
    hidden = hx
    subclass = type("Checked", (FASTRNN[kind],), {name: check})
    instance = FASTRNN[kind](3, 4)
    setattr(instance, name, check)
    for module in (subclass(3, 4), instance):
        seen.clear()
        declined(lambda module=module: module(x, hidden))
        assert seen


# Who looks at a call.


class Watching(TorchDispatchMode):
    """Sees every operator, and changes none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_modes(kind: str) -> None:
    module, x, hx = example(kind)
    modes = (
        lambda: torch.device("cpu"),
        BaseTorchFunctionMode,
        Watching,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.enable_grad,
        torch.autograd.forward_ad.dual_level,
    )
    for mode in modes:

        def call(mode: Any = mode) -> Any:
            with mode():
                return without_graph(module(x, hx))

        declined(call)


def without_graph(result: Any) -> Any:
    """Results without their graphs, of which no two are the same object."""
    if isinstance(result, Tensor):
        return result.detach()
    return tuple(without_graph(item) for item in result)


@pytest.mark.parametrize("kind", KINDS)
def test_default_device(kind: str) -> None:
    module, x, hx = example(kind)
    torch.set_default_device("cpu")
    try:
        declined(lambda: module(x, hx))
    finally:
        torch.set_default_device(None)
    served(lambda: module(x, hx))


@pytest.mark.parametrize("kind", KINDS)
def test_fake_tensors(kind: str) -> None:
    module, x, hx = example(kind)
    with watched() as spy, FakeTensorMode(allow_non_fake_inputs=True) as mode:
        result = module(mode.from_tensor(x), changed(hx, mode.from_tensor))
        among_real = module(mode.from_tensor(x))
    assert spy.served == 0
    assert all(isinstance(t, FakeTensor) for t in (*flat(result), *flat(among_real)))
    for fake, real in zip(flat(result), flat(module(x, hx)), strict=True):
        assert fake.shape == real.shape
    with watched() as spy:  # a fake one outside of its mode
        flat(module(mode.from_tensor(x)))
    assert spy.served == 0


@pytest.mark.parametrize("kind", KINDS)
def test_transforms(kind: str) -> None:
    module, x, hx = example(kind)

    def of(x: Tensor) -> Tensor:
        return flat(module(x, hx))[0]

    many = torch.stack([x, 2 * x])
    declined(lambda: torch.vmap(of)(many))
    within = torch.vmap(lambda x, other: of(x) + other, in_dims=(None, 0))
    declined(lambda: within(x, many[..., :1]))
    declined(lambda: tuple(torch.func.jvp(of, (x,), (x,))))
    declined(lambda: torch.func.functionalize(of)(x))
    # Gradients inside a transform are on, whatever they are outside.
    compare(lambda: torch.func.grad(lambda x: of(x).sum())(x))


@pytest.mark.parametrize("kind", KINDS)
def test_make_fx(kind: str) -> None:
    module, x, hx = example(kind)
    with watched() as spy:
        graph = make_fx(lambda x: flat(module(x, hx))[0])(x)
    assert spy.served == 0
    torch.testing.assert_close(graph(2 * x), flat(module(2 * x, hx))[0])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_jit_trace(kind: str) -> None:
    module, x, hx = example(kind)
    with watched() as spy:
        traced = torch.jit.trace(module, (x, hx), check_trace=False)
    assert spy.served == 0
    for own, other in zip(flat(traced(2 * x, hx)), flat(module(2 * x, hx)), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
@pytest.mark.parametrize("strict", [False, True])
def test_export(kind: str, strict: bool) -> None:
    module, x, hx = example(kind)
    with watched() as spy:
        exported = torch.export.export(module, (x, hx), strict=strict)
    assert spy.served == 0
    for own, other in zip(flat(exported.module()(2 * x, hx)), flat(module(2 * x, hx)), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_compile(kind: str) -> None:
    module, x, hx = example(kind)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    result = compiled(x, hx)
    for own, other in zip(flat(result), flat(module(x, hx)), strict=True):
        assert torch.equal(own, other)
    torch._dynamo.reset()


def test_nothing_is_declined_but_by_reason() -> None:
    """The examples of this file are served as they are."""
    assert backends.direct() is not None
    with torch.enable_grad():
        assert backends.direct() is None
    for kind in KINDS:
        module, x, hx = example(kind)
        served(lambda module=module, x=x, hx=hx: module(x, hx))
        with the_long_way():
            assert backends.direct() is None
    assert fastrnn.backends.direct() is not None
