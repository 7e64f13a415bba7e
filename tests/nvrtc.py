"""NVRTC through ctypes: compiles kernels as CuPy does at run time, on machines without a driver."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


class CompilationError(RuntimeError):
    """The message is NVRTC's log."""


def toolkits() -> Iterator[Path]:
    """Folders of CUDA toolkits: named by the environment, nvcc's, the usual place."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name])
    if nvcc := shutil.which("nvcc"):
        yield Path(nvcc).resolve().parents[1]
    yield Path("/usr/local/cuda")


def packages() -> Iterator[Path]:
    """Folders of the wheels nvidia-cuda-nvrtc: for CUDA 13, and for 12."""
    for name in ("nvidia.cu13", "nvidia.cuda_nvrtc"):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        if found is not None:
            yield from (Path(folder) for folder in found.submodule_search_locations or ())


@functools.cache
def library() -> ctypes.CDLL | None:
    """NVRTC, from a wheel, a toolkit or the system; None where there is none."""
    folders = [folder / "lib" for folder in packages()]
    folders += [folder / "lib64" for folder in toolkits()]
    paths = [folder / name for folder in folders for name in _NAMES]
    for path in filter(Path.exists, paths):
        # It looks for these by their name only, which finds them once they are loaded.
        for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins))
        return ctypes.CDLL(str(path))
    for name in _NAMES:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None


def version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def _nvrtc() -> ctypes.CDLL:
    nvrtc = library()
    if nvrtc is None:
        raise RuntimeError("no NVRTC: pip install nvidia-cuda-nvrtc")
    return nvrtc


def _check(status: int) -> None:
    if status:
        describe = _nvrtc().nvrtcGetErrorString
        describe.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC: {describe(status).decode()}")


def compile_cubin(
    source: str,
    kernels: Sequence[str],
    *,
    architecture: str,
    include: Sequence[Path] = (),
    options: Sequence[str] = (),
) -> tuple[bytes, dict[str, str]]:
    """Compile a source to a cubin, and give the symbol of each kernel in it.

    Args:
        source: CUDA C++ without the host's part.
        kernels: C++ names, of template instances too, that the cubin must have.
        architecture: as in ``sm_90a``.

    Raises:
        CompilationError: with what the compiler says.
        RuntimeError: there is no NVRTC, or it does not know the architecture.
    """
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    text = source.encode()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"fastrnn.cu", 0, None, None))
    try:
        for kernel in kernels:
            _check(nvrtc.nvrtcAddNameExpression(program, kernel.encode()))
        flags = [f"--gpu-architecture={architecture}", "--std=c++17", *options]
        flags += [f"--include-path={folder}" for folder in include]
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        status = nvrtc.nvrtcCompileProgram(program, len(flags), array)
        if status:
            log = _output(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            if not log.strip(b"\0\n "):
                _check(status)
            raise CompilationError(log.rstrip(b"\0").decode())
        cubin = _output(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        symbols = {}
        for kernel in kernels:
            symbol = ctypes.c_char_p()
            _check(nvrtc.nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(symbol)))
            assert symbol.value is not None
            symbols[kernel] = symbol.value.decode()
        return cubin, symbols
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _output(
    size_of: Callable[..., int], get: Callable[..., int], program: ctypes.c_void_p
) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(get(program, buffer))
    return buffer.raw
