# SPDX-License-Identifier: Apache-2.0
"""Wall-clock times of alternatives, taken in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping

# A contender slower than this many times the fastest is timed less often.
SLOW = 4.0


def medians(
    contenders: Mapping[str, Callable[[], object]],
    seconds: float,
    rounds: tuple[int, int] = (5, 500),
) -> dict[str, float]:
    """Median seconds of a call of each contender.

    They are called in turn, one call each a round, so that whatever else the machine does hits all
    of them, and each finds the caches as the others leave them. The rounds take about `seconds`
    altogether, but there are at least rounds[0] and at most rounds[1]. A contender much slower
    than the fastest is called in rounds[0] of them only.
    """
    first = {}
    for name, call in contenders.items():
        call()  # warms up: threads, code, allocator
        first[name] = _seconds(call)
    fastest = min(first.values())
    slow = {name for name, t in first.items() if t > SLOW * fastest}
    quick_round = sum(t for name, t in first.items() if name not in slow)
    left = seconds - rounds[0] * sum(first[name] for name in slow)
    count = min(max(rounds[0], int(left / quick_round)), rounds[1])

    times: dict[str, list[float]] = {name: [] for name in contenders}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for i in range(count):
            # Going round the other way every second time: nobody always follows the same one.
            for name in contenders if i % 2 else reversed(list(contenders)):
                if name not in slow or i < rounds[0]:
                    times[name].append(_seconds(contenders[name]))
    finally:
        if enabled:
            gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
