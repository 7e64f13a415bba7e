"""What surrounds the CUDA kernels: launches, memory, and what of the runtime is called at all."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cases import ALL_CELLS, Case, arguments, results
from cuda_emulator import runner
from torch import Tensor

if runner.compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

from cuda_cases import DEVICE
from cuda_emulated import CSRC, EmulatedBackend, device, extension, registered

from fastrnn.backends import Gradients, Needs, get
from fastrnn.problem import LayerInputs, Problem

SMALL = Case("lstm", torch.float32, hidden_size=64, input_size=64, steps=16, batch=1)


def launches(case: Case, **options: Any) -> int:
    with registered("processor", **DEVICE) as name:
        results(arguments(case), backend=name, **options)
        return device().launches()


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_launches(cell: str) -> None:
    """One prepares a pass, one runs its steps. torch's products are not counted here."""
    case = replace(SMALL, cell=cell, hidden_size=8)
    assert launches(case, wanted=[]) == 2
    assert launches(replace(case, bidirectional=True), wanted=[]) == 2
    assert launches(case, wanted=["x", "weight_hh_l0"]) == 4
    # The gradient of h0 is one more product, that of c0 goes through the reset of its rows.
    states = ["h0", "c0"] if cell == "lstm" else ["h0"]
    assert launches(case, wanted=["x", *states]) == 4 + len(states)
    # Lengths are sent, and give the rows that torch's products meet.
    assert launches(replace(case, lengths="random", batch=3), wanted=[]) == 4
    assert launches(replace(case, layout="packed", batch=3), wanted=[]) == 3
    # States of a GRU are restored in parts of 32 steps, which need what was before them.
    long = replace(case, steps=40)
    assert launches(long, wanted=["x"]) == 4 + cell.startswith("gru")


class Counting:
    """The extension, and what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            if name != "without_code":  # a question about the device
                self.calls.append((name, *arguments))
            return getattr(extension(), name)(*arguments)

        return call


def test_workspace_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(SMALL, hidden_size=24, lengths="random", batch=3)
    counting = Counting()
    with registered(**DEVICE) as name:
        monkeypatch.setattr(get(name), "_extension", counting)
        first = results(arguments(case), backend=name)
        asked = [function for function, *_ in counting.calls]
        counting.calls.clear()
        again = results(arguments(case), backend=name)
    assert len(asked) == 4 + 3  # forward, backward, and twice the dense rows
    assert [function for function, *_ in counting.calls] == [
        "dense_rows",
        "forward",
        "dense_rows",
        "backward",
    ]
    for key, value in first.items():
        assert torch.equal(again[key], value)


def test_device_and_stream_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call names both; what it is given and returns is on that device."""
    counting = Counting()
    with registered(**DEVICE) as name:
        backend = get(name)
        monkeypatch.setattr(backend, "_extension", counting)
        monkeypatch.setattr(EmulatedBackend, "stream", lambda self, problem: 0x5EED)
        results(arguments(SMALL), backend=name, wanted=[])
    for _, _, _, call, *_ in counting.calls:
        assert call[:2] == (0, 0x5EED)


