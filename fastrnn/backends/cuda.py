"""The compiled CUDA kernels (``csrc/cuda``): the recurrence; products over all rows are torch's.

A *dense row* is a row that exists: with lengths those within them, step by step, the longest
sequences first, as packed data would have them. Everything between the kernels and torch's
products is dense, so that no product meets padding.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from ..cells import CELLS
from ..problem import LayerGrads, LayerInputs, LayerOutputs, Problem
from .base import FusedBackend, Gradients, Needs, Verdict

_CELL_INDEX = {name: index for index, name in enumerate(CELLS)}

#: The kernels' arithmetics, in the order of CudaMath (csrc/cuda/kernels.h).
_MATH = {
    torch.float16: 0,
    torch.bfloat16: 1,
    torch.float32: 2,
    torch.float64: 4,
}
_TF32 = 3

#: Copies beside the arithmetic and matrix instructions of bfloat16 and TF32 begin with Ampere.
_LEAST_CAPABILITY = (8, 0)

REGIMES = ("stepwise", "processor", "cluster", "grid", "tiled")

#: Regime (its place in REGIMES), blocks of a cluster, units of a group over 8 and places of a tile
#: to insist on; -1: what has the shortest predicted time.
Choice = tuple[int, int, int, int]
FREE: Choice = (-1, -1, -1, -1)


def choice_of(regime: str) -> Choice:
    """To insist on a regime, and with ``-`` on further parts of a choice: ``grid-4-2``."""
    name, *numbers = regime.split("-")
    cluster, unit_blocks, places = (*map(int, numbers), -1, -1, -1)[:3]
    return REGIMES.index(name), cluster, unit_blocks, places


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """The extension, or None and why. It loads on machines without a driver."""
    try:
        from .. import _cuda
    except ImportError as error:
        return None, f"the compiled extension is missing ({error})"
    return _cuda, "compiled CUDA kernels"


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.resolve_neg().contiguous()


#: What the properties fp32_precision of torch.backends.cudnn.rnn and of torch.backends.cuda.matmul
#: are the long way to.
_precision_of = torch._C._get_fp32_precision_getter
_set_precision = torch._C._set_fp32_precision_setter


def _arithmetic(problem: Problem) -> int:
    """TF32 where torch's own RNN would round products of float32 to it, else that of the dtype."""
    if problem.dtype is torch.float32 and _precision_of("cuda", "rnn") == "tf32":
        return _TF32
    return _MATH[problem.dtype]


#: What products of an arithmetic are to have; of the others torch has no choice.
_PRECISION = {_TF32: "tf32", _MATH[torch.float32]: "ieee"}

#: Of those who change torch's setting for products. Reentrant, as what runs within products (a
#: dispatch mode, a finalizer) may call a layer.
_turn = threading.RLock()


def _tuning() -> bool:
    """Whether TunableOp makes the products. It asks for the setting by the legacy function, which
    raises where somebody has used the other one."""
    return torch.backends.cuda.is_built() and torch.cuda.tunable.is_enabled()


@contextmanager
def _products(math: int) -> Iterator[None]:
    """torch's products as cuDNN's RNNs would make them: in TF32 by their flag, not by matmul's.

    torch has that setting only for the whole process. So calls take turns, those too that find
    what they want: it may be there for a turn only.
    """
    wanted = _PRECISION.get(math)
    if wanted is None or _tuning():
        yield
        return
    with _turn:
        before = _precision_of("cuda", "matmul")
        if before == wanted or (before == "none" and wanted == "ieee"):
            yield
            return
        # torch does not tell a setting from one that is inherited, but for its value.
        inherited = before == _precision_of("cuda", "all")
        _set_precision("cuda", "matmul", wanted)
        try:
            yield
        finally:
            _set_precision("cuda", "matmul", "none" if inherited else before)


