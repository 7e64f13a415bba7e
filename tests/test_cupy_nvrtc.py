"""What the cupy backend has compiled, compiled as CuPy does it: no GPU and no driver is needed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import nvrtc
import pytest
import torch
from cases import ALL_CELLS, Case
from cuda_cases import ARITHMETICS
from fake_cupy import launch

from fastrnn.backends import cupy

if nvrtc.library() is None:
    pytest.skip("no NVRTC: pip install nvidia-cuda-nvrtc", allow_module_level=True)
if cupy.load()[0] is None:
    pytest.skip("a pure Python install does not record launches", allow_module_level=True)

ELF = b"\x7fELF"


def kernels(
    case: Case, regime: str, monkeypatch: pytest.MonkeyPatch, *, tf32: bool, backward: bool = True
) -> dict[str, str]:
    """What a call compiles, by name; nothing where the regime is not for that case."""
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32" if tf32 else "ieee")
    try:
        return launch(case, regime, backward=backward).codes
    except RuntimeError as error:
        if "cannot run this" not in str(error):
            raise
        return {}


def compile_as_cupy(codes: dict[str, str], architecture: str) -> None:
    """All in one program, which has the lines that they share once."""
    folder = cupy.sources()
    assert folder is not None
    lines = itertools.chain.from_iterable(code.splitlines() for code in codes.values())
    cubin, symbols = nvrtc.compile_cubin(
        "\n".join(dict.fromkeys(lines)),
        list(codes),
        architecture=architecture,
        # What CuPy adds to the options that it is given.
        options=(*cupy.options(folder), "-ftz=true", "--device-as-default-execution-space"),
    )
    assert cubin.startswith(ELF)
    for symbol in symbols.values():
        assert symbol.encode() in cubin


REPRESENTATIVE = [
    ("sm_90", "bfloat16", "lstm", "grid"),
    ("sm_90", "tf32", "gru", "processor"),
    ("sm_80", "float16", "gru_reset_before", "stepwise-1-1"),
    ("sm_120", "float32", "rnn_relu", "stepwise-1-2"),
    ("sm_90", "float64", "gru", "tiled-1"),
]

#: Every choice of a plan without clusters: a regime, with groups of 8 units and of 16 where it has
#: both. Of wide tiles only forward passes are.
EVERY = (
    *(f"{regime}-1-{units}" for regime in ("stepwise", "processor", "grid") for units in (1, 2)),
    "tiled-1",
)
WIDE = "grid-1-1-32"


@pytest.mark.parametrize(("architecture", "arithmetic", "cell", "regime"), REPRESENTATIVE)
def test_a_call(
    architecture: str,
    arithmetic: str,
    cell: str,
    regime: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forward and backward, with lengths, resets and all gradients."""
    dtype, tf32 = ARITHMETICS[arithmetic]
    case = Case(cell, dtype, hidden_size=40, lengths="random", reset="random")
    codes = kernels(case, regime, monkeypatch, tf32=tf32)
    assert len(codes) > 5
    compile_as_cupy(codes, architecture)


def test_a_kernel_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension of another version would lay its arguments out otherwise."""
    ((name, code), *_) = launch(Case("gru"), "stepwise").codes.items()
    size = code.rpartition("== ")[2].partition(",")[0]
    with pytest.raises(nvrtc.CompilationError, match=r"fastrnn\._launches is of other sources"):
        compile_as_cupy({name: code.replace(f"== {size},", "== 8,")}, "sm_90")


@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_every_kernel(cell: str, arithmetic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a call may compile, for Hopper."""
    dtype, tf32 = ARITHMETICS[arithmetic]
    base = Case(cell, dtype, hidden_size=40, bidirectional=True, lengths="random")
    cases = [base, *([replace(base, proj_size=7)] if cell == "lstm" else [])]
    found: dict[str, str] = {}
    for case in cases:
        for regime in EVERY:
            found |= kernels(case, regime, monkeypatch, tf32=tf32)
        found |= kernels(case, WIDE, monkeypatch, tf32=tf32, backward=False)
    assert {name.partition("<")[0] for name in found} > {"run_sequence", "run_tiled"}
    # As csrc/cuda/tiles.h has them; the first product of gru_reset_before is of two gates.
    wide = cell in ("lstm", "gru") and (tf32 or dtype.itemsize == 2)
    assert any(", 1, true>, GlobalExchange>" in name for name in found) == wide
    compile_as_cupy(found, "sm_90")
