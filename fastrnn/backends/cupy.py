"""The CUDA kernels compiled where they run, by NVRTC through CuPy: for GPUs without an nvcc-built
extension (``pip install fastrnn[cupy]``).

The host's side of ``csrc/cuda`` is in ``fastrnn._launches``, compiled by the host's compiler: its
calls only record what is to be launched. Here that is launched, on torch's current stream, with
kernels compiled from the same sources at their first use; CuPy keeps them on disk. What CuPy cannot
launch are clusters: their cases are served by the other regimes. As compiling and loading cannot be
captured, a CUDA graph needs a call like those it captures before.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..problem import Problem
from .base import Verdict
from .cuda import CudaBackend

_SERVES = "CUDA kernels compiled at run time, without clusters (which CuPy does not launch)"

#: As nvcc compiles them, see CMakeLists.txt. CuPy adds the architecture, and that float32 below the
#: normal numbers is zero.
_OPTIONS = ("-std=c++17",)

# A kernel's argument comes as bytes that another compiler laid out.
_CODE = """#include "cuda/handles.cuh"
// sources {digest}
using namespace fastrnn;
template <class Args> Args argument_of(void (*)(Args));
static_assert(sizeof(argument_of({kernel})) == {size}, "fastrnn._launches is of other sources");
"""


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """The extension that records launches, or None and why."""
    try:
        from .. import _launches
    except ImportError as error:
        return None, f"the compiled extension is missing ({error})"
    return _launches, _SERVES


@functools.cache
def sources() -> Path | None:
    """The folder ``csrc``: in the package, or beside it in a clone."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "csrc", package.parent / "csrc")
    return next((path for path in folders if (path / "cuda" / "handles.cuh").is_file()), None)


