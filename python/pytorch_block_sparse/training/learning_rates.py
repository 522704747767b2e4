# SPDX-License-Identifier: Apache-2.0
"""Learning rates for layers of few inputs."""

from __future__ import annotations

from typing import Any

from torch import nn

from .._validation import describe
from ..block_sparse import BlockSparseMatrix
from .config import check_number

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
