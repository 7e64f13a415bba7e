"""Which module calls are torch's own: those where something looks at the operator that is called.

Tensor subclasses and duck types with ``__torch_function__``, function modes, ``torch.jit.trace``
and ``torch.export`` expect torch's operator (``aten::lstm``), which they know, and autocast has
rules of its own for each. The module then calls the forward of torch's module of that name.

``torch.compile`` would unroll torch's operators, so compiled calls under autocast are ours, in
autocast's dtype; only the dtypes of their results are torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _disabled_torch_function_impl, _get_tracing_state
from torch.fx import Proxy
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_leaves

from .. import _compat, backends, onnx_export

TorchForward = Callable[..., Any]


def recorded() -> bool:
    """Whether torch.jit or torch.export records the operators that are called.

    Not where a program with operators of other kinds is wanted: ONNX's, in ``torch.onnx.export``,
    or ours, under ``use_backend`` of a backend with kernels.
    """
    if torch.compiler.is_compiling():
        return _compat.is_exporting() and not (
            onnx_export.is_exporting() or backends.insists_on_kernels()
        )
    return _get_tracing_state() is not None


def leaf_of_fx(module: nn.Module, input: object, hx: object, **options: object) -> Any:
    """The node of a call in the graph that ``torch.fx`` traces, or None where it traces none.

    A tracer takes a module for a leaf if its class is of a file of torch.nn, and calls any other.

    Raises:
        RuntimeError: the module has hooks. They have met the tracer's proxies already, and would
            run in the traced graph again.
    """
    if not is_fx_symbolic_tracing():
        return None
    arguments = (input,) if hx is None else (input, hx)
    options = {name: value for name, value in options.items() if value is not None}
    leaves = tree_leaves((arguments, options))
    tracer: Any = next((leaf.tracer for leaf in leaves if isinstance(leaf, Proxy)), None)
    if tracer is None or module is tracer.root:
        return None
    path = tracer.path_of_module(module)
    if module._forward_hooks or module._forward_pre_hooks:
        raise RuntimeError(
            f"torch.fx: expected a module without forward hooks, but {path!r} has some; use a "
            f"Tracer whose is_leaf_module is True for fastrnn.{type(module).__name__}"
        )
    return tracer.create_proxy("call_module", path, arguments, options)


def refuse_jit_trace(options: str) -> None:
    """Raise if torch.jit is tracing: it knows neither the options nor operators of ours.

    Raises:
        RuntimeError: it is.
    """
    if not torch.compiler.is_compiling() and _get_tracing_state() is not None:
        raise RuntimeError(
            f"torch.jit.trace: expected a call that torch.nn has too, got {options}; "
            "use torch.export or torch.compile"
        )


def refuse_jit_script(name: str) -> None:
    """What ``torch.jit.script`` meets in a module of that name.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        f"torch.jit.script: fastrnn.{name} has no form in TorchScript; use torch.jit.trace, "
        f"torch.export or torch.compile, or script a torch.nn.{name} with its state_dict"
    )


def seen_by_torch_function(values: Iterable[object], *, options: str | None) -> bool:
    """Whether a call for which ``has_torch_function`` said yes has to be torch's.

    Args:
        values: input, states and weights of the call.
        options: what the call wants that torch has no operator for, in words, or None.

    Raises:
        TypeError: one of ``values`` overrides torch functions, and there are such options.
    """
    overriding = next(filter(_overrides_torch, values), None)
    if overriding is None:
        if _compat.is_exporting():
            return False  # a mode of torch.export's own; `recorded` knows what to do then
        # A function mode. torch.set_default_device is one too, without interest in our calls.
        modes = _get_current_function_mode_stack()
        return options is None and any(not isinstance(mode, DeviceContext) for mode in modes)
    if options is not None:
        raise TypeError(
            f"{options}: expected plain tensors, got {type(overriding).__name__}, which overrides "
            "torch functions (__torch_function__); torch has no function with this option"
        )
    return True


def _overrides_torch(value: object) -> bool:
    """Whether torch functions called with ``value`` go to its ``__torch_function__``."""
    kind = type(value)
    override = getattr(kind, "__torch_function__", None)
    plain = (Tensor, nn.Parameter)
    return kind not in plain and override not in (None, _disabled_torch_function_impl)
