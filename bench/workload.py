"""A case made real: the two modules with the same weights, the input, one timed call of either."""

from __future__ import annotations

import copy
import functools
import importlib
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn.cells import CELLS
from fastrnn.problem import LayerInputs, Problem

from .cases import INFERENCE, LENGTHS, PACKED, Case

TESTS = Path(__file__).resolve().parents[1] / "tests"

OURS = "fastrnn"
THEIRS = "torch.nn"
IMPLEMENTATIONS = (OURS, THEIRS)

Call = Callable[[], Any]


class WrongNumbers(AssertionError):
    """Outputs or gradients are not those of torch.nn in float64: there is nothing to time."""


@dataclass(frozen=True)
class Inputs:
    """What a call is given beside the module.

    x: ``(T, B, I)``; the rows of a PackedSequence; ``(B, I)`` for a cell. states: h, and c if the
    cell has it, of a call of a cell. packing: everything of the PackedSequence but its rows.
    """

    x: Tensor
    states: tuple[Tensor, ...] = ()
    lengths: Tensor | None = None
    packing: PackedSequence | None = None

    def to(self, dtype: torch.dtype, *, with_grad: bool) -> Inputs:
        x = self.x.detach().to(dtype).requires_grad_(with_grad)
        return replace(self, x=x, states=tuple(state.to(dtype) for state in self.states))


def make_module(library: Any, case: Case, device: str = "cpu") -> nn.Module:
    """The case's module of ``fastrnn`` or of ``torch.nn``; the arguments are the same."""
    kind, _, nonlinearity = case.cell.partition("_")
    options: dict[str, Any] = {"nonlinearity": nonlinearity} if nonlinearity else {}
    options |= {"dtype": case.dtype, "device": device}
    if not case.one_step:
        options |= {"num_layers": case.layers, "bidirectional": case.bidirectional}
    name = kind.upper() + ("Cell" if case.one_step else "")
    module = getattr(library, name)(case.input_size, case.hidden_size, **options)
    assert isinstance(module, nn.Module)
    return module


