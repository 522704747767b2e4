# SPDX-License-Identifier: Apache-2.0
"""No time is reported of a result that is wrong."""

from __future__ import annotations

import torch
from torch import Tensor


class WrongResult(Exception):
    """A contender computed something else than the product."""


class Expected:
    """left (m, k) @ right (k, n) (+ bias), in float64, and how far off a result may be.

    Each of the k products and sums errs by at most eps of the magnitudes it adds up, in whatever
    order, so that an element is off by at most eps·(k + 1)·(|left| @ |right| + |bias|), with the
    eps of float32, in which 16-bit types are accumulated too; those round once more at the end.
    """

    def __init__(self, left: Tensor, right: Tensor, bias: Tensor | None = None) -> None:
        left, right = left.double(), right.double()
        self.value = left @ right
        magnitude = left.abs() @ right.abs()
        if bias is not None:
            self.value += bias.double()
            magnitude += bias.double().abs()
        self.allowed = torch.finfo(torch.float32).eps * (left.shape[1] + 1) * magnitude

    def check(self, name: str, result: Tensor, where: Tensor | None = None) -> None:
        """Raises WrongResult, naming the contender, unless `result` (m, n) is right.

        With `where`, boolean (m, n), only those elements are looked at.
        """
        allowed = self.allowed + torch.finfo(result.dtype).eps * self.value.abs()
        error = (result.double() - self.value).abs()
        right = error <= allowed  # false for a nan
        if where is not None:
            right |= ~where
        if not bool(right.all()):
            raise WrongResult(
                f"{name}: off by up to {float(error.max()):.3g}, more than rounding allows"
            )