@functools.cache
def _digest(folder: Path) -> str:
    """Of all that a kernel may include: CuPy's cache looks at the text it is given only."""
    digest = hashlib.sha256()
    for path in sorted(
        [*folder.glob("core/**/*.h"), *folder.glob("cuda/*.h"), *folder.glob("cuda/*.cuh")]
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def code(folder: Path, kernel: str, argument_bytes: int) -> str:
    """What is compiled for a kernel, given by its name in C++ and the bytes of its argument."""
    return _CODE.format(digest=_digest(folder), kernel=kernel, size=argument_bytes)


def options(folder: Path) -> tuple[str, ...]:
    return (*_OPTIONS, f"-I{folder}")


class _Kernel(NamedTuple):
    """A compiled kernel of one device."""

    compiled: Any  # CuPy unloads what nobody has
    address: int


class _Device:
    """The kernels of a device, and their launches."""

    def __init__(self, cupy: Any, folder: Path, index: int) -> None:
        self._cupy, self._folder, self._index = cupy, folder, index
        self._kernels: dict[str, _Kernel] = {}

    def numbers(self) -> tuple[int, int, int]:
        """Compute capability times 10, multiprocessors, bytes of shared memory of a block."""
        device = self._cupy.cuda.Device(self._index)
        attributes = device.attributes
        return (
            int(device.compute_capability),
            attributes["MultiProcessorCount"],
            attributes["MaxSharedMemoryPerBlockOptin"],
        )

    @contextmanager
    def current(self) -> Iterator[None]:
        """The device, and its context in this thread, which launches need."""
        runtime = self._cupy.cuda.runtime
        before = runtime.getDevice()
        runtime.setDevice(self._index)
        try:
            yield
        finally:
            if before != self._index:
                runtime.setDevice(before)

    def _address(self, name: str, argument_bytes: int) -> int:
        kernel = self._kernels.get(name)
        if kernel is None:
            module = self._cupy.RawModule(
                code=code(self._folder, name, argument_bytes),
                options=options(self._folder),
                name_expressions=(name,),
            )
            compiled = module.get_function(name)
            # All that there is, once: with what a launch needs, one of another thread that needs
            # less could take it back.
            compiled.max_dynamic_shared_size_bytes = self.numbers()[2]
            kernel = self._kernels[name] = _Kernel(compiled, compiled.kernel.ptr)
        return kernel.address

    def resident_blocks(
        self, name: str, argument_bytes: int, threads: int, shared_bytes: int
    ) -> int:
        """Blocks of a kernel that a multiprocessor holds at the same time."""
        with self.current():
            ask = self._cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
            blocks: int = ask(self._address(name, argument_bytes), threads, shared_bytes)
            return blocks

    def launch(self, entries: list[tuple[Any, ...]], stream: int) -> None:
        """Start what was recorded (csrc/bind/launches.h says how), in its order."""
        driver = self._cupy.cuda.driver
        start, start_together = driver.launchKernel, driver.launchCooperativeKernel
        with self.current():
            for name, size, (x, y, z), threads, shared_bytes, cooperative, parameters in entries:
                address = self._address(name, size)
                how = (address, x, y, z, threads, 1, 1, shared_bytes, stream, parameters)
                if cooperative:
                    start_together(*how)
                else:
                    start(*how, 0)


class CupyBackend(CudaBackend):
    name = "cupy"
    on_request = "only where it is insisted on: no GPU has run its kernels yet"

    def __init__(self) -> None:
        super().__init__()
        self._devices: dict[int, _Device] = {}
        self._verdict: Verdict | None = None

    def cupy(self) -> Any:
        import cupy

        return cupy

    def extension(self) -> ModuleType:
        extension = self._extension or load()[0]
        assert extension is not None
        return extension

    def available(self) -> Verdict:
        extension, reason = load()
        if extension is None:
            return Verdict(False, reason)
        if sources() is None:
            return Verdict(False, "the CUDA sources (csrc) are missing")
        if importlib.util.find_spec("cupy") is None:
            return Verdict(False, "CuPy is not installed (pip install fastrnn[cupy])")
        if not torch.cuda.is_available():
            return Verdict(False, "torch sees no GPU")
        return self._driver_verdict()

    def _driver_verdict(self) -> Verdict:
        """What CuPy says to the GPU that torch sees. It takes a while to import, so once."""
        if self._verdict is None:
            try:
                count = self.cupy().cuda.runtime.getDeviceCount()
                self._verdict = Verdict(count > 0, _SERVES if count else "CuPy sees no GPU")
            except (ImportError, RuntimeError) as error:
                self._verdict = Verdict(False, f"CuPy does not work here ({error})")
        return self._verdict

    def supports(self, problem: Problem) -> Verdict:
        verdict = super().supports(problem)
        return Verdict(True, _SERVES) if verdict.ok else verdict

    def _device(self, index: int) -> _Device:
        device = self._devices.get(index)
        if device is None:
            folder = sources()
            assert folder is not None
            device = _Device(self.cupy(), folder, index)
            extension = self.extension()
            extension.set_residency(self._resident_blocks)
            extension.describe_device(index, *device.numbers())
            self._devices[index] = device
        return device

    def _resident_blocks(
        self, index: int, name: str, argument_bytes: int, threads: int, shared_bytes: int
    ) -> int:
        return self._device(index).resident_blocks(name, argument_bytes, threads, shared_bytes)

    def function(self, name: str, index: int, stream: int) -> Callable[..., int]:
        """A function of the extension, with the launches that it records."""
        device, extension = self._device(index), self.extension()
        record = getattr(extension, name)

        def call(*arguments: object) -> int:
            try:
                needed: int = record(*arguments)
                launches = extension.take_launches()  # which has the memory of their arguments
                device.launch(launches.entries(), stream)
            except Exception as error:
                if str(error).startswith("fastrnn: "):
                    raise
                operator = "layer_backward" if name == "backward" else "layer_forward"
                raise RuntimeError(f"fastrnn: {operator}: {error}") from error
            return needed

        return call
