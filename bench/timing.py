"""Two calls timed side by side."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

#: A sample of a short call repeats it until it lasts this long: a clock reading and one
#: interruption then weigh little.
SAMPLE_SECONDS = 1e-3
MIN_PAIRS = 5
MAX_PAIRS = 400

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call, medians over the samples, and how the two calls compare.

    ratio: median over the pairs of ``theirs / ours``, taken pair by pair, so that a slow moment of
    the machine, which meets both samples of a pair, cancels. spread: half the distance between
    the quartiles of those ratios.
    """

    ours: float
    theirs: float
    ratio: float
    spread: float
    pairs: int
    calls_per_sample: int


def _sample(call: Call, calls: int) -> float:
    """Seconds per call over so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def _warm_up(call: Call, seconds: float) -> float:
    """Call until ``seconds`` are over, at least twice; returns the shortest call."""
    shortest = float("inf")
    end = time.perf_counter() + seconds
    calls = 0
    while calls < 2 or time.perf_counter() < end:
        shortest = min(shortest, _sample(call, 1))
        calls += 1
    return shortest


def compare(ours: Call, theirs: Call, seconds: float) -> Timing:
    """Time two calls in turn, A B B A A B ..., for about ``seconds`` after a warm-up of a tenth.

    The order changes from pair to pair, so that neither always finds the caches as the other left
    them. Python's garbage collector is off meanwhile.
    """
    shortest = min(_warm_up(ours, seconds / 20), _warm_up(theirs, seconds / 20))
    calls = max(1, round(SAMPLE_SECONDS / shortest))
    pairs: list[tuple[float, float]] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while len(pairs) < MIN_PAIRS or (time.perf_counter() < end and len(pairs) < MAX_PAIRS):
            if len(pairs) % 2:
                b = _sample(theirs, calls)
                pairs.append((_sample(ours, calls), b))
            else:
                a = _sample(ours, calls)
                pairs.append((a, _sample(theirs, calls)))
    finally:
        if collecting:
            gc.enable()
    ratios = [b / a for a, b in pairs]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Timing(
        ours=statistics.median(a for a, _ in pairs),
        theirs=statistics.median(b for _, b in pairs),
        ratio=statistics.median(ratios),
        spread=(high - low) / 2,
        pairs=len(pairs),
        calls_per_sample=calls,
    )
