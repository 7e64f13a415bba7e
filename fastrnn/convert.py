"""Models of torch.nn onto fastrnn's modules and back, in place: ``convert_`` and ``revert_``.

A module of fastrnn has the attributes of the one in torch.nn that it stands for, and no others. So
a module is converted by giving it another class: the object stays, and with it whatever refers to
it (containers, shared uses, hooks, optimizers through its parameters).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from .cells import CELLS
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from .modules._from_torch import FromTorch, obstacle
from .modules.base import PREPACKED, SequenceModule

Filter = Callable[[nn.Module, str], bool]

_OURS: tuple[type[FromTorch], ...] = (RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell)
_OF_TORCH: dict[type, type] = {ours._torch_class: ours for ours in _OURS}
_NAMES: tuple[str, ...] = tuple(theirs.__name__ for theirs in _OF_TORCH)

#: Attributes of our modules that torch.nn's do not have.
_OUR_ATTRIBUTES = ("recompute", "return_cell_states", "reset_after", "_converted", PREPACKED)

#: On a class made for parametrizations: the class that the module had before.
_MADE_OF = "_made_of"


class Swapped(NamedTuple):
    """A module that has another class now. name: in the model, "" for the model itself."""

    name: str
    before: str
    after: str


class Skipped(NamedTuple):
    """A recurrent module that stays as it was. name: in the model, "" for the model itself."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """What ``convert_`` or ``revert_`` did; ``str()`` of it is a line for each module.

    Attributes:
        converted: what has another class now.
        skipped: what was left as it was, and why.
    """

    converted: tuple[Swapped, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        def shown(name: str) -> str:
            return name or "(the model)"

        entries: tuple[Swapped | Skipped, ...] = (*self.converted, *self.skipped)
        width = max((len(shown(entry.name)) for entry in entries), default=0)
        lines = [f"{len(self.converted)} converted, {len(self.skipped)} skipped"]
        lines += [f"  {shown(n):{width}}  {old} -> {new}" for n, old, new in self.converted]
        lines += [f"  {shown(n):{width}}  {kind} stays: {why}" for n, kind, why in self.skipped]
        return "\n".join(lines)


def convert_(model: nn.Module, filter_fn: Filter | None = None) -> ConversionReport:
    """Make every RNN, LSTM, GRU and cell of torch.nn in a model one of fastrnn, in place.

    Each stays the same object, with the same Parameter objects, hooks, parametrizations, mode,
    device, dtype, attributes and ``state_dict``; only its class changes. Optimizers stay valid,
    checkpoints made before load after, and the other way.

    Args:
        model: any module; itself too, if it is one of those.
        filter_fn: called with each of them and its name in the model (the first, of a module with
            several); those for which it says no stay. None converts all.

    Returns:
        what was converted, and what was not and why: subclasses of torch's modules and modules
        with a ``forward`` of their own (which would be lost), scripted and quantized ones, modules
        with an attribute that has a meaning for fastrnn.

    Raises:
        TypeError: model is no module.

    Example::

        report = fastrnn.convert_(model)
        print(report)
    """
    found: list[tuple[str, nn.Module, str | type]] = []
    for name, module in _named_modules(model):
        ours = _OF_TORCH.get(_plain_class(module))
        if ours is None:
            why = _why_not_convertible(module)
        else:
            why = obstacle(module, ours)
            if not why and filter_fn is not None and not filter_fn(module, name):
                why = "filter_fn said no"
        target = why or ours
        if target is not None:
            found.append((name, module, target))
    report = _swap_classes(found)
    for _, module, target in found:
        if isinstance(target, type):
            vars(module)["_converted"] = True
    return report


def revert_(model: nn.Module, *, include_native: bool = False) -> ConversionReport:
    """Undo ``convert_``, exactly: the modules it converted are again what they were.

    Args:
        model: a model that ``convert_`` has converted, or a copy of it.
        include_native: also make modules that were built as fastrnn's ones of torch.nn, for what
            knows only those: dynamic quantization, ``torch.jit.script``, ... Their ``recompute``
            is dropped; it changes no number.

    Returns:
        what was converted back, and what was not and why: modules built as fastrnn's, and those
        with an option that torch.nn lacks.

    Raises:
        TypeError: model is no module.
    """
    found: list[tuple[str, nn.Module, str | type]] = []
    for name, module in _named_modules(model):
        kind = _plain_class(module)
        if not isinstance(module, FromTorch):
            continue
        if kind not in _OURS:
            target: str | type = f"a subclass of fastrnn.{_base_name(module)}"
        elif not module._converted and not include_native:
            target = "built as fastrnn's, not converted; see include_native"
        else:
            target = _option_beyond_torch(module) or module._torch_class
        found.append((name, module, target))
    for _, module, target in found:
        if isinstance(target, type):
            for attribute in _OUR_ATTRIBUTES:
                vars(module).pop(attribute, None)
    return _swap_classes(found)


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    yield from model.named_modules()


def _swap_classes(found: list[tuple[str, nn.Module, str | type]]) -> ConversionReport:
    """Give each module the class found for it, where it is not a reason to leave it."""
    converted, skipped = [], []
    for name, module, target in found:
        before = _class_name(module)
        if isinstance(target, str):
            skipped.append(Skipped(name, before, target))
            continue
        kind: Any = target
        if _made_for_parametrizations(type(module)):
            kind = _with_parametrizations_of(type(module), target)
        module.__class__ = kind
        converted.append(Swapped(name, before, _class_name(module)))
    return ConversionReport(tuple(converted), tuple(skipped))


def _made_for_parametrizations(kind: type) -> bool:
    """Whether torch.nn.utils.parametrize made the class, for one module."""
    return kind.__module__ == parametrize.__name__ and kind.__name__.startswith("Parametrized")


def _plain_class(module: nn.Module) -> type:
    """The class of a module, whether some of its weights are parametrized or not."""
    kind = type(module)
    return kind.__bases__[0] if _made_for_parametrizations(kind) else kind


def _with_parametrizations_of(kind: type, base: type) -> type:
    """The class that torch made for the parametrizations of a module, over another base.

    The way back ends at the very class it began with, unless parametrizations have come or gone.
    """

    def contents(some: type) -> dict[str, Any]:
        """What torch puts there: a property for each parametrized tensor, rules for copies."""
        rules = ("__module__", "__getstate__", "__deepcopy__")
        return {k: v for k, v in vars(some).items() if isinstance(v, property) or k in rules}

    origin: type | None = vars(kind).get(_MADE_OF)
    if origin is not None and origin.__bases__ == (base,) and contents(origin) == contents(kind):
        return origin
    return type(kind.__name__, (base,), contents(kind) | {_MADE_OF: kind})


def _class_name(module: nn.Module) -> str:
    """As users write it: ``torch.nn.LSTM``, ``fastrnn.LSTM``, ``package.module.Own``."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return f"torch.jit.ScriptModule of {module.original_name}"
    plain = _plain_class(module)
    parametrized = "parametrized " if plain is not kind else ""
    home = "fastrnn" if plain in _OURS else plain.__module__
    if plain in _OF_TORCH:
        home = "torch.nn"
    return f"{parametrized}{home}.{plain.__qualname__}"


