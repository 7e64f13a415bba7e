"""``convert_``, ``revert_`` and ``from_torch``: modules of torch.nn become fastrnn's and back."""

from __future__ import annotations

import copy
import io
import pickle
import types
import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch
from contract import CELLS, FASTRNN, SEQUENCES, TORCH, assert_same, flat, states
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastrnn

KINDS = SEQUENCES + CELLS


class OwnLSTM(nn.LSTM):
    """A subclass, whose forward might be anything."""


class Decoder(nn.Module):
    """Recurrent modules at several depths, one of them in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(OrderedDict(embed=nn.Linear(3, 3), rnn=nn.LSTM(3, 4)))
        self.cells = nn.ModuleList([nn.GRUCell(4, 4), nn.LSTMCell(4, 4), nn.RNNCell(4, 4)])
        self.shared = self.cells[0]
        self.last = nn.RNN(4, 4, nonlinearity="relu")
        self.own = OwnLSTM(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder.rnn(self.encoder.embed(x))[0]
        x = torch.stack([self.cells[2](self.cells[1](self.shared(row))[0]) for row in x])
        return self.own(self.last(x)[0])[0]


def example(module: Any) -> Tensor:
    shape = (2, 3) if isinstance(module, nn.RNNCellBase) else (5, 2, 3)
    generator = torch.Generator().manual_seed(1)
    dtype = next(module.parameters()).dtype
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def module_state(module: nn.Module) -> dict[str, Any]:
    """Everything a module is, objects by identity: class, attributes, what its containers hold."""

    def seen(value: Any) -> Any:
        if isinstance(value, dict):
            return id(value), [(key, id(item)) for key, item in value.items()]
        if isinstance(value, list | set):
            return id(value), [id(item) for item in value]
        return id(value)

    attributes = [(name, seen(value)) for name, value in vars(module).items()]
    properties = [(name, id(value)) for name, value in vars(type(module)).items()]
    return {
        "module": id(module),
        "class": id(type(module)),
        "attributes": attributes,
        "members of the class": properties,
        "repr": repr(module),
        "state_dict": [(k, v.data_ptr(), v.dtype) for k, v in module.state_dict().items()],
    }


def snapshot(model: nn.Module) -> dict[str, dict[str, Any]]:
    everywhere = model.named_modules(remove_duplicate=False)
    return {name: module_state(module) for name, module in everywhere}


# Properties of any model.

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
            results += flat(module(example(module)))
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


# A model as people have them.


def test_a_model() -> None:
    model = Decoder()
    x = torch.randn(5, 2, 3)
    expected = model(x)
    report = fastrnn.convert_(model)
    assert [tuple(entry) for entry in report.converted] == [
        ("encoder.rnn", "torch.nn.LSTM", "fastrnn.LSTM"),
        ("cells.0", "torch.nn.GRUCell", "fastrnn.GRUCell"),
        ("cells.1", "torch.nn.LSTMCell", "fastrnn.LSTMCell"),
        ("cells.2", "torch.nn.RNNCell", "fastrnn.RNNCell"),
        ("last", "torch.nn.RNN", "fastrnn.RNN"),
    ]
    assert [entry.name for entry in report.skipped] == ["own"]
    lines = str(report).splitlines()
    assert lines[0] == "5 converted, 1 skipped"
    assert lines[1] == "  encoder.rnn  torch.nn.LSTM -> fastrnn.LSTM"
    assert "OwnLSTM stays: a subclass of torch.nn.LSTM" in lines[-1]
    assert model.shared is model.cells[0]
    assert type(model.shared) is fastrnn.GRUCell
    assert_same(model(x), expected)
    assert str(fastrnn.convert_(model)).startswith("0 converted, 1 skipped")


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_one(kind: str) -> None:
    module: Any = TORCH[kind](3, 4)
    report = fastrnn.convert_(module)
    assert type(module) is FASTRNN[kind]
    assert str(report).splitlines()[1] == f"  (the model)  torch.nn.{kind} -> fastrnn.{kind}"
    fastrnn.revert_(module)
    assert type(module) is TORCH[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_served_as_one_built_by_fastrnn(kind: str) -> None:
    """By the same kernels, so with the same bits; without gradients on the short way."""

    def direct(module: Any, x: Tensor) -> Any:
        if kind in SEQUENCES:
            return module._run_directly(x, None, None)
        return module._step_directly(
            "rnn_tanh" if kind == "RNNCell" else kind[:-4].lower(), x, None
        )

    module: Any = TORCH[kind](3, 4)
    fastrnn.convert_(module)
    built: Any = FASTRNN[kind](3, 4)
    built.load_state_dict(module.state_dict())
    x = example(module)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert fastrnn.backends.direct() is None or grad or direct(module, x) is not None
            assert all(map(torch.equal, flat(module(x)), flat(built(x))))


def test_optimizers_stay_valid() -> None:
    """Adam goes on with its moments, from torch.nn to fastrnn and back."""
    torch.manual_seed(3)
    ours, x = Decoder().double(), torch.randn(5, 2, 3, dtype=torch.float64)
    theirs = copy.deepcopy(ours)
    for model in (ours, theirs):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(6):
            if model is ours and step % 2:
                (fastrnn.revert_ if step == 3 else fastrnn.convert_)(model)
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_go_on(kind: str) -> None:
    module: Any = TORCH[kind](3, 4)
    calls: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_: calls.append("before")),
        module.register_forward_hook(lambda *_: calls.append("after")),
        module.register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    fastrnn.convert_(module)
    x = example(module).requires_grad_()
    flat(module(x))[0].sum().backward()
    assert calls == ["before", "after", "backward"]
    for handle in handles:
        handle.remove()
    flat(module(x))[0].sum().backward()
    assert len(calls) == 3


def test_filter() -> None:
    model = Decoder()
    asked: list[str] = []

    def not_a_cell(module: nn.Module, name: str) -> bool:
        assert model.get_submodule(name) is module
        asked.append(name)
        return not isinstance(module, nn.RNNCellBase)

    report = fastrnn.convert_(model, not_a_cell)
    assert asked == ["encoder.rnn", "cells.0", "cells.1", "cells.2", "last"]
    assert [entry.name for entry in report.converted] == ["encoder.rnn", "last"]
    reasons = {entry.name: entry.reason for entry in report.skipped}
    assert reasons["cells.1"] == "filter_fn said no"


def test_nothing_changes_where_the_filter_fails() -> None:
    model = Decoder()
    before = snapshot(model)

    def fails(module: nn.Module, name: str) -> bool:
        if name == "last":
            raise KeyError(name)
        return True

    with pytest.raises(KeyError):
        fastrnn.convert_(model, fails)
    assert snapshot(model) == before


@pytest.mark.parametrize("convert", [fastrnn.convert_, fastrnn.revert_])
def test_no_module(convert: Any) -> None:
    for wrong in (None, [nn.LSTM(3, 4)], nn.LSTM):
        with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got "):
            convert(wrong)


# What stays.


def skipped(model: nn.Module) -> str:
    """The reason why the only recurrent module of a model stays, and that it does."""
    before = snapshot(model)
    report = fastrnn.convert_(model)
    assert not report.converted
    assert snapshot(model) == before
    (entry,) = report.skipped
    return entry.reason


def test_subclasses_stay() -> None:
    assert "a subclass of torch.nn.LSTM" in skipped(OwnLSTM(3, 4))
    assert "a subclass of torch.nn.RNNBase" in skipped(nn.RNNBase("LSTM", 3, 4))
    parametrized = parametrizations.weight_norm(OwnLSTM(3, 4), "weight_hh_l0")
    assert "a subclass of torch.nn.LSTM" in skipped(parametrized)


def test_replaced_forward_stays() -> None:
    module = nn.GRU(3, 4)
    module.forward = lambda input, hx=None: (input, hx)
    assert skipped(module) == "its forward was replaced"


@pytest.mark.parametrize("how", ["attribute", "buffer", "module"])
def test_attributes_with_a_meaning_stay(how: str) -> None:
    module: Any = nn.LSTM(3, 4)
    if how == "attribute":
        module.recompute = "of a user"
    elif how == "buffer":
        module.register_buffer("recompute", torch.zeros(1))
    else:
        module.recompute = nn.Linear(1, 1)
    assert skipped(module) == "its attribute 'recompute' has a meaning for fastrnn.LSTM"


def test_scripted_stay() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    with warnings.catch_warnings():  # torch.jit is deprecated
        warnings.simplefilter("ignore")
        for compiled in (torch.jit.script(Model()), torch.jit.trace(Model(), torch.randn(5, 2, 3))):
            (entry,) = fastrnn.convert_(compiled).skipped
            assert entry.name == "rnn"
            assert entry.kind == "torch.jit.ScriptModule of LSTM"
            assert "torch.jit" in entry.reason


def test_quantized_stay() -> None:
    with warnings.catch_warnings():  # torch.ao is deprecated
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(Decoder(), {nn.LSTM, nn.GRUCell})
    report = fastrnn.convert_(model)
    reasons = {entry.name: entry.reason for entry in report.skipped}
    assert reasons["encoder.rnn"] == "made by torch.ao for quantization"
    assert reasons["cells.0"] == "made by torch.ao for quantization"
    assert {entry.name for entry in report.converted} == {"cells.1", "cells.2", "last"}


def test_back_to_what_is_quantized() -> None:
    """Dynamic quantization knows torch.nn's classes only."""
    model = nn.Sequential(OrderedDict(rnn=fastrnn.LSTM(3, 4, recompute=True)))
    assert fastrnn.revert_(model).skipped[0].reason.startswith("built as fastrnn's")
    fastrnn.revert_(model, include_native=True)
    assert type(model.rnn) is nn.LSTM
    assert vars(model.rnn).keys() == vars(nn.LSTM(3, 4)).keys()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    assert type(quantized.rnn).__module__.startswith("torch.ao")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: fastrnn.RNN(3, 4, nonlinearity="sigmoid"), "mode RNN_SIGMOID"),
        (lambda: fastrnn.LSTM(3, 4, return_cell_states=True), "return_cell_states"),
        (lambda: fastrnn.GRU(3, 4, reset_after=False), "mode GRU_RESET_BEFORE"),
        (lambda: fastrnn.RNNCell(3, 4, nonlinearity="identity"), "nonlinearity identity"),
        (lambda: fastrnn.GRUCell(3, 4, reset_after=False), "reset_after=False"),
    ],
)
def test_options_of_ours_have_no_way_back(module: Any, reason: str) -> None:
    built = module()
    before = snapshot(built)
    report = fastrnn.revert_(built, include_native=True)
    assert not report.converted
    assert report.skipped[0].reason == f"torch.nn has no {reason}"
    assert snapshot(built) == before


