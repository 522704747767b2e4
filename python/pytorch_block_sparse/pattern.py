# SPDX-License-Identifier: Apache-2.0
"""Which blocks of a matrix are stored: the patterns that can be drawn.

A pattern is a boolean mask (block rows R, block columns C) on the CPU. It is drawn there, from a
CPU generator, so that one seed gives the same pattern on every device and every rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _library
from ._validation import as_count, as_mask, check_generator, describe

PATTERNS = ("random", "balanced", "diagonal+random", "butterfly")
"""The patterns that `draw_pattern` knows by name."""


def block_count_of(density: float, grid: tuple[int, int]) -> int:
    """Blocks that a density stands for: `int(density * R * C)`, at least 1.

    The grid counts a ragged last row or column of blocks like any other, so density 1 is always
    every block, and for sides that are multiples of the block this is what 0.1 computed.
    """
    return max(1, int(density * (grid[0] * grid[1])))


def draw_pattern(
    pattern: str | Tensor,
    grid: tuple[int, int],
    block_count: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws which blocks are stored.

    Args:
        pattern: a boolean mask (R, C), which is checked and returned, or one of

            - ``"random"``: any `block_count` places, all choices equally likely.
            - ``"balanced"``: every block row has `block_count / R` blocks and every block column
              `block_count / C`, each rounded down or up.
            - ``"diagonal+random"``: the block diagonal, stretched over a grid that is not square
              to the max(R, C) places (i·R // max(R, C), i·C // max(R, C)), so that each block row
              and column has a block; the other blocks are random.
            - ``"butterfly"``: the flat block butterfly of Dao et al., "Pixelated Butterfly: Simple
              and Efficient Sparse Training for Neural Network Models" (ICLR 2022,
              arXiv:2112.00029). On a grid of N x N blocks, N a power of two, level 0 is the
              diagonal (i, i) and level k >= 1 the places (i, i XOR 2^(k-1)). Other grids take the
              image under (i, j) -> (i·R // N, j·C // N) with N the next power of two of
              max(R, C). Levels are taken in order while they fit into `block_count`; what is left
              is drawn at random from the first level that does not fit, and from all places
              once there is no level left. So the density decides how far apart two blocks of a
              row are mixed: every further level doubles the distance.
        grid: (R, C).
        block_count: how many blocks, exactly; not used for a mask.
        generator: a CPU generator; torch's default one if None.

    Returns:
        A boolean CPU tensor (R, C).

    Raises:
        ValueError: for an unknown name, a mask without a block or of another shape, a count that
            is outside [1, R·C] or too small for the diagonal of the pattern, a generator of
            another device.
        TypeError: for a pattern that is neither a name nor a boolean tensor, or a generator that
            is none.
    """
    if not isinstance(pattern, str):
        return as_mask(pattern, grid, "pattern")
    check_pattern_name(pattern)
    rows, cols = grid
    as_count(block_count, "block_count", rows * cols, f"a grid of {rows} x {cols} blocks")
    check_generator(generator)
    if pattern == "balanced":
        return _balanced(rows, cols, block_count, generator)
    if pattern == "butterfly":
        levels = _butterfly_levels(rows, cols)
    elif pattern == "diagonal+random":
        side = max(rows, cols)
        i = torch.arange(side, device="cpu")
        levels = [_stretched(i, i, side, rows, cols)]
    else:
        levels = []
    return _in_levels(pattern, levels, rows, cols, block_count, generator)


def check_pattern_name(pattern: object) -> None:
    """Raises ValueError unless `pattern` is one of `PATTERNS`."""
    if not isinstance(pattern, str) or pattern not in PATTERNS:
        raise ValueError(
            f"pattern is {describe(pattern)}, expected a boolean block mask or one of "
            + ", ".join(repr(name) for name in PATTERNS)
        )


