"""``convert_`` and ``revert_``: modules of torch.nn become fastrnn's and back, in place."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch
from contract import CELLS, FASTRNN, SEQUENCES, TORCH, assert_same, flat, same_example
from conversions import Decoder, OwnLSTM, snapshot
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fastrnn

KINDS = SEQUENCES + CELLS


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
    x = same_example(module)
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
    x = same_example(module).requires_grad_()
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
    x = same_example(module)
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
