# SPDX-License-Identifier: Apache-2.0
"""The first derivative of the block-sparse linear layer, backwards.

`BlockSparseLinear` serves the layer (which calls it directly), the operators `linear` and
`linear_preactivation`, and their autocast. A torch.autograd.Function of our own instead of
torch.library.register_autograd: that flattens every list of tensors, which makes a call three times
as long on the host. Other derivatives are in `_products.py`; a backward that is itself recorded
meets them in the autograd kernels of the operators.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import BuiltinMethodType
from typing import Any, Literal

import torch
from torch import Tensor

from ._products import below_autograd, is_transformed

_ops = torch.ops.block_sparse
_linear = _ops.linear.default
_linear_preactivation = _ops.linear_preactivation.default
_linear_input_grad = _ops.linear_input_grad.default
_linear_weight_grad = _ops.linear_weight_grad.default


def _silu_grad(grad: Tensor, z: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        dz: Tensor = torch.ops.aten.silu_backward(grad, z)
        return dz
    sigmoid = torch.sigmoid(z)  # torch has no derivative of silu_backward
    return grad * sigmoid * (1 + z * (1 - sigmoid))


#: Name of the activation -> its derivative: (gradient, x Wᵀ + bias or, for relu, y) -> gradient.
_ACTIVATION_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0),
    "gelu": lambda grad, z: torch.ops.aten.gelu_backward(grad, z),
    "gelu_tanh": lambda grad, z: torch.ops.aten.gelu_backward(grad, z, approximate="tanh"),
    "silu": _silu_grad,
}
#: Those whose derivative is taken at x Wᵀ + bias.
NEED_PREACTIVATION = frozenset(_ACTIVATION_GRADIENTS) - {"relu"}


def cast_for_autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype` by the rule of nn.Linear: float64 and integers stay as they are."""
    if tensor.is_floating_point() and tensor.dtype not in (dtype, torch.float64):
        return tensor.to(dtype)
    return tensor


def needs_grad(x: Tensor, values: Tensor, bias: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad)
    )


class BlockSparseLinear(torch.autograd.Function):
    """activation(x Wᵀ + bias).

    `preactivation` is what happens to x Wᵀ + bias where the derivative of the activation needs it:
    'save' keeps it, 'recompute' computes it again in the backward, 'return' makes it a second
    result. With a `dtype`, x, values and bias are cast to it first; their gradients come in their
    own dtypes, that of float32 values without having been rounded to 16 bits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        index: list[Tensor],
        out_features: int,
        activation: str,
        allow_tf32: bool,
        preactivation: Literal["save", "recompute", "return"],
        dtype: torch.dtype | None,
    ) -> Any:
        needs_x, needs_values = ctx.needs_input_grad[:2]
        ctx.dtypes = x.dtype, values.dtype, None if bias is None else bias.dtype
        # x.size: a nested x has no shape.
        ctx.form = out_features, x.size(-1), values.shape, activation, allow_tf32
        ctx.set_materialize_grads(False)
        if dtype is not None:
            x, values = cast_for_autocast(x, dtype), cast_for_autocast(values, dtype)
            bias = None if bias is None else cast_for_autocast(bias, dtype)
        at_preactivation = activation in NEED_PREACTIVATION
        state = None
        if preactivation == "return" or (preactivation == "save" and at_preactivation):
            y, state = below_autograd(
                _linear_preactivation, x, values, index, bias, out_features, activation, allow_tf32
            )
        else:
            y = below_autograd(
                _linear, x, values, index, bias, out_features, activation, allow_tf32
            )
            if activation == "relu":
                state = y
        recomputes = at_preactivation and state is None
        ctx.save_for_backward(
            x if needs_values or recomputes else None,
            values if needs_x or recomputes else None,
            bias if at_preactivation else None,
            state if activation != "none" else None,
            *index,
        )
        return (y, state) if preactivation == "return" else y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, preactivation_grad: Tensor | None = None) -> Any:
        x, values, bias, state, *index = ctx.saved_tensors
        out_features, in_features, values_shape, activation, allow_tf32 = ctx.form
        x_dtype, values_dtype, bias_dtype = ctx.dtypes
        needs_x, needs_values, needs_bias, *_ = ctx.needs_input_grad
        # The gradients may be a batch of them (is_grads_batched=True).
        recorded = torch.is_grad_enabled() or is_transformed()
        guard = nullcontext if recorded else torch._C._AutoDispatchBelowAutograd
        if grad is not None and activation != "none":
            if torch.is_grad_enabled() and activation in NEED_PREACTIVATION:
                state = None  # what was kept has no history
                if x is None or values is None:
                    raise RuntimeError(
                        "block-sparse linear kept only what the first derivative needs; for the "
                        "second, call it with preactivation='recompute'"
                    )
            if state is None:
                with guard():
                    state = _linear(x, values, index, bias, out_features, "none", allow_tf32)
            grad = _ACTIVATION_GRADIENTS[activation](grad, state)
        if preactivation_grad is not None:
            grad = preactivation_grad if grad is None else grad + preactivation_grad
        if grad is None:
            return (None,) * 9
        if torch.is_grad_enabled() and any(d not in (grad.dtype, None) for d in ctx.dtypes):
            raise RuntimeError(
                "block-sparse linear under autocast has no second derivative; call it outside of "
                "autocast, or differentiate without create_graph=True"
            )
        dx = dvalues = dbias = None
        with guard():  # one for both: it takes as long as a check of arguments
            if needs_x:
                dx = _linear_input_grad._op(grad, values, index, in_features, allow_tf32)
            if needs_values:
                # Products of 16-bit numbers are summed in float32, which they can be asked for.
                # A dtype is slow to pass.
                out_dtype = None if values_dtype == grad.dtype else torch.float32
                dvalues = _linear_weight_grad._op(
                    grad, x, index, *values_shape, out_dtype, allow_tf32
                )
        if dx is not None and dx.dtype != x_dtype:
            dx = dx.to(x_dtype)
        if dvalues is not None and dvalues.dtype != values_dtype:
            dvalues = dvalues.to(values_dtype)
        if needs_bias:
            rows = grad if grad.dim() == 2 else grad.reshape(-1, out_features)
            dbias = rows.sum(0) if grad.dtype == bias_dtype else rows.sum(0, dtype=bias_dtype)
        return dx, dvalues, dbias, None, None, None, None, None, None


def _unwrapping(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply` on what is in a tensor that has left its `torch.func` transform."""
    unwrap = torch._C._functorch.unwrap_if_dead

    def applied(x: Tensor, values: Tensor, bias: Tensor | None, *others: Any) -> Any:
        return apply(unwrap(x), unwrap(values), None if bias is None else unwrap(bias), *others)

    return applied


#: `BlockSparseLinear.apply` for callers that have asked `is_transformed`. That of torch 2.11 is
#: Python, which walks through all arguments: 3 µs a call. Newer ones have it in C++.
apply_untransformed: Callable[..., Any] = (
    BlockSparseLinear.apply
    if isinstance(BlockSparseLinear.apply, BuiltinMethodType)
    else _unwrapping(super(torch.autograd.Function, BlockSparseLinear).apply)
)
