"""The recurrence of every cell, forward and backward, as plain loops that numba compiles.

Time is the outermost loop and the batch rows of a step are taken together, so that a step reads the
recurrent weights once for all of them. Every loop over rows skips those that have ended (``live``):
what stands in their place, NaN included, is never read, and their states stay what they are.

All kernels are in one file because numba's cache on disk knows a function by the date of its own
file: it would not notice a change of what the function calls in another one.

Only the recurrence is here: products over all rows at once (x W_ih^T, and the gradients of x and
of the weights) are torch's, see ``numba.py``. The backward passes are derived by hand from the
formulas above each kernel. In them ``d_`` names a gradient of the loss.

Letters: T steps, B batch rows, H hidden units, R output features (H, or fewer with a projection),
D directions, ``rows`` the rows of y. ``column`` is where the direction at hand starts in a row of
y or of the cell states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])

TANH, RELU, SIGMOID, IDENTITY = range(4)
ACTIVATIONS = {"rnn_tanh": TANH, "rnn_relu": RELU, "rnn_sigmoid": SIGMOID, "rnn_identity": IDENTITY}

TILE = 512  #: columns of a product at a time: a few rows of as many floats stay in the L1 cache


class Steps(NamedTuple):
    """Which rows exist, where they are, and where states start anew.

    offsets ``(T,)`` int64: batch row b of step t is row ``offsets[t] + b``. lengths ``(B,)`` int64:
    it exists while ``t < lengths[b]``. reset ``(T, B)`` bool: the state that enters is zero.
    """

    offsets: Array
    lengths: Array
    reset: Array
    reverse: bool


def kernel(function: Function) -> Function:
    """Compile at the first call, to IEEE arithmetic as written, and keep the code on disk."""
    options: dict[str, Any] = {"nogil": True, "fastmath": False, "error_model": "numpy"}
    try:
        compiled: Function = njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        compiled = njit(**options)(function)
    return compiled


@kernel
def sigmoid(a: Any) -> Any:
    """``1 / (1 + exp(-a))``, by the exponential that cannot overflow."""
    one = type(a)(1)  # a literal would make float64 of float32
    e = math.exp(-abs(a))
    return one / (one + e) if a >= 0 else e / (one + e)


@kernel
def tanh(a: Any) -> Any:
    """``(1 - exp(-2|a|)) / (1 + exp(-2|a|))``, signed; a third of the time of math.tanh."""
    e = math.expm1(-abs(a + a))
    return math.copysign(-e / (e + type(a)(2)), a)


@kernel
def visit(steps: Steps, s: int, live: Array) -> int:
    """The step that forward visits s-th, and in ``live (B,)`` whether each batch row has it."""
    t = len(steps.offsets) - 1 - s if steps.reverse else s
    for b in range(len(live)):
        live[b] = t < steps.lengths[b]
    return t


@kernel
def drop_at_reset(steps: Steps, t: int, live: Array, state: Array) -> None:
    """Zero the ``state (B, .)``, or its gradient, that passes into step t at a reset."""
    for b in range(len(live)):
        if live[b] and steps.reset[t, b]:
            state[b, :] = 0


@kernel
def add_product(out: Array, a: Array, w: Array, live: Array) -> None:
    """``out (B, J) += a (B, K) w (K, J)`` in the live rows.

    Four rows of w at a time are added to a row of out: that uses the vector units and the order of
    summation stays. ``a`` may have fewer than B rows if those that it lacks are not live.
    """
    count, width = w.shape
    whole = count - count % 4
    for start in range(0, width, TILE):
        end = min(start + TILE, width)
        for k in range(0, whole, 4):
            w0, w1 = w[k, start:end], w[k + 1, start:end]
            w2, w3 = w[k + 2, start:end], w[k + 3, start:end]
            for b in range(len(live)):
                if live[b]:
                    a0, a1, a2, a3 = a[b, k], a[b, k + 1], a[b, k + 2], a[b, k + 3]
                    total = out[b, start:end]
                    for j in range(len(total)):
                        total[j] += a0 * w0[j] + a1 * w1[j] + a2 * w2[j] + a3 * w3[j]
        for k in range(whole, count):
            for b in range(len(live)):
                if live[b]:
                    out[b, start:end] += a[b, k] * w[k, start:end]


@kernel
def set_product(out: Array, a: Array, w: Array, live: Array) -> None:
    """``out (B, J) = a (B, K) w (K, J)`` in the live rows."""
    for b in range(len(live)):
        if live[b]:
            out[b, :] = 0
    add_product(out, a, w, live)


@kernel
def entering(steps: Steps, states: Array, initial: Array, out: Array) -> None:
    """The state that enters each step, from the state after each step.

    ``states (rows, .)`` after each step, ``initial (B, .)``; ``out (rows, .)`` is zero at a reset,
    the initial state at the first step of a row, else the state after the step visited before.
    """
    for t in range(len(steps.offsets)):
        for b in range(len(initial)):
            if t < steps.lengths[b]:
                row = steps.offsets[t] + b
                before = t + 1 if steps.reverse else t - 1
                if steps.reset[t, b]:
                    out[row, :] = 0
                elif 0 <= before < steps.lengths[b]:
                    out[row, :] = states[steps.offsets[before] + b, :]
                else:
                    out[row, :] = initial[b, :]


@kernel
def activate(activation: int, a: Any) -> Any:
    if activation == TANH:
        return tanh(a)
    if activation == SIGMOID:
        return sigmoid(a)
    if activation == RELU:
        return type(a)(0) if a <= 0 else a  # NaN stays NaN
    return a


@kernel
def vanilla_forward(
    steps: Steps, activation: int, x_part: Array, w_hh_t: Array, h: Array, y: Array, column: int,
    saved: Array,
) -> None:  # fmt: skip
    """``h' = g(x_part + W_hh h)``.

    x_part ``(rows, H)``: W_ih x and both biases. w_hh_t ``(H, H)``: W_hh^T. h ``(B, H)``: the
    initial state, replaced by the last one. y ``(rows, D*H)``. saved ``(rows, H)``: h', or (0, 0).
    """
    batch, units = h.shape
    live = np.empty(batch, np.bool_)
    pre = np.empty_like(h)
    for s in range(len(steps.offsets)):
        t = visit(steps, s, live)
        drop_at_reset(steps, t, live, h)
        set_product(pre, h, w_hh_t, live)
        for b in range(batch):
            if live[b]:
                row = steps.offsets[t] + b
                for j in range(units):
                    h[b, j] = activate(activation, x_part[row, j] + pre[b, j])
                    y[row, column + j] = h[b, j]
                if len(saved):
                    saved[row, :] = h[b, :]


@kernel
def vanilla_backward(
    steps: Steps, activation: int, w_hh: Array, saved: Array, d_y: Array, column: int, d_h: Array,
    d_gates: Array,
) -> None:  # fmt: skip
    """With ``a = x_part + W_hh h`` and ``h' = g(a)``: ``d_a = d_h' g'(a)``, ``d_h = W_hh^T d_a``.

    g' in terms of h': ``1 - h'^2`` (tanh), ``h' (1 - h')`` (sigmoid), ``h' > 0`` (relu), 1.

    d_h ``(B, H)``: gradient of the last state, replaced by that of the initial one. d_gates
    ``(rows, H)``: d_a.
    """
    batch, units = d_h.shape
    one = d_h.dtype.type(1)
    live = np.empty(batch, np.bool_)
    for s in range(len(steps.offsets) - 1, -1, -1):
        t = visit(steps, s, live)
        first = steps.offsets[t]
        for b in range(batch):
            if live[b]:
                row = first + b
                for j in range(units):
                    h = saved[row, j]
                    d_a = d_h[b, j] + d_y[row, column + j]
                    if activation == TANH:
                        d_a *= one - h * h
                    elif activation == SIGMOID:
                        d_a *= h * (one - h)
                    elif activation == RELU and h <= 0:
                        d_a *= 0
                    d_gates[row, j] = d_a
        set_product(d_h, d_gates[first : first + batch], w_hh, live)
        drop_at_reset(steps, t, live, d_h)


@kernel
def lstm_forward(
    steps: Steps, x_part: Array, w_hh_t: Array, w_hr_t: Array, h: Array, c: Array, y: Array,
    cell_states: Array, direction: int, saved: Array,
) -> None:  # fmt: skip
    """``i, f, o = sigmoid(...)``, ``g = tanh(...)`` of ``x_part + W_hh h``.

    ``c' = f c + i g``, ``m = o tanh(c')``, and ``h' = W_hr m``, or m where there is no projection.

    x_part ``(rows, 4H)``: W_ih x and both biases. w_hh_t ``(R, 4H)``. w_hr_t ``(H, R)``, or (0, 0).
    h ``(B, R)``, c ``(B, H)``: initial states, replaced by the last ones. y ``(rows, D*R)``.
    cell_states ``(rows, D*H)`` or (0, 0). saved ``(rows, 4H [+ R])``: i, f, g, o [, h'] or (0, 0).
    """
    batch, units = c.shape
    outputs = h.shape[1]
    live = np.empty(batch, np.bool_)
    pre = np.empty((batch, 4 * units), c.dtype)
    m = np.empty_like(c)
    for s in range(len(steps.offsets)):
        t = visit(steps, s, live)
        drop_at_reset(steps, t, live, h)
        drop_at_reset(steps, t, live, c)
        set_product(pre, h, w_hh_t, live)
        for b in range(batch):
            if live[b]:
                row = steps.offsets[t] + b
                for j in range(units):
                    i = sigmoid(x_part[row, j] + pre[b, j])
                    f = sigmoid(x_part[row, units + j] + pre[b, units + j])
                    g = tanh(x_part[row, 2 * units + j] + pre[b, 2 * units + j])
                    o = sigmoid(x_part[row, 3 * units + j] + pre[b, 3 * units + j])
                    c[b, j] = f * c[b, j] + i * g
                    m[b, j] = o * tanh(c[b, j])
                    if len(cell_states):
                        cell_states[row, direction * units + j] = c[b, j]
                    if len(saved):
                        saved[row, j], saved[row, units + j] = i, f
                        saved[row, 2 * units + j], saved[row, 3 * units + j] = g, o
        if len(w_hr_t):
            set_product(h, m, w_hr_t, live)
        for b in range(batch):
            if live[b]:
                row = steps.offsets[t] + b
                if not len(w_hr_t):
                    h[b, :] = m[b, :]
                elif len(saved):
                    saved[row, 4 * units :] = h[b, :]
                y[row, direction * outputs : (direction + 1) * outputs] = h[b, :]


@kernel
def lstm_backward(
    steps: Steps, w_hh: Array, w_hr: Array, saved: Array, c_in: Array, c_out: Array, d_y: Array,
    d_cell_states: Array, direction: int, d_h: Array, d_c: Array, d_gates: Array, d_out: Array,
) -> None:  # fmt: skip
    """``d_m = W_hr^T d_h'`` (or d_h'), then, as ``m = o tanh(c')`` and ``c' = f c + i g``:

    ``d_c' += d_m o (1 - tanh(c')^2)``; ``d_o = d_m tanh(c')``, ``d_i = d_c' g``, ``d_g = d_c' i``,
    ``d_f = d_c' c``, ``d_c = d_c' f``; times the derivative of the activation, ``s (1 - s)`` or
    ``1 - g^2``, these are the gradients d_a of the pre-activations; ``d_h = W_hh^T d_a``.

    c_in, c_out ``(rows, H)``: the cell state that enters and leaves each step. d_cell_states
    ``(rows, D*H)``, or (0, 0). d_h ``(B, R)``, d_c ``(B, H)``: gradients of the last states,
    replaced by those of the initial ones. d_gates ``(rows, 4H)``: d_a of each row. d_out
    ``(rows, R)``: d_h' of each row, or (0, 0) without a projection.
    """
    batch, units = d_c.shape
    outputs = d_h.shape[1]
    one = d_h.dtype.type(1)
    live = np.empty(batch, np.bool_)
    d_m = np.empty_like(d_c)
    for s in range(len(steps.offsets) - 1, -1, -1):
        t = visit(steps, s, live)
        first = steps.offsets[t]
        for b in range(batch):
            if live[b]:
                d_h[b, :] += d_y[first + b, direction * outputs : (direction + 1) * outputs]
                if len(w_hr):
                    d_out[first + b, :] = d_h[b, :]
                else:
                    d_m[b, :] = d_h[b, :]
        if len(w_hr):
            set_product(d_m, d_h, w_hr, live)
        for b in range(batch):
            if live[b]:
                row = first + b
                for j in range(units):
                    i, f = saved[row, j], saved[row, units + j]
                    g, o = saved[row, 2 * units + j], saved[row, 3 * units + j]
                    tanh_c = tanh(c_out[row, j])
                    d_new_c = d_c[b, j] + d_m[b, j] * o * (one - tanh_c * tanh_c)
                    if len(d_cell_states):
                        d_new_c += d_cell_states[row, direction * units + j]
                    d_gates[row, j] = d_new_c * g * i * (one - i)
                    d_gates[row, units + j] = d_new_c * c_in[row, j] * f * (one - f)
                    d_gates[row, 2 * units + j] = d_new_c * i * (one - g * g)
                    d_gates[row, 3 * units + j] = d_m[b, j] * tanh_c * o * (one - o)
                    d_c[b, j] = d_new_c * f
        set_product(d_h, d_gates[first : first + batch], w_hh, live)
        drop_at_reset(steps, t, live, d_h)
        drop_at_reset(steps, t, live, d_c)


@kernel
def gru_entering(steps: Steps, saved: Array, n_slot: int, h: Array, out: Array) -> None:
    """``entering`` of both GRUs, which keep z and n of each step but not h.

    saved ``(rows, S*H)``: z in slot 1, n in slot ``n_slot``. h ``(B, H)``: a copy of the initial
    state, overwritten. out ``(rows, H)``.
    """
    batch, units = h.shape
    one = h.dtype.type(1)
    live = np.empty(batch, np.bool_)
    for s in range(len(steps.offsets)):
        t = visit(steps, s, live)
        drop_at_reset(steps, t, live, h)
        for b in range(batch):
            if live[b]:
                row = steps.offsets[t] + b
                out[row, :] = h[b, :]
                for j in range(units):
                    z, n = saved[row, units + j], saved[row, n_slot * units + j]
                    h[b, j] = (one - z) * n + z * h[b, j]


@kernel
def gru_forward(
    steps: Steps, x_part: Array, w_hh_t: Array, b_hn: Array, h: Array, y: Array, column: int,
    saved: Array,
) -> None:  # fmt: skip
    """``r, z = sigmoid(x_part + W_hh h)``, ``n = tanh(x_part_n + r hn)``, ``h' = (1 - z) n + z h``.

    ``hn = W_hn h + b_hn``. x_part ``(rows, 3H)``: W_ih x and all biases but b_hn ``(H,)``. w_hh_t
    ``(H, 3H)``. h ``(B, H)``: the initial state, replaced by the last one. y ``(rows, D*H)``. saved
    ``(rows, 4H)``: r, z, hn, n, or (0, 0).
    """
    batch, units = h.shape
    one = h.dtype.type(1)
    live = np.empty(batch, np.bool_)
    pre = np.empty((batch, 3 * units), h.dtype)
    for s in range(len(steps.offsets)):
        t = visit(steps, s, live)
        drop_at_reset(steps, t, live, h)
        set_product(pre, h, w_hh_t, live)
        for b in range(batch):
            if live[b]:
                row = steps.offsets[t] + b
                for j in range(units):
                    r = sigmoid(x_part[row, j] + pre[b, j])
                    z = sigmoid(x_part[row, units + j] + pre[b, units + j])
                    hn = pre[b, 2 * units + j] + b_hn[j]
                    n = tanh(x_part[row, 2 * units + j] + r * hn)
                    h[b, j] = (one - z) * n + z * h[b, j]
                    y[row, column + j] = h[b, j]
                    if len(saved):
                        saved[row, j], saved[row, units + j] = r, z
                        saved[row, 2 * units + j], saved[row, 3 * units + j] = hn, n


@kernel
def gru_backward(
    steps: Steps, w_hh: Array, saved: Array, h_in: Array, d_y: Array, column: int, d_h: Array,
    d_gates: Array, d_products: Array,
) -> None:  # fmt: skip
    """With ``h' = (1 - z) n + z h``, ``n = tanh(a_n)`` and ``a_n = x_part_n + r hn``:

    ``d_n = d_h' (1 - z)``, ``d_z = d_h' (h - n)``, ``d_a_n = d_n (1 - n^2)``, ``d_r = d_a_n hn``,
    ``d_hn = d_a_n r``; through the sigmoids ``d_a = d_s s (1 - s)``; and
    ``d_h = d_h' z + W_hh^T (d_a_r, d_a_z, d_hn)``.

    h_in ``(rows, H)``: the state that enters each step. d_h ``(B, H)``: gradient of the last state,
    replaced by that of the initial one. d_gates ``(rows, 3H)``: d_a_r, d_a_z, d_a_n of each row,
    the gradient of W_ih x + b_ih. d_products ``(rows, 3H)``: d_a_r, d_a_z, d_hn, that
    of W_hh h + b_hh.
    """
    batch, units = d_h.shape
    one = d_h.dtype.type(1)
    live = np.empty(batch, np.bool_)
    for s in range(len(steps.offsets) - 1, -1, -1):
        t = visit(steps, s, live)
        first = steps.offsets[t]
        for b in range(batch):
            if live[b]:
                row = first + b
                for j in range(units):
                    r, z = saved[row, j], saved[row, units + j]
                    hn, n = saved[row, 2 * units + j], saved[row, 3 * units + j]
                    d_new = d_h[b, j] + d_y[row, column + j]
                    d_a_n = d_new * (one - z) * (one - n * n)
                    d_a_r = d_a_n * hn * r * (one - r)
                    d_a_z = d_new * (h_in[row, j] - n) * z * (one - z)
                    d_gates[row, j] = d_products[row, j] = d_a_r
                    d_gates[row, units + j] = d_products[row, units + j] = d_a_z
                    d_gates[row, 2 * units + j] = d_a_n
                    d_products[row, 2 * units + j] = d_a_n * r
                    d_h[b, j] = d_new * z
        add_product(d_h, d_products[first : first + batch], w_hh, live)
        drop_at_reset(steps, t, live, d_h)


@kernel
def gru_reset_before_forward(
    steps: Steps, x_part: Array, w_rz_t: Array, w_n_t: Array, h: Array, y: Array, column: int,
    saved: Array,
) -> None:  # fmt: skip
    """As ``gru_forward``, but ``n = tanh(x_part_n + W_hn (r h))``.

    x_part ``(rows, 3H)``: W_ih x and all biases. w_rz_t ``(H, 2H)``, w_n_t ``(H, H)``: the parts of
    W_hh^T. saved ``(rows, 3H)``: r, z, n, or (0, 0).
    """
    batch, units = h.shape
    one = h.dtype.type(1)
    live = np.empty(batch, np.bool_)
    rz = np.empty((batch, 2 * units), h.dtype)
    kept, pre_n = np.empty_like(h), np.empty_like(h)
    for s in range(len(steps.offsets)):
        t = visit(steps, s, live)
        drop_at_reset(steps, t, live, h)
        set_product(rz, h, w_rz_t, live)
        for b in range(batch):
            if live[b]:
                for j in range(2 * units):
                    rz[b, j] = sigmoid(x_part[steps.offsets[t] + b, j] + rz[b, j])
                for j in range(units):
                    kept[b, j] = rz[b, j] * h[b, j]
        set_product(pre_n, kept, w_n_t, live)
        for b in range(batch):
            if live[b]:
                row = steps.offsets[t] + b
                for j in range(units):
                    z = rz[b, units + j]
                    n = tanh(x_part[row, 2 * units + j] + pre_n[b, j])
                    h[b, j] = (one - z) * n + z * h[b, j]
                    y[row, column + j] = h[b, j]
                    if len(saved):
                        saved[row, j], saved[row, units + j] = rz[b, j], z
                        saved[row, 2 * units + j] = n


@kernel
def gru_reset_before_backward(
    steps: Steps, w_rz: Array, w_n: Array, saved: Array, h_in: Array, d_y: Array, column: int,
    d_h: Array, d_gates: Array,
) -> None:  # fmt: skip
    """As ``gru_backward`` but for n: with ``k = r h``, ``a_n = x_part_n + W_hn k``.

    ``d_k = W_hn^T d_a_n``, ``d_r = d_k h``, ``d_h = d_h' z + d_k r + W_rz^T (d_a_r, d_a_z)``.

    w_rz ``(2H, H)`` and w_n ``(H, H)``: the parts of W_hh. d_gates ``(rows, 3H)``: d_a_r, d_a_z,
    d_a_n of each row. The rest as in ``gru_backward``.
    """
    batch, units = d_h.shape
    one = d_h.dtype.type(1)
    live = np.empty(batch, np.bool_)
    d_n, d_kept = np.empty_like(d_h), np.empty_like(d_h)
    d_rz = np.empty((batch, 2 * units), d_h.dtype)
    for s in range(len(steps.offsets) - 1, -1, -1):
        t = visit(steps, s, live)
        first = steps.offsets[t]
        for b in range(batch):
            if live[b]:
                row = first + b
                for j in range(units):
                    z, n = saved[row, units + j], saved[row, 2 * units + j]
                    d_new = d_h[b, j] + d_y[row, column + j]
                    d_n[b, j] = d_new * (one - z) * (one - n * n)
                    d_rz[b, units + j] = d_new * (h_in[row, j] - n) * z * (one - z)
                    d_h[b, j] = d_new * z
        set_product(d_kept, d_n, w_n, live)
        for b in range(batch):
            if live[b]:
                for j in range(units):
                    r, d_k = saved[first + b, j], d_kept[b, j]
                    d_rz[b, j] = d_k * h_in[first + b, j] * r * (one - r)
                    d_h[b, j] += d_k * r
                d_gates[first + b, : 2 * units] = d_rz[b, :]
                d_gates[first + b, 2 * units :] = d_n[b, :]
        add_product(d_h, d_rz, w_rz, live)
        drop_at_reset(steps, t, live, d_h)
