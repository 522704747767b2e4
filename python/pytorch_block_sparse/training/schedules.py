# SPDX-License-Identifier: Apache-2.0
"""When a pattern changes, by how much, and how many blocks are stored then.

Steps count the steps of the optimizer from 1. A pattern changes at the steps `start + every`,
`start + 2 every`, … up to `end`; what depends on time runs from 0 at `start` to 1 at the last of
them, so that a target is reached exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

Decay = Literal["cosine", "linear", "constant"]


@dataclasses.dataclass(frozen=True)
class Rhythm:
    """The steps at which a pattern changes.

    Attributes:
        every: steps between two changes.
        start: the step that time is counted from; the first change comes `every` later.
        end: no change after this step.
    """

    every: int
    start: int
    end: int

    @property
    def last(self) -> int:
        """The step of the last change; `start` if there is none."""
        return self.start + max(0, (self.end - self.start) // self.every) * self.every

    def includes(self, step: int) -> bool:
        """Whether the pattern changes at a step."""
        return self.start < step <= self.end and (step - self.start) % self.every == 0

    def progress(self, step: int) -> float:
        """Time in [0, 1] at a step."""
        if step >= self.last:
            return 1.0
        return max(0, step - self.start) / (self.last - self.start)

    def until(self, step: int) -> list[int]:
        """The steps of all changes up to `step`."""
        return list(range(self.start + self.every, min(step, self.end) + 1, self.every))


def decayed(fraction: float, decay: Decay, progress: float) -> float:
    """`fraction` at a time in [0, 1]: half a cosine wave or a line down to 0, or constant."""
    if decay == "constant":
        return fraction
    if decay == "linear":
        return fraction * (1 - progress)
    return fraction / 2 * (1 + math.cos(math.pi * progress))


def cubic_count(first: int, last: int, progress: float) -> int:
    """Blocks at a time in [0, 1] on the way from `first` to `last`: fast at the beginning, when
    there is much to choose from.

    Source: Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
    compression", 2017 (arXiv:1710.01878).
    """
    return round(last + (first - last) * (1 - progress) ** 3)


def resize_steps(totals: Sequence[tuple[int, int]], first: int, sizes: int) -> list[int]:
    """At which changes the storage shrinks to what is stored by then.

    The sizes are as near to a geometric sequence as the schedule allows: each resize frees about
    the same share of what there was.

    Args:
        totals: (step, blocks then) of every change, in order, never growing.
        first: blocks at the beginning.
        sizes: how many sizes there may be, the first included.

    Returns:
        At most `sizes - 1` steps, in order. The last is where the final count is reached, unless
        no change frees a block or no resize is allowed.
    """
    if not totals or totals[-1][1] >= first or sizes < 2:
        return []
    last = totals[-1][1]
    steps = []
    for k in range(1, sizes):
        limit = last if k == sizes - 1 else first * (last / first) ** (k / (sizes - 1))
        step = next(step for step, total in totals if total <= limit)
        if step not in steps:
            steps.append(step)
    return steps
