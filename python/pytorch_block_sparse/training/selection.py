# SPDX-License-Identifier: Apache-2.0
"""Which blocks go and where others come: pure functions on the CPU.

All rankings are stable and all ties fall to the lower index, so that the same scores give the same
pattern on every rank and every machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass
class Candidates:
    """What is known of one layer when blocks are chosen.

    Attributes:
        keep: (n,) how much each stored block matters, in stored order.
        stored: (R, C) bool.
        slots: room for blocks.
        grow: (R, C) how much a place promises; None where nothing grows.
        may_return: whether a block that is dropped may be chosen again, in which case it stays.
    """

    keep: Tensor
    stored: Tensor
    slots: int
    grow: Tensor | None = None
    may_return: bool = False


@dataclasses.dataclass
class Change:
    """What becomes of one layer.

    Attributes:
        drop: (k,) int64, in stored order, ascending.
        rows, cols: (g,) int64, places that were free.
    """

    drop: Tensor
    rows: Tensor
    cols: Tensor


def choose(layers: Sequence[Candidates], count: int, moving: int) -> list[Change]:
    """The changes after which the layers together store `count` blocks.

    So many of the least blocks go that, with `moving` blocks grown beyond what the count asks for,
    the count is met; where there are not that many places to grow, fewer move. With more than one
    layer they compete, but each keeps its best block.

    Raises:
        ValueError: if there is no room for that many blocks.
    """
    room = sum(min(layer.slots, layer.stored.numel()) for layer in layers)
    if not len(layers) <= count <= room:
        raise ValueError(f"{count} blocks for {len(layers)} layers with room for {room} in all")
    keep = torch.cat([layer.keep for layer in layers]).double()
    bounds = [0]
    for layer in layers:
        bounds.append(bounds[-1] + layer.keep.numel())
    if len(layers) > 1:
        keep = keep.clone()
        for start, end in itertools.pairwise(bounds):
            keep[start + int(keep[start:end].argmax())] = math.inf
    order = keep.argsort(stable=True)
    stored = keep.numel()
    if all(layer.grow is None for layer in layers):
        moving = 0
    fewer = max(0, stored - count)
    moving = min(moving, stored - fewer - (len(layers) > 1) * len(layers))
    while moving >= 0:
        dropped = fewer + moving
        gone = torch.zeros(stored, dtype=torch.bool, device="cpu")
        gone[order[:dropped]] = True
        going = [gone[start:end] for start, end in itertools.pairwise(bounds)]
        wanted = count - stored + dropped
        grown = _places(layers, going, wanted)
        missing = wanted - sum(flat.numel() for flat in grown)
        if not missing:
            return [_change(*one) for one in zip(layers, going, grown, strict=True)]
        moving -= missing
    raise ValueError(f"{count} blocks, of {stored}, for layers where none may grow")


def _places(layers: Sequence[Candidates], going: Sequence[Tensor], wanted: int) -> list[Tensor]:
    """The `wanted` most promising places, flat (g,) for each layer; fewer if there are not so
    many."""
    flats, scores, owners = [], [], []
    for i, (layer, gone) in enumerate(zip(layers, going, strict=True)):
        if layer.grow is None:
            continue
        free = ~layer.stored.flatten()
        if layer.may_return:
            free[layer.stored.flatten().nonzero().flatten()[gone]] = True
        room = layer.slots - layer.keep.numel() + int(gone.sum())
        flat = free.nonzero().flatten()
        promise = layer.grow.flatten()[flat].double()
        best = promise.argsort(descending=True, stable=True)[: min(room, wanted)]
        flats.append(flat[best])
        scores.append(promise[best])
        owners.append(torch.full_like(best, i))
    if not flats:
        return [torch.empty(0, dtype=torch.int64, device="cpu") for _ in layers]
    flat, owner = torch.cat(flats), torch.cat(owners)
    top = torch.cat(scores).argsort(descending=True, stable=True)[:wanted]
    return [flat[top][owner[top] == i] for i in range(len(layers))]


def _change(layer: Candidates, gone: Tensor, grown: Tensor) -> Change:
    """Without the blocks that would go and come back."""
    stored = layer.stored.flatten()
    coming = torch.zeros_like(stored)
    coming[grown] = True
    new = (coming & ~stored).nonzero().flatten()
    cols = layer.stored.shape[1]
    return Change((gone & ~coming[stored]).nonzero().flatten(), new // cols, new % cols)


def shares(weights: Sequence[float], limits: Sequence[int], total: int) -> list[int]:
    """`total` things shared out in proportion to weights, at most `limits` each, by largest
    remainder; what does not fit into one goes to the others in proportion."""
    if total > sum(limits):
        raise ValueError(f"{total} to share out, expected at most {sum(limits)}")
    full: set[int] = set()
    while True:
        open_ = [i for i in range(len(limits)) if i not in full]
        left = total - sum(limits[i] for i in full)
        sum_ = sum(weights[i] for i in open_)
        even = 1 / max(1, len(open_))
        wanted = {i: left * (weights[i] / sum_ if sum_ > 0 else even) for i in open_}
        # What is full only leaves more to the others, so it stays so.
        exceeding = {i for i in open_ if wanted[i] > limits[i]}
        if not exceeding:
            break
        full |= exceeding
    given = [limits[i] if i in full else int(wanted[i]) for i in range(len(limits))]
    by_remainder = sorted(
        (i for i in open_ if given[i] < limits[i]), key=lambda i: given[i] - wanted[i]
    )
    for i in by_remainder[: total - sum(given)]:
        given[i] += 1
    return given
