# SPDX-License-Identifier: Apache-2.0
"""One run: a model, a method, a density, a seed; resumable, into one JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.quality.model import SIZES, Decoder, Size, Text, bits_per_byte
from pytorch_block_sparse import BlockSparseLinear, BlockSparseMatrix, BlockSparseModelPatcher
from pytorch_block_sparse.training import (
    SET,
    SNFS,
    BLaST,
    GradualMagnitude,
    GroupGrowth,
    MovementPruning,
    PatternConfig,
    PatternTrainer,
    RigL,
    Static,
    TopKAST,
)

LAYERS = r"blocks\.\d+\.(attention|mlp)_(in|out)"
WARMUP, WEIGHT_DECAY, HELD_OUT = 0.05, 0.1, 16


@dataclasses.dataclass(frozen=True)
class Run:
    """What is run."""

    method: str
    density: float = 0.1
    block: int = 32
    seed: int = 0
    steps: int = 2000
    lr: float = 1e-3
    size: str = "gpu"

    @property
    def name(self) -> str:
        """Of its file."""
        return (
            f"{self.method}-d{self.density:g}-b{self.block}-s{self.seed}-{self.steps}-{self.size}"
        )


@dataclasses.dataclass(frozen=True)
class Method:
    """A method, how dense it starts relative to its target (0: fully dense), and with which
    pattern."""

    config: PatternConfig | None
    start: float = 1.0
    pattern: str = "random"
    density_rule: str = "uniform"


def methods(density: float, steps: int) -> dict[str, Method]:
    """All that are compared; None is a dense model."""
    every = max(1, steps // 20)
    move: dict[str, Any] = {"update_every": every, "end": steps * 3 // 4}
    thin: dict[str, Any] = {"update_every": max(1, steps // 40), "end": steps * 7 // 10}
    thin |= {"start": steps // 20, "density": density}
    both: dict[str, Any] = {**thin, "drop_fraction": 0.1}
    return {
        "dense": Method(None),
        "small": Method(None),
        "static": Method(Static()),
        "balanced": Method(Static(), pattern="balanced"),
        "erk": Method(Static(), density_rule="erk"),
        "set": Method(SET(**move)),
        "rigl": Method(RigL(**move)),
        "rigl-balanced": Method(RigL(**move), pattern="balanced"),
        "rigl-global": Method(RigL(**move, budget="global")),
        "snfs": Method(SNFS(**move, norm_every=every)),
        "groups": Method(GroupGrowth(**move)),
        "top-kast": Method(TopKAST(**move), start=2.0),
        "blast": Method(BLaST(**both), start=0),
        # Never more than 1.5 times the target.
        "blast-1.5": Method(BLaST(**{**both, "drop_fraction": 0.3}), start=1.5, pattern="balanced"),
        "gradual": Method(GradualMagnitude(**thin), start=0),
        "gradual-global": Method(GradualMagnitude(**thin, budget="global"), start=0),
        "gradual-1.5": Method(GradualMagnitude(**thin), start=1.5, pattern="balanced"),
        "movement": Method(MovementPruning(**thin), start=0),
    }


def make(run: Run, device: str) -> tuple[nn.Module, PatternConfig | None]:
    """The model of a run, and its method."""
    method = methods(run.density, run.steps)[run.method]
    size = SIZES[run.size]
    torch.manual_seed(run.seed)
    if run.method == "small":
        return Decoder(size.with_weights(target(size, run))).to(device), None
    model = Decoder(size).to(device)
    if method.config is None:
        return model, None
    density = min(1.0, method.start * run.density) if method.start else 1.0
    patcher = BlockSparseModelPatcher()
    options = {"density": density, "block_shape": (run.block, run.block)}
    options |= {"pattern": method.pattern, "density_rule": method.density_rule}
    patcher.add_pattern(LAYERS, options)
    patcher.patch_model(model)
    for layer in model.modules():
        if isinstance(layer, BlockSparseLinear):
            layer.reset_parameters()  # the scale of the inputs that are there
            if run.method in ("rigl-global", "snfs"):  # room to exchange blocks
                layer.weight.resize_slots_(layer.weight.n_blocks * 3 // 2)
    return model, method.config


def target(size: Size, run: Run) -> int:
    """Weights of a sparse model in the end."""
    shapes = [(3 * size.width, size.width), (size.width, size.width)]
    shapes += [(size.hidden, size.width), (size.width, size.hidden)]
    blocks = [math.prod(side // run.block for side in shape) for shape in shapes]
    return size.layers * sum(int(run.density * count) for count in blocks) * run.block**2


def stored(model: nn.Module) -> int:
    """Weights that the linear layers inside of the blocks store."""
    blocks = model.get_submodule("blocks")
    sparse = [m for m in blocks.modules() if isinstance(m, BlockSparseMatrix)]
    dense = [m for m in blocks.modules() if isinstance(m, nn.Linear)]
    return sum(m.stored_weights() for m in sparse) + sum(m.weight.numel() for m in dense)


def rate(run: Run, step: int) -> float:
    """The learning rate: a line up, half a cosine wave down to a tenth."""
    warmup = max(1, int(WARMUP * run.steps))
    if step < warmup:
        return run.lr * (step + 1) / warmup
    time_ = (step - warmup) / max(1, run.steps - warmup)
    return run.lr * (0.55 + 0.45 * math.cos(math.pi * time_))


def train(run: Run, device: str, folder: Path, checkpoint_every: int = 0) -> dict[str, Any]:
    """Trains, or goes on from a checkpoint, and returns what was found."""
    path, saved = folder / f"{run.name}.json", folder / f"{run.name}.pt"
    if path.exists():
        result: dict[str, Any] = json.loads(path.read_text())
        return result
    size, text = SIZES[run.size], Text(device)
    model, config = make(run, device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=run.lr, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True
    )
    trainer = None if config is None else PatternTrainer(model, optimizer, config)
    begin, most, history = 0, stored(model), []
    if saved.exists():
        state = torch.load(saved, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if trainer is not None:
            trainer.load_state_dict(state["trainer"])
        begin, history = state["step"], state["history"]
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    timer = _Timer(device)
    for step in range(begin, run.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(run, step)
        with autocast:
            loss = bits_per_byte(model, text.batch(size, run.seed, step))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update = None if trainer is None else trainer.step()
        if update is not None:
            overall = update.scalars()
            names = ("churn", "density", "drift")
            history.append([update.step, *(overall[f"pattern/{name}"] for name in names)])
        optimizer.zero_grad()
        timer.step(step - begin)
        if checkpoint_every and (step + 1) % checkpoint_every == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"step": step + 1, "history": history}
            state |= {} if trainer is None else {"trainer": trainer.state_dict()}
            torch.save(state, saved)
    with torch.no_grad(), autocast:
        batches = text.held_out_batches(size, HELD_OUT)
        bits = float(torch.stack([bits_per_byte(model, batch) for batch in batches]).mean())
    result = {
        **dataclasses.asdict(run),
        "bits_per_byte": bits,
        "weights": stored(model),
        "most_weights": most,
        "history": history,
        "text": text.digest,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        **timer.found(),
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    saved.unlink(missing_ok=True)
    return result


class _Timer:
    """Milliseconds a step, without the first ones, and peak memory."""

    SKIP = 10

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.start, self.steps = time.perf_counter(), 0

    def step(self, step: int) -> None:
        if step == self.SKIP:
            self._wait()
            self.start = time.perf_counter()
        self.steps = step - self.SKIP

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def found(self) -> dict[str, float]:
        self._wait()
        seconds = time.perf_counter() - self.start
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.cuda else 0.0
        return {"step_ms": 1e3 * seconds / max(1, self.steps), "peak_mb": peak}
