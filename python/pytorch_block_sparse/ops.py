# SPDX-License-Identifier: Apache-2.0
"""What the operators `torch.ops.block_sparse.*` need besides their kernels.

Fake kernels (shapes and dtypes for `torch.compile`, `torch.export`, the meta device), derivatives
of every order, autocast, and a sentence for devices without a backend. The operators and the
layout of their arguments are documented in docs/architecture.md; layers call them through
`pytorch_block_sparse.functional`, which costs less time on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _library

_ops = torch.ops.block_sparse

#: Name of the activation -> its derivative: (gradient, x Wᵀ + bias or, for relu, y) -> gradient.
ACTIVATION_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0),
    "gelu": lambda grad, z: torch.ops.aten.gelu_backward(grad, z),
    "gelu_tanh": lambda grad, z: torch.ops.aten.gelu_backward(grad, z, approximate="tanh"),
    "silu": lambda grad, z: torch.ops.aten.silu_backward(grad, z),
}
ACTIVATIONS = ("none", *ACTIVATION_GRADIENTS)


def bias_grad(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of `grad` (..., out) over its tokens: (out,) in `dtype`."""
    return grad.reshape(-1, grad.shape[-1]).sum(0, dtype=dtype)


# Fake kernels -----------------------------------------------------------------------------------
#
# They read no element and compare no length, so that the number of tokens, of slots and of blocks
# can stay symbolic in a compiled graph.


def _check_dtypes(first: Tensor, first_name: str, second: Tensor, second_name: str) -> None:
    if first.dtype != second.dtype:
        raise RuntimeError(
            f"{second_name} has dtype {second.dtype}, {first_name} has {first.dtype}; "
            "expected the same"
        )


@torch.library.register_fake("block_sparse::linear")
def _(
    x: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    bias: Tensor | None,
    out_features: int,
    activation: str = "none",
    allow_tf32: bool = False,
) -> Tensor:
    _check_dtypes(x, "x", values, "values")
    return x.new_empty((*x.shape[:-1], out_features))


