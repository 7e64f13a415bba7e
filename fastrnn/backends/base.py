"""What a backend is.

To add one: write a module here with a subclass of ``Backend``, give an instance to ``register``
in ``fastrnn/backends/__init__.py``, and add its name to ``BACKENDS`` in ``tests/cases.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..problem import LayerGrads, LayerInputs, LayerOutputs, Problem


class Verdict(NamedTuple):
    """Whether something can be done, and why (not)."""

    ok: bool
    reason: str


class Gradients(NamedTuple):
    """Gradients that reach the outputs of a layer; all contiguous, in the outputs' shapes.

    None where nothing flows: ``c_n`` of a cell without one, ``cell_states`` not asked for.
    """

    y: Tensor
    h_n: Tensor
    c_n: Tensor | None
    cell_states: Tensor | None


class Needs(NamedTuple):
    """Which gradients a backward must compute; weights in the order of ``LayerInputs.weights``."""

    x: bool
    h0: bool
    c0: bool
    weights: Sequence[bool]


class Backend(ABC):
    """Serves one layer call, both directions of it."""

    name: str
    #: True when ``layer`` builds an autograd graph of torch operations; False when the backend
    #: has a ``forward`` and a ``backward`` of its own.
    differentiable: bool = False
    #: Why the backend serves only calls for which it is insisted on; empty: whatever it can.
    on_request: str = ""

    @abstractmethod
    def available(self) -> Verdict:
        """Whether the backend can run at all on this machine."""

    @abstractmethod
    def supports(self, problem: Problem) -> Verdict:
        """Whether the backend can serve this call, given that it is available."""


class DifferentiableBackend(Backend):
    """A backend made of torch operations: autograd differentiates it, any number of times."""

    differentiable = True

    @abstractmethod
    def layer(self, problem: Problem, inputs: LayerInputs) -> LayerOutputs:
        """Outputs of the layer, without a reserve."""


class FusedBackend(Backend):
    """A backend with kernels for forward and for backpropagation through time.

    The reserve that ``forward`` fills is the same for all of them (``Problem.reserve_width``,
    ``Cell.saved``), so a backward may be served by another backend than its forward. Rows of the
    reserve beyond the end of a sequence are undefined.
    """

    @abstractmethod
    def forward(self, problem: Problem, inputs: LayerInputs) -> LayerOutputs:
        """Fill ``problem.allocate(inputs.x)``; every element of y, h_n, c_n and cell_states."""

    @abstractmethod
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
        """Gradients of the inputs that are needed.

        Must not write into anything it is given, but for the reserve where that is ``donated``:
        nobody will read it again.
        """