@pytest.mark.parametrize("include_native", [False, True])
def test_subclasses_of_ours_stay(include_native: bool) -> None:
    module = type("Own", (fastrnn.GRUCell,), {})(3, 4)
    report = fastrnn.revert_(module, include_native=include_native)
    assert not report.converted
    assert report.skipped[0].reason == "a subclass of fastrnn.GRUCell"
    assert not fastrnn.convert_(module).skipped


def test_options_set_in_between_are_dropped() -> None:
    module: Any = nn.LSTM(3, 4)
    before = snapshot(module)
    fastrnn.convert_(module)
    module.recompute = True
    fastrnn.prepacked(module)
    fastrnn.revert_(module)
    assert snapshot(module) == before


# Parametrizations, checkpoints and pickles.


@pytest.mark.parametrize("kind", KINDS)
def test_parametrizations_may_come_and_go(kind: str) -> None:
    """Registered before and after, removed before and after, in every order."""
    name = "weight_hh" if kind in CELLS else "weight_hh_l0"
    other = name.replace("hh", "ih")
    module: Any = TORCH[kind](3, 4)
    x = example(module)
    parametrize.register_parametrization(module, name, nn.Tanh())
    theirs = copy.deepcopy(module)
    original = type(module)
    report = fastrnn.convert_(module)
    assert report.converted[0].before == f"parametrized torch.nn.{kind}"
    assert report.converted[0].after == f"parametrized fastrnn.{kind}"
    assert type(module).__name__ == original.__name__
    assert original.__bases__ == (TORCH[kind],)
    assert isinstance(module, FASTRNN[kind])
    assert type(theirs) is original
    assert_same(module(x), theirs(x))

    for twin in (module, theirs):
        parametrize.register_parametrization(twin, other, nn.Tanh())
    assert_same(module(x), theirs(x))
    fastrnn.revert_(module)
    assert isinstance(module, TORCH[kind])
    assert type(module) is not original
    assert all(map(torch.equal, flat(module(x)), flat(theirs(x))))
    fastrnn.convert_(module)
    for twin in (module, theirs):
        parametrize.remove_parametrizations(twin, name)
        parametrize.remove_parametrizations(twin, other)
    assert type(module) is FASTRNN[kind]
    assert_same(module(x), theirs(x))
    pickle.loads(pickle.dumps(module))
    fastrnn.revert_(module)
    assert type(module) is TORCH[kind]


