# SPDX-License-Identifier: Apache-2.0
"""The derivative of a block-sparse linear layer as a torch.autograd.Function.

The operators have derivatives of their own (ops.py); this Function costs half their time on the
host, computes only the gradients asked for, keeps only what they need, and under autocast computes
the weight gradient straight in the dtype of the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .ops import ACTIVATION_GRADIENTS, bias_grad, cast_for_autocast

_ops = torch.ops.block_sparse
_linear = _ops.linear.default
_linear_preactivation = _ops.linear_preactivation.default
_linear_input_grad = _ops.linear_input_grad.default
_linear_weight_grad = _ops.linear_weight_grad.default


def call(op: Any, *args: Any) -> Any:
    """`op(*args)` without the detour through the autograd kernel when there is nothing to record.

    The derivatives of ops.py are Python, which the dispatcher enters even if no gradient is needed:
    6 µs a call against the 0.7 µs of this guard.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _differentiable_state(
    ctx: Any, grad: Tensor, x: Tensor | None, values: Tensor | None, state: Tensor | None
) -> Tensor | None:
    """What the derivative of the activation may be taken at when it will be differentiated again.

    A kept x Wᵀ + bias has no history, so None asks for it to be recomputed from x and W; of relu
    the result serves, whose second derivative is zero.
    """
    if any(dtype not in (grad.dtype, None) for dtype in ctx.dtypes):
        raise RuntimeError(
            "block-sparse linear under autocast has no second derivative; call it outside of "
            "autocast, or without create_graph=True"
        )
    if state is None or ctx.activation == "relu":
        return state
    if x is None or values is None:
        raise RuntimeError(
            "block-sparse linear kept only what the first derivative needs; for the second, call "
            "it with preactivation='recompute'"
        )
    return None


class BlockSparseLinear(torch.autograd.Function):
    """activation(x Wᵀ + bias); see `functional.linear` for the arguments."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: list[Tensor],
        out_features: int,
        activation: str,
        save_preactivation: bool,
        allow_tf32: bool,
    ) -> Tensor:
        needs_x, needs_values = ctx.needs_input_grad[:2]
        ctx.dtypes = x.dtype, values.dtype, None if bias is None else bias.dtype
        ctx.sizes = out_features, x.shape[-1], values.shape
        ctx.activation, ctx.allow_tf32 = activation, allow_tf32
        device_type = x.device.type
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            x, values = cast_for_autocast(x, dtype), cast_for_autocast(values, dtype)
            if bias is not None:
                bias = cast_for_autocast(bias, dtype)
        state = None
        needs_preactivation = activation not in ("none", "relu")
        if needs_preactivation and save_preactivation:
            y, state = call(
                _linear_preactivation, x, values, index, bias, out_features, activation, allow_tf32
            )
        else:
            y = call(_linear, x, values, index, bias, out_features, activation, allow_tf32)
            if activation == "relu":
                state = y
        recomputes = needs_preactivation and state is None
        ctx.save_for_backward(
            x if needs_values or recomputes else None,
            values if needs_x or recomputes else None,
            bias if needs_preactivation else None,
            state,
            *index,
        )
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, values, bias, state, *index = ctx.saved_tensors
        out_features, in_features, values_shape = ctx.sizes
        x_dtype, values_dtype, bias_dtype = ctx.dtypes
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            state = _differentiable_state(ctx, grad, x, values, state)
        if ctx.activation != "none":
            if state is None:
                state = call(_linear, x, values, index, bias, out_features, "none", ctx.allow_tf32)
            grad = ACTIVATION_GRADIENTS[ctx.activation](grad, state)
        dx = dvalues = dbias = None
        if ctx.needs_input_grad[0]:
            dx = call(_linear_input_grad, grad, values, index, in_features, ctx.allow_tf32)
            if dx.dtype != x_dtype:
                dx = dx.to(x_dtype)
        if ctx.needs_input_grad[1]:
            # 16-bit products accumulate in float32, which they can be asked for.
            out_dtype = values_dtype if values_dtype == grad.dtype else torch.float32
            dvalues = call(
                _linear_weight_grad, grad, x, index, *values_shape, out_dtype, ctx.allow_tf32
            )
            if out_dtype != values_dtype:
                dvalues = dvalues.to(values_dtype)
        if ctx.needs_input_grad[2]:
            dbias = bias_grad(grad, bias_dtype)
        return dx, dvalues, dbias, None, None, None, None, None
