"""The samples of PyTorch's own module tests, on fastrnn's modules; run by test_contract_upstream.

A process of its own: importing ``torch.testing._internal`` changes global settings. Prints JSON:
for each check how many samples it had, and what failed.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from contract import FASTRNN, SEQUENCES, TORCH, assert_same, flat
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.testing._internal.common_utils import freeze_rng_state

INFOS = {
    kind: info for info in module_db for kind, theirs in TORCH.items() if info.module_cls is theirs
}


def samples(kind: str, dtype: torch.dtype, *, grad: bool = False, train: bool = True) -> Any:
    info = INFOS[kind]
    options = {"device": "cpu", "dtype": dtype, "requires_grad": grad, "training": train}
    if kind in ("RNN", "GRU"):
        options["with_packed_sequence"] = True
    return info.module_inputs_func(info, **options)


def modules(kind: str, dtype: torch.dtype, **options: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Ours and torch's module with the same weights, and the sample they are made for.

    Samples are uniform from -9 to 9; the rule of tolerances is for values of order 1.
    """
    for sample in samples(kind, dtype, **options):
        with torch.no_grad():
            for value in flat(sample.forward_input.args):
                value.div_(5)
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        ours = FASTRNN[kind](*args, **kwargs).to(dtype)
        theirs = TORCH[kind](*args, **kwargs).to(dtype)
        ours.load_state_dict(theirs.state_dict())
        yield ours, theirs, sample


def call(module: Any, sample: Any) -> Any:
    return module(*sample.forward_input.args, **sample.forward_input.kwargs)


def forward(kind: str) -> Iterator[None]:
    for dtype in (torch.float32, torch.float64):
        for ours, theirs, sample in modules(kind, dtype):
            with freeze_rng_state():
                output = call(ours, sample)
                assert_same(output, call(theirs, sample))
                given = sample.forward_input.args
                if sample.reference_fn is not None and not isinstance(given[0], PackedSequence):
                    assert_same(output, sample.reference_fn(ours, *given))
            yield


def factory_options(kind: str) -> Iterator[None]:
    for sample in samples(kind, torch.float64):
        kwargs = sample.constructor_input.kwargs | {"device": "meta", "dtype": torch.float64}
        module = FASTRNN[kind](*sample.constructor_input.args, **kwargs)
        assert all(p.is_meta and p.dtype == torch.float64 for p in module.parameters())
        yield


def representations(kind: str) -> Iterator[None]:
    for ours, theirs, _ in modules(kind, torch.float32):
        assert repr(ours) == repr(theirs) == str(ours)
        yield


def copies(kind: str) -> Iterator[None]:
    """Through torch.save, and as what deepcopy makes."""
    for ours, _, sample in modules(kind, torch.float32):
        expected = call(ours, sample)
        buffer = io.BytesIO()
        torch.save(ours, buffer)
        buffer.seek(0)
        for twin in (torch.load(buffer, weights_only=False), copy.deepcopy(ours)):
            assert_same(call(twin, sample), expected)
        yield


def not_contiguous(kind: str) -> Iterator[None]:
    """Arguments and upstream gradients with holes in memory: the same results and gradients."""

    def with_holes(value: Any) -> Any:
        if isinstance(value, PackedSequence):
            return value._replace(data=with_holes(value.data))
        if not isinstance(value, Tensor):
            return tuple(with_holes(item) for item in value)
        spread = torch.stack([value.detach(), torch.zeros_like(value)], -1)[..., 0]
        return spread.requires_grad_(value.requires_grad)

    for ours, theirs, sample in modules(kind, torch.float64, grad=True):
        plain = sample.forward_input.args
        holed = tuple(with_holes(value) for value in plain)
        results = []
        for module, args in ((theirs, plain), (ours, holed)):
            outputs = flat(module(*args))
            above = [
                torch.linspace(-1, 1, 2 * o.numel()).view(*o.shape, 2)[..., 0] for o in outputs
            ]
            leaves = [t for t in (*flat(args), *module.parameters()) if t.requires_grad]
            above = [g.to(o.dtype) for g, o in zip(above, outputs, strict=True)]
            results.append((outputs, torch.autograd.grad(outputs, leaves, above)))
        assert_same(results[1], results[0], rows=10)
        yield


