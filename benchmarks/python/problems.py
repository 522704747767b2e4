# SPDX-License-Identifier: Apache-2.0
"""The problems of benchmarks/shapes/ and their operands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pytorch_block_sparse import BlockSparseLinear

SHAPES = Path(__file__).parents[1] / "shapes"
PRODUCTS = ("forward", "input gradient", "weight gradient", "step")


@dataclass(frozen=True)
class Problem:
    """y (tokens, out) = x (tokens, in) Wᵀ + b, W in blocks of (block_height, block_width)."""

    tokens: int
    in_features: int
    out_features: int
    block_height: int
    block_width: int
    density: float

    def __str__(self) -> str:
        return (
            f"{self.in_features}→{self.out_features} T={self.tokens} "
            f"b={self.block_height}×{self.block_width} d={self.density:g}"
        )


class Operands:
    """Random x, dy and a sparse layer, with its dense equal, for one problem."""

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        p = problem
        generator = torch.Generator().manual_seed(0)
        self.problem = problem
        self.sparse = BlockSparseLinear(
            p.in_features,
            p.out_features,
            density=p.density,
            block_shape=(p.block_height, p.block_width),
            dtype=dtype,
            generator=generator,
        )
        self.dense = torch.nn.Linear(p.in_features, p.out_features, dtype=dtype)
        assert self.sparse.bias is not None
        with torch.no_grad():
            self.dense.weight.copy_(self.sparse.weight.to_dense())
            self.dense.bias.copy_(self.sparse.bias)
        self.x = torch.randn(p.tokens, p.in_features, generator=generator).to(dtype)
        self.dy = torch.randn(p.tokens, p.out_features, generator=generator).to(dtype)
        self.blocks = self.sparse.weight.n_blocks

    def useful_flops(self, product: str) -> float:
        """Multiplications and additions on stored blocks; a step is all three products."""
        p = self.problem
        once = 2.0 * p.tokens * self.blocks * p.block_height * p.block_width
        return 3 * once if product == "step" else once


def read(path: Path) -> Iterator[Problem]:
    """The problems of a shapes file (benchmarks/shapes/README.md)."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        try:
            *sizes, density = fields
            tokens, in_features, out_features, height, width = map(int, sizes)
            yield Problem(tokens, in_features, out_features, height, width, float(density))
        except ValueError:
            raise ValueError(
                f"{path}:{number}: {line!r}: expected tokens in_features out_features "
                "block_height block_width density"
            ) from None