def normal(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Numbers ~ N(0, 1) on the generator's device."""
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    randn = functools.partial(normal, generator, case.dtype)
    if case.one_step:
        states = tuple(randn(case.batch, case.hidden_size) for _ in range(_states(case)))
        return Inputs(randn(case.batch, case.input_size), states)
    x = randn(case.steps, case.batch, case.input_size)
    if not case.ragged:
        return Inputs(x)
    bounds = case.steps // 2, case.steps + 1
    where = generator.device
    lengths = torch.randint(*bounds, (case.batch,), generator=generator, device=where).cpu()
    lengths[0] = case.steps
    if case.ragged == LENGTHS:
        return Inputs(x, lengths=lengths)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    return Inputs(packed.data, lengths=lengths, packing=packed)


def forward(implementation: str, module: nn.Module, inputs: Inputs) -> Call:
    """The forward call alone, with nothing around it that a user would not write."""
    x, lengths = inputs.x, inputs.lengths
    if inputs.states:
        hx = inputs.states if len(inputs.states) == 2 else inputs.states[0]
        return lambda: module(x, hx)
    if inputs.packing is not None:
        packed = inputs.packing._replace(data=x)
        return lambda: module(packed)
    if lengths is None:
        return lambda: module(x)
    if implementation == OURS:
        return lambda: module(x, lengths=lengths)

    def pack_run_pad() -> object:
        output, states = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(output, total_length=x.shape[0])[0], states

    return pack_run_pad


def outputs(result: Any, case: Case) -> list[Tensor]:
    """y (the rows of a PackedSequence), h_n and, if there is one, c_n; of a cell h and c."""
    if case.one_step:
        return list(result) if isinstance(result, tuple) else [result]
    y, states = result
    rows = y.data if isinstance(y, PackedSequence) else y
    return [rows, *states] if isinstance(states, tuple) else [rows, states]


def _states(case: Case) -> int:
    return 2 if CELLS[case.cell].has_cell_state else 1


class Workload:
    """Modules, input and gradients of a case; the same ones whenever it is built."""

    def __init__(self, case: Case, device: str = "cpu") -> None:
        self.case = case
        generator = torch.Generator(device).manual_seed(zlib.crc32(case.name.encode()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            theirs = make_module(nn, case, device)
        ours = make_module(fastrnn, case, device)
        ours.load_state_dict(theirs.state_dict())
        if case.prepacked:
            fastrnn.prepacked(ours)
        self.modules = {OURS: ours, THEIRS: theirs}
        self.inputs = make_inputs(case, generator)
        self.inputs.x.requires_grad_(self.training)
        lengths = self.inputs.lengths
        #: Steps of all rows together.
        self.rows = case.steps * case.batch if lengths is None else int(lengths.sum())

        shapes: list[tuple[int, ...]] = [(case.batch, case.hidden_size)] * _states(case)
        if not case.one_step:
            rows = self.inputs.x.shape[:-1]
            shapes = [(case.layers * case.directions, *shape) for shape in shapes]
            shapes.insert(0, (*rows, case.directions * case.hidden_size))
        self._upstream = [normal(generator, case.dtype, *shape) for shape in shapes]

    @property
    def training(self) -> bool:
        return self.case.mode != INFERENCE

    @property
    def filled(self) -> float:
        """The part of the padded batch that is not padding."""
        return self.rows / (self.case.steps * self.case.batch)

    @property
    def flops(self) -> int:
        """Floating point operations of the products: what any implementation must do."""
        sizes = sum(map(sum, self._weights()))
        return self.rows * 2 * sizes * (3 if self.training else 1)

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that a call of one sequence must bring to the arithmetic units.

        Each step needs all recurrent weights, forward and again backward; the input's weights are
        needed once for all steps, forward and again backward.
        """
        sizes = sum(inputs + self.case.steps * recurrent for inputs, recurrent in self._weights())
        return sizes * self.case.dtype.itemsize * (2 if self.training else 1)

    @property
    def bytes_resident(self) -> int:
        """Size of the weights that are read over and over: what should stay in a cache.

        The recurrent weights of a layer, both directions; in a call of one step all weights.
        """
        case = self.case
        if case.steps == 1:
            return sum(map(sum, self._weights())) * case.dtype.itemsize
        return self._weights()[-1][1] * case.directions * case.dtype.itemsize

    def _weights(self) -> list[tuple[int, int]]:
        """Elements of weight_ih and weight_hh of each layer and direction."""
        case, sizes = self.case, []
        width = case.input_size
        for _ in range(case.layers):
            gate_rows = CELLS[case.cell].gates * case.hidden_size
            sizes += [(gate_rows * width, gate_rows * case.hidden_size)] * case.directions
            width = case.directions * case.hidden_size
        return sizes

    def call(self, implementation: str) -> Call:
        """What is timed: forward, or forward and backward from the outputs of all steps.

        For the caller to call inside ``torch.inference_mode`` if that is the case's mode.
        """
        module, case, inputs = self.modules[implementation], self.case, self.inputs
        run = forward(implementation, module, inputs)
        if not self.training:
            return run
        wanted = [inputs.x, *module.parameters()]
        grad_y = self._upstream[0]
        return lambda: torch.autograd.grad(outputs(run(), case)[0], wanted, grad_y)

    def backend(self) -> str:
        """Name of the backend that serves fastrnn's call."""
        case, inputs = self.case, self.inputs
        batch_sizes = None if inputs.packing is None else inputs.packing.batch_sizes
        lengths = None if case.ragged == PACKED else inputs.lengths
        x = inputs.x.unsqueeze(0) if case.one_step else inputs.x
        first_layer = list(self.modules[OURS].parameters())[: 4 * case.directions]
        problem = Problem.of(
            case.cell,
            LayerInputs(x, None, None, first_layer, lengths, batch_sizes, None),
            directions=case.directions,
            keep_cell_states=False,
            training=self.training,
        )
        return fastrnn.backends.select(problem).name

    def check(self) -> float:
        """Compare all outputs, and in training all gradients, with torch.nn in float64.

        Returns:
            the largest error as a multiple of the tolerance, which is the one of the tests.

        Raises:
            WrongNumbers: it is above 1.
        """
        ours = self.results(OURS, self.case.dtype)
        return max(
            self._compare(name, ours[name], expected)
            for name, expected in self.results(THEIRS, torch.float64).items()
        )

    def check_outputs(self, got: list[Tensor]) -> float:
        """``check`` for somebody else's outputs."""
        module = copy.deepcopy(self.modules[THEIRS]).double()
        with torch.inference_mode():
            result = forward(THEIRS, module, self.inputs.to(torch.float64, with_grad=False))()
        expected = dict(zip(NAMES, outputs(result, self.case), strict=False))
        return max(
            self._compare(name, got_one, expected_one)
            for got_one, (name, expected_one) in zip(got, expected.items(), strict=True)
        )

    def _compare(self, name: str, got: Tensor, expected: Tensor) -> float:
        if got.dtype != self.case.dtype or got.shape != expected.shape:
            raise WrongNumbers(
                f"{name}: expected {self.case.dtype} {tuple(expected.shape)}, "
                f"got {got.dtype} {tuple(got.shape)}"
            )
        error = self.error(name, got, expected)
        if not error <= 1:
            raise WrongNumbers(f"{name}: off by {error:.3g} times the tolerance")
        return error

    def error(self, name: str, got: Tensor, expected: Tensor) -> float:
        """Of the result of that name, as a multiple of its tolerance."""
        tolerance, error_in_tolerances = shared_rule()
        bounds = tolerance(self._rounded, **self._tolerance_arguments(name))
        return error_in_tolerances(got, expected, **bounds)

    @property
    def _rounded(self) -> torch.dtype:
        """Whose roundings the arithmetic has."""
        return self.case.dtype

    def results(self, implementation: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Everything the case computes, by name; gradients flow from outputs and states alike."""
        module = copy.deepcopy(self.modules[implementation]).to(dtype)
        if self.case.prepacked and implementation == OURS:
            fastrnn.prepacked(module)  # copies are not
        with torch.inference_mode(not self.training):
            inputs = self.inputs.to(dtype, with_grad=self.training)
            computed = outputs(forward(implementation, module, inputs)(), self.case)
        results = dict(zip(NAMES, computed, strict=False))
        if self.training:
            leaves = {"input": inputs.x, **dict(module.named_parameters())}
            upstream = [grad.to(dtype) for grad in self._upstream]
            grads = torch.autograd.grad(computed, list(leaves.values()), upstream)
            results |= {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        return results

    def _tolerance_arguments(self, name: str) -> dict[str, Any]:
        case = self.case
        width = case.directions * case.hidden_size
        fan_in = max(case.input_size, width if case.layers > 1 else 0) + case.hidden_size
        gradient = name.startswith("grad")
        if gradient:
            fan_in = max(fan_in, width * CELLS[case.cell].gates)
        return {
            "steps": case.steps * case.layers,
            "fan_in": fan_in,
            "rows": self.rows if gradient and name != "grad_input" else 1,
        }


#: Of what ``outputs`` returns, in its order; a cell has but its states.
NAMES = ("output", "h_n", "c_n")


def shared_rule() -> tuple[Callable[..., dict[str, float]], Callable[..., float]]:
    """The tests' rule of tolerances: what is timed is as right as what is tested."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    module = importlib.import_module("tolerances")
    return module.tolerance, module.error_in_tolerances
