"""A few small calls in one regime, for a tool to watch: ``python -m bench.gpu.sanitized grid-4``.

Prints how far each is from the reference; exit status 1 where one is wrong, 3 where the regime
cannot run here.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

import fastrnn

from ..workload import TESTS
from .device import device, to_device

WRONG, CANNOT = 1, 3
#: A tile and a part of one, a group of units and a part of one; both directions.
SIZES: dict[str, Any] = {
    "steps": 3,
    "batch": 18,
    "hidden_size": 19,
    "bidirectional": True,
    "reset": "random",
}
#: Of large tiles: two tiles of places, blocks of units, and backward more pieces of k than lie in
#: shared memory at a time.
LARGE_SIZES: dict[str, Any] = {"steps": 2, "batch": 70, "hidden_size": 137, "lengths": "random"}


def small_cases(regime: str) -> list[Any]:
    case = importlib.import_module("cases").Case
    if regime.startswith("tiled"):
        cells = {"gru": torch.bfloat16, "lstm": torch.float32, "gru_reset_before": torch.float64}
        found = [case(cell, dtype, **LARGE_SIZES) for cell, dtype in cells.items()]
    else:
        found = [
            case(cell, dtype, **SIZES)
            for cell in ("lstm", "gru", "gru_reset_before", "rnn_tanh")
            for dtype in (torch.bfloat16, torch.float32)
        ]
        found.append(replace(case("lstm", torch.float16, **SIZES), proj_size=7, lengths="random"))
        found.append(replace(case("gru", torch.float64, **SIZES), lengths="random"))
    return found[:: device().fit(1, 4)]


def main(arguments: Sequence[str] | None = None) -> int:
    (regime,) = arguments or sys.argv[1:]
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    cases = importlib.import_module("cases")
    torch.backends.cudnn.allow_tf32 = False
    wrong = False

    def above(outputs: Any, case: Any) -> Any:
        on_host = {name: output.detach().cpu() for name, output in outputs.items()}
        return {name: to_device(grad) for name, grad in cases.upstream(on_host, case).items()}

    for case in small_cases(regime):
        a = cases.arguments(case)
        there = replace(a.map(to_device), reset=None if a.reset is None else to_device(a.reset))
        with device().serving(regime) as name, fastrnn.use_backend(name):
            try:
                found = cases.results(there, backend=name, grads=above)
            except RuntimeError as error:
                print(f"{case.id}: {error}")
                return CANNOT if "cannot run this" in str(error) else WRONG
        on_host = {name: value.cpu() for name, value in found.items()}
        worst = max(cases.errors(on_host, cases.reference(a), case).values())
        print(f"{case.id}: {worst:.3g} of the tolerance", flush=True)
        wrong = wrong or not worst <= 1
    return WRONG if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
