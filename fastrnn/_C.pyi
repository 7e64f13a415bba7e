from typing import Any

from torch import Tensor

from .backends.base import Gradients, Needs
from .problem import LayerInputs, Problem

__version__: str
compiler: str
openmp: bool

class Layers:
    def __init__(self, exchange: object, /) -> None: ...
    def forward(
        self, cell: int, threads: int, problem: Problem, inputs: LayerInputs, /
    ) -> tuple[Any, ...]: ...
    def backward(
        self,
        cell: int,
        threads: int,
        problem: Problem,
        inputs: LayerInputs,
        cell_states: Tensor | None,
        reserve: Tensor,
        donated: bool,
        above: Gradients,
        needs: Needs,
        /,
    ) -> tuple[Any, ...]: ...

class Direct:
    def __init__(self, exchange: object, tensor: type, parameter: type, /) -> None: ...
    def sequence(
        self,
        module_dict: dict[str, Any],
        input: object,
        hx: object,
        lengths: object,
        cell: int,
        gates: int,
        has_cell_state: bool,
        threads: int,
        /,
    ) -> Any: ...
    def packed(
        self,
        module_dict: dict[str, Any],
        sequence: tuple[object, ...],
        hx: object,
        cell: int,
        gates: int,
        has_cell_state: bool,
        threads: int,
        /,
    ) -> Any: ...
    def step(
        self,
        module_dict: dict[str, Any],
        input: object,
        hx: object,
        cell: int,
        gates: int,
        has_cell_state: bool,
        threads: int,
        /,
    ) -> Any: ...

class Prepacked: ...

problem_fields: dict[str, int]

def elementwise_float32(name: str, input: int, output: int, count: int, /) -> None: ...

elementwise_float64 = elementwise_float32

def targets() -> list[str]: ...
def active_target() -> str: ...
def serves_16_bits() -> bool: ...
def select_target(name: str, /) -> bool: ...
