"""Every error: its type, and that it names the argument, what was expected and what came.

And that nothing else happens: a bad argument never reaches a kernel, and never ends the process.
"""

from __future__ import annotations

from typing import Any

import cases
import pytest
import torch
from cases import BACKENDS
from validation import DOUBLE, B, H, I, R, T, Wrong, call, replaced, text, weights, zeros

import fastrnn
from fastrnn import functional
from fastrnn.problem import LayerInputs, Problem


@pytest.mark.parametrize("cell", cases.ALL_CELLS)
def test_the_right_call_is_right(cell: str) -> None:
    output, h_n, c_n, _ = call(cell)
    assert output.shape == (T, B, H)
    assert h_n.shape == (1, B, H)
    assert (c_n is not None) == (cell == "lstm")


THREE_DIMENSIONS = "expected 3 dimensions, the first of size 1 (layers x directions), got shape "

CALLS: dict[str, Wrong] = {
    # input
    "input None": (
        {"input": None},
        TypeError,
        "input: expected a Tensor or a PackedSequence, got NoneType",
    ),
    "input list": (
        {"input": [1.0]},
        TypeError,
        "input: expected a Tensor or a PackedSequence, got list",
    ),
    "input 0-D": ({"input": zeros()}, ValueError, "input: expected 2 or 3 dimensions, got 0"),
    "input 1-D": ({"input": zeros(I)}, ValueError, "input: expected 2 or 3 dimensions, got 1"),
    "input 4-D": (
        {"input": zeros(1, T, B, I)},
        ValueError,
        "input: expected 2 or 3 dimensions, got 4",
    ),
    "input integers": (
        {"input": zeros(T, B, I, dtype=torch.int64)},
        RuntimeError,
        "input: expected a floating point dtype, got torch.int64",
    ),
    "input boolean": (
        {"input": zeros(T, B, I, dtype=torch.bool)},
        RuntimeError,
        "input: expected a floating point dtype, got torch.bool",
    ),
    "input too wide": (
        {"input": zeros(T, B, I + 1)},
        RuntimeError,
        "weight_ih: expected shape (20, 3), got (20, 2)",
    ),
    "input of another dtype": (
        {"input": zeros(T, B, I, dtype=DOUBLE)},
        RuntimeError,
        "weight_ih: expected torch.float64, the dtype of the input, got torch.float32",
    ),
    "input elsewhere": (
        {"input": zeros(T, B, I).to("meta")},
        RuntimeError,
        "Input and hidden tensors are not at the same device, "
        "found input tensor at meta and hidden tensor at cpu",
    ),
    # weights
    "no weights": (
        {"weights": []},
        RuntimeError,
        "weights: expected 2 to 5 tensors for each of 1 directions, got 0 in all",
    ),
    "one weight": (
        {"weights": weights()[:1]},
        RuntimeError,
        "weights: expected 2 to 5 tensors for each of 1 directions, got 1 in all",
    ),
    "six weights": (
        {"weights": [*weights(), *weights()[:2]]},
        RuntimeError,
        "weights: expected 2 to 5 tensors for each of 1 directions, got 6 in all",
    ),
    "weights of one direction": (
        {"weights": weights(proj=R), "bidirectional": True, "h0": None, "c0": None},
        RuntimeError,
        "weights: expected 2 to 5 tensors for each of 2 directions, got 5 in all",
    ),
    "weights of half a layer": (
        {"weights": [*weights(), *weights()[:1]], "num_layers": 2, "h0": None, "c0": None},
        RuntimeError,
        "weights: expected the same number of tensors for each of 2 layers, got 5 in all",
    ),
    "weight None": (
        {"weights": replaced(weights(), 1, None)},
        TypeError,
        "weight_hh: expected a Tensor, got NoneType",
    ),
    "first weight None": (
        {"weights": replaced(weights(), 0, None)},
        TypeError,
        "weight_ih: expected a Tensor, got NoneType",
    ),
    "weight_ih 0-D": (
        {"weights": replaced(weights(), 0, zeros())},
        RuntimeError,
        "weight_ih: expected ..., got ()",
    ),
    "weight_ih 1-D": (
        {"weights": replaced(weights(), 0, zeros(20))},
        RuntimeError,
        f"weight_ih: expected shape (20, {I}), got (20,)",
    ),
    "weight_ih without rows": (
        {"weights": replaced(weights(), 0, zeros(0, I))},
        RuntimeError,
        "weight_hh: expected shape (0, 0), got (20, 5)",
    ),
    "weight_ih with rows for no number of gates": (
        {"weights": replaced(weights(), 0, zeros(21, I))},
        RuntimeError,
        f"weight_ih: expected shape (20, {I}), got (21, {I})",
    ),
    "weight_hh transposed": (
        {"weights": replaced(weights(), 1, zeros(H, 20))},
        RuntimeError,
        f"weight_hh: expected shape (20, {H}), got ({H}, 20)",
    ),
    "bias_ih 2-D": (
        {"weights": replaced(weights(), 2, zeros(20, 1))},
        RuntimeError,
        "bias_ih: expected shape (20,), got (20, 1)",
    ),
    "bias_hh short": (
        {"weights": replaced(weights(), 3, zeros(19))},
        RuntimeError,
        "bias_hh: expected shape (20,), got (19,)",
    ),
    "weight_hh of another dtype": (
        {"weights": replaced(weights(), 1, zeros(20, H, dtype=DOUBLE))},
        RuntimeError,
        "weight_hh: expected torch.float32, the dtype of the input, got torch.float64",
    ),
    "bias_hh elsewhere": (
        {"weights": replaced(weights(), 3, zeros(20).to("meta"))},
        RuntimeError,
        "Input and parameter tensors are not at the same device, "
        "found input tensor at cpu and parameter tensor at meta",
    ),
    "reverse weight wrong": (
        {
            "weights": replaced(weights(directions=2), 5, zeros(20, H + 1)),
            "bidirectional": True,
            "h0": None,
            "c0": None,
        },
        RuntimeError,
        f"weight_hh_reverse: expected shape (20, {H}), got (20, {H + 1})",
    ),
    "weight of the second layer wrong": (
        {
            "weights": replaced(weights(layers=2), 4, zeros(20, I)),
            "num_layers": 2,
            "h0": None,
            "c0": None,
        },
        RuntimeError,
        f"weight_ih: expected shape (20, {H}), got (20, {I})",
    ),
    "projection to nothing": (
        {"weights": replaced(weights(proj=R), 4, zeros(0, H)), "h0": None},
        RuntimeError,
        f"weight_hr: expected 1 to {H - 1} rows, got shape (0, {H})",
    ),
    "projection to more": (
        {"weights": replaced(weights(proj=R), 4, zeros(H + 1, H)), "h0": None},
        RuntimeError,
        f"weight_hr: expected 1 to {H - 1} rows, got shape ({H + 1}, {H})",
    ),
    "projection 0-D": (
        {"weights": replaced(weights(proj=R), 4, zeros()), "h0": None},
        RuntimeError,
        f"weight_hr: expected 1 to {H - 1} rows, got shape ()",
    ),
    "projection of other units": (
        {"weights": replaced(weights(proj=R), 4, zeros(R, H - 1)), "h0": None},
        RuntimeError,
        f"weight_hr: expected shape ({R}, {H}), got ({R}, {H - 1})",
    ),
    # states
    "h0 of another batch": (
        {"h0": zeros(1, B + 1, H)},
        RuntimeError,
        f"h0: expected shape (1, {B}, {H}), got (1, {B + 1}, {H})",
    ),
    "h0 of batch 1": (
        {"h0": zeros(1, 1, H)},
        RuntimeError,
        f"h0: expected shape (1, {B}, {H}), got (1, 1, {H})",
    ),
    "h0 of another width": (
        {"h0": zeros(1, B, H + 1)},
        RuntimeError,
        f"h0: expected shape (1, {B}, {H}), got (1, {B}, {H + 1})",
    ),
    "h0 2-D": (
        {"h0": zeros(B, H)},
        RuntimeError,
        f"h0: {THREE_DIMENSIONS}({B}, {H})",
    ),
    "h0 of two layers": (
        {"h0": zeros(2, B, H)},
        RuntimeError,
        f"h0: {THREE_DIMENSIONS}(2, {B}, {H})",
    ),
    "h0 of another dtype": (
        {"h0": zeros(1, B, H, dtype=DOUBLE)},
        RuntimeError,
        "h0: expected torch.float32, the dtype of the input, got torch.float64",
    ),
    "h0 elsewhere": (
        {"h0": zeros(1, B, H).to("meta")},
        RuntimeError,
        "Input and hidden tensors are not at the same device, "
        "found input tensor at cpu and hidden tensor at meta",
    ),
    "h0 a number": ({"h0": 0.0}, TypeError, "h0: expected a Tensor, got float"),
    "h0 of units, not of the projection": (
        {"weights": weights(proj=R)},
        RuntimeError,
        f"h0: expected shape (1, {B}, {R}), got (1, {B}, {H})",
    ),
    "c0 of the projection, not of units": (
        {"weights": weights(proj=R), "h0": None, "c0": zeros(1, B, R)},
        RuntimeError,
        f"c0: expected shape (1, {B}, {H}), got (1, {B}, {R})",
    ),
    "c0 of another batch": (
        {"c0": zeros(1, B - 1, H)},
        RuntimeError,
        f"c0: expected shape (1, {B}, {H}), got (1, {B - 1}, {H})",
    ),
    "c0 of another dtype": (
        {"c0": zeros(1, B, H, dtype=torch.float16)},
        RuntimeError,
        "c0: expected torch.float32, the dtype of the input, got torch.float16",
    ),
    "c0 elsewhere": (
        {"c0": zeros(1, B, H).to("meta")},
        RuntimeError,
        "Input and hidden tensors are not at the same device, "
        "found input tensor at cpu and hidden tensor at meta",
    ),
    "c0 4-D": (
        {"c0": zeros(1, 1, B, H)},
        RuntimeError,
        f"c0: {THREE_DIMENSIONS}(1, 1, {B}, {H})",
    ),
    "batched h0, unbatched input": (
        {"input": zeros(T, I), "c0": None},
        RuntimeError,
        "h0: expected 2 dimensions with an unbatched input, got 3",
    ),
    "batched c0, unbatched input": (
        {"input": zeros(T, I), "h0": None},
        RuntimeError,
        "c0: expected 2 dimensions with an unbatched input, got 3",
    ),
    # sizes
    "no steps": (
        {"input": zeros(0, B, I)},
        RuntimeError,
        "Expected sequence length to be larger than 0 in RNN",
    ),
    "no layers": ({"num_layers": 0}, ValueError, "num_layers: expected ..., got 0"),
}


