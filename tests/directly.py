"""What the tests of direct calls share: who served a call, and what the long way gives for it.

A direct call goes straight from a module's tensors into the kernels (``csrc/bind/direct.cpp``).
Whatever it does must be what the long way does, bit for bit or word for word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from contract import FASTRNN, Duck, states
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import backends


class Spy:
    """Stands for ``Direct`` and counts the calls it served and those it declined."""

    def __init__(self, direct: Any) -> None:
        self.direct = direct
        self.served = 0
        self.declined = 0

    def sequence(self, *args: Any) -> Any:
        return self._counted(self.direct.sequence(*args))

    def packed(self, *args: Any) -> Any:
        return self._counted(self.direct.packed(*args))

    def step(self, *args: Any) -> Any:
        return self._counted(self.direct.step(*args))

    def _counted(self, result: Any) -> Any:
        if result is None:
            self.declined += 1
        else:
            self.served += 1
        return result


@contextmanager
def watched() -> Iterator[Spy]:
    """Counts direct calls inside the block."""
    found = backends.cpu_backend.direct()
    assert found is not None
    spy, original = Spy(found), backends.direct

    def direct() -> Any:
        return None if original() is None else spy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "direct", direct)
        yield spy


@contextmanager
def the_long_way() -> Iterator[None]:
    """No direct calls inside the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "direct", lambda: None)
        yield


def outcome(call: Callable[[], Any]) -> Any:
    """The result of a call, or its error."""
    try:
        return call()
    except Exception as error:
        return error


def assert_identical(actual: Any, expected: Any) -> None:
    """The same structure, and tensors equal in every bit and in all else that can be asked."""
    assert type(actual) is type(expected), f"{actual!r} in place of {expected!r}"
    if isinstance(expected, Exception):
        # Addresses of allocations and objects differ.
        same = [re.sub(r"0x[0-9a-f]+", "0x", str(error)) for error in (actual, expected)]
        assert same[0] == same[1]
    elif isinstance(expected, Tensor):
        for fact in ("shape", "dtype", "device", "layout", "requires_grad", "is_leaf", "grad_fn"):
            assert getattr(actual, fact) == getattr(expected, fact), fact
        assert actual.is_inference() == expected.is_inference()
        if expected.layout is torch.strided and expected.device.type == "cpu":
            meant = [size > 1 for size in expected.shape]
            strides = zip(meant, actual.stride(), expected.stride(), strict=True)
            assert all(own == other for matters, own, other in strides if matters)
            bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.element_size()]
            assert torch.equal(actual.contiguous().view(bits), expected.contiguous().view(bits))
    elif isinstance(expected, PackedSequence):
        assert_identical(tuple(actual), tuple(expected))
    elif isinstance(expected, Duck):
        assert_identical(actual.tensor, expected.tensor)
    elif isinstance(expected, tuple):
        assert len(actual) == len(expected)
        for own, other in zip(actual, expected, strict=True):
            assert_identical(own, other)
    else:
        assert actual == expected


def compare(call: Callable[[], Any]) -> tuple[Any, Spy]:
    """The outcome of a call, that of the long way being the same, and who served it."""
    torch.manual_seed(0)
    with watched() as spy:
        actual = outcome(call)
    torch.manual_seed(0)
    with the_long_way():
        expected = outcome(call)
    assert_identical(actual, expected)
    return actual, spy


def served(call: Callable[[], Any], *, calls: int = 1) -> Any:
    """The result of a call, all of which goes directly, to what the long way gives for it."""
    result, spy = compare(call)
    assert not isinstance(result, Exception), repr(result)
    assert (spy.served, spy.declined) == (calls, 0)
    return result


def declined(call: Callable[[], Any]) -> Any:
    """The outcome of a call that goes the long way."""
    result, spy = compare(call)
    assert spy.served == 0
    return result


def example(kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, ...]:
    """``(module, x, hx)`` of three features, four units, five steps and two rows."""
    torch.manual_seed(3)
    module: nn.Module = FASTRNN[kind](3, 4, dtype=dtype, **options)
    shape = (2, 3) if kind.endswith("Cell") else (5, 2, 3)
    return module, torch.randn(shape, dtype=dtype), states(module, 2, dtype)


def weight_names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def changed(hx: Any, change: Callable[[Tensor], Any]) -> Any:
    """``hx`` with ``change`` applied to its tensors."""
    return change(hx) if isinstance(hx, Tensor) else tuple(change(state) for state in hx)
