# SPDX-License-Identifier: Apache-2.0
"""A plain Triton kernel for each product: what one writes oneself in an afternoon.

One program computes one tile with `tl.dot`, stored block after stored block; no lists, no copies of
the weight, no sharing between block rows. A peer only: nothing outside the benchmark uses it.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import language as tl

from .contenders import Offer
from .problems import Operands

SIDES = (16, 32, 64, 128)
# Side of a block -> tokens a tile, warps, stages: the best of a few on an H100 (bf16, T = 8192).
SPMM = {16: (128, 4, 4), 32: (256, 4, 4), 64: (128, 4, 5), 128: (256, 8, 4)}
# So many tiles of tokens run beside each other, for the L2.
GROUP = 8
# Side of a block -> tokens a step, warps, stages.
SDDMM = {16: (128, 4, 3), 32: (128, 4, 3), 64: (128, 4, 3), 128: (64, 8, 4)}


@triton.jit
def _spmm(
    x,
    values,
    pointers,
    positions,
    ids,
    bias,
    y,
    lines,
    tokens,
    ldx,
    ldy,
    SIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUP: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block row of y (tokens, out) = x Wᵀ + bias, or if TRANSPOSED block column of x W."""
    tiles = tl.cdiv(tokens, TOKENS)
    group = tl.program_id(0) // (GROUP * lines)
    in_group = tl.program_id(0) % (GROUP * lines)
    width = tl.minimum(tiles - group * GROUP, GROUP)
    line = in_group // width
    t = (group * GROUP + in_group % width) * TOKENS + tl.arange(0, TOKENS)
    inside = t[:, None] < tokens
    side = tl.arange(0, SIDE)
    rows = t[:, None].to(tl.int64)
    # The block as (k, n): element (n, k) of a block of W, or (k, n) of its transpose.
    if TRANSPOSED:
        block = side[:, None] * SIDE + side[None, :]
    else:
        block = side[None, :] * SIDE + side[:, None]
    total = tl.zeros((TOKENS, SIDE), tl.float32)
    for i in range(tl.load(pointers + line), tl.load(pointers + line + 1)):
        k = tl.load(positions + i) * SIDE + side[None, :]
        a = tl.load(x + rows * ldx + k, mask=inside, other=0.0)
        b = tl.load(values + tl.load(ids + i).to(tl.int64) * SIDE * SIDE + block)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    n = line * SIDE + side[None, :]
    if HAS_BIAS:
        total += tl.load(bias + n).to(tl.float32)
    tl.store(y + rows * ldy + n, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _sddmm(
    dy,
    x,
    row,
    col,
    ids,
    dvalues,
    tokens,
    lddy,
    ldx,
    SIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of dW = dyᵀ x, over all tokens."""
    i = tl.program_id(0)
    side = tl.arange(0, SIDE)
    m = tl.load(row + i) * SIDE + side[:, None]
    n = tl.load(col + i) * SIDE + side[None, :]
    total = tl.zeros((SIDE, SIDE), tl.float32)
    for begin in range(0, tokens, TOKENS):
        t = begin + tl.arange(0, TOKENS).to(tl.int64)
        a = tl.load(dy + t[None, :] * lddy + m, mask=t[None, :] < tokens, other=0.0)
        b = tl.load(x + t[:, None] * ldx + n, mask=t[:, None] < tokens, other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    block = tl.load(ids + i).to(tl.int64) * SIDE * SIDE + side[:, None] * SIDE + side[None, :]
    tl.store(dvalues + block, total.to(dvalues.dtype.element_ty))


def spmm(
    x: Tensor, values: Tensor, line_index: list[Tensor], bias: Tensor | None, *, transposed: bool
) -> Tensor:
    """x Wᵀ + bias, or if `transposed` x W.

    Args:
        x: (tokens, in), or (tokens, out) if `transposed`.
        values: the stored blocks (slots, side, side).
        line_index: pointers, positions and slots of the blocks by row, by column if `transposed`.
        bias: (out,), or None.
        transposed: which of the two.
    """
    pointers, positions, ids = line_index
    tokens, side = x.shape[0], values.shape[1]
    lines = pointers.numel() - 1
    y = x.new_empty(tokens, lines * side)
    tile, warps, stages = _fitting(SPMM[side], x.dtype)
    _spmm[(lines * triton.cdiv(tokens, tile),)](
        x,
        values,
        pointers,
        positions,
        ids,
        bias,
        y,
        lines,
        tokens,
        x.stride(0),
        y.stride(0),
        SIDE=side,
        TOKENS=tile,
        GROUP=GROUP,
        TRANSPOSED=transposed,
        HAS_BIAS=bias is not None,
        PRECISION=_precision(),
        num_warps=warps,
        num_stages=stages,
    )
    return y


def sddmm(dy: Tensor, x: Tensor, row: Tensor, index: list[Tensor], values: Tensor) -> Tensor:
    """The stored blocks of dyᵀ x, laid out like `values` (slots, side, side).

    Args:
        dy, x: (tokens, out) and (tokens, in).
        row: int32 (n,), the block row of each stored block.
        index: the seven tensors of the weight.
        values: only looked at for shape and dtype.
    """
    side = values.shape[1]
    dvalues = torch.empty_like(values)
    step, warps, stages = _fitting(SDDMM[side], x.dtype)
    _sddmm[(row.numel(),)](
        dy,
        x,
        row,
        index[1],
        index[2],
        dvalues,
        x.shape[0],
        dy.stride(0),
        x.stride(0),
        SIDE=side,
        TOKENS=step,
        PRECISION=_precision(),
        num_warps=warps,
        num_stages=stages,
    )
    return dvalues


def triton_peer(o: Operands) -> Offer:
    """The kernels above, as a contender."""
    p = o.problem
    if p.is_ragged or p.block_height != p.block_width or p.block_height not in SIDES:
        return Offer({})
    index = o.matrix.index
    row = torch.repeat_interleave(index[0].diff()).int()
    by_row, by_column = index[:3], index[3:6]
    return Offer(
        {
            "forward": lambda i: spmm(o.x[i], o.values[i], by_row, o.bias, transposed=False),
            "input gradient": lambda i: spmm(
                o.dy[i], o.values[i], by_column, None, transposed=True
            ),
            "weight gradient": lambda i: sddmm(o.dy[i], o.x[i], row, index, o.values[i]),
        }
    )


def _fitting(config: tuple[int, int, int], dtype: torch.dtype) -> tuple[int, int, int]:
    """The configuration, with smaller tiles and fewer stages where elements take 4 bytes, so that
    they fit into the shared memory of a multiprocessor."""
    tile, warps, _ = config
    return config if dtype.itemsize == 2 else (min(tile // 2, 64), warps, 2)


def _precision() -> str:
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
