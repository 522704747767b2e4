# SPDX-License-Identifier: Apache-2.0
"""The same decision on every rank: what they see is averaged, or what the first one sees counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._slots import ddp_wrapper_of
from .._validation import is_distributed


def group_of(values: Sequence[nn.Parameter]) -> Any:
    """The process group over which DistributedDataParallel or FSDP2 trains the parameters; None
    if none does.

    Raises:
        NotImplementedError: in one sentence, for a mesh that is not all of the processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    for parameter in values:
        if is_distributed(parameter):
            mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
            if mesh.ndim == 1:
                return mesh.get_group()
            if mesh.size() == dist.get_world_size():
                return dist.group.WORLD
            raise NotImplementedError(
                f"the values are distributed over {mesh}, which is neither a line nor all "
                "processes: name the process_group whose ranks have the same layers"
            )
    wrapper = ddp_wrapper_of(values[0]) if values else None
    return None if wrapper is None else wrapper.process_group


def is_first(group: Any) -> bool:
    """Whether this process is the first rank of a group, or there is none."""
    return group is None or dist.get_rank(group) == 0


def averaged(tensors: Sequence[Tensor], group: Any) -> list[Tensor]:
    """The mean over the ranks of each tensor, the same bits on all."""
    if group is None:
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    return _as(flat / dist.get_world_size(group), tensors)


def of_first_rank(tensors: Sequence[Tensor], group: Any) -> list[Tensor]:
    """The tensors of the first rank of the group."""
    if group is None:
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.broadcast(flat, src=dist.get_global_rank(group, 0), group=group)
    return _as(flat, tensors)


def on_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, in one transfer."""
    return _as(torch.cat([tensor.flatten() for tensor in tensors]).cpu(), tensors)


def _as(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]
