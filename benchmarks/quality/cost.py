# SPDX-License-Identifier: Apache-2.0
"""What an update of the pattern costs beside a step: `python -m benchmarks.quality.cost`.

Processor time of one thread on the CPU, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from pytorch_block_sparse import BlockSparseLinear
from pytorch_block_sparse.training import SET, PatternConfig, PatternTrainer, RigL

WIDTH, HIDDEN, TOKENS, DENSITY, STEPS, SKIPPED = 512, 2048, 2048, 0.1, 20, 4


def measure(config: PatternConfig) -> tuple[float, float]:
    """Median milliseconds of a step, and of one with an update."""
    torch.manual_seed(0)
    shapes = [(WIDTH, HIDDEN), (HIDDEN, WIDTH)] * 2
    model = nn.Sequential(*(BlockSparseLinear(*shape, density=DENSITY) for shape in shapes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    trainer = PatternTrainer(model, optimizer, config)
    x = torch.randn(TOKENS, WIDTH)
    times: dict[bool, list[float]] = {False: [], True: []}
    for step in range(STEPS):
        start = time.process_time()
        model(x).square().mean().backward()
        optimizer.step()
        update = trainer.step()
        optimizer.zero_grad()
        if step >= SKIPPED:
            times[update is not None].append(1e3 * (time.process_time() - start))
    return statistics.median(times[False]), statistics.median(times[True])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for config in (
        SET(update_every=4, end=STEPS, decay="constant"),
        RigL(update_every=4, end=STEPS, decay="constant"),
    ):
        plain, updating = measure(config)
        print(
            f"{type(config).__name__}: a step {plain:.1f} ms, with an update {updating:.1f} ms, "
            f"an update in 100 steps adds {(updating / plain - 1):.2f}%"
        )
