"""The test kernels of ``cuda_emulator/kernels``, compiled for the emulator and started on it."""

from __future__ import annotations

import ctypes

import pytest
from cuda_emulator import runner
from cuda_emulator.runner import Emulated, Launch

CHECKED = pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])


def load(name: str, *, checked: bool, **configuration: int) -> Emulated:
    """The emulator with one of the kernel files, compiled when it has changed."""
    source = runner.HERE / "kernels" / f"{name}.cpp"
    emulated = Emulated(runner.build([source], checked=checked))
    emulated.configure(**configuration)
    return emulated


def run(emulated: Emulated, kernel: str, launch: Launch, *arguments: object) -> None:
    """Start a kernel whose argument is a struct of pointers, given as arrays, and ints."""
    kinds = [ctypes.c_int if isinstance(a, int) else ctypes.c_void_p for a in arguments]
    struct = type(
        "Args", (ctypes.Structure,), {"_fields_": [(f"_{i}", k) for i, k in enumerate(kinds)]}
    )
    values = [a if isinstance(a, int) else runner.pointer(a) for a in arguments]
    emulated.call(f"run_{kernel}", ctypes.byref(launch), ctypes.byref(struct(*values)))
