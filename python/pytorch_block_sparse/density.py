# SPDX-License-Identifier: Apache-2.0
"""How a density is shared out among several layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ._validation import is_share

DENSITY_RULES = ("uniform", "erk")


def block_grid(shape: tuple[int, int], block_shape: tuple[int, int]) -> tuple[int, int]:
    """Block rows and block columns of a (rows, columns) matrix; the last of each may stick out."""
    return math.ceil(shape[0] / block_shape[0]), math.ceil(shape[1] / block_shape[1])


def erk_densities(shapes: Sequence[tuple[int, int]], density: float) -> list[float]:
    """Densities of linear layers by the Erdős-Rényi-Kernel rule.

    Layer l of n_out outputs and n_in inputs gets a density in proportion to
    (n_out + n_in) / (n_out * n_in), so that small layers are kept denser. The factor is such that
    the layers together hold `density` of their elements; a layer that would exceed 1 stays dense
    and the others share what is left.

    Source: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science", 2018 (Erdős-Rényi); Evci et al., "Rigging the
    Lottery: Making All Tickets Winners", 2020 (with kernels, and the cap at 1).

    Args:
        shapes: (out, in) of each layer.
        density: overall density, in (0, 1].

    Returns:
        The density of each layer, in (0, 1], in the order of `shapes`.

    Raises:
        ValueError: if `density` is outside (0, 1].
    """
    check_density(density)
    return _share(shapes, [rows * cols for rows, cols in shapes], density)


def _share(
    shapes: Sequence[tuple[int, int]], weights: Sequence[int], density: float
) -> list[float]:
    """Densities d_l in proportion to the ERK score, capped at 1, with sum(d_l * w_l) as asked."""
    scores = [(rows + cols) / (rows * cols) for rows, cols in shapes]
    dense: set[int] = set()
    while len(dense) < len(shapes):
        free = [i for i in range(len(shapes)) if i not in dense]
        left = density * sum(weights) - sum(weights[i] for i in dense)
        factor = left / sum(scores[i] * weights[i] for i in free)
        # Capping a layer frees budget, so the factor only grows: what exceeds 1 now stays so.
        exceeding = {i for i in free if factor * scores[i] > 1.0}
        if not exceeding:
            return [1.0 if i in dense else factor * score for i, score in enumerate(scores)]
        dense |= exceeding
    return [1.0] * len(shapes)


def erk_block_counts(
    shapes: Sequence[tuple[int, int]], block_shape: tuple[int, int], density: float
) -> list[int]:
    """Number of blocks of each layer by the rule of `erk_densities`, in whole blocks.

    The share counts blocks, so that ragged layers add up too. Rounding is by largest remainder:
    the counts add up to floor(density * all blocks), or more if each layer is to have one block.

    Args:
        shapes: (out, in) of each layer.
        block_shape: (out, in) of a block, the same for all layers.
        density: overall density, in (0, 1].
    """
    check_density(density)
    limits = [math.prod(block_grid(shape, block_shape)) for shape in shapes]
    densities = _share(shapes, limits, density)
    wanted = [d * limit for d, limit in zip(densities, limits, strict=True)]
    counts = [min(max(int(want), 1), limit) for want, limit in zip(wanted, limits, strict=True)]
    spare = int(density * sum(limits)) - sum(counts)
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - wanted[i])
    for i in by_remainder:
        if spare > 0 and counts[i] < limits[i]:
            counts[i] += 1
            spare -= 1
    return counts


def density_of(count: int, limit: int) -> float:
    """A density d for which int(d * limit) is exactly `count`, whatever the rounding of floats."""
    return 1.0 if count >= limit else (count + 0.5) / limit


def check_density(density: object) -> None:
    """Raises ValueError unless `density` is a number in (0, 1]."""
    if not is_share(density):
        raise ValueError(f"density is {density!r}, expected a number above 0 and at most 1")
