# SPDX-License-Identifier: Apache-2.0
"""Pattern training with what surrounds a step: GradScaler, torch.compile, CUDA graphs, resizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import randn
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear, BlockSparseMatrix
from pytorch_block_sparse.training import (
    SET,
    SNFS,
    GradualMagnitude,
    L0Gates,
    MovementPruning,
    PatternConfig,
    PatternTrainer,
    RigL,
    TopKAST,
)


def make(density: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        BlockSparseLinear(64, 96, density=density, block_shape=16, activation="relu"),
        BlockSparseLinear(96, 64, density=density, block_shape=16),
    )


def matrices(model: nn.Module) -> list[BlockSparseMatrix]:
    return [module for module in model.modules() if isinstance(module, BlockSparseMatrix)]


def masks(model: nn.Module) -> list[Tensor]:
    return [matrix.block_mask_build().cpu() for matrix in matrices(model)]


def loss_of(model: Any, seed: int) -> Tensor:
    x, y = (randn(16, 64, dtype=torch.float32, seed=2 * seed + k) for k in (0, 1))
    loss: Tensor = nn.functional.mse_loss(model(x), y)
    return loss


# GradScaler.

CONFIGS: list[PatternConfig] = [
    SNFS(update_every=3, norm_every=3, end=20),
    RigL(update_every=3, end=20),
    RigL(update_every=3, end=20, score="fisher"),
    MovementPruning(update_every=3, end=20, density=0.2),
    L0Gates(update_every=3, end=17, density=0.2),
]


def scaled_run(
    config: PatternConfig, *, scale: float | None, fused: bool, broken: frozenset[int]
) -> tuple[PatternTrainer, list[Tensor]]:
    """A run whose gradients are infinite at some steps."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    device = torch.get_default_device().type
    scaler = torch.amp.GradScaler(device, init_scale=scale or 1.0, enabled=scale is not None)
    trainer = PatternTrainer(model, optimizer, config, scaler=scaler)
    for step in range(24):
        loss = loss_of(model, step)
        scaler.scale(loss * (torch.inf if step in broken else 1.0)).backward()
        if scale is not None or step not in broken:
            scaler.step(optimizer)
        scaler.update()
        before = masks(model)
        update = trainer.step()
        if step in broken:
            assert update is None
            assert all(torch.equal(a, b) for a, b in zip(masks(model), before, strict=True))
        optimizer.zero_grad()
    return trainer, masks(model)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=["snfs", "rigl", "rigl fisher", "movement", "l0"])
def test_under_grad_scaler_scores_are_unscaled_and_skipped_steps_skipped(
    config: PatternConfig, fused: bool
) -> None:
    """Scales are powers of two, so that scaling changes no bit."""
    broken = frozenset((0, 4, 5, 8))
    plain, expected = scaled_run(config, scale=None, fused=fused, broken=broken)
    scaled, found = scaled_run(config, scale=2.0**16, fused=fused, broken=broken)
    assert scaled.steps == plain.steps == 20
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for ours, theirs in zip(scaled.layers, plain.layers, strict=True):
        assert (ours.gathered is None) == (config.score in ("frobenius", "gate"))
        assert (ours.norm_average is None) != isinstance(config, SNFS)
        for a, b in ((ours.gathered, theirs.gathered), (ours.norm_average, theirs.norm_average)):
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


# torch.compile.


class Compiled:
    """A compiled model that counts its graphs, forward ones."""

    def __init__(self, model: nn.Module) -> None:
        from torch._dynamo.testing import CompileCounterWithBackend

        torch._dynamo.reset()
        self.counter = CompileCounterWithBackend("aot_eager")
        self.model = torch.compile(model, backend=self.counter, fullgraph=True)

    @property
    def graphs(self) -> int:
        count: int = self.counter.frame_count
        return count