def _gradients(kind: str, check: Callable[..., bool], every: int) -> Iterator[None]:
    for ours, _, sample in itertools.islice(
        modules(kind, torch.float64, grad=True), 0, None, every
    ):
        leaves = [t for t in flat(sample.forward_input.args) if t.requires_grad]
        names = list(dict(ours.named_parameters()))

        def function(*tensors: Tensor, ours: Any = ours, sample: Any = sample) -> list[Tensor]:
            given = iter(tensors)

            def replaced(value: Any) -> Any:
                if isinstance(value, PackedSequence):
                    return value._replace(data=replaced(value.data))
                if not isinstance(value, Tensor):
                    return tuple(replaced(item) for item in value)
                return next(given) if value.requires_grad else value

            args = tuple(replaced(value) for value in sample.forward_input.args)
            weights = dict(zip(names, given, strict=True))  # noqa: B023
            return flat(torch.func.functional_call(ours, weights, args))

        assert check(function, (*leaves, *ours.parameters()), fast_mode=True)
        yield


def gradcheck(kind: str) -> Iterator[None]:
    yield from _gradients(kind, torch.autograd.gradcheck, every=1)


def gradgradcheck(kind: str) -> Iterator[None]:
    yield from _gradients(kind, torch.autograd.gradgradcheck, every=5 if kind in SEQUENCES else 1)


def training_is_read(kind: str) -> Iterator[None]:
    """Without the attribute, what does not depend on it runs."""
    for ours, _, sample in modules(kind, torch.float32):
        del ours.training
        if not INFOS[kind].train_and_eval_differ:
            call(ours, sample)
        else:
            with contextlib.suppress(AttributeError):
                call(ours, sample)
        yield


def conversions(kind: str) -> Iterator[None]:
    for ours, _, sample in modules(kind, torch.float32):
        before = list(ours.parameters())
        ours.to(torch.float64)
        assert all(a is b for a, b in zip(before, ours.parameters(), strict=True))
        ours.to("meta").to_empty(device="cpu").reset_parameters()
        args = [
            value._replace(data=value.data.double())
            if isinstance(value, PackedSequence)
            else torch.utils._pytree.tree_map(torch.Tensor.double, value)
            for value in sample.forward_input.args
        ]
        assert flat(ours(*args))[0].isfinite().all()
        yield


def errors(kind: str) -> Iterator[None]:
    info = INFOS[kind]
    options = {"device": "cpu", "requires_grad": False, "training": True}
    for dtype in (torch.float32, torch.float64):
        for bad in info.module_error_inputs_func(info, dtype=dtype, **options):
            sample = bad.module_error_input
            args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
            raises = pytest.raises(bad.error_type, match=bad.error_regex)
            if bad.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
                with raises:
                    FASTRNN[kind](*args, **kwargs)
            else:
                module = FASTRNN[kind](*args, **kwargs).to(dtype)
                with raises:
                    call(module, sample)
            yield


CHECKS = (
    forward,
    factory_options,
    representations,
    copies,
    not_contiguous,
    gradcheck,
    gradgradcheck,
    training_is_read,
    conversions,
    errors,
)


def main() -> None:
    torch.set_num_threads(1)
    report: dict[str, dict[str, Any]] = {}
    for kind in FASTRNN:
        for check in CHECKS:
            entry: dict[str, Any] = {"samples": 0, "failure": None}
            try:
                for _ in check(kind):
                    entry["samples"] += 1
            except Exception:
                entry["failure"] = traceback.format_exc()
            report[f"{kind} {check.__name__}"] = entry
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
