"""The one table of cases: sizes and options of a call, its arguments, and how to run it.

A ``Case`` names everything that shapes a call. ``arguments(case)`` makes its tensors, the same ones
every time; ``results(arguments)`` runs outputs and gradients through ``fastrnn.functional``, and
``results(arguments, torch_forward)`` through torch.nn, under the same names.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from tolerances import error_in_tolerances, ledger, tolerance
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn import functional, use_backend
from fastrnn.backends.cpu import load
from fastrnn.cells import CELLS

#: Whether this install has compiled kernels. The one place that decides it: an install made with
#: FASTRNN_NATIVE=0 has no ``fastrnn._C`` and its tests have no ``cpu`` cases. Where the extension
#: is installed, a ``cpu`` backend that does not work fails every one of its cases.
NATIVE = importlib.util.find_spec("fastrnn._C") is not None

#: Backends with kernels of their own; the oracles they are compared to are ``reference`` and torch.
BACKENDS: tuple[str, ...] = ("cpu", "numba") if NATIVE else ("numba",)

#: Instruction sets with kernels for this machine, and those of them that have 16-bit dtypes.
TARGETS: tuple[str, ...] = tuple(importlib.import_module("fastrnn._C").targets()) if NATIVE else ()
STORAGE_TARGETS: tuple[str, ...] = tuple(name for name in TARGETS if name != "baseline")

ALL_CELLS: tuple[str, ...] = tuple(CELLS)
TORCH_CELLS: tuple[str, ...] = tuple(name for name in CELLS if CELLS[name].torch_name)
DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

#: Dtypes of values only: the compiled kernels compute in float32. The oracle is the reference in
#: float64, from the same rounded arguments.
STORAGE_DTYPES: tuple[torch.dtype, ...] = ()
if NATIVE and load()[0].serves_16_bits():
    STORAGE_DTYPES = (torch.bfloat16, torch.float16)
LAYOUTS: tuple[str, ...] = ("time_major", "batch_first", "unbatched", "packed", "packed_unsorted")

#: One below, at and above the widths of SIMD registers and of blocks of them.
WIDTHS: tuple[int, ...] = (1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129)
BATCHES: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 33)


@dataclass(frozen=True)
class Case:
    """One call. The defaults are small odd sizes; ``id`` names what differs from them.

    lengths: ``""`` for None, or how they are drawn: ``random`` (0 and T among them), ``zeros``,
    ``full``. reset: ``""`` for None, or ``random``, ``always``, ``never``.
    """

    cell: str
    dtype: torch.dtype = torch.float64
    steps: int = 5
    batch: int = 3
    input_size: int = 3
    hidden_size: int = 5
    proj_size: int = 0
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    layout: str = "time_major"
    hx: bool = True
    lengths: str = ""
    reset: str = ""
    cell_states: bool = False
    recompute: bool = False

    @property
    def id(self) -> str:
        parts = [self.cell, str(self.dtype).removeprefix("torch.")]
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if value != field.default:
                parts.append(value if isinstance(value, str) else f"{field.name}={value}")
        return "-".join(parts)

    @property
    def seed(self) -> int:
        """The same with and without recompute, which changes no number."""
        return zlib.crc32(replace(self, recompute=False).id.encode())

    @property
    def directions(self) -> int:
        return 1 + self.bidirectional

    @property
    def output_size(self) -> int:
        return self.proj_size or self.hidden_size

    @property
    def packed(self) -> bool:
        return self.layout.startswith("packed")

    @property
    def stored(self) -> bool:
        """Whether values are narrower than the arithmetic on them."""
        return self.dtype.itemsize == 2

    def tolerance(self, name: str, dtype: torch.dtype | None = None) -> dict[str, float]:
        """How far apart two honest computations of the result ``name`` may be."""
        gradient = name.startswith("grad")
        width = max(self.input_size, self.directions * self.output_size if self.layers > 1 else 0)
        fan_in = width + self.output_size
        if gradient:
            fan_in = max(fan_in, self.directions * CELLS[self.cell].gates * self.hidden_size)
        sums_rows = gradient and ("weight" in name or "bias" in name)
        stored = dtype is None and self.stored
        return tolerance(
            torch.float32 if stored else dtype or self.dtype,
            self.steps * self.layers,
            fan_in,
            rows=self.steps * self.batch if sums_rows else 1,
            storage=self.dtype if stored else None,
        )


def each(*cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Parametrises a test over ``case``, each once, with its name."""
    listed = list(dict.fromkeys(itertools.chain(*cases)))
    return pytest.mark.parametrize("case", listed, ids=[case.id for case in listed])


