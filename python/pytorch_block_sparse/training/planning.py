# SPDX-License-Identifier: Apache-2.0
"""What a method wants at a step: how many blocks each layer stores then, and which move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .config import PatternConfig
from .layers import GovernedLayer
from .methods import SNFS, GroupGrowth
from .selection import Candidates, Change, choose, shares


def growth_scores(
    config: PatternConfig,
    layers: Sequence[GovernedLayer],
    norms: Sequence[Tensor] | None,
    generator: torch.Generator,
) -> list[Tensor] | None:
    """(R, C) for each layer: how much each place promises; None where nothing grows.

    Args:
        config: the method.
        layers: in order.
        norms: (R, C) gradient norms of each, on the CPU, or their averages, if it looks at them.
        generator: for what is drawn.
    """
    if config.growth == "none":
        return None
    if config.growth == "random":
        return [
            torch.rand(
                layer.first_mask.shape, generator=generator, dtype=torch.float64, device="cpu"
            )
            for layer in layers
        ]
    assert norms is not None
    if isinstance(config, GroupGrowth):
        return [
            norm * (1 + config.attraction * use_by_group(layer.mask, config))
            for layer, norm in zip(layers, norms, strict=True)
        ]
    return list(norms)


def use_by_group(mask: Tensor, config: GroupGrowth) -> Tensor:
    """(R, C): the share of the block rows of its group that store a block in the same column."""
    used = mask.float()
    group = torch.arange(mask.shape[0], device="cpu") // config.group
    sums = used.new_zeros(int(group[-1]) + 1, mask.shape[1]).index_add(0, group, used)
    return (sums / group.bincount()[:, None])[group]


def plan(
    config: PatternConfig,
    layers: Sequence[GovernedLayer],
    keep: Sequence[Tensor],
    grow: Sequence[Tensor] | None,
    step: int,
) -> list[Change]:
    """The change of each layer at a step.

    Args:
        config: the method.
        layers: in order.
        keep: (n,) how much the stored blocks of each matter.
        grow: see `growth_scores`.
        step: which it is.
    """
    candidates = [
        Candidates(
            keep=keep[i],
            stored=layer.mask,
            slots=layer.matrix.slots,
            grow=None if grow is None else grow[i],
            may_return=config.growth not in ("none", "random"),
        )
        for i, layer in enumerate(layers)
    ]
    share = config.moving_share(step)
    targets = [config.count_at(layer.first_count, layer.last_count, step) for layer in layers]
    if isinstance(config, SNFS) and config.budget == "global":
        return _redistributed(candidates, share)
    if config.budget == "global":
        stored = sum(one.keep.numel() for one in candidates)
        return choose(candidates, sum(targets), int(share * stored))
    return [
        choose([one], target, int(share * one.keep.numel()))[0]
        for one, target in zip(candidates, targets, strict=True)
    ]


def _redistributed(candidates: Sequence[Candidates], share: float) -> list[Change]:
    """Each layer drops that share of its blocks; what is grown is shared out in proportion to the
    average of the norms where blocks are stored."""
    stored = [one.keep.numel() for one in candidates]
    kept = [n - min(int(share * n), n - 1) for n in stored]
    room = [min(one.slots, one.stored.numel()) for one in candidates]
    weights = [
        0.0 if one.grow is None else float(one.grow[one.stored].mean()) for one in candidates
    ]
    free = [limit - n for limit, n in zip(room, kept, strict=True)]
    grown = shares(weights, free, sum(stored) - sum(kept))
    return [
        choose([one], k + g, min(n - k, g))[0]
        for one, n, k, g in zip(candidates, stored, kept, grown, strict=True)
    ]
