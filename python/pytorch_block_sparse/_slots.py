# SPDX-License-Identifier: Apache-2.0
"""How a block-sparse matrix is stored: slots, and the index that says which block is in which."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import _library, checkpoint
from ._matrix_api import BlockMatrix
from ._optimizer_state import note_resize
from ._sharding import local_part, local_rows
from ._validation import as_indices, as_mask, check_shape, describe, is_distributed, is_int
from .pattern import (
    blocks_of,
    check_index,
    coo_of,
    draw_pattern,
    index_of_sorted,
    packed_index_of,
    sorted_blocks,
)

SAVED_INDEX = ("crow_indices", "col_indices", "block_ids")
DERIVED_INDEX = ("ccol_indices", "row_indices", "t_block_ids", "plan")
_INDEX = (*SAVED_INDEX, *DERIVED_INDEX)
#: Up to so many blocks a change of the pattern is worked out on the CPU.
FEW = 2**16


class SlotStorage(BlockMatrix):
    """Values in slots, the index of the blocks in them, and every change of either.

    The tensors are described at `BlockSparseMatrix`, the only subclass.
    """

    values: nn.Parameter
    crow_indices: Tensor
    col_indices: Tensor
    block_ids: Tensor
    ccol_indices: Tensor
    row_indices: Tensor
    t_block_ids: Tensor
    plan: Tensor
    packed_index: Tensor
    product: Callable[..., Tensor] | None = None
    _pattern: str | Tensor
    _n_blocks: int
    _ready: bool
    _is_packed = False  # `packed_index` holds the index

    def _register(self, values: Tensor, crow: Tensor, col: Tensor, ids: Tensor) -> None:
        """Takes tensors as they are, without a copy, as parameter and buffers."""
        self.values = nn.Parameter(values)
        for name, tensor in zip(SAVED_INDEX, (crow, col, ids), strict=True):
            self.register_buffer(name, tensor)
        for name in DERIVED_INDEX:
            self.register_buffer(name, crow.new_zeros(self._derived_size(name)), persistent=False)
        self.register_buffer("packed_index", crow.new_zeros(0), persistent=False)

    def _derived_size(self, name: str) -> int:
        sizes = {"ccol_indices": self._grid[1] + 1, "plan": 0}
        return sizes.get(name, self.slots)

    def get_differentiable_data(self) -> nn.Parameter:
        """`values`."""
        return self.values

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
        buffers: dict[str, Any] = self._buffers
        if not self._ready and not buffers["crow_indices"].is_meta:
            self._require_pattern()
        # Spelled out: every forward comes by here, and torch.compile can read it.
        return [
            buffers["crow_indices"],
            buffers["col_indices"],
            buffers["block_ids"],
            buffers["ccol_indices"],
            buffers["row_indices"],
            buffers["t_block_ids"],
            buffers["plan"],
        ]

    @property
    def operands(self) -> list[Tensor]:
        """The index as the operators take it in the shortest time: in one tensor, since each more
        costs 0.15 µs a call, and as much again to be kept for the backward.

        Raises:
            RuntimeError: if no pattern is set.
        """
        packed: Any = self._buffers["packed_index"]
        return [packed] if self._ready and self._is_packed else self.index

    def _require_pattern(self) -> None:
        if not self._ready:
            first = ""
            if self.values.is_meta:
                first = "it is on the meta device; give it memory with to_empty(device=...), then "
            raise RuntimeError(
                f"this BlockSparseMatrix of shape {tuple(self.shape)} has no pattern yet: {first}"
                "call reset_parameters() to draw one, load a state dict, or call refresh() after "
                "its buffers were assigned"
            )

    def _require_whole_values(self) -> None:
        if is_distributed(self.values):
            raise NotImplementedError(
                "the values of this BlockSparseMatrix are distributed (FSDP), expected a whole "
                "tensor: do this before fully_shard"
            )

    # The pattern.

    @torch.no_grad()
    def refresh(self) -> None:
        """Validates the saved index tensors and rebuilds the derived ones from them.

        Needed only after buffers were assigned from outside; every method here calls it. Tensors
        are rewritten in place where their shapes allow.

        Raises:
            ValueError: in one sentence, if they are no valid pattern; then products refuse.
        """
        self._ready = False
        if self.crow_indices.is_meta:
            return
        check_index(self.crow_indices, self.col_indices, self.block_ids, self.slots, self._grid)
        self._derive(int(self.crow_indices[-1]))

    def _derive(self, n_blocks: int) -> None:
        """Rebuilds the derived index tensors from saved ones that are a valid pattern."""
        device = self.crow_indices.device
        saved: list[Any] = [self._buffers[name] for name in SAVED_INDEX]
        if not _library.has_backend(device):
            saved = [tensor.cpu() for tensor in saved]
        derived = torch.ops.block_sparse.pattern_transpose(*saved, self._grid[1])
        for name, tensor in zip(DERIVED_INDEX, derived, strict=False):
            self._buffers[name] = _written(self._buffers[name], tensor, device)
        self._build_plan()
        self._n_blocks = n_blocks
        self._ready = True

    def _build_plan(self) -> None:
        """What the backend of the device derives, if there is one; and the index in one tensor."""
        device = self.crow_indices.device
        plan = self.crow_indices.new_zeros(0)
        if _library.has_backend(device):
            index = [*(self._buffers[name] for name in _INDEX[:-1]), plan]
            plan = torch.ops.block_sparse.pattern_plan(index, *self.shape, *self.block_shape)
        self._buffers["plan"] = _written(self.plan, plan, device)
        packed = plan.new_zeros(0)
        self._is_packed = _library.has_backend(device)
        if self._is_packed:
            packed = packed_index_of([self.get_buffer(name) for name in _INDEX])
        self._buffers["packed_index"] = _written(self.packed_index, packed, device)

    def set_pattern_(self, mask: Tensor) -> None:
        """Stores exactly the blocks of a boolean mask (R, C), which must fit into the slots.

        Blocks that were stored before are forgotten: values and their gradient become zero.
        """
        rows, cols = as_mask(mask, self._grid, "mask").nonzero().T
        if rows.numel() > self.slots:
            raise ValueError(f"mask has {rows.numel()} blocks, expected at most {self.slots} slots")
        self._write_index(rows, cols, torch.arange(rows.numel(), device=rows.device))
        with torch.no_grad():
            for tensor in (self.values, self.values.grad):
                if tensor is not None:
                    tensor.zero_()

    def draw_pattern_(self, generator: torch.Generator | None = None) -> None:
        """Draws the pattern that the matrix was made for; values become zero."""
        self.set_pattern_(draw_pattern(self._pattern, self._grid, self._n_blocks, generator))

    def _write_index(self, rows: Tensor, cols: Tensor, slots_of_blocks: Tensor) -> None:
        """Blocks at (rows, cols) in the given slots, (n,) each in any order, each once.

        Computed where they are: few blocks are sorted sooner on the CPU than launched for.
        """
        self._write_blocks(sorted_blocks(rows, cols, slots_of_blocks.to(rows.device), self._grid))

    def _write_blocks(self, blocks: Tensor) -> None:
        """Blocks as `sorted_blocks` gives them."""
        new = index_of_sorted(blocks, self.slots, self._grid)
        with torch.no_grad():
            for name, tensor in zip(SAVED_INDEX, new, strict=True):
                old = self._buffers[name]
                assert old is not None
                self._buffers[name] = _written(old, tensor, old.device)
            if not self.crow_indices.is_meta:
                self._derive(blocks.shape[1])

    def _move_blocks(self, rows: Tensor, cols: Tensor) -> None:
        self._require_pattern()
        self._write_index(rows, cols, self._slots_of_blocks())

    def _slots_of_blocks(self) -> Tensor:
        """(n,) int32: the slot of each block, in stored order."""
        return self.block_ids[: self._n_blocks]

    def build_coo_block_index(self) -> Tensor:
        """(2, n) int32: block row and block column of the stored blocks, in stored order."""
        self._require_pattern()
        return coo_of(self.crow_indices, self.col_indices)

    @property
    def _is_ragged(self) -> bool:
        return any(size % block for size, block in zip(self.shape, self.block_shape, strict=True))

    @property
    def _padding(self) -> Tensor | None:
        """(n, h, w) bool, True where a stored block sticks out; None if none can."""
        return self._padding_at(*self.build_coo_block_index()) if self._is_ragged else None

    def _padding_at(self, rows: Tensor, cols: Tensor) -> Tensor:
        """(n, h, w) bool, True where blocks at (rows, cols), (n,) each, stick out."""
        overhang = [-size % block for size, block in zip(self.shape, self.block_shape, strict=True)]
        h, w = self.block_shape
        device = rows.device
        below = torch.arange(h, device=device) >= h - overhang[0]
        right = torch.arange(w, device=device) >= w - overhang[1]
        last_row = (rows == self._grid[0] - 1)[:, None, None]
        last_col = (cols == self._grid[1] - 1)[:, None, None]
        padding: Tensor = (last_row & below[:, None]) | (last_col & right)
        return padding

    def drop_and_grow_(
        self, drop: Tensor, rows: Tensor, cols: Tensor, values: Tensor | None = None
    ) -> Tensor:
        """Drops some blocks and stores others, within the slots.

        Blocks that are kept stay in their slots, bit for bit. The slots that hold the new blocks
        held something else before: clear their rows in every optimizer state. Values that are
        sharded by slots (FSDP2) stay so: every rank has to make the same call.

        Args:
            drop: (k,) ints, which blocks to drop, in stored order.
            rows, cols: (g,) ints, where the new blocks are.
            values: (g, h, w), zeros if None.

        Returns:
            (g,) int64 on the CPU: the slots of the new blocks.

        Raises:
            ValueError, TypeError: in one sentence, for indices that are not whole numbers, a place
                that is outside or taken, a block that does not exist, more blocks than slots, or
                values that are no dense tensor of that shape. The matrix is then as it was.
            NotImplementedError: if the values are sharded otherwise than by slots.
        """
        self._require_pattern()
        # On the CPU, where a hundred operations on few numbers take less time than their launches.
        index = [tensor.to("cpu") if self._n_blocks <= FEW else tensor for tensor in self.index[:3]]
        return self._drop_and_grow(blocks_of(*index), drop, rows, cols, values)[0]

    def _drop_and_grow(
        self,
        blocks: Tensor,
        drop: Tensor,
        rows: Tensor,
        cols: Tensor,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`drop_and_grow_` for who knows (3, n) int64, the block row, block column and slot of each
        block, in stored order; returns that of what is stored then, too."""
        local_part(self.values)
        drop, rows, cols = (
            as_indices(value, name)
            for name, value in (("drop", drop), ("rows", rows), ("cols", cols))
        )
        n, g = self._n_blocks, rows.numel()
        if drop.numel() and (int(drop.min()) < 0 or int(drop.max()) >= n):
            raise ValueError(f"drop is {drop.tolist()}, expected stored indices of 0 to {n - 1}")
        check_shape(cols, (g,), "cols", "of rows")
        if values is not None:
            check_shape(values, (g, *self.block_shape), "values", "(blocks, h, w)")
            if values.is_meta:
                raise ValueError("values is on the meta device, which holds no data")
        device = blocks.device
        drop, rows, cols = drop.to(device), rows.to(device), cols.to(device)
        keep = torch.ones(n, dtype=torch.bool, device=device)
        keep[drop] = False
        kept = blocks[:, keep]
        free = torch.ones(self.slots, dtype=torch.bool, device=device)
        free[kept[2]] = False
        free_slots = free.nonzero().flatten()
        grown_slots = free_slots[:g]
        if grown_slots.numel() < g:
            raise ValueError(
                f"rows and cols name {g} new blocks, expected at most {grown_slots.numel()}, the "
                f"free ones of {self.slots} slots"
            )
        blocks = torch.cat([kept, torch.stack([rows, cols, grown_slots])], 1)
        blocks = sorted_blocks(blocks[0], blocks[1], blocks[2], self._grid)
        self._write_blocks(blocks)
        with torch.no_grad():
            free_slots = free_slots.to(self.values.device)
            for tensor in (self.values, self.values.grad):
                if tensor is not None:
                    local, freed = local_rows(tensor, free_slots)
                    local.index_fill_(0, freed, 0)
            if values is not None:
                local, start = local_part(self.values)
                values = values.to(local)
                if self._is_ragged:
                    padding = self._padding_at(rows.to(values.device), cols.to(values.device))
                    values = values.masked_fill(padding, 0)
                at = grown_slots.to(local.device) - start
                here = (at >= 0) & (at < local.shape[0])
                local[at[here]] = values[here]
        return grown_slots.cpu(), blocks

    @torch.no_grad()
    def resize_slots_(self, slots: int) -> Tensor:
        """Gives the matrix room for another number of blocks, which frees memory or takes some.

        The blocks stay what they are, with the rows of their gradient, and come into stored order
        (`block_ids` is the identity then). A graph that was recorded before may be dropped, but
        not run backward any more. Other shapes mean that torch.compile and CUDA graphs start
        anew: do it a few times a run, not at every change of the pattern.

        Returns:
            (n,) int64: what was in slot p[i] is now in slot i. Optimizer state is not known here:
            apply `state[p]` to what there is; else it starts anew at the next step.

        Raises:
            ValueError: in one sentence, for fewer slots than blocks, or if DistributedDataParallel
                holds the values.
            NotImplementedError: if the values are distributed (FSDP).
        """
        self._require_pattern()
        self._require_whole_values()
        if not is_int(slots) or not self._n_blocks <= slots < 2**31:
            raise ValueError(
                f"slots is {describe(slots)}, expected an int of at least the {self._n_blocks} "
                f"stored blocks and below {2**31}"
            )
        source = self._slots_of_blocks().long()
        rows, cols = self.build_coo_block_index()
        values, grad = self.values[source], self.values.grad
        grad = None if grad is None else grad[source]
        self._resize(int(slots))
        self._write_index(rows, cols, torch.arange(rows.numel(), device=rows.device))
        self.values[: rows.numel()] = values
        if grad is not None:
            self.values.grad = torch.zeros_like(self.values)
            self.values.grad[: rows.numel()] = grad
        return source

    @torch.no_grad()
    def canonicalize_(self) -> Tensor:
        """Puts the blocks into stored order, so that `block_ids` is the identity.

        Values and their gradient are reordered in place.

        Returns:
            (slots,) int64: what was in slot p[i] is now in slot i. Optimizer state is not known
            here: apply `state[p]` to what there is.

        Raises:
            NotImplementedError: if the values are distributed (FSDP).
        """
        self._require_pattern()
        self._require_whole_values()
        permutation = self.block_ids.long()
        for tensor in (self.values, self.values.grad):
            if tensor is not None:
                tensor.copy_(tensor[permutation])
        rows, cols = self.build_coo_block_index()
        self._write_index(rows, cols, torch.arange(self._n_blocks, device=rows.device))
        return permutation

    # Moving, copying and loading.

    def __getstate__(self) -> dict[str, Any]:
        """Without `product`: whoever put it there looks at this very matrix, not at a copy."""
        return {key: value for key, value in self.__dict__.items() if key != "product"}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves the index like any buffer, but never takes its contents from `fn`.

        `to_empty` hands out uninitialised memory, and `Module.type` would turn it into floats.
        """
        before = {name: self._buffers[name] for name in (*_INDEX, "packed_index")}
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
        elif self._ready and self.crow_indices.device != before["crow_indices"].device:  # type: ignore[union-attr]
            self._build_plan()  # each backend has its own
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        # A replica of torch.nn.DataParallel is given copies of what was checked.
        if name in _INDEX and "_ready" in self.__dict__ and "_is_replica" not in self.__dict__:
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
        place, its gradient dropped, and an optimizer that holds state of another number of slots
        starts that anew at its next step.
        """
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        try:
            incoming = checkpoint.entries_of_matrix(state_dict, prefix, self, assign)
            whole = all(prefix + name in incoming for name in ("values", *SAVED_INDEX))
            usable = whole and (assign or not self.values.is_meta)
            if usable and incoming[prefix + "values"].shape[0] != self.slots:
                self._resize(incoming[prefix + "values"].shape[0])
        except ValueError as error:
            error_msgs.append(f"{error}; the matrix was left as it was")
            return
        super()._load_from_state_dict(
            incoming, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if usable:
            self.refresh()

    @torch.no_grad()
    def _resize(self, slots: int) -> None:
        """Room for another number of blocks; the matrix has no pattern then.

        Raises:
            ValueError: if DistributedDataParallel holds the parameter.
        """
        values = self.values
        if ddp_wrapper_of(values) is not None:
            raise ValueError(
                f"{slots} slots do not fit the {self.slots} of a layer that is wrapped by "
                "DistributedDataParallel, expected as many: load before wrapping, or wrap again"
            )
        self._ready = False
        values.grad = None
        former = self.slots
        # autograd keeps a node per parameter that remembers its shape for as long as a graph
        # lives. It lets go of it when the dtype changes, so the data goes by way of another dtype.
        between = torch.float16 if values.dtype != torch.float16 else torch.float32
        new = values.new_zeros((slots, *self.block_shape))
        values.data = values.new_empty(0, dtype=between)
        values.data = new
        for name in ("col_indices", "block_ids", "row_indices", "t_block_ids"):
            self._buffers[name] = self.crow_indices.new_zeros(slots)
        note_resize(values, former)


def ddp_wrapper_of(parameter: nn.Parameter) -> nn.parallel.DistributedDataParallel | None:
    """The DistributedDataParallel that synchronises the gradient of a parameter.

    It hooks into a node that a resize throws away, and leaves no mark on the parameter; so the
    wrapper itself is looked for, which takes a while but is rarely needed.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    kind = nn.parallel.DistributedDataParallel
    for candidate in gc.get_objects():
        if issubclass(type(candidate), kind):
            wrapper: nn.parallel.DistributedDataParallel = candidate
            if any(other is parameter for other in wrapper.parameters()):
                return wrapper
    return None


def _written(old: Tensor | None, new: Tensor, device: torch.device) -> Tensor:
    """`new` on `device`: in the memory of `old` where that fits, so that what holds on to it (a
    captured CUDA graph, shared memory) sees the change."""
    if old is None or old.shape != new.shape or old.device != device or old.is_inference():
        return new.to(device)
    return old.copy_(new)