@pytest.mark.parametrize(("changes", "error", "message"), CALLS.values(), ids=CALLS)
def test_message(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=text(message)) as caught:
        call(**changes)
    assert caught.type is error


@pytest.mark.parametrize("cell", [cell for cell in cases.ALL_CELLS if cell != "lstm"])
def test_cells_without_a_cell_state(cell: str) -> None:
    with pytest.raises(RuntimeError, match=f"^c0: {cell} has no cell state, expected None$"):
        call(cell, c0=zeros(1, B, H))
    expected = rf"^weights: a projection \(weight_hr\) is for lstm only, not {cell}$"
    with pytest.raises(RuntimeError, match=expected):
        call(cell, weights=[*weights(cell), zeros(R, H)])


def test_unknown_cell() -> None:
    known = ", ".join(cases.ALL_CELLS)
    with pytest.raises(ValueError, match=f"^cell: expected one of {known}, got 'mamba'$"):
        call("mamba", weights=weights())


def test_unknown_nonlinearity() -> None:
    expected = "^nonlinearity: expected one of tanh, relu, sigmoid, identity, got 'selu'$"
    with pytest.raises(ValueError, match=expected):
        functional.rnn(zeros(T, B, I), weights("rnn_tanh"), nonlinearity="selu")


@pytest.mark.parametrize(
    "hx",
    [zeros(1, B, H), zeros(2, B, H), (zeros(1, B, H),), (zeros(1, B, H),) * 3],
    ids=["tensor", "tensor of two", "one", "three"],
)
def test_state_of_lstm_is_a_pair(hx: Any) -> None:
    with pytest.raises((TypeError, RuntimeError, ValueError), match=r"^hx: expected .*pair"):
        functional.lstm(zeros(T, B, I), weights(), hx)


