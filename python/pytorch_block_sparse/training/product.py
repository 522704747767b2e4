# SPDX-License-Identifier: Apache-2.0
"""Products of a layer, in place of its own, whose backward sees something beside.

`BlockSparseMatrix.product` is called as `product(x, weight, bias, activation, preactivation)` and
returns activation(x Wᵀ + bias).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import functional
from .._products import ACTIVATIONS
from ..block_sparse import BlockSparseMatrix


class SideGradient(torch.autograd.Function):
    """y -> y; in the backward `target` gets a gradient that subclasses compute of dy and x."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, target: Tensor, form: tuple[Any, ...], *index: Tensor
    ) -> Tensor:
        """y as it is."""
        ctx.save_for_backward(x, *index)
        ctx.form = form, target.shape, target.dtype, len(index)
        ctx.mark_dirty(y)  # not a view, which an in-place activation after the layer would refuse
        return y

    @staticmethod
    def gradients(ctx: Any, dy: Tensor, of_target: Tensor) -> Any:
        """What a backward returns."""
        return dy, None, of_target, None, *([None] * ctx.form[-1])


def multiply_beside(
    side: type[SideGradient],
    target: Tensor,
    form: tuple[Any, ...],
    side_index: list[Tensor],
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    weight: BlockSparseMatrix,
    bias: Tensor | None,
    activation: str,
    preactivation: str,
) -> Tensor:
    """activation(x Wᵀ + bias) with a side gradient; the activation apart, as its input is needed.

    Args:
        side: computes the gradient of `target`, from `form` and `side_index` among others.
        values, index: of what is multiplied with.
        x, weight, bias, activation, preactivation: what the product is called with.
    """
    y = functional.linear_of(x, values, index, weight.shape, bias, "none", preactivation)
    form = (*form, functional.allows_tf32(x))
    seen: Tensor = side.apply(y, x.detach(), target, form, *side_index)
    return ACTIVATIONS[activation](seen)
