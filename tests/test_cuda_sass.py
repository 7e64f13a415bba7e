"""The order of a step in machine code: what one step waits for on its way to the next.

Emulated kernels show what is computed, not when a GPU would wait: for that the order of
instructions and the scoreboards they wait for say enough. A fence waits for all stores before it.
"""

from __future__ import annotations

import functools
import re

import nvrtc
import pytest
import sass
from sass import Instruction
from test_nvrtc import SOURCES

pytestmark = pytest.mark.skipif(
    nvrtc.library() is None or sass.disassembler() is None,
    reason="no NVRTC or nvdisasm: pip install nvidia-cuda-nvrtc nvidia-cuda-nvdisasm",
)

CELLS = ["Vanilla<Tanh>", "Lstm", "Gru", "GruResetBefore"]
PASSES = ["ForwardPass", "BackwardPass"]
#: A 16-bit value of a tensor, as opposed to lengths and states.
VALUE = "LDG.E.U16"


@functools.cache
def kernel(name: str) -> list[Instruction]:
    cubin, symbols = nvrtc.compile_cubin(
        '#include "cuda/handles.cuh"\nusing namespace fastrnn;',
        [name],
        architecture="sm_90a",
        include=[SOURCES],
    )
    return sass.listing(cubin, symbols[name])


def sequence(direction: str, cell: str, exchange: str) -> list[Instruction]:
    own = f"{direction}<{cell}, HalfMath, false>"
    return kernel(f"run_sequence<{own}, TileShape<HalfMath, 1>, {exchange}>")


def positions(code: list[Instruction], pattern: str) -> list[int]:
    return [i for i, one in enumerate(code) if re.match(pattern, one.name)]


def waits(code: list[Instruction], begin: int, end: int) -> list[int]:
    """Where values that were asked for between the two are waited for."""
    pending: set[int] = set()
    found = []
    for i in range(begin, end):
        if pending & code[i].waits_for:
            found.append(i)
            pending -= code[i].waits_for
        if code[i].name == VALUE:
            pending |= code[i].counts_on
    return found


# Not of two stages: there ptxas has a warp wait for all it has asked for where lanes meet again.
@pytest.mark.parametrize("cell", ["Vanilla<Tanh>", "Lstm", "Gru"])
@pytest.mark.parametrize("direction", PASSES)
def test_no_value_is_waited_for_before_states_are_asked_for(direction: str, cell: str) -> None:
    """A step's own values travel while flags are, and while states of other blocks do."""
    code = sequence(direction, cell, "GlobalExchange")
    (poll,) = positions(code, r"LDG\.E\.STRONG\.GPU")
    asked = [i for i in positions(code, re.escape(VALUE)) if i < poll]
    assert asked, "the step has values of its own"
    states = min(i for i in positions(code, r"LDG\.E\.128\.STRONG\.GPU") if i > poll)
    assert not [(i, code[i]) for i in waits(code, asked[0], states)]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("direction", PASSES)
def test_outputs_leave_after_the_flag(direction: str, cell: str) -> None:
    """Between the last flag that is looked at and one's own, only states are stored."""
    code = sequence(direction, cell, "GlobalExchange")
    poll = positions(code, r"LDG\.E\.STRONG\.GPU")[-1]
    flag = min(i for i in positions(code, r"STG\.E\.STRONG\.GPU") if i > poll)
    stores = positions(code, r"STG\.E(\.U16|\.64|\.128)?$")
    # Of backward, values for each gate that goes back through W_hh.
    gates = {"Lstm": 4, "Gru": 3, "GruResetBefore": 2}.get(cell, 1)
    states = gates if direction == "BackwardPass" else 1
    assert len([i for i in stores if poll < i < flag]) == states
    assert [i for i in stores if i > flag], "there are outputs"


@pytest.mark.parametrize("direction", PASSES)
def test_outputs_leave_between_arriving_and_waiting(direction: str) -> None:
    """The same in a cluster, whose barrier begins with a fence; then the next step is prepared."""
    code = sequence(direction, "Lstm", "ClusterExchange")
    outputs = positions(code, r"STG\.E(\.U16|\.64|\.128)?$")
    arrivals = [i for i in positions(code, "UCGABAR_ARV") if i < min(outputs)]
    barriers = positions(code, "UCGABAR_WAIT")
    assert arrivals
    assert not [i for i in barriers if arrivals[-1] < i < max(outputs)]
    wait = min(i for i in barriers if i > max(outputs))
    # What the next step needs is asked for in time, too, and not waited for.
    asked = [i for i in positions(code, re.escape(VALUE)) if max(outputs) < i < wait]
    assert len(asked) == (12 if direction == "ForwardPass" else 8)
    assert not [(i, code[i]) for i in waits(code, asked[0], wait)]


@pytest.mark.parametrize("direction", PASSES)
def test_values_of_four_units_travel_together(direction: str) -> None:
    """A thread of ``run_tiled`` asks for what all four need, and waits twice meanwhile at most."""
    code = kernel(f"run_tiled<{direction}<Lstm, HalfMath, false>>")
    asked = positions(code, re.escape(VALUE))
    assert len(asked) == 4 * (12 if direction == "ForwardPass" else 8)
    assert len(waits(code, asked[0], asked[-1])) <= 2


@pytest.mark.parametrize("cell", CELLS)
def test_activations_do_not_branch(cell: str) -> None:
    """A division proper calls a function for some operands: then gates are computed one by one."""
    code = sequence("ForwardPass", cell, "GlobalExchange")
    poll = positions(code, r"LDG\.E\.STRONG\.GPU")[-1]
    reciprocals = [i for i in positions(code, r"MUFU\.RCP") if i > poll]
    assert len(reciprocals) == {"Lstm": 5, "Gru": 3}.get(cell, 1)
    between = code[reciprocals[0] : reciprocals[-1]]
    assert not [one for one in between if one.name.startswith(("BRA", "CALL", "BAR"))]
    assert not positions(code, "CALL")
