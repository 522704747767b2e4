# SPDX-License-Identifier: Apache-2.0
"""Many runs, one after another or several at a time, within a time."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.quality.results import metric_of
from benchmarks.quality.run import Run, train


def train_all(
    runs: Iterable[Run],
    device: str,
    folder: Path,
    checkpoint_every: int,
    packed: int,
    deadline: float,
) -> None:
    """One after another, as long as the next one may fit before the deadline: if it takes no longer
    than the shortest so far."""
    shortest = 0.0
    for run in runs:
        start = time.monotonic()
        if start + shortest > deadline:
            continue
        try:
            found = train(run, device, folder, checkpoint_every, packed=packed, deadline=deadline)
        except Exception:
            traceback.print_exc()
            continue
        took = time.monotonic() - start
        if found is not None:
            shortest = min(shortest or took, took)
            print(f"{run.name}: {found[metric_of(found)]:.3f} in {took:.0f} s", flush=True)


def train_packed(
    runs: list[Run], device: str, folder: Path, every: int, packed: int, end: float
) -> None:
    """Processes that each take the next run from a queue."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    for item in [*runs, *[None] * packed]:
        queue.put(item)
    work = (queue, device, folder, every, packed, end)
    processes = [context.Process(target=_take, args=work) for _ in range(packed)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _take(queue: Any, *work: Any) -> None:
    train_all(iter(queue.get, None), *work)
