# SPDX-License-Identifier: Apache-2.0
"""Hard-concrete gates of blocks: their distribution, what they learn from, how they end."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers import randn
from small_training import under
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear
from pytorch_block_sparse.training import L0Gates, PatternTrainer
from pytorch_block_sparse.training.gates import CLOSED, GatedBlocks, draw_noise

CONFIG = L0Gates(update_every=4, end=8, density=0.25, penalty=0.5, gate_lr=0.125)


def make(config: L0Gates = CONFIG) -> tuple[BlockSparseLinear, PatternTrainer, GatedBlocks]:
    torch.manual_seed(0)
    layer = BlockSparseLinear(64, 72, block_shape=16, density=1.0, activation="gelu")
    trainer = under(config, layer).trainer
    gates = layer.weight.product
    assert isinstance(gates, GatedBlocks)
    return layer, trainer, gates


def dense_forward(layer: BlockSparseLinear, gates: Tensor, x: Tensor) -> Tensor:
    """As nn.Linear with each block of the weight times its gate, (n,) in stored order."""
    per_block = gates[layer.weight.block_ids[: gates.numel()].long()].view(layer.weight._grid)
    scale = per_block.repeat_interleave(16, 0).repeat_interleave(16, 1)[:72]
    weight = layer.weight.to_dense() * scale
    return nn.functional.gelu(nn.functional.linear(x, weight, layer.bias))


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 3.0])
def test_a_gate_is_shut_and_open_as_often_as_the_paper_says(log_alpha: float) -> None:
    """P(z = 0) = sigmoid(b log(-low / high) - log alpha), P(z = 1) likewise from the other end."""
    layer = BlockSparseLinear(2048, 2048, block_shape=16, density=1.0, bias=False)
    gates = GatedBlocks(layer.weight)
    with torch.no_grad():
        gates.log_alpha.fill_(log_alpha)
    draw_noise([gates], seed=1, step=1)
    z = gates.open(noisy=True)
    shut = 1 / (1 + math.exp(log_alpha - CLOSED))
    wide = 1 / (1 + math.exp(-log_alpha - CLOSED))  # by symmetry, as low + high = 1
    for share, expected in ((z == 0, shut), (z == 1, wide)):
        deviation = math.sqrt(expected * (1 - expected) / z.numel())
        assert abs(float(share.float().mean()) - expected) < 5 * deviation
    assert ((z >= 0) & (z <= 1)).all()
    seen = z.clone()
    draw_noise([gates], seed=1, step=2)
    assert not torch.equal(gates.open(noisy=True), seen)
    draw_noise([gates], seed=1, step=1)
    assert torch.equal(gates.open(noisy=True), seen)


def test_forward_and_the_steps_of_the_gates_are_those_of_a_dense_twin() -> None:
    """The twin has its gates in an Adam of torch and the penalty in its loss."""
    layer, trainer, gates = make()
    (optimizer,) = trainer._optimizers
    twin_alpha = gates.log_alpha.detach().clone().requires_grad_()
    adam = torch.optim.Adam([twin_alpha], lr=0.125)
    for step in range(3):
        x = randn(8, 64, dtype=torch.float32, seed=step)
        z = (torch.sigmoid((twin_alpha + gates.noise) * 1.5) * 1.2 - 0.1).clamp(0, 1)
        expected = dense_forward(layer, z, x)
        is_open = torch.sigmoid(twin_alpha - 2 / 3 * math.log(0.1 / 1.1)).mean()
        (expected.square().sum() + 0.5 * is_open).backward()
        optimizer.zero_grad()
        found = layer(x)
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        adam.step()
        adam.zero_grad()
        optimizer.step()
        trainer.step()
        torch.testing.assert_close(gates.log_alpha, twin_alpha, rtol=1e-4, atol=1e-5)
        assert not gates.log_alpha.grad.any()  # type: ignore[union-attr]
    assert not torch.equal(gates.log_alpha, torch.full_like(gates.log_alpha, 2.2))


def test_the_last_update_takes_the_gates_into_the_values() -> None:
    layer, trainer, gates = make(dataclasses.replace(CONFIG, gate_lr=0.0))
    (optimizer,) = trainer._optimizers
    with torch.no_grad():
        gates.log_alpha.copy_(randn(20, dtype=torch.float32, seed=3))
    x = randn(8, 64, dtype=torch.float32, seed=9)
    for step in range(8):
        assert isinstance(layer.weight.product, GatedBlocks)
        (1e-3 * layer(randn(8, 64, dtype=torch.float32, seed=step)).square().mean()).backward()
        optimizer.step()
        if step == 7:
            with torch.no_grad():
                open_ = gates.open(noisy=False)
                # The blocks that go have no part in what is compared.
                least = gates.log_alpha.argsort()[: layer.weight.n_blocks - 5]
                layer.weight.values[least] = 0
                expected = layer.eval()(x)
                assert torch.equal(expected, layer(x))  # without noise
                assert not torch.equal(expected, layer.train()(x))
        trainer.step()
        optimizer.zero_grad()
    assert 0.1 < float(open_.min()) < float(open_.max()) < 0.9
    assert layer.weight.product is None
    assert layer.weight.n_blocks == 5
    torch.testing.assert_close(layer(x), expected)


def test_without_an_update_there_are_no_gates() -> None:
    layer = under(L0Gates(end=99, update_every=100)).model
    assert layer.weight.product is None
