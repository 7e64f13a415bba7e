"""A module of fastrnn that shares the parameters of one of torch.nn: ``LSTM.from_torch``."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

from torch import nn
from torch.nn.modules.module import _WrappedHook
from torch.nn.utils import parametrize

#: What a copy has to have of its own: the containers of every module (parameters, hooks, ...) and
#: the lists of ``torch.nn.RNNBase``. Values are shared.
_CONTAINERS: tuple[str, ...] = (
    *vars(nn.Module()),
    "_flat_weights",
    "_flat_weights_names",
    "_flat_weight_refs",
    "_all_weights",
)


class FromTorch:
    """What modules that stand for one of torch.nn know of it."""

    #: torch's class, bound at import: ``torch.nn.LSTM`` may later be replaced by ours.
    _torch_class: ClassVar[type[nn.Module]]
    #: Whether ``fastrnn.convert_`` made it of a module of torch.nn; then ``revert_`` undoes that.
    _converted: bool = False

    @classmethod
    def from_torch(cls, module: nn.Module) -> Self:
        """A new module that computes what ``module`` does, with the same Parameter objects.

        A step of an optimizer, ``load_state_dict`` or a write to a parameter in place on either is
        seen by both. The options, ``training``, hooks and other attributes are those that
        ``module`` has now; from then on each has its own. ``fastrnn.convert_`` is for whole models.

        Args:
            module: of the class in torch.nn that has the name of this one.

        Raises:
            TypeError: it is of another class; a subclass too, whose forward may be another.
            ValueError: it is parametrized (``torch.nn.utils.parametrize``), and a parametrization
                cannot belong to two modules; its ``forward`` was replaced; it has an attribute that
                has a meaning for fastrnn.
        """
        expected = cls._torch_class
        if parametrize.type_before_parametrizations(module) is not expected:
            found = f"{type(module).__module__}.{type(module).__qualname__}"
            raise TypeError(f"module: expected a torch.nn.{expected.__name__}, got {found}")
        if parametrize.is_parametrized(module):
            raise ValueError(
                "module: expected one without parametrizations, which cannot belong to two "
                "modules; fastrnn.convert_ converts such a module in place"
            )
        if reason := obstacle(module, cls):
            raise ValueError(f"module: expected one as torch.nn made it, but {reason}")
        twin = cls.__new__(cls)
        state = dict(vars(module))
        state.pop("_compiled_call_impl", None)  # of ``module.compile()``: it would call that module
        for name in _CONTAINERS:
            if isinstance(state.get(name), (dict, list, set)):
                state[name] = copy.copy(state[name])
        _rebind(state["_load_state_dict_pre_hooks"], module, twin)
        vars(twin).update(state)
        return twin


def obstacle(module: nn.Module, ours: type) -> str | None:
    """Why a module of a class of torch.nn cannot be one of ours, or None."""
    own = vars(module)
    if "forward" in own:
        return "its forward was replaced"
    taken = set(dir(ours)) - set(dir(type(module)))
    names = {*own, *module._parameters, *module._buffers, *module._modules}
    clash = min(names & taken, default=None)
    return clash and f"its attribute {clash!r} has a meaning for fastrnn.{ours.__name__}"


def _rebind(hooks: dict[int, Any], module: nn.Module, twin: object) -> None:
    """Give hooks that are called with their module the copy, not the module it was made of."""
    for key, hook in hooks.items():
        if isinstance(hook, _WrappedHook) and hook.with_module and hook.module() is module:
            hooks[key] = _WrappedHook(hook.hook, twin)  # type: ignore[arg-type]
