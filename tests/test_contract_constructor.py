"""Constructors: arguments, their checks, and which error wins (section 1)."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy
import pytest
import torch
from contract import CELLS, FASTRNN, SEQUENCES, TORCH, assert_same_error, error
from torch import nn

import fastrnn

BAD_ARGUMENTS: tuple[tuple[Any, ...], ...] = (
    # 0, 1: dropout
    (3, 4, {"dropout": None}),
    (3, 4, {"dropout": "abc"}),
    (3, 4, {"dropout": "0.5"}),
    (3, 4, {"dropout": -0.1}),
    (3, 4, {"dropout": 1.5}),
    (3, 4, {"dropout": True}),
    (3, 4, {"dropout": float("nan")}),
    (3, 4, {"dropout": torch.tensor(0.5)}),
    # 3, 4: flags
    (3, 4, {"bias": 1}),
    (3, 4, {"bias": None}),
    (3, 4, {"batch_first": "yes"}),
    # 5 to 8: sizes
    (3.0, 4, {}),
    (numpy.int64(3), 4, {}),
    (0, 4, {}),
    (-1, 4, {}),
    (3, 4.0, {}),
    (3, "4", {}),
    (3, 0, {}),
    # 9: num_layers
    (3, 4, {"num_layers": 0}),
    (3, 4, {"num_layers": 1.5}),
    (3, 4, {"num_layers": "2"}),
    # 13: factory arguments
    (3, 4, {"device": "nowhere"}),
    (3, 4, {"dtype": torch.int64}),
    (3, 4, {"dtype": "float32"}),
    # what is not there
    (),
    (3,),
    (3, 4, {"foo": 1}),
)

#: Two bad arguments each: the earlier check of the table wins.
BAD_PAIRS: tuple[tuple[Any, ...], ...] = (
    (3, 4, {"dropout": None, "bias": 1}),
    (3, 4, {"dropout": 2, "bias": 1}),
    (3, 4, {"bias": 1, "batch_first": 1}),
    (3.0, 4, {"batch_first": 1}),
    (0, 4.0, {}),
    (3.0, 0, {}),
    (3, 4.0, {"num_layers": 0}),
    (3, 0, {"num_layers": 0}),
    (0, 4, {"dtype": torch.int64}),
)


def construct(kind: type[nn.Module], arguments: tuple[Any, ...]) -> nn.Module:
    *positional, options = (
        arguments
        if arguments and isinstance(arguments[-1], dict)
        else (
            *arguments,
            {},
        )
    )
    return kind(*positional, **options)


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("arguments", BAD_ARGUMENTS + BAD_PAIRS, ids=str)
def test_refuses_what_torch_refuses(kind: str, arguments: tuple[Any, ...]) -> None:
    assert_same_error(
        lambda: construct(FASTRNN[kind], arguments), lambda: construct(TORCH[kind], arguments)
    )


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_proj_size_is_refused_even_if_zero(kind: str, proj_size: int) -> None:
    assert_same_error(
        lambda: FASTRNN[kind](3, 4, proj_size=proj_size, foo=1),
        lambda: TORCH[kind](3, 4, proj_size=proj_size, foo=1),
    )


@pytest.mark.parametrize("options", [{"proj_size": -1}, {"proj_size": 4}, {"nonlinearity": "relu"}])
def test_lstm_refuses(options: dict[str, Any]) -> None:
    assert_same_error(lambda: fastrnn.LSTM(3, 4, **options), lambda: nn.LSTM(3, 4, **options))


def test_gru_has_no_nonlinearity() -> None:
    assert_same_error(
        lambda: fastrnn.GRU(3, 4, nonlinearity="relu"), lambda: nn.GRU(3, 4, nonlinearity="relu")
    )


def test_positional_order_of_rnn() -> None:
    arguments = (3, 4, 2, "relu", False, True, 0.5, True)
    ours, theirs = fastrnn.RNN(*arguments), nn.RNN(*arguments)
    assert repr(ours) == repr(theirs)
    assert ours.mode == theirs.mode == "RNN_RELU"


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_positional_order(kind: str) -> None:
    arguments = (3, 4, 2, False, True, 0.5, True)
    if kind == "LSTM":
        arguments += (2,)
    assert repr(FASTRNN[kind](*arguments)) == repr(TORCH[kind](*arguments))


def test_fourth_positional_of_rnn_is_the_nonlinearity() -> None:
    message = str(error(lambda: fastrnn.RNN(3, 4, 1, True)))
    assert message == (
        "Unknown nonlinearity 'True'. Select from 'tanh', 'relu', 'sigmoid' or 'identity'."
    )
    assert type(error(lambda: fastrnn.RNN(3, 4, 1, True))) is ValueError
    assert_same_error(
        lambda: fastrnn.RNN(3, 4, 1, "relu", nonlinearity="relu"),
        lambda: nn.RNN(3, 4, 1, "relu", nonlinearity="relu"),
    )


@pytest.mark.parametrize("nonlinearity", ["zzz", "Tanh", None, 1])
def test_unknown_nonlinearity(nonlinearity: Any) -> None:
    actual = error(lambda: fastrnn.RNN(0, 4, nonlinearity=nonlinearity))
    expected = error(lambda: nn.RNN(0, 4, nonlinearity=nonlinearity))
    assert type(actual) is type(expected)
    assert str(actual).startswith(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh'")
    assert str(expected).startswith(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh'")


@pytest.mark.parametrize("kind", SEQUENCES)
def test_dropout_of_one_layer_warns_once(kind: str) -> None:
    with warnings.catch_warnings(record=True) as theirs:
        warnings.simplefilter("always")
        TORCH[kind](3, 4, dropout=0.5)
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter("always")
        FASTRNN[kind](3, 4, dropout=0.5)
    assert [(w.category, str(w.message)) for w in ours] == [
        (w.category, str(w.message)) for w in theirs
    ]
    assert len(ours) == 1


def test_too_many_positionals() -> None:
    rest = (False, 0.0, False, 0, None, None, "one too many")
    for kind in ("LSTM", "GRU"):
        assert_same_error(
            lambda k=kind: FASTRNN[k](3, 4, 1, True, *rest),
            lambda k=kind: TORCH[k](3, 4, 1, True, *rest),
        )
    assert_same_error(
        lambda: fastrnn.RNN(3, 4, 1, "tanh", True, *rest),
        lambda: nn.RNN(3, 4, 1, "tanh", True, *rest),
    )


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize(
    "options",
    [{"bidirectional": 1}, {"num_layers": True}, {"dropout": 0}, {"dropout": 1, "num_layers": 2}],
    ids=str,
)
def test_what_torch_does_not_check(kind: str, options: dict[str, Any]) -> None:
    ours, theirs = FASTRNN[kind](3, 4, **options), TORCH[kind](3, 4, **options)
    assert repr(ours) == repr(theirs)
    assert ours.bidirectional == theirs.bidirectional
    assert type(ours.bidirectional) is type(theirs.bidirectional)
    assert type(ours.dropout) is float
    directions = 2 if options.get("bidirectional") else 1
    # torch.nn itself takes bidirectional=1 no further than the constructor
    assert ours(torch.randn(2, 2, 3))[0].shape == (2, 2, 4 * directions)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_bool_is_an_int(kind: str) -> None:
    assert FASTRNN[kind](True, 4).weight_ih_l0.shape[1] == TORCH[kind](True, 4).input_size == 1


@pytest.mark.parametrize("kind", SEQUENCES + CELLS)
def test_device_and_dtype(kind: str) -> None:
    module = FASTRNN[kind](3, 4, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float64)}


@pytest.mark.parametrize(
    "options",
    [{"reset_after": 1}, {"reset_after": None}, {"return_cell_states": "no"}, {"recompute": 1}],
    ids=str,
)
def test_extra_flags_are_bool(options: dict[str, Any]) -> None:
    kind = fastrnn.GRU if "reset_after" in options else fastrnn.LSTM
    ((name, value),) = options.items()
    message = f"{name} should be of type bool, got: {type(value).__name__}"
    with pytest.raises(TypeError, match=message):
        kind(3, 4, **options)
    if "reset_after" in options:
        with pytest.raises(TypeError, match="reset_after should be of type bool"):
            fastrnn.GRUCell(3, 4, **options)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("RNN", "reset_after"), ("LSTM", "reset_after"), ("GRU", "return_cell_states")],
)
def test_extra_options_belong_to_one_kind(kind: str, name: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        FASTRNN[kind](3, 4, **{name: True})


@pytest.mark.parametrize("kind", CELLS)
def test_cells_check_nothing(kind: str) -> None:
    for options in ({"bias": 1}, {"bias": None}):
        ours, theirs = FASTRNN[kind](3, 4, **options), TORCH[kind](3, 4, **options)
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
    for arguments in ((3, -1), (3.0, 4), (3,), (3, 4, True, "tanh", None, None, 1)):
        assert_same_error(
            lambda a=arguments: FASTRNN[kind](*a),
            lambda a=arguments: TORCH[kind](*a),
            message=len(arguments) == 2,  # the signatures differ, and so does their TypeError
        )


@pytest.mark.parametrize("kind", CELLS)
def test_signature_of_cells(kind: str) -> None:
    theirs = list(inspect.signature(TORCH[kind]).parameters)
    ours = list(inspect.signature(FASTRNN[kind]).parameters)
    assert ours[: len(theirs)] == theirs
    assert set(ours) - set(theirs) == ({"reset_after"} if kind == "GRUCell" else set())
    module = torch.nn.utils.skip_init(FASTRNN[kind], 3, 4)
    assert module.weight_ih.device.type == "cpu"


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_bias_of_cells(kind: str, bias: bool) -> None:
    module = FASTRNN[kind](3, 4, bias)
    for name in ("bias_ih", "bias_hh"):
        assert name in module._parameters
        assert (getattr(module, name) is None) == (not bias)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_no_bias_attribute_without_bias(kind: str) -> None:
    assert not hasattr(FASTRNN[kind](3, 4, bias=False), "bias_ih_l0")


def test_nonlinearity_of_cell_is_read_at_forward() -> None:
    ours, theirs = fastrnn.RNNCell(3, 4, nonlinearity="zzz"), nn.RNNCell(3, 4, nonlinearity="zzz")
    x = torch.randn(2, 3)
    assert_same_error(lambda: ours(x), lambda: theirs(x))
    assert_same_error(lambda: ours(x[None]), lambda: theirs(x[None]))
    theirs.load_state_dict(ours.state_dict())
    ours.nonlinearity = theirs.nonlinearity = "relu"
    torch.testing.assert_close(ours(x), theirs(x))
