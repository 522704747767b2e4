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
from typing import Any

import torch
from torch import Tensor

from ._products import is_transformed

_ops = torch.ops.block_sparse
# What calling them calls, a third of a microsecond earlier.
_linear = _ops.linear.default._op
_linear_preactivation = _ops.linear_preactivation.default._op
_linear_input_grad = _ops.linear_input_grad.default._op
_linear_weight_grad = _ops.linear_weight_grad.default._op
_linear_backward = _ops.linear_backward.default._op
_linear_packed = _ops._linear.default._op
_linear_backward_packed = _ops._linear_backward.default._op
_is_grad_enabled = torch.is_grad_enabled
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


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


#: How `BlockSparseLinear` computes: out_features, activation, allow_tf32, preactivation, dtype. One
#: argument, since each costs time on the host.
Form = tuple[int, str, bool, str, torch.dtype | None]


class BlockSparseLinear(torch.autograd.Function):
    """activation(x Wᵀ + bias).

    `preactivation` is what happens to x Wᵀ + bias where the derivative of the activation needs it:
    'save' keeps it, 'recompute' computes it again in the backward, 'return' makes it a second
    result. With a `dtype`, x, values and bias are cast to it first; their gradients come in their
    own dtypes, that of float32 values without having been rounded to 16 bits.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], form: Form
    ) -> Any:
        out_features, activation, allow_tf32, preactivation, dtype = form
        needs_x, needs_values = ctx.needs_input_grad[:2]
        dtypes = None  # of the gradients, where not that of the product
        own_values = values
        if dtype is not None:
            dtypes = x.dtype, values.dtype, None if bias is None else bias.dtype
            x, values = cast_for_autocast(x, dtype), cast_for_autocast(values, dtype)
            bias = None if bias is None else cast_for_autocast(bias, dtype)
            if all(own in (x.dtype, None) for own in dtypes):
                dtypes = None
        at_preactivation = activation in NEED_PREACTIVATION
        with _BelowAutograd():
            if preactivation == "return" or (preactivation == "save" and at_preactivation):
                y, state = _linear_preactivation(
                    x, values, index, bias, out_features, activation, allow_tf32
                )
            else:
                y = _linear(x, values, index, bias, out_features, activation, allow_tf32)
                state = y if activation == "relu" else None
        recomputes = at_preactivation and state is None
        kept = (
            x if needs_values or recomputes else None,
            # Where no product needs them, their shape is needed.
            values if needs_x or recomputes else own_values,
            *index,
        )
        # x.size: a nested x has no shape.
        ctx.form, ctx.more = form, (dtypes, x.size(-1))
        if activation == "none":
            ctx.save_for_backward(*kept)
        else:
            ctx.save_for_backward(*kept, bias if at_preactivation else None, state)
        if preactivation != "return":
            return y
        ctx.set_materialize_grads(False)
        return y, state

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, preactivation_grad: Tensor | None = None) -> Any:
        out_features, activation, allow_tf32, _, _ = ctx.form
        needs_x, needs_values, needs_bias, *_ = ctx.needs_input_grad
        x, values, *index = ctx.saved_tensors
        recorded = torch.is_grad_enabled()
        # A traced graph, which has subclasses, holds an operator for each gradient, so that those
        # that nobody uses can go.
        in_one_call = needs_values and type(grad) is Tensor and not (recorded or is_transformed())
        dtypes, in_features = ctx.more
        if recorded and dtypes is not None:
            raise RuntimeError(
                "block-sparse linear under autocast has no second derivative; call it outside of "
                "autocast, or differentiate without create_graph=True"
            )
        # The gradients may be a batch of them (is_grads_batched=True).
        recorded = recorded or is_transformed()
        guard = nullcontext if recorded else _BelowAutograd
        if activation != "none":
            *index, bias, state = index
            if grad is not None:
                if torch.is_grad_enabled() and activation in NEED_PREACTIVATION:
                    state = None  # what was kept has no history
                    if x is None:
                        raise RuntimeError(
                            "block-sparse linear kept only what the first derivative needs; for "
                            "the second, call it with preactivation='recompute'"
                        )
                if state is None:
                    with guard():
                        state = _linear(x, values, index, bias, out_features, "none", allow_tf32)
                grad = _ACTIVATION_GRADIENTS[activation](grad, state)
        if preactivation_grad is not None:
            grad = preactivation_grad if grad is None else grad + preactivation_grad
        if grad is None:
            return None, None, None, None, None
        # Products of 16-bit numbers are summed in float32, which they can be asked for.
        out_dtype = None if dtypes is None or dtypes[1] == grad.dtype else torch.float32
        # Arguments left out need not be parsed, and a dtype is slow to.
        options = (out_dtype, allow_tf32) if allow_tf32 or out_dtype is not None else ()
        dx = dvalues = dbias = None
        with guard():
            if in_one_call:
                dx, dvalues, dbias = _linear_backward(
                    grad, x, values, index, needs_x, needs_bias, *options
                )
            else:
                if needs_x:
                    dx = _linear_input_grad(grad, values, index, in_features, allow_tf32)
                if needs_values:
                    dvalues = _linear_weight_grad(grad, x, index, *values.shape, *options)
                if needs_bias:
                    dbias = grad.reshape(-1, out_features).sum(0, dtype=dtypes and dtypes[2])
        if dtypes is not None:
            dx, dvalues, dbias = (
                None if gradient is None else gradient.to(own)
                for gradient, own in zip((dx, dvalues, dbias), dtypes, strict=True)
            )
        return dx, dvalues, dbias, None, None


class PackedLinear(torch.autograd.Function):
    """`BlockSparseLinear` in the usual case, which it takes two thirds of the time for: an index in
    one tensor, values that need a gradient, no activation, no cast."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, index: Tensor, form: Form
    ) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(x, values, index)
        y: Tensor
        if form[2]:
            y = _linear_packed(x, values, index, bias, form[0], "none", True)
        else:  # arguments left out need not be parsed
            y = _linear_packed(x, values, index, bias, form[0])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        needs_x, _, needs_bias, _, _ = ctx.needs_input_grad
        x, values, index = ctx.saved_tensors
        if type(grad) is not Tensor or _is_grad_enabled() or is_transformed():
            ctx.more = None, x.size(-1)
            return BlockSparseLinear.backward(ctx, grad)
        if ctx.form[2]:
            gradients = _linear_backward_packed(grad, x, values, index, needs_x, needs_bias, True)
        else:
            gradients = _linear_backward_packed(grad, x, values, index, needs_x, needs_bias)
        return *gradients, None, None


