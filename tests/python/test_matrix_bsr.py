# SPDX-License-Identifier: Apache-2.0
"""BlockSparseMatrix to and from torch.sparse_bsr."""

from __future__ import annotations

import pytest
import torch
from dense_reference import random_matrix

from pytorch_block_sparse import BlockSparseMatrix


def test_export_shares_memory_when_in_order() -> None:
    matrix = BlockSparseMatrix.randn((128, 96), 5)
    bsr = matrix.to_sparse_bsr()
    assert bsr.layout == torch.sparse_bsr
    assert bsr.shape == (128, 96)
    assert torch.equal(bsr.to_dense(), matrix.to_dense())
    assert bsr.values().data_ptr() == matrix.values.data_ptr()
    assert not bsr.requires_grad
    # A pattern that changes does not reach into it: it stays a valid tensor.
    index = bsr.crow_indices().clone(), bsr.col_indices().clone()
    matrix.set_pattern_(matrix.block_mask_build().flip(0, 1))
    assert torch.equal(bsr.crow_indices(), index[0])
    assert torch.equal(bsr.col_indices(), index[1])
    torch.sparse_bsr_tensor(
        bsr.crow_indices(), bsr.col_indices(), bsr.values(), bsr.shape, check_invariants=True
    )


def test_export_out_of_order() -> None:
    matrix = random_matrix((128, 96), (32, 32), 5)
    assert torch.equal(matrix.to_sparse_bsr().to_dense(), matrix.to_dense())
    assert matrix.to_sparse_bsr().values().data_ptr() != matrix.values.data_ptr()
    matrix.canonicalize_()
    bsr = matrix.to_sparse_bsr()
    assert bsr.values().data_ptr() == matrix.values.data_ptr()
    assert bsr.values().shape == (5, 32, 32)
    assert torch.equal(bsr.to_dense(), matrix.to_dense())


def test_export_of_a_ragged_matrix_has_the_padded_shape() -> None:
    matrix = random_matrix((50, 70), (16, 32), 6)
    bsr = matrix.to_sparse_bsr()
    assert bsr.shape == (64, 96)
    assert torch.equal(bsr.to_dense()[:50, :70], matrix.to_dense())
    assert not bsr.to_dense()[50:].any()
    back = BlockSparseMatrix.from_sparse_bsr(bsr, shape=(50, 70))
    assert torch.equal(back.to_dense(), matrix.to_dense())


@pytest.mark.parametrize("padding", [7.0, float("nan"), float("inf")])
def test_export_leaves_out_what_the_padding_holds(padding: float) -> None:
    matrix = BlockSparseMatrix.randn((50, 70), 4 * 3, block_shape=(16, 32))  # in stored order
    dense = matrix.to_dense().detach()
    with torch.no_grad():
        rows = matrix.values.view(4, 3, 16, 32)
        rows[3, :, 50 - 3 * 16 :] = padding
        rows[:, 2, :, 70 - 2 * 32 :] = padding
    exported = matrix.to_sparse_bsr().to_dense()
    assert torch.equal(exported[:50, :70], dense)
    assert not exported[50:].any()
    assert not exported[:, 70:].any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_import_shares_memory(dtype: torch.dtype) -> None:
    dense = torch.randn(64, 96) * torch.eye(64, 96)
    bsr = dense.to_sparse_bsr((16, 32))
    bsr = torch.sparse_bsr_tensor(
        bsr.crow_indices().to(dtype),
        bsr.col_indices().to(dtype),
        bsr.values().contiguous(),
        bsr.shape,
        check_invariants=True,
    )
    matrix = BlockSparseMatrix.from_sparse_bsr(bsr)
    assert torch.equal(matrix.to_dense(), dense)
    assert matrix.values.data_ptr() == bsr.values().data_ptr()
    assert matrix.col_indices.data_ptr() != bsr.col_indices().data_ptr()
    assert matrix.requires_grad
    x = torch.randn(3, 96)
    torch.testing.assert_close(matrix.reverse_matmul(x, True), x @ dense.T)
    torch.testing.assert_close(
        matrix.reverse_matmul(torch.ones(2, 64), False), torch.ones(2, 64) @ dense
    )


def test_round_trip_is_the_same_memory() -> None:
    matrix = BlockSparseMatrix.randn((64, 64), 3, dtype=torch.bfloat16)
    back = BlockSparseMatrix.from_sparse_bsr(matrix.to_sparse_bsr())
    assert back.values.data_ptr() == matrix.values.data_ptr()
    assert [a.tolist() for a in back.index] == [b.tolist() for b in matrix.index]
    assert back.dtype == torch.bfloat16


def test_values_that_are_not_contiguous_are_copied() -> None:
    values = torch.randn(2, 8, 4).transpose(1, 2)
    bsr = torch.sparse_bsr_tensor(
        torch.tensor([0, 1, 2]), torch.tensor([1, 0]), values, (8, 16), check_invariants=True
    )
    assert torch.equal(BlockSparseMatrix.from_sparse_bsr(bsr).to_dense(), bsr.to_dense())
