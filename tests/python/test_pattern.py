# SPDX-License-Identifier: Apache-2.0
"""The patterns that can be drawn."""

from __future__ import annotations

import pytest
import torch

from pytorch_block_sparse.pattern import PATTERNS, block_count_of, draw_pattern

GRIDS = [(1, 1), (4, 4), (8, 8), (5, 7), (12, 3), (3, 16), (24, 96)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def diagonal_size(pattern: str, grid: tuple[int, int]) -> int:
    """How many blocks a pattern needs at least, worked out place by place."""
    rows, cols = grid
    if pattern == "diagonal+random":
        side = max(rows, cols)
    elif pattern == "butterfly":
        side = next(2**k for k in range(20) if 2**k >= max(rows, cols))
    else:
        return 1
    return len({(i * rows // side, i * cols // side) for i in range(side)})


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("grid", GRIDS)
def test_count_is_exact(pattern: str, grid: tuple[int, int]) -> None:
    for count in {diagonal_size(pattern, grid), (grid[0] * grid[1] + 1) // 2, grid[0] * grid[1]}:
        if count < diagonal_size(pattern, grid):
            continue
        mask = draw_pattern(pattern, grid, count, generator())
        assert mask.shape == grid
        assert mask.dtype == torch.bool
        assert mask.device.type == "cpu"
        assert int(mask.sum()) == count


@pytest.mark.parametrize("pattern", PATTERNS)
def test_seed_decides(pattern: str) -> None:
    first, again, other = (draw_pattern(pattern, (8, 8), 40, generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(7)
    by_default = draw_pattern(pattern, (8, 8), 40)
    torch.manual_seed(7)
    assert torch.equal(by_default, draw_pattern(pattern, (8, 8), 40))


def test_default_device_does_not_matter() -> None:
    expected = draw_pattern("balanced", (8, 8), 40, generator())
    with torch.device("meta"):
        assert torch.equal(draw_pattern("balanced", (8, 8), 40, generator()), expected)


def test_random_reaches_every_place_equally() -> None:
    draws, source = 4000, generator()
    hits = sum(draw_pattern("random", (3, 4), 3, source).double() for _ in range(draws))
    # A place is drawn with p = 1/4; five standard deviations of the count.
    assert (hits - draws / 4).abs().max() < 5 * (draws * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("grid", GRIDS)
def test_balanced_rows_and_columns(grid: tuple[int, int]) -> None:
    for count in range(1, grid[0] * grid[1] + 1, max(1, grid[0] * grid[1] // 17)):
        mask = draw_pattern("balanced", grid, count, generator(count))
        for dim, lines in ((1, grid[0]), (0, grid[1])):
            per_line = mask.sum(dim)
            assert int(per_line.min()) == count // lines
            assert int(per_line.max()) == -(-count // lines)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("pattern", ["diagonal+random", "butterfly"])
def test_diagonal_reaches_every_row_and_column(pattern: str, grid: tuple[int, int]) -> None:
    mask = draw_pattern(pattern, grid, diagonal_size(pattern, grid), generator())
    assert bool(mask.any(0).all())
    assert bool(mask.any(1).all())


def test_diagonal_of_a_square() -> None:
    mask = draw_pattern("diagonal+random", (6, 6), 10, generator())
    assert bool(mask.diagonal().all())


def test_butterfly_levels_by_hand() -> None:
    expected = torch.eye(8, dtype=torch.bool, device="cpu")
    for level in range(3):
        for i in range(8):
            expected[i, i ^ (1 << level)] = True
        assert torch.equal(
            draw_pattern("butterfly", (8, 8), 8 * (level + 2), generator()), expected
        )


def test_butterfly_takes_the_rest_from_the_next_level() -> None:
    mask = draw_pattern("butterfly", (8, 8), 20, generator())
    rows, cols = mask.nonzero().T
    distance = rows ^ cols
    assert int((distance == 0).sum()) == 8
    assert int((distance == 1).sum()) == 8
    assert int((distance == 2).sum()) == 4


def test_butterfly_beyond_its_levels_is_random() -> None:
    mask = draw_pattern("butterfly", (4, 4), 14, generator())
    assert int(mask.sum()) == 14


def test_butterfly_on_another_grid_is_the_image_of_the_square() -> None:
    # Side 8 for a grid of 4 x 8: rows are halved, so level 1 falls onto level 0.
    mask = draw_pattern("butterfly", (4, 8), 16, generator())
    expected = torch.zeros(4, 8, dtype=torch.bool, device="cpu")
    for i in range(8):
        for j in (i, i ^ 1):
            expected[i * 4 // 8, j] = True
    rest = mask & ~expected
    assert bool((mask & expected).sum() == expected.sum())
    assert int(rest.sum()) == 16 - int(expected.sum())
    assert all((2 * r) ^ 2 in (c, c ^ 1) for r, c in rest.nonzero().tolist())


def test_mask_is_taken_as_it_is() -> None:
    mask = torch.tensor([[True, False], [False, True], [True, True]])
    assert torch.equal(draw_pattern(mask, (3, 2), 1), mask.cpu())


@pytest.mark.parametrize(
    ("density", "grid", "count"),
    [
        (1.0, (5, 7), 35),
        (0.5, (4, 2), 4),
        (0.42, (64, 32), 860),  # int(0.42 * 2048), as 0.1
        (0.29, (10, 10), 28),  # 0.29 * 100 is 28.999…, as 0.1
        (1e-6, (4, 4), 1),
    ],
)
def test_block_count_of_density(density: float, grid: tuple[int, int], count: int) -> None:
    assert block_count_of(density, grid) == count
