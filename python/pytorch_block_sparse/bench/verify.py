# SPDX-License-Identifier: Apache-2.0
"""No time is reported of a result that is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .contenders import Call, Offer
from .problems import Operands


class WrongResult(Exception):
    """A contender computed something else than the product."""


class Expected:
    """left (m, k) @ right (k, n) (+ bias) of the integers that `Operands` hold at first.

    All sums on the way are exact in float32. What is left is rounding to the dtype of the result,
    once, or twice where the bias is added to what was rounded already.
    """

    def __init__(self, left: Tensor, right: Tensor, bias: Tensor | None = None) -> None:
        self.value = left.double() @ right.double()
        self._magnitude = self.value.abs()
        if bias is not None:
            self.value += bias.double()
            self._magnitude += bias.double().abs()

    def check(self, name: str, result: Tensor, where: Tensor | None = None) -> None:
        """Raises WrongResult, naming the contender, unless `result` (m, n) is right.

        With `where`, boolean (m, n), only those elements are looked at.
        """
        if result.shape != self.value.shape:
            raise WrongResult(
                f"{name}: the result has shape {tuple(result.shape)}, expected "
                f"{tuple(self.value.shape)}"
            )
        error = (result.double() - self.value).abs_()
        right = error <= torch.finfo(result.dtype).eps * self._magnitude  # false for a nan
        if where is not None:
            right |= ~where
        if not bool(right.all()):
            wrong = error[~right]
            raise WrongResult(
                f"{name}: {wrong.numel()} elements are wrong, by up to {float(wrong.max()):.3g}"
            )


class Verifier:
    """Knows what each product of some operands must give."""

    def __init__(self, operands: Operands) -> None:
        self._operands = operands
        self._expected: dict[str, Expected] = {}

    def check(self, name: str, product: str, offer: Offer) -> None:
        """Calls the product once; raises WrongResult unless the result is right."""
        call: Call = offer.calls[product]
        with _whole_sums(), torch.no_grad():
            result = offer.unpack(call(0))
        title = f"{self._operands.problem} {product}, {name}"
        expected = self._product(product, offer)
        if product != "weight gradient" or result.dim() == 2:
            expected.check(title, result)
            return
        matrix = self._operands.matrix
        stored = matrix.to_dense(torch.ones_like(matrix.values)) != 0
        expected.check(title, matrix.to_dense(result), stored)

    def _product(self, product: str, offer: Offer) -> Expected:
        o = self._operands
        special = offer.weight is not None or (product == "forward" and not offer.has_bias)
        if not special and product in self._expected:
            return self._expected[product]
        weight = o.weights[0] if offer.weight is None else offer.weight
        if product == "forward":
            expected = Expected(o.x[0], weight.T, o.bias if offer.has_bias else None)
        elif product == "weight gradient":
            expected = Expected(o.dy[0].T, o.x[0])
        else:
            expected = Expected(o.dy[0], weight)
        if not special:
            self._expected[product] = expected
        return expected


@contextlib.contextmanager
def _whole_sums() -> Iterator[None]:
    """cuBLAS may round partial sums to 16 bits, which is not wrong, but not exact either."""
    matmul = torch.backends.cuda.matmul
    before = (
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
    )
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before[0]
        matmul.allow_fp16_reduced_precision_reduction = before[1]
