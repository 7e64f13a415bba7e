"""The one rule of tolerances, and the comparison that uses it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Rounding errors scatter, and both sides of a comparison have their own. Over all cases of the
#: suite the largest error of each kind is a quarter to three quarters of the bound (the summary
#: at the end of a session shows it), which leaves room for machines that sum in another order.
SAFETY = 4.0


def tolerance(
    dtype: torch.dtype,
    steps: int,
    fan_in: int,
    *,
    rows: int = 1,
    storage: torch.dtype | None = None,
) -> dict[str, float]:
    """``rtol`` and ``atol`` for results of recurrent layers with values of order 1.

    Meant for inputs, states and upstream gradients ~ N(0, 1) and weights that keep a preactivation
    of order 1, uniform in ``+-1/sqrt(H)`` or less. With u the unit roundoff of dtype:

    * A dot product of K = ``fan_in`` terms of order ``1/sqrt(K)`` has an error of about
      ``u sqrt(K)`` whatever the order of its sum: each of K roundings is u times a partial sum
      of order 1, signs are random, so they add like a random walk (the worst case, K u, needs all
      of one sign). Activations add a few u, which the safety factor covers.
    * Over steps the error does not pile up: such weights make the recurrence contract, so an error
      fades as the state it sits in. What grows is the number of results, and the largest of n
      normal errors is about ``sqrt(2 ln n)`` standard deviations: hence ``sqrt(1 + ln steps)``.
    * Gradients of x and of the initial state are such dot products too, with K the number of gate
      values of a step.
    * The gradient of a weight or bias is a sum over ``rows`` = T * B terms of order 1. Each brings
      its own error, ``sqrt(rows)`` times the above in all; and a sum taken row after row rounds at
      partial sums of order ``sqrt(k)``, k = 1 ... rows, which add to ``u rows / sqrt(2)``. torch's
      own sums over a batch are taken so.

    Where values are stored in a narrower type than that of the arithmetic, with a unit roundoff v:

    * Each h, saved gate and gradient of a preactivation is rounded once, an error of v. In the next
      product such errors meet weights of order ``1/sqrt(K)`` and are independent, so they add to v
      again, whatever K: ``sqrt(K)`` is for roundings of the sum, which are the arithmetic's.
    * Over steps they fade in the same way, hence v times the same growth; in sums over rows each
      term brings its own, hence ``v sqrt(rows)``. Results are rounded once: v as the ``rtol``.

    Args:
        dtype: of the computation with the larger roundoff.
        steps: T times the number of layers.
        fan_in: terms of the longest dot product of a step.
        rows: T * B for the gradient of a weight or bias, else 1.
        storage: dtype of what is kept between the steps and of the results, if another.
    """
    unit = torch.finfo(dtype).eps / 2
    growth = math.sqrt(1 + math.log(max(steps, 1)))
    error = growth * math.sqrt(max(fan_in, 1) * rows)
    if rows > 1:
        error += rows
    if storage is None:
        return {"rtol": SAFETY * unit, "atol": SAFETY * unit * error}
    rounding = torch.finfo(storage).eps / 2
    stored = growth * math.sqrt(rows)
    return {"rtol": SAFETY * rounding, "atol": SAFETY * (unit * error + rounding * stored)}


def error_in_tolerances(actual: Tensor, expected: Tensor, *, rtol: float, atol: float) -> float:
    """Largest error as a multiple of the tolerance: at most 1 is a pass, inf where NaN differs."""
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if not actual.numel():
        return 0.0
    a, e = actual.detach().double(), expected.detach().double()
    same = (a == e) | (a.isnan() & e.isnan())  # infinities and NaN compare by identity
    ratio = torch.where(same, 0.0, (a - e).abs() / (atol + rtol * e.abs()))
    return float(torch.where(ratio.isnan(), math.inf, ratio).max())


@dataclass
class Ledger:
    """The largest error of every kind of comparison of the session, shown at its end."""

    worst: dict[str, tuple[float, str]] = field(default_factory=dict)

    def record(self, kind: str, error: float, where: str) -> None:
        if error >= self.worst.get(kind, (0.0, ""))[0]:
            self.worst[kind] = (error, where)


ledger = Ledger()
