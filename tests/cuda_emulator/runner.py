"""Compile CUDA sources for the emulator and call what is in them.

`build` makes a shared library of C++ sources that include csrc/cuda/device.cuh, and keeps it under
the hash of everything that went into it; `Emulated` loads it. Results are those of the kernels on
a device that the test describes, faults are raised as `EmulatorFault`. See README.md beside this.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNTIME = ("fibre.cpp", "scheduler.cpp", "launch.cpp", "by_address.cpp", "memory.cpp")
CHECKED_RUNTIME = (*RUNTIME, "races.cpp")

# Fields of struct Configuration, in order, with its defaults.
_FIELDS = re.findall(r"int64_t (\w+) = (\d+);", (HERE / "configuration.h").read_text())


class Configuration(ctypes.Structure):
    """configuration.h's struct of that name: the device, the seed and the time limit."""

    _fields_ = [(name, ctypes.c_int64) for name, _ in _FIELDS]

    def __init__(self, **values: int) -> None:
        super().__init__(**{name: int(default) for name, default in _FIELDS} | values)


class Launch(ctypes.Structure):
    """device.cuh's struct Launch."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint),
        ("cluster", ctypes.c_uint),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("cooperative", ctypes.c_bool),
    ]

    def __init__(
        self,
        grid: int | tuple[int, int, int] = 1,
        threads: int = 32,
        *,
        cluster: int = 1,
        shared_bytes: int = 0,
        cooperative: bool = False,
    ) -> None:
        sizes = grid if isinstance(grid, tuple) else (grid, 1, 1)
        super().__init__(
            (ctypes.c_uint * 3)(*sizes), threads, cluster, shared_bytes, None, cooperative
        )


class EmulatorFault(RuntimeError):
    """A kernel did something wrong, or the emulated device refused to start it."""


def compiler() -> str | None:
    """The host's C++ compiler: `CXX`, or the first of g++ and c++ there is."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("g++") or shutil.which("c++")


def _flags(*, checked: bool) -> list[str]:
    flags = ["-std=c++17", "-fPIC", "-fno-gnu-unique", "-g1", "-Wall", "-Wextra", "-Werror"]
    flags += ["-march=native", "-ffp-contract=off", f"-I{HERE}", f"-I{ROOT / 'csrc'}"]
    flags += ["-DFASTRNN_CUDA_EMULATOR", "-DFASTRNN_TARGET=cuda_emulated"]
    return [*flags, "-DFASTRNN_EMULATOR_CHECKED"] if checked else flags


def _kernel_flags(*, checked: bool) -> list[str]:
    """What only the sources of kernels get: garbage in locals nobody set, and calls at accesses."""
    flags = ["-ftrivial-auto-var-init=pattern", "-Wno-unknown-pragmas", "-Wno-unused-function"]
    if checked:
        flags += ["-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"]
        flags += [
            "-fno-tree-sra"
        ]  # or accesses of 16 bytes become four, of which none is misaligned
        flags += [f"-fno-builtin-mem{name}" for name in ("cpy", "move", "set")]
        flags += ["-include", str(HERE / "checked_memory.h")]
    return flags


def build(
    sources: Sequence[Path],
    *,
    checked: bool,
    cache: Path | None = None,
    flags: Sequence[str] = ("-O2",),
    undefined: bool = False,
) -> Path:
    """A shared library of the sources and the emulator, compiled unless the cache has it.

    Within one process, sources are looked at once.

    Args:
        sources: C++ files; whatever their suffix, they are compiled as C++.
        checked: report races and invalid accesses: every access to memory becomes a call.
        cache: where libraries are kept; default: a folder of the user among temporary files.
        flags: further flags for the sources: optimization, include folders, definitions.
        undefined: symbols may stay undefined, as those of Python do in an extension module.

    Raises:
        RuntimeError: no compiler, or it failed; its output is the message.
    """
    program = compiler()
    if program is None:
        raise RuntimeError("no C++ compiler: set CXX")
    if cache is None:
        cache = Path(tempfile.gettempdir()) / f"fastrnn-emulator-{os.getuid()}"
    return _build(program, tuple(sources), checked, cache, tuple(flags), undefined)


@functools.cache
def _build(
    program: str,
    sources: tuple[Path, ...],
    checked: bool,
    cache: Path,
    flags: tuple[str, ...],
    undefined: bool,
) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    general = _flags(checked=checked)
    runtime = CHECKED_RUNTIME if checked else RUNTIME
    own = [*general, *_kernel_flags(checked=checked), *flags]
    jobs = [(HERE / name, [*general, "-O2"]) for name in runtime]
    jobs += [(source, own) for source in sources]
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(lambda job: _compile(program, job[0], job[1], cache), jobs))
    key = "\n".join([*map(str, objects), str(undefined)])
    name = hashlib.sha256(key.encode()).hexdigest()[:20]
    library = cache / f"{name}.so"
    if not library.exists():
        link = ["-shared", "-Wl,-Bsymbolic", "-ldl", *([] if undefined else ["-Wl,-z,defs"])]
        _produce([program, *map(str, objects), *link], library)
    return library


