# SPDX-License-Identifier: Apache-2.0
"""How much each stored block matters: one number a slot, of what this process holds.

- frobenius: sqrt(sum w²).
- mean_abs: the mean of abs(w), over what of the block is not padding.
- max: the largest abs(w).
- gradient_weight: abs(sum g w), what removing the block changes in the loss to first order.
- fisher: sum (g w)², the diagonal Fisher information times w².
- movement: -sum g w, added up over steps: how far the block was moved away from zero.

The last three look at the gradient of every step, `movement` as a sum, the others as a moving
average: a single gradient says little. That costs one pass over weights and gradients a step.

Sources: Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019
(gradient_weight); Theis et al., "Faster gaze prediction with dense networks and Fisher pruning",
2018 (fisher); Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", 2020, and Lagunas
et al., "Block Pruning For Faster Transformers", 2021 (movement).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._sharding import local_part, whole_rows
from ..block_sparse import BlockSparseMatrix

FROM_WEIGHTS = ("frobenius", "mean_abs", "max")
FROM_GRADIENTS = ("gradient_weight", "fisher", "movement")
#: How much of a moving average is the past, at each step.
MEMORY = 0.99


@torch.no_grad()
def of_weights(score: str, matrix: BlockSparseMatrix) -> Tensor:
    """(slots,) float32: a score that looks at weights alone."""
    local, start = local_part(matrix.values)
    padding = _padding(matrix, local, start)
    if padding is not None:
        local = local.masked_fill(padding, 0)
    if score == "frobenius":
        scores = torch.linalg.vector_norm(local, dim=(1, 2), dtype=_wide(local))
    elif score == "max":
        scores = local.abs().amax((1, 2))
    else:
        scores = torch.linalg.vector_norm(local, ord=1, dim=(1, 2), dtype=_wide(local))
        elements = local.shape[1] * local.shape[2]
        scores = scores / (elements if padding is None else (~padding).sum((1, 2)).clamp(min=1))
    return whole_rows(scores.float(), matrix.values)


@torch.no_grad()
def of_gradient(score: str, matrix: BlockSparseMatrix) -> Tensor | None:
    """(slots,) float32: one step's part of a score; None if there is no gradient.

    Args:
        score: "gradient_weight", "fisher" or "movement".
        matrix: after the step of the optimizer, whose gradients are still there. A `GradScaler`
            has unscaled them by then, also for a fused optimizer.
    """
    if matrix.values.grad is None:
        return None
    local, start = local_part(matrix.values)
    grad, _ = local_part(matrix.values.grad)
    product = local.to(_wide(local)) * grad.to(_wide(grad))
    padding = _padding(matrix, local, start)
    if padding is not None:
        product = product.masked_fill(padding, 0)
    if score == "fisher":
        scores = product.square().sum((1, 2))
    elif score == "movement":
        scores = -product.sum((1, 2))
    else:
        scores = product.sum((1, 2)).abs()
    return whole_rows(scores.float(), matrix.values)


def gather(score: str, past: Tensor | None, part: Tensor) -> Tensor:
    """A score after one more step. What is nan in the past begins with this step."""
    if past is None:
        return part
    more = past + part if score == "movement" else torch.lerp(part, past, MEMORY)
    return torch.where(past.isnan(), part, more)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _padding(matrix: BlockSparseMatrix, local: Tensor, start: int) -> Tensor | None:
    """Where blocks in the local slots stick out; None if none can."""
    by_block = matrix._padding
    if by_block is None:
        return None
    by_slot = by_block.new_zeros(matrix.slots, *matrix.block_shape)
    by_slot[matrix._slots_of_blocks().long()] = by_block
    return by_slot[start : start + local.shape[0]]
