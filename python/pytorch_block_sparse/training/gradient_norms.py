# SPDX-License-Identifier: Apache-2.0
"""Norms of the blocks of a dense weight gradient, seen in the backward of the steps that need them.

A layer multiplies as always and its result goes through a function that changes nothing. In the
backward this one has dy and x at hand, and computes ‖dyᵀx‖ per block, stored or not, by the
operator `block_norms`; the gradient itself, (out, in), is nowhere. What it computes becomes the
gradient of a tensor (R, C), so that autograd adds up several uses of a layer and the parts of an
accumulated batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import functional
from .._products import ACTIVATIONS
from ..block_sparse import BlockSparseMatrix


class _SeenBackwards(torch.autograd.Function):
    """y -> y; in the backward the block norms of dyᵀ x are the gradient of `norms`."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, norms: Tensor, block: tuple[int, int], allow_tf32: bool
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.form = block, allow_tf32, norms.dtype
        ctx.mark_dirty(y)  # not a view, which an in-place activation after the layer would refuse
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        (height, width), allow_tf32, dtype = ctx.form
        with torch.no_grad():
            norms = torch.ops.block_sparse.block_norms(
                dy.detach(), x.to(dy.dtype), height, width, allow_tf32
            )
        return dy, None, norms.to(dtype), None, None


class GradientNorms:
    """Takes the place of the product of a layer while the norms of its gradient are wanted.

    The norm of a sum of gradients is at most the sum of their norms, which is what is added up
    over the parts of a batch and over processes.

    Attributes:
        norms: (R, C) float32, whose `grad` they are.
    """

    def __init__(self, matrix: BlockSparseMatrix) -> None:
        self.block_shape = matrix.block_shape
        self.norms = torch.zeros(matrix._grid, device=matrix.crow_indices.device)
        self.norms.requires_grad_()

    def __call__(
        self,
        x: Tensor,
        weight: BlockSparseMatrix,
        bias: Tensor | None,
        activation: str,
        preactivation: str,
    ) -> Tensor:
        """activation(x Wᵀ + bias). A fused activation is computed apart, as its input is needed."""
        y = functional.linear_of(
            x, weight.values, weight.operands, weight.shape, bias, "none", preactivation
        )
        allow_tf32 = functional.allows_tf32(x)
        seen: Tensor = _SeenBackwards.apply(y, x.detach(), self.norms, self.block_shape, allow_tf32)
        return ACTIVATIONS[activation](seen)
