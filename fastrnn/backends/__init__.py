"""The registry of backends: the one place that decides who serves a call.

The first backend, in the order of registration, that is available and supports the problem
serves it. ``use_backend`` (or the variable ``FASTRNN_BACKEND``) insists on one; a call that it
cannot serve then raises instead of going elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import device, dtype, is_grad_enabled
from torch._C import (
    _functorch,
    _get_tracing_state,
    _is_any_autocast_enabled,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch.autograd import forward_ad
from torch.compiler import assume_constant_result, is_compiling

from .. import _env
from ..cells import CELLS
from ..problem import Problem
from . import cpu as cpu_backend
from .base import (
    Backend,
    DifferentiableBackend,
    FusedBackend,
    Gradients,
    Needs,
    Verdict,
)
from .cpu import CpuBackend
from .cuda import CudaBackend
from .cupy import CupyBackend
from .numba import NumbaBackend
from .reference import ReferenceBackend
from .torch import TorchBackend

__all__ = [
    "Backend",
    "DifferentiableBackend",
    "FusedBackend",
    "Gradients",
    "Needs",
    "Verdict",
    "backends",
    "candidates",
    "direct",
    "example",
    "explain",
    "get",
    "insists_on_kernels",
    "register",
    "select",
    "select_fused",
    "transformed",
    "use_backend",
]

_registry: dict[str, Backend] = {}


class _Forced(threading.local):
    """The backend this thread insists on. (Dynamo traces a thread-local, not a ContextVar.)"""

    def __init__(self) -> None:
        self.name: str | None = None  # torch 2.11 would trace the default of a class instead


_forced = _Forced()
_from_environment: str | None = _env.get("FASTRNN_BACKEND") or None
_chosen: dict[tuple[object, ...], Backend] = {}
_serves_directly: dict[str | None, Any] = {}


def register(backend: Backend, *, before: str | None = None) -> None:
    """Add a backend, last in order or in front of another one."""
    global _registry
    entries = {name: entry for name, entry in _registry.items() if name != backend.name}
    if before is None:
        _registry = {**entries, backend.name: backend}
    else:
        if before not in entries:
            raise ValueError(f"before: expected one of {', '.join(entries)}, got {before!r}")
        ordered: dict[str, Backend] = {}
        for name, entry in entries.items():
            if name == before:
                ordered[backend.name] = backend
            ordered[name] = entry
        _registry = ordered
    _chosen.clear()
    _serves_directly.clear()


def backends() -> dict[str, Backend]:
    """All registered backends by name, in the order in which they are asked."""
    return dict(_registry)


def get(name: str) -> Backend:
    """The backend of that name.

    Raises:
        ValueError: there is none.
    """
    try:
        return _registry[name]
    except KeyError:
        known = ", ".join(_registry)
        raise ValueError(f"backend: expected one of {known}, got {name!r}") from None


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Insist on one backend inside a ``with`` block (None: the automatic choice).

    Raises:
        ValueError: no such backend.
        RuntimeError: it is not available here, with the reason.
    """
    if name is not None:
        verdict = get(name).available()
        if not verdict.ok:
            raise RuntimeError(f"backend {name!r} is not available: {verdict.reason}")
    before, _forced.name = _forced.name, name
    try:
        yield
    finally:
        _forced.name = before


def insists_on_kernels() -> bool:
    """Whether the backend insisted on has kernels of its own: then a trace is to hold ours."""
    name = _forced.name or _from_environment
    return name is not None and isinstance(_registry.get(name), FusedBackend)


def _verdict(backend: Backend, problem: Problem) -> Verdict:
    verdict = backend.available()
    return backend.supports(problem) if verdict.ok else verdict


def candidates(problem: Problem) -> list[tuple[str, Verdict]]:
    """What each backend says to a problem, in the order in which they are asked."""
    return [(name, _verdict(backend, problem)) for name, backend in _registry.items()]


def transformed() -> bool:
    """Whether a functorch transform or forward-mode AD is on, which only torch operations see."""
    return _functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def select(problem: Problem) -> Backend:
    """The backend that serves a problem.

    Raises:
        RuntimeError: the backend insisted on cannot serve it, with the reason.
    """
    forced = _forced.name or _from_environment
    only_differentiable = transformed()
    if is_compiling():
        return _registry[_choice_while_tracing(forced, only_differentiable, *_traits(problem))]
    if forced is not None or only_differentiable:
        return _choose(problem, forced, only_differentiable=only_differentiable)
    key = _traits(problem)
    chosen = _chosen.get(key)
    if chosen is None:
        chosen = _chosen[key] = _choose(problem, None, only_differentiable=False)
    return chosen


