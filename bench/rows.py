"""What a case gave, and what the cases of a cell and mode gave together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import fastrnn
from fastrnn.backends import FusedBackend

from . import onnx_peer
from .cases import ALL, Case
from .timing import Timing
from .workload import THEIRS


@dataclass(frozen=True)
class Row:
    """Result of a case. timing is None where the numbers were wrong; ``wrong`` then says how.

    error: largest error as a multiple of the tolerance. flops: operations of the products.
    timing: beside torch.nn. onnx: beside ONNX Runtime, where it was compared with.
    gemm: operations per second as a part of the rate of a large product. read: bytes of weights per
    second as a part of the rate they can be read at, for one sequence. padded: time as a multiple
    of the padded call's time by the part of it that is not padding.
    """

    case: Case
    backend: str
    flops: float
    error: float | None
    timing: Timing | None
    wrong: str = ""
    onnx: Timing | None = None
    gemm: float | None = None
    read: float | None = None
    padded: float | None = None

    @property
    def ours(self) -> bool:
        """Whether kernels of this library served fastrnn's call, and not torch's operators."""
        return isinstance(fastrnn.backends.get(self.backend), FusedBackend)

    @property
    def peer(self) -> str:
        """The fastest of the others."""
        if self.timing and self.onnx and self.onnx.ratio < self.timing.ratio:
            return onnx_peer.NAME
        return THEIRS

    @property
    def best(self) -> Timing | None:
        """The timing beside the fastest of the others."""
        return self.timing if self.peer == THEIRS else self.onnx


class Summary(NamedTuple):
    """The rows of a cell and mode (and what sets them apart) that our kernels served."""

    cell: str
    mode: str
    cases: int
    geometric_mean: float
    minimum: float
    slowest: str


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """By group in the order of the table, in it by cell."""
    result = []
    for group in dict.fromkeys(row.case.group for row in rows):
        for cell in ALL:
            ratios = {
                row.case.name: row.best.ratio
                for row in rows
                if row.case.cell == cell and row.case.group == group and row.best and row.ours
            }
            if ratios:
                slowest = min(ratios, key=ratios.__getitem__)
                mean = geometric_mean(list(ratios.values()))
                result.append(Summary(cell, group, len(ratios), mean, ratios[slowest], slowest))
    return result
