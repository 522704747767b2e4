# SPDX-License-Identifier: Apache-2.0
"""BlockSparseMatrixEmulator has the surface of BlockSparseMatrix and agrees with it."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from dense_reference import random_matrix

from pytorch_block_sparse import BlockSparseMatrix, BlockSparseMatrixEmulator

SIZES = [((128, 64), (32, 32), 5), ((50, 70), (16, 32), 6), ((3, 5), (1, 1), 2)]


def pair(
    shape: tuple[int, int], block_shape: tuple[int, int], n: int
) -> tuple[BlockSparseMatrix, BlockSparseMatrixEmulator]:
    real = random_matrix(shape, block_shape, n)
    blocks = real._stored_blocks().detach()
    emulator = BlockSparseMatrixEmulator(shape, real.block_mask_build(), blocks, block_shape)
    return real, emulator


def test_surface() -> None:
    for name, member in inspect.getmembers(BlockSparseMatrix):
        if name.startswith("_") or hasattr(torch.nn.Module, name):
            continue
        if callable(member) and name in dir(BlockSparseMatrixEmulator):
            ours = list(inspect.signature(member).parameters)
            theirs = list(inspect.signature(getattr(BlockSparseMatrixEmulator, name)).parameters)
            assert ours == theirs, name
    of_0_1 = (
        "zeros ones randn from_dense blocks_count build_coo_block_index block_mask_build to_dense "
        "to_sparse check_with_dense reverse_matmul matmul_with_output_sparse_support block_norm "
        "block_replace multiply_ get_differentiable_data"
    )
    for name in of_0_1.split():
        assert callable(getattr(BlockSparseMatrix, name))
        assert callable(getattr(BlockSparseMatrixEmulator, name))


@pytest.mark.parametrize(("shape", "block_shape", "n"), SIZES)
def test_agrees(shape: tuple[int, int], block_shape: tuple[int, int], n: int) -> None:
    real, emulator = pair(shape, block_shape, n)
    assert torch.equal(real.to_dense(), emulator.to_dense())
    assert torch.equal(real.to_sparse().to_dense(), emulator.to_sparse().to_dense())
    assert torch.equal(real.build_coo_block_index(), emulator.build_coo_block_index())
    assert real.blocks_count() == emulator.blocks_count()
    torch.testing.assert_close(real.block_norm(), emulator.block_norm())
    emulator.check_with_dense(real.to_dense())
    a, b = torch.randn(2, 3, shape[0]), torch.randn(2, 3, shape[1])
    for transpose, x in ((True, b), (False, a)):
        torch.testing.assert_close(
            real.reverse_matmul(x, transpose), emulator.reverse_matmul(x, transpose)
        )
    torch.testing.assert_close(
        real.to_dense(real.matmul_with_output_sparse_support(a, b)),
        emulator.matmul_with_output_sparse_support(a, b),
    )
    free = (~real.block_mask_build()).nonzero()[:1]
    for matrix in (real, emulator):
        matrix.block_replace(torch.cat([free, torch.tensor([[n - 1]])], 1))
        matrix.multiply_(-2.0)
    assert torch.equal(real.to_dense(), emulator.to_dense())
    real.matmul_with_output_sparse_support(a, b, overwrite_data=True)
    emulator.matmul_with_output_sparse_support(a, b, overwrite_data=True)
    torch.testing.assert_close(real.to_dense(), emulator.to_dense())


def test_gradient() -> None:
    real, emulator = pair((50, 70), (16, 32), 6)
    x = torch.randn(3, 70)
    for matrix in (real, emulator):
        matrix.reverse_matmul(x, transpose=True).square().sum().backward()
        assert matrix.get_differentiable_data().grad is not None
    torch.testing.assert_close(real.to_dense(real.values.grad), emulator.dense.grad)


def test_constructors_and_copies() -> None:
    emulator = BlockSparseMatrixEmulator.randn((3, 5), 2, block_shape=(1, 1), positive=True)
    assert int((emulator.to_dense() > 0).sum()) == 2
    dense = torch.randn(6, 4)
    assert torch.equal(BlockSparseMatrixEmulator.from_dense(dense, (4, 3)).to_dense(), dense)
    copied = copy.deepcopy(emulator)
    copied.multiply_(0.0)
    other = BlockSparseMatrixEmulator.zeros((3, 5), 4, block_shape=(1, 1))
    other.load_state_dict(emulator.state_dict())
    assert torch.equal(other.to_dense(), emulator.to_dense())
    assert other.to_dense().any()
    assert emulator.dtype == torch.float32
    assert emulator.requires_grad
    assert emulator.device.type == torch.get_default_device().type
    assert len({emulator, other}) == 2


@pytest.mark.parametrize("outside", [float("nan"), float("inf"), 3.0])
def test_what_is_held_outside_of_the_blocks_is_never_used(outside: float) -> None:
    real, emulator = pair((50, 70), (16, 32), 6)
    with torch.no_grad():
        emulator.dense[~emulator.mask] = outside
    assert torch.equal(emulator.to_dense(), real.to_dense())
    torch.testing.assert_close(emulator.block_norm(), real.block_norm())
    x = torch.randn(3, 70)
    y = emulator.reverse_matmul(x, transpose=True)
    torch.testing.assert_close(y, real.reverse_matmul(x, transpose=True))
    # Nor does a gradient get there, whatever it is.
    y.backward(torch.full_like(y, outside))
    gradient = emulator.dense.grad
    assert gradient is not None
    assert not gradient[~emulator.mask].any()
    assert gradient[emulator.mask].any()


def test_to_dense_keeps_the_dtype_of_what_replaces_the_data() -> None:
    emulator = pair((50, 70), (16, 32), 6)[1]
    for dtype in (torch.bool, torch.int8, torch.bfloat16, torch.float64):
        replaced = emulator.to_dense(torch.ones(50, 70, dtype=dtype))
        assert replaced.dtype == dtype
        assert torch.equal(replaced, emulator.mask.to(dtype))
