"""What the cupy backend has compiled, compiled as CuPy does it: no GPU and no driver is needed."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import replace

import nvrtc
import pytest
import torch
from cases import ALL_CELLS, Case
from cuda_cases import ARITHMETICS
from fake_cupy import launch

from fastrnn.backends import cupy
from fastrnn.backends.cuda import REGIMES

if nvrtc.library() is None:
    pytest.skip("no NVRTC: pip install nvidia-cuda-nvrtc", allow_module_level=True)
if cupy.load()[0] is None:
    pytest.skip("a pure Python install does not record launches", allow_module_level=True)

ELF = b"\x7fELF"


def kernels(
    case: Case,
    regime: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    tf32: bool,
    wanted: Collection[str] | None = None,
) -> dict[str, str]:
    """What a call compiles, by name; nothing where the regime is not for that case."""
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32" if tf32 else "ieee")
    try:
        return launch(case, regime, wanted=wanted).codes
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
]


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
    for case, regime, units in itertools.product(cases, REGIMES, ("1", "2")):
        if regime != "cluster":
            found |= kernels(case, f"{regime}-1-{units}", monkeypatch, tf32=tf32)
    for case in cases:  # wide tiles are forward's
        found |= kernels(case, "grid-1-1-32", monkeypatch, tf32=tf32, wanted=())
    assert len(found) > 5
    compile_as_cupy(found, "sm_90")
