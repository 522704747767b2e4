# SPDX-License-Identifier: Apache-2.0
"""A product with some of the stored blocks, whose weight gradient is that of all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import functional
from .._autograd import cast_for_autocast
from ..block_sparse import BlockSparseMatrix
from ..pattern import index_of
from .product import SideGradient, multiply_beside


class _GradientOfAll(SideGradient):
    """The gradient of its target, the values, is dyᵀ x on all stored blocks."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, *index = ctx.saved_tensors
        (allow_tf32,), shape, dtype, _ = ctx.form
        with torch.no_grad():
            dvalues = torch.ops.block_sparse.linear_weight_grad(
                dy, cast_for_autocast(x, dy.dtype), index, *shape, dtype, allow_tf32
            )
        return SideGradient.gradients(ctx, dy, dvalues)


class ForwardSubset:
    """The product of a layer that stores more than it uses.

    Attributes:
        blocks: (k,) int64 on the CPU, which blocks are used, in stored order, ascending.
        index: the seven index tensors of those blocks, in the slots of the matrix.
    """

    def __init__(self) -> None:
        self.blocks = torch.empty(0, dtype=torch.int64, device="cpu")
        self.index: list[Tensor] = []

    @torch.no_grad()
    def choose(self, matrix: BlockSparseMatrix, blocks: Tensor) -> None:
        """Uses those blocks of the matrix, (k,) in stored order, from now on.

        In place where shapes allow, so that a captured CUDA graph sees it.
        """
        self.blocks = blocks.sort().values
        chosen = self.blocks.to(matrix.crow_indices.device)
        rows, cols = matrix.build_coo_block_index()[:, chosen]
        slots = matrix._slots_of_blocks()[chosen]
        grid = (matrix.blocks_count()[0], matrix.blocks_count()[1])
        new = [*index_of(rows, cols, slots, matrix.slots, grid)]
        new += torch.ops.block_sparse.pattern_transpose(*new, grid[1])
        none = new[0].new_zeros(0)
        new.append(
            torch.ops.block_sparse.pattern_plan([*new, none], *matrix.shape, *matrix.block_shape)
        )
        if [tensor.shape for tensor in self.index] == [tensor.shape for tensor in new]:
            for old, tensor in zip(self.index, new, strict=True):
                old.copy_(tensor)
        else:
            self.index = new

    def __call__(
        self,
        x: Tensor,
        weight: BlockSparseMatrix,
        bias: Tensor | None,
        activation: str,
        preactivation: str,
    ) -> Tensor:
        """activation(x Wᵀ + bias) with the chosen blocks of W."""
        values = weight.values
        if not (torch.is_grad_enabled() and values.requires_grad):
            return functional.linear_of(
                x, values, self.index, weight.shape, bias, activation, preactivation
            )
        return multiply_beside(
            _GradientOfAll,
            values,
            (),
            weight.index,
            x,
            values.detach(),
            self.index,
            weight,
            bias,
            activation,
            preactivation,
        )
