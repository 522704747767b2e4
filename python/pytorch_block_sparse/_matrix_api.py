# SPDX-License-Identifier: Apache-2.0
"""What every block matrix offers, whatever it stores: the constructors and checks of 0.1."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ._validation import (
    as_count,
    as_pair,
    check_dense,
    check_floating,
    check_generator,
    check_shape,
    describe,
    is_integer,
)
from .density import block_grid
from .pattern import check_inside, check_positions, draw_pattern

Self = TypeVar("Self", bound="BlockMatrix")


class BlockMatrix(nn.Module):
    """A matrix (X, Y) cut into R x C blocks (h, w), of which some are stored.

    The last block row and column may stick out of the matrix (X or Y not a multiple of the block).
    What sticks out is padding: zero, never read and never counted.

    "Stored order" is the order of the stored blocks by row, then by column.
    """

    shape: torch.Size
    block_shape: tuple[int, int]

    def __init__(self, shape: Sequence[int], block_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.shape = torch.Size(as_pair(shape, "shape"))
        self.block_shape = as_pair(block_shape, "block_shape")
        # 0.1 looked for positions used twice only where this was set; now it always does.
        self.check_ = False

    def blocks_count(self) -> torch.Size:
        """(R, C): how many block rows and block columns there are, stored or not."""
        return torch.Size(self._grid)

    @property
    def _grid(self) -> tuple[int, int]:
        return block_grid((self.shape[0], self.shape[1]), self.block_shape)

    # What code that peeks at `linear.weight` asks for.

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.get_differentiable_data().dtype

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return self.get_differentiable_data().device

    @property
    def requires_grad(self) -> bool:
        """Whether the values are trained."""
        return self.get_differentiable_data().requires_grad

    # What a subclass defines.

    def build_coo_block_index(self) -> Tensor:
        """(2, n) int32: block row and block column of the stored blocks, in stored order."""
        raise NotImplementedError

    def get_differentiable_data(self) -> nn.Parameter:
        """The parameter that receives the gradient."""
        raise NotImplementedError

    def to_dense(self, data_replace: Tensor | None = None) -> Tensor:
        """The dense matrix (X, Y); differentiable."""
        raise NotImplementedError

    def reverse_matmul(self, dense_a: Tensor, transpose: bool) -> Tensor:
        """`dense_a @ selfᵀ` if `transpose`, else `dense_a @ self`."""
        raise NotImplementedError

    def matmul_with_output_sparse_support(
        self, dense_a: Tensor, dense_b: Tensor, overwrite_data: bool = False
    ) -> Tensor:
        """`dense_aᵀ @ dense_b` on the stored blocks."""
        raise NotImplementedError

    def _stored_blocks(self, data: Tensor | None = None) -> Tensor:
        """(n, h, w): the stored blocks in stored order, padding zeroed; differentiable."""
        raise NotImplementedError

    def _set_stored_blocks(self, blocks: Tensor) -> None:
        """Overwrites the stored blocks by (n, h, w), in stored order; padding is zeroed."""
        raise NotImplementedError

    def _move_blocks(self, rows: Tensor, cols: Tensor) -> None:
        """Puts stored block i at (rows[i], cols[i]), CPU tensors (n,); values go with it."""
        raise NotImplementedError

    # Constructors.

    @classmethod
    def zeros(
        cls: type[Self],
        shape: Sequence[int],
        n_blocks: int | None = None,
        blocks: Iterable[Sequence[int]] | None = None,
        block_shape: int | Sequence[int] = (32, 32),
        device: torch.device | str | None = None,
        *,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """A matrix of zeros on chosen blocks.

        Args:
            shape: (X, Y).
            n_blocks: store this many blocks at random places.
            blocks: store these, (row, column) each. With neither, all blocks are stored.
            block_shape: (h, w), or one int for both.
            device: of the values and the index; torch's default if None.
            dtype: of the values; torch's default if None.
            generator: CPU generator that draws the places.

        Raises:
            ValueError: if both `n_blocks` and `blocks` are given, a count or position is outside
                the grid, or a position is given twice.
        """
        check_generator(generator)
        block_shape = as_pair(block_shape, "block_shape")
        grid = block_grid(as_pair(shape, "shape"), block_shape)
        if n_blocks is not None and blocks is not None:
            raise ValueError(
                f"n_blocks={n_blocks} and blocks were both given, expected at most one of them"
            )
        if blocks is not None:
            mask = _mask_of(blocks, grid)
        elif n_blocks is not None:
            as_count(n_blocks, "n_blocks", grid[0] * grid[1], f"{grid[0]} x {grid[1]} blocks")
            mask = draw_pattern("random", grid, n_blocks, generator)
        else:
            mask = torch.ones(grid, dtype=torch.bool, device="cpu")
        make: Callable[..., Self] = cls
        return make(shape, mask, None, block_shape, device=device, dtype=dtype)

    @classmethod
    def ones(
        cls: type[Self],
        shape: Sequence[int],
        n_blocks: int | None = None,
        blocks: Iterable[Sequence[int]] | None = None,
        block_shape: int | Sequence[int] = (32, 32),
        device: torch.device | str | None = None,
        positive: bool = False,
        **options: Any,
    ) -> Self:
        """Like `zeros`, with ones in the stored blocks; `positive` changes nothing."""
        matrix = cls.zeros(shape, n_blocks, blocks, block_shape, device, **options)
        blocks_of_ones = torch.ones((), device=matrix.get_differentiable_data().device)
        matrix._set_stored_blocks(blocks_of_ones.expand(matrix._stored_blocks().shape))
        return matrix

    @classmethod
    def randn(
        cls: type[Self],
        shape: Sequence[int],
        n_blocks: int | None = None,
        blocks: Iterable[Sequence[int]] | None = None,
        block_shape: int | Sequence[int] = (32, 32),
        device: torch.device | str | None = None,
        positive: bool = False,
        **options: Any,
    ) -> Self:
        """Like `zeros`, with N(0, 1) in the stored blocks, or |N(0, 1)| if `positive`.

        Drawn on the CPU, so that a seed gives the same matrix on every device.
        """
        matrix = cls.zeros(shape, n_blocks, blocks, block_shape, device, **options)
        values = torch.randn(
            matrix._stored_blocks().shape, generator=options.get("generator"), device="cpu"
        )
        matrix._set_stored_blocks(values.abs() if positive else values)
        return matrix

    @classmethod
    def from_dense(
        cls: type[Self],
        dense: Tensor,
        block_shape: int | Sequence[int] = (32, 32),
        block_count: int | None = None,
        blocks: Iterable[Sequence[int]] | None = None,
        slow: bool = False,
        out: Self | None = None,
    ) -> Self:
        """Takes the values of a dense matrix on chosen blocks, exactly.

        Args:
            dense: (X, Y), of a floating dtype, which the result keeps.
            block_shape: (h, w), or one int for both.
            block_count: keep the blocks of largest L2 norm, this many. (0.1 kept wrong values.)
            blocks: keep these, (row, column) each. With neither, all blocks are kept.
            slow: of 0.1, changes nothing.
            out: a matrix to fill, on the blocks that it stores, and to return; then none of the
                above is used.

        Raises:
            ValueError: for a tensor that is not (X, Y), or for what `zeros` refuses.
        """
        del slow
        if not isinstance(dense, Tensor) or dense.ndim != 2:
            raise ValueError(f"dense is {describe(dense)}, expected a tensor (X, Y)")
        check_dense(dense, "dense")
        if dense.is_meta:
            raise ValueError("dense is on the meta device, which holds no data")
        check_floating(dense.dtype, "the dtype of dense")
        dense = dense.detach()
        if out is None:
            if block_count is not None and blocks is not None:
                raise ValueError(
                    f"block_count={block_count} and blocks were both given, expected at most one"
                )
            block_shape = as_pair(block_shape, "block_shape")
            if block_count is not None:
                mask = largest_blocks(dense, block_shape, block_count)
            elif blocks is not None:
                mask = _mask_of(blocks, block_grid((dense.shape[0], dense.shape[1]), block_shape))
            else:
                grid = block_grid((dense.shape[0], dense.shape[1]), block_shape)
                mask = torch.ones(grid, dtype=torch.bool, device="cpu")
            make: Callable[..., Self] = cls
            out = make(dense.shape, mask, None, block_shape, device=dense.device, dtype=dense.dtype)
        elif not isinstance(out, BlockMatrix):
            raise TypeError(f"out is {describe(out)}, expected a block-sparse matrix to fill")
        elif dense.shape != out.shape:
            raise ValueError(
                f"dense is {describe(dense)}, expected the shape of out, {tuple(out.shape)}"
            )
        rows, cols = out.build_coo_block_index().long()
        # Rows and columns of `rows` live on the device of `out`.
        blocks_of_dense = split_into_blocks(dense, out.block_shape)
        out._set_stored_blocks(
            blocks_of_dense[rows.to(dense.device), cols.to(dense.device)].to(rows.device)
        )
        return out

    # Queries and small edits.

    def check_with_dense(self, dense: Tensor) -> None:
        """Raises ValueError "non matching data" unless the stored blocks equal those of `dense`."""
        check_shape(dense, self.shape, "dense", "(X, Y)")
        rows, cols = self.build_coo_block_index().long()
        blocks = split_into_blocks(dense, self.block_shape)[rows, cols]
        if not torch.equal(blocks, self._stored_blocks()):
            raise ValueError("non matching data")

    def to_sparse(self, data_replace: Tensor | None = None) -> Tensor:
        """A coalesced sparse COO tensor (R, C, h, w) of the stored blocks; differentiable.

        Args:
            data_replace: taken instead of the values; same layout.
        """
        return torch.sparse_coo_tensor(
            self.build_coo_block_index().long(),
            self._stored_blocks(data_replace),
            (*self._grid, *self.block_shape),
            is_coalesced=True,
            check_invariants=False,  # `refresh` has checked the index
        )

    def block_mask_build(self, block_positions: Tensor | None = None) -> Tensor:
        """(R, C) bool: True at the stored blocks, or at `block_positions`, (2, k) ints.

        Raises:
            ValueError: if `block_positions` is something else, or outside the grid.
        """
        if block_positions is None:
            positions = self.build_coo_block_index().long()
        else:
            positions = _as_positions(block_positions, self._grid)
        mask = torch.zeros(self._grid, dtype=torch.bool, device=positions.device)
        mask[positions[0], positions[1]] = True
        return mask

    def block_norm(self, p: float = 2) -> Tensor:
        """(n,): the p-norm of the elements of each stored block, in stored order."""
        norms: Tensor = torch.linalg.vector_norm(self._stored_blocks(), ord=p, dim=(1, 2))
        return norms

    def block_replace(self, block_replacements: Tensor) -> None:
        """Moves stored blocks to other places; their values go with them.

        Args:
            block_replacements: (k, 3) ints: the new row, the new column, and which block in stored
                order. A place that another block of the same call leaves may be taken.

        Raises:
            ValueError: if a place is outside the grid, or is used twice after the move ("Block
                position (r,c) was already used"), or a block does not exist or is moved twice. The
                matrix is then as it was.
        """
        try:
            moves = torch.as_tensor(block_replacements)
        except (TypeError, ValueError, RuntimeError):
            moves = torch.empty(0)
        if moves.ndim != 2 or moves.shape[1] != 3 or not is_integer(moves):
            raise ValueError(
                f"block_replacements is {describe(block_replacements)}, expected ints (k, 3): row, "
                "column, stored index"
            )
        moves = moves.cpu().long()
        rows, cols = self.build_coo_block_index().cpu().long()
        n = rows.numel()
        which = moves[:, 2]
        if which.numel() and (int(which.min()) < 0 or int(which.max()) >= n):
            bad = int(which[(which < 0) | (which >= n)][0])
            raise ValueError(f"block_replacements moves block {bad}, expected 0 to {n - 1}")
        if len(set(which.tolist())) != which.numel():
            raise ValueError("block_replacements moves a block twice, expected each at most once")
        rows[which], cols[which] = moves[:, 0], moves[:, 1]
        check_positions(rows, cols, self._grid)
        self._move_blocks(rows, cols)

    @torch.no_grad()
    def multiply_(self, factor: float) -> None:
        """Multiplies the values by a number, in place."""
        self.get_differentiable_data().mul_(factor)


def split_into_blocks(dense: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """(X, Y) -> (R, C, h, w), a copy padded with zeros where blocks stick out."""
    (x, y), (h, w) = dense.shape, block_shape
    rows, cols = block_grid((x, y), block_shape)
    padded = nn.functional.pad(dense, (0, cols * w - y, 0, rows * h - x))
    return padded.view(rows, h, cols, w).transpose(1, 2)


def join_blocks(blocks: Tensor, shape: Sequence[int]) -> Tensor:
    """(R, C, h, w) -> (X, Y), without what sticks out: the inverse of `split_into_blocks`."""
    rows, cols, h, w = blocks.shape
    return blocks.transpose(1, 2).reshape(rows * h, cols * w)[: shape[0], : shape[1]]


def largest_blocks(dense: Tensor, block_shape: tuple[int, int], block_count: int) -> Tensor:
    """Mask (R, C), on the CPU, of the `block_count` blocks of a dense matrix with the largest L2
    norm; of equal norms the one that comes first by rows."""
    blocks = split_into_blocks(dense.detach(), block_shape)
    rows, cols = blocks.shape[:2]
    as_count(block_count, "block_count", rows * cols, f"a grid of {rows} x {cols} blocks")
    norms = torch.linalg.vector_norm(blocks.float(), dim=(2, 3)).flatten().cpu()
    mask = torch.zeros(rows * cols, dtype=torch.bool, device="cpu")
    mask[norms.sort(descending=True, stable=True).indices[:block_count]] = True
    return mask.view(rows, cols)


def _mask_of(blocks: Iterable[Sequence[int]], grid: tuple[int, int]) -> Tensor:
    """The mask (R, C) of a list of (row, column)."""
    blocks = list(blocks) if isinstance(blocks, Iterable) else blocks
    try:
        positions = [tuple(map(_whole, block)) for block in blocks]
    except TypeError:
        positions = []
    if not positions or any(len(position) != 2 for position in positions):
        raise ValueError(
            f"blocks is {describe(blocks)}, expected at least one, (row, column) each, in ints"
        )
    rows, cols = torch.tensor(positions, dtype=torch.long, device="cpu").T
    check_positions(rows, cols, grid)
    mask = torch.zeros(grid, dtype=torch.bool, device="cpu")
    mask[rows, cols] = True
    return mask


def _as_positions(positions: object, grid: tuple[int, int]) -> Tensor:
    """Rows and columns (2, k) as int64; a place may come more than once."""
    if not isinstance(positions, Tensor) or positions.ndim != 2 or not is_integer(positions):
        raise ValueError(
            f"block_positions is {describe(positions)}, expected a tensor of ints (2, k)"
        )
    check_shape(positions, (2, positions.shape[1]), "block_positions", "(row and column, k)")
    positions = positions.long()
    check_inside(positions[0], positions[1], grid)
    return positions


def _whole(value: Any) -> int:
    """An int from what is one, also NumPy's; TypeError for truth values and fractions."""
    if isinstance(value, bool) or (isinstance(value, Tensor) and not is_integer(value)):
        raise TypeError
    return operator.index(value)
