# SPDX-License-Identifier: Apache-2.0
"""`BlockSparseMatrixEmulator`: a block-sparse matrix by dense PyTorch alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._matrix_api import BlockMatrix, join_blocks, split_into_blocks
from ._validation import as_mask, check_floating, check_shape

__all__ = ["BlockSparseMatrixEmulator"]


class BlockSparseMatrixEmulator(BlockMatrix):
    """The surface of `BlockSparseMatrix` on a dense parameter and a mask of blocks.

    Slow and as large as the dense matrix: it is there to test against. Where `BlockSparseMatrix`
    has (slots, h, w), here it is (X, Y).

    Args:
        shape: (X, Y).
        block_mask: boolean (R, C), the blocks to store.
        data: their values (n, h, w), in stored order, copied; zeros if None.
        block_shape: (h, w), or one int for both.
        device, dtype: by default those of `data`, else torch's defaults.

    Attributes:
        dense: parameter (X, Y); what it holds outside of the stored blocks is never used.
        block_mask: bool buffer (R, C).
    """

    dense: nn.Parameter
    block_mask: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        block_mask: Tensor,
        data: Tensor | None = None,
        block_shape: int | Sequence[int] = (32, 32),
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, block_shape)
        mask = as_mask(block_mask, self._grid, "block_mask")
        if data is not None:
            check_shape(data, (int(mask.sum()), *self.block_shape), "data", "(blocks, h, w)")
            device = data.device if device is None else device
            dtype = data.dtype if dtype is None else dtype
        dtype = torch.get_default_dtype() if dtype is None else dtype
        check_floating(dtype, "dtype")
        self.dense = nn.Parameter(torch.zeros(tuple(self.shape), device=device, dtype=dtype))
        self.register_buffer("block_mask", mask.to(self.dense.device))
        if data is not None:
            self._set_stored_blocks(data)

    @property
    def mask(self) -> Tensor:
        """(X, Y) bool: True in the stored blocks."""
        h, w = self.block_shape
        mask = self.block_mask.repeat_interleave(h, 0).repeat_interleave(w, 1)
        return mask[: self.shape[0], : self.shape[1]]

    def build_coo_block_index(self) -> Tensor:
        """(2, n) int32: block row and block column of the stored blocks, in stored order.

        Raises:
            RuntimeError: on the meta device, where no pattern is known.
        """
        if self.block_mask.is_meta:
            raise RuntimeError(
                f"this BlockSparseMatrixEmulator of shape {tuple(self.shape)} is on the meta "
                "device, which holds no pattern: make it on a device that holds data"
            )
        return self.block_mask.nonzero().T.to(torch.int32)

    def get_differentiable_data(self) -> nn.Parameter:
        """`dense`."""
        return self.dense

    def _stored_blocks(self, data: Tensor | None = None) -> Tensor:
        rows, cols = self.build_coo_block_index().long()
        return split_into_blocks(self.to_dense(data), self.block_shape)[rows, cols]

    @torch.no_grad()
    def _set_stored_blocks(self, blocks: Tensor) -> None:
        rows, cols = self.build_coo_block_index().long()
        self.dense.copy_(self._laid_out(rows, cols, blocks))

    def _laid_out(self, rows: Tensor, cols: Tensor, blocks: Tensor) -> Tensor:
        """Blocks (n, h, w) at (rows, cols) of a dense matrix (X, Y), zeros elsewhere."""
        grid = self.dense.new_zeros((*self._grid, *self.block_shape))
        grid[rows, cols] = blocks.to(grid)
        return join_blocks(grid, self.shape)

    @torch.no_grad()
    def _move_blocks(self, rows: Tensor, cols: Tensor) -> None:
        device = self.dense.device
        dense = self._laid_out(rows.to(device), cols.to(device), self._stored_blocks())
        self.block_mask.copy_(self.block_mask_build(torch.stack([rows, cols])))
        self.dense.copy_(dense)

    def to_dense(self, data_replace: Tensor | None = None) -> Tensor:
        """The dense matrix (X, Y), or `data_replace` (X, Y), zero where no block is stored."""
        data = self.dense if data_replace is None else data_replace
        check_shape(data, self.shape, "data_replace", "(X, Y)")
        # Not a product: 0 * nan is nan, in the values as in the gradient.
        return data.masked_fill(~self.mask, 0)

    def reverse_matmul(self, dense_a: Tensor, transpose: bool = True) -> Tensor:
        """`dense_a @ selfᵀ`, (…, Y) -> (…, X), if `transpose`, else `dense_a @ self`,
        (…, X) -> (…, Y)."""
        dense = self.to_dense()
        return dense_a @ (dense.T if transpose else dense)

    def matmul_with_output_sparse_support(
        self, dense_a: Tensor, dense_b: Tensor, overwrite_data: bool = False
    ) -> Tensor:
        """`dense_aᵀ @ dense_b`, (…, X) and (…, Y), on the stored blocks: (X, Y)."""
        result = self.to_dense(dense_a.flatten(0, -2).T @ dense_b.flatten(0, -2))
        if overwrite_data:
            with torch.no_grad():
                self.dense.copy_(result)
        return result
