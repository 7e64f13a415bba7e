"""The machine code of a kernel, as nvdisasm lists it: what a GPU is given, without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import nvrtc

_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?(\S+)\s*(.*?)\s*;")
_REGISTER = re.compile(r"\bR\d+\b")
#: Bits of a load's result over those of a register.
_REGISTERS = {"128": 4, "64": 2}


class Instruction(NamedTuple):
    name: str
    operands: tuple[str, ...]

    @property
    def written(self) -> tuple[str, ...]:
        """Registers that it writes, where it is no store."""
        found = _REGISTER.findall(self.operands[0]) if self.operands else []
        if not found or self.stores:
            return ()
        first, parts = int(found[0][1:]), self.name.split(".")
        count = max((_REGISTERS.get(part, 1) for part in parts), default=1) if self.loads else 1
        return tuple(f"R{first + i}" for i in range(count))

    @property
    def read(self) -> tuple[str, ...]:
        operands = self.operands if self.stores else self.operands[1:]
        return tuple(_REGISTER.findall(" ".join(operands)))

    @property
    def loads(self) -> bool:
        return self.name.startswith(("LD.", "LDG", "LDS"))

    @property
    def stores(self) -> bool:
        return self.name.startswith(("ST.", "STG", "STS", "RED"))


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
        command = [program, "--print-code", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, _, code = text.partition(f"\n.text.{kernel}:\n")
    code, _, _ = code.partition("\n\t.section\t")
    return [
        Instruction(name, tuple(part.strip() for part in operands.split(",") if part))
        for _, name, operands in _LINE.findall(code)
    ]
