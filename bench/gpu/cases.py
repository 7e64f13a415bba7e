"""The table of GPU benchmark cases, and what each must reach.

Sizes: the ones that papers and libraries measure (H 256 to 1024, T 100 and 1024), the odd ones of
word models, those for which cuDNN has special kernels, and those where ours should not win.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..cases import ALL, GATED, INFERENCE, LENGTHS, MODES, PACKED, TRAINING, Case

FLOAT16, BFLOAT16, TF32, FLOAT32 = "float16", "bfloat16", "tf32", "float32"
DTYPES = {name: getattr(torch, name) for name in (FLOAT16, BFLOAT16, FLOAT32)}
DTYPES[TF32] = torch.float32


@dataclass(frozen=True)
class GpuCase(Case):
    """A case on a GPU.

    part: of the table, for those who run a part. tf32: products of float32 are rounded to TF32,
    in both libraries. regime: of our kernels, where it is not left to them; such a case is timed
    alone.
    """

    part: str = ""
    tf32: bool = False
    regime: str = ""

    @property
    def name(self) -> str:
        parts = [super().name]
        parts += [TF32] if self.tf32 else []
        parts += [self.regime] if self.regime else []
        return "-".join(parts)

    @property
    def dtype_name(self) -> str:
        return TF32 if self.tf32 else super().dtype_name

    @property
    def group(self) -> str:
        return f"{self.mode} {self.dtype_name}"

    @property
    def goal(self) -> float:
        """How many times as fast as torch.nn it must be."""
        return goal(self)


def goal(case: GpuCase) -> float:
    """The targets: cuDNN's time by ours, at least."""
    rounded = case.dtype != torch.float32 or case.tf32
    usual = 256 <= case.hidden_size <= 1024 and 8 <= case.batch <= 64
    training = case.mode == TRAINING
    if case.ragged:
        return 5.0 if case.steps >= 200 else 1.0
    if case.part in ("odd", "stacked"):
        return 2.0
    if not rounded or not usual:
        return 1.0
    if case.cell == "gru":
        return 2.0 if training else 2.5
    return 1.0 if case.dtype == torch.float16 else 1.8 if training else 2.0


#: Microseconds per step, at most, whatever torch.nn takes.
STEP_GOALS = {
    "lstm-inference-T1024-B16-I768-H768-bfloat16": 1.9,
    "lstm-training-T1024-B16-I768-H768-bfloat16": 5.0,
}

#: Where rows end early, the time of a filled step by that of the padded batch's, at most: they are
#: to be the same, but for what does not shrink with the rows.
PADDED_GOAL = 1.2


def _rows(
    part: str,
    cells: Sequence[str],
    dtypes: Sequence[str],
    steps: int,
    batches: Sequence[int],
    sizes: Sequence[int],
    modes: Sequence[str] = MODES,
    *,
    layers: int = 1,
    bidirectional: bool = False,
    ragged: Sequence[str] = ("",),
    regimes: Sequence[str] = ("",),
) -> Iterator[GpuCase]:
    """The product of all that; the input has as many features as there are units."""
    for size, batch, dtype, cell, kind, regime, mode in itertools.product(
        sizes, batches, dtypes, cells, ragged, regimes, modes
    ):
        yield GpuCase(
            cell,
            mode,
            steps,
            batch,
            size,
            size,
            layers,
            bidirectional,
            kind,
            dtype=DTYPES[dtype],
            part=part,
            tf32=dtype == TF32,
            regime=regime,
        )


HALVES = (FLOAT16, BFLOAT16)
ROUNDED = (*HALVES, TF32)
GRIDS = ("grid-1", "grid-2", "grid-4", "grid-8")
REGIMES = ("stepwise", "processor", "cluster-8", "cluster-16", *GRIDS)
#: For batches of several tiles: large tiles, alone and with shared k, and wide ones of a grid.
LARGE = ("stepwise", "grid-1-1-16", "grid-1-1-32", "grid-4", "tiled-1", "tiled-4", "tiled-8")

