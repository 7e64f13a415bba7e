"""Random calls of recurrent modules: drawn from a seed, run on a set of classes, compared.

``Call.draw(random)`` says in a frozen dataclass all there is to a call. ``run(call, classes)``
builds module and arguments from it, the same ones every time, and returns what a user can see:
structure, types, layout and values of outputs and gradients, the state of the generator.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from contract import CELLS, SEQUENCES, flat
from tolerances import tolerance
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

Classes = dict[str, Any]

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}

#: What the values round like: complex numbers as their parts.
ROUNDING = {torch.complex64: torch.float32}

#: Ways to hold the values of a tensor in memory. "expanded" repeats its first row.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "every other": lambda t: torch.stack([t, torch.ones_like(t)], -1)[..., 0],
    "inside": lambda t: nn.functional.pad(t, (1, 2))[..., 1:-2],
    "offset": lambda t: torch.cat([t.new_ones(1), t.flatten()])[1:].view(t.shape),
    "expanded": lambda t: t[:1].expand_as(t),
}
#: Those that a parameter may have: each element in a place of its own.
DENSE_LAYOUTS = tuple(name for name in LAYOUTS if name != "expanded")

#: How a call is made, and how often.
MODES = {
    "grad": 50,
    "backward twice": 8,
    "no_grad": 8,
    "inference_mode": 12,
    "functional_call": 8,
    "autocast": 8,
    "meta": 6,
}


@dataclass(frozen=True)
class Call:
    """One valid call of a module that is made for it.

    batch: None for an unbatched input. packing: "" for a tensor, "sorted", "unsorted", or "surplus"
    with rows beyond the last step, which nobody reads (but torch's reverse direction, and its LSTM
    where all lengths are the same, which take them for the last ones). hx: whether and how initial
    states come. wanted: what requires a gradient: "all", "none", "input", "weights", "some".
    losses: which outputs the loss uses.
    """

    kind: str
    input_size: int
    hidden_size: int
    options: tuple[tuple[str, Any], ...]
    dtype: torch.dtype
    steps: int
    batch: int | None
    packing: str
    hx: str
    layout: str
    hx_layout: str
    weight_layout: str
    training: bool
    mode: str
    wanted: str
    losses: str
    keywords: bool
    seed: int

    @staticmethod
    def draw(rng: random.Random) -> Call:
        kind = rng.choice(SEQUENCES + SEQUENCES + CELLS)
        cell = kind in CELLS
        hidden_size = rng.choice([0] * cell + [1, 2, 3, 4, 5, 7, 8, 16, 17, 33])
        options: dict[str, Any] = {}
        if rng.random() < 0.3:
            options["bias"] = rng.random() < 0.2
        if kind.startswith("RNN") and rng.random() < 0.6:
            options["nonlinearity"] = rng.choice(["relu", "relu", "tanh"])
        if not cell:
            if rng.random() < 0.4:
                options["num_layers"] = rng.choice([1, 2, 2, 3])
            for name in ("batch_first", "bidirectional"):
                if rng.random() < 0.4:
                    options[name] = rng.random() < 0.8
            if options.get("num_layers", 1) > 1 and rng.random() < 0.4:
                options["dropout"] = rng.choice([0.0, 0.3, 0.5, 1.0])
        if kind == "LSTM" and hidden_size > 1 and rng.random() < 0.3:
            options["proj_size"] = rng.randint(0, hidden_size - 1)
        steps = 1 if cell else rng.choice([1, 2, 3, 5, 8, 13])
        packing = ""
        if not cell and rng.random() < 0.3:
            packing = rng.choice(["sorted", "unsorted", "unsorted", "surplus"])
            if packing == "surplus" and (steps == 1 or options.get("bidirectional")):
                packing = "sorted"
        batch = rng.choice([None, 0, 1, 2, 3, 4, 7])
        if packing:
            batch = 3 if batch in (None, 0, 1) else batch
        mode = rng.choices([*MODES], [*MODES.values()])[0]
        dtype = rng.choices(
            [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64],
            [40, 30, 13, 10, 4],
        )[0]
        if mode == "autocast":
            dtype = torch.float32
        narrow = dtype not in (torch.float32, torch.float64) or mode == "autocast"
        if narrow and options.get("nonlinearity") == "relu":
            options.pop("bias", None)  # biases keep it from its kinks, see _prepare
        input_size = rng.choice([0] * cell + [1, 2, 3, 4, 5, 8, 9, 16, 31])
        if dtype.is_complex:  # torch has no relu for these, no dropout, no gradients of nothing
            options = {k: v for k, v in options.items() if k not in ("nonlinearity", "dropout")}
            batch = 2 if batch == 0 else batch
            input_size, hidden_size = max(input_size, 1), max(hidden_size, 1)
        return Call(
            kind=kind,
            input_size=input_size,
            hidden_size=hidden_size,
            options=tuple(options.items()),
            dtype=dtype,
            steps=steps,
            batch=batch,
            packing=packing,
            hx=rng.choice(["none", "tensors", "tensors", "list"]),
            layout=rng.choice(["contiguous"] * 3 + [*LAYOUTS]),
            hx_layout=rng.choice(["contiguous"] * 3 + [*LAYOUTS]),
            weight_layout=rng.choice(["contiguous"] * 6 + [*DENSE_LAYOUTS]),
            training=rng.random() < 0.7,
            mode=mode,
            wanted=rng.choice(["all"] * 4 + ["none", "input", "weights", "some", "some"]),
            losses=rng.choice(["all", "all", "output", "state", "last", "sum"]),
            keywords=rng.random() < 0.2,
            seed=rng.randrange(2**31),
        )

    @property
    def of(self) -> dict[str, Any]:
        return dict(self.options)

    @property
    def rows(self) -> int:
        return self.steps * (1 if self.batch is None else self.batch)

    @property
    def has_kinks(self) -> bool:
        """Whether a rounding may choose a gradient: relu's slope jumps where its argument is 0."""
        narrow = self.dtype in (torch.float16, torch.bfloat16) or self.mode == "autocast"
        return narrow and self.of.get("nonlinearity") == "relu"

    def tolerance(self, name: str) -> dict[str, float]:
        """The rule for a result or the gradient of ``name``; see ``Case.tolerance``."""
        directions = 2 if self.of.get("bidirectional") else 1
        layers = self.of.get("num_layers", 1)
        width = self.of.get("proj_size") or self.hidden_size
        fan_in = max(self.input_size, directions * width if layers > 1 else 0) + width
        if name.startswith("grad"):
            fan_in = max(
                fan_in, directions * GATES[self.kind.removesuffix("Cell")] * self.hidden_size
            )
        dtype = torch.bfloat16 if self.mode == "autocast" else self.dtype
        terms = 1  # of the sum that the gradient of a weight is, and that of what is expanded
        if name.startswith("grad"):
            layout = self.layout if name == "grad input" else self.hx_layout
            if "weight" in name or "bias" in name or layout == "expanded":
                terms = max(self.rows, directions * layers)
        return tolerance(ROUNDING.get(dtype, dtype), self.steps * layers, fan_in, rows=terms)


