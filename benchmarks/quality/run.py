# SPDX-License-Identifier: Apache-2.0
"""One run: a model, a method, a density, a seed; resumable, into one JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.quality.encoder import MiniLM
from benchmarks.quality.methods import Method, method_of
from benchmarks.quality.model import SIZES, LanguageModel
from pytorch_block_sparse import BlockSparseLinear, BlockSparseModelPatcher
from pytorch_block_sparse.training import PatternTrainer

WARMUP, WEIGHT_DECAY = 0.05, 0.1


class Task(Protocol):
    """What a model is trained for.

    Attributes:
        layers: regular expression for the names of the layers that are made sparse.
        metric: the name of what is found in the end.
        pretrained: whether the weights that there are stay.
        shapes: (out, in) of these layers.
        digest: of the data.
    """

    layers: str
    metric: str
    pretrained: bool
    shapes: Sequence[tuple[int, int]]
    digest: str

    def model(self, weights: int | None) -> nn.Module:
        """A dense model, or a small one of at most so many weights in such layers."""

    def loss(self, model: nn.Module, seed: int, step: int) -> Tensor:
        """Of a batch, the same for every method."""

    def found(self, model: nn.Module) -> float:
        """How good a model is."""

    def core(self, density: float, block: int) -> Mapping[str, Tensor]:
        """Masks of a small dense model inside of the wide one."""


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
        name = f"{self.method}-d{self.density:g}-b{self.block}-s{self.seed}-{self.steps}"
        return f"{name}-{self.size}" + ("" if self.lr == Run.lr else f"-lr{self.lr:g}")


def task_of(run: Run, device: str) -> Task:
    """By the size of the run."""
    return MiniLM(device) if run.size == "minilm" else LanguageModel(SIZES[run.size], device)


def make(run: Run, task: Task) -> tuple[nn.Module, Method]:
    """The model of a run, and its method."""
    method = method_of(run.method, run.density, run.steps)
    torch.manual_seed(run.seed)
    if run.method.partition("+")[0] == "small":
        return task.model(target(task, run)), method
    model = task.model(None)
    if method.config is None:
        return model, method
    density = min(1.0, method.start * run.density) if method.start else 1.0
    options: dict[str, Any] = {"block_shape": (run.block, run.block)}
    if method.pattern == "core":
        options |= {"pattern": task.core(density, run.block)}
    else:
        options |= {"density": density, "pattern": method.pattern}
        options |= {"density_rule": method.density_rule}
    patcher = BlockSparseModelPatcher()
    patcher.add_pattern(task.layers, options)
    patcher.patch_model(model)
    for layer in model.modules():
        if isinstance(layer, BlockSparseLinear):
            if not task.pretrained:
                layer.reset_parameters()  # the scale of the inputs that are there
            if method.spare:
                layer.weight.resize_slots_(layer.weight.n_blocks * 3 // 2)
    return model, method


def inside(task: Task, model: nn.Module) -> list[nn.Linear | BlockSparseLinear]:
    """The layers that are made sparse, or would be."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, BlockSparseLinear)) and re.fullmatch(task.layers, name)
    ]


def groups_of(task: Task, model: nn.Module, lr_scale: float) -> list[dict[str, Any]]:
    """Parameter groups: all else, and stored blocks or the weights in their place."""
    weights = [
        layer.weight.values if isinstance(layer, BlockSparseLinear) else layer.weight
        for layer in inside(task, model)
    ]
    known = {id(weight) for weight in weights}
    others = [p for p in model.parameters() if id(p) not in known]
    return [{"params": others, "lr_scale": 1.0}, {"params": weights, "lr_scale": lr_scale}]


def target(task: Task, run: Run) -> int:
    """Weights of a sparse model in the end."""
    blocks = [math.prod(side // run.block for side in shape) for shape in task.shapes]
    return sum(int(run.density * count) for count in blocks) * run.block**2


def stored(task: Task, model: nn.Module) -> int:
    """Weights that the layers inside store."""
    return sum(
        layer.weight.stored_weights()
        if isinstance(layer, BlockSparseLinear)
        else layer.weight.numel()
        for layer in inside(task, model)
    )


def lr_scale(task: Task, model: nn.Module, method: Method) -> float:
    """Of the weights inside, as many as there are now."""
    if method.config is None:
        return method.lr_scale
    full = sum(math.prod(shape) for shape in task.shapes)
    return float(method.lr_scale * (stored(task, model) / full) ** -method.lr_power)


def rate(run: Run, step: int) -> float:
    """The learning rate: a line up, half a cosine wave down to a tenth."""
    warmup = max(1, int(WARMUP * run.steps))
    if step < warmup:
        return run.lr * (step + 1) / warmup
    time_ = (step - warmup) / max(1, run.steps - warmup)
    return run.lr * (0.55 + 0.45 * math.cos(math.pi * time_))


def train(
    run: Run,
    device: str,
    folder: Path,
    checkpoint_every: int = 0,
    *,
    packed: int = 1,
    deadline: float = math.inf,
) -> dict[str, Any] | None:
    """Trains, or goes on from a checkpoint, and returns what was found.

    Args:
        run: what.
        device: where.
        folder: of the results, one JSON each, and of checkpoints.
        checkpoint_every: steps between two checkpoints; 0 for none.
        packed: how many runs share the device, which is noted beside the time of a step.
        deadline: when to stop, as `time.monotonic` counts; then None is returned, after a last
            checkpoint if there are any.
    """
    path, saved = folder / f"{run.name}.json", folder / f"{run.name}.pt"
    if path.exists():
        result: dict[str, Any] = json.loads(path.read_text())
        return result
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    task = task_of(run, device)
    model, method = make(run, task)
    groups = groups_of(task, model, lr_scale(task, model, method))
    optimizer = torch.optim.AdamW(
        groups, lr=run.lr, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True
    )
    config = method.config
    trainer = None if config is None else PatternTrainer(model, optimizer, config)
    begin, most, history = 0, stored(task, model), []
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
            group["lr"] = group["lr_scale"] * rate(run, step)
        with autocast:
            loss = task.loss(model, run.seed, step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update = None if trainer is None else trainer.step()
        if update is not None:
            overall = update.scalars()
            names = ("churn", "density", "drift")
            history.append([update.step, *(overall[f"pattern/{name}"] for name in names)])
            optimizer.param_groups[1]["lr_scale"] = lr_scale(task, model, method)
        optimizer.zero_grad()
        timer.step(step - begin)
        late = time.monotonic() >= deadline
        if checkpoint_every and (late or (step + 1) % checkpoint_every == 0):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"step": step + 1, "history": history}
            state |= {} if trainer is None else {"trainer": trainer.state_dict()}
            torch.save(state, saved)
        if late and step + 1 < run.steps:
            return None
    with torch.no_grad(), autocast:
        found = task.found(model.eval())
    result = {
        **dataclasses.asdict(run),
        task.metric: found,
        "weights": stored(task, model),
        "most_weights": most,
        "history": history,
        "text": task.digest,
        "torch": torch.__version__,
        "packed": packed,
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