#: Cases with a goal of their own first, where ours should win; those that only explain come last.
CASES: tuple[GpuCase, ...] = (
    # What FlashRNN measures, and cuDNN's best: one case that says most.
    *_rows("headline", ("lstm",), (BFLOAT16, FLOAT16), 1024, (16,), (768,)),
    *_rows("headline", ("gru",), (BFLOAT16,), 1024, (16,), (768,)),
    # The usual sizes, by cell.
    *_rows("gru", ("gru",), ROUNDED, 100, (32,), (256, 512, 768, 1024)),
    *_rows("lstm", ("lstm",), ROUNDED, 100, (32,), (256, 512, 768, 1024)),
    *_rows("rnn", ("rnn_tanh",), ROUNDED, 100, (32,), (256, 512, 768, 1024)),
    # What cuDNN has no kernel of its own for.
    *_rows("odd", GATED, (BFLOAT16, TF32), 100, (20,), (200, 300, 650)),
    *_rows("odd", GATED, (BFLOAT16,), 100, (1, 4), (512,)),
    *_rows("ragged", GATED, (BFLOAT16,), 200, (32,), (256,), ragged=(PACKED, LENGTHS)),
    *_rows("ragged", ("lstm",), (TF32,), 1000, (32,), (512,), ragged=(PACKED, LENGTHS)),
    *_rows("stacked", GATED, (BFLOAT16, TF32), 100, (32,), (512,), layers=2, bidirectional=True),
    # Where the host decides; and where arithmetic does, and not who waits for whom.
    *_rows("host", ALL, (BFLOAT16, FLOAT32), 16, (1,), (64,)),
    *_rows("strict", ALL, (FLOAT32,), 100, (32,), (256, 512, 1024)),
    # More of the usual ones: batches, lengths, both directions.
    *_rows("gru", ("gru",), (BFLOAT16,), 100, (8, 16, 64), (512,)),
    *_rows("lstm", ("lstm",), HALVES, 100, (8, 16, 64), (512,)),
    *_rows("rnn", ("rnn_tanh",), (BFLOAT16,), 100, (8, 16, 64), (512,)),
    *_rows("gru", ("gru",), ROUNDED, 1024, (16,), (512,)),
    *_rows("lstm", ("lstm",), ROUNDED, 1024, (16,), (512, 1024)),
    *_rows("rnn", ("rnn_tanh",), ROUNDED, 1024, (16,), (512,)),
    *_rows("gru", ("gru",), (BFLOAT16, TF32), 100, (32,), (512,), bidirectional=True),
    *_rows("lstm", ("lstm",), (BFLOAT16, TF32), 100, (32,), (512,), bidirectional=True),
    *_rows("rnn", ("rnn_tanh",), (BFLOAT16, TF32), 100, (32,), (512,), bidirectional=True),
    # Arithmetic again; and where cuDNN keeps weights on chip too.
    *_rows("batch", GATED, (BFLOAT16, FLOAT32), 50, (512,), (512,)),
    *_rows("batch", ("lstm",), (BFLOAT16,), 25, (2048,), (512,)),
    *_rows("large", GATED, (BFLOAT16,), 100, (32,), (1536, 2048)),
    *_rows("small", GATED, (BFLOAT16, FLOAT32), 100, (32,), (64, 128)),
    # Is the cost model right? Regimes by force; those that cannot run are left out.
    *_rows("regimes", ("lstm",), (BFLOAT16,), 100, (16,), (128, 256, 512, 1024), regimes=REGIMES),
    *_rows("regimes", ("gru",), (TF32,), 100, (64,), (256,), regimes=REGIMES),
    *_rows("regimes", ("lstm",), (BFLOAT16, TF32), 50, (256,), (512,), regimes=LARGE),
)
PARTS = tuple(dict.fromkeys(case.part for case in CASES))


def rehearsal() -> tuple[GpuCase, ...]:
    """A case of most parts and two regimes, at sizes for an emulator."""
    found: dict[tuple[str, str], GpuCase] = {}
    for case in CASES:
        training = case.part in ("gru", "ragged", "regimes")
        if case.mode == (TRAINING if training else INFERENCE) and case.dtype == torch.float32:
            found.setdefault((case.part, case.ragged), case)
    found["", ""] = next(case for case in CASES if case.part == "headline")
    shrunk = [
        replace(case, steps=3, batch=3, input_size=5, hidden_size=9) for case in found.values()
    ]
    return tuple({case.name: case for case in shrunk}.values())