@pytest.mark.parametrize("before", [True, False], ids=["torch to fastrnn", "fastrnn to torch"])
def test_checkpoints(before: bool) -> None:
    """A file of weights and of an optimizer's state, saved on one side, loaded on the other."""
    torch.manual_seed(0)
    source, target = Decoder(), Decoder()
    fastrnn.convert_(target if before else source)
    x = torch.randn(5, 2, 3)
    optimizer = torch.optim.Adam(source.parameters())
    source(x).sum().backward()
    optimizer.step()
    buffer = io.BytesIO()
    torch.save({"model": source.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    checkpoint = torch.load(buffer)
    target.load_state_dict(checkpoint["model"])
    torch.optim.Adam(target.parameters()).load_state_dict(checkpoint["optimizer"])
    assert_same(target(x), source(x))
    assert target.state_dict()._metadata == source.state_dict()._metadata


def test_pickles() -> None:
    """A pickle loads as what was pickled, and can be converted, or go back, then."""
    x = torch.randn(5, 2, 3)
    model = Decoder()
    expected = model(x)
    earlier = pickle.dumps(model)
    fastrnn.convert_(model)
    later = pickle.dumps(model)

    old = pickle.loads(earlier)
    assert type(old.last) is nn.RNN
    assert len(fastrnn.convert_(old).converted) == 5
    assert_same(old(x), expected)
    new = pickle.loads(later)
    assert type(new.last) is fastrnn.RNN
    assert_same(new(x), expected)
    assert len(fastrnn.revert_(new).converted) == 5
    assert type(new.last) is nn.RNN
    assert torch.equal(new(x), expected)


def test_compiled_models() -> None:
    """A model compiled before goes on, with the class its modules have now."""
    model = Decoder()
    x = torch.randn(5, 2, 3)
    compiled = torch.compile(model, backend="eager")
    expected = compiled(x)
    fastrnn.convert_(compiled)
    assert_same(compiled(x), expected)
    fastrnn.revert_(compiled)
    assert_same(compiled(x), expected)


def test_names_in_torch_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.nn.LSTM = fastrnn.LSTM`` does not confuse which class is torch's."""
    module = nn.LSTM(3, 4)
    monkeypatch.setattr(nn, "LSTM", fastrnn.LSTM)
    assert len(fastrnn.convert_(module).converted) == 1
    fastrnn.revert_(module)
    assert type(module) is TORCH["LSTM"]


# from_torch.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_from_torch(kind: str, training: bool) -> None:
    options = {"num_layers": 2, "bidirectional": True} if kind in SEQUENCES else {}
    theirs: Any = TORCH[kind](3, 4, **options).train(training)
    theirs.weight_note = "of a user"
    before = snapshot(theirs)
    ours: Any = FASTRNN[kind].from_torch(theirs)  # type: ignore[attr-defined]
    assert snapshot(theirs) == before
    assert type(ours) is FASTRNN[kind]
    assert repr(ours) == repr(theirs)
    assert ours.training is training
    assert ours.weight_note == "of a user"
    assert all(a is b for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    x = example(theirs)
    hx = states(theirs, 2)
    assert_same(ours(x, hx), theirs(x, hx))
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.mul_(0.5)
    assert_same(ours(x, hx), theirs(x, hx))
    copy.deepcopy(ours)
    pickle.loads(pickle.dumps(ours))


@pytest.mark.parametrize("kind", KINDS)
def test_from_torch_has_containers_of_its_own(kind: str) -> None:
    """What is registered on one later is not on the other; what was before is on both."""
    theirs: Any = TORCH[kind](3, 4)
    calls: list[nn.Module] = []
    theirs.register_load_state_dict_pre_hook(lambda module, *_: calls.append(module))
    ours: Any = FASTRNN[kind].from_torch(theirs)  # type: ignore[attr-defined]
    for module in (ours, theirs):
        module.load_state_dict(module.state_dict())
    assert calls == [ours, theirs]
    ours.register_forward_hook(lambda *_: None)
    ours.register_buffer("count", torch.zeros(1))
    name = next(iter(theirs._parameters))
    setattr(ours, name, nn.Parameter(torch.zeros_like(getattr(ours, name))))
    assert not theirs._forward_hooks
    assert not theirs._buffers
    assert getattr(theirs, name).any()
    x = example(theirs)
    assert not torch.equal(flat(ours(x))[0], flat(theirs(x))[0])
    ours.double()
    assert theirs.state_dict().keys() == TORCH[kind](3, 4).state_dict().keys()


def test_from_torch_of_subclasses() -> None:
    own = type("Own", (fastrnn.LSTM,), {})
    module = own.from_torch(nn.LSTM(3, 4))
    assert type(module) is own
    for wrong in (nn.GRU(3, 4), OwnLSTM(3, 4), fastrnn.LSTM(3, 4), nn.LSTMCell(3, 4)):
        with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.LSTM, got .*\w+\.\w+"):
            fastrnn.LSTM.from_torch(wrong)


def test_from_torch_refuses() -> None:
    parametrized = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    with pytest.raises(ValueError, match=r"module: expected one without parametrizations"):
        fastrnn.LSTM.from_torch(parametrized)
    patched = nn.LSTM(3, 4)
    patched.forward = lambda input: input  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"but its forward was replaced"):
        fastrnn.LSTM.from_torch(patched)


def test_from_torch_of_a_compiled_module() -> None:
    theirs = nn.GRUCell(3, 4)
    theirs.compile(backend="eager")
    ours = fastrnn.GRUCell.from_torch(theirs)
    seen: list[nn.Module] = []
    ours.register_forward_hook(lambda module, *_: seen.append(module))
    ours(torch.randn(2, 3))
    assert seen == [ours]
