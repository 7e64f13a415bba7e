"""What tests of the CUDA kernels on the CPU share: the options of a call, and how it is run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import cases
import torch
from cases import Case, Outputs
from cuda_emulated import registered

REGIMES = ("stepwise", "processor", "cluster", "grid-1", "grid-4")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: By name: the dtype of the tensors, and whether products are in TF32.
ARITHMETICS = {
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "float64": (torch.float64, False),
}
#: Enough for a grid of several teams, too few for every plan.
DEVICE = {"multiprocessors": 16}


def options(cell: str, dtype: torch.dtype = torch.float32) -> list[Case]:
    """Every option of a call of the cell, alone and with those that it may meet."""
    base = Case(cell, dtype)
    found = [
        base,
        replace(base, hx=False, bias=False, steps=1),
        replace(base, bidirectional=True),
        replace(base, lengths="random", batch=5),
        replace(base, lengths="zeros", bidirectional=True),
        replace(base, layout="packed", bidirectional=True, batch=5),
        replace(base, reset="random", bidirectional=True),
        replace(base, layout="packed", reset="random", batch=4),
        replace(base, lengths="random", reset="random", bidirectional=True, batch=19),
        replace(base, hidden_size=1, input_size=1, batch=1, steps=2),
        replace(base, hidden_size=40, input_size=9, batch=17),
    ]
    if cell == "lstm":
        projected = replace(base, hidden_size=21, proj_size=6)
        found += [
            replace(base, cell_states=True, lengths="random", bidirectional=True),
            projected,
            replace(projected, lengths="random", reset="random", bidirectional=True, batch=18),
            replace(projected, layout="packed", cell_states=True),
        ]
    if cell.startswith("gru"):  # whose states are restored in parts of 32 steps
        long = replace(base, steps=70, batch=2, hidden_size=7, bidirectional=True)
        found += [long, replace(long, lengths="random", reset="random", batch=5)]
    return found


def arguments(case: Case, *, tf32: bool = False) -> cases.Arguments:
    """The tensors of a case. For products in TF32 those of float16, which has its mantissa: what
    keeps rounded sums from the kink of relu is needed there too."""
    if not tf32:
        return cases.arguments(case)
    narrow = cases.arguments(replace(case, dtype=torch.float16))
    return replace(narrow.map(lambda tensor: tensor.to(case.dtype)), case=case)


@functools.lru_cache(maxsize=32)
def expected(case: Case, *, tf32: bool = False) -> Outputs:
    """Results of the reference in float64."""
    return cases.reference(arguments(case, tf32=tf32))


@contextmanager
def rnn_precision(*, tf32: bool) -> Iterator[None]:
    """Products of float32 as torch.backends.cudnn has them for its RNNs."""
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before


def run(
    case: Case,
    regime: str | None,
    *,
    tf32: bool = False,
    seed: int = 1,
    checked: bool = False,
    **options: object,
) -> Outputs:
    """Results of the kernels on the emulated device, which a seed gives an order of threads."""
    with (
        rnn_precision(tf32=tf32),
        registered(regime, checked=checked, seed=seed, **DEVICE) as name,
    ):
        return cases.results(
            arguments(case, tf32=tf32),
            backend=name,
            **options,  # type: ignore[arg-type]
        )


def check(actual: Outputs, case: Case, *, tf32: bool = False) -> None:
    """Fail unless the results are those of the reference, within the rule of tolerances."""
    cases.check(actual, expected(case, tf32=tf32), case, dtype=torch.float16 if tf32 else None)


@contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty is full of NaN, so that what nobody writes shows."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
