# SPDX-License-Identifier: Apache-2.0
"""One layer: whether it can become block-sparse, and the block-sparse layer it becomes."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn

from .._validation import FLOATING
from ..block_sparse_linear import BlockSparseLinear, PseudoBlockSparseLinear
from ..density import block_grid, density_of
from ..functional import Activation
from .config import LayerConfig


def is_conv1d(module: nn.Module) -> bool:
    """True for transformers' `Conv1D`: a linear layer whose weight is stored (in, out)."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def refusal(module: nn.Module) -> str | None:
    """Why `module`, looked at alone, can't be replaced; None if it can."""
    kind = type(module)
    if isinstance(module, (BlockSparseLinear, PseudoBlockSparseLinear)):
        return "it is block-sparse already"
    if not isinstance(module, nn.Linear) and not is_conv1d(module):
        return f"this is not a Linear layer: {kind.__name__}"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return (
            "it is the out_proj of a torch.nn.MultiheadAttention, which reads the dense weight "
            "itself and never calls the layer"
        )
    if isinstance(module, nn.LazyLinear):
        return "it is a LazyLinear, which the first forward turns into a Linear: run it, then patch"
    if kind is not nn.Linear and not is_conv1d(module):
        return f"{kind.__module__}.{kind.__qualname__} is a subclass of Linear with its own ways"
    if module._parameters.keys() != {"weight", "bias"} or type(module.weight) is not nn.Parameter:
        return (
            "its weight is not a plain Parameter (parametrized, quantized, sharded or wrapped): "
            "patch the model before that"
        )
    if module.weight.dtype not in FLOATING:
        return (
            f"its weight is {module.weight.dtype}, expected float32, float64, bfloat16 or float16"
        )
    if _has_hooks(module):
        return "it has hooks, which would be lost: remove them, patch, and add them again"
    return None


def _has_hooks(module: nn.Module) -> bool:
    # `_hf_hook` is how accelerate places a module on several devices.
    return hasattr(module, "_hf_hook") or any(
        len(getattr(module, hooks)) > 0
        for hooks in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        )
    )


def dense_view(module: nn.Module) -> nn.Linear:
    """The layer as an `nn.Linear` on the same weight and bias; weight (out, in), maybe strided."""
    if isinstance(module, nn.Linear):
        return module
    weight: torch.Tensor = module.weight  # type: ignore[assignment]  # Conv1D: (in, out)
    linear = nn.Linear(
        weight.shape[0], weight.shape[1], bias=module.bias is not None, device="meta"
    )
    linear.weight = nn.Parameter(weight.detach().t(), requires_grad=weight.requires_grad)
    linear.bias = module.bias  # type: ignore[assignment]
    return linear


def make_sparse(
    module: nn.Module,
    config: LayerConfig,
    *,
    blocks: int,
    mask: torch.Tensor | None,
    activation: Activation,
) -> BlockSparseLinear | PseudoBlockSparseLinear:
    """The block-sparse layer that takes the place of `module`.

    It keeps the trained weights on the chosen blocks, the very bias Parameter (so that a tied bias
    stays tied), and device, dtype, training mode and `requires_grad`.

    Args:
        module: a layer that `refusal` accepts.
        config: how to draw the pattern.
        blocks: number of blocks to store, where no mask is given.
        mask: (block rows, block columns) bool, or None.
        activation: fused into the layer.
    """
    linear = dense_view(module)
    shape = (linear.out_features, linear.in_features)
    grid = block_grid(shape, config.block_shape)
    layer = BlockSparseLinear(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        density_of(blocks, math.prod(grid)),
        torch_nn_linear=linear,
        block_shape=config.block_shape,
        pattern=mask if mask is not None else cast(str, config.pattern),
        activation=activation,
        preactivation=config.preactivation,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
    sparse: BlockSparseLinear | PseudoBlockSparseLinear = layer
    weight = layer.weight.values
    if config.pseudo_linear:
        sparse = PseudoBlockSparseLinear(layer)
        weight = sparse.weight
    weight.requires_grad_(linear.weight.requires_grad)
    sparse.bias = linear.bias
    return sparse.train(module.training)
