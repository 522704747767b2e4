# SPDX-License-Identifier: Apache-2.0
"""libxsmm as a contender, through the driver of benchmarks/cpp/libxsmm."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .contenders import Call
from .problems import Operands

# Where `make bench` builds it.
LIBRARY = (
    Path(__file__).parents[2] / "build/bench/benchmarks/cpp/libxsmm/libblock_sparse_libxsmm.so"
)


class _Problem(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("tokens", "out_features", "in_features", "block_height", "block_width")
    ]


class Libxsmm:
    """The driver, loaded; `contender` says what it can do of a problem."""

    def __init__(self, path: Path = LIBRARY) -> None:
        """Raises OSError where the driver was not built."""
        self._library = ctypes.CDLL(str(path))

    def contender(self, o: Operands) -> dict[str, Call]:
        p = o.problem
        if o.x.dtype != torch.float32:
            return {}
        if p.out_features % p.block_height or p.in_features % p.block_width:
            return {}
        weight = o.sparse.weight
        crow, col, ids, ccol, t_row, t_ids = weight.index[:6]
        row = torch.repeat_interleave(crow.diff()).int()  # block row of each block
        values = weight.values.detach()
        # Packed beforehand, as one would for inference: each block as (in, out).
        packed = values.mT.contiguous()
        y, dx, dvalues = torch.empty_like(o.dy), torch.empty_like(o.x), torch.empty_like(values)
        bias = o.dense.bias
        assert bias is not None

        forward = self._bind("forward", o, o.x, _addresses(packed, ids[: o.blocks]), crow, col, y)
        input_gradient = self._bind(
            "input_gradient", o, o.dy, _addresses(values, t_ids[: o.blocks]), ccol, t_row, dx
        )
        weight_gradient = self._bind("weight_gradient", o, o.dy, o.x, row, col, o.blocks, dvalues)

        def forward_with_bias(operands: tuple[Tensor, ...] = (packed, values)) -> Tensor:
            # `operands`: the addresses above do not keep alive what they point to.
            return forward().add_(bias)

        return {
            "forward": forward_with_bias,
            "input gradient": input_gradient,
            "weight gradient": weight_gradient,
        }

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

        def call() -> Tensor:
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
