"""What the tests of the contract with torch.nn share: pairs of modules, and comparisons.

Wherever possible a test runs torch.nn itself and asks for the same: the same values, the same
types, the same error. What torch.nn does is then never remembered wrongly here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tolerances import tolerance
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn

SEQUENCES: tuple[str, ...] = ("RNN", "LSTM", "GRU")
CELLS: tuple[str, ...] = ("RNNCell", "LSTMCell", "GRUCell")

#: Bound here, because some tests replace the names in torch.nn.
TORCH: dict[str, type[nn.Module]] = {name: getattr(nn, name) for name in SEQUENCES + CELLS}
FASTRNN: dict[str, type[nn.Module]] = {name: getattr(fastrnn, name) for name in SEQUENCES + CELLS}

#: Variants that exercise every part of a sequence module.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "bias": False, "batch_first": True},
)


def variants(*, projected: bool = True) -> list[Any]:
    """``(kind, options)`` of sequence modules, as parameters of a test."""
    found = [(kind, options) for kind in SEQUENCES for options in VARIANTS]
    found.append(("RNN", {"nonlinearity": "relu"}))
    if projected:
        found.append(("LSTM", {"proj_size": 2, "num_layers": 2, "bidirectional": True}))
    return [pytest.param(kind, options, id=f"{kind}-{options}") for kind, options in found]


def pair(kind: str, *args: Any, seed: int = 7, **options: Any) -> tuple[Any, Any]:
    """``(fastrnn's, torch's)`` module with the same weights."""
    torch.manual_seed(seed)
    theirs = TORCH[kind](*args, **options)
    ours = FASTRNN[kind](*args, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def example(
    kind: str, dtype: torch.dtype = torch.float32, *, steps: int = 4, batch: int = 2
) -> Tensor:
    """Inputs of 3 features for a module of that name."""
    return torch.randn((batch, 3) if kind in CELLS else (steps, batch, 3), dtype=dtype)


def same_example(module: Any) -> Tensor:
    """Inputs for a module, in its dtype; at each call the same."""
    shape = (2, 3) if isinstance(module, nn.RNNCellBase) else (4, 2, 3)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.to(next(module.parameters()).dtype)


def states(module: Any, batch: int | None, dtype: torch.dtype = torch.float32) -> Any:
    """Random ``hx`` for a module, sequence or cell; unbatched where ``batch`` is None."""
    lead: tuple[int, ...] = () if batch is None else (batch,)
    width = module.hidden_size
    if isinstance(module, nn.RNNBase):
        lead = (module.num_layers * (2 if module.bidirectional else 1), *lead)
        width = module.proj_size or width
    h = torch.randn(*lead, width, dtype=dtype)
    if "LSTM" in type(module).__name__:
        return h, torch.randn(*lead, module.hidden_size, dtype=dtype)
    return h


def leaf_inputs(kind: str, module: Any, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Any]:
    """A batch of 2 rows, of 4 steps for a sequence module, and ``hx``; all require gradients."""
    x = torch.randn(2, 3, dtype=dtype) if kind in CELLS else torch.randn(4, 2, 3, dtype=dtype)
    hx = states(module, 2, dtype)
    for leaf in (x, *flat(hx)):
        leaf.requires_grad_()
    return x, hx


def packed(
    *lengths: int, features: int = 3, sorted: bool = False, dtype: torch.dtype = torch.float32
) -> PackedSequence:
    padded = torch.randn(max(lengths), len(lengths), features, dtype=dtype)
    return pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=sorted)


def flat(result: Any) -> list[Tensor]:
    """All tensors of a result, in order; the data only of a PackedSequence."""
    if result is None:
        return []
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [tensor for item in result for tensor in flat(item)]


def assert_same(ours: Any, theirs: Any, *, rows: int = 1, dtype: torch.dtype | None = None) -> None:
    """Same structure and types, same dtypes and shapes, same values within the tolerance.

    rows: T * B for gradients of weights. dtype: the one whose rounding to expect, if not theirs.
    """
    assert type(ours) is type(theirs)
    if theirs is None:
        return
    if isinstance(theirs, PackedSequence):
        for own, other in zip(ours[1:], theirs[1:], strict=True):
            assert (own is None) == (other is None)
            assert own is None or torch.equal(own, other)
        assert_same(ours.data, theirs.data, rows=rows, dtype=dtype)
    elif isinstance(theirs, Tensor):
        bound = tolerance(dtype or theirs.dtype, steps=20, fan_in=32, rows=rows)
        torch.testing.assert_close(ours, theirs, **bound, check_stride=False)
    else:
        assert len(ours) == len(theirs)
        for own, other in zip(ours, theirs, strict=True):
            assert_same(own, other, rows=rows, dtype=dtype)


def gradients(module: Any, input: Any, hx: Any = None) -> dict[str, Tensor | None]:
    """Gradients of a fixed weighted sum of all outputs, by name."""
    module.zero_grad()
    leaves = {"input": input} | {f"hx{k}": state for k, state in enumerate(flat(hx))}
    for leaf in leaves.values():
        flat(leaf)[0].grad = None
    total: Any = 0
    for k, output in enumerate(flat(module(input, hx))):
        like = {"dtype": output.dtype, "device": output.device}
        weights = torch.linspace(-1, 1, output.numel(), **like) * (k + 1)
        total = total + (output * weights.view(output.shape)).sum()
    total.backward()
    found = {name: flat(leaf)[0].grad for name, leaf in leaves.items()}
    return found | {name: weight.grad for name, weight in module.named_parameters()}


def assert_same_gradients(
    ours: Any, theirs: Any, input: Any, hx: Any = None, *, terms: int = 1
) -> None:
    """terms: how many weights' gradients are summed in that of a parameter of a weight."""
    expected = {k: g if g is None else g.clone() for k, g in gradients(theirs, input, hx).items()}
    actual = gradients(ours, input, hx)
    assert actual.keys() == expected.keys()
    rows = flat(input)[0][..., 0].numel()
    for name, gradient in expected.items():
        assert_same(actual[name], gradient, rows=rows * terms)


def error(call: Callable[[], Any]) -> Exception:
    """The error of a call that must fail."""
    try:
        result = call()
    except Exception as caught:
        return caught
    raise AssertionError(f"expected an error, got {result!r}")


def assert_same_error(
    ours: Callable[[], Any], theirs: Callable[[], Any], *, message: bool = True
) -> str:
    """Both fail with exactly the same type, and the same message unless told otherwise."""
    expected, actual = error(theirs), error(ours)
    assert type(actual) is type(expected), f"{actual!r} in place of {expected!r}"
    if message:
        assert str(actual) == str(expected)
    return str(actual)


class Subclass(Tensor):
    """Inherits ``__torch_function__``: results of torch functions are of this class."""


class Duck:
    """No Tensor, but torch functions accept it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args = [a.tensor if isinstance(a, Duck) else a for a in args]
        return torch.utils._pytree.tree_map_only(Tensor, Duck, function(*args, **(kwargs or {})))
