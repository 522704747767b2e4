# SPDX-License-Identifier: Apache-2.0
"""Even and uneven patterns with the same number of blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pattern import draw_pattern

PATTERNS = ("even", "power-law", "one-full-row")
EMPTY_ROWS = 1 / 16
"""Share of block rows that "power-law" leaves empty, where the other rows have the room."""


def draw(pattern: str, grid: tuple[int, int], count: int, generator: torch.Generator) -> Tensor:
    """A boolean mask (R, C) with exactly `count` blocks, on the CPU.

    - "even": any places, all choices equally likely.
    - "power-law": the rows, in random order, get shares that fall as 1, 1/2, 1/3, … as far as
      there are columns; one row in sixteen stays empty.
    - "one-full-row": a row in the middle has every block, the others are as in "even".
    """
    rows, cols = grid
    if pattern == "even":
        return draw_pattern("random", grid, count, generator)
    counts = torch.zeros(rows, dtype=torch.long, device="cpu")
    if pattern == "power-law":
        used = max(-(-count // cols), rows - max(1, int(EMPTY_ROWS * rows)))
        chosen = torch.randperm(rows, generator=generator, device="cpu")[:used]
        counts[chosen] = _power_law(used, cols, count)
        mask = torch.zeros(grid, dtype=torch.bool, device="cpu")
        for row, n in enumerate(counts.tolist()):
            mask[row, torch.randperm(cols, generator=generator, device="cpu")[:n]] = True
        return mask
    full = min(cols, count)
    others = [row for row in range(rows) if row != rows // 2]
    mask = torch.zeros(grid, dtype=torch.bool, device="cpu")
    mask[rows // 2, :full] = True
    if count > full:
        mask[others] = draw_pattern("random", (rows - 1, cols), count - full, generator)
    return mask


def _power_law(rows: int, most: int, count: int) -> Tensor:
    """(rows,) counts that fall as 1/rank, at most `most` each, of sum `count`."""
    shares = 1 / torch.arange(1, rows + 1, dtype=torch.float64, device="cpu")
    counts = torch.zeros(rows, dtype=torch.long, device="cpu")
    # What exceeds a full row goes to those that are not full, by the same law.
    while (left := count - int(counts.sum())) > 0:
        open_rows = counts < most
        weights = shares * open_rows
        more = (left * weights / weights.sum()).floor().long()
        if not int(more.sum()):
            more[open_rows.nonzero().flatten()[:left]] = 1
        counts = (counts + more).clamp(max=most)
    return counts
