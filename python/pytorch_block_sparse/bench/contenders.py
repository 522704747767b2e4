# SPDX-License-Identifier: Apache-2.0
"""Who is measured: what a call of each product is for each of them.

A contender that cannot do a product of a problem has no call for it. Every call takes the number of
the operands whose turn it is and returns its result, so that it can be verified: y, dx, the dense
or the blocked dW, and for a step dx.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from .problems import Operands

Call = Callable[[int], Tensor]
OURS, DENSE = "block_sparse", "nn.Linear"
BSR, SEMI_STRUCTURED, TRITON = "torch BSR", "torch 2:4", "plain Triton"
STK, BLKSPRS, LIBXSMM = "STK", "blksprs", "libxsmm"
PEERS = (BSR, SEMI_STRUCTURED, TRITON, STK, BLKSPRS, LIBXSMM)
_SIXTEEN_BIT = (torch.bfloat16, torch.float16)


@dataclass
class Offer:
    """What a contender can do of a problem.

    Attributes:
        calls: one for each product it has.
        weight: the dense equal of its weight, where that is not the problem's.
        has_bias: whether its forward adds the bias.
        unpack: makes a plain tensor of its result, for verification; not timed.
    """

    calls: dict[str, Call]
    weight: Tensor | None = None
    has_bias: bool = True
    unpack: Callable[[Tensor], Tensor] = lambda result: result


Contender = Callable[[Operands], Offer]


def available(device: torch.device, libxsmm: Path | None) -> dict[str, Contender]:
    """All contenders that can run on `device` here, in the order in which they take turns.

    Raises:
        OSError: if the driver `libxsmm` is given and cannot be loaded.
    """
    found: dict[str, Contender] = {DENSE: dense, OURS: block_sparse, BSR: torch_bsr}
    if device.type == "cuda":
        found[SEMI_STRUCTURED] = torch_semi_structured
        if importlib.util.find_spec("triton") is not None:
            from .triton_peer import triton_peer

            found[TRITON] = triton_peer
        for name, contender in ((STK, stk), (BLKSPRS, blksprs)):
            if importlib.util.find_spec(name.lower()) is not None:
                found[name] = contender
    elif libxsmm is not None:
        from .libxsmm import Libxsmm

        found[LIBXSMM] = Libxsmm(libxsmm).contender
    return found


def dense(o: Operands) -> Offer:
    """torch's nn.Linear: cuBLAS on a GPU, oneDNN or MKL on a CPU."""
    n = len(o.weights)
    return Offer(
        {
            "forward": lambda i: nn.functional.linear(o.x[i], o.weights[i % n], o.bias),
            "input gradient": lambda i: o.dy[i] @ o.weights[i % n],
            "weight gradient": lambda i: o.dy[i].T @ o.x[i],
            "step": _step(o.dense_layer(), o),
        }
    )


def block_sparse(o: Operands) -> Offer:
    """This package."""
    index, shape = o.matrix.operands, tuple(o.matrix.shape)
    block = tuple(o.values[0].shape)
    tf32 = functional.allows_tf32(o.x[0])
    ops = torch.ops.block_sparse
    return Offer(
        {
            "forward": lambda i: functional.linear_of(
                o.x[i], o.values[i], index, shape, o.bias, "none", "save"
            ),
            "input gradient": lambda i: ops.linear_input_grad(
                o.dy[i], o.values[i], index, shape[1], tf32
            ),
            "weight gradient": lambda i: ops.linear_weight_grad(
                o.dy[i], o.x[i], index, *block, None, tf32
            ),
            "step": _step(o.sparse_layer(), o),
        }
    )


def torch_bsr(o: Operands) -> Offer:
    """torch.sparse_bsr tensors; the input gradient gets a transposed copy of W, made beforehand.

    On a GPU this is torch's Triton kernel. torch has no product for the CPU whose result is a BSR
    tensor, and none at all of 16-bit ones.
    """
    p = o.problem
    if p.is_ragged or (o.device.type == "cpu" and o.dtype in _SIXTEEN_BIT):
        return Offer({})
    forward = [_bsr(o, values) for values in o.values]
    backward = [
        w.to_dense().T.contiguous().to_sparse_bsr((p.block_width, p.block_height)) for w in forward
    ]
    return Offer(
        {
            "forward": lambda i: nn.functional.linear(o.x[i], forward[i], o.bias),
            "input gradient": lambda i: nn.functional.linear(o.dy[i], backward[i]),
        }
    )


