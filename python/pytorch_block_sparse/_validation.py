# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments, shared by the modules: each raises one sentence."""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def describe(value: object) -> str:
    """What came, in one line of a message: the dtype and shape of a tensor, else its repr."""
    if isinstance(value, Tensor):
        if value.is_nested:  # has no shape, or one with symbols
            return f"a nested {value.dtype} tensor of {value.size(0)} tensors on {value.device}"
        layout = "" if value.layout == torch.strided else f" {value.layout}"
        return f"a {value.dtype}{layout} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"{' '.join(reprlib.repr(value).split())} ({type(value).__name__})"


def check_dense(tensor: object, name: str) -> None:
    """Raises TypeError unless `tensor` is one that the kernels can read: any tensor but a sparse,
    nested, quantized or oneDNN one."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {describe(tensor)}, expected a tensor")
    if tensor.is_nested:
        advice = "pad it with torch.nested.to_padded_tensor, or take its values()"
    elif tensor.layout != torch.strided:
        advice = "convert it with to_dense()"
    elif tensor.is_quantized:
        advice = "convert it with dequantize()"
    else:
        return
    raise TypeError(f"{name} is {describe(tensor)}, expected a dense tensor: {advice}")


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers; truth values are none."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def as_indices(value: object, name: str) -> Tensor:
    """Whole numbers (k,) as int64 on the CPU."""
    if not isinstance(value, Tensor) or value.ndim != 1 or not is_integer(value):
        raise ValueError(f"{name} is {describe(value)}, expected a tensor of ints of one dimension")
    if value.is_meta:
        raise ValueError(f"{name} is on the meta device, which holds no data")
    return value.cpu().long()


def as_pair(value: object, name: str) -> tuple[int, int]:
    """Two positive ints from a pair, or from one int for both."""
    if is_int(value):
        value = (value, value)
    items: list[Any] = list(value) if isinstance(value, Iterable) else []
    if len(items) != 2 or not all(is_int(item) and item >= 1 for item in items):
        raise ValueError(f"{name} is {describe(value)}, expected two ints of at least 1")
    return int(items[0]), int(items[1])


def as_count(value: object, name: str, limit: int, limit_name: str) -> int:
    """An int in [1, limit]."""
    if not is_int(value) or not 1 <= value <= limit:  # type: ignore[operator]
        raise ValueError(f"{name} is {describe(value)}, expected 1 to {limit} ({limit_name})")
    return int(value)  # type: ignore[call-overload, no-any-return]


def check_floating(dtype: torch.dtype, name: str) -> None:
    """Raises TypeError unless the kernels know `dtype`."""
    if dtype not in FLOATING:
        raise TypeError(
            f"{name} is {dtype}, expected torch.float32, torch.float64, torch.bfloat16 or "
            "torch.float16"
        )


def check_shape(tensor: Tensor, shape: Sequence[int], name: str, meaning: str) -> None:
    """Raises TypeError unless `tensor` is a dense one, ValueError unless it has exactly `shape`,
    whose dimensions `meaning` names."""
    check_dense(tensor, name)
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"{name} is {describe(tensor)}, expected the shape {tuple(shape)} {meaning}"
        )


def check_features(tensor: Tensor, features: int, name: str) -> None:
    """Raises ValueError unless `tensor` is dense and its last dimension is `features`."""
    check_dense(tensor, name)
    if tensor.shape[-1:] != (features,):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected (..., {features})")


def as_mask(mask: object, shape: tuple[int, int], name: str) -> Tensor:
    """A boolean mask of blocks as a CPU tensor `shape`, with at least one block in it."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{name} is {describe(mask)}, expected a torch.bool tensor {shape}")
    check_shape(mask, shape, name, "(block rows, block columns)")
    if mask.is_meta:
        raise ValueError(f"{name} is on the meta device, which holds no data")
    mask = mask.detach().cpu()
    if not bool(mask.any()):
        raise ValueError(f"{name} has no block set, expected at least one")
    return mask


def is_int(value: object) -> bool:
    """Whether a value is a whole number, of Python or NumPy; truth values are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_share(value: object) -> bool:
    """Whether a value is a number, of Python or NumPy, above 0 and at most 1."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and 0.0 < float(value) <= 1.0  # type: ignore[arg-type]


def check_generator(generator: object) -> None:
    """Raises TypeError or ValueError unless `generator` is None or a generator of the CPU."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is {describe(generator)}, expected a torch.Generator or None")
    if generator.device.type != "cpu":
        raise ValueError(
            f"generator is on {generator.device}, expected a CPU generator: all is drawn on the "
            "CPU, to be the same on every device"
        )


def is_distributed(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, of which every rank holds a part (without importing it)."""
    return hasattr(tensor, "device_mesh")
