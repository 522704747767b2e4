# SPDX-License-Identifier: Apache-2.0
"""What the operators `torch.ops.block_sparse.*` need besides their kernels.

Fake kernels (shapes and dtypes for `torch.compile`, `torch.export`, the meta device), derivatives
of every order, `torch.func`, autocast, and a sentence for what cannot run. The operators and the
layout of their arguments are documented in docs/architecture.md; layers call them through
`pytorch_block_sparse.functional`, which costs less time on the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import _compile as _compile
from . import _library, _products
from ._autograd import BlockSparseLinear, cast_for_autocast, needs_grad
from ._products import below_autograd, is_transformed
from ._validation import check_dense

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])

_ops = torch.ops.block_sparse
_OPERATORS = (
    "linear",
    "linear_preactivation",
    "linear_input_grad",
    "linear_weight_grad",
    "linear_weight_grad_accumulate_",
    "linear_backward",
    "_linear",
    "_linear_backward",
    "block_norms",
    "pattern_check",
    "pattern_transpose",
    "pattern_plan",
)


# Fake kernels -----------------------------------------------------------------------------------
#
# They read no element and compare no length, so that the number of tokens, of slots and of blocks
# can stay symbolic in a compiled graph.

_register_fake: Callable[[str], Callable[[_Kernel], _Kernel]] = torch.library.register_fake


def _check_devices(**tensors: Tensor | Sequence[Tensor] | None) -> None:
    """One device for all, in the order of the names.

    One meta tensor among the arguments is enough to get here instead of into a real kernel, and the
    result would be memory that nobody has written.
    """
    (first_name, first), *others = tensors.items()
    assert isinstance(first, Tensor)
    for name, value in others:
        for tensor in (value,) if isinstance(value, Tensor) else value or ():
            if tensor.device != first.device:
                raise RuntimeError(
                    f"{name} is on {tensor.device}, {first_name} on {first.device}; expected the "
                    "same device"
                )


def _check_dtypes(**tensors: Tensor | None) -> None:
    """One dtype for all, in the order of the names."""
    (first_name, first), *others = tensors.items()
    assert first is not None
    for name, tensor in others:
        if tensor is not None and tensor.dtype != first.dtype:
            raise RuntimeError(
                f"{name} has dtype {tensor.dtype}, {first_name} has {first.dtype}; expected the "
                "same"
            )


@_register_fake("block_sparse::linear")
def _fake_linear(
    x: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    bias: Tensor | None,
    out_features: int,
    activation: str = "none",
    allow_tf32: bool = False,
) -> Tensor:
    _check_devices(x=x, values=values, index=index, bias=bias)
    _check_dtypes(x=x, values=values, bias=bias)
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
    _check_devices(x=x, values=values, index=index, bias=bias)
    _check_dtypes(x=x, values=values, bias=bias)
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
    _check_devices(grad=grad, values=values, index=index)
    _check_dtypes(grad=grad, values=values)
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
    _check_devices(grad=grad, x=x, index=index)
    _check_dtypes(grad=grad, x=x)
    return grad.new_empty((slots, block_height, block_width), dtype=out_dtype)


@_register_fake("block_sparse::linear_weight_grad_accumulate_")
def _(
    accumulator: Tensor,
    grad: Tensor,
    x: Tensor,
    index: Sequence[Tensor],
    allow_tf32: bool = False,
) -> None:
    _check_devices(grad=grad, x=x, index=index, accumulator=accumulator)
    _check_dtypes(grad=grad, x=x)


@_register_fake("block_sparse::linear_backward")
def _fake_linear_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: Sequence[Tensor],
    input: bool = True,
    bias: bool = True,
    out_dtype: torch.dtype | None = None,
    allow_tf32: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    _check_devices(grad=grad, x=x, values=values, index=index)
    _check_dtypes(grad=grad, x=x, **({"values": values} if input else {}))
    return (
        x.new_empty(x.shape) if input else None,
        values.new_empty(values.shape, dtype=out_dtype or grad.dtype),
        grad.new_empty((grad.shape[-1],), dtype=out_dtype) if bias else None,
    )


@_register_fake("block_sparse::_linear")
def _(x: Tensor, values: Tensor, packed_index: Tensor, *others: Any) -> Tensor:
    return _fake_linear(x, values, [packed_index], *others)


@_register_fake("block_sparse::_linear_backward")
def _(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    packed_index: Tensor,
    input: bool,
    bias: bool,
    allow_tf32: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    return _fake_linear_backward(grad, x, values, [packed_index], input, bias)


@_register_fake("block_sparse::block_norms")
def _(
    grad: Tensor,
    x: Tensor,
    block_height: int,
    block_width: int,
    allow_tf32: bool = False,
) -> Tensor:
    _check_devices(grad=grad, x=x)
    _check_dtypes(grad=grad, x=x)
    rows = (grad.shape[-1] + block_height - 1) // block_height
    cols = (x.shape[-1] + block_width - 1) // block_width
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    return grad.new_empty((rows, cols), dtype=dtype)


@_register_fake("block_sparse::pattern_check")
def _(
    crow_indices: Tensor, col_indices: Tensor, block_ids: Tensor, slots: int, block_cols: int
) -> None:
    _check_devices(crow_indices=crow_indices, col_indices=col_indices, block_ids=block_ids)


@_register_fake("block_sparse::pattern_transpose")
def _(
    crow_indices: Tensor, col_indices: Tensor, block_ids: Tensor, block_cols: int
) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices(crow_indices=crow_indices, col_indices=col_indices, block_ids=block_ids)
    return (
        crow_indices.new_empty((block_cols + 1,)),
        torch.empty_like(col_indices),
        torch.empty_like(block_ids),
    )


@_register_fake("block_sparse::pattern_plan")
def _(
    index: Sequence[Tensor],
    out_features: int,
    in_features: int,
    block_height: int,
    block_width: int,
) -> Tensor:
    _check_devices(crow_indices=index[0], index=index)
    # How much a backend writes down is its own affair.
    return index[0].new_empty((torch.library.get_ctx().new_dynamic_size(),))


# Autograd and autocast --------------------------------------------------------------------------

_Library: Any = torch.library.Library
_implementations = _Library("block_sparse", "IMPL")
_AUTOCAST = {"AutocastCPU": "cpu", "AutocastCUDA": "cuda"}
#: Operator -> what computes the same so that torch.func and forward mode can see through it.
_TRANSFORMED: dict[str, Callable[..., Any]] = {
    "linear": lambda *args: _products.linear(*args)[0],
    "linear_preactivation": _products.linear,
    "linear_input_grad": _products.input_grad,
    "linear_weight_grad": _products.weight_grad,
}


def _linear_kernel(name: str, preactivation: str, device_type: str | None) -> Callable[..., Any]:
    """The kernel for autograd, or for the autocast of a device."""
    op = getattr(_ops, name).default

    def call(
        dtype: torch.dtype | None,
        x: Tensor,
        values: Tensor,
        index: list[Tensor],
        bias: Tensor | None,
        out_features: int,
        activation: str = "none",
        allow_tf32: bool = False,
    ) -> Any:
        options = out_features, activation, allow_tf32
        transformed = is_transformed()
        if needs_grad(x, values, bias) and not transformed:
            # Casts inside, so that the gradients are not rounded on their way out.
            return BlockSparseLinear.apply(x, values, bias, index, (*options, preactivation, dtype))
        if dtype is not None:
            x, values = cast_for_autocast(x, dtype), cast_for_autocast(values, dtype)
            bias = None if bias is None else cast_for_autocast(bias, dtype)
        if transformed:
            return _TRANSFORMED[name](x, values, index, bias, *options)
        return below_autograd(op, x, values, index, bias, *options)

    def autocast(*args: Any) -> Any:
        assert device_type is not None
        dtype = torch.get_autocast_dtype(device_type)
        with torch.autocast(device_type, enabled=False):
            return call(dtype, *args)

    return functools.partial(call, None) if device_type is None else autocast


def _autocast(name: str, device_type: str, first: int = 0) -> Callable[..., Any]:
    """Casts the tensor arguments from position `first` on, then calls the operator."""
    op = getattr(_ops, name).default

    def kernel(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        cast = (cast_for_autocast(a, dtype) if isinstance(a, Tensor) else a for a in args[first:])
        with torch.autocast(device_type, enabled=False):
            return op(*args[:first], *cast)

    return kernel


def _gradient_kernel(name: str, differentiable: Callable[..., Tensor]) -> Callable[..., Any]:
    """The kernel for autograd of an operator that is itself a gradient."""
    op = getattr(_ops, name).default

    def kernel(a: Tensor, b: Tensor, *others: Any) -> Any:
        if is_transformed() or needs_grad(a, b, None):
            return differentiable(a, b, *others)
        return below_autograd(op, a, b, *others)

    return kernel


def _backward_kernel(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    input: bool = True,
    bias: bool = True,
    out_dtype: torch.dtype | None = None,
    allow_tf32: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """`linear_backward` in parts, each of which can be differentiated."""
    return (
        _ops.linear_input_grad(grad, values, index, x.size(-1), allow_tf32) if input else None,
        _ops.linear_weight_grad(grad, x, index, *values.shape, out_dtype, allow_tf32),
        grad.reshape(-1, grad.size(-1)).sum(0, dtype=out_dtype) if bias else None,
    )


def _accumulate_kernel(
    accumulator: Tensor,
    grad: Tensor,
    x: Tensor,
    index: list[Tensor],
    allow_tf32: bool = False,
) -> None:
    """The kernel for autograd: what it would have to record is refused."""
    for name, tensor in (("accumulator", accumulator), ("grad", grad), ("x", x)):
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name} requires grad, but linear_weight_grad_accumulate_ works in place and has "
                "no derivative; call it under torch.no_grad()"
            )
    below_autograd(
        _ops.linear_weight_grad_accumulate_.default, accumulator, grad, x, index, allow_tf32
    )
    if not accumulator.is_inference():
        torch.autograd.graph.increment_version(accumulator)  # as every in-place operator


for _name, _preactivation in {"linear": "recompute", "linear_preactivation": "return"}.items():
    for _key, _device_type in {**_AUTOCAST, "Autograd": None}.items():
        _implementations.impl(_name, _linear_kernel(_name, _preactivation, _device_type), _key)
for _name in ("linear_input_grad", "linear_weight_grad"):
    _implementations.impl(_name, _gradient_kernel(_name, _TRANSFORMED[_name]), "Autograd")
for _name, _transformed in _TRANSFORMED.items():
    # Where torch.func takes hold of an operator, before it looks for a rule of its own.
    _implementations.impl(_name, _transformed, "FuncTorchDynamicLayerFrontMode")
# Its result has no derivative.
_implementations.impl(
    "block_norms", functools.partial(below_autograd, _ops.block_norms.default), "Autograd"
)
_implementations.impl("linear_weight_grad_accumulate_", _accumulate_kernel, "Autograd")
for _key in ("Autograd", "FuncTorchDynamicLayerFrontMode"):
    _implementations.impl("linear_backward", _backward_kernel, _key)
# What layers call once they have seen to autograd: no key of it stops these on their way.
for _name in ("_linear", "_linear_backward"):
    _implementations.impl(_name, torch.library.fallthrough_kernel, "Autograd")
for _key, _device_type in _AUTOCAST.items():
    for _name in ("linear_input_grad", "linear_weight_grad", "linear_backward", "block_norms"):
        _implementations.impl(_name, _autocast(_name, _device_type), _key)
    # The accumulator keeps its dtype.
    _name = "linear_weight_grad_accumulate_"
    _implementations.impl(_name, _autocast(_name, _device_type, first=1), _key)


# What cannot run --------------------------------------------------------------------------------


def _without_backend(name: str, reason: str) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"block_sparse::{name} cannot run on this device: {reason}; move the model and its "
            "inputs to the CPU with .to('cpu')"
        )

    return kernel


def _without_kernel(name: str) -> Callable[..., Any]:
    """Refuses a sparse, nested, quantized or oneDNN tensor, whose name it looks up."""
    names = [argument.name for argument in getattr(_ops, name).default._schema.arguments]

    def kernel(*args: Any) -> Any:
        for argument, value in zip(names, args, strict=False):
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, Tensor):
                    check_dense(tensor, argument)

    return kernel


_UNREADABLE = (
    *(kind + device for kind in ("Sparse", "SparseCsr") for device in ("CPU", "CUDA", "Meta")),
    *(kind + device for kind in ("NestedTensor", "Quantized") for device in ("CPU", "CUDA")),
    "MkldnnCPU",
)
_missing = {
    key: f"pytorch_block_sparse has no {key} backend"
    for key in ("MPS", "XPU", "HPU", "PrivateUse1")
}
if _library.cuda_missing is not None:
    _missing["CUDA"] = _library.cuda_missing
for _name in _OPERATORS:
    for _key, _reason in _missing.items():
        _implementations.impl(_name, _without_backend(_name, _reason), _key)
    for _key in _UNREADABLE:
        _implementations.impl(_name, _without_kernel(_name), _key)
