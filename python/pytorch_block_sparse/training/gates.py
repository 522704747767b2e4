# SPDX-License-Identifier: Apache-2.0
"""Gates that multiply each stored block by a number in [0, 1], and how they are learned.

The gate of a block is a hard-concrete variable (Louizos et al., 2018): a logistic one of location
`log_alpha`, squeezed into (0, 1), stretched beyond both ends and clipped, so that it can be exactly
0 or 1. The noise of a step depends on seed and step alone: a run that is resumed, and each rank of
a process group, draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional
from .._sharding import local_part
from ..block_sparse import BlockSparseMatrix

#: The temperature and the ends that the paper recommends.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1
#: Where a gate starts: open with probability .97, and without noise at .98.
START = 2.2
#: A gate is closed where the noise is below; the distance from `log_alpha`.
CLOSED = TEMPERATURE * math.log(-LOW / HIGH)
BETAS, EPS = (0.9, 0.999), 1e-8


class GatedBlocks:
    """The product of a layer whose blocks have gates.

    Attributes:
        log_alpha: (slots,) float32, with its gradient from the beginning on.
        noise: (slots,) float32, logistic, of this step.
        moments: (2, slots) float32, what Adam keeps of `log_alpha`.
    """

    def __init__(self, matrix: BlockSparseMatrix) -> None:
        self.log_alpha = torch.empty(0)
        self.noise = self.moments = self.log_alpha
        device = matrix.crow_indices.device
        self._set(torch.full((matrix.slots,), START, device=device), None)

    def _set(self, log_alpha: Tensor, moments: Tensor | None) -> None:
        self.log_alpha = log_alpha.detach().requires_grad_()
        # A captured CUDA graph adds to it in place.
        self.log_alpha.grad = torch.zeros_like(log_alpha)
        self.noise = torch.zeros_like(log_alpha)
        self.moments = log_alpha.new_zeros(2, log_alpha.numel()) if moments is None else moments

    def open(self, noisy: bool) -> Tensor:
        """(slots,) in [0, 1]: the gates, as they are drawn now or without noise."""
        logit = (self.log_alpha + self.noise) / TEMPERATURE if noisy else self.log_alpha
        return (torch.sigmoid(logit) * (HIGH - LOW) + LOW).clamp(0.0, 1.0)

    def __call__(
        self,
        x: Tensor,
        weight: BlockSparseMatrix,
        bias: Tensor | None,
        activation: str,
        preactivation: str,
    ) -> Tensor:
        """activation(x Wᵀ + bias) with each block of W times its gate: drawn while the layer
        trains, without noise else."""
        gates = self.open(noisy=weight.training).to(weight.values.dtype)
        return functional.linear_of(
            x,
            weight.values * gates[:, None, None],
            weight.index,
            weight.shape,
            bias,
            activation,
            preactivation,
        )

    @torch.no_grad()
    def fold(self, matrix: BlockSparseMatrix) -> None:
        """Multiplies the blocks by their gates without noise."""
        local, start = local_part(matrix.values)
        gates = self.open(noisy=False)[start : start + local.shape[0]]
        local.mul_(gates.to(local.dtype)[:, None, None])

    def move(self, source: Tensor, slots: int) -> None:
        """Gives them another number of slots: what was in slot `source[i]` is in slot i now."""
        log_alpha = self.log_alpha.new_full((slots,), START)
        moments = self.moments.new_zeros(2, slots)
        source = source.to(log_alpha.device)
        log_alpha[: source.numel()] = self.log_alpha.detach()[source]
        moments[:, : source.numel()] = self.moments[:, source]
        self._set(log_alpha, moments)

    def state_dict(self) -> dict[str, Tensor]:
        """What is learned."""
        return {"log_alpha": self.log_alpha.detach().clone(), "moments": self.moments.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from what `state_dict` returned."""
        device = self.log_alpha.device
        self._set(state["log_alpha"].to(device).clone(), state["moments"].to(device).clone())


def draw_noise(gates: Sequence[GatedBlocks], seed: int, step: int) -> None:
    """Draws the noise of a step, in place."""
    generator = torch.Generator(device="cpu").manual_seed((seed << 32) + step)
    sizes = [one.noise.numel() for one in gates]
    uniform = torch.rand(sum(sizes), generator=generator, device="cpu").clamp(1e-6, 1 - 1e-6)
    noise = torch.split(uniform.logit().to(gates[0].noise.device), sizes)
    torch._foreach_copy_([one.noise for one in gates], noise)


def clear_gradients(gates: Sequence[GatedBlocks]) -> None:
    """In place."""
    torch._foreach_zero_([_grad(one) for one in gates])


@torch.no_grad()
def learn(
    gates: Sequence[GatedBlocks],
    grads: Sequence[Tensor],
    *,
    lr: float,
    penalty: float,
    blocks: int,
    step: int,
) -> None:
    """A step of Adam for all gates, whose loss has `penalty` times the expected share of open ones.

    Args:
        gates: in order.
        grads: (slots,) each, of the loss of the model.
        lr: the learning rate.
        penalty: see above.
        blocks: how many are stored.
        step: how many there have been, this one included.
    """
    sizes = [one.log_alpha.numel() for one in gates]
    log_alpha = torch.cat([one.log_alpha.detach() for one in gates])
    is_open = torch.sigmoid(log_alpha - CLOSED)
    grad = torch.cat(list(grads)) + penalty / blocks * is_open * (1 - is_open)
    moments = torch.cat([one.moments for one in gates], 1)
    moments[0].lerp_(grad, 1 - BETAS[0])
    moments[1].lerp_(grad.square(), 1 - BETAS[1])
    first, second = (moment / (1 - beta**step) for moment, beta in zip(moments, BETAS, strict=True))
    log_alpha -= lr * first / (second.sqrt() + EPS)
    parts: list[Any] = [one.log_alpha.detach() for one in gates]
    torch._foreach_copy_(parts, list(torch.split(log_alpha, sizes)))
    for one, part in zip(gates, torch.split(moments, sizes, 1), strict=True):
        one.moments.copy_(part)


def gradients(gates: Sequence[GatedBlocks]) -> list[Tensor]:
    """(slots,) each, since `clear_gradients`."""
    return [_grad(one) for one in gates]


def _grad(gates: GatedBlocks) -> Tensor:
    grad = gates.log_alpha.grad
    assert grad is not None  # from the beginning on
    return grad
