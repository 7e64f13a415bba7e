"""The CUDA kernels, run on the CPU by the emulator, against the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from cases import ALL_CELLS, Case, Outputs, arguments, check, each, errors, reference, results
from cuda_emulator import runner

if runner.compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

from cuda_cases import DEVICE, FLOATS, REGIMES, options, poisoned, rnn_precision, run
from cuda_emulated import registered


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with poisoned():
        yield


@pytest.mark.parametrize("regime", REGIMES)
@each(*(options(cell) for cell in ALL_CELLS))
def test_every_regime(case: Case, regime: str) -> None:
    check(run(case, regime), reference(arguments(case)), case)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_every_dtype(cell: str, dtype: torch.dtype, regime: str) -> None:
    case = Case(cell, dtype, hidden_size=27, batch=19, bidirectional=True, lengths="random")
    case = replace(case, cell_states=cell == "lstm")
    check(run(case, regime), reference(arguments(case)), case)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("hidden_size", [7, 8, 9, 15, 16, 17, 31, 33, 63, 65])
def test_sizes_around_the_tiles(hidden_size: int, regime: str) -> None:
    for dtype in FLOATS:
        case = Case("gru", dtype, steps=3, hidden_size=hidden_size, batch=hidden_size % 5 + 7)
        check(run(case, regime), reference(arguments(case)), case)


@pytest.mark.parametrize("units", [1, 2])
@pytest.mark.parametrize(
    "regime", ["stepwise-1", "processor-1", "cluster-2", "cluster-8", "grid-1", "grid-2", "grid-8"]
)
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
def test_every_way_to_share_the_work(cell: str, regime: str, units: int) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        case = Case(cell, dtype, steps=3, hidden_size=71, batch=18, reset="random")
        check(run(case, f"{regime}-{units}"), reference(arguments(case)), case)


@pytest.mark.parametrize("regime", ["tiled-1", "tiled-2", "tiled-8"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "rnn_tanh"])
def test_large_tiles(cell: str, regime: str) -> None:
    """Several tiles of places, several blocks of units and more pieces of k than lie in shared
    memory; with places and units that the last tile does not fill."""
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        case = Case(cell, dtype, steps=3, hidden_size=137, batch=70, lengths="random")
        check(run(case, regime), reference(arguments(case)), case)


def outputs_only(found: Outputs) -> Outputs:
    return {name: value for name, value in found.items() if not name.startswith("grad")}


@pytest.mark.parametrize("regime", ["grid-1-1-32", "grid-4-1-32"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_wide_tiles(cell: str, regime: str) -> None:
    """They are those of forward passes in which weights outweigh states."""
    case = Case(cell, torch.float16, steps=4, hidden_size=70, batch=70, lengths="random")
    expected = outputs_only(reference(arguments(case)))
    check(run(case, regime, wanted=()), expected, case)


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_a_cluster_of_sixteen(cell: str) -> None:
    """More than every device with clusters can have: where the occupancy query says so."""
    case = Case(cell, torch.float16, steps=3, hidden_size=130, batch=18, reset="random")
    has = {"multiprocessors": 16, "multiprocessors_per_group": 16, "cluster_limit": 16}
    with registered("cluster-16-1", **has) as name:
        check(results(arguments(case), backend=name), reference(arguments(case)), case)
    # Groups of 8 multiprocessors, each with registers for one block only.
    has_not = {"multiprocessors": 24, "multiprocessors_per_group": 8, "cluster_limit": 16}
    has_not["registers_per_thread"] = 255
    with (
        registered("cluster-16-1", **has_not) as name,
        pytest.raises(RuntimeError, match="the regime cluster cannot run this"),
    ):
        results(arguments(case), backend=name)
    with registered(**has_not) as name:
        check(results(arguments(case), backend=name), reference(arguments(case)), case)


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_tf32_where_torch_says_so(cell: str) -> None:
    case = Case(cell, torch.float32, hidden_size=40, batch=9)
    strict = run(case, "stepwise")
    expected = reference(arguments(case))
    for regime in REGIMES:
        rounded = run(case, regime, tf32=True, wanted=[])
        assert not torch.equal(rounded["output"], strict["output"])
        outputs = {name: expected[name] for name in rounded}
        assert max(errors(rounded, outputs, case).values()) > 1


@pytest.mark.parametrize("tf32", [False, True])
def test_flags_of_torch_are_left_as_they_were(tf32: bool) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    run(Case("gru", torch.float32), "stepwise", tf32=not tf32)
    assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if tf32 else "ieee")
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_only_what_is_needed(cell: str, regime: str) -> None:
    case = Case(cell, torch.float64, bidirectional=True, proj_size=2 if cell == "lstm" else 0)
    a = arguments(case)
    everything = run(case, regime)
    for name in a.differentiable():
        alone = run(case, regime, wanted=[name])
        torch.testing.assert_close(alone[f"grad {name}"], everything[f"grad {name}"])


@pytest.mark.parametrize("regime", REGIMES)
def test_backward_twice(regime: str) -> None:
    """Nothing that was saved is written to, so a kept graph gives the same gradients again."""
    a = arguments(Case("lstm", torch.float32, batch=4, reset="random"))
    tensors = {k: v.clone().requires_grad_() for k, v in a.differentiable().items()}
    with registered(regime, **DEVICE) as name:
        from cases import call

        from fastrnn.backends import use_backend

        with use_backend(name):
            y = call(a.with_tensors(tensors))[0]
            first = torch.autograd.grad(y.sum(), list(tensors.values()), retain_graph=True)
            second = torch.autograd.grad(y.sum(), list(tensors.values()))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)


def test_nan_stays_in_its_row() -> None:
    case = Case("gru", torch.float16, batch=5, hidden_size=9)
    a = arguments(case)
    a.x[1, 2] = float("nan")
    for regime in REGIMES:
        with registered(regime, **DEVICE) as name:
            y = results(a, backend=name)["output"]
        assert y[1:, 2].isnan().all()
        assert not y[:, [0, 1, 3, 4]].isnan().any()


def test_a_reset_row_forgets_nan() -> None:
    case = Case("lstm", torch.float32, steps=4, batch=3, reset="never")
    a = arguments(case)
    assert a.reset is not None
    a.x[0, 1] = float("nan")
    a.reset[2, 1] = True
    for regime in REGIMES:
        with registered(regime, **DEVICE) as name:
            y = results(a, backend=name)["output"]
        assert y[:2, 1].isnan().all()
        assert not y[2:].isnan().any()


def test_a_regime_that_cannot_run_says_so() -> None:
    case = Case("lstm", torch.float32, hidden_size=200)
    with (
        registered("processor", multiprocessors=2, shared_per_block=16384) as name,
        pytest.raises(RuntimeError, match="layer_forward: the regime processor cannot run this"),
    ):
        results(arguments(case), backend=name)


def test_a_device_too_small_for_the_weights_is_served_step_by_step() -> None:
    case = Case("lstm", torch.float32, steps=2, hidden_size=200, batch=2)
    with rnn_precision(tf32=False), registered(multiprocessors=2, shared_per_block=32768) as name:
        check(results(arguments(case), backend=name), reference(arguments(case)), case)


@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.parametrize("regime", ["tiled-1", "tiled-2", "tiled-8"])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_no_races_of_large_tiles(cell: str, regime: str) -> None:
    for dtype in FLOATS:
        case = Case(cell, dtype, steps=2, hidden_size=75, batch=66, lengths="random")
        check(run(case, regime, checked=True), reference(arguments(case)), case)


@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.parametrize("regime", ["processor-1-1", "cluster-2-1", "grid-2-1"])
@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_no_races_of_several_tiles(cell: str, regime: str) -> None:
    """And of several groups of a block: turns follow one another with one barrier each."""
    case = Case(cell, torch.float32, steps=3, hidden_size=35, batch=27, lengths="random")
    a = arguments(case)
    few = registered(regime, checked=True, multiprocessors=2)
    with rnn_precision(tf32=False), few as name:
        check(results(a, backend=name), reference(a), case)


@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.parametrize("regime", ["grid-1-1-32", "grid-2-1-32"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_no_races_of_wide_tiles(cell: str, regime: str) -> None:
    case = Case(cell, torch.bfloat16, steps=3, hidden_size=35, batch=66, reset="random")
    expected = outputs_only(reference(arguments(case)))
    check(run(case, regime, checked=True, wanted=()), expected, case)