class _Fixed:
    """What is the same in every call of a problem."""

    def __init__(self, problem: Problem) -> None:
        self.cell = _CELL_INDEX[problem.cell.name]
        self.sizes = (
            problem.steps,
            problem.batch,
            problem.rows,
            problem.input_size,
            problem.hidden_size,
            problem.output_size,
            problem.directions,
        )
        self.device = problem.device.index or 0
        self.projected = problem.projected
        count = problem.weights_per_direction
        self.slices = [slice(d * count, (d + 1) * count) for d in range(problem.directions)]
        #: Bytes of workspace by function and arithmetic, as the extension last asked for them.
        self.workspace: dict[tuple[str, int], int] = {}


_fixed = functools.lru_cache(maxsize=4096)(_Fixed)


class _Call:
    """What both passes hand to the extension: sizes, and the addresses of plain tensors."""

    def __init__(self, backend: CudaBackend, problem: Problem, inputs: LayerInputs) -> None:
        self.backend, self.problem, self.fixed = backend, problem, _fixed(problem)
        x, h0, c0, weights, lengths, batch_sizes, reset = inputs
        self.x, self.h0, self.c0 = x.resolve_neg(), _plain(h0), _plain(c0)
        self.lengths, self.batch_sizes, self.reset = lengths, batch_sizes, _plain(reset)
        if lengths is not None:
            self.lengths = lengths.contiguous()
        if batch_sizes is not None:
            self.batch_sizes = batch_sizes.contiguous()
        plain = [weight.resolve_neg().contiguous() for weight in weights]
        self.weights = [plain[own] for own in self.fixed.slices]
        self.masks = (_address(self.lengths), _address(self.batch_sizes), _address(self.reset))
        self.initial = (_address(self.h0), _address(self.c0))
        self.weight_addresses = [self._weight_addresses(own) for own in self.weights]
        self.math = _arithmetic(problem)
        #: Lengths on the device, where ``dense_index`` has brought them there.
        self.timeline: Tensor | None = None

    def _weight_addresses(self, own: Sequence[Tensor]) -> tuple[int, ...]:
        w_ih, w_hh, *others = [weight.data_ptr() for weight in own]
        projection = others.pop() if self.fixed.projected else 0
        return (w_ih, w_hh, *(others or (0, 0)), projection)

    def run(self, name: str, *arguments: object) -> Tensor:
        """Call a function of the extension; returns its workspace, of the size that it asks for."""
        backend, fixed = self.backend, self.fixed
        stream, timeline = backend.stream(self.problem), _address(self.timeline)
        function = backend.function(name, fixed.device, stream)
        key = (name, self.math)
        size = fixed.workspace.get(key, 0)
        while True:
            workspace = torch.empty(size, dtype=torch.uint8, device=self.problem.device)
            call = (fixed.device, stream, workspace.data_ptr(), size, timeline, *backend.choice)
            kernels = () if name == "dense_rows" else (self.math, fixed.cell)
            needed = function(*kernels, call, fixed.sizes, self.masks, *arguments)
            if needed <= size:  # else nothing has been done
                return workspace
            size = fixed.workspace[key] = needed

    def dense_index(self) -> Tensor | None:
        """The row of each dense row; None where they are the same."""
        if self.lengths is None:
            return None
        count = int(self.lengths.sum())
        index = torch.empty(count, dtype=torch.int64, device=self.problem.device)
        if count:
            self.timeline = self.run("dense_rows", index.data_ptr())
        return index

    def dense_x(self, index: Tensor | None) -> Tensor:
        rows = self.x.reshape(self.problem.rows, self.problem.input_size)
        return rows if index is None else rows.index_select(0, index)


