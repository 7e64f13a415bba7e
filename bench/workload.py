"""A case made real: the two modules with the same weights, the input, one timed call of either."""

from __future__ import annotations

import copy
import importlib
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn.cells import CELLS
from fastrnn.problem import LayerInputs, Problem

from .cases import INFERENCE, Case

TESTS = Path(__file__).resolve().parents[1] / "tests"

OURS = "fastrnn"
THEIRS = "torch.nn"
IMPLEMENTATIONS = (OURS, THEIRS)


class WrongNumbers(AssertionError):
    """fastrnn and torch.nn do not agree: there is nothing to time."""


def make_module(library: Any, case: Case) -> nn.Module:
    """The case's module of ``fastrnn`` or of ``torch.nn``; the arguments are the same."""
    kind, _, nonlinearity = case.cell.partition("_")
    options: dict[str, Any] = {"nonlinearity": nonlinearity} if nonlinearity else {}
    module = getattr(library, kind.upper())(
        case.input_size,
        case.hidden_size,
        case.layers,
        bidirectional=case.bidirectional,
        dtype=case.dtype,
        **options,
    )
    assert isinstance(module, nn.Module)
    return module


class Workload:
    """Modules, input and gradients of a case; the same ones whenever it is built."""

    def __init__(self, case: Case) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=case.dtype)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            theirs = make_module(nn, case)
        ours = make_module(fastrnn, case)
        ours.load_state_dict(theirs.state_dict())
        self.modules = {OURS: ours, THEIRS: theirs}

        padded = randn(case.steps, case.batch, case.input_size)
        self.input: Tensor | PackedSequence = padded
        self.rows = case.steps * case.batch
        if case.packed:
            lengths = torch.randint(
                case.steps // 2, case.steps + 1, (case.batch,), generator=generator
            )
            lengths[0] = case.steps
            self.input = pack_padded_sequence(padded, lengths, enforce_sorted=False)
            self.rows = int(lengths.sum())
        self._leaf = self.input.data.detach()
        if case.mode != INFERENCE:
            self._leaf.requires_grad_()
        if isinstance(self.input, PackedSequence):
            self.input = self.input._replace(data=self._leaf)
        else:
            self.input = self._leaf

        width = case.directions * case.hidden_size
        self._grad_y = randn(*self._leaf.shape[:-1], width)
        state_shape = (case.layers * case.directions, case.batch, case.hidden_size)
        states = 2 if CELLS[case.cell].has_cell_state else 1
        self._grad_states = [randn(*state_shape) for _ in range(states)]

    @property
    def flops(self) -> float:
        """Floating point operations of the products: what any implementation must do."""
        case = self.case
        per_row = 0.0
        width = case.input_size
        for _ in range(case.layers):
            gate_rows = CELLS[case.cell].gates * case.hidden_size
            per_row += 2 * case.directions * gate_rows * (width + case.hidden_size)
            width = case.directions * case.hidden_size
        return self.rows * per_row * (1 if case.mode == INFERENCE else 3)

    def call(self, implementation: str) -> Callable[[], object]:
        """What is timed: forward, or forward and backward from the outputs of all steps.

        For the caller to call inside ``torch.inference_mode`` if that is the case's mode.
        """
        module, x = self.modules[implementation], self.input
        if self.case.mode == INFERENCE:
            return lambda: module(x)
        wanted = [self._leaf, *module.parameters()]
        grad_y = self._grad_y

        def train() -> object:
            y = module(x)[0]
            return torch.autograd.grad(y.data if type(y) is PackedSequence else y, wanted, grad_y)

        return train

    def backend(self) -> str:
        """Name of the backend that serves fastrnn's call."""
        case = self.case
        x, batch_sizes = self._leaf, None
        if isinstance(self.input, PackedSequence):
            batch_sizes = self.input.batch_sizes
        first_layer = list(self.modules[OURS].parameters())[: 4 * case.directions]
        problem = Problem.of(
            case.cell,
            LayerInputs(x, None, None, first_layer, None, batch_sizes, None),
            directions=case.directions,
            keep_cell_states=False,
            training=case.mode != INFERENCE,
        )
        return fastrnn.backends.select(problem).name

    def check(self) -> float:
        """Compare all outputs, and in training all gradients, with torch.nn in float64.

        Returns:
            the largest error as a multiple of the tolerance, which is the one of the tests.

        Raises:
            WrongNumbers: it is above 1.
        """
        tolerance, error_in_tolerances = _shared_rule()
        ours, oracle = self._results(OURS, self.case.dtype), self._results(THEIRS, torch.float64)
        worst = 0.0
        for name, expected in oracle.items():
            got = ours[name]
            if got.dtype != self.case.dtype or got.shape != expected.shape:
                raise WrongNumbers(
                    f"{name}: expected {self.case.dtype} {tuple(expected.shape)}, "
                    f"got {got.dtype} {tuple(got.shape)}"
                )
            allowed = tolerance(self.case.dtype, **self._tolerance_arguments(name))
            error = error_in_tolerances(got, expected, **allowed)
            if not error <= 1:
                raise WrongNumbers(f"{name}: off by {error:.3g} times the tolerance")
            worst = max(worst, error)
        return worst

    def _results(self, implementation: str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Everything the case computes, by name; gradients flow from outputs and states alike."""
        module = copy.deepcopy(self.modules[implementation]).to(dtype)
        x = self._leaf.detach().to(dtype)
        training = self.case.mode != INFERENCE
        with torch.inference_mode(not training):
            x.requires_grad_(training)
            if isinstance(self.input, PackedSequence):
                y, states = module(self.input._replace(data=x))
                y = y.data
            else:
                y, states = module(x)
        outputs = [y, *states] if isinstance(states, tuple) else [y, states]
        results = dict(zip(("output", "h_n", "c_n"), outputs, strict=False))
        if training:
            leaves = {"input": x, **dict(module.named_parameters())}
            upstream = [grad.to(dtype) for grad in (self._grad_y, *self._grad_states)]
            grads = torch.autograd.grad(outputs, list(leaves.values()), upstream)
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


def _shared_rule() -> tuple[Callable[..., dict[str, float]], Callable[..., float]]:
    """The tests' rule of tolerances: what is timed is as right as what is tested."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    module = importlib.import_module("tolerances")
    return module.tolerance, module.error_in_tolerances
