# SPDX-License-Identifier: Apache-2.0
"""What growth in groups gains in speed: `python -m benchmarks.quality.groups [--device cuda]`.

Two layers learn the same dense teacher from the same random pattern, one by RigL and one by
GroupGrowth. Then their three products are timed in turn; the patterns have as many blocks, and
those of the second use fewer different block columns in a group of block rows.
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

from pytorch_block_sparse import BlockSparseLinear
from pytorch_block_sparse.training import GroupGrowth, PatternConfig, PatternTrainer, RigL

ATTRACTIONS = (2.0,)
IN, OUT, UPDATES, ROUNDS = 1024, 4096, 60, 15
TOKENS = {"cpu": 1024, "cuda": 8192}


def grown(config: PatternConfig, density: float, block: int, device: str) -> BlockSparseLinear:
    """A layer whose pattern a method has grown, and its loss against a dense teacher."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    options: dict[str, Any] = {"bias": False, "density": density, "block_shape": block}
    layer = BlockSparseLinear(IN, OUT, **options, generator=generator).to(device)
    teacher = torch.randn(OUT, IN, generator=generator).to(device) / IN**0.5
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    trainer = PatternTrainer(layer, optimizer, config)
    for _ in range(config.end):
        x = torch.randn(256, IN, generator=generator).to(device)
        nn.functional.mse_loss(layer(x), x @ teacher.T).backward()
        optimizer.step()
        trainer.step()
        optimizer.zero_grad()
    return layer


def columns(layer: BlockSparseLinear, group: int = 4) -> float:
    """How many different block columns a group of block rows uses, on average."""
    mask = layer.weight.block_mask_build().cpu()
    return float(mask.view(-1, group, mask.shape[1]).any(1).sum(1).double().mean())


def products(layer: BlockSparseLinear, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
    """A step forward and backward."""
    layer = layer.to(dtype)
    x = torch.randn(TOKENS[device], IN, device=device, dtype=dtype, requires_grad=True)
    dy = torch.randn(TOKENS[device], OUT, device=device, dtype=dtype)

    def step() -> Tensor:
        layer.weight.values.grad = x.grad = None
        y: Tensor = layer(x)
        y.backward(dy)
        return y

    return step


def timed(step: Callable[[], Tensor], device: str) -> float:
    """Milliseconds of a step."""
    repeats = 20 if device == "cuda" else 2
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter() if device == "cuda" else time.process_time()
    for _ in range(repeats):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    end = time.perf_counter() if device == "cuda" else time.process_time()
    return 1e3 * (end - start) / repeats


def measure(density: float, block: int, device: str) -> list[dict[str, Any]]:
    """RigL first, then the groups."""
    rhythm: dict[str, Any] = {"update_every": 1, "end": UPDATES}
    configs: list[PatternConfig] = [RigL(**rhythm)]
    configs += [GroupGrowth(**rhythm, attraction=attraction) for attraction in ATTRACTIONS]
    layers = [grown(config, density, block, device) for config in configs]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    steps = [products(layer, dtype, device) for layer in layers]
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(ROUNDS):
        for step, found in zip(steps, times, strict=True):
            found.append(timed(step, device))
    return [
        {
            "method": type(config).__name__,
            "attraction": getattr(config, "attraction", 0.0),
            "density": density,
            "block": block,
            "columns_of_4_rows": columns(layer),
            "step_ms": statistics.median(found),
            "speed": statistics.median(times[0]) / statistics.median(found),
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        }
        for config, layer, found in zip(configs, layers, times, strict=True)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    for density in (0.1, 0.25):
        for block in (16, 32):
            for line in measure(density, block, device):
                print(json.dumps(line), flush=True)