@dataclass
class Seen:
    """What a call showed: values by name, and facts that have to be equal."""

    values: dict[str, Tensor]
    facts: dict[str, Any]


class _Numbers:
    """Tensors of a call, drawn in order from its seed."""

    def __init__(self, call: Call) -> None:
        self.generator = torch.Generator().manual_seed(call.seed)
        self.dtype = call.dtype

    def normal(self, *shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        if self.dtype.is_complex:
            numbers = numbers + 1j * torch.randn(shape, generator=self.generator)
            return (numbers / 2).to(self.dtype)
        return numbers.to(self.dtype)

    def lengths(self, steps: int, batch: int) -> Tensor:
        lengths = torch.randint(1, steps + 1, (batch,), generator=self.generator)
        lengths[batch // 2] = steps
        return lengths


def build(call: Call, classes: Classes) -> Any:
    """The module of a call, with the weights of its constructor."""
    torch.manual_seed(call.seed)
    kind = classes[call.kind]
    options = call.of | {"dtype": call.dtype}
    if call.keywords:
        module = kind(input_size=call.input_size, hidden_size=call.hidden_size, **options)
    else:
        module = kind(call.input_size, call.hidden_size, **options)
    return module.train(call.training)


def _prepare(module: Any, call: Call) -> None:
    """Layout of the weights; away from kinks, where a rounding would decide."""
    for name, weight in list(module._parameters.items()):
        if weight is None:
            continue
        values = weight.detach()
        if call.has_kinks:
            signs = 1 - 2 * (torch.arange(len(values), dtype=torch.float32) % 2)
            values = signs.to(call.dtype) if "bias" in name else values / 4
        layout = call.weight_layout
        setattr(module, name, nn.Parameter(LAYOUTS[layout](values)))


def arguments(call: Call, module: Any) -> tuple[Any, Any, dict[str, Tensor]]:
    """Input, initial states and, by name, the leaves that they are made of."""
    numbers = _Numbers(call)
    lead: tuple[int, ...] = () if call.batch is None else (call.batch,)
    shape = (*lead, call.input_size)
    if call.kind in SEQUENCES:
        shape = (call.steps, *shape)
        if module.batch_first and call.batch is not None and not call.packing:
            shape = (shape[1], shape[0], shape[2])
    x = numbers.normal(*shape)
    packed: PackedSequence | None = None
    if call.packing:
        assert call.batch is not None
        lengths = numbers.lengths(call.steps, call.batch)
        if call.packing != "unsorted":
            lengths = lengths.sort(descending=True).values
        if call.packing == "surplus":
            lengths[-1] = 1
        packed = pack_padded_sequence(x, lengths, enforce_sorted=call.packing != "unsorted")
        x = packed.data
        if call.packing == "surplus":
            x = torch.cat([x, numbers.normal(2, call.input_size)])
            packed = PackedSequence(x, packed.batch_sizes)
    leaves = {"input": x}

    width = getattr(module, "proj_size", 0) or call.hidden_size
    if call.kind in SEQUENCES:
        lead = (module.num_layers * (2 if module.bidirectional else 1), *lead)
    if call.hx != "none":
        leaves["h0"] = numbers.normal(*lead, width)
        if call.kind.startswith("LSTM"):
            leaves["c0"] = numbers.normal(*lead, call.hidden_size)
    if call.mode == "meta":
        leaves = {name: leaf.to("meta") for name, leaf in leaves.items()}
    for name, leaf in leaves.items():
        leaf.requires_grad_(_wanted(call, name))
    given = {
        name: LAYOUTS[call.layout if name == "input" else call.hx_layout](leaf)
        for name, leaf in leaves.items()
    }
    hx: Any = given.get("h0")
    if "c0" in given:
        hx = (given["h0"], given["c0"])
        hx = list(hx) if call.hx == "list" else hx
    input = given["input"] if packed is None else PackedSequence(given["input"], *packed[1:])
    return input, hx, leaves


def _wanted(call: Call, name: str) -> bool:
    if call.wanted in ("all", "none"):
        return call.wanted == "all"
    if call.wanted == "some":
        return random.Random(f"{call.seed} {name}").random() < 0.5
    return (call.wanted == "input") == (name in ("input", "h0", "c0"))


@contextmanager
def _mode(call: Call) -> Iterator[None]:
    """The context of the forward of a call."""
    with torch.set_grad_enabled(call.mode != "no_grad"):
        if call.mode == "inference_mode":
            with torch.inference_mode():
                yield
        elif call.mode == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                yield
        else:
            yield


def run(call: Call, classes: Classes) -> Seen:
    """Make the call, and take gradients where it has some."""
    module = build(call, classes)
    facts: dict[str, Any] = {
        "generator after the constructor": torch.get_rng_state(),
        "repr": repr(module),
        "state_dict": list(module.state_dict()),
    }
    for name, weight in module.named_parameters():
        facts[f"initial {name}"] = weight.detach().clone()
    _prepare(module, call)
    for name, weight in module.named_parameters():
        weight.requires_grad_(_wanted(call, name))
    if call.mode == "meta":
        module = module.to("meta")
    input, hx, leaves = arguments(call, module)
    leaves |= dict(module.named_parameters())

    torch.manual_seed(call.seed + 1)
    with _mode(call):
        if call.mode == "functional_call":
            scaled = {name: weight * 0.75 for name, weight in module.named_parameters()}
            result = functional_call(module, scaled, (input, hx))
        elif call.keywords:
            result = module(input=input, hx=hx)
        else:
            result = module(input) if hx is None else module(input, hx)
    facts["generator after the call"] = torch.get_rng_state()
    facts["structure"] = structure(result)
    outputs = flat(result)
    _check_memory(outputs, [*leaves.values()])
    if call.mode == "meta":
        return Seen({}, facts)
    values = {f"output {k}": output.detach().clone() for k, output in enumerate(outputs)}
    if any(output.requires_grad for output in outputs):
        _backward(call, outputs)
        for name, leaf in leaves.items():
            if not leaf.requires_grad:
                assert leaf.grad is None, f"{name} has a gradient that it does not want"
                continue
            # A gradient that does not depend on the loss may be absent or zero.
            values[f"grad {name}"] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return Seen(values, facts)


def _backward(call: Call, outputs: list[Tensor]) -> None:
    """Backward of a loss that ``call.losses`` describes."""
    chosen = {"output": outputs[:1], "state": outputs[1:] or outputs, "last": outputs[-1:]}
    numbers = _Numbers(replace(call, seed=call.seed ^ 1))
    terms = []
    for output in chosen.get(call.losses, outputs):
        if call.losses == "sum":  # its gradient is an expanded scalar
            terms.append(torch.view_as_real(output).sum() if output.is_complex() else output.sum())
        else:
            weights = numbers.normal(*output.shape).to(output.dtype)
            product = output * weights
            terms.append((torch.view_as_real(product) if output.is_complex() else product).sum())
    loss: Any = sum(term.float() if call.mode == "autocast" else term for term in terms)
    if call.mode == "backward twice":  # which adds up to the gradient of the loss
        loss = loss / 2
        loss.backward(retain_graph=True)
    loss.backward()


def structure(result: Any) -> Any:
    """Types, and of each tensor what a user can ask it for beside its values."""
    if isinstance(result, PackedSequence):
        rest = [None if part is None else part.tolist() for part in result[1:]]
        return "PackedSequence", structure(result.data), rest
    if not isinstance(result, Tensor):
        return type(result).__name__, [structure(item) for item in result]
    return {
        "type": type(result).__name__,
        "shape": tuple(result.shape),
        "layout": _layout(result),
        "dtype": result.dtype,
        "device": result.device.type,
        "requires_grad": result.requires_grad,
        "leaf": result.is_leaf,
        "inference": result.is_inference(),
    }


def _layout(tensor: Tensor) -> Any:
    """Steps in memory from element to element, of the dimensions that have several."""
    if tensor.is_contiguous() or not tensor.numel():
        return "contiguous"
    return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def _check_memory(outputs: list[Tensor], leaves: list[Tensor]) -> None:
    """No output shares memory with another or with an argument."""
    tensors = [t for t in (*outputs, *leaves) if t.numel() and not t.is_meta]
    taken = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    assert len(set(taken)) == len(taken), "results share memory with each other or with arguments"
