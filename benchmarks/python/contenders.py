# SPDX-License-Identifier: Apache-2.0
"""Who is measured: what a call of each product is for each of them.

A contender that cannot do a product of a problem has no entry for it. Every call returns its
result, so that it can be verified: y, dx, the dense or the blocked dW, and for a step dx.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .problems import Operands

Call = Callable[[], Tensor]
OURS, DENSE = "block_sparse", "nn.Linear"


def dense(o: Operands) -> dict[str, Call]:
    """torch's nn.Linear on a weight in which zeros stand where no block is stored."""
    weight = o.dense.weight.detach()
    return {
        "forward": lambda: o.dense(o.x),
        "input gradient": lambda: o.dy @ weight,
        "weight gradient": lambda: o.dy.T @ o.x,
        "step": _step(o.dense, o),
    }


def block_sparse(o: Operands) -> dict[str, Call]:
    """This package."""
    weight = o.sparse.weight
    values, index = weight.values.detach(), weight.index
    slots, height, width = values.shape
    ops = torch.ops.block_sparse
    return {
        "forward": lambda: o.sparse(o.x),
        "input gradient": lambda: ops.linear_input_grad(o.dy, values, index, o.problem.in_features),
        "weight gradient": lambda: ops.linear_weight_grad(o.dy, o.x, index, slots, height, width),
        "step": _step(o.sparse, o),
    }


def torch_bsr(o: Operands) -> dict[str, Call]:
    """torch.sparse_bsr_tensor; the input gradient gets a transposed copy of W, made beforehand.

    torch has no product for the CPU whose result is a BSR tensor, and none at all of 16-bit ones.
    """
    p = o.problem
    if o.x.dtype not in (torch.float32, torch.float64):
        return {}
    if p.out_features % p.block_height or p.in_features % p.block_width:
        return {}
    weight = o.dense.weight.detach()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse BSR tensor support is in beta")
        forward = weight.to_sparse_bsr((p.block_height, p.block_width))
        backward = weight.T.contiguous().to_sparse_bsr((p.block_width, p.block_height))
    bias = o.dense.bias
    return {
        "forward": lambda: nn.functional.linear(o.x, forward, bias),
        "input gradient": lambda: nn.functional.linear(o.dy, backward),
    }


def _step(layer: nn.Module, o: Operands) -> Call:
    """Forward, backward to x, weight and bias, and AdamW, whose rate of 0 moves nothing."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.0, fused=True)
    x = o.x.clone().requires_grad_()

    def call() -> Tensor:
        x.grad = None
        optimizer.zero_grad()
        with torch.enable_grad():
            layer(x).backward(o.dy)
        optimizer.step()
        assert x.grad is not None
        return x.grad

    return call