class CudaBackend(FusedBackend):
    name = "cuda"
    device_type = "cuda"

    def __init__(self) -> None:
        self._extension: ModuleType | None = None
        self._unfit: dict[torch.device, str] = {}
        self.choice = FREE

    def extension(self) -> ModuleType:
        extension = self._extension or load()[0]
        assert extension is not None
        return extension

    def function(self, name: str, device: int, stream: int) -> Callable[..., int]:
        """A function that launches kernels on that stream, which its arguments name too."""
        launching: Callable[..., int] = getattr(self.extension(), name)
        return launching

    def stream(self, problem: Problem) -> int:
        # torch.cuda.current_stream makes an object of it first.
        return torch._C._cuda_getCurrentRawStream(problem.device.index)

    def available(self) -> Verdict:
        if self._extension is not None:
            return Verdict(True, "compiled CUDA kernels")
        extension, reason = load()
        if extension is None:
            return Verdict(False, reason)
        if not torch.cuda.is_available():
            return Verdict(False, "torch sees no GPU")
        if extension.device_count() == 0:
            return Verdict(False, "the CUDA driver shows no GPU")
        return Verdict(True, reason)

    def supports(self, problem: Problem) -> Verdict:
        if problem.device.type != self.device_type:
            return Verdict(False, f"runs on {self.device_type} only, not on {problem.device.type}")
        if problem.dtype not in _MATH:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _MATH)
            return Verdict(False, f"{known} only, not {problem.dtype}")
        reason = self._unfit.get(problem.device)
        if reason is None:
            reason = self._unfit[problem.device] = self.unfit(problem.device)
        return Verdict(not reason, reason or "compiled CUDA kernels")

    def capability(self, device: torch.device) -> tuple[int, int]:
        """Compute capability of a device."""
        return torch.cuda.get_device_capability(device)

    def unfit(self, device: torch.device) -> str:
        """Why the kernels cannot run on a device; empty where they can."""
        found = self.capability(device)
        if found < _LEAST_CAPABILITY:
            return "compute capability 8.0 or later only, not {}.{}".format(*found)
        torch.empty(0, device=device)  # as before every call, see DeviceGuard in device.cuh
        reason: str = self.extension().without_code(device.index or 0)
        return reason

    def forward(self, problem: Problem, inputs: LayerInputs) -> LayerOutputs:
        call = _Call(self, problem, inputs)
        outputs = problem.allocate(call.x)
        x = call.dense_x(call.dense_index())
        with _products(call.math):
            if problem.x_is_gates:
                gates = [part.contiguous() for part in x.chunk(problem.directions, dim=1)]
            else:
                gates = [torch.mm(x, own[0].t()) for own in call.weights]
        call.run(
            "forward",
            call.weight_addresses,
            _pair(gates),
            call.initial,
            tuple(map(_address, outputs)),
        )
        return outputs

    def backward(
        self,
        problem: Problem,
        inputs: LayerInputs,
        cell_states: Tensor | None,
        reserve: Tensor,
        grads: Gradients,
        needs: Needs,
        *,
        donated: bool = False,
    ) -> LayerGrads:
        call = _Call(self, problem, inputs)
        cell, directions = problem.cell, range(problem.directions)
        hidden, output = problem.hidden_size, problem.output_size
        index = call.dense_index()
        rows = problem.rows if index is None else index.numel()
        two_stage = cell.name == "gru_reset_before"
        direct = cell.name.startswith("gru")
        wants = [problem.direction_weights(needs.weights, d) for d in directions]

        def dense(width: int) -> Tensor:
            return call.x.new_empty(rows, width)

        # Where its rows are dense, what is not read again makes room for gradients.
        saved = len(cell.saved) * hidden
        if donated and index is None:
            da = [reserve[d, :, :saved] for d in directions]
        else:
            da = [dense(saved) for _ in directions]
        h_prev = [dense(output) if direct or wants[d][1] else None for d in directions]
        mid = [
            dense(hidden)
            if (two_stage and wants[d][1]) or (problem.projected and wants[d][-1])
            else None
            for d in directions
        ]
        dh = [dense(output) if problem.projected else None for _ in directions]
        grad_h0 = call.x.new_empty(len(directions), problem.batch, output) if needs.h0 else None
        grad_c0 = call.x.new_empty(len(directions), problem.batch, hidden) if needs.c0 else None
        call.run(
            "backward",
            call.weight_addresses,
            call.initial,
            (_address(cell_states), reserve.data_ptr()),
            tuple(map(_address, grads)),
            (_address(grad_h0), _address(grad_c0)),
            _pair(da),
            da[0].stride(0),
            _pair(h_prev),
            _pair(mid),
            _pair(dh),
        )
        with _products(call.math):
            weights: list[Tensor | None] = []
            x = call.dense_x(index) if any(own[0] for own in wants) else None
            if x is not None and problem.x_is_gates:
                x = x[:, :0]  # nothing that W_ih multiplies
            for d in directions:
                weights += _weight_gradients(problem, wants[d], da[d], x, h_prev[d], mid[d], dh[d])
            grad_x = _input_gradient(call, index, da) if needs.x else None
        return LayerGrads(grad_x, grad_h0, grad_c0, weights)