def _compile(program: str, source: Path, flags: list[str], cache: Path) -> Path:
    """The object of a source, named after what the preprocessor makes of it and the flags."""
    command = [program, "-x", "c++", *flags]
    text = _run([*command, "-E", str(source)])
    key = "\n".join([_target(program), *command, text])
    target = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.o"
    if not target.exists():
        _produce([*command, "-c", str(source)], target)
    return target


@functools.cache
def _target(program: str) -> str:
    """What it compiles for: its version, and the instructions of this machine."""
    return _run([program, "-march=native", "-dM", "-E", "-x", "c++", os.devnull])


def _produce(command: list[str], target: Path) -> None:
    """Run the command with an output that appears at once: other processes may look for it."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        output = Path(folder) / target.name
        _run([*command, "-o", str(output)])
        output.replace(target)


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return result.stdout


def pointer(array: Any) -> ctypes.c_void_p:
    """The address of the data of a numpy array or a torch tensor."""
    return ctypes.c_void_p(array.data_ptr() if hasattr(array, "data_ptr") else array.ctypes.data)


def plain_name(function: str) -> str:
    """A function's name without result, arguments and the namespaces of fastrnn."""
    name = re.sub(r"fastrnn::(\w+::)*", "", function).partition("(")[0].removeprefix("void ")
    return re.sub(r"\s+>", ">", name)


def _bytes(array: Any) -> int:
    return int(array.numel() * array.element_size() if hasattr(array, "numel") else array.nbytes)


class Emulated:
    """A library made by `build`. Its settings are those of everybody who uses it."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self.library = ctypes.CDLL(str(library))
        self.library.fastrnn_emulator_report.restype = ctypes.c_char_p
        self.library.fastrnn_emulator_launches.restype = ctypes.c_int64
        self.library.fastrnn_emulator_buffer.argtypes = [
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_char_p,
        ]

    def configure(self, **values: int) -> None:
        """Describe the device and choose the seed; what is not named has its default."""
        self.library.fastrnn_emulator_configure(ctypes.byref(Configuration(**values)))

    def release(self) -> None:
        """Give back stacks and memory that this thread's launches keep for the next one."""
        self.library.fastrnn_emulator_release()

    def launches(self) -> int:
        """Kernels that this thread has started since `configure`."""
        return int(self.library.fastrnn_emulator_launches())

    @contextlib.contextmanager
    def only(self, buffers: Mapping[str, Any]) -> Iterator[None]:
        """In a checked build: kernels may access these arrays, and no other global memory."""
        for name, array in buffers.items():
            if _bytes(array):
                self.library.fastrnn_emulator_buffer(pointer(array), _bytes(array), name.encode())
        try:
            yield
        finally:
            self.library.fastrnn_emulator_buffer(None, 0, None)

    def call(self, name: str, *arguments: Any) -> None:
        """Call an `extern "C"` function that returns null or the text of an error.

        Raises:
            EmulatorFault: it returned a text, or a launch in it failed and nobody said so.
        """
        function = self.library[name]
        function.restype = ctypes.c_char_p
        message = function(*arguments) or self.library.fastrnn_emulator_report()
        if message:
            raise EmulatorFault(self.with_lines(message.decode()))

    @functools.cached_property
    def functions(self) -> dict[str, int]:
        """Addresses by name, without arguments and namespaces, as ``pack<HalfMath>``.

        Of functions of one name, as there may be in several sources, it is any one's.
        """
        command = ["nm", "--demangle", "--defined-only", "--format=posix", str(self.path)]
        found = {}
        for line in _run(command).splitlines():
            # Not what belongs to a function: {lambda ...}, and [clone ...], what was split off.
            if match := re.fullmatch(r"([^\[{]+) [tTW] ([0-9a-f]+)( [0-9a-f]+)?", line):
                found[plain_name(match[1])] = int(match[2], 16)
        known = "fastrnn_emulator_configure"
        base = ctypes.cast(self.library[known], ctypes.c_void_p).value
        assert base is not None
        return {name: base - found[known] + place for name, place in found.items()}

    def with_lines(self, report: str) -> str:
        """The report with places of the program as lines of the source."""

        def line(match: re.Match[str]) -> str:
            # The address that a call returns to may be on the next line already.
            place = hex(int(match[1], 16) - 1)
            command = ["addr2line", "-i", "-s", "-e", str(self.path), place]
            lines = [text.split(" ")[0] for text in _run(command).splitlines()]
            return f"[{' in '.join(lines)}]"

        if shutil.which("addr2line") is None:
            return report
        return re.sub(r"\[pc (0x[0-9a-f]+)\]", line, report)
