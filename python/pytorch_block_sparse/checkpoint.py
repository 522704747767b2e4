# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of pytorch_block_sparse 0.1, converted to what is stored now.

0.1 kept, for a matrix of R x C blocks (h, w), n of them stored:

====================  ================  =======================================================
key                   shape             meaning
====================  ================  =======================================================
``data``              (n·h, w)          the blocks one after the other, each transposed: block i is
                                        ``data.view(n, w, h)[i].T``
``cols_a``            (n, 2) int32      by block row: block column, index of the block in ``data``
``row_start_ends_a``  (R + 1,) int32    row pointers into ``cols_a``
``rows_b``            (n, 2) int32      by block column: block row, index of the block in ``data``
``col_start_ends_b``  (C + 1,) int32    column pointers into ``rows_b``
``blocks``            (2n,) int32       (column, row) of each block, in the order of ``data``
``_dense``            (X, Y)            only where 0.1 emulated the matrix (blocks other than
                                        32 x 32): what was trained; ``data`` is stale there
====================  ================  =======================================================

The index of a block in ``data`` becomes its slot, so a row of an optimizer's state keeps its
meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._matrix_api import split_into_blocks
from ._validation import FLOATING, describe, is_distributed
from .pattern import check_index

if TYPE_CHECKING:
    from ._slots import SlotStorage

_KEYS = ("values", "crow_indices", "col_indices", "block_ids")
_INDEX_OF_0_1 = ("cols_a", "row_start_ends_a", "rows_b", "col_start_ends_b", "blocks")
_KEYS_OF_0_1 = ("data", *_INDEX_OF_0_1)
_DENSE_OF_0_1 = "_dense"


def is_matrix_of_0_1(state_dict: Mapping[str, Any], prefix: str) -> bool:
    """Whether the entries below `prefix` are those of a matrix of 0.1."""
    return any(prefix + key in state_dict for key in ("cols_a", "row_start_ends_a"))


def keys_of_0_1(state_dict: Mapping[str, Any], prefix: str) -> list[str]:
    """The keys below `prefix` that make up a matrix of 0.1."""
    return [prefix + key for key in (*_KEYS_OF_0_1, _DENSE_OF_0_1) if prefix + key in state_dict]


