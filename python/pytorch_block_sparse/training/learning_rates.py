# SPDX-License-Identifier: Apache-2.0
"""Learning rates for layers of few inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._validation import describe
from ..block_sparse import BlockSparseMatrix
from .config import check_number

if TYPE_CHECKING:
    from .layers import GovernedLayer

#: Of the density. 1 is what theory has for Adam, .9 was measured to be as good (docs/training.md).
POWER = 0.9


def parameter_groups(
    model: nn.Module, lr: float, *, power: float = POWER, **options: Any
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer such as AdamW, in which stored blocks learn faster::

        optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-3))

    An output of a layer of density d sums d times as many products as a dense one's, and Adam moves
    each weight as far as any: the output moves less. So values learn at lr · d^-power, all other
    parameters at lr. After Dey et al., "Sparse maximal update parameterization: A holistic approach
    to sparse training dynamics", NeurIPS 2024 (arXiv:2405.15743).

    Where the density goes down in the run, give `power=0` here, and `PatternTrainer` the power.

    Args:
        model: with block-sparse layers.
        lr: what a dense model learns at.
        power: of the density; 0 is the same rate for all.
        options: of all groups, such as `weight_decay`.

    Returns:
        A group for all else, and one for the values of each density, the largest first.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {describe(model)}, expected a torch.nn.Module")
    check_number("lr", lr, 0.0, float("inf"))
    check_number("power", power, 0.0, 2.0)
    densities = {
        id(module.values): module.density
        for module in model.modules()
        if isinstance(module, BlockSparseMatrix)
    }
    by_density: dict[float, list[nn.Parameter]] = {}
    others = []
    for parameter in model.parameters():
        density = densities.get(id(parameter))
        if density is None:
            others.append(parameter)
        else:
            by_density.setdefault(density, []).append(parameter)
    groups = [{"params": others, "lr": lr, **options}] if others else []
    for density, values in sorted(by_density.items(), reverse=True):
        groups.append({"params": values, "lr": lr * density**-power, **options})
    return groups


class DensityRates:
    """Lets values learn at the rate of their group times the density now to a negative power.

    Only while the optimizer steps: what a scheduler sees and sets is the rate without.

    Args:
        optimizers: that train the layers.
        layers: whose density counts: of those in a group together.
        power: see `parameter_groups`.

    Raises:
        ValueError: in one sentence, if values are in a group with other parameters.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        layers: Sequence[GovernedLayer],
        power: float,
    ) -> None:
        check_number("lr_power", power, 0.0, 2.0)
        self._power = power
        self._rates: list[Any] = []
        self._matrices = {id(layer.matrix.values): layer.matrix for layer in layers}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                inside = [id(parameter) in self._matrices for parameter in group["params"]]
                if any(inside) and not all(inside):
                    raise ValueError(
                        f"lr_power is {power}, but {type(optimizer).__name__} has values of layers "
                        "and other parameters in one group, expected groups such as "
                        "parameter_groups(model, lr, power=0) makes"
                    )
            optimizer.register_step_pre_hook(self._before)
            optimizer.register_step_post_hook(self._after)

    def _factor(self, group: dict[str, Any]) -> float:
        matrices = [self._matrices.get(id(parameter)) for parameter in group["params"]]
        governed = [matrix for matrix in matrices if matrix is not None]
        if not governed:
            return 1.0
        total = sum(matrix._grid[0] * matrix._grid[1] for matrix in governed)
        stored = sum(matrix.n_blocks for matrix in governed)
        return float((stored / total) ** -self._power)

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self._factor(group)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
