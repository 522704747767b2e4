# SPDX-License-Identifier: Apache-2.0
"""The block-sparse counterpart of torch.nn.functional.linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import ops as ops  # registers what the operators need
from ._autograd import NEED_PREACTIVATION, Form, apply_untransformed, needs_grad
from ._products import is_transformed
from ._validation import check_dense, describe

# Bound once: looking them up takes as long as calling them.
is_grad_enabled = torch.is_grad_enabled
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
# What torch.backends.cuda.matmul.fp32_precision calls, two microseconds earlier.
_get_fp32_precision: Callable[[str, str], str] = torch._C._get_fp32_precision_getter
_linear = torch.ops.block_sparse.linear.default
_linear_preactivation = torch.ops.block_sparse.linear_preactivation.default
# What calling them calls, a third of a microsecond earlier.
_call_linear = _linear._op
_call_packed = torch.ops.block_sparse._linear.default._op

Activation = Literal["none", "relu", "gelu", "gelu_tanh", "silu"]
Preactivation = Literal["save", "recompute"]


class BlockSparseWeight(Protocol):
    """What `linear` reads of a weight; `BlockSparseMatrix` has it."""

    @property
    def values(self) -> Tensor:
        """(slots, block_height, block_width)."""

    @property
    def index(self) -> list[Tensor]:
        """The seven int32 tensors of docs/architecture.md, or one that holds them all."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(out_features, in_features)."""


def linear(
    x: Tensor,
    weight: BlockSparseWeight,
    bias: Tensor | None = None,
    activation: Activation = "none",
    *,
    preactivation: Preactivation = "save",
) -> Tensor:
    """activation(x Wᵀ + bias) with W sparse in blocks.

    Args:
        x: (..., in_features), float32, float64, bfloat16 or float16. Rows may be apart (`h[:, 0]`
            of a 3-d `h` is read in place); a tensor that no single row stride describes is copied.
        weight: W, (out_features, in_features), values in the dtype of `x`.
        bias: (out_features,) in the dtype of `x`, or None.
        activation: 'none', 'relu', 'gelu' (the exact, erf form), 'gelu_tanh' or 'silu'; applied
            by the product itself, before its result is rounded to the dtype of `x`.
        preactivation: what the backward of 'gelu', 'gelu_tanh' and 'silu' takes their derivative
            at. 'save' keeps x Wᵀ + bias, as many elements as the result; 'recompute' keeps nothing
            and repeats the product in the backward. The others keep no such state: 'relu' is read
            off the result.

    Returns:
        (..., out_features), contiguous, in the dtype of `x`. Under autocast x, values and bias are
        cast as by nn.Linear, and the gradient of float32 values is accumulated and stored in
        float32.

    Between forward and backward the kept state is `x`, if the weight needs a gradient, and the one
    that `preactivation` names. Sums are in float32 for 16-bit dtypes. On CUDA, float32 uses TF32
    where `torch.backends.cuda.matmul` allows it; a compiled graph keeps to what was allowed when it
    was traced.

    Raises:
        TypeError: `x` or `bias` is no tensor, or not a dense one; `weight` is no block-sparse one;
            `activation` is no name.
        ValueError: `x` has another number of features than the weight, or `preactivation` is
            unknown.
        RuntimeError: a dtype, a shape or the index does not fit; the sentence says which.
    """
    index = getattr(weight, "operands", None)  # a BlockSparseMatrix has it
    if index is None:
        index = getattr(weight, "index", None)
    if not isinstance(index, list):
        raise TypeError(f"weight is {describe(weight)}, expected a BlockSparseMatrix")
    if bias is not None:
        check_dense(bias, "bias")
    if not isinstance(activation, str):
        raise TypeError(f"activation is {describe(activation)}, expected a name such as 'none'")
    if preactivation not in ("save", "recompute"):
        raise ValueError(f"preactivation is {preactivation!r}; expected 'save' or 'recompute'")
    product = getattr(weight, "product", None)
    if product is not None:
        y: Tensor = product(x, weight, bias, activation, preactivation)
        return y
    return linear_of(x, weight.values, index, weight.shape, bias, activation, preactivation)


def linear_of(
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    shape: tuple[int, ...],
    bias: Tensor | None,
    activation: str,
    preactivation: str,
) -> Tensor:
    """`linear` for a caller that has the parts of the weight at hand.

    A layer has: it reads them from the dictionaries of its modules, since looking up a parameter or
    a module as an attribute takes a microsecond on the host.
    """
    out_features, in_features = shape
    if type(x) is not Tensor:  # sparse and quantized ones are; the operator refuses them
        check_dense(x, "x")
    if not x.dim() or x.size(-1) != in_features:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected (..., {in_features}), the in_features of the "
            "weight"
        )
    form: Form = out_features, activation, x.is_cuda and allows_tf32(x), preactivation, None
    differentiated = is_grad_enabled() and needs_grad(x, values, bias)
    y: Tensor
    if is_compiling() or (
        # Asked for any device first, which takes a tenth of the time.
        _is_any_autocast_enabled()
        and not x.is_meta  # unknown to autocast
        and torch.is_autocast_enabled(x.device.type)
    ):
        # The operator stays whole in a traced graph; its own kernels know the rest. An exported
        # program, mostly for inference, need not carry a second result.
        saves = preactivation == "save" and not torch.compiler.is_exporting()
        if differentiated and saves and activation in NEED_PREACTIVATION:
            y, _ = _linear_preactivation(x, values, index, bias, *form[:3])
        else:
            y = _linear(x, values, index, bias, *form[:3])
    elif is_transformed():
        y = _linear(x, values, index, bias, *form[:3])
    elif differentiated:
        y = apply_untransformed(x, values, bias, index, form)
    elif len(index) > 1:
        with _BelowAutograd():  # as below_autograd, in place
            y = _call_linear(x, values, index, bias, *form[:3])
    elif activation == "none" and not form[2]:
        # Arguments left out need not be parsed.
        y = _call_packed(x, values, index[0], bias, out_features)
    else:
        y = _call_packed(x, values, index[0], bias, *form[:3])
    return y


def allows_tf32(x: Tensor) -> bool:
    """Whether products of `x` may use TF32."""
    # Of another dtype, also one that autocast turns into 16 bits, the answer does not matter.
    return x.is_cuda and x.dtype == torch.float32 and _cuda_allows_tf32()


def _cuda_allows_tf32() -> bool:
    # The new interface's: the old one raises once the new one was used to set it.
    return _get_fp32_precision("cuda", "matmul") == "tf32"


# Dynamo of torch 2.11 cannot trace it. This is what torch.compiler.assume_constant_result sets, but
# that imports all of Dynamo, which takes as long as torch itself.
_cuda_allows_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]