def direct() -> Any:
    """What serves a call that nothing but its caller looks at, straight from a module's tensors.

    None where something else does (a gradient, a transform, a mode, a trace, autocast), or where
    the CPU kernels would not be the choice.
    """
    if (
        is_compiling()
        or is_grad_enabled()
        or _is_any_autocast_enabled()
        or _len_torch_function_stack() > 0
        or _len_torch_dispatch_stack() > 0
        or _get_tracing_state() is not None
        or transformed()
    ):
        return None
    forced = _forced.name
    try:
        return _serves_directly[forced]
    except KeyError:
        served = _serves_directly[forced] = _direct(forced or _from_environment)
        return served


def _direct(forced: str | None) -> Any:
    serving = (name for name, entry in _registry.items() if entry.available().ok)
    name = forced or next(serving, None)
    served = cpu_backend.direct() if name and type(_registry.get(name)) is CpuBackend else None
    if served is not None:
        _env.logger.info(
            "calls of modules without gradients, on the CPU: served by %r, directly", name
        )
    return served


def _traits(problem: Problem) -> tuple[str, dtype, str, int | None, bool, bool, bool, bool]:
    """What a choice may depend on: everything but the sizes. GPUs need not be of one kind."""
    return (
        problem.cell.name,
        problem.dtype,
        problem.device.type,
        problem.device.index,
        problem.packed,
        problem.lengths,
        problem.reset,
        problem.keep_cell_states,
    )


def example(
    cell: str,
    dtype: dtype,
    device: device,
    packed: bool = False,
    lengths: bool = False,
    reset: bool = False,
    keep_cell_states: bool = False,
) -> Problem:
    """A problem with these traits, of some size: no choice depends on the sizes."""
    return Problem(
        cell=CELLS[cell],
        dtype=dtype,
        device=device,
        steps=1,
        batch=1,
        rows=1,
        input_size=1,
        hidden_size=1,
        output_size=1,
        directions=1,
        bias=True,
        packed=packed,
        lengths=lengths,
        reset=reset,
        keep_cell_states=keep_cell_states,
        training=False,
    )


@assume_constant_result  # type: ignore[untyped-decorator]
def _choice_while_tracing(
    forced: str | None,
    only_differentiable: bool,
    cell: str,
    dtype: dtype,
    device_type: str,
    device_index: int | None,
    packed: bool,
    lengths: bool,
    reset: bool,
    keep_cell_states: bool,
) -> str:
    """The name of the choice, found outside of the trace: it loads libraries and writes a log."""
    there = device(device_type) if device_index is None else device(device_type, device_index)
    problem = example(cell, dtype, there, packed, lengths, reset, keep_cell_states)
    return _choose(problem, forced, only_differentiable=only_differentiable).name


def select_fused(problem: Problem) -> FusedBackend:
    """The first backend with kernels of its own that serves a problem, whatever is insisted on.

    For the backward of a call that such a backend served forward, when it is not known which.

    Raises:
        RuntimeError: there is none.
    """
    for backend in _registry.values():
        if isinstance(backend, FusedBackend) and _verdict(backend, problem).ok:
            return backend
    raise RuntimeError(
        "no backend with kernels of its own serves this call:\n" + _verdicts(problem)
    )


def _choose(problem: Problem, forced: str | None, *, only_differentiable: bool) -> Backend:
    def verdict_of(backend: Backend) -> Verdict:
        if only_differentiable and not backend.differentiable:
            return Verdict(False, "not made of torch operations (functorch or forward mode is on)")
        return _verdict(backend, problem)

    if forced is not None:
        verdict = verdict_of(get(forced))
        if not verdict.ok:
            raise RuntimeError(f"backend {forced!r} cannot serve this call: {verdict.reason}")
        return get(forced)
    refusals: list[tuple[str, str]] = []
    for name, backend in _registry.items():
        verdict = verdict_of(backend)
        if verdict.ok and backend.on_request:
            verdict = Verdict(False, backend.on_request)
        if verdict.ok:
            _env.logger.info(
                "%s %s on %s: served by %r%s",
                problem.cell.name,
                str(problem.dtype).removeprefix("torch."),
                problem.device.type,
                name,
                "".join(f"; {other}: {reason}" for other, reason in refusals),
            )
            return backend
        refusals.append((name, verdict.reason))
    raise RuntimeError("no backend: " + "; ".join(f"{name}: {reason}" for name, reason in refusals))


def explain(problem: Problem) -> str:
    """Which backend serves a problem, and what each of them says, as text."""
    serving = select(problem).name
    head = f"{problem.cell.name}, {problem.dtype}, {problem.device}: served by {serving!r}"
    return f"{head}\n{_verdicts(problem)}"


def _verdicts(problem: Problem) -> str:
    return "\n".join(
        f"  {name:<10} {'can' if verdict.ok else 'cannot'}: {verdict.reason}"
        for name, verdict in candidates(problem)
    )


for _backend in (
    CpuBackend(),
    CudaBackend(),
    CupyBackend(),
    NumbaBackend(),
    TorchBackend(),
    ReferenceBackend(),
):
    register(_backend)
