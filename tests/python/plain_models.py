# SPDX-License-Identifier: Apache-2.0
"""Small models of plain torch modules, and a patcher for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pytorch_block_sparse import BlockSparseModelPatcher

BLOCK = (16, 16)


class Mlp(nn.Module):
    """Two linear layers, one of them ragged, with a norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(64, 128)
        self.norm = nn.LayerNorm(128)
        self.down = nn.Linear(128, 40, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.norm(self.up(x))))  # type: ignore[no-any-return]


class Pair(nn.Module):
    """Two MLPs under the names "first" and "second"."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Mlp()
        self.second = Mlp()


def patcher(regexp: str = ".*(up|down)", /, *, exclude: Any = (), **config: Any) -> Any:
    made = BlockSparseModelPatcher(exclude=exclude)
    made.add_pattern(regexp, {"density": 0.5, "block_shape": BLOCK, **config})
    return made


def kinds(model: nn.Module) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


@pytest.fixture(name="model")
def pair() -> Pair:
    """For files that import it."""
    torch.manual_seed(0)
    return Pair()
