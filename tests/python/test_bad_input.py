# SPDX-License-Identifier: Apache-2.0
"""What cannot be done is said in one sentence, and nothing is changed by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import says, small_matrix
from torch import nn

from pytorch_block_sparse import (
    BlockSparseLinear,
    BlockSparseMatrix,
    BlockSparseMatrixEmulator,
    SparseOptimizer,
)
from pytorch_block_sparse.pattern import draw_pattern
from pytorch_block_sparse.sparse_optimizer import MagnitudeSparseOptimizerStrategy

Linear, Matrix = BlockSparseLinear, BlockSparseMatrix
EMPTY = torch.zeros(2, 3, dtype=torch.bool)
FULL = ~EMPTY


# What is called -> the kind of error, and what its sentence says.
CONSTRUCTION: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no inputs": (lambda: Linear(0, 32), ValueError, "BlockSparseLinear invalid in_features=0, "),
    "outputs below 0": (
        lambda: Linear(32, -1),
        ValueError,
        "BlockSparseLinear invalid out_features=-1, should be at least 1",
    ),
    "inputs no int": (lambda: Linear(32.0, 32), ValueError, "invalid in_features=32.0, "),
    "density 0": (
        lambda: Linear(32, 32, density=0.0),
        ValueError,
        "BlockSparseLinear invalid density=0.0, expected a number above 0 and at most 1",
    ),
    "density above 1": (lambda: Linear(32, 32, density=1.5), ValueError, "invalid density=1.5"),
    "density below 0": (lambda: Linear(32, 32, density=-0.1), ValueError, "invalid density=-0.1"),
    "density is nan": (lambda: Linear(32, 32, density=float("nan")), ValueError, "density=nan"),
    "density no number": (lambda: Linear(32, 32, density="half"), ValueError, "density=half"),
    "block of 0": (
        lambda: Linear(32, 32, block_shape=0),
        ValueError,
        "block_shape is (0, 0) (tuple), expected two ints of at least 1",
    ),
    "block of three": (lambda: Linear(32, 32, block_shape=(1, 2, 3)), ValueError, "block_shape is"),
    "block of floats": (lambda: Linear(32, 32, block_shape=(8.0, 8)), ValueError, "block_shape is"),
    "unknown pattern": (
        lambda: Linear(32, 32, pattern="checkers"),
        ValueError,
        "pattern is 'checkers' (str), expected a boolean block mask or one of 'random', 'balanced'",
    ),
    "magnitude of nothing": (
        lambda: Linear(32, 32, pattern="magnitude"),
        ValueError,
        "torch_nn_linear is None, expected a layer with values to look at, which pattern 'magn",
    ),
    "magnitude of a layer on meta": (
        lambda: Linear(0, 0, torch_nn_linear=nn.Linear(8, 8, device="meta"), pattern="magnitude"),
        ValueError,
        "expected a layer with values to look at",
    ),
    "values of a layer on meta": (
        lambda: Linear(0, 0, torch_nn_linear=nn.Linear(8, 8, device="meta"), device="cpu"),
        ValueError,
        "torch_nn_linear is on the meta device, which holds no data, and device is cpu, expected",
    ),
    "matrix of too many blocks": (
        lambda: Matrix((64, 96), n_blocks=7),
        ValueError,
        "n_blocks is 7 (int), expected 1 to 6 (2 x 3 blocks)",
    ),
    "matrix of an unknown pattern": (
        lambda: Matrix((64, 96), n_blocks=2, pattern="checkers"),
        ValueError,
        "pattern is 'checkers' (str), expected",
    ),
    "pattern with no block": (
        lambda: Linear(96, 64, pattern=EMPTY),
        ValueError,
        "pattern has no block set, expected at least one",
    ),
    "pattern of the wrong shape": (
        lambda: Linear(64, 96, pattern=FULL),
        ValueError,
        "pattern is a torch.bool tensor of shape (2, 3) on cpu, expected the shape (3, 2) (block "
        "rows, block columns)",
    ),
    "pattern of elements": (
        lambda: Linear(96, 64, pattern=torch.ones(64, 96).bool()),
        ValueError,
        "expected the shape (2, 3) (block rows, block columns)",
    ),
    "pattern of floats": (
        lambda: Linear(96, 64, pattern=FULL.float()),
        TypeError,
        "pattern is a torch.float32 tensor of shape (2, 3) on cpu, expected a torch.bool tensor",
    ),
    "pattern is a list": (lambda: Linear(96, 64, pattern=[[True]]), ValueError, "pattern is [["),
    "too few blocks for the diagonal": (
        lambda: Linear(512, 512, density=0.01, pattern="diagonal+random"),
        ValueError,
        "block_count is 2, expected at least 16 for the diagonal of pattern 'diagonal+random' on a "
        "grid of 16 x 16 blocks, a density of 0.0625",
    ),
    "too few blocks for a butterfly": (
        lambda: Linear(512, 512, density=0.01, pattern="butterfly"),
        ValueError,
        "expected at least 16 for the diagonal of pattern 'butterfly'",
    ),
    "unknown activation": (
        lambda: Linear(32, 32, activation="tanh"),
        ValueError,
        "activation is 'tanh', expected one of 'none', 'relu', 'gelu', 'gelu_tanh', 'silu'",
    ),
    "unknown preactivation": (
        lambda: Linear(32, 32, preactivation="keep"),
        ValueError,
        "preactivation is 'keep', expected 'save' or 'recompute'",
    ),
    "too few slots": (
        lambda: Linear(64, 64, density=1.0, slots=3),
        ValueError,
        "slots is 3 (int), expected an int of at least the 4 stored blocks",
    ),
    "slots no int": (lambda: Linear(64, 64, slots="many"), ValueError, "slots is 'many' (str)"),
    "dtype int": (
        lambda: Linear(32, 32, dtype=torch.int32),
        TypeError,
        "dtype is torch.int32, expected torch.float32, torch.float64, torch.bfloat16 or "
        "torch.float16",
    ),
    "dtype complex": (lambda: Linear(32, 32, dtype=torch.cfloat), TypeError, "dtype is torch.com"),
    "torch_nn_linear is something else": (
        lambda: Linear(0, 0, torch_nn_linear=nn.Conv1d(3, 3, 1)),
        TypeError,
        "expected a torch.nn.Linear",
    ),
    "to_dense of an activation": (
        lambda: Linear(32, 32, activation="relu").to_dense(),
        ValueError,
        "activation is 'relu', expected 'none': torch.nn.Linear has no activation",
    ),
    "both n_blocks and blocks": (
        lambda: Matrix.zeros((64, 96), 2, [(0, 0), (1, 1)]),
        ValueError,
        "n_blocks=2 and blocks were both given, expected at most one of them",
    ),
    "too many blocks": (
        lambda: Matrix.zeros((64, 96), 7),
        ValueError,
        "n_blocks is 7 (int), expected 1 to 6 (2 x 3 blocks)",
    ),
    "no blocks": (lambda: Matrix.zeros((64, 96), 0), ValueError, "n_blocks is 0 (int), expected 1"),
    "blocks empty": (
        lambda: Matrix.zeros((64, 96), blocks=[]),
        ValueError,
        "blocks is [] (list), expect",
    ),
    "blocks of three": (
        lambda: Matrix.zeros((64, 96), blocks=[(0, 0, 0)]),
        ValueError,
        "blocks is [(0, 0, 0)] (list), expected at least one, (row, column) each",
    ),
    "block outside": (
        lambda: Matrix.zeros((64, 96), blocks=[(0, 0), (2, 1)]),
        ValueError,
        "Block position (2,1) is outside the grid of 2 x 3 blocks: expected a row of 0 to 1",
    ),
    "block at a negative column": (
        lambda: Matrix.zeros((64, 96), blocks=[(0, -1)]),
        ValueError,
        "Block position (0,-1) is outside the grid of 2 x 3 blocks: expected a column of 0 to 2",
    ),
    "block twice": (
        lambda: Matrix.ones((64, 96), blocks=[(0, 1), (1, 1), (0, 1)]),
        ValueError,
        "Block position (0,1) was already used",
    ),
    "shape of one": (lambda: Matrix.zeros((64,)), ValueError, "shape is (64,) (tuple), expected"),
    "shape with 0": (lambda: Matrix.zeros((64, 0)), ValueError, "shape is (64, 0) (tuple), expec"),
    "mask of another grid": (
        lambda: Matrix((64, 64), FULL),
        ValueError,
        "block_mask is a torch.bool tensor of shape (2, 3) on cpu, expected the shape (2, 2)",
    ),
    "mask on meta": (lambda: Matrix((64, 96), FULL.to("meta")), ValueError, "on the meta device"),
    "no mask": (lambda: Matrix((64, 96)), ValueError, "block_mask is None, expected a mask, or"),
    "data of another count": (
        lambda: Matrix((64, 96), FULL, torch.zeros(5, 32, 32)),
        ValueError,
        "data is a torch.float32 tensor of shape (5, 32, 32) on cpu, expected the shape "
        "(6, 32, 32) (blocks, h, w)",
    ),
    "data of ints": (
        lambda: Matrix((64, 96), FULL, torch.zeros(6, 32, 32).int()),
        TypeError,
        "dtype is torch.int32, expected torch.float32",
    ),
    "dense of one dimension": (
        lambda: Matrix.from_dense(torch.zeros(64)),
        ValueError,
        "dense is a torch.float32 tensor of shape (64,) on cpu, expected a tensor (X, Y)",
    ),
    "dense of ints": (
        lambda: Matrix.from_dense(torch.zeros(64, 64).int()),
        TypeError,
        "the dtype of dense is torch.int32",
    ),
    "dense with both": (
        lambda: Matrix.from_dense(torch.zeros(64, 64), block_count=1, blocks=[(0, 0)]),
        ValueError,
        "block_count=1 and blocks were both given",
    ),
    "dense with too many": (
        lambda: Matrix.from_dense(torch.zeros(64, 64), block_count=5),
        ValueError,
        "block_count is 5 (int), expected 1 to 4 (a grid of 2 x 2 blocks)",
    ),
    "emulator mask": (
        lambda: BlockSparseMatrixEmulator((64, 64), FULL),
        ValueError,
        "block_mask is a torch.bool tensor of shape (2, 3)",
    ),
    "emulator data": (
        lambda: BlockSparseMatrixEmulator((64, 96), FULL, torch.zeros(1, 32, 32)),
        ValueError,
        "expected the shape (6, 32, 32) (blocks, h, w)",
    ),
    "bsr is dense": (
        lambda: Matrix.from_sparse_bsr(torch.zeros(64, 64)),
        ValueError,
        "bsr is a torch.float32 tensor of shape (64, 64) on cpu, expected a torch.sparse_bsr",
    ),
    "bsr is csr": (
        lambda: Matrix.from_sparse_bsr(torch.eye(4).to_sparse_csr()),
        ValueError,
        "bsr is a torch.float32 torch.sparse_csr tensor",
    ),
    "bsr is a batch": (
        lambda: Matrix.from_sparse_bsr(torch.ones(2, 4, 4).to_sparse_bsr((2, 2))),
        ValueError,
        "expected a torch.sparse_bsr tensor (X, Y)",
    ),
    "bsr is empty": (
        lambda: Matrix.from_sparse_bsr(torch.zeros(4, 4).to_sparse_bsr((2, 2))),
        ValueError,
        "bsr has no block, expected at least one",
    ),
    "bsr with another shape": (
        lambda: Matrix.from_sparse_bsr(torch.eye(8).to_sparse_bsr((2, 2)), shape=(5, 8)),
        ValueError,
        "shape is (5, 8), which is 3 x 4 blocks (2, 2), expected as many as bsr of shape (8, 8)",
    ),
    "generator of another device": (
        lambda: draw_pattern("random", (2, 2), 1, FakeGenerator()),
        ValueError,
        "generator is on cuda, expected a CPU generator",
    ),
    "pattern count": (
        lambda: draw_pattern("random", (2, 2), 5),
        ValueError,
        "block_count is 5 (int), expected 1 to 4 (a grid of 2 x 2 blocks)",
    ),
    "strategy ratio": (
        lambda: MagnitudeSparseOptimizerStrategy(1.5),
        ValueError,
        "cleanup_ratio is 1.5, expected 0 to 1",
    ),
    "strategy distribution": (
        lambda: MagnitudeSparseOptimizerStrategy(0.5, "cauchy"),
        ValueError,
        "Invalid new coefficients distribution cauchy, expected one of",
    ),
    "optimizer lr 0": (
        lambda: SparseOptimizer(small_matrix(), lr=0.0),
        ValueError,
        "Invalid learning rate: 0.0, expected above 0 to 1",
    ),
    "optimizer lr above 1": (
        lambda: SparseOptimizer(small_matrix(), lr=2.0),
        ValueError,
        "Invalid learning rate: 2.0",
    ),
    "optimizer method": (
        lambda: SparseOptimizer(small_matrix(), method="gradient"),
        ValueError,
        "Invalid Method gradient, expected one of ('magnitude',)",
    ),
    "optimizer distribution": (
        lambda: SparseOptimizer(small_matrix(), new_coefficients_distribution="cauchy"),
        ValueError,
        "Invalid new coefficients distribution cauchy",
    ),
    "optimizer of a linear": (
        lambda: SparseOptimizer([Linear(32, 32)]),
        TypeError,
        "sparse_objects has a BlockSparseLinear, expected BlockSparseMatrix modules",
    ),
    "optimizer of nothing": (
        lambda: SparseOptimizer([]),
        ValueError,
        "sparse_objects is empty, expected at least one BlockSparseMatrix",
    ),
    "optimizer of one twice": (
        lambda: SparseOptimizer([(m := small_matrix()), m]),
        ValueError,
        "some parameters appear in more than one parameter group",
    ),
    "optimizer group with an unknown option": (
        lambda: SparseOptimizer(small_matrix()).add_param_group(
            {"sparse_objects": small_matrix(), "momentum": 1}
        ),
        ValueError,
        "Unknown cleaning parameter momentum, expected one of lr, method, new_coefficients_dist",
    ),
    "optimizer group without objects": (
        lambda: SparseOptimizer(small_matrix()).add_param_group({"lr": 0.1}),
        TypeError,
        "param_group is {'lr': 0.1}, expected a dict with sparse_objects",
    ),
    "attached is no optimizer": (
        lambda: SparseOptimizer(small_matrix()).attach_optimizer(nn.Linear(1, 1)),
        TypeError,
        "expected a torch.optim.Optimizer",
    ),
}


class FakeGenerator(torch.Generator):
    device = torch.device("cuda")


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_refused(name: str) -> None:
    call, kind, sentence = CONSTRUCTION[name]
    with pytest.raises(kind) as error:
        call()
    assert says(error, sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("features", [63, 65, 0])
def test_wrong_number_of_features(features: int) -> None:
    layer = Linear(64, 96)
    with pytest.raises(ValueError, match=rf"x has shape \(2, {features}\); expected \(..., 64\)"):
        layer(torch.zeros(2, features))


def test_weights_device_and_dtype() -> None:
    layer = Linear(64, 96)
    with pytest.raises(RuntimeError, match="float64"):
        layer(torch.zeros(2, 64, dtype=torch.float64))
    half = Linear(64, 96, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="float16"):
        half(torch.zeros(2, 64))
