"""ONNX Runtime as one of those fastrnn is compared with: the side of the benchmark's process."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cases import INFERENCE, Case
from .workload import THEIRS, Workload

NAME = "ONNX Runtime"
ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("onnx", "onnxruntime")


def missing() -> str:
    """Why ONNX Runtime cannot be compared with; empty if it can."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"no module {', '.join(absent)}: pip install 'fastrnn[bench]'" if absent else ""


def version() -> str:
    return "" if missing() else importlib.metadata.version("onnxruntime")


def computes(case: Case) -> bool:
    """Whether there is something to compare: it trains nothing, and has but float32 here."""
    return case.mode == INFERENCE and case.dtype == torch.float32 and not case.ragged


def describe(work: Workload) -> dict[str, Any]:
    """The fields of ``onnx_model.Model`` (which this process does not import) of a workload."""
    case = work.case
    parameters = [array(p) for p in work.modules[THEIRS].parameters()]
    directions = [parameters[k : k + 4] for k in range(0, len(parameters), 4)]
    step = case.directions
    x, states = array(work.inputs.x), [array(state) for state in work.inputs.states]
    inputs = {"x": x[None] if case.one_step else x}
    inputs |= {name: state[None] for name, state in zip(("h0", "c0"), states, strict=False)}
    return {
        "operator": case.cell.partition("_")[0].upper(),
        "hidden_size": case.hidden_size,
        "weights": [directions[k : k + step] for k in range(0, len(directions), step)],
        "inputs": inputs,
    }


def array(tensor: Tensor) -> NDArray[np.float32]:
    result: NDArray[np.float32] = tensor.detach().numpy()
    return result


class OnnxPeer:
    """The worker's process; a context. It is stopped unless it is asked.

    Stopped by a signal: left to themselves its threads go on spinning, on the cores that others are
    then timed on.

    Raises (all methods):
        RuntimeError: the worker failed or is gone.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.chosen = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.onnx_worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # it is gone already
            self._process.stdin.close()
        self._process.wait()

    def load(self, work: Workload) -> float:
        """Give the worker a workload's model, and check its outputs.

        Returns:
            the largest error as a multiple of the tests' tolerance.

        Raises:
            WrongNumbers: it is above 1.
        """
        return work.check_outputs(self.outputs(work))

    def outputs(self, work: Workload) -> list[Tensor]:
        """Give the worker a workload's model; returns what it computes, in torch.nn's shapes."""
        self.chosen, outputs = self._ask("load", describe(work), self.threads)
        got = [torch.from_numpy(output) for output in outputs]
        if work.case.one_step:
            got = [state.squeeze(0) for state in got]
        elif got[0].dim() == 4:  # (T, 1, B, H)
            got[0] = got[0].squeeze(1)
        return got

    def block(self, seconds: float) -> float:
        """Median seconds of a call of the model that was loaded last."""
        return float(self._ask("block", seconds))

    def _ask(self, method: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            pickle.dump((method, arguments), self._process.stdin)
            self._process.stdin.flush()
            answer, error = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError) as gone:
            raise RuntimeError(f"{NAME}: the worker is gone") from gone
        self._process.send_signal(signal.SIGSTOP)
        if error:
            raise RuntimeError(f"{NAME}: {error}")
        return answer
