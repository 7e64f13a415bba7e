"""The compiled kernels below the layer: accuracy of the activations, one step of each cell against
its formula, and every CPU target this machine can run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from cases import ALL_CELLS, NATIVE, Case, arguments, check, reference, results, upstream

from fastrnn import use_backend
from fastrnn.autograd import layer
from fastrnn.cells import CELLS
from fastrnn.problem import LayerInputs

if not NATIVE:
    pytest.skip("a pure Python install has no kernels", allow_module_level=True)

from fastrnn import _C

TARGETS: list[str] = _C.targets()


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each CPU target in turn; the one in use is put back."""
    before = _C.active_target()
    assert _C.select_target(request.param)
    yield request.param
    assert _C.select_target(before)


# --- activations -------------------------------------------------------------------------------

#: Bounds as csrc/core/activation.h states them, and the range in which they hold, by dtype.
EXP_RANGE = {torch.float32: (-87.3, 88.3), torch.float64: (-708.0, 709.0)}
BOUNDS = {"exp": 2.0, "sigmoid": 4.0, "tanh": 4.0}


def evaluate(name: str, x: torch.Tensor) -> torch.Tensor:
    out = torch.full_like(x, torch.nan)
    suffix = str(x.dtype).removeprefix("torch.")
    getattr(_C, f"elementwise_{suffix}")(name, x.data_ptr(), out.data_ptr(), x.numel())
    return out


def exact(name: str, x: torch.Tensor) -> np.ndarray:
    """The function in the widest precision numpy has here."""
    wide = x.numpy().astype(np.longdouble)
    if name == "exp":
        return np.exp(wide)
    if name == "tanh":
        return np.tanh(wide)
    return 1 / (1 + np.exp(-wide))


def error_in_ulp(actual: torch.Tensor, expected: np.ndarray) -> np.ndarray:
    kind = np.float32 if actual.dtype == torch.float32 else np.float64
    spacing = np.spacing(np.abs(expected).astype(kind)).astype(np.longdouble)
    return np.abs(actual.numpy().astype(np.longdouble) - expected) / spacing


