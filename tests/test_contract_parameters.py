"""Parameters, their initial values, state_dict, repr and attributes (sections 2 and 3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import (
    CELLS,
    FASTRNN,
    SEQUENCES,
    TORCH,
    assert_same,
    flat,
    packed,
    pair,
    states,
    variants,
)
from torch import Tensor, nn

import fastrnn

CELL_OPTIONS: list[Any] = [
    pytest.param(kind, options, id=f"{kind}-{options}")
    for kind in CELLS
    for options in ({}, {"bias": False}, {"dtype": torch.float64})
]


def assert_same_parameters(ours: nn.Module, theirs: nn.Module) -> None:
    own, other = list(ours.named_parameters()), list(theirs.named_parameters())
    assert [name for name, _ in own] == [name for name, _ in other]
    for (name, actual), (_, expected) in zip(own, other, strict=True):
        assert torch.equal(actual, expected), name
        assert actual.dtype == expected.dtype


@pytest.mark.parametrize(("kind", "options"), [*variants(), *CELL_OPTIONS])
def test_same_initial_values_and_generator_state(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    theirs = TORCH[kind](3, 4, **options)
    expected_next = torch.rand(3)
    torch.manual_seed(3)
    ours = FASTRNN[kind](3, 4, **options)
    actual_next = torch.rand(3)
    assert_same_parameters(ours, theirs)
    assert torch.equal(actual_next, expected_next)
    torch.manual_seed(4)
    theirs.reset_parameters()
    torch.manual_seed(4)
    ours.reset_parameters()
    assert_same_parameters(ours, theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: fastrnn.RNN(3, 4, 2, nonlinearity="sigmoid"), lambda: nn.RNN(3, 4, 2)),
        (lambda: fastrnn.GRU(3, 4, 2, reset_after=False), lambda: nn.GRU(3, 4, 2)),
        (lambda: fastrnn.LSTM(3, 4, 2, return_cell_states=True), lambda: nn.LSTM(3, 4, 2)),
        (lambda: fastrnn.GRUCell(3, 4, reset_after=False), lambda: nn.GRUCell(3, 4)),
    ],
)
def test_options_change_no_parameter(ours: Any, theirs: Any) -> None:
    torch.manual_seed(3)
    expected = theirs()
    torch.manual_seed(3)
    actual = ours()
    assert_same_parameters(actual, expected)
    actual.load_state_dict(expected.state_dict())


@pytest.mark.parametrize(("kind", "options"), [*variants(), *CELL_OPTIONS])
def test_state_dict_both_ways(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = FASTRNN[kind](3, 4, **options), TORCH[kind](3, 4, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    assert ours.state_dict()._metadata[""]["version"] == 1
    assert not list(ours.buffers())
    assert not list(ours.children())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert_same_parameters(ours, theirs)
    torch.nn.init.constant_(next(iter(ours.parameters())), 0.25)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert_same_parameters(ours, theirs)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_load_state_dict_by_assignment(kind: str) -> None:
    ours, _ = pair(kind, 3, 4)
    before = ours.weight_hh_l0
    other, theirs = pair(kind, 3, 4, seed=11)
    ours.load_state_dict(other.state_dict(), assign=True)
    assert ours.weight_hh_l0 is not before
    assert_flat_weights_follow(ours)
    x = torch.randn(5, 2, 3)
    assert_same(ours(x), theirs(x))


def assert_flat_weights_follow(module: Any) -> None:
    assert type(module._flat_weights) is list
    parameters = dict(module.named_parameters(remove_duplicate=False))
    assert len(module._flat_weights) == len(parameters)
    for name, weight in zip(module._flat_weights_names, module._flat_weights, strict=True):
        assert weight is parameters[name]


@pytest.mark.parametrize(("kind", "options"), variants())
def test_attributes(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = pair(kind, 3, 4, **options)
    for name in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first",
                 "dropout", "bidirectional", "proj_size", "training"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name)
        assert type(getattr(ours, name)) is type(getattr(theirs, name))
    assert getattr(ours, "nonlinearity", None) == getattr(theirs, "nonlinearity", None)
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert ours._all_weights == theirs._all_weights
    assert ours.__constants__ == theirs.__constants__
    assert ours.__jit_unused_properties__ == theirs.__jit_unused_properties__
    assert_flat_weights_follow(ours)
    assert [[id(w) for w in layer] for layer in ours.all_weights] == [
        [id(getattr(ours, name)) for name in layer] for layer in ours._all_weights
    ]
    assert ours.flatten_parameters() is None
    assert [ref() for ref in ours._flat_weight_refs] == ours._flat_weights
    assert isinstance(ours, nn.RNNBase)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_check_methods(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4, 2)
    x, hx = torch.randn(5, 2, 3), states(ours, 2)
    assert ours.get_expected_hidden_size(x, None) == theirs.get_expected_hidden_size(x, None)
    assert ours.check_forward_args(x, hx, None) is None
    assert ours.permute_hidden(hx, None) is hx
    order = torch.tensor([1, 0])
    assert_same(ours.permute_hidden(hx, order), theirs.permute_hidden(hx, order))
    with pytest.raises(RuntimeError, match=r"mine \(1, 2\), \[2, 2\]"):
        ours.check_hidden_size(torch.zeros(2, 2), (1, 2), "mine {}, {}")
    if kind == "LSTM":
        assert ours.get_expected_cell_size(x, None) == theirs.get_expected_cell_size(x, None)


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("hx_given", [True, False])
def test_overridden_check_is_called(kind: str, hx_given: bool) -> None:
    """Subclasses override the check; it sees states even where none are given, as in torch."""
    seen: list[list[torch.Size]] = []

    def check(self: Any, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        assert type(hidden) is (tuple if kind == "LSTM" else Tensor)
        seen.append([state.shape for state in flat(hidden)])

    for base in (FASTRNN[kind], TORCH[kind]):
        module: Any = type("Mine", (base,), {"check_forward_args": check})(3, 4)
        module(torch.randn(5, 2, 3), states(base(3, 4), 2) if hx_given else None)
    assert seen[0] == seen[1]
    assert len(seen) == 2


@pytest.mark.parametrize("kind", SEQUENCES)
def test_overridden_permute_hidden_is_used(kind: str) -> None:
    calls: list[type] = []

    def subclass(base: Any) -> Any:
        def permute_hidden(self: Any, hx: Any, permutation: Tensor | None) -> Any:
            if permutation is not None:
                calls.append(base)
            return base.permute_hidden(self, hx, permutation)

        return type("Mine", (base,), {"permute_hidden": permute_hidden})

    ours, theirs = subclass(FASTRNN[kind])(3, 4), subclass(TORCH[kind])(3, 4)
    theirs.load_state_dict(ours.state_dict())
    x, hx = packed(2, 4, 3), states(TORCH[kind](3, 4), 3)
    assert_same(ours(x, hx), theirs(x, hx))
    assert calls == [FASTRNN[kind]] * 2 + [TORCH[kind]] * 2


REPRS: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("RNN", (3, 4), {}),
    ("RNN", (3, 4, 2, "relu"), {"bias": False, "batch_first": True, "dropout": 1}),
    ("LSTM", (3, 4, 2, False, True, 0.5, True, 2), {}),
    ("GRU", (3, 4), {"bidirectional": True, "num_layers": 3, "dropout": 0.25}),
    ("RNNCell", (3, 4, False, "relu"), {}),
    ("LSTMCell", (3, 4), {}),
    ("GRUCell", (3, 4), {"bias": False}),
)


@pytest.mark.parametrize(("kind", "arguments", "options"), REPRS, ids=str)
def test_repr(kind: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    expected = repr(TORCH[kind](*arguments, **options))
    assert repr(FASTRNN[kind](*arguments, **options)) == expected
    assert expected.startswith(f"{kind}(")


def test_repr_of_options() -> None:
    expected = {
        "RNN(3, 4, nonlinearity=sigmoid)": fastrnn.RNN(3, 4, 1, "sigmoid"),
        "GRU(3, 4, num_layers=2, reset_after=False)": fastrnn.GRU(3, 4, 2, reset_after=False),
        "GRU(3, 4)": fastrnn.GRU(3, 4, reset_after=True),
        "LSTM(3, 4, return_cell_states=True)": fastrnn.LSTM(3, 4, return_cell_states=True),
        "GRU(3, 4, recompute=True, reset_after=False)": fastrnn.GRU(
            3, 4, reset_after=False, recompute=True
        ),
        "GRUCell(3, 4, reset_after=False)": fastrnn.GRUCell(3, 4, reset_after=False),
        "RNNCell(3, 4, nonlinearity=identity)": fastrnn.RNNCell(3, 4, True, "identity"),
    }
    assert [repr(module) for module in expected.values()] == list(expected)


@pytest.mark.parametrize("name", ["tanh", "relu", "sigmoid", "identity"])
def test_mode_of_rnn(name: str) -> None:
    module = fastrnn.RNN(3, 4, nonlinearity=name)
    assert (module.mode, module.nonlinearity) == (f"RNN_{name.upper()}", name)


def test_mode_of_gru() -> None:
    assert fastrnn.GRU(3, 4).mode == "GRU"
    assert fastrnn.GRU(3, 4).reset_after is True
    assert fastrnn.GRU(3, 4, reset_after=False).mode == "GRU_RESET_BEFORE"
    assert fastrnn.GRU(3, 4, reset_after=False).reset_after is False


@pytest.mark.parametrize("kind", SEQUENCES)
def test_set_parameter_updates_flat_weights(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    new = nn.Parameter(torch.randn_like(ours.weight_hh_l0))
    ours.weight_hh_l0 = theirs.weight_hh_l0 = new
    assert ours._flat_weights[1] is new
    x = torch.randn(5, 2, 3)
    assert_same(ours(x), theirs(x))
    assert_flat_weights_follow(ours)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_flat_weights_are_what_forward_uses(kind: str) -> None:
    """Wrappers replace entries of the list, or the list; forward takes them from there."""
    ours, theirs = pair(kind, 3, 4)
    x = torch.randn(5, 2, 3)
    for module in (ours, theirs):
        module._flat_weights[1] = module.weight_hh_l0 * 2
    assert_same(ours(x), theirs(x))
    for module in (ours, theirs):
        module._flat_weights = [w * 0.5 for w in module._parameters.values()]
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_flatten_parameters_may_be_overwritten(kind: str) -> None:
    ours, theirs = pair(kind, 3, 4)
    ours.flatten_parameters = lambda: None
    ours.float()
    x = torch.randn(5, 2, 3)
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("kind", SEQUENCES)
def test_deleted_parameter(kind: str) -> None:
    """Without a parameter ``_apply`` must not raise, and forward runs from the list."""
    ours, theirs = pair(kind, 3, 4)
    x = torch.randn(5, 2, 3)
    expected = theirs(x)
    del ours.weight_hh_l0
    assert_same(ours(x), expected)
    ours.double()
    assert ours.weight_ih_l0.dtype == torch.float64
