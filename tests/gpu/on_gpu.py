"""Cases on the device, for every file here. Importing this skips where there is none."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from cases import (
    Arguments,
    Case,
    Forward,
    Outputs,
    arguments,
    check,
    fastrnn_forward,
    reference,
    results,
    upstream,
)

from bench.gpu.device import device, to_device

if device().missing():
    pytest.skip(device().missing(), allow_module_level=True)

#: None: what the plan chooses.
FORCED = ("stepwise", "processor", "cluster", "grid-1", "grid-4", "tiled-1", "tiled-4")
REGIMES = (None, *FORCED)


class Math(NamedTuple):
    """A dtype, and for float32 whether its products are rounded to TF32."""

    name: str
    dtype: torch.dtype
    tf32: bool = False


FLOAT32 = Math("float32", torch.float32)
FLOAT64 = Math("float64", torch.float64)
BFLOAT16 = Math("bfloat16", torch.bfloat16)
FLOAT16 = Math("float16", torch.float16)
TF32 = Math("tf32", torch.float32, tf32=True)
MATHS = (FLOAT32, FLOAT64, BFLOAT16, FLOAT16, TF32)


@contextmanager
def rounding(math: Math) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = math.tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def moved(a: Arguments) -> Arguments:
    """The arguments on the device; lengths stay on the host, where calls want them."""
    on = a.map(to_device)
    return replace(
        on,
        reset=None if a.reset is None else to_device(a.reset),
        packing=None if a.packing is None else a.packing.to(device().type),
    )


def gradients(outputs: Outputs, case: Case) -> Outputs:
    """``upstream`` on the device."""
    on_host = {name: output.detach().cpu() for name, output in outputs.items()}
    return {name: to_device(grad) for name, grad in upstream(on_host, case).items()}


@contextmanager
def refusable(regime: str | None) -> Iterator[None]:
    """Skips where the device has no room for the regime: a part of the GPUs for some, of the cases
    for others. That each serves a small case where it can is for ``test_gpu_basics.py`` to say; the
    free choice, and ``stepwise``, are never refused."""
    try:
        yield
    except RuntimeError as error:
        if regime in (None, "stepwise") or "cannot run this" not in str(error):
            raise
        pytest.skip(f"the regime {regime} cannot run this here")


def run(
    given: Case | Arguments,
    regime: str | None = None,
    math: Math = FLOAT32,
    *,
    forward: Forward = fastrnn_forward,
    cupy: bool = False,
    may_skip: bool = True,
    **options: Any,
) -> Outputs:
    """Outputs and gradients, brought to the host.

    Where the regime cannot run the case it skips, or fails unless it ``may_skip``. ``cupy``: by
    that backend.
    """
    serving = device().serving_cupy if cupy else device().serving
    there = moved(arguments(given) if isinstance(given, Case) else given)
    with refusable(regime) if may_skip else nullcontext(), rounding(math), serving(regime) as name:
        found = results(there, forward, backend=name, grads=gradients, **options)
    return {name: value.cpu() for name, value in found.items()}


@functools.lru_cache(maxsize=512)
def expected(case: Case) -> Outputs:
    """The same from the reference in float64 on the CPU."""
    return reference(arguments(case))


def compare(actual: Outputs, wanted: Outputs, case: Case, math: Math) -> None:
    """As ``check``. A gradient of relu is no number to compare where values are rounded coarsely:
    it jumps where that moves one across 0."""
    coarse = math.tf32 or case.dtype.itemsize == 2
    if case.cell == "rnn_relu" and coarse:
        actual, wanted = (
            {name: value for name, value in found.items() if not name.startswith("grad")}
            for found in (actual, wanted)
        )
    # float16 has the mantissa of TF32.
    check(actual, wanted, case, dtype=torch.float16 if math.tf32 else None)


def same_bits(first: Outputs, second: Outputs) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
