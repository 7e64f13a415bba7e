"""The cupy backend on the emulated device: all of it but CuPy itself runs on the CPU.

A kernel's name leads to the emulated kernel of that name, and a launch has of its argument what a
driver has of it: an address.
"""

from __future__ import annotations

import ctypes

import cuda_emulated
from cuda_emulator.runner import plain_name
from fake_cupy import FakeCupy, Launched, RawKernel


class EmulatedCupy(FakeCupy):
    """On the device of ``cuda_emulated``, which gets this configuration."""

    def __init__(self, **configuration: int) -> None:
        super().__init__(**configuration)
        device = cuda_emulated.device()
        device.configure(**configuration)
        self.functions, self.library = device.functions, device.library
        self.library.fastrnn_emulator_launch.restype = ctypes.c_char_p

    def address_of(self, name: str) -> int:
        return self.functions[plain_name(name)]

    def resident_blocks(self, threads: int, shared_bytes: int) -> int:
        found: int = self.library.fastrnn_emulator_resident_blocks(
            threads, ctypes.c_int64(shared_bytes)
        )
        return found

    def start(self, kernel: RawKernel, launched: Launched, parameters: int) -> None:
        error = self.library.fastrnn_emulator_launch(
            ctypes.c_void_p(kernel.kernel.ptr),
            (ctypes.c_uint * 3)(*launched.grid),
            launched.threads,
            ctypes.c_int64(launched.shared_bytes),
            int(launched.cooperative),
            ctypes.c_void_p(ctypes.c_void_p.from_address(parameters).value),
            ctypes.c_int64(kernel.argument_bytes),
        )
        if error:
            raise RuntimeError(error.decode())
