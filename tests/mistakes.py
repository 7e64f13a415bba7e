"""Random bad calls of recurrent modules: a valid call, and one thing wrong with it.

``Mistake.draw(random)`` returns one; ``mistake(classes)`` makes the call with the modules of
``classes``, which has to fail.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from contract import CELLS, SEQUENCES, flat
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Classes = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """The valid call that a mistake spoils; drawn values of all that is not spoilt."""

    kind: str
    input_size: int
    hidden_size: int
    options: tuple[tuple[str, Any], ...]
    dtype: torch.dtype
    steps: int
    batch: int | None
    packed: bool
    hx_given: bool
    grad: bool

    @staticmethod
    def draw(rng: random.Random, kinds: tuple[str, ...]) -> Setting:
        kind = rng.choice(kinds)
        options: dict[str, Any] = {}
        if rng.random() < 0.3:
            options["bias"] = False
        if kind in SEQUENCES:
            if rng.random() < 0.4:
                options["num_layers"] = 2
            for name in ("batch_first", "bidirectional"):
                if rng.random() < 0.3:
                    options[name] = True
        return Setting(
            kind=kind,
            input_size=rng.choice([2, 3, 5]),
            hidden_size=rng.choice([2, 4, 7]),
            options=tuple(options.items()),
            dtype=rng.choice([torch.float32, torch.float64]),
            steps=rng.choice([2, 4]),
            batch=rng.choice([None, 1, 2, 3]),
            packed=kind in SEQUENCES and rng.random() < 0.2,
            hx_given=rng.random() < 0.5,
            grad=rng.random() < 0.5,
        )

    def module(self, classes: Classes, *args: Any, **options: Any) -> Any:
        torch.manual_seed(0)
        sizes = args or (self.input_size, self.hidden_size)
        return classes[self.kind](*sizes, **dict(self.options) | {"dtype": self.dtype} | options)

    def input(self, *, features: int | None = None, dtype: torch.dtype | None = None) -> Any:
        width = self.input_size if features is None else features
        lead = () if self.batch is None else (self.batch,)
        options = dict(self.options)
        if self.packed:
            sizes = torch.tensor([2, 2, 1])
            return PackedSequence(torch.ones(5, width, dtype=dtype or self.dtype), sizes)
        if self.kind in SEQUENCES:
            lead = (self.steps, *lead)
            if options.get("batch_first") and self.batch is not None:
                lead = (self.batch, self.steps)
        return torch.ones(*lead, width, dtype=dtype or self.dtype)

    @property
    def state_shape(self) -> tuple[int, ...]:
        lead = () if self.batch is None else (self.batch,)
        if self.packed:
            lead = (2,)
        if self.kind in SEQUENCES:
            options = dict(self.options)
            lead = (options.get("num_layers", 1) * (1 + options.get("bidirectional", 0)), *lead)
        return (*lead, self.hidden_size)

    def hx(self, state: Tensor | None = None, *, rng: random.Random | None = None) -> Any:
        """States, with one of them replaced (which, of an LSTM's, is drawn)."""
        good = torch.zeros(self.state_shape, dtype=self.dtype)
        if not self.kind.startswith("LSTM"):
            return good if state is None else state
        pair = [good, good.clone()]
        if state is not None:
            pair[rng.randrange(2) if rng is not None else 0] = state
        return tuple(pair)


Spoil = Callable[[random.Random, Setting], Callable[[Classes], Any]]


@dataclass(frozen=True)
class Mistake:
    """A bad call. what: the name of its mistake in the table."""

    what: str
    setting: Setting
    index: int

    @staticmethod
    def draw(rng: random.Random) -> Mistake:
        what = rng.choice([*MISTAKES])
        setting = Setting.draw(rng, KINDS_OF.get(what, SEQUENCES + CELLS))
        return Mistake(what, setting, rng.randrange(2**31))

    def __call__(self, classes: Classes) -> Any:
        call = MISTAKES[self.what](random.Random(self.index), self.setting)
        with torch.set_grad_enabled(self.setting.grad):
            return call(classes)


# Constructors.


def _options(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    name, values = rng.choice(
        [
            ("num_layers", [0, -2, "2", 1.5, None]),
            ("bias", [1, 0, None, "yes"]),
            ("batch_first", [1, None, "no"]),
            ("dropout", [-0.1, 1.5, True, "x", None, float("nan"), 2]),
            ("foo", [1]),
            ("dtype", [torch.int64, torch.bool, "float32"]),
            ("device", ["nowhere", "cpu:x"]),
        ]
    )
    value = rng.choice(values)
    return lambda classes: setting.module(classes, **{name: value})


def _sizes(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    bad = rng.choice([0, -1, 2.0, "3", None, numpy.int64(3)])
    if setting.kind in CELLS:
        bad = rng.choice([-1, 2.5, "3", None])
    sizes = rng.choice([(bad, 4), (3, bad), (bad, bad)])
    return lambda classes: setting.module(classes, *sizes)


def _arguments(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    which = rng.choice(["none", "one", "many", "twice"])
    if which == "none":
        return lambda classes: classes[setting.kind]()
    if which == "one":
        return lambda classes: classes[setting.kind](3)
    if which == "many":
        return lambda classes: classes[setting.kind](3, 4, *[1] * 20)
    return lambda classes: classes[setting.kind](3, 4, input_size=3)


def _proj_size(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    wrong = rng.choice([setting.hidden_size, setting.hidden_size + 3, -1])
    size = wrong if setting.kind == "LSTM" else rng.choice([0, 1])
    return lambda classes: setting.module(classes, proj_size=size)


def _nonlinearity(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    if setting.kind in ("LSTM", "GRU"):
        return lambda classes: setting.module(classes, nonlinearity="tanh")
    if rng.random() < 0.5:
        return lambda classes: classes["RNN"](3, 4, 1, "tanh", nonlinearity="relu")
    return lambda classes: classes["RNN"](3, 4, 1, True)


def _cell_options(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    if setting.kind == "RNNCell":  # accepted by the constructor, not by the call
        return lambda c: setting.module(c, nonlinearity="zzz")(setting.input(), setting.hx())
    options = rng.choice([{"foo": 1}, {"nonlinearity": "tanh"}, {"num_layers": 1}])
    return lambda classes: setting.module(classes, **options)


# Inputs.


def _with_input(setting: Setting, input: Any) -> Callable[[Classes], Any]:
    args = (input, setting.hx()) if setting.hx_given else (input,)
    return lambda classes: setting.module(classes)(*args)


def _features(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    wrong = rng.choice([0, 1, setting.input_size - 1, setting.input_size + 1, 40])
    return _with_input(setting, setting.input(features=wrong))


def _input_rank(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    ranks = [0, 1, 4, 5] if setting.kind in SEQUENCES else [0, 3, 4]
    shape = [1] * rng.choice(ranks)
    return _with_input(setting, torch.zeros(shape, dtype=setting.dtype))


def _input_dtype(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    # Where a dimension is missing, int64 is no mistake: numbers of one-hot vectors.
    integers = torch.int16 if setting.batch is None else torch.int64
    others = [torch.float32, torch.float64, torch.float16, integers, torch.bool, torch.complex64]
    other = rng.choice([dtype for dtype in others if dtype != setting.dtype])
    return _with_input(setting, setting.input(dtype=other))


def _input_type(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    return _with_input(setting, rng.choice([None, [1.0], 5, "x", numpy.zeros((2, 2, 3)), (1, 2)]))


def _no_steps(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    shape = (0, rng.choice([0, 2]), setting.input_size)
    if dict(setting.options).get("batch_first"):
        shape = (shape[1], 0, setting.input_size)
    x = torch.zeros(shape if setting.batch is not None else shape[::2], dtype=setting.dtype)
    if x.dim() == 2:
        x = torch.zeros(0, setting.input_size, dtype=setting.dtype)
    return lambda classes: setting.module(classes)(x)


def _arity(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    x, hx = setting.input(), setting.hx()
    return rng.choice(
        [
            lambda classes: setting.module(classes)(),
            lambda classes: setting.module(classes)(x, hx, None),
            lambda classes: setting.module(classes)(x, foo=hx),
            lambda classes: setting.module(classes)(hx=hx),
            lambda classes: setting.module(classes)(x, input=x),
        ]
    )


# Initial states.


def _with_state(
    rng: random.Random, setting: Setting, shape: Any, **options: Any
) -> Callable[[Classes], Any]:
    state = torch.zeros(tuple(shape), **{"dtype": setting.dtype} | options)
    hx = setting.hx(state, rng=rng)
    return lambda classes: setting.module(classes)(setting.input(), hx)


def _state_size(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    """With packed input torch's LSTM checks nothing: one row serves all, more layers none."""
    shape = list(setting.state_shape)
    which = rng.randrange(setting.packed and setting.kind == "LSTM", len(shape))
    shape[which] += rng.choice([1, 2] if setting.packed else [-1, 1, 2])
    return _with_state(rng, setting, shape)


def _state_rank(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    shape = setting.state_shape
    wrong = [(1, *shape), (1, 1, *shape)] if len(shape) < 3 else [(1, *shape), shape[1:]]
    return _with_state(rng, setting, rng.choice(wrong))


def _state_dtype(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    """Of h; torch's LSTMCell takes a c of any dtype."""
    others = [torch.float32, torch.float64, torch.float16, torch.int64]
    other = rng.choice([dtype for dtype in others if dtype != setting.dtype])
    hx = setting.hx(torch.zeros(setting.state_shape, dtype=other))
    return lambda classes: setting.module(classes)(setting.input(), hx)


def _state_device(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    """Of a tensor input; torch runs packed ones and cells, and returns what has no values."""
    setting = replace(setting, packed=False)
    return _with_state(rng, setting, setting.state_shape, device="meta")


def _state_type(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    h = torch.zeros(setting.state_shape, dtype=setting.dtype)
    wrong: list[Any] = [5, "x", numpy.zeros(setting.state_shape)]
    if setting.kind.startswith("LSTM"):
        wrong += [(h,), (h, None), (None, h), (None, None), ()]
        if setting.batch is not None or setting.packed:  # else a third is left out
            wrong += [h[:1], (h, h, h)]
    else:
        wrong += [(h,), (h, h), [h]]
    hx = rng.choice(wrong)
    return lambda classes: setting.module(classes)(setting.input(), hx)


# Packed sequences made by hand, changed modules, gradients.


def _batch_sizes(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    sizes = rng.choice(
        [
            torch.tensor([3, 3, 1]),
            torch.tensor([1, 2, 3]),
            torch.tensor([3, 2, -1]),
            torch.tensor([3, 2, 1], dtype=torch.int32),
            torch.tensor([], dtype=torch.int64),
        ]
    )
    x = PackedSequence(torch.ones(6, setting.input_size, dtype=setting.dtype), sizes)
    return lambda classes: setting.module(classes)(x)


def _changed_dropout(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    value = rng.choice([2, -0.5, "x", None])

    def call(classes: Classes) -> Any:
        module = setting.module(classes, num_layers=2)
        module.dropout = value
        return module(setting.input())

    return call


def _changed_weight(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    """In the dtype where torch's operators look at the sizes, see README.md."""
    name = rng.choice(["weight_ih", "weight_hh"])
    how = rng.choice(["rows", "columns", "dtype"])

    def call(classes: Classes) -> Any:
        module = setting.module(classes, dtype=torch.float64, bias=True)
        full = name if setting.kind in CELLS else f"{name}_l0"
        old = getattr(module, full)
        rows, columns = old.shape
        new = {
            "rows": torch.zeros(rows + 1, columns, dtype=old.dtype),
            "columns": torch.zeros(rows, columns + 1, dtype=old.dtype),
            "dtype": torch.zeros(rows, columns, dtype=torch.float32),
        }[how]
        setattr(module, full, nn.Parameter(new))
        return module(torch.zeros_like(_data(setting.input()), dtype=torch.float64))

    return call


def _backward_twice(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    def call(classes: Classes) -> Any:
        with torch.enable_grad():
            loss = flat(setting.module(classes)(setting.input()))[0].sum()
            loss.backward()
            return loss.backward()

    return call


def _changed_before_backward(rng: random.Random, setting: Setting) -> Callable[[Classes], Any]:
    """What backward needs is changed in place in between.

    The gradient of h reads weight_hh, that of weight_ih the input (batch_first: a copy, in torch).
    """
    transposed = dict(setting.options).get("batch_first")
    what = "weight_hh" if transposed else rng.choice(["input", "weight_hh"])

    def call(classes: Classes) -> Any:
        module, input = setting.module(classes), setting.input()
        name = "weight_hh" if setting.kind in CELLS else "weight_hh_l0"
        with torch.enable_grad():
            hx = setting.hx()
            for leaf in (_data(input), *flat(hx)):
                leaf.requires_grad_()
            loss = flat(module(input, hx))[0].sum()
            with torch.no_grad():
                (_data(input) if what == "input" else getattr(module, name)).mul_(2)
            return loss.backward()

    return call


def _data(input: Any) -> Tensor:
    data: Tensor = input.data if isinstance(input, PackedSequence) else input
    return data


MISTAKES: dict[str, Spoil] = {
    "options": _options,
    "sizes": _sizes,
    "arguments": _arguments,
    "proj_size": _proj_size,
    "nonlinearity": _nonlinearity,
    "options of a cell": _cell_options,
    "features": _features,
    "rank of input": _input_rank,
    "dtype of input": _input_dtype,
    "type of input": _input_type,
    "no steps": _no_steps,
    "arity": _arity,
    "size of state": _state_size,
    "rank of state": _state_rank,
    "dtype of state": _state_dtype,
    "device of state": _state_device,
    "type of state": _state_type,
    "batch_sizes": _batch_sizes,
    "changed dropout": _changed_dropout,
    "changed weight": _changed_weight,
    "backward twice": _backward_twice,
    "changed before backward": _changed_before_backward,
}
#: Mistakes that only some kinds of modules can suffer.
KINDS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("options", "proj_size", "nonlinearity"), SEQUENCES),
    **dict.fromkeys(("no steps", "batch_sizes", "changed dropout"), SEQUENCES),
    "device of state": SEQUENCES,
    "options of a cell": CELLS,
}
