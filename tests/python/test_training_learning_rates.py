# SPDX-License-Identifier: Apache-2.0
"""Parameter groups in which stored blocks learn faster, the fewer there are."""

from __future__ import annotations

import pytest
import torch
from helpers import randn
from torch import nn

from pytorch_block_sparse import BlockSparseLinear
from pytorch_block_sparse.training import parameter_groups


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


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="power is -1"):
        parameter_groups(model(), 1e-3, power=-1)
    with pytest.raises(ValueError, match="lr is nan"):
        parameter_groups(model(), float("nan"))
    with pytest.raises(TypeError, match="model is 3"):
        parameter_groups(3, 1e-3)  # type: ignore[arg-type]
