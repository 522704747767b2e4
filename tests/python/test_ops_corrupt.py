# SPDX-License-Identifier: Apache-2.0
"""Random corruption of the index: refused with a sentence, never a crash, never silent."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import packed, random_weight
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.host

ops = torch.ops.block_sparse

ROWS, COLS, BLOCK = 5, 6, 16
NAMES = ("crow_indices", "col_indices", "block_ids", "ccol_indices", "row_indices", "t_block_ids")
# Also numbers whose product with a block size overflows 32 bits.
WILD = st.one_of(st.integers(-3, 40), st.sampled_from([-(2**31), 2**31 - 1, 2**28, -(2**28)]))


@st.composite
def corrupted(draw: st.DrawFn) -> tuple[list[Tensor], int, set[int]]:
    """(index, slots, positions of the tensors that were touched)."""
    weight = random_weight(
        (ROWS * BLOCK, COLS * BLOCK),
        (BLOCK, BLOCK),
        draw(st.sampled_from([0.1, 0.5, 1.0])),
        spare=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 5)),
    )
    index = [t.clone() for t in weight.index]
    touched = set()
    for _ in range(draw(st.integers(1, 3))):
        which = draw(st.integers(0, 5))
        kind = draw(st.sampled_from(["entry", "doubled", "reversed", "too long", "too short"]))
        tensor = index[which]
        if kind == "entry":
            tensor[draw(st.integers(0, len(tensor) - 1))] = draw(WILD)
        elif kind == "doubled":
            tensor[-1] = tensor[0]
        elif kind == "reversed":
            index[which] = tensor.flip(0)
        elif kind == "too long":
            index[which] = torch.cat([tensor, tensor[-1:]])
        else:
            index[which] = tensor[:-1].clone()
        touched.add(which)
    return index, weight.values.shape[0], touched


def is_valid(crow: Tensor, col: Tensor, ids: Tensor, slots: int) -> bool:
    """The definition in docs/architecture.md, in plain Python."""
    if (len(crow), len(col), len(ids)) != (ROWS + 1, slots, slots):
        return False
    pointers = crow.tolist()
    if pointers[0] != 0 or pointers != sorted(pointers) or pointers[-1] > slots:
        return False
    n = pointers[-1]
    columns = [col.tolist()[a:b] for a, b in itertools.pairwise(pointers)]
    used = ids.tolist()[:n]
    return (
        all(row == sorted(set(row)) for row in columns)
        and all(0 <= c < COLS for row in columns for c in row)
        and all(0 <= slot < slots for slot in used)
        and len(set(used)) == n
    )


def in_bounds(pointers: Tensor, lines: Tensor, ids: Tensor, n_lines: int, slots: int) -> bool:
    """What every product checks of the three tensors that it reads."""
    values = pointers.tolist()
    if values[0] != 0 or values != sorted(values) or values[-1] > slots:
        return False
    n = values[-1]
    return all(0 <= i < n_lines for i in lines.tolist()[:n]) and all(
        0 <= i < slots for i in ids.tolist()[:n]
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(corrupted())
def test_pattern_check_refuses_exactly_what_is_not_valid(case):
    index, slots, _ = case
    crow, col, ids = index[:3]
    if len(crow) == ROWS + 1 and is_valid(crow, col, ids, slots):
        ops.pattern_check(crow, col, ids, slots, COLS)
    elif len(crow) == ROWS + 1:
        with pytest.raises(RuntimeError, match=r"(crow_indices|col_indices|block_ids)"):
            ops.pattern_check(crow, col, ids, slots, COLS)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(corrupted())
def test_products_refuse_or_stay_in_bounds(case):
    index, slots, _ = case
    values = torch.randn(slots, BLOCK, BLOCK)
    x, grad = torch.randn(3, COLS * BLOCK), torch.randn(3, ROWS * BLOCK)
    crow, col, ids, ccol, row, t_ids, _ = index
    lengths = [ROWS + 1, slots, slots, COLS + 1, slots, slots]
    fits = [len(t) for t in index[:6]] == lengths
    by_rows = fits and in_bounds(crow, col, ids, COLS, slots)
    by_cols = fits and in_bounds(ccol, row, t_ids, ROWS, slots)
    sums = torch.zeros_like(values)
    for sound, call in (
        (by_rows, lambda index: ops.linear(x, values, index, None, ROWS * BLOCK)),
        (by_cols, lambda index: ops.linear_input_grad(grad, values, index, COLS * BLOCK)),
        (by_rows, lambda index: ops.linear_weight_grad(grad, x, index, slots, BLOCK, BLOCK)),
        (by_rows, lambda index: ops.linear_weight_grad_accumulate_(sums, grad, x, index)),
        (by_rows and by_cols, lambda index: ops.linear_backward(grad, x, values, index)),
    ):
        for form in (index, packed(index)) if fits else (index,):
            if sound:
                call(form)
            else:
                with pytest.raises(RuntimeError, match="|".join(NAMES)):
                    call(form)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(corrupted())
def test_transpose_refuses_or_stays_in_bounds(case):
    index, _, _ = case
    crow, col, ids = index[:3]
    fits = len(col) == len(ids) and len(crow) > 0
    if fits and in_bounds(crow, col, ids, COLS, len(col)):
        ccol, _, _ = ops.pattern_transpose(crow, col, ids, COLS)
        assert int(ccol[-1]) == int(crow[-1])
    else:
        with pytest.raises(RuntimeError, match=r"crow_indices|col_indices|block_ids"):
            ops.pattern_transpose(crow, col, ids, COLS)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (([0], [], [], 0, -1), "block_cols is -1"),
        (([], [], [], 0, 1), "crow_indices is empty"),
        (([0, 1], [0], [0], 2, 1), r"col_indices has shape \(1,\); expected \(2,\)"),
        (([0, 1], [1], [0], 1, 1), "col_indices"),
        (([0, 2], [1, 0], [0, 1], 2, 2), "col_indices"),
        (([0, 2], [1, 1], [0, 1], 2, 2), "col_indices"),
        (([0, 2], [0, 1], [1, 1], 2, 2), "block_ids"),
        (([1, 2], [0, 1], [0, 1], 2, 2), "crow_indices"),
        (([0, 3], [0, 1], [0, 1], 2, 2), "crow_indices"),
    ],
)
def test_pattern_check_sentences(args, sentence):
    *tensors, slots, block_cols = args
    tensors = [torch.tensor(t, dtype=torch.int32) for t in tensors]
    with pytest.raises(RuntimeError, match=sentence):
        ops.pattern_check(*tensors, slots, block_cols)
