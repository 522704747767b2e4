# SPDX-License-Identifier: Apache-2.0
"""What cannot be done to a matrix is said in one sentence, and leaves it as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import ints, says, small_matrix
from torch import nn

from pytorch_block_sparse import (
    BlockSparseLinear,
    BlockSparseMatrix,
    SparseOptimizer,
)

Linear, Matrix = BlockSparseLinear, BlockSparseMatrix
FULL = torch.ones(2, 3, dtype=torch.bool)


# What is called on the small matrix -> the same; it is afterwards as it was.
ON_A_MATRIX: dict[str, tuple[Callable[[BlockSparseMatrix], Any], type[Exception], str]] = {
    "move to a taken place": (
        lambda m: m.block_replace(ints((0, 2, 0))),
        ValueError,
        "Block position (0,2) was already used",
    ),
    "move two to one place": (
        lambda m: m.block_replace(ints((1, 0, 0), (1, 0, 1))),
        ValueError,
        "Block position (1,0) was already used",
    ),
    "move outside": (
        lambda m: m.block_replace(ints((2, 0, 0))),
        ValueError,
        "Block position (2,0) is outside the grid of 2 x 3 blocks: expected a row of 0 to 1",
    ),
    "move a block that is not there": (
        lambda m: m.block_replace(ints((1, 0, 3))),
        ValueError,
        "block_replacements moves block 3, expected 0 to 2",
    ),
    "move a block twice": (
        lambda m: m.block_replace(ints((1, 0, 0), (1, 2, 0))),
        ValueError,
        "block_replacements moves a block twice, expected each at most once",
    ),
    "move by pairs": (
        lambda m: m.block_replace(ints((1, 0))),
        ValueError,
        "block_replacements is a torch.int64 tensor of shape (1, 2) on cpu, expected ints (k, 3)",
    ),
    "move by floats": (
        lambda m: m.block_replace(ints((1.0, 0.0, 0.0))),
        ValueError,
        "block_replacements is a torch.float32 tensor",
    ),
    "drop a block that is not there": (
        lambda m: m.drop_and_grow_(ints(3), ints(1), ints(0)),
        ValueError,
        "drop is [3], expected stored indices of 0 to 2",
    ),
    "grow at a taken place": (
        lambda m: m.drop_and_grow_(ints(0), ints(1), ints(1)),
        ValueError,
        "Block position (1,1) was already used",
    ),
    "grow outside": (
        lambda m: m.drop_and_grow_(ints(0), ints(0), ints(3)),
        ValueError,
        "Block position (0,3) is outside the grid of 2 x 3 blocks: expected a column of 0 to 2",
    ),
    "grow beyond the slots": (
        lambda m: m.drop_and_grow_(ints(0), ints(0, 1, 1), ints(1, 0, 2)),
        ValueError,
        "rows and cols name 3 new blocks, expected at most 2, the free ones of 4 slots",
    ),
    "grow with values of another shape": (
        lambda m: m.drop_and_grow_(ints(0), ints(1), ints(0), torch.zeros(2, 32, 32)),
        ValueError,
        "values is a torch.float32 tensor of shape (2, 32, 32) on cpu, expected the shape (1, 32,",
    ),
    "rows and columns of different counts": (
        lambda m: m.drop_and_grow_(ints(0), ints(1), ints(0, 2)),
        ValueError,
        "cols is a torch.int64 tensor of shape (2,) on cpu, expected the shape (1,) of rows",
    ),
    "a mask that does not fit the slots": (
        lambda m: m.set_pattern_(FULL),
        ValueError,
        "mask has 6 blocks, expected at most 4 slots",
    ),
    "replaced data of another shape": (
        lambda m: m.to_dense(torch.zeros(3, 32, 32)),
        ValueError,
        "data_replace is a torch.float32 tensor of shape (3, 32, 32) on cpu, expected the shape "
        "(4, 32, 32) (slots, h, w)",
    ),
    "fill from another shape": (
        lambda m: Matrix.from_dense(torch.zeros(64, 64), out=m),
        ValueError,
        "dense is a torch.float32 tensor of shape (64, 64) on cpu, expected the shape of out",
    ),
    "check with another shape": (
        lambda m: m.check_with_dense(torch.zeros(64, 64)),
        ValueError,
        "dense is a torch.float32 tensor of shape (64, 64) on cpu, expected the shape (64, 96)",
    ),
    "multiply by the wrong side": (
        lambda m: m.reverse_matmul(torch.zeros(2, 64), transpose=True),
        ValueError,
        "x has shape (2, 64); expected (..., 96)",
    ),
    "multiply by the wrong side of the transpose": (
        lambda m: m.reverse_matmul(torch.zeros(2, 96), transpose=False),
        ValueError,
        "dense_a has shape (2, 96), expected (..., 64)",
    ),
    "multiply by another dtype": (
        lambda m: m.reverse_matmul(torch.zeros(2, 96).double(), transpose=True),
        RuntimeError,
        "float64",
    ),
    "multiply by ints": (
        lambda m: m.reverse_matmul(torch.zeros(2, 96).int(), transpose=True),
        RuntimeError,
        "int32",
    ),
    "multiply by a number": (
        lambda m: m.reverse_matmul(torch.tensor(1.0), transpose=True),
        ValueError,
        "x has shape (); expected (..., 96)",
    ),
    "support of different tokens": (
        lambda m: m.matmul_with_output_sparse_support(torch.zeros(2, 64), torch.zeros(3, 96), True),
        ValueError,
        "dense_b[..., 0] is a torch.float32 tensor of shape (3,) on cpu, expected the shape (2,)",
    ),
    "support of the sides exchanged": (
        lambda m: m.matmul_with_output_sparse_support(torch.zeros(2, 96), torch.zeros(2, 64), True),
        ValueError,
        "dense_a has shape (2, 96), expected (..., 64)",
    ),
    "step of an optimizer that does not train it": (
        lambda m: step_with(m, torch.optim.Adam(nn.Linear(1, 1).parameters())),
        ValueError,
        "no attached optimizer trains BlockSparseMatrix((64, 96)",
    ),
}


def step_with(sparse: BlockSparseMatrix, optimizer: torch.optim.Optimizer) -> None:
    sparse_optimizer = SparseOptimizer(sparse, lr=1.0)
    sparse_optimizer.attach_optimizer(optimizer)
    sparse_optimizer.step()


@pytest.mark.parametrize("name", ON_A_MATRIX)
def test_refused_and_left_as_it_was(name: str) -> None:
    call, kind, sentence = ON_A_MATRIX[name]
    sparse = small_matrix()
    before = [t.clone() for t in (*sparse.index, sparse.values.detach())]
    with pytest.raises(kind) as error:
        call(sparse)
    assert says(error, sentence)
    assert "\n" not in str(error.value)
    after = [*sparse.index, sparse.values.detach()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert sparse.has_pattern
