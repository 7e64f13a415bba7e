from collections.abc import Sequence

__version__: str
compiler: str
openmp: bool

def forward_float32(
    cell: int,
    threads: int,
    sizes: Sequence[int],
    weights: Sequence[int],
    x: int,
    x_step: int,
    x_row: int,
    h0: int,
    c0: int,
    y: int,
    h_n: int,
    c_n: int,
    cell_states: int,
    reserve: int,
    /,
) -> None: ...

forward_float64 = forward_float32

def backward_float32(
    cell: int,
    threads: int,
    sizes: Sequence[int],
    weights: Sequence[int],
    x: int,
    x_step: int,
    x_row: int,
    h0: int,
    c0: int,
    cell_states: int,
    reserve: int,
    donated: bool,
    above: Sequence[int],
    grad_x: int,
    grad_h0: int,
    grad_c0: int,
    grads: Sequence[int],
    /,
) -> None: ...

backward_float64 = backward_float32

def elementwise_float32(name: str, input: int, output: int, count: int, /) -> None: ...

elementwise_float64 = elementwise_float32

def targets() -> list[str]: ...
def active_target() -> str: ...
def select_target(name: str, /) -> bool: ...
