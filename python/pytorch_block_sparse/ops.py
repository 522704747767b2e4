# SPDX-License-Identifier: Apache-2.0
"""What the operators `torch.ops.block_sparse.*` need besides their kernels.

Fake kernels (shapes and dtypes for `torch.compile`, `torch.export`, the meta device), derivatives
of every order, autocast, and a sentence for devices without a backend. The operators and the
layout of their arguments are documented in docs/architecture.md; layers call them through
`pytorch_block_sparse.functional`, which costs less time on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import _compile as _compile
from . import _library
from ._autograd import BlockSparseLinear, below_autograd, cast_for_autocast, needs_grad

#: What `linear` can apply to its result.
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])

_ops = torch.ops.block_sparse


# Fake kernels -----------------------------------------------------------------------------------
#
# They read no element and compare no length, so that the number of tokens, of slots and of blocks
# can stay symbolic in a compiled graph.

_register_fake: Callable[[str], Callable[[_Kernel], _Kernel]] = torch.library.register_fake


def _check_pair(
    first: Tensor, first_name: str, second: Tensor, second_name: str, index: Sequence[Tensor] = ()
) -> None:
    """One dtype and one device.

    One meta tensor among the arguments is enough to get here instead of into a real kernel, and the
    result would be memory that nobody has written.
    """
    for name, tensor in ((second_name, second), *(("index", part) for part in index)):
        if tensor.device != first.device:
            raise RuntimeError(
                f"{name} is on {tensor.device}, {first_name} on {first.device}; expected the same "
                "device"
            )
    if first.dtype != second.dtype:
        raise RuntimeError(
            f"{second_name} has dtype {second.dtype}, {first_name} has {first.dtype}; "
            "expected the same"
        )


@_register_fake("block_sparse::linear")
def _(
    x: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    bias: Tensor | None,
    out_features: int,
    activation: str = "none",
    allow_tf32: bool = False,
) -> Tensor:
    _check_pair(x, "x", values, "values", index)
    return x.new_empty((*x.shape[:-1], out_features))


@_register_fake("block_sparse::linear_preactivation")
def _(
    x: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    bias: Tensor | None,
    out_features: int,
    activation: str,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    _check_pair(x, "x", values, "values", index)
    shape = (*x.shape[:-1], out_features)
    return x.new_empty(shape), x.new_empty(shape)


@_register_fake("block_sparse::linear_input_grad")
def _(
    grad: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    in_features: int,
    allow_tf32: bool = False,
) -> Tensor:
    _check_pair(grad, "grad", values, "values", index)
    return grad.new_empty((*grad.shape[:-1], in_features))


@_register_fake("block_sparse::linear_weight_grad")
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
    _check_pair(grad, "grad", x, "x", index)
    return grad.new_empty((slots, block_height, block_width), dtype=out_dtype)


@_register_fake("block_sparse::linear_weight_grad_accumulate_")
def _(
    accumulator: Tensor,
    grad: Tensor,
    x: Tensor,
    index: Sequence[Tensor],
    allow_tf32: bool = False,
) -> None:
    _check_pair(grad, "grad", x, "x", index)


@_register_fake("block_sparse::block_norms")
def _(
    grad: Tensor,
    x: Tensor,
    block_height: int,
    block_width: int,
    allow_tf32: bool = False,
) -> Tensor:
    _check_pair(grad, "grad", x, "x")
    rows = (grad.shape[-1] + block_height - 1) // block_height
    cols = (x.shape[-1] + block_width - 1) // block_width
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    return grad.new_empty((rows, cols), dtype=dtype)


@_register_fake("block_sparse::pattern_check")
def _(
    crow_indices: Tensor, col_indices: Tensor, block_ids: Tensor, slots: int, block_cols: int
) -> None:
    return None


@_register_fake("block_sparse::pattern_transpose")
def _(
    crow_indices: Tensor, col_indices: Tensor, block_ids: Tensor, block_cols: int
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        crow_indices.new_empty((block_cols + 1,)),
        torch.empty_like(col_indices),
        torch.empty_like(block_ids),
    )


# Autograd and autocast --------------------------------------------------------------------------

_Library: Any = torch.library.Library
_implementations = _Library("block_sparse", "IMPL")


def _autograd_linear(name: str, preactivation: str) -> Callable[..., Any]:
    op = getattr(_ops, name).default

    def kernel(
        x: Tensor,
        values: Tensor,
        index: list[Tensor],
        bias: Tensor | None,
        out_features: int,
        activation: str = "none",
        allow_tf32: bool = False,
    ) -> Any:
        options = out_features, activation, allow_tf32
        if needs_grad(x, values, bias):
            return BlockSparseLinear.apply(x, values, bias, index, *options, preactivation, None)
        return below_autograd(op, x, values, index, bias, *options)

    return kernel


def _autocast_linear(name: str, preactivation: str, device_type: str) -> Callable[..., Any]:
    op = getattr(_ops, name).default

    def kernel(
        x: Tensor,
        values: Tensor,
        index: list[Tensor],
        bias: Tensor | None,
        out_features: int,
        activation: str = "none",
        allow_tf32: bool = False,
    ) -> Any:
        options = out_features, activation, allow_tf32
        dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            if needs_grad(x, values, bias):
                # Casting inside, so that the gradients are not rounded on their way out.
                return BlockSparseLinear.apply(
                    x, values, bias, index, *options, preactivation, dtype
                )
            x, values = cast_for_autocast(x, dtype), cast_for_autocast(values, dtype)
            bias = None if bias is None else cast_for_autocast(bias, dtype)
            return op(x, values, index, bias, *options)

    return kernel


def _autocast(name: str, device_type: str, first: int = 0) -> Callable[..., Any]:
    """Casts the tensor arguments from position `first` on, then calls the operator."""
    op = getattr(_ops, name).default

    def kernel(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        cast = (cast_for_autocast(a, dtype) if isinstance(a, Tensor) else a for a in args[first:])
        with torch.autocast(device_type, enabled=False):
            return op(*args[:first], *cast)

    return kernel


for _name, _preactivation in {"linear": "recompute", "linear_preactivation": "return"}.items():
    _implementations.impl(_name, _autograd_linear(_name, _preactivation), "Autograd")
for _device_type, _key in {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}.items():
    for _name, _preactivation in {"linear": "recompute", "linear_preactivation": "return"}.items():
        _implementations.impl(_name, _autocast_linear(_name, _preactivation, _device_type), _key)
    for _name in ("linear_input_grad", "linear_weight_grad", "block_norms"):
        _implementations.impl(_name, _autocast(_name, _device_type), _key)
    # The accumulator keeps its dtype.
    _name = "linear_weight_grad_accumulate_"
    _implementations.impl(_name, _autocast(_name, _device_type, first=1), _key)


# Devices without a backend ----------------------------------------------------------------------


def _without_backend(name: str, reason: str) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"block_sparse::{name} cannot run on this device: {reason}; move the model and its "
            "inputs to the CPU with .to('cpu')"
        )

    return kernel


_missing = {
    key: f"pytorch_block_sparse has no {key} backend"
    for key in ("MPS", "XPU", "HPU", "PrivateUse1")
}
if _library.cuda_missing is not None:
    _missing["CUDA"] = _library.cuda_missing
for _key, _reason in _missing.items():
    for _name in dir(_ops):
        _implementations.impl(_name, _without_backend(_name, _reason), _key)
