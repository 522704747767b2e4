# SPDX-License-Identifier: Apache-2.0
"""Parameter groups in which stored blocks learn faster, the fewer there are."""

from __future__ import annotations

import pytest
import torch
from helpers import randn
from small_training import small_layer
from torch import nn

from pytorch_block_sparse import BlockSparseLinear
from pytorch_block_sparse.training import GradualMagnitude, PatternTrainer, parameter_groups


def model() -> nn.Sequential:
    return nn.Sequential(
        BlockSparseLinear(64, 64, block_shape=16, density=0.25),
        nn.LayerNorm(64),
        BlockSparseLinear(64, 64, block_shape=16, density=0.5),
        BlockSparseLinear(64, 64, block_shape=16, density=0.25, bias=False),
        nn.Linear(64, 8),
    )


def test_groups_by_density() -> None:
    layers = model()
    groups = parameter_groups(layers, 1e-3, power=0.5, weight_decay=0.01)
    values = [layers[i].weight.values for i in (0, 2, 3)]
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-3 * 2**0.5, 2e-3])
    assert [len(group["params"]) for group in groups] == [6, 1, 2]
    assert groups[1]["params"][0] is values[1]
    assert all(a is b for a, b in zip(groups[2]["params"], (values[0], values[2]), strict=True))
    assert all(group["weight_decay"] == 0.01 for group in groups)
    assert len(parameter_groups(layers[3], 1e-3)) == 1


def test_the_first_step_moves_outputs_alike_at_all_densities() -> None:
    """With power 1, as far as a dense layer's; without, in proportion to the density."""

    def moved(density: float, power: float) -> float:
        torch.manual_seed(0)
        layer = BlockSparseLinear(
            512, 64, bias=False, block_shape=16, density=density, pattern="balanced"
        )
        optimizer = torch.optim.Adam(parameter_groups(layer, 1e-3, power=power))
        x = randn(1, 512, dtype=torch.float32).abs() + 1
        before = layer(x).detach()
        layer(x).sum().backward()
        optimizer.step()
        return float((before - layer(x).detach()).abs().mean())

    dense = moved(1.0, 1.0)
    assert moved(0.125, 1.0) == pytest.approx(dense, rel=0.1)
    assert moved(0.125, 0.0) == pytest.approx(dense / 8, rel=0.1)


def test_the_rate_grows_as_blocks_go() -> None:
    """By a scheduler that sets rates of its own, which sees nothing of it."""
    layers = nn.Sequential(small_layer(density=1.0), nn.LayerNorm(64), small_layer(density=0.5))
    groups = parameter_groups(layers, 0.5, power=0)
    assert [group["lr"] for group in groups] == [0.5, 0.5, 0.5]
    optimizer = torch.optim.SGD(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    config = GradualMagnitude(update_every=1, end=3, density=0.25)
    trainer = PatternTrainer(layers, optimizer, config, lr_power=0.5)
    matrices = [layers[i].weight for i in (0, 2)]
    densities = []
    for step in range(5):
        loss = layers(randn(8, 64, dtype=torch.float32, seed=step)).square().mean()
        loss.backward()
        expected = {}
        for parameter in layers.parameters():
            owner = [m for m in matrices if m.values is parameter]
            density = owner[0].density if owner else 1.0
            rate = 0.5 * 0.5**step * density**-0.5
            expected[parameter] = parameter.detach() - rate * parameter.grad
        densities.append([matrix.density for matrix in matrices])
        optimizer.step()
        for parameter, value in expected.items():
            torch.testing.assert_close(parameter.detach(), value)
        assert [group["lr"] for group in optimizer.param_groups] == [0.5 * 0.5**step] * 3
        trainer.step()
        optimizer.zero_grad()
        scheduler.step()
    assert densities[0] == [1.0, 0.5]
    assert densities[-1] == [0.25, 0.25]


def test_values_need_groups_of_their_own() -> None:
    layers = model()
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"lr_power is 0\.9, but SGD has values of layers and other"
    ):
        PatternTrainer(layers, optimizer, GradualMagnitude(end=9), lr_power=0.9)
    with pytest.raises(ValueError, match="lr_power is 3"):
        PatternTrainer(layers, optimizer, GradualMagnitude(end=9), lr_power=3.0)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="power is -1"):
        parameter_groups(model(), 1e-3, power=-1)
    with pytest.raises(ValueError, match="lr is nan"):
        parameter_groups(model(), float("nan"))
    with pytest.raises(TypeError, match="model is 3"):
        parameter_groups(3, 1e-3)  # type: ignore[arg-type]