def test_torch_makes_the_device_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an allocation just before each call, which keeps DeviceGuard from making contexts."""
    events = ["start"]
    allocate = torch.empty
    given = arguments(replace(SMALL, lengths="random", batch=3))

    def empty(*arguments: Any, **options: Any) -> Tensor:
        events.append("empty")
        return allocate(*arguments, **options)

    class Noting:
        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any) -> Any:
                events.append(name)
                return getattr(extension(), name)(*arguments)

            return call

    monkeypatch.setattr(torch, "empty", empty)
    with registered(**DEVICE) as name:
        monkeypatch.setattr(get(name), "_extension", Noting())
        results(given, backend=name)
    before = {one for one, two in itertools.pairwise(events) if two != "empty"}
    assert before == {"empty"}
    assert {"without_code", "dense_rows", "forward", "backward"} < set(events)


def test_devices_before_ampere_are_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmulatedBackend, "capability", lambda self, device: (7, 5))
    with (
        registered(**DEVICE) as name,
        pytest.raises(RuntimeError, match=r"compute capability 8.0 or later only, not 7.5"),
    ):
        results(arguments(SMALL), backend=name, wanted=[])


def test_devices_for_which_nothing_is_compiled_are_declined() -> None:
    """The emulated build is for Hopper only, as with FASTRNN_CUDA_ARCHS=90a-real."""
    with (
        registered(compute_capability=100, **DEVICE) as name,
        pytest.raises(RuntimeError, match="cannot serve this call: no kernel image"),
    ):
        results(arguments(SMALL), backend=name, wanted=[])


def test_a_device_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def capability(self: EmulatedBackend, device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return 9, 0

    monkeypatch.setattr(EmulatedBackend, "capability", capability)
    with registered(**DEVICE) as name:
        for _ in range(2):
            results(arguments(SMALL), backend=name)
    assert asked == [torch.device("cpu")]


class Passes(NamedTuple):
    grads: list[Tensor]
    before: Tensor  # the reserve, and the same after backward
    after: Tensor
    in_reserve: bool  # whether gradients of preactivations were written there


def passes(case: Case, *, donated: bool) -> Passes:
    a = arguments(case)
    batch_sizes = None if a.packing is None else a.packing.batch_sizes
    weights = list(a.weights.values())
    inputs = LayerInputs(a.x, a.h0, a.c0, weights, a.lengths, batch_sizes, None)
    problem = Problem.of(
        case.cell, inputs, directions=case.directions, keep_cell_states=False, training=True
    )
    backend, counting = EmulatedBackend(), Counting()
    backend._extension = counting  # type: ignore[assignment]
    device().configure(**DEVICE)
    outputs = backend.forward(problem, inputs)
    assert outputs.reserve is not None
    before = outputs.reserve.clone()
    above = Gradients(
        torch.ones_like(outputs.y),
        torch.ones_like(outputs.h_n),
        None if outputs.c_n is None else torch.ones_like(outputs.c_n),
        None,
    )
    grads = backend.backward(
        problem,
        inputs,
        outputs.cell_states,
        outputs.reserve,
        above,
        Needs(True, True, case.cell == "lstm", [True] * len(weights)),
        donated=donated,
    )
    flat = [g for g in (grads.x, grads.h0, grads.c0, *grads.weights) if g is not None]
    da = counting.calls[-1][11]
    own = outputs.reserve[0].nbytes
    places = tuple(outputs.reserve.data_ptr() + d * own for d in range(case.directions))
    return Passes(flat, before, outputs.reserve, da == places)


def same_bits(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), two.view(torch.int32))


@pytest.mark.parametrize("layout", ["time_major", "packed"])
@pytest.mark.parametrize("cell", [*ALL_CELLS, "projected"])
def test_a_donated_reserve_holds_the_gradients(cell: str, layout: str) -> None:
    """S of H values for each row and direction that backward need not allocate."""
    case = Case(cell, torch.float32, steps=7, batch=3, hidden_size=11, layout=layout)
    case = replace(case, bidirectional=True)
    if cell == "projected":
        case = replace(case, cell="lstm", proj_size=4)
    kept, donated = passes(case, donated=False), passes(case, donated=True)
    assert not kept.in_reserve
    assert same_bits(kept.after, kept.before)
    assert donated.in_reserve
    assert not same_bits(donated.after, donated.before)
    for one, two in zip(kept.grads, donated.grads, strict=True):
        assert torch.equal(one, two)


def test_rows_beyond_lengths_have_no_room_in_the_reserve() -> None:
    """Dense rows lie elsewhere then, so a donated reserve stays as it is."""
    case = Case("gru", torch.float32, steps=6, batch=5, hidden_size=9, lengths="random")
    kept, donated = passes(case, donated=False), passes(case, donated=True)
    assert not donated.in_reserve
    assert same_bits(donated.after, donated.before)
    for one, two in zip(kept.grads, donated.grads, strict=True):
        assert torch.equal(one, two)


#: All that the host's side may call. Nothing of it allocates, copies or waits, so a call can be
#: captured in a CUDA graph.
RUNTIME = {
    "cudaDeviceGetAttribute",
    "cudaFuncGetAttributes",
    "cudaFuncSetAttribute",
    "cudaGetDevice",
    "cudaGetDeviceCount",
    "cudaGetErrorString",
    "cudaGetLastError",
    "cudaLaunchKernelEx",
    "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
    "cudaOccupancyMaxActiveClusters",
    "cudaSetDevice",
}


def sources() -> dict[Path, str]:
    return {
        path: re.sub(r"//.*", "", path.read_text())
        for path in sorted((CSRC / "cuda").iterdir())
        if path.suffix in (".h", ".cuh", ".cpp", ".cu")
    }


def test_the_launch_path_calls_nothing_that_waits() -> None:
    calls = re.compile(r"\b(cuda[A-Z]\w+)\(")
    found = {name for text in sources().values() for name in calls.findall(text)}
    assert found - {"cudaStream_t"} == RUNTIME
    assert not any("<<<" in text for text in sources().values())
