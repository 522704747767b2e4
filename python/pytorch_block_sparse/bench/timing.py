# SPDX-License-Identifier: Apache-2.0
"""Times of alternatives, taken in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import torch

Call = Callable[[int], object]

# A contender slower than this many times the fastest is timed less often.
SLOW = 4.0
# One launch of a graph shall take so long that what begins and ends it does not count.
GRAPH_SECONDS = 4e-3
GRAPH_CALLS = 200
GRAPH_ROUNDS = (5, 50)


def medians(
    contenders: Mapping[str, Call],
    seconds: float,
    rounds: tuple[int, int] = (5, 500),
) -> dict[str, float]:
    """Median seconds, by the clock of the host, of a call of each contender.

    They are called in turn, one call each a round, so that whatever else the machine does hits all
    of them, and each finds the caches as the others leave them. The rounds take about `seconds`
    altogether, but there are at least rounds[0] and at most rounds[1]. A contender much slower
    than the fastest is called in rounds[0] of them only.
    """
    first = {}
    for name, call in contenders.items():
        call(0)  # warms up: threads, code, allocator
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
        for i, name in _turns(contenders, count):
            if name not in slow or i < rounds[0]:
                times[name].append(_seconds(contenders[name]))
    finally:
        if enabled:
            gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def graph_medians(
    contenders: Mapping[str, Call], seconds: float, sets: int
) -> tuple[dict[str, float], list[str]]:
    """Median seconds of a call of each contender on the current GPU, without the host's part.

    Of each a CUDA graph of up to 200 calls is captured, with the `sets` operands in turn and as
    many results alive, so that caches are as cold as between the layers of a model. The graphs run
    in turn, for about `seconds` altogether.

    Returns:
        The times, and the names of those that could not be captured: they were launched one by one,
        and their times contain what of the host's part the GPU waits for.
    """
    runs: dict[str, tuple[Callable[[], None], int]] = {}
    eager = []
    for name, call in contenders.items():
        once = _warm_up(call, sets)
        calls = int(min(max(GRAPH_SECONDS / once, 1), GRAPH_CALLS))
        try:
            runs[name] = _captured(call, calls, sets), calls
        except RuntimeError:
            torch.cuda.synchronize()
            eager.append(name)
            runs[name] = _launched(call, calls, sets), calls
    first = {name: _event_seconds(run) for name, (run, _) in runs.items()}
    count = int(min(max(seconds / sum(first.values()), GRAPH_ROUNDS[0]), GRAPH_ROUNDS[1]))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _, name in _turns(runs, count):
        run, calls = runs[name]
        times[name].append(_event_seconds(run) / calls)
    return {name: statistics.median(values) for name, values in times.items()}, eager


def _turns(names: Mapping[str, object], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, name), going the other way every second time: nobody always follows the same one."""
    for i in range(rounds):
        for name in names if i % 2 else reversed(list(names)):
            yield i, name


def _seconds(call: Call) -> float:
    begin = time.perf_counter()
    call(0)
    return time.perf_counter() - begin


def _event_seconds(run: Callable[[], None]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3


def _warm_up(call: Call, sets: int) -> float:
    """Compiles and allocates what there is to be, on another stream, as capturing asks for; the
    seconds that a call took then."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(3):
            call(i % sets)
        seconds = _event_seconds(lambda: (call(0), None)[1])
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    return seconds


def _captured(call: Call, calls: int, sets: int) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    results: deque[object] = deque(maxlen=sets)
    with torch.cuda.graph(graph):
        for i in range(calls):
            results.append(call(i % sets))
    graph.replay()
    return graph.replay


def _launched(call: Call, calls: int, sets: int) -> Callable[[], None]:
    def run() -> None:
        for i in range(calls):
            call(i % sets)

    return run
