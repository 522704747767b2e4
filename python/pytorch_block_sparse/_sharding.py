# SPDX-License-Identifier: Apache-2.0
"""The part of a tensor with a row per slot that this process holds: all, or a shard (FSDP)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._validation import is_distributed


def local_part(tensor: Tensor) -> tuple[Tensor, int]:
    """What of (slots, …) is in the memory of this process, and the slot that it starts with.

    Raises:
        NotImplementedError: in one sentence, if it is sharded along anything but the slots.
    """
    if not is_distributed(tensor):
        return tensor, 0
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shards: Any = tensor
    if not all(isinstance(p, Replicate) or p == Shard(0) for p in shards.placements):
        raise NotImplementedError(
            f"the values of this BlockSparseMatrix have the placements {shards.placements}, "
            "expected whole slots on each rank, as fully_shard distributes them: Shard(0)"
        )
    _, offset = compute_local_shape_and_global_offset(
        shards.shape, shards.device_mesh, shards.placements
    )
    return shards.to_local(), int(offset[0])


def local_rows(tensor: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """The local part of (slots, …), and which of its rows are among `slots` (k,), int64."""
    if not is_distributed(tensor):
        return tensor, slots.to(tensor.device)
    local, start = local_part(tensor)
    rows = slots.to(local.device) - start
    return local, rows[(rows >= 0) & (rows < local.shape[0])]


def whole_rows(local: Tensor, like: Tensor) -> Tensor:
    """(slots, …) on every rank, of rows that belong to the local part of `like`."""
    if not is_distributed(like):
        return local
    from torch.distributed.tensor import DTensor

    shards: Any = like
    whole: Tensor = DTensor.from_local(
        local,
        shards.device_mesh,
        shards.placements,
        run_check=False,
        shape=torch.Size([like.shape[0], *local.shape[1:]]),
        stride=torch.empty((like.shape[0], *local.shape[1:]), device="meta").stride(),
    ).full_tensor()
    return whole
