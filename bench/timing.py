"""Two calls timed side by side."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

#: A sample of a short call repeats it until it lasts this long: a clock reading and one
#: interruption then weigh little.
SAMPLE_SECONDS = 1e-3
MIN_PAIRS = 5
MAX_PAIRS = 400
#: Blocks that a call in another process gets in turn with ours.
BLOCKS = 6

Call = Callable[[], object]
#: Times something elsewhere for about so many seconds; returns seconds per call.
Block = Callable[[float], float]
#: Times so many calls; returns seconds per call.
Clock = Callable[[Call, int], float]


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


def sample(call: Call, calls: int) -> float:
    """Seconds per call over so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def warm_up(call: Call, seconds: float, clock: Clock = sample) -> float:
    """Call until ``seconds`` are over, at least twice; returns the shortest call."""
    shortest = float("inf")
    end = time.perf_counter() + seconds
    calls = 0
    while calls < 2 or time.perf_counter() < end:
        shortest = min(shortest, clock(call, 1))
        calls += 1
    return shortest


def calls_per_sample(shortest: float, sample_seconds: float = SAMPLE_SECONDS) -> int:
    return max(1, round(sample_seconds / shortest))


def median_call(call: Call, seconds: float, calls: int, clock: Clock = sample) -> float:
    """Median over samples of so many calls for about ``seconds``, at least two."""
    samples: list[float] = []
    with no_garbage_collection():
        end = time.perf_counter() + seconds
        while len(samples) < 2 or time.perf_counter() < end:
            samples.append(clock(call, calls))
    return statistics.median(samples)


def compare(
    ours: Call,
    theirs: Call,
    seconds: float,
    clock: Clock = sample,
    sample_seconds: float = SAMPLE_SECONDS,
) -> Timing:
    """Time two calls in turn, A B B A A B ..., for about ``seconds`` after a warm-up of a tenth.

    The order changes from pair to pair, so that neither always finds the caches as the other left
    them. Python's garbage collector is off meanwhile.

    Args:
        clock: who times; on a GPU events do.
        sample_seconds: that a sample lasts, about.
    """
    shortest = min(warm_up(call, seconds / 20, clock) for call in (ours, theirs))
    calls = calls_per_sample(shortest, sample_seconds)
    pairs: list[tuple[float, float]] = []
    with no_garbage_collection():
        end = time.perf_counter() + seconds
        while len(pairs) < MIN_PAIRS or (time.perf_counter() < end and len(pairs) < MAX_PAIRS):
            if len(pairs) % 2:
                b = clock(theirs, calls)
                pairs.append((clock(ours, calls), b))
            else:
                a = clock(ours, calls)
                pairs.append((a, clock(theirs, calls)))
    return _timing(pairs, calls)


def compare_with_block(ours: Call, theirs: Block, seconds: float) -> Timing:
    """Time ours in turn with a call of another process, in blocks: A B B A A B ...

    Blocks and not calls, because the threads of each process spin for a while after a call: before
    either block the threads of the process before it must have gone to sleep.
    """
    calls = calls_per_sample(warm_up(ours, seconds / 20))
    each = seconds / (2 * BLOCKS)

    def own() -> float:
        warm_up(ours, each / 4)  # its threads have slept
        return median_call(ours, each, calls)

    pairs: list[tuple[float, float]] = []
    for number in range(BLOCKS):
        if number % 2:
            b = theirs(each)
            pairs.append((own(), b))
        else:
            a = own()
            settle()
            pairs.append((a, theirs(each)))
    settle()
    return _timing(pairs, calls)


def settle(longest: float = 0.5) -> None:
    """Wait until the threads of this process, all asleep but this one, use no more time."""
    end = time.perf_counter() + longest
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(2e-3)
        if time.process_time() - used < 3e-4:
            return


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _timing(pairs: list[tuple[float, float]], calls: int) -> Timing:
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