def _untransformed(function: Any) -> Callable[..., Any]:
    """`function.apply` for callers that have asked `is_transformed`. That of torch 2.11 is Python,
    which walks through all arguments: 3 µs a call. Newer ones have it in C++."""
    apply: Callable[..., Any] = function.apply
    if isinstance(apply, BuiltinMethodType):
        return apply
    apply = super(torch.autograd.Function, function).apply
    unwrap = torch._C._functorch.unwrap_if_dead

    def unwrapping(x: Tensor, values: Tensor, bias: Tensor | None, index: Any, form: Form) -> Any:
        # What is in a tensor that has left its `torch.func` transform.
        bias = None if bias is None else unwrap(bias)
        return apply(unwrap(x), unwrap(values), bias, index, form)

    return unwrapping


_apply = _untransformed(BlockSparseLinear)
_apply_packed = _untransformed(PackedLinear)


def apply_untransformed(
    x: Tensor, values: Tensor, bias: Tensor | None, index: list[Tensor], form: Form
) -> Any:
    """activation(x Wᵀ + bias) with derivatives, for callers that have asked `is_transformed` and
    that some tensor needs a gradient."""
    if len(index) == 1 and values.requires_grad and form[1] == "none" and form[4] is None:
        return _apply_packed(x, values, bias, index[0], form)
    return _apply(x, values, bias, index, form)
