# SPDX-License-Identifier: Apache-2.0
"""Random block-sparse weights, their dense oracle in float64, and derived error bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import pytorch_block_sparse.ops  # noqa: F401 (loads the operators)
from pytorch_block_sparse import BlockSparseMatrix

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
    "silu": torch.nn.functional.silu,
}
# The steepest slope of any of them (gelu, at sqrt(2)) is 1.129.
STEEPEST = 1.13

# (out, in), (block height, block width), share of blocks stored
GEOMETRIES = (
    ((64, 96), (16, 16), 0.5),
    ((64, 64), (32, 32), 0.75),
    ((128, 64), (64, 16), 0.4),
    ((50, 70), (16, 32), 0.6),  # both edges ragged
    ((7, 5), (1, 1), 0.5),
    ((12, 20), (3, 5), 0.3),
    ((96, 32), (16, 32), 0.2),  # empty block rows
    ((32, 48), (16, 16), 0.0),  # no block at all
)


@dataclass
class Weight:
    """What `functional.linear` takes for a weight."""

    values: Tensor
    index: list[Tensor]
    shape: tuple[int, int]

    @property
    def block_shape(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[2]

    def mask(self) -> Tensor:
        """(slots, bh, bw), true where an element of the matrix is stored."""
        ones = torch.ones(self.shape, dtype=torch.float64, device=self.values.device)
        return gather_blocks(ones, self) != 0

    def dense(self, values: Tensor | None = None) -> Tensor:
        """(out, in) in float64, differentiable in the values."""
        values = self.values if values is None else values
        (out, in_), (bh, bw) = self.shape, self.block_shape
        rows, cols = -(-out // bh), -(-in_ // bw)
        crow, col, ids = (t.long() for t in self.index[:3])
        n = int(crow[-1])
        row = torch.repeat_interleave(torch.arange(rows, device=crow.device), crow.diff())
        blocks = values.double()[ids[:n]]
        grid = torch.zeros(rows, cols, bh, bw, dtype=torch.float64, device=values.device)
        grid = grid.index_put((row, col[:n]), blocks)
        return grid.transpose(1, 2).reshape(rows * bh, cols * bw)[:out, :in_]


def gather_blocks(dense: Tensor, weight: Weight) -> Tensor:
    """Blocks of an (out, in) matrix in the slots of `weight`; padding and spare slots are 0."""
    (out, in_), (bh, bw) = weight.shape, weight.block_shape
    rows, cols = -(-out // bh), -(-in_ // bw)
    padded = torch.nn.functional.pad(dense, (0, cols * bw - in_, 0, rows * bh - out))
    blocks = padded.reshape(rows, bh, cols, bw).transpose(1, 2)
    crow, col, ids = (t.long() for t in weight.index[:3])
    n = int(crow[-1])
    row = torch.repeat_interleave(torch.arange(rows, device=crow.device), crow.diff())
    slots = torch.zeros(weight.values.shape, dtype=dense.dtype, device=dense.device)
    slots[ids[:n]] = blocks[row, col[:n]]
    return slots


def packed(index: list[Tensor]) -> list[Tensor]:
    """The same index in one tensor, as docs/architecture.md says."""
    *parts, plan = index
    padded = [torch.nn.functional.pad(part, (0, -len(part) % 32)) for part in parts]
    return [torch.cat([*padded, plan])]


def random_weight(
    shape: tuple[int, int],
    block_shape: tuple[int, int],
    density: float,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
    spare: int = 2,
    seed: int = 0,
    requires_grad: bool = False,
) -> Weight:
    """Random values of variance 1 / in, in shuffled slots, `spare` of which are not used."""
    generator = torch.Generator().manual_seed(seed)
    (out, in_), (bh, bw) = shape, block_shape
    rows, cols = -(-out // bh), -(-in_ // bw)
    n = round(density * rows * cols)
    places = torch.randperm(rows * cols, generator=generator, device="cpu")[:n].sort().values
    crow = torch.zeros(rows + 1, dtype=torch.int32, device="cpu")
    crow[1:] = torch.bincount(places // cols, minlength=rows).cumsum(0)
    col = torch.zeros(n + spare, dtype=torch.int32, device="cpu")
    col[:n] = places % cols
    slots = torch.randperm(n + spare, generator=generator, device="cpu").int()
    ids = torch.cat([slots[:n], slots[n:].sort().values])
    device = device or torch.get_default_device()
    index = [crow.to(device), col.to(device), ids.to(device)]
    index += torch.ops.block_sparse.pattern_transpose(*index, cols)
    nothing = crow.new_zeros(0, device=device)
    index.append(torch.ops.block_sparse.pattern_plan([*index, nothing], *shape, *block_shape))
    values = (
        torch.randn(n + spare, bh, bw, generator=generator, dtype=torch.float64, device="cpu")
        / in_**0.5
    )
    values = values.to(device=device, dtype=dtype).requires_grad_(requires_grad)
    return Weight(values, index, shape)


def randn(*shape: int, dtype: torch.dtype, device: str | None = None, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(device or torch.get_default_device(), dtype)


def says(error: pytest.ExceptionInfo[BaseException], sentence: str) -> bool:
    """Whether an error says what is expected, of a tensor on the CPU or on the default device: what
    a test module makes when it is imported is on the CPU."""
    here = sentence.replace("on cpu", f"on {torch.empty(0).device}")
    return sentence in str(error.value) or here in str(error.value)


def assert_product(
    actual: Tensor, expected: Tensor, magnitude: Tensor, terms: int, slope: float = 1.0
) -> None:
    """`actual` is the rounded sum of `terms` products that `expected` is in float64.

    `magnitude` is the sum of their absolute values: summing in another order and precision moves
    the result by at most (terms + 2) eps of the accumulator times it; `slope` is that of what is
    applied to the sum, itself right to 8 eps; the result is rounded to its dtype once.
    """
    accumulator = torch.float64 if actual.dtype == torch.float64 else torch.float32
    eps = torch.finfo(accumulator).eps
    bound = slope * eps * (terms + 2) * magnitude + 8 * eps * (expected.abs() + magnitude)
    if actual.dtype != accumulator:
        # Below the smallest normal number the spacing is absolute.
        info = torch.finfo(actual.dtype)
        bound = bound + info.eps / 2 * expected.abs() + info.tiny * info.eps
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs()
    assert bool((error <= bound).all()), (
        f"off by {(error / bound).max().item():.3g} times the bound"
    )


def small_matrix() -> BlockSparseMatrix:
    """Blocks (0, 0), (0, 2), (1, 1) of 2 x 3, one spare slot."""
    mask = torch.tensor([[True, False, True], [False, True, False]])
    values = torch.arange(3 * 1024.0).view(3, 32, 32)
    return BlockSparseMatrix((64, 96), mask, values, slots=4)


def ints(*rows: Any) -> Tensor:
    return torch.tensor(rows)
