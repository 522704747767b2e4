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

from ..block_sparse import BlockSparseMatrix
from .product import SideGradient, multiply_beside


class _Norms(SideGradient):
    """The gradient of its target is the block norms of dyᵀ x."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        (height, width, allow_tf32), _, dtype, _ = ctx.form
        with torch.no_grad():
            norms = torch.ops.block_sparse.block_norms(
                dy.detach(), x.to(dy.dtype), height, width, allow_tf32
            )
        return SideGradient.gradients(ctx, dy, norms.to(dtype))


class GradientNorms:
    """The product of a layer while the norms of its gradient are wanted.

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
        """activation(x Wᵀ + bias)."""
        return multiply_beside(
            _Norms,
            self.norms,
            self.block_shape,
            [],
            x,
            weight.values,
            weight.index,
            weight,
            bias,
            activation,
            preactivation,
        )
