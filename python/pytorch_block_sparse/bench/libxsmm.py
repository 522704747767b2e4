# SPDX-License-Identifier: Apache-2.0
"""libxsmm as a contender, through the driver of benchmarks/cpp/libxsmm: `make bench` builds it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .contenders import Call, Offer
from .problems import Operands


class _Problem(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("tokens", "out_features", "in_features", "block_height", "block_width")
    ]


class Libxsmm:
    """The driver, loaded; `contender` says what it can do of a problem."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the driver at `path` cannot be loaded."""
        self._library = ctypes.CDLL(str(path.absolute()))

    def contender(self, o: Operands) -> Offer:
        """Forward and both gradients in float32."""
        p = o.problem
        if o.dtype != torch.float32 or p.is_ragged:
            return Offer({})
        crow, col, ids, ccol, t_row, t_ids = o.matrix.index[:6]
        row = torch.repeat_interleave(crow.diff()).int()  # block row of each block
        x, dy, values = o.x[0], o.dy[0], o.values[0]
        n = o.matrix.n_blocks
        # Packed beforehand, as one would for inference: each block as (in, out).
        packed = values.mT.contiguous()
        y, dx, dvalues = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(values)

        forward = self._bind("forward", o, x, _addresses(packed, ids[:n]), crow, col, y)
        input_gradient = self._bind(
            "input_gradient", o, dy, _addresses(values, t_ids[:n]), ccol, t_row, dx
        )
        weight_gradient = self._bind("weight_gradient", o, dy, x, row, col, n, dvalues)

        def forward_with_bias(i: int, operands: tuple[Tensor, ...] = (packed, values)) -> Tensor:
            # `operands`: the addresses above do not keep alive what they point to.
            return forward(i).add_(o.bias)

        return Offer(
            {
                "forward": forward_with_bias,
                "input gradient": input_gradient,
                "weight gradient": weight_gradient,
            }
        )

    def _bind(self, product: str, o: Operands, *arguments: Tensor | int) -> Call:
        """A call of the driver's function for `product`; the last argument is its result."""
        function: Callable[..., int] = getattr(self._library, f"peer_{product}")
        p = o.problem
        problem = _Problem(p.tokens, p.out_features, p.in_features, p.block_height, p.block_width)
        converted = [
            ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_void_p(a.data_ptr())
            for a in arguments
        ]
        threads = torch.get_num_threads()

        def call(i: int) -> Tensor:
            if not function(ctypes.byref(problem), *converted, threads):
                raise RuntimeError(f"libxsmm has no {product} kernel for {p}")
            # Also what keeps the tensors behind `converted` alive.
            result = arguments[-1]
            assert isinstance(result, Tensor)
            return result

        return call


def _addresses(blocks: Tensor, ids: Tensor) -> Tensor:
    """int64 (n,): where in memory block ids[i] of `blocks` begins."""
    return blocks.data_ptr() + ids.long() * blocks[0].nbytes
