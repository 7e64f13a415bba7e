"""How a GPU case is measured: its gate, what it is beside, for how long. Nothing needs a GPU."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.cases import INFERENCE
from bench.gpu import measure
from bench.gpu.cases import GpuCase
from bench.gpu.device import Device
from bench.gpu.workload import FLAT, GpuWorkload, flattened, refuse
from bench.workload import OURS, THEIRS, WrongNumbers

# The gate.


def test_gate_knows_the_arithmetic() -> None:
    """What 16 bits store is computed in float32; TF32 has the roundings of float16."""
    sizes = (INFERENCE, 6, 3, 5, 7)
    bounds = {}
    for name, options in {
        "float32": {},
        "tf32": {"tf32": True},
        "bfloat16": {"dtype": torch.bfloat16},
    }.items():
        work = GpuWorkload.__new__(GpuWorkload)
        work.case = GpuCase("lstm", *sizes, **options)
        work.rows = 18
        off = torch.full((2,), 1e-3, dtype=torch.float64)
        bounds[name] = work.error("output", off, torch.zeros(2, dtype=torch.float64))
    assert bounds["float32"] > 100
    assert 0.01 < bounds["tf32"] < 1
    assert bounds["bfloat16"] < bounds["tf32"]


def test_gate_refuses() -> None:
    with pytest.raises(WrongNumbers, match=r"c_n: off by 2 times the tolerance"):
        refuse({"worst": "c_n", "in_tolerances": 2.0})
    with pytest.raises(WrongNumbers):
        refuse({"worst": "c_n", "in_tolerances": math.nan})
    refuse({"worst": "c_n", "in_tolerances": 0.5})


# What is compared with what, and for how long.


class Flat(torch.nn.Linear):
    """Stands for a module of torch: it flattens what is in the list of cuDNN's dtypes."""

    refuses = ""

    def flatten_parameters(self) -> None:
        if self.refuses:
            raise RuntimeError(self.refuses)
        dtypes = torch.backends.cudnn.CUDNN_TENSOR_DTYPES
        if any(parameter.dtype not in dtypes for parameter in self.parameters()):
            return
        whole = torch.cat([parameter.detach().flatten() for parameter in self.parameters()])
        at = 0
        for parameter in self.parameters():
            piece = whole[at : at + parameter.numel()].view_as(parameter)
            parameter.data = piece
            at += parameter.numel()


def test_torch_is_flattened_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list that torch asks has the dtype meanwhile, and not longer."""
    dtypes = torch.backends.cudnn.CUDNN_TENSOR_DTYPES
    assert torch.backends.cudnn.is_acceptable.__globals__["CUDNN_TENSOR_DTYPES"] is dtypes
    before = set(dtypes)
    module = Flat(3, 4, dtype=torch.bfloat16)
    flat = flattened(module)
    assert torch.equal(flat.weight, module.weight)
    assert dtypes == before
    monkeypatch.setattr(Flat, "refuses", "CUDNN_STATUS_NOT_SUPPORTED")
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        flattened(module)
    assert dtypes == before
    monkeypatch.setattr(Flat, "flatten_parameters", lambda self: None)
    with pytest.raises(RuntimeError, match="left the weights in 2 pieces"):
        flattened(module)


def test_peers() -> None:
    """Of bfloat16 there are two, unless cuDNN refuses: then it is known why."""
    work = GpuWorkload.__new__(GpuWorkload)
    work.case = GpuCase("lstm", INFERENCE, 2, 3, 4, 4, dtype=torch.float16)
    assert work.peers() == [THEIRS]
    work.case = replace(work.case, dtype=torch.bfloat16)
    work.modules = {THEIRS: Flat(3, 4, dtype=torch.bfloat16)}
    called: list[str] = []
    work.call = lambda name: lambda: called.append(name)  # type: ignore[method-assign]
    assert work.peers() == [THEIRS, FLAT]
    assert (called, work.unflattened) == ([FLAT], "")

    def refused(name: str) -> Any:
        raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")

    work.call = refused  # type: ignore[method-assign]
    assert work.peers() == [THEIRS]
    assert work.unflattened == "CUDNN_STATUS_NOT_SUPPORTED"


class Idle(Device):
    """A device that waits for the host before the first call of a sample."""

    lead = 50e-6

    def event_seconds(self, call: Any, calls: int) -> float:
        return float(call() + self.lead / calls)

    def host_seconds(self, call: Any, calls: int = 5, rounds: int = 5) -> float:
        return float(call() / 2)


@pytest.mark.parametrize("regime", ["", "grid-4"])
def test_times(regime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the faster of the peers, of which both are kept; the host's lead weighs nothing."""
    monkeypatch.setattr(measure, "device", Idle)
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    monkeypatch.setattr(measure, "ALONE_SECONDS", 0.01)
    seconds = {OURS: 1e-4, THEIRS: 4e-4, FLAT: 3e-4}
    work = SimpleNamespace(
        case=GpuCase("lstm", INFERENCE, 10, 3, 4, 4, dtype=torch.bfloat16, regime=regime),
        call=lambda name: lambda: seconds[name],
        peers=lambda: [THEIRS, FLAT],
        unflattened="",
    )
    found = measure.timed(work)
    assert found["step"] == pytest.approx(1e-5, rel=0.01)
    if not regime:
        assert found["peer"] == FLAT
        assert found["timing"]["ratio"] == pytest.approx(3.0, rel=0.01)
        assert found["timings"][THEIRS]["ratio"] == pytest.approx(4.0, rel=0.01)
        assert found["step_theirs"] == pytest.approx(3e-5, rel=0.01)
        assert found["host_theirs"] == 1.5e-4
