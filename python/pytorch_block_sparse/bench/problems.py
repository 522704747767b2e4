# SPDX-License-Identifier: Apache-2.0
"""What is measured: problems, and their operands."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..block_sparse import BlockSparseMatrix
from ..block_sparse_linear import BlockSparseLinear
from ..density import block_grid
from ..pattern import block_count_of
from . import patterns

PRODUCTS = ("forward", "input gradient", "weight gradient", "step")
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DECODE_TOKENS = 64
"""With no more tokens than these nobody trains."""
COLD_BYTES = 300 << 20
"""Operands that take turns on a GPU have this much in all, six times the L2 of an H100."""
MOST_SETS = 64


@dataclass(frozen=True)
class Problem:
    """y (tokens, out) = x (tokens, in) Wᵀ + b, W in blocks of (block_height, block_width)."""

    tokens: int
    in_features: int
    out_features: int
    block_height: int
    block_width: int
    density: float
    pattern: str = "even"

    def __str__(self) -> str:
        pattern = "" if self.pattern == "even" else f" {self.pattern}"
        return (
            f"{self.in_features}→{self.out_features} T={self.tokens} "
            f"b={self.block_height}×{self.block_width} d={self.density:g}{pattern}"
        )

    @property
    def is_decode(self) -> bool:
        """So few tokens that the time is that of reading W."""
        return self.tokens <= DECODE_TOKENS

    @property
    def is_ragged(self) -> bool:
        """Whether blocks stick out, which no peer can do."""
        return bool(self.out_features % self.block_height or self.in_features % self.block_width)

    def block_count(self) -> int:
        """How many blocks are stored."""
        shape = (self.out_features, self.in_features)
        block = (self.block_height, self.block_width)
        return block_count_of(self.density, block_grid(shape, block))

    def stored_elements(self) -> int:
        """Elements of the stored blocks."""
        return self.block_count() * self.block_height * self.block_width

    def flops(self, product: str) -> float:
        """Multiplications and additions on stored blocks; a step is all three products."""
        once = 2.0 * self.tokens * self.stored_elements()
        return 3 * once if product == "step" else once

    def bytes(self, product: str, itemsize: int) -> int:
        """What must be read or written at least: x, y or dy, and the stored blocks.

        A step is the three products, then AdamW, which reads weights, gradients and two moments
        and writes all but the gradients.
        """
        activations = self.tokens * (self.in_features + self.out_features)
        once = (activations + self.stored_elements()) * itemsize
        if product != "step":
            return once
        return 3 * once + 7 * self.stored_elements() * itemsize


class Operands:
    """x, dy, a sparse and a dense weight for one problem, in `sets` copies that take turns.

    They are integers from -2 to 2 at first: sums of their products are exact in float32, in
    whatever order, so that a result is right or wrong and nothing in between. `randomize` makes
    them normal for timing, since zeros and small integers cost a GPU less power.

    Attributes:
        x, dy: (tokens, in_features) and (tokens, out_features), one a set.
        values: the stored blocks (slots, h, w), one a set.
        weights: dense weights (out_features, in_features); the first is the sparse matrix until
            `randomize` fills in its zeros.
        bias: (out_features,).
        matrix: the sparse weight, whose values are values[0].
    """

    def __init__(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> None:
        p = self.problem = problem
        self.dtype, self.device = dtype, device
        self._generator = torch.Generator(device).manual_seed(0)
        self.sets = self._copies(p.bytes("forward", dtype.itemsize))
        grid = block_grid((p.out_features, p.in_features), (p.block_height, p.block_width))
        mask = patterns.draw(p.pattern, grid, p.block_count(), torch.Generator().manual_seed(0))
        self.matrix = BlockSparseMatrix(
            (p.out_features, p.in_features),
            mask,
            block_shape=(p.block_height, p.block_width),
            device=device,
            dtype=dtype,
        )
        shape = self.matrix.values.shape
        self.x = [self.integers(p.tokens, p.in_features) for _ in range(self.sets)]
        self.dy = [self.integers(p.tokens, p.out_features) for _ in range(self.sets)]
        with torch.no_grad():
            self.matrix._set_stored_blocks(self.integers(*shape))
        self.values = [self.matrix.values.detach()]
        self.values += [self.integers(*shape) for _ in range(self.sets - 1)]
        self.weights = [self.matrix.to_dense().detach()]
        for _ in range(min(self.sets, self._copies(self.weights[0].nbytes)) - 1):
            self.weights.append(torch.empty_like(self.weights[0]))
        self.bias = self.integers(p.out_features)

    def _copies(self, nbytes: int) -> int:
        """How many operands of that size are more than a GPU's cache holds."""
        if self.device.type == "cpu":
            return 1
        return min(COLD_BYTES // nbytes + 1, MOST_SETS)

    def integers(self, *shape: int) -> Tensor:
        """Integers of -2 to 2, as floats."""
        drawn = torch.randint(
            -2, 3, shape, generator=self._generator, device=self.device, dtype=torch.int8
        )
        return drawn.to(self.dtype)

    @torch.no_grad()
    def randomize(self) -> None:
        """Normal values everywhere, also where the dense weights have zeros."""
        for tensor in (*self.x, *self.dy, *self.values, *self.weights, self.bias):
            tensor.normal_(generator=self._generator)

    def sparse_layer(self) -> BlockSparseLinear:
        """A layer of the sparse weight, shared, and the bias."""
        p = self.problem
        block = (p.block_height, p.block_width)
        layer = BlockSparseLinear(
            p.in_features, p.out_features, block_shape=block, device="meta", dtype=self.dtype
        )
        layer.weight = self.matrix
        layer.bias = nn.Parameter(self.bias)
        return layer

    def dense_layer(self) -> nn.Linear:
        """A layer of the first dense weight, shared, and the bias."""
        p = self.problem
        layer = nn.Linear(p.in_features, p.out_features, device="meta", dtype=self.dtype)
        layer.weight, layer.bias = nn.Parameter(self.weights[0]), nn.Parameter(self.bias)
        return layer


def read(path: Path) -> Iterator[Problem]:
    """The problems of a shapes file (benchmarks/shapes/README.md)."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        try:
            *sizes, density = fields[:6]
            tokens, in_features, out_features, height, width = map(int, sizes)
            (pattern,) = fields[6:] or ["even"]
            if pattern not in patterns.PATTERNS:
                raise ValueError(pattern)
            yield Problem(tokens, in_features, out_features, height, width, float(density), pattern)
        except ValueError:
            raise ValueError(
                f"{path}:{number}: {line!r}: expected tokens in_features out_features "
                "block_height block_width density, and maybe one of "
                f"{', '.join(patterns.PATTERNS)}"
            ) from None


def combinations(
    shapes: Sequence[tuple[int, int]],
    tokens: Sequence[int],
    blocks: Sequence[tuple[int, int]],
    densities: Sequence[float],
) -> Iterator[Problem]:
    """Every combination of (in, out), tokens, (height, width) and density."""
    for (in_features, out_features), t, (height, width), density in itertools.product(
        shapes, tokens, blocks, densities
    ):
        yield Problem(t, in_features, out_features, height, width, density)
