# SPDX-License-Identifier: Apache-2.0
"""A first pattern that is a smaller dense model inside of the wide one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.quality.model import Size
from pytorch_block_sparse.pattern import block_count_of


def core_masks(size: Size, density: float, block: int) -> Mapping[str, Tensor]:
    """Layer -> (R, C) bool: each layer reads from and writes to the same few blocks of the residual
    stream, about sqrt(density) of them, and is dense between these and as few blocks inside.

    A random pattern of 32 x 32 blocks at density .1 shows a block of features 1.6 of 16 blocks of
    its input; here a feature that is connected at all sees a whole small model.
    """
    width, hidden = size.width // block, size.hidden // block
    stream = max(1, round(math.sqrt(density) * width))
    per_head = width // math.gcd(width, size.heads)
    # One block of each head, then the next of each.
    inside = [i for first in range(per_head) for i in range(first, width, per_head)]
    qkv = [part * width + i for i in inside for part in range(3)]
    masks = {}
    for layer in range(size.layers):
        for name, order, total, reads in (
            ("attention_in", qkv, 3 * width, True),
            ("attention_out", inside, width, False),
            ("mlp_in", list(range(hidden)), hidden, True),
            ("mlp_out", list(range(hidden)), hidden, False),
        ):
            grid = (total, width) if reads else (width, total)
            count = block_count_of(density, grid)
            seen = max(stream, -(-count // total))
            places = [(i, j) for i in order for j in range(seen)][:count]
            mask = torch.zeros(total, width, dtype=torch.bool)
            mask[tuple(torch.tensor(places).T)] = True
            masks[f"blocks.{layer}.{name}"] = mask if reads else mask.T.contiguous()
    return masks
