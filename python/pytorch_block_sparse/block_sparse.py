# SPDX-License-Identifier: Apache-2.0
"""`BlockSparseMatrix`: a weight that stores some of its blocks, as a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import functional
from ._matrix_api import join_blocks
from ._slots import SlotStorage
from ._validation import (
    as_count,
    as_mask,
    check_features,
    check_floating,
    check_generator,
    check_shape,
    describe,
    is_distributed,
    is_int,
)
from .emulator import BlockSparseMatrixEmulator
from .pattern import check_pattern_name

__all__ = ["BlockSparseMatrix", "BlockSparseMatrixEmulator", "stored_parameters"]

Self = TypeVar("Self", bound="BlockSparseMatrix")


class BlockSparseMatrix(SlotStorage):
    """A matrix (X, Y) that stores n of its R x C blocks (h, w).

    - `values`, a parameter (slots, h, w): block i of the stored order lives in slot
      `block_ids[i]`. A block never changes its slot while it is kept, so gradients and optimizer
      state stay beside it when others come and go. Slots beyond n are spare: not used, with zero
      gradient.
    - `crow_indices` (R + 1), `col_indices` (slots), `block_ids` (slots), int32 buffers: the
      pattern, in block compressed sparse rows (BSR). Saved.
    - `ccol_indices`, `row_indices`, `t_block_ids`, `plan`: the same by columns, and tables of a
      backend; `packed_index`, all of the index once more, in one tensor, which is what the
      operators read. Derived by `refresh`, not saved.

    A matrix may have no pattern yet: on the meta device, after `to_empty`, or from
    `torch.nn.utils.skip_init`. Products then refuse in a sentence until `reset_parameters` draws a
    pattern, `load_state_dict` brings one, or `refresh` takes the buffers that were assigned.

    Attributes:
        product: what a layer calls, as product(x, matrix, bias, activation, preactivation), in
            place of `functional.linear`; None most of the time. Pattern training looks at
            gradients this way.

    Args:
        shape: (X, Y), for a linear layer (out_features, in_features).
        block_mask: boolean (R, C), the blocks to store; None for a matrix without a pattern yet.
        data: their values (n, h, w), in stored order, copied; zeros if None.
        block_shape: (h, w), or one int for both. Any size from 1 up.
        n_blocks, pattern: without a mask, how many blocks `reset_parameters` shall draw, and the
            name of how: see `pattern.draw_pattern`.
        slots: room for blocks, at least n; n if None.
        device, dtype: of the values; by default those of `data`, else torch's defaults.

    Raises:
        ValueError, TypeError: in one sentence, for arguments that do not fit together.
    """

    def __init__(
        self,
        shape: Sequence[int],
        block_mask: Tensor | None = None,
        data: Tensor | None = None,
        block_shape: int | Sequence[int] = (32, 32),
        *,
        n_blocks: int | None = None,
        slots: int | None = None,
        pattern: str = "random",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, block_shape)
        if block_mask is not None:
            block_mask = as_mask(block_mask, self._grid, "block_mask")
            n_blocks = int(block_mask.sum())
        elif n_blocks is None or data is not None:
            raise ValueError("block_mask is None, expected a mask, or n_blocks and no data")
        else:
            r, c = self._grid
            n_blocks = as_count(n_blocks, "n_blocks", r * c, f"{r} x {c} blocks")
            check_pattern_name(pattern)
        slots = n_blocks if slots is None else slots
        if not is_int(slots) or not n_blocks <= slots < 2**31:
            raise ValueError(
                f"slots is {describe(slots)}, expected an int of at least the {n_blocks} stored "
                f"blocks and below {2**31}"
            )
        slots = int(slots)
        if data is not None:
            check_shape(data, (n_blocks, *self.block_shape), "data", "(blocks, h, w)")
            device = data.device if device is None else device
            dtype = data.dtype if dtype is None else dtype
        dtype = torch.get_default_dtype() if dtype is None else dtype
        check_floating(dtype, "dtype")
        self._pattern = pattern if block_mask is None else block_mask
        self._n_blocks = n_blocks
        self._ready = False
        self._register(
            torch.zeros((slots, *self.block_shape), device=device, dtype=dtype),
            *(
                torch.zeros(length, device=device, dtype=torch.int32)
                for length in (self._grid[0] + 1, slots, slots)
            ),
        )
        if block_mask is not None and not self.values.is_meta:
            self.draw_pattern_()
            if data is not None:
                self._set_stored_blocks(data)

    # Values.

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws new values and, where no pattern is set, a pattern.

        An element of the matrix is uniform in ±1 / sqrt(f), where f is the number of inputs that
        its row really has: the columns of the blocks stored in its block row. With every block
        stored this is how `torch.nn.Linear` starts. Drawn on the CPU, so that a seed gives the
        same values on every device and rank. On the meta device nothing happens.
        """
        check_generator(generator)
        if self.values.is_meta:
            return
        if not self._ready:
            self.draw_pattern_(generator)
        rows = self.build_coo_block_index()[0].cpu().long()
        bound = self.fan_in().cpu().rsqrt()[rows][:, None, None]
        uniform = torch.rand((rows.numel(), *self.block_shape), generator=generator, device="cpu")
        self._set_stored_blocks((2 * uniform - 1) * bound)

    def fan_in(self) -> Tensor:
        """(R,) float32: how many inputs the rows of each block row have, padding not counted."""
        rows, cols = self.build_coo_block_index().long()
        width = self.block_shape[1]
        widths = (self.shape[1] - cols * width).clamp(max=width).float()
        fan_in: Tensor = widths.new_zeros(self._grid[0]).index_add(0, rows, widths)
        return fan_in

    def stored_weights(self) -> int:
        """How many elements of the matrix are stored: without padding and spare slots."""
        heights, widths = (
            (size - which.long() * block).clamp(max=block)
            for size, which, block in zip(
                self.shape, self.build_coo_block_index(), self.block_shape, strict=True
            )
        )
        return int((heights * widths).sum())

    def stored_elements(self) -> Tensor:
        """(stored_weights(),): the stored elements, without padding and spare slots."""
        blocks = self._stored_blocks()
        return blocks.flatten() if self._padding is None else blocks[~self._padding]

    def _stored_blocks(self, data: Tensor | None = None) -> Tensor:
        self._require_pattern()
        data = self.values if data is None else data
        check_shape(data, self.values.shape, "data_replace", "(slots, h, w)")
        blocks = data[self._slots_of_blocks().long()]
        return blocks if self._padding is None else blocks.masked_fill(self._padding, 0)

    @torch.no_grad()
    def _set_stored_blocks(self, blocks: Tensor) -> None:
        self._require_pattern()
        blocks = blocks.to(device=self.block_ids.device, dtype=self.values.dtype)
        if self._padding is not None:
            blocks = blocks.masked_fill(self._padding, 0)
        # Through a whole tensor, since under FSDP the parameter is a shard of it.
        whole = blocks.new_zeros(self.values.shape)
        whole[self._slots_of_blocks().long()] = blocks
        copy_into(self.values, whole)

    # As other tensors.

    def to_dense(self, data_replace: Tensor | None = None) -> Tensor:
        """The dense matrix (X, Y): zero where no block is stored; differentiable.

        Args:
            data_replace: (slots, h, w), for example a gradient, to be laid out instead of the
                values.
        """
        blocks = self._stored_blocks(data_replace)
        rows, cols = self.build_coo_block_index().long()
        grid = blocks.new_zeros((*self._grid, *self.block_shape)).index_put((rows, cols), blocks)
        return join_blocks(grid, self.shape)

    def to_sparse_bsr(self) -> Tensor:
        """The stored blocks as a torch.sparse_bsr tensor, without gradient.

        It shares the memory of the values where it can: when the blocks are in stored order (a
        new matrix, or after `canonicalize_`) and none sticks out. The index, one int a block, is
        copied: a pattern that changes later must not reach into another tensor. The shape is that
        of the whole blocks, (R·h, C·w).
        """
        self._require_pattern()
        n = self._n_blocks
        in_order = torch.equal(
            self._slots_of_blocks(),
            torch.arange(n, dtype=torch.int32, device=self.crow_indices.device),
        )
        shared = in_order and not self._is_ragged
        values = self.values[:n] if shared else self._stored_blocks()
        (r, c), (h, w) = self._grid, self.block_shape
        return torch.sparse_bsr_tensor(
            self.crow_indices.clone(),
            self.col_indices[:n].clone(),
            values.detach(),
            (r * h, c * w),
            check_invariants=False,  # `refresh` has checked the index
        )

    @classmethod
    def from_sparse_bsr(cls: type[Self], bsr: Tensor, shape: Sequence[int] | None = None) -> Self:
        """A matrix whose values are the memory of a torch.sparse_bsr tensor.

        Only values that are not contiguous are copied, and the index, one int a block.

        Args:
            bsr: (X, Y), two-dimensional, with at least one block.
            shape: (X, Y) where the last blocks of `bsr` stick out of the matrix; `bsr.shape` if
                None.

        Raises:
            ValueError: in one sentence, for any other tensor.
        """
        if not isinstance(bsr, Tensor) or bsr.layout != torch.sparse_bsr or bsr.ndim != 2:
            raise ValueError(f"bsr is {describe(bsr)}, expected a torch.sparse_bsr tensor (X, Y)")
        values = bsr.values().detach().contiguous()
        n, *block_shape = values.shape
        if n == 0:
            raise ValueError("bsr has no block, expected at least one")
        check_floating(bsr.dtype, "the dtype of bsr")
        matrix = cls(
            bsr.shape if shape is None else shape,
            block_shape=block_shape,
            n_blocks=n,
            device="meta",
            dtype=bsr.dtype,
        )
        (r, c), (h, w) = matrix._grid, matrix.block_shape
        if bsr.shape != (r * h, c * w):
            raise ValueError(
                f"shape is {tuple(matrix.shape)}, which is {r} x {c} blocks ({h}, {w}), expected "
                f"as many as bsr of shape {tuple(bsr.shape)} has"
            )
        crow, col = (
            _as_int32(getattr(bsr, name)(), f"{name} of bsr")
            for name in ("crow_indices", "col_indices")
        )
        ids = torch.arange(n, dtype=torch.int32, device=crow.device)
        matrix._register(values, crow, col, ids)
        matrix.refresh()
        return matrix

    # Products.

    def reverse_matmul(self, dense_a: Tensor, transpose: bool) -> Tensor:
        """`dense_a @ selfᵀ`, (…, Y) -> (…, X), if `transpose`, else `dense_a @ self`,
        (…, X) -> (…, Y); differentiable."""
        if transpose:
            return functional.linear(dense_a, self)
        check_features(dense_a, self.shape[0], "dense_a")
        result: Tensor = torch.ops.block_sparse.linear_input_grad(
            dense_a, self.values, self.operands, self.shape[1], functional.allows_tf32(dense_a)
        )
        return result

    def matmul_with_output_sparse_support(
        self, dense_a: Tensor, dense_b: Tensor, overwrite_data: bool = False
    ) -> Tensor:
        """`dense_aᵀ @ dense_b` on the stored blocks, differentiable.

        Args:
            dense_a: (…, X).
            dense_b: (…, Y).
            overwrite_data: write the result into `values`, in place.

        Returns:
            (slots, h, w), in the layout of `values`.
        """
        check_features(dense_a, self.shape[0], "dense_a")
        check_features(dense_b, self.shape[1], "dense_b")
        check_shape(dense_b[..., 0], dense_a.shape[:-1], "dense_b[..., 0]", "of dense_a[..., 0]")
        result: Tensor = torch.ops.block_sparse.linear_weight_grad(
            dense_a,
            dense_b,
            self.operands,
            *self.values.shape,
            None,
            functional.allows_tf32(dense_a),
        )
        if overwrite_data:
            with torch.no_grad():
                self.values.copy_(result)
        return result

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch's functions do when they are given `layer.weight` for a tensor.

        `torch.nn.functional.linear` works; the others refuse. That torch finds this method at all
        also keeps it off its fused paths for nn.TransformerEncoderLayer, which look at weights.
        """
        arguments = dict(zip(("x", "weight", "bias"), args, strict=False))
        arguments |= {"x" if k == "input" else k: v for k, v in (kwargs or {}).items()}
        if func is nn.functional.linear and isinstance(arguments.get("weight"), cls):
            return functional.linear(**arguments)
        raise TypeError(
            f"{torch.overrides.resolve_name(func)} was given a BlockSparseMatrix as a tensor, "
            "expected a dense weight: call the BlockSparseLinear instead, or pass to_dense(); "
            "torch.nn.MultiheadAttention cannot have a block-sparse out_proj"
        )

    def extra_repr(self) -> str:
        """Sizes, blocks and density."""
        pattern = f"blocks={self._n_blocks}, density={self.density:.3g}"
        slots = "" if self.slots == self._n_blocks else f", slots={self.slots}"
        unset = "" if self._ready else ", no pattern yet"
        return f"{tuple(self.shape)}, block_shape={self.block_shape}, {pattern}{slots}{unset}"


def _as_int32(index: Tensor, name: str) -> Tensor:
    """A copy of an index tensor; torch's are int64 mostly, and cut to size would seem right."""
    copy = index.to(torch.int32, copy=True)
    cut = copy != index
    if bool(cut.any()):
        raise ValueError(f"{name} has {int(index[cut][0])}, expected at most {2**31 - 1}")
    return copy


def copy_into(parameter: nn.Parameter, whole: Tensor) -> None:
    """Writes a whole tensor into a parameter, which may be distributed (a DTensor)."""
    if is_distributed(parameter):
        from torch.distributed.tensor import distribute_tensor

        shards: Any = parameter
        whole = distribute_tensor(whole.to(shards.device), shards.device_mesh, shards.placements)
    parameter.copy_(whole)


def stored_parameters(module: nn.Module) -> int:
    """Number of parameters of a module without padding and spare slots; shared ones count once."""
    matrices = {m.values: m for m in module.modules() if isinstance(m, BlockSparseMatrix)}
    return sum(
        matrices[p].stored_weights() if p in matrices and matrices[p].has_pattern else p.numel()
        for p in module.parameters()
    )