def _base_name(module: nn.Module) -> str:
    """Name of the module of torch.nn, or ours, that this one inherits from."""
    bases = (*_OF_TORCH, *_OURS, nn.RNNBase, nn.RNNCellBase)
    return next(base.__name__ for base in bases if isinstance(module, base))


def _why_not_convertible(module: nn.Module) -> str | None:
    """Why something recurrent that is not of a class of torch.nn stays; None for anything else."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        known = module.original_name in _NAMES
        return "compiled by torch.jit, convert before that" if known else None
    if kind.__module__.startswith("torch.ao.") and kind.__name__ in _NAMES:
        return "made by torch.ao for quantization"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and not isinstance(module, FromTorch):
        return f"a subclass of torch.nn.{_base_name(module)}, which may have a forward of its own"
    return None


def _option_beyond_torch(module: nn.Module) -> str | None:
    """What a module of ours does that torch.nn's cannot, as a reason, or None."""
    option = None
    if isinstance(module, SequenceModule):
        modes = {cell.torch_mode for cell in CELLS.values() if cell.torch_name is not None}
        if module.mode not in modes:
            option = f"mode {module.mode}"
        elif module.return_cell_states:
            option = "return_cell_states"
    elif isinstance(module, RNNCell):
        cell = CELLS.get(f"rnn_{module.nonlinearity}")
        if cell is not None and cell.torch_name is None:
            option = f"nonlinearity {module.nonlinearity}"
    elif isinstance(module, GRUCell) and not module.reset_after:
        option = "reset_after=False"
    return option and f"torch.nn has no {option}"
