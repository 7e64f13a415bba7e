"""ONNX Runtime in a process of its own: ``python -m bench.onnx_worker``, started by ``onnx_peer``.

Its thread pool would disturb whatever is timed in the same process. Requests come through stdin
and answers go to stdout, pickled; between requests the process sleeps in a read. Nothing of torch
is imported here.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .onnx_model import Model, build
from .timing import calls_per_sample, median_call, settle, warm_up

Call = Callable[[], object]

#: Seconds that each way of calling gets before the fastest is chosen.
TRIAL_SECONDS = 0.05


def session(model: bytes, threads: int, *, spinning: bool) -> onnxruntime.InferenceSession:
    """A session; spinning: whether the pool's threads wait busily between two tasks."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def plain_call(run: onnxruntime.InferenceSession, inputs: Mapping[str, Any]) -> Call:
    return lambda: run.run(None, inputs)


def bound_call(
    run: onnxruntime.InferenceSession, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> Call:
    """A call that reads and writes the same buffers every time: no conversion, no allocation."""
    binding = run.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for name, array in outputs.items():
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    return lambda: run.run_with_iobinding(binding)


class Worker:
    """Answers ``load`` and ``block``."""

    def __init__(self) -> None:
        self.call: Call = lambda: None
        self.calls = 1

    def load(
        self, description: Mapping[str, Any], threads: int
    ) -> tuple[str, list[NDArray[np.float32]]]:
        """Make the model of these fields ready; chooses the fastest way to call it.

        Returns:
            which one that is, and the outputs.
        """
        model = Model(**description)
        binary = build(model).SerializeToString()
        inputs = dict(model.inputs)
        fastest, chosen = float("inf"), ""
        outputs: list[NDArray[np.float32]] = []
        for spinning in (True, False) if threads > 1 else (False,):
            run = session(binary, threads, spinning=spinning)
            outputs = run.run(None, inputs)
            names = [output.name for output in run.get_outputs()]
            bound = bound_call(run, inputs, dict(zip(names, outputs, strict=True)))
            for how, call in (("run", plain_call(run, inputs)), ("io_binding", bound)):
                seconds = warm_up(call, TRIAL_SECONDS)
                calls = calls_per_sample(seconds)
                seconds = median_call(call, TRIAL_SECONDS, calls)
                if seconds < fastest:
                    fastest, self.call, self.calls = seconds, call, calls
                    chosen = how + (", spinning" if spinning else "")
        settle()
        return chosen, outputs

    def block(self, seconds: float) -> float:
        """Median seconds per call; the answer goes out when all threads sleep again."""
        warm_up(self.call, seconds / 10)
        result = median_call(self.call, seconds, self.calls)
        settle()
        return result


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer ``(method, arguments)`` with ``(result, "")`` or ``(None, error)`` until the end."""
    worker = Worker()
    while True:
        try:
            method, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = (getattr(worker, method)(*arguments), "")
        except Exception as error:  # for the process that asked
            answer = (None, f"{type(error).__name__}: {error}")
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    # What a library prints must not end up among the answers.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, channel)
