# SPDX-License-Identifier: Apache-2.0
"""Block-sparse matrices to test with, and how close to float64 a result has to be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pytorch_block_sparse import BlockSparseMatrix
from pytorch_block_sparse.pattern import draw_pattern


def random_matrix(
    shape: tuple[int, int], block_shape: tuple[int, int], n: int, **options: Any
) -> BlockSparseMatrix:
    """Random values in slots that are not in stored order, with two spare ones."""
    grid = (-(-shape[0] // block_shape[0]), -(-shape[1] // block_shape[1]))
    mask = draw_pattern("random", grid, n, torch.Generator().manual_seed(n))
    matrix = BlockSparseMatrix(shape, mask, None, block_shape, slots=n + 2, **options)
    rows, cols = matrix.build_coo_block_index().cpu()
    slots = torch.randperm(n + 2, generator=torch.Generator().manual_seed(n), device="cpu")[:n]
    matrix._write_index(rows, cols, slots)
    matrix._set_stored_blocks(torch.randn(n, *block_shape))
    return matrix


def close(actual: Tensor, expected: Tensor, terms: int) -> None:
    """Within eps (terms + 1) max of a float64 result, where max is its largest element.

    That bounds the rounding of a sum of `terms` products in the dtype of `actual`, or in float32
    and then rounded once, for operands of about unit size.
    """
    largest = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    bound = torch.finfo(actual.dtype).eps * (terms + 1) * largest
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=bound)