def _bsr(o: Operands, values: Tensor) -> Tensor:
    """The sparse matrix with other values, as a BSR tensor."""
    crow, col = o.matrix.index[:2]
    shape = tuple(o.matrix.shape)
    return torch.sparse_bsr_tensor(crow, col, values, shape, check_invariants=False)


def torch_semi_structured(o: Operands) -> Offer:
    """torch's 2:4 sparsity: another pattern, and half of the weights whatever the block."""
    if o.problem.density != 0.5 or o.dtype not in _SIXTEEN_BIT:
        return Offer({})
    mask = torch.tensor([1, 1, 0, 0], device=o.device, dtype=o.dtype).repeat(
        o.problem.in_features // 4
    )
    # Not 0 where the mask is 1, since the zeros are what tells the pattern.
    weights = [w.where(w != 0, 1) * mask for w in o.weights]
    packed: list[Any] = [torch.sparse.to_sparse_semi_structured(w) for w in weights]
    n = len(packed)
    calls: dict[str, Call] = {
        "forward": lambda i: nn.functional.linear(o.x[i], packed[i % n], o.bias)
    }
    return Offer(calls, weight=weights[0])


def stk(o: Operands) -> Offer:
    """STK (stanford-stk): Triton kernels for square blocks of 128; no bias."""
    p = o.problem
    if (p.block_height, p.block_width) != (128, 128) or o.dtype not in _SIXTEEN_BIT:
        return Offer({})
    import stk

    crow, col = o.matrix.index[:2]
    row = _rows(o)
    matrices = [
        stk.Matrix(tuple(o.matrix.shape), values, row.short(), col.short(), crow)
        for values in o.values
    ]
    return Offer(
        {
            "forward": lambda i: stk.ops.dds(o.x[i], matrices[i].t()),
            "input gradient": lambda i: stk.ops.dds(o.dy[i], matrices[i]),
            "weight gradient": lambda i: stk.ops.sdd(o.dy[i].T, o.x[i], matrices[i]).data,
        },
        has_bias=False,
    )


def blksprs(o: Operands) -> Offer:
    """blksprs: forward alone, of an x that is cut into its blocks beforehand, and no bias."""
    p = o.problem
    block = p.block_height
    if p.is_ragged or block != p.block_width or p.tokens % block or o.dtype not in _SIXTEEN_BIT:
        return Offer({})
    import blksprs as bs

    layout_w = o.matrix.block_mask_build(None).T.contiguous()[None].to(o.device)  # (1, C, R)
    layout_x = torch.ones(1, p.tokens // block, p.in_features // block, device=o.device).bool()
    layout_y = torch.ones(1, p.tokens // block, p.out_features // block, device=o.device).bool()
    xs = [bs.ops.to_sparse(x[None], layout_x, block) for x in o.x]
    transposed = [o.matrix.to_dense(values).T.contiguous()[None] for values in o.values]
    ws = [bs.ops.to_sparse(w, layout_w, block) for w in transposed]
    cache: dict[str, Any] = {}

    def forward(i: int) -> Tensor:
        y: Tensor = bs.ops.matmul(xs[i], layout_x, ws[i], layout_w, layout_y, block, cache)
        return y

    def unpack(y: Tensor) -> Tensor:
        whole: Tensor = bs.ops.to_dense(y, layout_y, block)[0]
        return whole

    return Offer({"forward": forward}, has_bias=False, unpack=unpack)


def _rows(o: Operands) -> Tensor:
    """int64 (n,): the block row of each stored block."""
    crow = o.matrix.index[0]
    return torch.repeat_interleave(crow.diff())


def _step(layer: nn.Module, o: Operands) -> Call:
    """Forward, backward to x, weight and bias, and AdamW, whose rate of 0 moves nothing.

    Always on the first operands: a step comes by more memory than caches hold.
    """
    # Its learning rate may be a number: nothing reads it on the host while a graph is captured.
    optimizer = torch.optim.AdamW(
        layer.parameters(), lr=0.0, fused=True, capturable=o.device.type == "cuda"
    )
    x = o.x[0].clone().requires_grad_()

    def call(i: int) -> Tensor:
        x.grad = None
        optimizer.zero_grad()
        with torch.enable_grad():
            layer(x).backward(o.dy[0])
        optimizer.step()
        assert x.grad is not None
        return x.grad

    return call
