"""``convert_`` and ``revert_`` of any model: what goes there comes back the same."""

from __future__ import annotations

import copy
import types
from typing import Any

import torch
from contract import CELLS, FASTRNN, SEQUENCES, TORCH, assert_same, flat, same_example
from conversions import snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastrnn

KINDS = SEQUENCES + CELLS

HOOKS: dict[str, Any] = {
    "forward_pre_hook": lambda module, args: None,
    "forward_hook": lambda module, args, output: None,
    "full_backward_pre_hook": lambda module, grads: None,
    "full_backward_hook": lambda module, before, after: None,
    "state_dict_pre_hook": lambda module, prefix, keep: None,
    "state_dict_post_hook": lambda module, state, prefix, metadata: None,
    "load_state_dict_pre_hook": lambda module, *rest: None,
    "load_state_dict_post_hook": lambda module, keys: None,
}
PARAMETRIZE: dict[str, Any] = {
    "weight_norm": parametrizations.weight_norm,
    "tanh": lambda m, name: parametrize.register_parametrization(m, name, nn.Tanh()),
}
#: Modules with these torch cannot copy: their weight is no leaf of the graph.
PARAMETRIZE_FOR_GOOD: dict[str, Any] = {
    "prune": lambda m, name: prune.l1_unstructured(m, name, amount=0.5),
    "spectral_norm of old": nn.utils.spectral_norm,
}


@st.composite
def leaves(draw: st.DrawFn, *, copyable: bool) -> nn.Module:
    """A recurrent module in any condition users may have brought it into."""
    kind = draw(st.sampled_from(KINDS))
    options: dict[str, Any] = {
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
    }
    if kind in SEQUENCES:
        options["num_layers"] = draw(st.integers(1, 2))
        options["bidirectional"] = draw(st.booleans())
        options["batch_first"] = draw(st.booleans())
        options["dropout"] = draw(st.sampled_from([0.0, 0.5])) if options["num_layers"] > 1 else 0.0
    if kind == "LSTM":
        options["proj_size"] = draw(st.sampled_from([0, 2]))
    origin = draw(st.sampled_from(["torch", "torch", "torch", "subclass", "fastrnn", "forward"]))
    torch.manual_seed(draw(st.integers(0, 3)))
    made = FASTRNN[kind] if origin == "fastrnn" else TORCH[kind]
    if origin == "subclass":
        made = type(f"Own{kind}", (made,), {})
    module = made(3, 4, **options)
    if origin == "forward":
        module.forward = types.MethodType(made.forward, module)

    if options["dtype"] != torch.bfloat16:  # some of these have no kernel for it
        weight = draw(st.sampled_from([n for n in module._parameters if n.startswith("weight")]))
        ways = PARAMETRIZE if copyable else PARAMETRIZE | PARAMETRIZE_FOR_GOOD
        how = draw(st.sampled_from([None, None, *ways]))
        if how is not None:
            ways[how](module, weight)
    for name in draw(st.sets(st.sampled_from([*HOOKS]), max_size=3)):
        getattr(module, f"register_{name}")(HOOKS[name])
    for name, parameter in module.named_parameters():
        if "parametrizations" not in name:
            parameter.requires_grad_(draw(st.booleans()))
    if draw(st.booleans()):
        module.note = ["of a user"]
        module.register_buffer("count", torch.zeros(1), persistent=draw(st.booleans()))
    if draw(st.booleans()):
        module.flatten_parameters = lambda: None
    return module.train(draw(st.booleans()))


@st.composite
def models(draw: st.DrawFn, *, copyable: bool = False) -> nn.Module:
    """A leaf by itself, or several in containers, some of them in two places."""
    leaf = leaves(copyable=copyable)
    if draw(st.integers(0, 3)) == 0:
        return draw(leaf)
    own = draw(st.lists(leaf, min_size=1, max_size=3))
    places = [*own, *(draw(st.sampled_from(own)) for _ in range(draw(st.integers(0, 2))))]
    return nn.ModuleDict(
        {"linear": nn.Linear(3, 4), "nested": nn.Sequential(nn.ModuleList(places)), "at": places[0]}
    )


def outputs(model: nn.Module) -> list[Tensor]:
    """What each recurrent module of a model returns, with the same dropout every time."""
    results: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            torch.manual_seed(5)
            results += flat(module(same_example(module)))
    return results


@settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(model=models())
def test_there_and_back(model: nn.Module) -> None:
    """Indistinguishable after convert_ and revert_, and as good as torch.nn in between."""
    was_training = model.training
    expected = [t.clone() for t in outputs(model.eval())]  # old spectral_norm moves while training
    model.train(was_training)
    before = snapshot(model)
    natives = [m for m in model.modules() if type(m) in FASTRNN.values()]

    report = fastrnn.convert_(model)
    names = [name for name, *_ in (*report.converted, *report.skipped)]
    assert len(set(names)) == len(names)
    for name, _, after in report.converted:
        assert after.split()[-1] == f"fastrnn.{_kind(model.get_submodule(name))}"
        assert isinstance(model.get_submodule(name), tuple(FASTRNN.values()))
    for name, _, reason in report.skipped:
        assert reason
        assert isinstance(model.get_submodule(name), tuple(TORCH.values()))
    during = snapshot(model)
    assert during.keys() == before.keys()
    for name, state in before.items():
        assert during[name]["module"] == state["module"]
        assert during[name]["state_dict"] == state["state_dict"]
        own = [item for item in during[name]["attributes"] if item[0] != "_converted"]
        assert own == state["attributes"]
    assert not fastrnn.convert_(model).converted

    back = fastrnn.revert_(model)
    assert [name for name, *_ in back.converted] == [name for name, *_ in report.converted]
    assert [m for m in model.modules() if type(m) in FASTRNN.values()] == natives
    assert snapshot(model) == before
    model.eval()
    assert all(map(torch.equal, outputs(model), expected))
    fastrnn.convert_(model)
    assert_same(outputs(model), expected)


def _kind(module: nn.Module) -> str:
    return next(kind for kind in KINDS if isinstance(module, FASTRNN[kind]))


@settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(model=models(copyable=True), how=st.sampled_from(["state_dict", "deepcopy"]))
def test_copies_of_what_was_converted(model: nn.Module, how: str) -> None:
    """A copy of a converted model is converted, and goes back for itself."""
    twin = copy.deepcopy(model)
    fastrnn.convert_(model)
    if how == "state_dict":
        twin.load_state_dict(model.state_dict())
        fastrnn.convert_(twin)
    else:
        twin = copy.deepcopy(model)
    model.eval()
    twin.eval()
    between = snapshot(model)
    fastrnn.revert_(twin)
    assert snapshot(model) == between
    fastrnn.revert_(model)
    pairs = list(zip(model.modules(), twin.modules(), strict=True))
    assert [type(a).__name__ for a, _ in pairs] == [type(b).__name__ for _, b in pairs]
    assert [isinstance(a, nn.LSTM) for a, _ in pairs] == [isinstance(b, nn.LSTM) for _, b in pairs]
    assert all(map(torch.equal, outputs(model), outputs(twin)))
