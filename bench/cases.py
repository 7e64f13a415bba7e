"""The one table of benchmark cases: calls that real models make.

A row of the table is a size with the cells and modes that are timed at it; to extend the
benchmark, add a row. Where a size comes from stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

INFERENCE = "inference"
TRAINING = "training"
MODES = (INFERENCE, TRAINING)

ALL = ("rnn_tanh", "gru", "lstm")
GATED = ("gru", "lstm")

#: How the batch tells where its rows end: not at all, as a PackedSequence, or as ``lengths``
#: beside a padded tensor (for which torch.nn packs, runs and pads again).
PADDED = ""
PACKED = "packed"
LENGTHS = "lengths"
RAGGED = (PACKED, LENGTHS)


@dataclass(frozen=True)
class Case:
    """One call of a layer stack. Sizes as in ``fastrnn.problem``: T, B, I, H.

    mode: ``inference`` is forward in ``torch.inference_mode``; ``training`` is forward with grad
    and the gradients of the input and of all parameters.
    ragged: PADDED, PACKED or LENGTHS; the lengths are drawn evenly from T/2 to T.
    one_step: the call is one of RNNCell, GRUCell or LSTMCell, with a state. T is 1.
    prepacked: fastrnn's module keeps packed weights from call to call (``fastrnn.prepacked``).
    """

    cell: str
    mode: str
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    layers: int = 1
    bidirectional: bool = False
    ragged: str = PADDED
    one_step: bool = False
    dtype: torch.dtype = torch.float32
    prepacked: bool = False

    @property
    def name(self) -> str:
        """``gru-training-T50-B32-I256-H256`` and, where they are not the default, the options."""
        parts = [
            self.cell,
            self.mode,
            f"T{self.steps}",
            f"B{self.batch}",
            f"I{self.input_size}",
            f"H{self.hidden_size}",
        ]
        if self.layers > 1:
            parts.append(f"{self.layers}layers")
        if self.bidirectional:
            parts.append("bi")
        if self.ragged:
            parts.append(self.ragged)
        if self.one_step:
            parts.append("cell")
        if self.dtype != torch.float32:
            parts.append(self.dtype_name)
        if self.prepacked:
            parts.append("prepacked")
        return "-".join(parts)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def group(self) -> str:
        """What the case's ratio is averaged with: its mode, and what sets it apart."""
        if self.dtype != torch.float32:
            return f"{self.mode} {self.dtype_name}"
        if self.prepacked:
            return f"{self.mode} prepacked"
        return f"{self.mode} {self.ragged}".rstrip()

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1


def _rows(
    cells: Sequence[str],
    modes: Sequence[str],
    sizes: tuple[int, int, int, int],
    layers: int = 1,
    bidirectional: bool = False,
    ragged: str = PADDED,
    one_step: bool = False,
    dtype: torch.dtype = torch.float32,
    prepacked: bool = False,
) -> Iterator[Case]:
    for cell in cells:
        for mode in modes:
            yield Case(
                cell, mode, *sizes, layers, bidirectional, ragged, one_step, dtype, prepacked
            )


CASES: tuple[Case, ...] = (
    # Streaming: one step of one sequence per call, through the layers and through the cells.
    *_rows(ALL, (INFERENCE,), (1, 1, 64, 64)),
    *_rows(ALL, (INFERENCE,), (1, 1, 200, 200)),
    *_rows(ALL, (INFERENCE,), (1, 1, 512, 512)),
    *_rows(ALL, (INFERENCE,), (1, 1, 64, 64), one_step=True),
    *_rows(ALL, (INFERENCE,), (1, 1, 200, 200), one_step=True),
    *_rows(ALL, (INFERENCE,), (1, 1, 512, 512), one_step=True),
    # One step of many environments: policies.
    *_rows(ALL, (TRAINING,), (1, 32, 128, 128)),
    # One sequence at a time: small text serving, synthesis, speech; large models that fill caches.
    *_rows(ALL, (INFERENCE,), (15, 1, 250, 200)),
    *_rows(ALL, MODES, (100, 1, 128, 128)),
    *_rows(ALL, (INFERENCE,), (60, 1, 512, 512)),
    *_rows(("gru",), (INFERENCE,), (128, 1, 384, 256), bidirectional=True),
    *_rows(("lstm",), (INFERENCE,), (200, 1, 512, 256), bidirectional=True),
    *_rows(ALL, (TRAINING,), (20, 1, 1024, 1024)),
    # Batches: time series, many small series, character models, the usual RNN benchmarks.
    *_rows(ALL, (TRAINING,), (100, 8, 32, 64)),
    *_rows(ALL, MODES, (20, 128, 40, 40)),
    *_rows(ALL, MODES, (50, 32, 256, 256)),
    *_rows(ALL, (INFERENCE,), (50, 64, 500, 500)),
    *_rows(ALL, (TRAINING,), (20, 64, 512, 512)),
    # The word language models on Penn Treebank: medium size, then small.
    *_rows(("rnn_tanh", "gru"), MODES, (35, 20, 650, 650)),
    *_rows(("lstm",), MODES, (35, 20, 650, 650), layers=2),
    *_rows(ALL, (TRAINING,), (35, 20, 200, 200), layers=2),
    # Taggers and encoders: stacked and in both directions.
    *_rows(ALL, MODES, (35, 8, 100, 200), layers=2, bidirectional=True),
    *_rows(ALL, MODES, (50, 20, 64, 128), layers=3),
    # Sizes that fill no register and no tile.
    *_rows(ALL, MODES, (35, 3, 211, 211)),
    *_rows(ALL, MODES, (50, 8, 257, 257)),
    *_rows(ALL, MODES, (20, 20, 300, 300)),
    # Sentences of different lengths.
    *_rows(GATED, MODES, (150, 16, 64, 64), bidirectional=True, ragged=PACKED),
    *_rows(ALL, MODES, (100, 32, 128, 128), ragged=PACKED),
    *_rows(ALL, MODES, (100, 32, 128, 128), ragged=LENGTHS),
    # Serving with weights that are promised not to change.
    *_rows(ALL, (INFERENCE,), (1, 1, 200, 200), prepacked=True),
    *_rows(ALL, (INFERENCE,), (1, 1, 512, 512), prepacked=True),
    *_rows(ALL, (INFERENCE,), (15, 1, 250, 200), prepacked=True),
    *_rows(ALL, (INFERENCE,), (60, 1, 512, 512), prepacked=True),
    *_rows(ALL, (INFERENCE,), (35, 3, 211, 211), prepacked=True),
    # Double precision, for what is checked or solved with it.
    *_rows(ALL, (TRAINING,), (50, 8, 128, 128), dtype=torch.float64),
    # Half of single, to save memory and time: a batch, one step of one sequence, an odd size.
    *_rows(ALL, MODES, (50, 32, 256, 256), dtype=torch.bfloat16),
    *_rows(GATED, (INFERENCE,), (1, 1, 256, 256), dtype=torch.bfloat16),
    *_rows(("lstm",), MODES, (20, 20, 300, 300), dtype=torch.bfloat16),
)