def _pair(tensors: Sequence[Tensor | None]) -> tuple[int, int]:
    return _address(tensors[0]), _address(tensors[1]) if len(tensors) == 2 else 0


def _split(problem: Problem, da: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of da what meets W_ih, what meets W_hh, and what of W_hh's last gate lies elsewhere.

    The reset-after GRU has the gradients of its candidate twice: columns are ``hn r z n``.
    """
    hidden = problem.hidden_size
    if problem.cell.name == "gru":
        return da[:, hidden:], da[:, hidden : 3 * hidden], da[:, :hidden]
    if problem.cell.name == "gru_reset_before":
        return da, da[:, : 2 * hidden], da[:, 2 * hidden :]
    return da, da, None


def _weight_gradients(
    problem: Problem,
    wants: Sequence[bool],
    da: Tensor,
    x: Tensor | None,
    h_prev: Tensor | None,
    mid: Tensor | None,
    dh: Tensor | None,
) -> list[Tensor | None]:
    """Gradients of a direction's weights, in the order of the inputs."""
    from_x, from_h, last = _split(problem, da)
    met = mid if problem.cell.name == "gru_reset_before" else h_prev
    grads: list[Tensor | None] = [None] * len(wants)
    if wants[0]:
        assert x is not None
        grads[0] = torch.mm(from_x.t(), x)
    if wants[1]:
        assert h_prev is not None
        if last is None:
            grads[1] = torch.mm(from_h.t(), h_prev)
        else:
            assert met is not None
            grads[1] = torch.cat([torch.mm(from_h.t(), h_prev), torch.mm(last.t(), met)])
    if problem.bias and (wants[2] or wants[3]):
        own = from_x.sum(0)
        grads[2] = own if wants[2] else None
        if wants[3]:
            hidden_sum = own.clone() if wants[2] else own
            if problem.cell.name == "gru":
                assert last is not None
                hidden_sum = torch.cat([own[: 2 * problem.hidden_size], last.sum(0)])
            grads[3] = hidden_sum
    if problem.projected and wants[-1]:
        assert dh is not None
        assert mid is not None
        grads[-1] = torch.mm(dh.t(), mid)
    return grads


def _input_gradient(call: _Call, index: Tensor | None, da: Sequence[Tensor]) -> Tensor:
    """Gradient of x, from both directions; zero where no row is."""
    problem = call.problem
    from_x = [_split(problem, own)[0] for own in da]
    if problem.x_is_gates:
        grad = torch.cat(from_x, dim=1)
    else:
        grad = torch.mm(from_x[0], call.weights[0][0])
        if len(da) == 2:
            grad.addmm_(from_x[1], call.weights[1][0])
    if index is not None:
        grad = grad.new_zeros(problem.rows, problem.input_size).index_copy_(0, index, grad)
    return grad.view(problem.sequence_shape(problem.input_size))
