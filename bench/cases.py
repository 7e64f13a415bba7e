"""The one table of benchmark cases: calls that real models make.

A row of the table is a size with the cells that are timed at it; to extend the benchmark, add a
row. Where a size comes from stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

INFERENCE = "inference"
TRAINING = "training"
MODES = (INFERENCE, TRAINING)

ALL = ("rnn_tanh", "gru", "lstm")


@dataclass(frozen=True)
class Case:
    """One call of a layer stack. Sizes as in ``fastrnn.problem``: T, B, I, H.

    packed: the batch is a PackedSequence, its lengths drawn evenly from T/2 to T.
    mode: ``inference`` is forward in ``torch.inference_mode``; ``training`` is forward with grad
    and the gradients of the input and of all parameters.
    """

    cell: str
    mode: str
    steps: int
    batch: int
    input_size: int
    hidden_size: int
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False
    dtype: torch.dtype = torch.float32

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
        if self.packed:
            parts.append("packed")
        if self.dtype != torch.float32:
            parts.append(str(self.dtype).removeprefix("torch."))
        return "-".join(parts)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1


def _rows(
    cells: tuple[str, ...],
    modes: tuple[str, ...],
    sizes: tuple[int, int, int, int],
    layers: int = 1,
    bidirectional: bool = False,
    packed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Case]:
    for cell in cells:
        for mode in modes:
            yield Case(cell, mode, *sizes, layers, bidirectional, packed, dtype)


CASES: tuple[Case, ...] = (
    # Streaming: one step of one sequence per call.
    *_rows(ALL, (INFERENCE,), (1, 1, 64, 64)),
    *_rows(ALL, (INFERENCE,), (1, 1, 200, 200)),
    # One sequence at a time: small text serving, speech, synthesis.
    *_rows(("lstm",), (INFERENCE,), (15, 1, 250, 200)),
    *_rows(("gru",), MODES, (100, 1, 128, 128)),
    *_rows(("lstm",), (INFERENCE,), (60, 1, 512, 512)),
    *_rows(("gru",), (INFERENCE,), (128, 1, 384, 256), bidirectional=True),
    *_rows(("lstm",), (INFERENCE,), (200, 1, 512, 256), bidirectional=True),
    *_rows(("lstm",), (TRAINING,), (20, 1, 1024, 1024)),
    # Batches: small policies and series, character models, the common RNN benchmark of 500 units.
    *_rows(("rnn_tanh",), (TRAINING,), (100, 8, 32, 64)),
    *_rows(("gru",), (TRAINING,), (20, 128, 40, 40)),
    *_rows(ALL, MODES, (50, 32, 256, 256)),
    *_rows(("rnn_tanh", "lstm"), (INFERENCE,), (50, 64, 500, 500)),
    *_rows(("rnn_tanh",), (TRAINING,), (50, 64, 512, 512)),
    # The word language model on Penn Treebank, medium size.
    *_rows(("gru",), (TRAINING,), (35, 20, 650, 650)),
    *_rows(("lstm",), (TRAINING,), (35, 20, 650, 650), layers=2),
    # Taggers and encoders: stacked and in both directions.
    *_rows(("lstm",), MODES, (35, 8, 100, 200), layers=2, bidirectional=True),
    *_rows(("gru",), (TRAINING,), (50, 20, 64, 128), layers=3),
    # Sizes that fill no register and no tile.
    *_rows(("gru",), MODES, (35, 3, 211, 211)),
    *_rows(("lstm",), MODES, (50, 8, 257, 257)),
    *_rows(("rnn_tanh",), MODES, (20, 20, 300, 300)),
    # Sentences of different lengths.
    *_rows(("gru", "lstm"), MODES, (150, 16, 64, 64), bidirectional=True, packed=True),
    *_rows(("rnn_tanh",), (TRAINING,), (100, 32, 128, 128), packed=True),
    # Double precision, for what is checked or solved with it.
    *_rows(("gru", "lstm"), (TRAINING,), (50, 8, 128, 128), dtype=torch.float64),
)
