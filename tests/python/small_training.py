# SPDX-License-Identifier: Apache-2.0
"""A small layer or model under pattern training, as many tests need it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from pytorch_block_sparse import BlockSparseLinear
from pytorch_block_sparse.training import PatternConfig, PatternTrainer
from pytorch_block_sparse.training.layers import GovernedLayer, governed


class Training(NamedTuple):
    """What trains."""

    model: Any
    optimizer: torch.optim.Optimizer
    trainer: PatternTrainer


def small_layer(**options: Any) -> BlockSparseLinear:
    """64 x 64 in blocks of 16 x 16, half of them."""
    return BlockSparseLinear(64, 64, **{"block_shape": 16, **options})


def under(config: PatternConfig, model: nn.Module | None = None, **options: Any) -> Training:
    """A model, or a small layer, with SGD and a trainer that takes the options."""
    model = small_layer() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Training(model, optimizer, PatternTrainer(model, optimizer, config, **options))


def governed_one(layer: BlockSparseLinear) -> GovernedLayer:
    """What a trainer makes of a layer."""
    (one,) = governed(nn.Sequential(layer), None, [])
    return one