@pytest.mark.parametrize("function", [functional.gru, functional.rnn], ids=["gru", "rnn"])
def test_state_of_others_is_a_tensor(function: Any) -> None:
    own = weights("gru" if function is functional.gru else "rnn_tanh")
    with pytest.raises(TypeError, match=r"^h(0|x): expected a Tensor, got tuple$"):
        function(zeros(T, B, I), own, (zeros(1, B, H), zeros(1, B, H)))


@pytest.mark.parametrize("dropout", [-0.1, 1.5, 2])
def test_dropout_out_of_range(dropout: float) -> None:
    """torch's own words, where there is dropout at all."""
    with pytest.raises(RuntimeError, match="dropout probability has to be between 0 and 1"):
        call(weights=weights(layers=2), num_layers=2, h0=None, c0=None, dropout=dropout,
             training=True)  # fmt: skip


@pytest.mark.parametrize("backend", [*BACKENDS, "torch", "reference"])
@pytest.mark.parametrize("shape", [(2**50, 1, I), (1, 2**50, I)], ids=["steps", "batch"])
def test_sizes_beyond_memory(shape: tuple[int, int, int], backend: str) -> None:
    """An input that costs nothing (its strides are 0), of outputs that nothing could hold."""
    x = zeros(1, 1, I).expand(shape)
    with fastrnn.use_backend(backend), pytest.raises((RuntimeError, MemoryError)):
        call(input=x, h0=None, c0=None)


