"""Random calls, right and wrong ones, against torch.nn: the same outputs, gradients and errors.

``FASTRNN_FUZZ_SEED=7 python -m pytest tests/test_contract_fuzz.py`` draws others, and a failure
says how to run it alone.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from contract import CELLS, FASTRNN, TORCH, error
from fuzz import Call, Seen, run
from mistakes import Mistake
from tolerances import error_in_tolerances
from torch import Tensor

#: What an error of ours names where it has not torch's words.
ARGUMENTS = (
    r"input|hx|hidden|h0|c0|weight_ih|weight_hh|bias|batch_sizes|dropout|nonlinearity|[a-z]+_size"
)

SEED = int(os.environ.get("FASTRNN_FUZZ_SEED", "0"))
CALLS = 600
MISTAKES = 150


@contextmanager
def described(test: str, index: int, what: object) -> Iterator[None]:
    """Adds to an error what was drawn and the line that draws it again."""
    try:
        yield
    except Exception as error:
        node = f"tests/test_contract_fuzz.py::{test}[{index}]"
        error.add_note(f"{what}\nagain: FASTRNN_FUZZ_SEED={SEED} python -m pytest '{node}'")
        raise


@pytest.mark.parametrize("index", range(CALLS))
def test_calls(index: int) -> None:
    call = Call.draw(random.Random(f"call {SEED} {index}"))
    with described("test_calls", index, call):
        check(run(call, FASTRNN), run(call, TORCH), call)


@pytest.mark.parametrize("index", range(MISTAKES))
def test_mistakes(index: int) -> None:
    """The same type of error; torch's words, or ours with the name of the argument."""
    mistake = Mistake.draw(random.Random(f"mistake {SEED} {index}"))
    with described("test_mistakes", index, mistake):
        expected = error(lambda: mistake(TORCH))
        actual = error(lambda: mistake(FASTRNN))
        assert type(actual) is type(expected), f"{actual!r}, torch.nn has {expected!r}"
        ours, theirs = str(actual).split(":")[0], str(expected).split(":")[0]
        assert ours == theirs or re.search(rf"\b({ARGUMENTS})\b", str(actual)), (
            f"{actual!r} does not name the argument, torch.nn has {expected!r}"
        )


def contiguous(structure: Any) -> Any:
    """The same structure, if all tensors were contiguous.

    A cell of torch returns what the layout of its arguments leads to; contiguous is as good.
    """
    if isinstance(structure, dict):
        return structure | {"layout": "contiguous"}
    kind, items = structure
    return kind, [contiguous(item) for item in items]


def check(ours: Seen, theirs: Seen, call: Call) -> None:
    assert ours.facts.keys() == theirs.facts.keys()
    for name, fact in theirs.facts.items():
        own = ours.facts[name]
        same = torch.equal(own, fact) if isinstance(fact, Tensor) else own == fact
        if name == "structure" and call.kind in CELLS:
            same = same or own == contiguous(fact)
        assert same, f"{name}: {own}, torch.nn has {fact}"
    assert ours.values.keys() == theirs.values.keys()
    for name, value in theirs.values.items():
        own = ours.values[name]
        assert own.dtype == value.dtype, name
        if value.is_complex():
            own, value = torch.view_as_real(own), torch.view_as_real(value)
        error = error_in_tolerances(own, value, **call.tolerance(name))
        assert error <= 1, f"{name}: {error:.3g} times the tolerance"
