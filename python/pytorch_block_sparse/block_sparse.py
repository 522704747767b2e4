# SPDX-License-Identifier: Apache-2.0
"""`BlockSparseMatrix`: a weight that stores some of its blocks, as a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import checkpoint, functional
from ._matrix_api import BlockMatrix
from ._validation import as_mask, check_floating, check_shape
from .pattern import check_index, draw_pattern, index_of

__all__ = ["BlockSparseMatrix", "stored_parameters"]

Self = TypeVar("Self", bound="BlockSparseMatrix")

SAVED_INDEX = ("crow_indices", "col_indices", "block_ids")
DERIVED_INDEX = ("ccol_indices", "row_indices", "t_block_ids", "plan")
_INDEX = (*SAVED_INDEX, *DERIVED_INDEX)


class BlockSparseMatrix(BlockMatrix):
    """A matrix (X, Y) that stores n of its R x C blocks (h, w).

    - `values`, a parameter (slots, h, w): block i of the stored order lives in slot
      `block_ids[i]`. A block never changes its slot while it is kept, so gradients and optimizer
      state stay beside it when others come and go. Slots beyond n are spare: not used, with zero
      gradient.
    - `crow_indices` (R + 1), `col_indices` (slots), `block_ids` (slots), int32 buffers: the
      pattern, in block compressed sparse rows (BSR). Saved.
    - `ccol_indices`, `row_indices`, `t_block_ids`, `plan`: the same by columns, and tables of a
      backend. Derived by `refresh`, not saved.

    A matrix may have no pattern yet: on the meta device, after `to_empty`, or from
    `torch.nn.utils.skip_init`. Products then refuse in a sentence until `reset_parameters` draws a
    pattern, `load_state_dict` brings one, or `refresh` takes the buffers that were assigned.

    Args:
        shape: (X, Y), for a linear layer (out_features, in_features).
        block_mask: boolean (R, C), the blocks to store; None for a matrix without a pattern yet.
        data: their values (n, h, w), in stored order, copied; zeros if None.
        block_shape: (h, w), or one int for both. Any size from 1 up.
        n_blocks: without a mask, how many blocks `reset_parameters` shall draw.
        slots: room for blocks, at least n; n if None.
        pattern: what `reset_parameters` draws where there is no pattern: see
            `pattern.draw_pattern`.
        device, dtype: of the values; by default those of `data`, else torch's defaults.

    Raises:
        ValueError, TypeError: in one sentence, for arguments that do not fit together.
    """

    values: nn.Parameter
    crow_indices: Tensor
    col_indices: Tensor
    block_ids: Tensor
    ccol_indices: Tensor
    row_indices: Tensor
    t_block_ids: Tensor
    plan: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        block_mask: Tensor | None = None,
        data: Tensor | None = None,
        block_shape: int | Sequence[int] = (32, 32),
        *,
        n_blocks: int | None = None,
        slots: int | None = None,
        pattern: str | Tensor = "random",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shape, block_shape)
        if block_mask is not None:
            pattern = block_mask = as_mask(block_mask, self._grid, "block_mask")
            n_blocks = int(block_mask.sum())
        elif n_blocks is None or data is not None:
            raise ValueError("block_mask is None, expected a mask, or n_blocks and no data")
        slots = n_blocks if slots is None else slots
        if not n_blocks <= slots < 2**31:
            raise ValueError(f"slots is {slots}, expected at least the {n_blocks} stored blocks")
        if data is not None:
            check_shape(data, (n_blocks, *self.block_shape), "data", "(blocks, h, w)")
            device = data.device if device is None else device
            dtype = data.dtype if dtype is None else dtype
        dtype = torch.get_default_dtype() if dtype is None else dtype
        check_floating(dtype, "dtype")
        self._pattern = pattern
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

    def _register(self, values: Tensor, crow: Tensor, col: Tensor, ids: Tensor) -> None:
        """Takes tensors as they are, without a copy, as parameter and buffers."""
        self.values = nn.Parameter(values)
        for name, tensor in zip(SAVED_INDEX, (crow, col, ids), strict=True):
            self.register_buffer(name, tensor)
        for name in DERIVED_INDEX:
            self.register_buffer(name, crow.new_zeros(self._derived_size(name)), persistent=False)

    def _derived_size(self, name: str) -> int:
        sizes = {"ccol_indices": self._grid[1] + 1, "plan": 0}
        return sizes.get(name, self.slots)

    # What code that peeks at `linear.weight` asks for.

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return self.values.device

    @property
    def requires_grad(self) -> bool:
        """Whether the values are trained."""
        return self.values.requires_grad

    @property
    def slots(self) -> int:
        """Room for blocks, `values.shape[0]`."""
        return self.values.shape[0]

    @property
    def n_blocks(self) -> int:
        """How many blocks are stored, or will be drawn if there is no pattern yet."""
        return self._n_blocks

    @property
    def density(self) -> float:
        """Stored blocks over all blocks."""
        return self._n_blocks / (self._grid[0] * self._grid[1])

    @property
    def has_pattern(self) -> bool:
        """Whether the pattern is set, so that products can run."""
        return self._ready

    @property
    def index(self) -> list[Tensor]:
        """The seven index tensors, in the order that the operators take them.

        Raises:
            RuntimeError: if no pattern is set.
        """
        buffers = self._buffers
        if not self._ready and not buffers["crow_indices"].is_meta:  # type: ignore[union-attr]
            self._require_pattern()
        return [buffers[name] for name in _INDEX]  # type: ignore[misc]

    def _require_pattern(self) -> None:
        if not self._ready:
            raise RuntimeError(
                f"this BlockSparseMatrix of shape {tuple(self.shape)} has no pattern yet: call "
                "reset_parameters() to draw one, load a state dict, or call refresh() after its "
                "buffers were assigned"
            )

    # Pattern.

    @torch.no_grad()
    def refresh(self) -> None:
        """Validates the saved index tensors and rebuilds the derived ones from them.

        Needed only after buffers were assigned from outside; every method here calls it. Tensors
        are rewritten in place where their shapes allow.

        Raises:
            ValueError: in one sentence, if they are no valid pattern; then products refuse.
        """
        if self.crow_indices.is_meta:
            self._ready = False
            return
        self._ready = False
        device = self.crow_indices.device
        check_index(self.crow_indices, self.col_indices, self.block_ids, self.slots, self._grid)
        saved = [self._buffers[name].cpu() for name in SAVED_INDEX]  # type: ignore[union-attr]
        derived = torch.ops.block_sparse.pattern_transpose(*saved, self._grid[1])
        for name, tensor in zip(DERIVED_INDEX, derived, strict=False):
            self._buffers[name] = _written(self._buffers[name], tensor, device)
        if self.plan.device != device:
            self._buffers["plan"] = self.plan.to(device)
        self._n_blocks = int(saved[0][-1])
        self._ready = True

    def set_pattern_(self, mask: Tensor) -> None:
        """Stores exactly the blocks of a boolean mask (R, C), which must fit into the slots.

        Blocks that were stored before are forgotten: all values become zero.
        """
        rows, cols = as_mask(mask, self._grid, "mask").nonzero().T
        if rows.numel() > self.slots:
            raise ValueError(f"mask has {rows.numel()} blocks, expected at most {self.slots} slots")
        self._write_index(rows, cols, torch.arange(rows.numel(), device="cpu"))
        with torch.no_grad():
            self.values.zero_()

    def draw_pattern_(self, generator: torch.Generator | None = None) -> None:
        """Draws the pattern that the matrix was made for; values become zero."""
        self.set_pattern_(draw_pattern(self._pattern, self._grid, self._n_blocks, generator))

    def _write_index(self, rows: Tensor, cols: Tensor, slots_of_blocks: Tensor) -> None:
        """Blocks at (rows, cols) in the given slots, CPU tensors (n,) in any order."""
        new = index_of(rows, cols, slots_of_blocks, self.slots, self._grid)
        with torch.no_grad():
            for name, tensor in zip(SAVED_INDEX, new, strict=True):
                old = self._buffers[name]
                assert old is not None
                self._buffers[name] = _written(old, tensor, old.device)
        self.refresh()

    def _move_blocks(self, rows: Tensor, cols: Tensor) -> None:
        self._require_pattern()
        self._write_index(rows, cols, self._slots_of_blocks().cpu())

    def _slots_of_blocks(self) -> Tensor:
        """(n,) int32: the slot of each block, in stored order."""
        return self.block_ids[: self._n_blocks]

    def build_coo_block_index(self) -> Tensor:
        """(2, n) int32: block row and block column of the stored blocks, in stored order."""
        self._require_pattern()
        counts = self.crow_indices.diff()
        rows = torch.arange(self._grid[0], dtype=torch.int32, device=counts.device)
        return torch.stack([rows.repeat_interleave(counts), self.col_indices[: self._n_blocks]])

    # Values.

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws new values and, where no pattern is set, a pattern.

        An element of the matrix is uniform in ±1 / sqrt(f), where f is the number of inputs that
        its row really has: the columns of the blocks stored in its block row. With every block
        stored this is how `torch.nn.Linear` starts. Drawn on the CPU, so that a seed gives the
        same values on every device and rank. On the meta device nothing happens.
        """
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
        return widths.new_zeros(self._grid[0]).index_add(0, rows, widths)

    def stored_weights(self) -> int:
        """How many elements of the matrix are stored: without padding and spare slots."""
        heights, widths = (
            (size - which.long() * block).clamp(max=block)
            for size, which, block in zip(
                self.shape, self.build_coo_block_index(), self.block_shape, strict=True
            )
        )
        return int((heights * widths).sum())

    def get_differentiable_data(self) -> nn.Parameter:
        """`values`."""
        return self.values

    def _stored_blocks(self, data: Tensor | None = None) -> Tensor:
        self._require_pattern()
        data = self.values if data is None else data
        check_shape(data, self.values.shape, "data_replace", "(slots, h, w)")
        blocks = data[self._slots_of_blocks().long()]
        return blocks if self._padding is None else blocks.masked_fill(self._padding, 0)

    @property
    def _padding(self) -> Tensor | None:
        """(n, h, w) bool, True where a stored block sticks out; None if none can."""
        overhang = [-size % block for size, block in zip(self.shape, self.block_shape, strict=True)]
        if overhang == [0, 0]:
            return None
        rows, cols = self.build_coo_block_index()
        h, w = self.block_shape
        device = rows.device
        below = torch.arange(h, device=device) >= h - overhang[0]
        right = torch.arange(w, device=device) >= w - overhang[1]
        last_row = (rows == self._grid[0] - 1)[:, None, None]
        last_col = (cols == self._grid[1] - 1)[:, None, None]
        return (last_row & below[:, None]) | (last_col & right)

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

    def to_dense(self, data_replace: Tensor | None = None) -> Tensor:
        """The dense matrix (X, Y): zero where no block is stored; differentiable.

        Args:
            data_replace: (slots, h, w), for example a gradient, to be laid out instead of the
                values.
        """
        blocks = self._stored_blocks(data_replace)
        rows, cols = self.build_coo_block_index().long()
        (r, c), (h, w) = self._grid, self.block_shape
        grid = blocks.new_zeros((r, c, h, w)).index_put((rows, cols), blocks)
        return grid.transpose(1, 2).reshape(r * h, c * w)[: self.shape[0], : self.shape[1]]

    # Products.

    def reverse_matmul(self, dense_a: Tensor, transpose: bool) -> Tensor:
        """`dense_a @ selfᵀ`, (…, Y) -> (…, X), if `transpose`, else `dense_a @ self`,
        (…, X) -> (…, Y); differentiable."""
        if transpose:
            return functional.linear(dense_a, self)
        return torch.ops.block_sparse.linear_input_grad(  # type: ignore[no-any-return]
            dense_a, self.values, self.index, self.shape[1], _allows_tf32(dense_a)
        )

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
        result: Tensor = torch.ops.block_sparse.linear_weight_grad(
            dense_a, dense_b, self.index, *self.values.shape, None, _allows_tf32(dense_a)
        )
        if overwrite_data:
            with torch.no_grad():
                self.values.copy_(result)
        return result

    # Changing which blocks are stored.

    def drop_and_grow_(
        self, drop: Tensor, rows: Tensor, cols: Tensor, values: Tensor | None = None
    ) -> Tensor:
        """Drops some blocks and stores others, within the slots.

        Blocks that are kept stay in their slots, bit for bit. The slots that hold the new blocks
        held something else before: clear their rows in every optimizer state.

        Args:
            drop: (k,) ints, which blocks to drop, in stored order.
            rows, cols: (g,) ints, where the new blocks are.
            values: (g, h, w), zeros if None.

        Returns:
            (g,) int64 on the CPU: the slots of the new blocks.

        Raises:
            ValueError: in one sentence, for a place that is outside or taken, a block that does
                not exist, or more blocks than slots. The matrix is then as it was.
        """
        self._require_pattern()
        n, g = self._n_blocks, rows.numel()
        drop = drop.cpu().long()
        if drop.numel() and (int(drop.min()) < 0 or int(drop.max()) >= n):
            raise ValueError(f"drop is {drop.tolist()}, expected stored indices of 0 to {n - 1}")
        if values is not None:
            check_shape(values, (g, *self.block_shape), "values", "(blocks, h, w)")
        keep = torch.ones(n, dtype=torch.bool, device="cpu")
        keep[drop] = False
        kept_slots = self._slots_of_blocks().cpu().long()[keep]
        free = torch.ones(self.slots, dtype=torch.bool, device="cpu")
        free[kept_slots] = False
        grown_slots = free.nonzero().flatten()[:g]
        if grown_slots.numel() < g:
            raise ValueError(
                f"rows and cols name {g} new blocks, expected at most {grown_slots.numel()}, the "
                f"free ones of {self.slots} slots"
            )
        old_rows, old_cols = self.build_coo_block_index().cpu().long()[:, keep]
        self._write_index(
            torch.cat([old_rows, rows.cpu().long()]),
            torch.cat([old_cols, cols.cpu().long()]),
            torch.cat([kept_slots, grown_slots]),
        )
        with torch.no_grad():
            device = self.values.device
            self.values[free.nonzero().flatten().to(device)] = 0
            if values is not None:
                self.values[grown_slots.to(device)] = values.to(self.values)
        return grown_slots

    @torch.no_grad()
    def canonicalize_(self) -> Tensor:
        """Puts the blocks into stored order, so that `block_ids` is the identity.

        Values and their gradient are reordered in place.

        Returns:
            (slots,) int64: what was in slot p[i] is now in slot i. Optimizer state is not known
            here: apply `state[p]` to what there is.
        """
        self._require_pattern()
        permutation = self.block_ids.long()
        for tensor in (self.values, self.values.grad):
            if tensor is not None:
                tensor.copy_(tensor[permutation])
        rows, cols = self.build_coo_block_index().cpu()
        self._write_index(rows, cols, torch.arange(self._n_blocks, device="cpu"))
        return permutation

    # Moving, copying and loading.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves the index like any buffer, but never takes its contents from `fn`.

        `to_empty` hands out uninitialised memory, and `Module.type` would turn it into floats.
        """
        before = {name: self._buffers[name] for name in _INDEX}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            assert old is not None
            assert new is not None
            if new is old or new.is_meta:
                continue
            if old.is_meta:
                self._buffers[name] = torch.zeros_like(new, dtype=torch.int32)
            elif new.dtype != torch.int32:
                self._buffers[name] = old.to(new.device)
            else:
                with torch.no_grad():
                    new.copy_(old)
        if self.crow_indices.is_meta:
            self._ready = False
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _INDEX and "_ready" in self.__dict__:
            self.__dict__["_ready"] = False
        super().__setattr__(name, value)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Loads all or nothing: what comes is validated first, also when it was saved by 0.1.

        Another number of blocks or slots than here is fine: the parameter is then resized in
        place, its gradient dropped.
        """
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        try:
            incoming = checkpoint.entries_of_matrix(state_dict, prefix, self, assign)
        except ValueError as error:
            error_msgs.append(f"{error}; the layer was left as it was")
            return
        whole = all(prefix + name in incoming for name in ("values", *SAVED_INDEX))
        usable = whole and (assign or not self.values.is_meta)
        if usable and incoming[prefix + "values"].shape[0] != self.slots:
            self._resize(incoming[prefix + "values"].shape[0])
        super()._load_from_state_dict(  # type: ignore[no-untyped-call]
            incoming, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if usable:
            self.refresh()

    @torch.no_grad()
    def _resize(self, slots: int) -> None:
        """Room for another number of blocks; the matrix has no pattern then."""
        self._ready = False
        values = self.values
        values.grad = None
        # autograd keeps a node per parameter that remembers its shape for as long as a graph
        # lives. It lets go of it when the dtype changes, so the data goes by way of another dtype.
        between = torch.float16 if values.dtype != torch.float16 else torch.float32
        new = values.new_zeros((slots, *self.block_shape))
        values.data = values.new_empty(0, dtype=between)
        values.data = new
        for name in ("col_indices", "block_ids", "row_indices", "t_block_ids"):
            self._buffers[name] = self.crow_indices.new_zeros(slots)

    def extra_repr(self) -> str:
        """Sizes, blocks and density."""
        pattern = f"blocks={self._n_blocks}, density={self.density:.3g}"
        slots = "" if self.slots == self._n_blocks else f", slots={self.slots}"
        unset = "" if self._ready else ", no pattern yet"
        return f"{tuple(self.shape)}, block_shape={self.block_shape}, {pattern}{slots}{unset}"


def _written(old: Tensor | None, new: Tensor, device: torch.device) -> Tensor:
    """`new` on `device`: in the memory of `old` where that fits, so that what holds on to it (a
    captured CUDA graph, shared memory) sees the change."""
    usable = old is not None and old.shape == new.shape and old.device == device
    if usable and not old.is_inference():
        return old.copy_(new)
    return new.to(device)


def _allows_tf32(x: Tensor) -> bool:
    return x.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32"


def copy_into(parameter: nn.Parameter, whole: Tensor) -> None:
    """Writes a whole tensor into a parameter, which may be distributed (a DTensor)."""
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
        whole = distribute_tensor(whole.to(parameter.device), mesh, placements)
    parameter.copy_(whole)


def stored_parameters(module: nn.Module) -> int:
    """Number of parameters of a module without padding and spare slots; shared ones count once."""
    matrices = {m.values: m for m in module.modules() if isinstance(m, BlockSparseMatrix)}
    return sum(
        matrices[p].stored_weights() if p in matrices and matrices[p].has_pattern else p.numel()
        for p in module.parameters()
    )
