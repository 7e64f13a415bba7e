"""Every environment variable the library reads, in one table.

They are read once, at import or when first needed; the Python API for the same thing wins.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

logger = logging.getLogger("fastrnn")
logger.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Variable:
    name: str
    default: str
    meaning: str
    build_time: bool = False


VARIABLES: tuple[Variable, ...] = (
    Variable("FASTRNN_BACKEND", "", "serve every call from this backend, or raise"),
    Variable("FASTRNN_ISA", "", "CPU kernels to use: baseline, avx2, avx512 or avx512bf16"),
    Variable(
        "FASTRNN_NUM_THREADS", "", "threads of the CPU kernels; default torch.get_num_threads()"
    ),
    Variable(
        "FASTRNN_LOG", "", "level of the logger 'fastrnn' written to stderr: debug, info, ..."
    ),
    Variable("ATEN_CPU_CAPABILITY", "", "torch's own ceiling on CPU kernels; honoured as one"),
    Variable(
        "FASTRNN_NATIVE", "", "0 installs pure Python; 1 insists on compiling", build_time=True
    ),
    Variable(
        "FASTRNN_CUDA",
        "",
        "CUDA kernels: 1 compiles them; 0 and auto leave them out",
        build_time=True,
    ),
    Variable("FASTRNN_CUDA_ARCHS", "", "GPUs to compile for, as in CMake", build_time=True),
    Variable(
        "FASTRNN_CUDA_DEBUG",
        "",
        "1: CUDA kernels end with an error instead of waiting for ever",
        build_time=True,
    ),
    Variable("MAX_JOBS", "", "parallel compile jobs", build_time=True),
)

_NAMES = {variable.name: variable for variable in VARIABLES}


def get(name: str) -> str:
    """Value of a variable of the table, its default when unset."""
    return os.environ.get(name, _NAMES[name].default).strip()


def set_up_logging() -> None:
    """Send the library's log to stderr when ``FASTRNN_LOG`` names a level."""
    level = get("FASTRNN_LOG").upper()
    if not level:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s: %(message)s"))
    logger.addHandler(handler)
    try:
        logger.setLevel(level)
    except ValueError:
        logger.setLevel("INFO")
        logger.warning("FASTRNN_LOG=%r is not a log level; using info", level.lower())
