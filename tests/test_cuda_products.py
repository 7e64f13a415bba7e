"""The setting that torch's products have while the CUDA backend calls them: process-wide state."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from fastrnn.backends import cuda
from fastrnn.backends.cuda import _MATH, _TF32, _precision_of, _products, _set_precision

FLOAT32 = _MATH[torch.float32]


@pytest.fixture(autouse=True)
def _nothing_set() -> Iterator[None]:
    """As a process begins; what a test sets goes with it."""
    yield
    torch.set_float32_matmul_precision("highest")
    for name in (("cuda", "matmul"), ("mkldnn", "matmul"), ("cuda", "all"), ("generic", "all")):
        _set_precision(*name, "none")


def matmul() -> str:
    return _precision_of("cuda", "matmul")


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
@pytest.mark.parametrize(("math", "wanted"), [(_TF32, "tf32"), (FLOAT32, "ieee|none")])
def test_products_have_the_precision_of_the_arithmetic(math: int, wanted: str, before: str) -> None:
    """And torch what it had before, whatever happens."""
    _set_precision("cuda", "matmul", before)
    with pytest.raises(KeyError, match=wanted), _products(math):
        raise KeyError(matmul())
    assert matmul() == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_arithmetics_have_no_setting(dtype: torch.dtype) -> None:
    """Nor do they wait for those who have."""
    _set_precision("cuda", "matmul", "tf32")

    def elsewhere() -> None:
        with _products(_MATH[dtype]):
            assert matmul() == "ieee"
            done.set()

    done = threading.Event()
    with _products(FLOAT32):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(60)
    assert done.is_set()
    assert matmul() == "tf32"


@pytest.mark.parametrize("math", [_TF32, FLOAT32])
def test_a_thread_does_not_lose_what_another_restores(math: int) -> None:
    """The second finds the setting it wants, which the first takes back."""
    _set_precision("cuda", "matmul", "ieee" if math == _TF32 else "tf32")
    entered, restored = threading.Event(), threading.Event()
    seen = []

    def second() -> None:
        with _products(math):
            entered.set()
            assert restored.wait(60)
            seen.append(matmul())

    thread = threading.Thread(target=second)
    with _products(math):
        thread.start()
        assert not entered.wait(0.2)
    restored.set()
    thread.join(60)
    assert seen == ["tf32" if math == _TF32 else "ieee"]


def test_products_within_products() -> None:
    with _products(_TF32):
        with _products(FLOAT32):
            assert matmul() == "ieee"
        assert matmul() == "tf32"
    assert matmul() == "none"


@pytest.mark.parametrize("parent", [("generic", "all"), ("cuda", "all")])
def test_an_inherited_setting_still_follows(parent: tuple[str, str]) -> None:
    """What is set for all later reaches products, if it did before."""
    for value, math in (("ieee", _TF32), ("tf32", FLOAT32)):
        _set_precision(*parent, value)
        with _products(math):
            assert matmul() != value
        assert matmul() == value


def test_a_setting_of_its_own_does_not_follow() -> None:
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    with _products(_TF32):
        assert matmul() == "tf32"
    torch.backends.fp32_precision = "tf32"
    assert matmul() == "ieee"


@pytest.mark.parametrize("legacy", ["highest", "high", "medium"])
def test_legacy_settings_are_as_before(legacy: str) -> None:
    torch.set_float32_matmul_precision(legacy)
    for math in (_TF32, FLOAT32):
        with _products(math):
            pass
        assert torch.get_float32_matmul_precision() == legacy
        assert torch.backends.cuda.matmul.allow_tf32 is (legacy != "highest")


def test_nothing_is_set_for_tunable_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which raises for a setting that the legacy function does not know; torch's own decides."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda.tunable, "is_enabled", lambda: True)
    assert cuda._tuning()
    with _products(_TF32):
        assert matmul() == "none"
        assert not torch.backends.cuda.matmul.allow_tf32  # as TunableOp asks
