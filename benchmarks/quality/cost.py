# SPDX-License-Identifier: Apache-2.0
"""What an update of the pattern costs beside a step: `python -m benchmarks.quality.cost`.

On the CPU processor time of one thread, so that other work on the machine hardly counts. On a GPU
(`--device cuda`) time until the device is done, for the decoder that is trained there, and how much
more memory the step before an update takes at its peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quality.run import Run, make, task_of
from pytorch_block_sparse import BlockSparseLinear
from pytorch_block_sparse.training import SET, PatternConfig, PatternTrainer, RigL

DENSITY, EVERY, STEPS, SKIPPED = 0.1, 4, 40, 12
WIDTH, HIDDEN, TOKENS = 512, 2048, 2048


def four_layers() -> tuple[nn.Module, Callable[[], Tensor]]:
    """On the CPU, and the loss of a step."""
    shapes = [(WIDTH, HIDDEN), (HIDDEN, WIDTH)] * 2
    model = nn.Sequential(*(BlockSparseLinear(*shape, density=DENSITY) for shape in shapes))
    x = torch.randn(TOKENS, WIDTH)
    return model, lambda: model(x).square().mean()


def decoder() -> tuple[nn.Module, Callable[[], Tensor]]:
    """On the GPU, and the loss of a step."""
    run = Run("static", DENSITY)
    task = task_of(run, "cuda")
    model, _ = make(run, task)

    def loss() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return task.loss(model, 0, 0)

    return model, loss


def measure(config: PatternConfig, device: str) -> dict[str, Any]:
    """Medians of a step, and of one with an update."""
    torch.manual_seed(0)
    cuda = device == "cuda"
    model, loss = decoder() if cuda else four_layers()
    clock = time.perf_counter if cuda else time.process_time
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    trainer = PatternTrainer(model, optimizer, config)
    times: dict[bool, list[float]] = {False: [], True: []}
    peaks = {False: 0, True: 0}
    for step in range(STEPS):
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = clock()
        loss().backward()
        optimizer.step()
        updated = trainer.step() is not None
        optimizer.zero_grad()
        if cuda:
            torch.cuda.synchronize()
        if step >= SKIPPED:
            times[updated].append(1e3 * (clock() - start))
            if cuda:
                peaks[updated] = max(peaks[updated], torch.cuda.max_memory_allocated())
    plain, updating = (statistics.median(times[updated]) for updated in (False, True))
    return {
        "method": type(config).__name__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "step_ms": plain,
        "step_with_update_ms": updating,
        "added_percent_at_100": updating / plain - 1,
        "more_memory_mb": (peaks[True] - peaks[False]) / 2**20,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    for config in (
        SET(update_every=EVERY, end=STEPS, decay="constant"),
        RigL(update_every=EVERY, end=STEPS, decay="constant"),
    ):
        print(json.dumps(measure(config, device)))