# The operators, which anyone may call with anything.


def operator_arguments() -> list[Any]:
    return ["lstm", zeros(T, B, I), zeros(1, B, H), zeros(1, B, H), weights(), None, None, None, 1,
            False]  # fmt: skip


def test_operator_validates() -> None:
    given = operator_arguments()
    y, *_, reserve = torch.ops.fastrnn.layer_forward(*given, True)
    assert y.shape == (T, B, H)
    assert reserve.shape == (1, T * B, 4 * H)
    given[2] = zeros(1, B + 1, H)
    with pytest.raises(RuntimeError, match="h0: expected shape"):
        torch.ops.fastrnn.layer_forward(*given, True)


@pytest.mark.parametrize("name", ["cell_states", "reserve", "grad_y", "grad_h_n", "grad_c_n"])
@pytest.mark.parametrize("wrong", ["shape", "dtype", "strides"])
def test_backward_operator_validates(name: str, wrong: str) -> None:
    """What backward is given by hand is checked as well: a kernel reads by address."""
    given = operator_arguments()
    y, h_n, c_n, cell_states, reserve = torch.ops.fastrnn.layer_forward(*given, True)
    more = {
        "cell_states": cell_states,
        "reserve": reserve,
        "grad_y": torch.ones_like(y),
        "grad_h_n": torch.ones_like(h_n),
        "grad_c_n": torch.ones_like(c_n),
        "grad_cell_states": None,
    }
    needs = [True] * 7
    right = torch.ops.fastrnn.layer_backward(*given, *more.values(), needs)
    tensor = more[name]
    assert tensor is not None
    # Each is larger than what it stands for, so that an unchecked read stays inside it.
    more[name] = {
        "shape": torch.cat((tensor, tensor)),
        "dtype": tensor.double(),
        "strides": torch.cat((tensor, tensor), -1)[..., : tensor.shape[-1]],
    }[wrong]
    if wrong == "strides":
        for ours, theirs in zip(
            torch.ops.fastrnn.layer_backward(*given, *more.values(), needs), right, strict=True
        ):
            assert torch.equal(ours, theirs)
    else:
        with pytest.raises(RuntimeError, match=f"^{name}: expected"):
            torch.ops.fastrnn.layer_backward(*given, *more.values(), needs)


def test_problem_describes_the_call() -> None:
    """What a right call turns into."""
    inputs = LayerInputs(
        zeros(T, B, I), None, None, weights(proj=R, directions=2), None, None, None
    )
    problem = Problem.of("lstm", inputs, directions=2, keep_cell_states=True, training=True)
    assert (problem.steps, problem.batch, problem.rows, problem.input_size) == (T, B, T * B, I)
    assert (problem.hidden_size, problem.output_size, problem.directions) == (H, R, 2)
    flags = (problem.bias, problem.projected, problem.keep_cell_states, problem.training)
    assert flags == (True,) * 4
    assert (problem.packed, problem.lengths, problem.reset) == (False,) * 3
    assert problem.weights_per_direction == 5
    assert problem.reserve_width == 4 * H + R
    with pytest.raises(AttributeError):
        problem.steps = 1  # type: ignore[misc]