def each_by_backend(*cases: Iterable[Case]) -> pytest.MarkDecorator:
    """Parametrises a test over ``case`` and ``backend``: each case by each that has its dtype."""
    pairs = [
        pytest.param(case, backend, id=f"{case.id}-{backend}")
        for case in dict.fromkeys(itertools.chain(*cases))
        for backend in BACKENDS
        if not case.stored or backend == "cpu"
    ]
    return pytest.mark.parametrize(("case", "backend"), pairs)


@dataclass(frozen=True)
class Arguments:
    """The tensors of a case. ``x`` is the data of ``packing`` where that is given."""

    case: Case
    x: Tensor
    h0: Tensor | None
    c0: Tensor | None
    weights: dict[str, Tensor]
    lengths: Tensor | None
    reset: Tensor | None
    packing: PackedSequence | None

    def differentiable(self) -> dict[str, Tensor]:
        """By name, everything that may receive a gradient."""
        states = {"x": self.x, "h0": self.h0, "c0": self.c0}
        return {k: v for k, v in states.items() if v is not None} | self.weights

    def with_tensors(self, tensors: dict[str, Tensor]) -> Arguments:
        """The same call with other tensors under the names of ``differentiable``."""
        return replace(
            self,
            x=tensors["x"],
            h0=tensors.get("h0"),
            c0=tensors.get("c0"),
            weights={name: tensors[name] for name in self.weights},
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        """The same call with ``change`` applied to every differentiable tensor."""
        return self.with_tensors({k: change(v) for k, v in self.differentiable().items()})

    @property
    def input(self) -> Tensor | PackedSequence:
        return self.x if self.packing is None else self.packing._replace(data=self.x)


Outputs = dict[str, Tensor]
Forward = Callable[[Arguments], Outputs]


def weight_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights, in torch's order."""
    gate_rows = CELLS[case.cell].gates * case.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for k in range(case.layers):
        width = case.directions * case.output_size if k else case.input_size
        for suffix in ("", "_reverse")[: case.directions]:
            own: dict[str, tuple[int, ...]] = {
                "weight_ih": (gate_rows, width),
                "weight_hh": (gate_rows, case.output_size),
            }
            if case.bias:
                own |= {"bias_ih": (gate_rows,), "bias_hh": (gate_rows,)}
            if case.proj_size:
                own |= {"weight_hr": (case.proj_size, case.hidden_size)}
            shapes |= {f"{name}_l{k}{suffix}": shape for name, shape in own.items()}
    return shapes


def arguments(case: Case, *, seed: int | None = None) -> Arguments:
    """Random tensors of a case: x and states ~ N(0, 1), weights as torch.nn initialises them.

    What goes into a relu in 16 bits is kept away from 0, where its slope jumps and a rounding would
    choose the gradient: biases decide its sign, or, where there are none, a feature that is 1 and
    the output of unit 0 of the layer before, which is about 2. There are two more exceptions, so
    that values stay of order 1, as the rule of tolerances wants them: where x has more features
    than there are units, weight_ih is smaller than torch's; and so are all weights of fewer than 8
    units, where a recurrence of torch's scale may happen to expand.
    What x holds beyond the lengths is NaN: none of it may reach a result.
    """
    generator = torch.Generator().manual_seed(case.seed if seed is None else seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype)

    def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
        width = max(8, case.hidden_size, shape[-1] if name.startswith("weight_ih") else 1)
        weight = torch.rand(shape, generator=generator, dtype=torch.float64)
        return ((2 * weight - 1) / math.sqrt(width)).to(case.dtype)

    weights = {name: uniform(name, shape) for name, shape in weight_shapes(case).items()}
    if case.cell == "rnn_relu" and case.stored:
        signs = 1.0 - 2 * (torch.arange(case.hidden_size, dtype=torch.float64) % 2)
        for name, weight in weights.items():
            weights[name] = signs.to(case.dtype) if "bias" in name else weight / 4
            if name.startswith("weight_ih") and not case.bias:
                weights[name][:, 0] = signs * (2 if "_l0" in name else 1)
    steps, batch = case.steps, 1 if case.layout == "unbatched" else case.batch
    states = case.layers * case.directions
    x = normal(steps, batch, case.input_size)
    if case.cell == "rnn_relu" and case.stored and not case.bias:
        x[:, :, 0] = 1
    h0 = normal(states, batch, case.output_size) if case.hx else None
    has_c = CELLS[case.cell].has_cell_state
    c0 = normal(states, batch, case.hidden_size) if case.hx and has_c else None

    lengths = _draw_lengths(case.lengths, steps, batch, generator)
    if lengths is not None:
        x = torch.where((torch.arange(steps)[:, None] < lengths)[:, :, None], x, math.nan)
    reset = None
    if case.reset:
        chance = {"random": 0.4, "always": 1.0, "never": 0.0}[case.reset]
        reset = torch.rand(steps, batch, generator=generator) < chance

    packing = None
    if case.packed:
        counts = torch.randint(1, steps + 1, (batch,), generator=generator)
        counts[batch // 2] = steps
        if case.layout == "packed":
            counts = counts.sort(descending=True).values
        packing = pack_padded_sequence(x, counts, enforce_sorted=case.layout == "packed")
        x = packing.data
    elif case.layout == "unbatched":
        x = x.squeeze(1)
        h0, c0, reset = (None if s is None else s.squeeze(1) for s in (h0, c0, reset))
    elif case.layout == "batch_first":
        x = x.transpose(0, 1).contiguous()
        reset = None if reset is None else reset.transpose(0, 1).contiguous()
    return Arguments(case, x, h0, c0, weights, lengths, reset, packing)


def _draw_lengths(kind: str, steps: int, batch: int, generator: torch.Generator) -> Tensor | None:
    if not kind:
        return None
    if kind != "random":
        return torch.full((batch,), {"zeros": 0, "full": steps}[kind])
    lengths = torch.randint(0, steps + 1, (batch,), generator=generator)
    lengths[0] = steps
    if batch > 1:
        lengths[batch // 2] = 0
    return lengths


def call(a: Arguments) -> tuple[Any, ...]:
    """What the public function of the cell returns."""
    case = a.case
    weights = list(a.weights.values())
    options: dict[str, Any] = {
        "num_layers": case.layers,
        "bidirectional": case.bidirectional,
        "batch_first": case.layout == "batch_first",
        "lengths": a.lengths,
        "reset": a.reset,
        "recompute": case.recompute,
    }
    if case.cell == "lstm":
        hx = None if a.h0 is None or a.c0 is None else (a.h0, a.c0)
        options["return_cell_states"] = case.cell_states
        return functional.lstm(a.input, weights, hx, **options)
    if case.cell.startswith("gru"):
        return functional.gru(a.input, weights, a.h0, **options, reset_after=case.cell == "gru")
    nonlinearity = case.cell.removeprefix("rnn_")
    return functional.rnn(a.input, weights, a.h0, **options, nonlinearity=nonlinearity)


def fastrnn_forward(a: Arguments) -> Outputs:
    """Outputs of the public function of the cell, by name."""
    y, state, *rest = call(a)
    h_n, *c_n = state if a.case.cell == "lstm" else (state,)
    outputs = {"output": _data(y), "h_n": h_n} | ({"c_n": c_n[0]} if c_n else {})
    cell_states = rest[0] if rest else ()
    return outputs | {f"cell_states_l{k}": _data(c) for k, c in enumerate(cell_states)}


def torch_forward(a: Arguments) -> Outputs:
    """Outputs of the module of torch.nn, by the same names."""
    module = torch_module(a.case)
    hx = a.h0 if a.c0 is None else (a.h0, a.c0)
    y, state = torch.func.functional_call(module, a.weights, (a.input, hx))
    h_n, c_n = state if a.case.cell == "lstm" else (state, None)
    outputs = {"output": _data(y), "h_n": h_n}
    return outputs if c_n is None else outputs | {"c_n": c_n}


def torch_module(case: Case) -> nn.RNNBase:
    """The module of torch.nn for a case, its weights as torch draws them."""
    options: dict[str, Any] = {
        "num_layers": case.layers,
        "bias": case.bias,
        "batch_first": case.layout == "batch_first",
        "bidirectional": case.bidirectional,
        "dtype": case.dtype,
    }
    if case.cell == "lstm":
        options["proj_size"] = case.proj_size
    elif case.cell.startswith("rnn"):
        options["nonlinearity"] = case.cell.removeprefix("rnn_")
    kind: Any = {"lstm": nn.LSTM, "gru": nn.GRU}.get(case.cell, nn.RNN)
    module: nn.RNNBase = kind(case.input_size, case.hidden_size, **options)
    return module


def _data(y: Tensor | PackedSequence) -> Tensor:
    return y.data if isinstance(y, PackedSequence) else y


def upstream(outputs: Outputs, case: Case) -> Outputs:
    """Random gradients of a loss with respect to each output, the same for any computation."""
    grads = {}
    for name, output in outputs.items():
        generator = torch.Generator().manual_seed(case.seed ^ zlib.crc32(name.encode()))
        grad = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        grads[name] = grad.to(case.dtype).to(output.dtype)
    return grads


def results(
    a: Arguments,
    forward: Forward = fastrnn_forward,
    *,
    backend: str | None = None,
    wanted: Collection[str] | None = None,
    losses: Collection[str] | None = None,
    relayout: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    grads: Callable[[Outputs, Case], Outputs] = upstream,
) -> Outputs:
    """Outputs, and as ``grad <name>`` the gradients of a random loss, of a call.

    wanted: what requires a gradient (None: everything that can). losses: the outputs that the loss
    uses (None: all). relayout: what is done to each tensor, differentiably, before the call.
    A gradient that autograd leaves out is 0.
    """
    everything = a.differentiable()
    wanted = everything if wanted is None else wanted
    moved = {
        name: relayout(tensor.detach().clone().requires_grad_(name in wanted))
        for name, tensor in everything.items()
    }
    # Oracles are chains of small torch operations, whose parallel loops collapse on a busy machine.
    ours = forward is fastrnn_forward and backend in BACKENDS
    with use_backend(backend), threads(2 if ours else 1):
        outputs = forward(a.with_tensors(moved))
        gradients = grads(outputs, a.case)
        used = [name for name in outputs if losses is None or name in losses]
        sources = {name: tensor for name, tensor in moved.items() if tensor.requires_grad}
        found: tuple[Tensor | None, ...] = ()
        if sources:
            found = torch.autograd.grad(
                [outputs[name] for name in used],
                list(sources.values()),
                [gradients[name] for name in used],
                allow_unused=True,
            )
    named = {
        f"grad {name}": torch.zeros_like(source) if grad is None else grad
        for (name, source), grad in zip(sources.items(), found, strict=True)
    }
    return {name: output.detach() for name, output in outputs.items()} | named


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Another number of threads for torch, and so for the kernels, inside a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reference(a: Arguments, dtype: torch.dtype = torch.float64, **options: Any) -> Outputs:
    """Results of the reference backend, computed in ``dtype`` from the very same numbers."""
    return results(a.map(lambda t: t.to(dtype)), backend="reference", **options)


def errors(
    actual: Outputs, expected: Outputs, case: Case, dtype: torch.dtype | None = None
) -> dict[str, float]:
    """The error of each result as a multiple of its tolerance; at most 1 is a pass."""
    assert actual.keys() == expected.keys()
    return {
        name: error_in_tolerances(actual[name], expected[name], **case.tolerance(name, dtype))
        for name in expected
    }


def check(actual: Outputs, expected: Outputs, case: Case, dtype: torch.dtype | None = None) -> None:
    """Fail, naming every result that is off, unless all agree within the rule of tolerances.

    dtype: the one whose rounding to expect, where it is not that of the case.
    """
    found = errors(actual, expected, case, dtype)
    for name, error in found.items():
        kind = "output"
        if name.startswith("grad"):
            kind = "weight gradient" if "weight" in name or "bias" in name else "gradient"
        ledger.record(f"{kind}, {dtype or case.dtype}", error, f"{name} of {case.id}")
    off = {name: error for name, error in found.items() if not error <= 1}
    assert not off, f"{case.id}: errors in units of the tolerance: " + ", ".join(
        f"{name} {error:.3g}" for name, error in off.items()
    )
