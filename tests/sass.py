"""The machine code of a kernel, as nvdisasm lists it: what a GPU is given, without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import nvrtc

_LINE = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S+)\s*(.*?)\s*;"
    r"\s*/\* 0x[0-9a-f]{16} \*/\s*/\* 0x([0-9a-f]{16}) \*/"
)


class Instruction(NamedTuple):
    """An instruction of Volta or later; control: the upper half of its encoding.

    What takes a while, as loads, counts on one of six scoreboards, and whatever needs its result
    waits until that is at zero: for all that counts there, too.
    """

    name: str
    operands: tuple[str, ...]
    control: int

    @property
    def counts_on(self) -> frozenset[int]:
        """The scoreboard of its result; none where it takes a fixed time."""
        board = self.control >> 46 & 7
        return frozenset() if board == 7 else frozenset({board})

    @property
    def waits_for(self) -> frozenset[int]:
        mask = self.control >> 52 & 63
        return frozenset(board for board in range(6) if mask >> board & 1)


def disassembler() -> str | None:
    """nvdisasm, from a wheel or a toolkit; None where there is none."""
    folders = [folder / "bin" for folder in (*nvrtc.packages(), *nvrtc.toolkits())]
    found = [str(folder / "nvdisasm") for folder in folders if (folder / "nvdisasm").exists()]
    return next(iter(found), None) or shutil.which("nvdisasm")


def listing(cubin: bytes, kernel: str) -> list[Instruction]:
    """The instructions of a kernel of a cubin, named by its symbol, in their order."""
    program = disassembler()
    if program is None:
        raise RuntimeError("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [program, "--print-code", "--print-instruction-encoding", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, _, code = text.partition(f"\n.text.{kernel}:\n")
    code, _, _ = code.partition("\n\t.section\t")
    return [
        Instruction(
            name, tuple(part.strip() for part in operands.split(",") if part), int(high, 16)
        )
        for name, operands, high in _LINE.findall(code)
    ]
