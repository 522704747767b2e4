# SPDX-License-Identifier: Apache-2.0
"""Sharing a density out among layers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_block_sparse.density import (
    block_grid,
    check_density,
    density_of,
    erk_block_counts,
    erk_densities,
)
from pytorch_block_sparse.pattern import block_count_of

pytestmark = pytest.mark.host

SHAPES = [(3072, 768), (768, 3072), (768, 768), (64, 768), (2, 64)]

shapes = st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=8)
densities = st.floats(0.01, 1.0)


def elements(shape: tuple[int, int]) -> int:
    return math.prod(shape)


def test_erk_by_hand() -> None:
    # Scores 4/4 and 8/16 with 16 of 20 elements: the first would get 16/12 and stays dense,
    # so 12 elements are left for the 16 of the second.
    assert erk_densities([(2, 2), (4, 4)], 0.8) == pytest.approx([1.0, 0.75])
    # 8/16 and 16/64 with 40 of 80 elements: factor 40 / (8 + 16), below both caps.
    assert erk_densities([(4, 4), (8, 8)], 0.5) == pytest.approx([0.5 * 40 / 24, 0.25 * 40 / 24])


@given(shapes, densities)
def test_erk_holds_the_overall_density(shapes: list[tuple[int, int]], density: float) -> None:
    found = erk_densities(shapes, density)
    kept = sum(d * elements(shape) for d, shape in zip(found, shapes, strict=True))
    # One rounding for each of the few sums and products over at most 8 layers.
    assert kept == pytest.approx(density * sum(map(elements, shapes)), rel=64 * 2**-52)
    assert all(0.0 < d <= 1.0 for d in found)


@given(shapes, densities)
def test_erk_is_in_proportion_below_the_cap(shapes: list[tuple[int, int]], density: float) -> None:
    found = erk_densities(shapes, density)
    ratios = {
        round(d * elements(shape) / sum(shape), 9)
        for d, shape in zip(found, shapes, strict=True)
        if d < 1.0
    }
    assert len(ratios) <= 1 or max(ratios) - min(ratios) <= 2e-9 * max(ratios)


@given(shapes, densities, st.tuples(st.integers(1, 64), st.integers(1, 64)))
def test_erk_block_counts_are_whole_and_add_up(
    shapes: list[tuple[int, int]], density: float, block_shape: tuple[int, int]
) -> None:
    limits = [math.prod(block_grid(shape, block_shape)) for shape in shapes]
    counts = erk_block_counts(shapes, block_shape, density)
    assert all(1 <= count <= limit for count, limit in zip(counts, limits, strict=True))
    asked = int(density * sum(limits))
    # Only layers that would have none are raised above their share.
    assert asked <= sum(counts) <= asked + len(shapes)


def test_erk_keeps_small_layers_denser() -> None:
    found = erk_densities(SHAPES, 0.1)
    assert found[0] == found[1] < found[2] < found[3] < found[4] == 1.0


@given(st.integers(1, 10_000), st.data())
def test_density_of_survives_the_way_back(limit: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, limit))
    assert block_count_of(density_of(count, limit), (1, limit)) == count


@pytest.mark.parametrize("density", [0, 0.0, -0.5, 1.0001, math.nan, math.inf, "0.5", None, True])
def test_density_outside_its_range_is_refused(density: object) -> None:
    with pytest.raises(ValueError, match="expected a number above 0 and at most 1"):
        check_density(density)
    with pytest.raises(ValueError, match="density is"):
        erk_densities(SHAPES, density)  # type: ignore[arg-type]


def test_grid_of_ragged_sides() -> None:
    assert block_grid((33, 64), (32, 32)) == (2, 2)
    assert block_grid((1, 1), (32, 32)) == (1, 1)
