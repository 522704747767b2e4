# SPDX-License-Identifier: Apache-2.0
"""A planted pattern: students that must find the blocks of a sparse teacher.

The teacher is one or two layers side by side, with blocks at random places; the student sees its
outputs for normal inputs. Blocks of a student that are not the teacher's can do nothing but go to
zero, so a method that learns anything about places finds most of them; chance finds `density`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from helpers import randn
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear
from pytorch_block_sparse.training import PatternConfig, PatternTrainer, PatternUpdate

FEATURES, BLOCK, TOKENS = 128, 8, 64  # 16 x 16 blocks


class Heads(nn.Module):
    """Layers that read the same input."""

    def __init__(self, densities: tuple[float, ...], seed: int, slots: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        self.heads = nn.ModuleList(
            BlockSparseLinear(
                FEATURES,
                FEATURES,
                bias=False,
                density=density,
                block_shape=BLOCK,
                slots=slots,
                generator=generator,
            )
            for density in densities
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self.heads], -1)

    def masks(self) -> Tensor:
        return torch.stack([head.weight.block_mask_build().cpu() for head in self.heads])


@dataclass
class Run:
    """What a student has come to."""

    student: Heads
    trainer: PatternTrainer
    optimizer: torch.optim.Optimizer
    recovered: float  # share of the teacher's blocks that the student stores
    losses: list[float] = field(default_factory=list)
    updates: list[PatternUpdate] = field(default_factory=list)


def batch(seed: int) -> Tensor:
    return randn(TOKENS, FEATURES, dtype=torch.float32, seed=seed)


def train(
    config: PatternConfig,
    steps: int,
    *,
    teacher: tuple[float, ...] = (0.1,),
    student: tuple[float, ...] = (0.1,),
    slots: int | None = None,
    seed: int = 0,
    lr: float = 5e-3,
    noise: float = 0.0,
) -> Run:
    target = Heads(teacher, seed=100 + seed)
    model = Heads(student, seed=200 + seed, slots=slots)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    trainer = PatternTrainer(model, optimizer, config)
    run = Run(model, trainer, optimizer, 0.0)
    for step in range(steps):
        x = batch(1000 * seed + step)
        with torch.no_grad():
            y = target(x)
            y += noise * randn(*y.shape, dtype=torch.float32, seed=-1 - step)
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        update = trainer.step()
        if update is not None:
            run.updates.append(update)
        optimizer.zero_grad()
        run.losses.append(float(loss.detach()))
    wanted = target.masks()
    run.recovered = float((model.masks() & wanted).sum() / wanted.sum())
    return run