def sweep(dtype: torch.dtype, low: float, high: float) -> torch.Tensor:
    """Dense over the range, and dense in magnitude towards 0, both signs; not a whole register."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(400_003, generator=generator, dtype=torch.float64) * (high - low) + low
    magnitudes = torch.logspace(-30, 0, 100_003, dtype=torch.float64)
    return torch.cat([dense, magnitudes, -magnitudes, torch.linspace(-1, 1, 100_003)]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BOUNDS)
def test_accuracy(target: str, name: str, dtype: torch.dtype) -> None:
    low, high = EXP_RANGE[dtype]
    if name == "sigmoid":
        low, high = -high, -low
    x = sweep(dtype, low, high)
    error = error_in_ulp(evaluate(name, x), exact(name, x))
    worst = int(error.argmax())
    assert error[worst] <= BOUNDS[name], f"{error[worst]:.2f} ULP at {float(x[worst])!r}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_at_the_ends(target: str, dtype: torch.dtype) -> None:
    inf, nan = torch.inf, torch.nan
    far = torch.tensor([inf, -inf, nan, 0.0, -0.0, 1e4, -1e4, 1e30, -1e30], dtype=dtype)
    expected = {
        "exp": [inf, 0, nan, 1, 1, inf, 0, inf, 0],
        "sigmoid": [1, 0, nan, 0.5, 0.5, 1, 0, 1, 0],
        "tanh": [1, -1, nan, 0, -0.0, 1, -1, 1, -1],
    }
    for name, values in expected.items():
        actual = evaluate(name, far)
        torch.testing.assert_close(
            actual, torch.tensor(values, dtype=dtype), rtol=0, atol=0, equal_nan=True
        )
        assert torch.equal(actual[3:5].signbit(), torch.tensor(values[3:5]).signbit()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_saturation_is_monotonic_and_bounded(target: str, name: str, dtype: torch.dtype) -> None:
    """Through the arguments where exp over- and underflows, on both sides."""
    edge = 130.0 if dtype == torch.float32 else 800.0
    x = torch.linspace(-edge, edge, 200_001, dtype=torch.float64).to(dtype)
    y = evaluate(name, x)
    assert y.isfinite().all()
    assert y.max() <= 1
    assert y.min() >= (0 if name == "sigmoid" else -1)
    # Rounding may step back by as much as the stated error.
    step = 2 * BOUNDS[name] * torch.finfo(dtype).eps
    assert (y.diff() >= -step * y[1:].abs()).all()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 8, 15, 16, 17, 33])
def test_activations_touch_only_their_values(target: str, count: int) -> None:
    x, out = torch.zeros(64), torch.full((64,), 7.0)
    _C.elementwise_float32("sigmoid", x.data_ptr(), out.data_ptr(), count)
    assert (out[:count] == 0.5).all()
    assert (out[count:] == 7).all()


# --- one step of each cell ---------------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def formula(
    cell: str, x: np.ndarray, r: np.ndarray, h: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One step from the input and recurrent parts of the gates, as csrc/core/cells/README.md."""
    if cell == "lstm":
        i, f, g, o = x + r
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    if cell.startswith("gru"):
        # With W_hh = 0 both forms have no more of h in n than b_hn; they differ in its place.
        gate, z = sigmoid(x[0] + r[0]), sigmoid(x[1] + r[1])
        n = np.tanh(x[2] + (gate * r[2] if cell == "gru" else r[2]))
        return (1 - z) * n + z * h, c
    activation = {
        "rnn_tanh": np.tanh,
        "rnn_relu": lambda a: np.maximum(a, 0),
        "rnn_sigmoid": sigmoid,
        "rnn_identity": lambda a: a,
    }[cell]
    return activation((x + r)[0]), c


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", ALL_CELLS)
def test_functor(target: str, cell: str, dtype: torch.dtype) -> None:
    """The functor alone: with W_ih the identity and W_hh zero, x and b_hh are the gates' parts.

    Values to a few ULP of 1, gradients against complex-step derivatives of the formula, which have
    no truncation error.
    """
    hidden, gates = 37, CELLS[cell].gates
    generator = np.random.default_rng(0)
    x, r = 2 * generator.standard_normal((2, gates, hidden))
    h, c = generator.standard_normal((2, hidden))
    x, r, h, c = (np.asarray(torch.tensor(v).to(dtype).double()) for v in (x, r, h, c))

    def leaf(values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).requires_grad_()

    rows = gates * hidden
    has_c = CELLS[cell].has_cell_state
    tensors = {"x": leaf(x.reshape(1, 1, rows)), "r": leaf(r.reshape(rows))}
    tensors["h"] = leaf(h.reshape(1, 1, hidden))
    if has_c:
        tensors["c"] = leaf(c.reshape(1, 1, hidden))
    weights = [torch.eye(rows, dtype=dtype), torch.zeros(rows, hidden, dtype=dtype)]
    weights += [torch.zeros(rows, dtype=dtype), tensors["r"]]
    inputs = LayerInputs(tensors["x"], tensors["h"], tensors.get("c"), weights, None, None, None)
    with use_backend("cpu"):
        outputs = layer(cell, inputs, directions=1, keep_cell_states=False)
    results = [outputs.h_n, outputs.c_n] if has_c else [outputs.h_n]
    bound = 8 * torch.finfo(dtype).eps

    expected = formula(cell, x, r, h, c)
    for actual, value in zip(results, expected, strict=False):
        error = np.abs(actual.detach().double().numpy().ravel() - value)
        assert (error <= bound * (1 + np.abs(value))).all(), error.max()

    upstream = generator.standard_normal((2, hidden))
    grads = torch.autograd.grad(
        results,
        list(tensors.values()),
        [torch.tensor(u, dtype=dtype).view(1, 1, -1) for u in upstream[: len(results)]],
    )
    upstream = np.asarray(torch.tensor(upstream).to(dtype).double())
    values = {"x": x, "r": r, "h": h, "c": c}
    step = 1e-30
    for (name, _), grad in zip(tensors.items(), grads, strict=True):
        moved = np.atleast_2d(values[name])
        found = grad.double().numpy().reshape(moved.shape)
        for k in range(moved.shape[0]):
            shifted = {key: value.astype(complex) for key, value in values.items()}
            np.atleast_2d(shifted[name])[k] += 1j * step
            h_new, c_new = formula(cell, **shifted)
            derivative = upstream[0] * h_new.imag / step
            if has_c:
                derivative = derivative + upstream[1] * c_new.imag / step
            error = np.abs(found[k] - derivative)
            assert (error <= 2 * bound * (1 + np.abs(derivative))).all(), (name, k, error.max())


