"""``LSTM.from_torch`` and its like: a module of fastrnn with the parameters of one of torch.nn."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from contract import CELLS, FASTRNN, SEQUENCES, TORCH, assert_same, flat, same_example, states
from conversions import OwnLSTM, snapshot
from torch import nn
from torch.nn.utils import parametrizations

import fastrnn

KINDS = SEQUENCES + CELLS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_same_parameters(kind: str, training: bool) -> None:
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
    x = same_example(theirs)
    hx = states(theirs, 2)
    assert_same(ours(x, hx), theirs(x, hx))
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.mul_(0.5)
    assert_same(ours(x, hx), theirs(x, hx))
    copy.deepcopy(ours)
    pickle.loads(pickle.dumps(ours))


@pytest.mark.parametrize("kind", KINDS)
def test_has_containers_of_its_own(kind: str) -> None:
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
    x = same_example(theirs)
    assert not torch.equal(flat(ours(x))[0], flat(theirs(x))[0])
    ours.double()
    assert theirs.state_dict().keys() == TORCH[kind](3, 4).state_dict().keys()


def test_of_subclasses() -> None:
    own = type("Own", (fastrnn.LSTM,), {})
    module = own.from_torch(nn.LSTM(3, 4))
    assert type(module) is own
    for wrong in (nn.GRU(3, 4), OwnLSTM(3, 4), fastrnn.LSTM(3, 4), nn.LSTMCell(3, 4)):
        with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.LSTM, got .*\w+\.\w+"):
            fastrnn.LSTM.from_torch(wrong)


def test_refuses() -> None:
    parametrized = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    with pytest.raises(ValueError, match=r"module: expected one without parametrizations"):
        fastrnn.LSTM.from_torch(parametrized)
    patched = nn.LSTM(3, 4)
    patched.forward = lambda input: input  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"but its forward was replaced"):
        fastrnn.LSTM.from_torch(patched)


def test_of_a_compiled_module() -> None:
    theirs = nn.GRUCell(3, 4)
    theirs.compile(backend="eager")
    ours = fastrnn.GRUCell.from_torch(theirs)
    seen: list[nn.Module] = []
    ours.register_forward_hook(lambda module, *_: seen.append(module))
    ours(torch.randn(2, 3))
    assert seen == [ours]