@torch.library.register_fake("block_sparse::linear_preactivation")
def _(
    x: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    bias: Tensor | None,
    out_features: int,
    activation: str,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    _check_dtypes(x, "x", values, "values")
    shape = (*x.shape[:-1], out_features)
    return x.new_empty(shape), x.new_empty(shape)


@torch.library.register_fake("block_sparse::linear_input_grad")
def _(
    grad: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    in_features: int,
    allow_tf32: bool = False,
) -> Tensor:
    _check_dtypes(grad, "grad", values, "values")
    return grad.new_empty((*grad.shape[:-1], in_features))


@torch.library.register_fake("block_sparse::linear_weight_grad")
def _(
    grad: Tensor,
    x: Tensor,
    index: Sequence[Tensor],
    slots: int,
    block_height: int,
    block_width: int,
    out_dtype: torch.dtype | None = None,
    allow_tf32: bool = False,
) -> Tensor:
    _check_dtypes(grad, "grad", x, "x")
    return grad.new_empty((slots, block_height, block_width), dtype=out_dtype)


@torch.library.register_fake("block_sparse::linear_weight_grad_accumulate_")
def _(
    accumulator: Tensor,
    grad: Tensor,
    x: Tensor,
    index: Sequence[Tensor],
    allow_tf32: bool = False,
) -> None:
    _check_dtypes(grad, "grad", x, "x")


@torch.library.register_fake("block_sparse::block_norms")
def _(
    grad: Tensor,
    x: Tensor,
    block_height: int,
    block_width: int,
    allow_tf32: bool = False,
) -> Tensor:
    _check_dtypes(grad, "grad", x, "x")
    rows = (grad.shape[-1] + block_height - 1) // block_height
    cols = (x.shape[-1] + block_width - 1) // block_width
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    return grad.new_empty((rows, cols), dtype=dtype)


@torch.library.register_fake("block_sparse::pattern_check")
def _(
    crow_indices: Tensor, col_indices: Tensor, block_ids: Tensor, slots: int, block_cols: int
) -> None:
    return None


@torch.library.register_fake("block_sparse::pattern_transpose")
def _(
    crow_indices: Tensor, col_indices: Tensor, block_ids: Tensor, block_cols: int
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        crow_indices.new_empty((block_cols + 1,)),
        torch.empty_like(col_indices),
        torch.empty_like(block_ids),
    )


# Derivatives ------------------------------------------------------------------------------------
#
# The three products are bilinear and closed under differentiation, so a formula for each gives
# derivatives of every order.


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, values, index, bias, out_features, activation, allow_tf32 = inputs
    ctx.activation, ctx.allow_tf32, ctx.out_features = activation, allow_tf32, out_features
    # relu is read off its result; the others need x Wᵀ + bias, which `linear` recomputes.
    if isinstance(output, tuple):
        state = output[1]
    else:
        state = output if activation == "relu" else None
    ctx.save_for_backward(x, values, bias, state, *index)


def _linear_backward(ctx: Any, grad: Tensor, preactivation_grad: Tensor | None = None) -> Any:
    x, values, bias, state, *index = ctx.saved_tensors
    if ctx.activation != "none":
        if state is None:
            state = _ops.linear(x, values, index, bias, ctx.out_features, "none", ctx.allow_tf32)
        grad = ACTIVATION_GRADIENTS[ctx.activation](grad, state)
    if preactivation_grad is not None:
        grad = grad + preactivation_grad
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = _ops.linear_input_grad(grad, values, index, x.shape[-1], ctx.allow_tf32)
    if ctx.needs_input_grad[1]:
        dvalues = _ops.linear_weight_grad(grad, x, index, *values.shape, None, ctx.allow_tf32)
    if bias is not None and ctx.needs_input_grad[3]:
        dbias = bias_grad(grad, bias.dtype)
    return dx, dvalues, None, dbias, None, None, None


torch.library.register_autograd(
    "block_sparse::linear", _linear_backward, setup_context=_linear_setup
)
torch.library.register_autograd(
    "block_sparse::linear_preactivation", _linear_backward, setup_context=_linear_setup
)


def _input_grad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, values, index, _, ctx.allow_tf32 = inputs
    ctx.save_for_backward(grad, values, *index)


def _input_grad_backward(ctx: Any, dx_grad: Tensor) -> Any:
    grad, values, *index = ctx.saved_tensors
    dgrad = dvalues = None
    if ctx.needs_input_grad[0]:
        dgrad = _ops.linear(
            dx_grad, values, index, None, grad.shape[-1], "none", ctx.allow_tf32
        )
    if ctx.needs_input_grad[1]:
        dvalues = _ops.linear_weight_grad(
            grad, dx_grad, index, *values.shape, None, ctx.allow_tf32
        )
    return dgrad, dvalues, None, None, None


torch.library.register_autograd(
    "block_sparse::linear_input_grad", _input_grad_backward, setup_context=_input_grad_setup
)


def _weight_grad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, x, index, _, _, _, _, ctx.allow_tf32 = inputs
    ctx.save_for_backward(grad, x, *index)


def _weight_grad_backward(ctx: Any, dvalues_grad: Tensor) -> Any:
    grad, x, *index = ctx.saved_tensors
    weight = dvalues_grad.to(grad.dtype).contiguous()
    dgrad = dx = None
    if ctx.needs_input_grad[0]:
        dgrad = _ops.linear(x, weight, index, None, grad.shape[-1], "none", ctx.allow_tf32)
    if ctx.needs_input_grad[1]:
        dx = _ops.linear_input_grad(grad, weight, index, x.shape[-1], ctx.allow_tf32)
    return dgrad, dx, None, None, None, None, None, None


torch.library.register_autograd(
    "block_sparse::linear_weight_grad", _weight_grad_backward, setup_context=_weight_grad_setup
)


def _block_norms_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mark_non_differentiable(output)


def _block_norms_backward(ctx: Any, grad: Tensor) -> Any:
    return None, None, None, None, None


torch.library.register_autograd(
    "block_sparse::block_norms", _block_norms_backward, setup_context=_block_norms_setup
)


# Autocast ---------------------------------------------------------------------------------------

_implementations = torch.library.Library("block_sparse", "IMPL")


def cast_for_autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype` by the rule of nn.Linear: float64 and integers stay as they are."""
    if tensor.is_floating_point() and tensor.dtype not in (dtype, torch.float64):
        return tensor.to(dtype)
    return tensor


def _autocast(name: str, device_type: str, first: int) -> Callable[..., Any]:
    """Kernel that casts the arguments from position `first` on, then calls the operator."""
    op = getattr(_ops, name).default

    def kernel(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        cast = (cast_for_autocast(a, dtype) if isinstance(a, Tensor) else a for a in args[first:])
        with torch.autocast(device_type, enabled=False):
            return op(*args[:first], *cast)

    return kernel


for _name, _first in {
    "linear": 0,
    "linear_preactivation": 0,
    "linear_input_grad": 0,
    "linear_weight_grad": 0,
    "linear_weight_grad_accumulate_": 1,  # the accumulator keeps its dtype
    "block_norms": 0,
}.items():
    for _device_type in ("cpu", "cuda"):
        _implementations.impl(
            _name, _autocast(_name, _device_type, _first), f"Autocast{_device_type.upper()}"
        )


# Devices without a backend ----------------------------------------------------------------------


def _without_backend(name: str, reason: str) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"block_sparse::{name} cannot run on this device: {reason}; move the model and its "
            "inputs to the CPU with .to('cpu')"
        )

    return kernel


_missing = {
    key: f"pytorch_block_sparse has no {key} backend" for key in ("MPS", "XPU", "HPU", "PrivateUse1")
}
if _library.cuda_missing is not None:
    _missing["CUDA"] = _library.cuda_missing
for _key, _reason in _missing.items():
    for _name in dir(_ops):
        _implementations.impl(_name, _without_backend(_name, _reason), _key)