# --- targets -----------------------------------------------------------------------------------

SIZES = (1, 4, 5, 15, 16, 17, 33, 65)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", ALL_CELLS)
@pytest.mark.parametrize("hidden", SIZES)
def test_every_target(target: str, cell: str, hidden: int, dtype: torch.dtype) -> None:
    """Each target computes what reference does, sizes around its registers included."""
    case = Case(
        cell,
        dtype,
        batch=7,
        hidden_size=hidden,
        input_size=hidden + 2,
        bidirectional=True,
        lengths="random",
        reset="random",
    )
    a = arguments(case)
    check(results(a, backend="cpu"), reference(a), case)


def test_lazily_negated_arguments() -> None:
    """A tensor may be a view that only stands for the negative of its memory."""
    case = Case("lstm", bidirectional=True)
    a = arguments(case)
    expected = results(a, backend="cpu")
    actual = results(
        a,
        backend="cpu",
        relayout=lambda tensor: torch._neg_view(-tensor),
        grads=lambda outputs, case: {
            name: torch._neg_view(-grad) for name, grad in upstream(outputs, case).items()
        },
    )
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def test_baseline_is_always_there() -> None:
    assert TARGETS[0] == "baseline"
    assert not _C.select_target("no such target")
    assert _C.active_target() in TARGETS


def doctor(**environment: str) -> dict:
    """What ``python -m fastrnn doctor --json`` reports in another environment."""
    run = subprocess.run(
        [sys.executable, "-m", "fastrnn", "doctor", "--json"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return {"status": run.returncode, "errors": run.stderr, **json.loads(run.stdout or "{}")}


@pytest.mark.parametrize("name", TARGETS)
def test_forced_by_environment(name: str) -> None:
    found = doctor(FASTRNN_ISA=name)
    assert found["native"]["isa"] == name
    assert found["backends"]["cpu"]["usable"]
    assert found["status"] == 0


@pytest.mark.parametrize(("capability", "name"), [("default", "baseline"), ("avx2", "avx2")])
def test_torchs_ceiling_is_honoured(capability: str, name: str) -> None:
    expected = name if name in TARGETS else TARGETS[-1]
    assert doctor(ATEN_CPU_CAPABILITY=capability)["native"]["isa"] == expected


def test_own_variable_wins_over_torchs() -> None:
    found = doctor(FASTRNN_ISA="baseline", ATEN_CPU_CAPABILITY="avx2")
    assert found["native"]["isa"] == "baseline"


def test_unknown_target_is_an_error() -> None:
    found = doctor(FASTRNN_ISA="mmx")
    assert found["status"] == 1
    reason = found["backends"]["cpu"]["reason"]
    assert "FASTRNN_ISA: expected one of baseline" in reason
    assert "'mmx'" in reason


def test_extension_matches_the_package() -> None:
    import fastrnn

    module: ModuleType = _C
    assert module.__version__ == fastrnn.__version__