def convert_matrix(
    state_dict: Mapping[str, Any],
    prefix: str,
    grid: tuple[int, int] | None = None,
    block_shape: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """One matrix of 0.1 as `values`, `crow_indices`, `col_indices`, `block_ids` (below `prefix`).

    Args:
        state_dict: holds the entries of 0.1 below `prefix`; it is not changed.
        prefix: for example ``"encoder.dense.weight."``.
        grid: (R, C) that is expected; read off the pointers if None.
        block_shape: (h, w) that is expected; read off `data` if None.

    Raises:
        ValueError: in one sentence, if an entry is missing, has the wrong dtype or shape, or the
            entries contradict each other. What they hold is not trusted.
    """
    missing = [prefix + key for key in _KEYS_OF_0_1 if prefix + key not in state_dict]
    if missing:
        raise ValueError(
            f"{prefix[:-1]} is a matrix of a 0.1 checkpoint without {', '.join(missing)}, expected "
            "all of " + ", ".join(_KEYS_OF_0_1)
        )
    entries = {key: state_dict[prefix + key] for key in _KEYS_OF_0_1}
    data = entries.pop("data")
    if not isinstance(data, Tensor) or not data.is_floating_point() or data.ndim != 2:
        raise ValueError(f"{prefix}data is {describe(data)}, expected a floating tensor (n·h, w)")
    for key, entry in entries.items():
        plain = isinstance(entry, Tensor) and entry.layout == torch.strided
        if not plain or entry.dtype != torch.int32 or entry.is_meta or entry.numel() == 0:
            raise ValueError(
                f"{prefix}{key} is {describe(entry)}, expected a torch.int32 tensor that holds "
                "something"
            )
    cols_a, crow, rows_b, ccol, blocks = (entries[key].cpu() for key in _INDEX_OF_0_1)
    n = cols_a.shape[0]
    h, w = block_shape or (data.shape[0] // n, data.shape[1])
    rows, cols = grid or (crow.numel() - 1, ccol.numel() - 1)
    for key, entry, shape in (
        ("data", data, (n * h, w)),
        ("cols_a", cols_a, (n, 2)),
        ("row_start_ends_a", crow, (rows + 1,)),
        ("rows_b", rows_b, (n, 2)),
        ("col_start_ends_b", ccol, (cols + 1,)),
        ("blocks", blocks, (2 * n,)),
    ):
        if tuple(entry.shape) != shape:
            raise ValueError(
                f"{prefix}{key} is {describe(entry)}, expected the shape {shape} of a matrix of "
                f"{rows} x {cols} blocks ({h}, {w}), {n} of them stored"
            )
    col, ids = (column.contiguous() for column in cols_a.unbind(1))
    try:
        check_index(crow, col, ids, n, (rows, cols), prefix)
    except ValueError as error:
        raise ValueError(_in_names_of_0_1(str(error))) from None
    _check_redundant(crow, col, ids, rows_b, ccol, blocks, prefix)
    values = data.reshape(n, w, h).transpose(1, 2).contiguous()
    if prefix + _DENSE_OF_0_1 in state_dict:
        dense = state_dict[prefix + _DENSE_OF_0_1]
        values = _values_of_dense(dense, blocks, (rows * h, cols * w), (h, w), prefix)
    return {
        prefix + "values": values,
        prefix + "crow_indices": crow.to(data.device),
        prefix + "col_indices": col.to(data.device),
        prefix + "block_ids": ids.to(data.device),
    }


def entries_of_matrix(
    state_dict: Mapping[str, Any], prefix: str, matrix: SlotStorage, assign: bool
) -> dict[str, Any]:
    """The entries below `prefix`, converted if 0.1 saved them and checked to fit `matrix`.

    Args:
        state_dict: of any model; it is not changed.
        prefix: for example ``"encoder.dense.weight."``.
        matrix: that they shall be loaded into; only looked at.
        assign: whether the tensors shall replace those of the matrix, as
            `torch.nn.Module.load_state_dict(assign=True)` does.

    Raises:
        ValueError: in one sentence, if they cannot be loaded.
    """
    entries = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    if is_matrix_of_0_1(entries, prefix):
        rows, cols = matrix.blocks_count()
        converted = convert_matrix(entries, prefix, (rows, cols), matrix.block_shape)
        for key in keys_of_0_1(entries, prefix):
            del entries[key]
        entries |= converted
    names = [name for name in _KEYS if prefix + name in entries]
    if not names:
        return entries
    values: Any = entries.get(prefix + "values")
    if names == ["values"]:
        # Values alone, as code that goes by named_parameters() saves them, fit their own pattern.
        slots: int | str = matrix.slots
    elif len(names) == len(_KEYS):
        slots = "slots"
    else:
        missing = ", ".join(prefix + name for name in _KEYS if name not in names)
        raise ValueError(f"{prefix[:-1]} comes without {missing}, expected all of its entries")
    _check_values(values, slots, matrix, assign, prefix)
    if slots == "slots":
        crow, col, ids = (entries[prefix + name] for name in _KEYS[1:])
        rows, cols = matrix.blocks_count()
        check_index(crow, col, ids, values.shape[0], (rows, cols), prefix)
    return entries


def _check_values(
    values: Any, slots: int | str, matrix: SlotStorage, assign: bool, prefix: str
) -> None:
    """Raises ValueError unless `values` can be loaded; `slots` is their number, or any."""
    block_shape = matrix.block_shape
    fits = (
        isinstance(values, Tensor)
        and values.is_floating_point()
        and values.layout == torch.strided
        and values.ndim == 3
        and tuple(values.shape[1:]) == block_shape
        and (slots == "slots" or values.shape[0] == slots)
    )
    if not fits:
        raise ValueError(
            f"{prefix}values is {describe(values)}, expected a floating tensor of shape "
            f"({slots}, {block_shape[0]}, {block_shape[1]})"
        )
    if values.is_meta:
        raise ValueError(f"{prefix}values is on the meta device, which holds no data")
    if assign and (values.dtype not in FLOATING or not values.is_contiguous()):
        raise ValueError(
            f"{prefix}values is {describe(values)} of strides {values.stride()}, expected with "
            "assign=True a contiguous one of float32, float64, bfloat16 or float16"
        )
    ours, theirs = is_distributed(matrix.values), is_distributed(values)
    if not assign and (ours != theirs or (ours and values.shape != matrix.values.shape)):
        raise ValueError(
            f"{prefix}values is {describe(values)}{' (distributed)' if theirs else ''}, expected "
            f"{describe(matrix.values)}{' (distributed)' if ours else ''}: a distributed parameter "
            "cannot be resized"
        )


def convert_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of a whole model of 0.1 with its matrices converted; the rest is passed on.

    `load_state_dict` of a model with block-sparse layers does this by itself; this serves code
    that reads checkpoints without a model.

    Raises:
        TypeError: for anything but a mapping from names, such as the path of a file.
        ValueError: as `convert_matrix`.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(key, str) for key in state_dict):
        raise TypeError(
            f"state_dict is {describe(state_dict)}, expected a mapping from names to tensors, as "
            "torch.load(path, weights_only=True) reads it from a file"
        )
    suffix = "row_start_ends_a"
    prefixes = [key.removesuffix(suffix) for key in state_dict if key.endswith("." + suffix)]
    converted: dict[str, Any] = {}
    replaced: set[str] = set()
    for prefix in prefixes:
        converted |= convert_matrix(state_dict, prefix)
        replaced.update(keys_of_0_1(state_dict, prefix))
    return {k: v for k, v in state_dict.items() if k not in replaced} | converted


def _check_redundant(
    crow: Tensor,
    col: Tensor,
    ids: Tensor,
    rows_b: Tensor,
    ccol: Tensor,
    blocks: Tensor,
    prefix: str,
) -> None:
    """0.1 stores the pattern three times; a file whose copies differ is damaged."""
    rows = torch.arange(crow.numel() - 1, dtype=torch.int32, device=crow.device)
    rows = rows.repeat_interleave(crow.diff())
    positions = torch.empty(col.numel(), 2, dtype=torch.int32, device=col.device)
    positions[ids.long()] = torch.stack([col, rows], 1)
    by_column = torch.ops.block_sparse.pattern_transpose(crow, col, ids, ccol.numel() - 1)
    for key, found, expected in (
        ("blocks", blocks, positions.flatten()),
        ("col_start_ends_b", ccol, by_column[0]),
        ("rows_b", rows_b, torch.stack([by_column[1], by_column[2]], 1)),
    ):
        if not torch.equal(found, expected):
            raise ValueError(
                f"{prefix}{key} contradicts {prefix}cols_a and row_start_ends_a, expected the same "
                "pattern: the file is damaged"
            )


def _in_names_of_0_1(sentence: str) -> str:
    """A sentence about the index, by the names that it has in a file of 0.1."""
    for name, name_of_0_1 in (
        (r"\bcrow_indices", "row_start_ends_a"),
        (r"\bcol_indices\[(\d+)\]", r"cols_a[\1, 0]"),
        (r"\bblock_ids\[(\d+)\]", r"cols_a[\1, 1]"),
        (r"slots of values", "blocks of data"),
    ):
        sentence = re.sub(name, name_of_0_1, sentence)
    return sentence


def _values_of_dense(
    dense: Any, blocks: Tensor, shape: tuple[int, int], block_shape: tuple[int, int], prefix: str
) -> Tensor:
    """The trained values of a matrix (X, Y) that 0.1 emulated, in the order of `blocks`."""
    if not isinstance(dense, Tensor) or dense.shape != shape or not dense.is_floating_point():
        raise ValueError(
            f"{prefix}{_DENSE_OF_0_1} is {describe(dense)}, expected a floating tensor {shape}"
        )
    cols, rows = blocks.view(-1, 2).long().to(dense.device).unbind(1)
    return split_into_blocks(dense, block_shape)[rows, cols]