@pytest.mark.parametrize(
    ("config", "graphs"),
    [
        (SET(update_every=2, end=20), 1),
        (GradualMagnitude(update_every=2, end=20, density=0.2, max_sizes=1), 1),
        (TopKAST(update_every=2, end=30, max_sizes=1), 1),
        (L0Gates(update_every=2, end=30, density=0.2, max_sizes=1), 1),
        (RigL(update_every=2, end=20, decay="constant"), 2),  # one of them with gradient norms
    ],
    ids=["set", "gradual", "top-kast", "l0", "rigl"],
)
def test_within_the_slots_nothing_is_compiled_again(config: PatternConfig, graphs: int) -> None:
    model, twin = make(), make()
    compiled = Compiled(model)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model, twin)]
    trainers = [
        PatternTrainer(m, optimizer, config)
        for m, optimizer in zip((model, twin), optimizers, strict=True)
    ]
    for step in range(24):
        for call, optimizer, trainer in zip(
            (compiled.model, twin), optimizers, trainers, strict=True
        ):
            loss_of(call, step).backward()
            optimizer.step()
            trainer.step()
            optimizer.zero_grad()
        if step == 4:
            assert compiled.graphs == graphs
    assert compiled.graphs == graphs
    assert all(torch.equal(a, b) for a, b in zip(masks(model), masks(twin), strict=True))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_resizes_with_an_old_loss_alive(mode: str) -> None:
    """A loop that keeps its losses as tensors keeps the graph that made them."""
    model, twin = make(1.0), make(1.0)
    compiled = Compiled(model) if mode == "compiled" else None
    call = model if compiled is None else compiled.model
    # The twin never resizes; what it computes must be the same.
    configs = [
        GradualMagnitude(update_every=1, end=30, density=0.1, max_sizes=sizes) for sizes in (6, 1)
    ]
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model, twin)]
    trainers = [
        PatternTrainer(m, optimizer, config)
        for m, optimizer, config in zip((model, twin), optimizers, configs, strict=True)
    ]
    losses, sizes = [], set()
    for step in range(34):
        pair = [loss_of(one, step) for one in (call, twin)]
        for loss, optimizer, trainer in zip(pair, optimizers, trainers, strict=True):
            loss.backward(retain_graph=mode == "eager")
            optimizer.step()
            trainer.step()
            optimizer.zero_grad()
        losses.append(pair)
        sizes.add(tuple(matrix.slots for matrix in matrices(model)))
    assert len(sizes) == 6
    assert {matrix.slots for matrix in matrices(model)} == {2}
    assert {matrix.slots for matrix in matrices(twin)} == {24}
    for ours, theirs in losses:
        torch.testing.assert_close(ours, theirs)
    for a, b in zip(matrices(model), matrices(twin), strict=True):
        torch.testing.assert_close(a.to_dense(), b.to_dense())
    if compiled is not None:
        assert compiled.graphs <= 6


@pytest.mark.gpu
@pytest.mark.parametrize(
    "config",
    [
        SET(update_every=2, end=20),
        GradualMagnitude(update_every=2, end=20, density=0.2, max_sizes=1),
        L0Gates(update_every=2, end=30, density=0.2, max_sizes=1),
    ],
    ids=["set", "gradual", "l0"],
)
def test_a_captured_graph_goes_on(config: PatternConfig) -> None:
    model, twin = make(), make()
    x, y = (randn(16, 64, dtype=torch.float32, seed=k) for k in (0, 1))
    optimizers = [
        torch.optim.AdamW(m.parameters(), lr=1e-2, capturable=True) for m in (model, twin)
    ]
    trainers = [
        PatternTrainer(m, optimizer, config)
        for m, optimizer in zip((model, twin), optimizers, strict=True)
    ]

    def step(m: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=False)
        nn.functional.mse_loss(m(x), y).backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            for _ in range(3):
                step(m, optimizer)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(model, optimizers[0])
    for _ in range(20):
        graph.replay()
        trainers[0].step(stepped=True)
        step(twin, optimizers[1])
        trainers[1].step()
    assert all(trainer.steps == 20 for trainer in trainers)
    assert all(torch.equal(a, b) for a, b in zip(masks(model), masks(twin), strict=True))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