def _choose(candidates: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` of the flat positions `candidates` (n,), each equally likely."""
    order = torch.randperm(candidates.numel(), generator=generator, device="cpu")
    return candidates[order[:count]]


def _in_levels(
    pattern: str,
    levels: list[Tensor],
    rows: int,
    cols: int,
    block_count: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Whole levels, boolean (R, C) each, while they fit; then random places of the next."""
    mask = torch.zeros(rows, cols, dtype=torch.bool, device="cpu")
    needed = int(levels[0].sum()) if levels else 0
    if block_count < needed:
        raise ValueError(
            f"block_count is {block_count}, expected at least {needed} for the diagonal of pattern "
            f"{pattern!r} on a grid of {rows} x {cols} blocks, a density of "
            f"{needed / (rows * cols):.3g}"
        )
    everywhere = torch.ones_like(mask)
    for level in (*levels, everywhere):
        new = (level & ~mask).flatten().nonzero().flatten()
        left = block_count - int(mask.sum())
        if new.numel() > left:
            mask.view(-1)[_choose(new, left, generator)] = True
            break
        mask |= level
    return mask


def _stretched(i: Tensor, j: Tensor, side: int, rows: int, cols: int) -> Tensor:
    """Positions (i, j) of a square grid as a mask (R, C)."""
    mask = torch.zeros(rows, cols, dtype=torch.bool, device="cpu")
    mask[i * rows // side, j * cols // side] = True
    return mask


def _butterfly_levels(rows: int, cols: int) -> list[Tensor]:
    side = 1 << (max(rows, cols) - 1).bit_length()
    i = torch.arange(side, device="cpu")
    partners = [i] + [i ^ (1 << k) for k in range(side.bit_length() - 1)]
    return [_stretched(i, j, side, rows, cols) for j in partners]


def _balanced(rows: int, cols: int, block_count: int, generator: torch.Generator | None) -> Tensor:
    """Equal counts in every row and in every column, up to one.

    Rows are visited in random order and each takes the columns that hold the fewest blocks so far,
    ties at random. Counts of columns then never differ by more than one: if they are m or m + 1,
    taking the k smallest leaves them at m or m + 1, or at m + 1 or m + 2.
    """
    mask = torch.zeros(rows, cols, dtype=torch.bool, device="cpu")
    loads = torch.zeros(cols, dtype=torch.float64, device="cpu")
    least, extra = divmod(block_count, rows)
    for visited, row in enumerate(torch.randperm(rows, generator=generator, device="cpu").tolist()):
        ties = torch.rand(cols, generator=generator, dtype=torch.float64, device="cpu")
        chosen = (loads + ties).argsort()[: least + (visited < extra)]
        mask[row, chosen] = True
        loads[chosen] += 1
    return mask


def index_of(
    rows: Tensor, cols: Tensor, slots_of_blocks: Tensor, slots: int, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Index tensors of blocks at given positions.

    Args:
        rows, cols: (n,) block row and column of each block, in any order.
        slots_of_blocks: (n,) the slot of each.
        slots: how many slots there are.
        grid: (R, C).

    Returns:
        crow_indices (R + 1), col_indices (slots), block_ids (slots), int32 on the device of
        `rows`. Entries beyond n are column 0 and the free slots in ascending order.

    Raises:
        ValueError: if a position is outside the grid or taken twice.
    """
    return index_of_sorted(sorted_blocks(rows, cols, slots_of_blocks, grid), slots, grid)


def sorted_blocks(rows: Tensor, cols: Tensor, slots: Tensor, grid: tuple[int, int]) -> Tensor:
    """(3, n) int64: block row, block column and slot of blocks given in any order, in stored order.

    Raises:
        ValueError: if a position is outside the grid or taken twice.
    """
    blocks = torch.stack([rows.long(), cols.long(), slots.long()])
    return blocks[:, check_positions(blocks[0], blocks[1], grid)]


def index_of_sorted(
    blocks: Tensor, slots: int, grid: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """What `index_of` returns, of what `sorted_blocks` did."""
    rows, cols, slots_of_blocks = blocks
    n, device = rows.numel(), rows.device
    crow = torch.zeros(grid[0] + 1, dtype=torch.int32, device=device)
    crow[1:] = torch.bincount(rows, minlength=grid[0]).cumsum(0)
    col = torch.zeros(slots, dtype=torch.int32, device=device)
    col[:n] = cols
    ids = torch.empty(slots, dtype=torch.int32, device=device)
    ids[:n] = slots_of_blocks
    if n < slots:
        free = torch.ones(slots, dtype=torch.bool, device=device)
        free[slots_of_blocks] = False
        ids[n:] = free.nonzero().flatten()
    return crow, col, ids


def check_inside(rows: Tensor, cols: Tensor, grid: tuple[int, int]) -> None:
    """Raises ValueError if a position (rows[i], cols[i]), int64, is outside the grid."""
    for name, values, limit in (("row", rows, grid[0]), ("column", cols, grid[1])):
        outside = ((values < 0) | (values >= limit)).nonzero()
        if outside.numel():
            i = int(outside[0])
            raise ValueError(
                f"Block position ({int(rows[i])},{int(cols[i])}) is outside the grid of "
                f"{grid[0]} x {grid[1]} blocks: expected a {name} of 0 to {limit - 1}"
            )


def check_positions(rows: Tensor, cols: Tensor, grid: tuple[int, int]) -> Tensor:
    """Raises ValueError if a position (rows[i], cols[i]), int64, is outside the grid or taken
    twice; returns the order (n,) that sorts them by row, then column."""
    check_inside(rows, cols, grid)
    flat, order = (rows * grid[1] + cols).sort()
    twice = (flat[1:] == flat[:-1]).nonzero()
    if twice.numel():
        row, col = divmod(int(flat[int(twice[0])]), grid[1])
        raise ValueError(f"Block position ({row},{col}) was already used")
    return order


def check_index(
    crow_indices: Tensor,
    col_indices: Tensor,
    block_ids: Tensor,
    slots: int,
    grid: tuple[int, int],
    prefix: str = "",
) -> None:
    """Raises ValueError, in one sentence, unless the three tensors are a valid pattern.

    They may come from anywhere: no content is trusted. `prefix` goes before their names in the
    message.
    """
    for name, tensor, length in (
        ("crow_indices", crow_indices, grid[0] + 1),
        ("col_indices", col_indices, slots),
        ("block_ids", block_ids, slots),
    ):
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not plain or tensor.dtype != torch.int32 or tensor.shape != (length,):
            raise ValueError(
                f"{prefix}{name} is {describe(tensor)}, expected a torch.int32 tensor of shape "
                f"({length},)"
            )
        if tensor.is_meta:
            raise ValueError(f"{prefix}{name} is on the meta device, which holds no data")
    index = [crow_indices, col_indices, block_ids]
    if len({t.device for t in index}) > 1 or not _library.has_backend(crow_indices.device):
        index = [tensor.cpu() for tensor in index]
    try:
        torch.ops.block_sparse.pattern_check(*index, slots, grid[1])
    except RuntimeError as error:
        raise ValueError(prefix + str(error).partition("\n")[0]) from None
    if not int(index[0][-1]):
        raise ValueError(f"{prefix}crow_indices ends at 0, expected a pattern with a block")


def coo_of(crow_indices: Tensor, col_indices: Tensor) -> Tensor:
    """(2, n) int32: block row and block column of the blocks of an index, in stored order."""
    counts = crow_indices.diff()
    rows = torch.arange(counts.numel(), dtype=torch.int32, device=counts.device)
    rows = rows.repeat_interleave(counts)
    return torch.stack([rows, col_indices[: rows.numel()]])


def blocks_of(crow_indices: Tensor, col_indices: Tensor, block_ids: Tensor) -> Tensor:
    """(3, n) int64: block row, block column and slot of each block, in stored order."""
    places = coo_of(crow_indices, col_indices)
    return torch.cat([places, block_ids[None, : places.shape[1]]]).long()


def packed_index_of(index: list[Tensor]) -> Tensor:
    """The seven index tensors in one, as the operators read it: each but the last is filled up to a
    multiple of 32 elements."""
    *parts, plan = index
    zeros = plan.new_zeros(32)
    return torch.cat(
        [*(piece for part in parts for piece in (part, zeros[: -len(part) % 32])), plan]
    )
