# SPDX-License-Identifier: Apache-2.0
"""Tensors of a kind that nothing here computes with: one sentence, and nothing is changed by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_weight, says
from torch import Tensor, nn

from pytorch_block_sparse import (
    BlockSparseLinear,
    BlockSparseMatrix,
    BlockSparseMatrixEmulator,
    functional,
)
from pytorch_block_sparse.block_sparse_linear import PseudoBlockSparseLinear
from pytorch_block_sparse.checkpoint import convert_state_dict

ops = torch.ops.block_sparse

# What x becomes, and what the sentence says of it.
DENSE = "expected a dense tensor: convert it with to_dense()"
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "coo": (Tensor.to_sparse, f"torch.sparse_coo tensor of shape (4, 64) on cpu, {DENSE}"),
    "csr": (Tensor.to_sparse_csr, f"torch.sparse_csr tensor of shape (4, 64) on cpu, {DENSE}"),
    "csc": (Tensor.to_sparse_csc, f"torch.sparse_csc tensor of shape (4, 64) on cpu, {DENSE}"),
    "bsr": (
        lambda x: x.to_sparse_bsr((2, 2)),
        f"torch.sparse_bsr tensor of shape (4, 64) on cpu, {DENSE}",
    ),
    # There are none on a GPU.
    "onednn": (lambda x: x.cpu().to_mkldnn(), "torch._mkldnn tensor of shape (4, 64)"),
    "nested": (
        lambda x: torch.nested.nested_tensor([x, x[:2]]),
        "a nested torch.float32 tensor of 2 tensors on cpu, expected a dense tensor: pad it with "
        "torch.nested.to_padded_tensor",
    ),
    "quantized": (
        lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        "a torch.qint8 tensor of shape (4, 64) on cpu, expected a dense tensor: convert it with "
        "dequantize()",
    ),
}
JAGGED = (
    lambda x: torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged),
    "a nested torch.float32 tensor of 2 tensors on cpu, expected a dense tensor: pad it with",
)
NO_TENSORS: dict[str, tuple[Any, str]] = {
    "list": ([[1.0, 2.0]], "[[1.0, 2.0]] (list), expected a tensor"),
    "array": (np.zeros((4, 64), np.float32), "(ndarray), expected a tensor"),
    "None": (None, "None (NoneType), expected a tensor"),
    "number": (1.5, "1.5 (float), expected a tensor"),
    "module": (nn.Linear(2, 2), "(Linear), expected a tensor"),
}


def refuses(call: Callable[[], Any], sentence: str, kind: type[Exception] = TypeError) -> None:
    with pytest.raises(kind) as error:
        call()
    assert says(error, sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*KINDS, "jagged", *NO_TENSORS])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.filterwarnings("ignore")  # torch's prototypes announce themselves
def test_inputs(name: str, grad: bool) -> None:
    layer = BlockSparseLinear(64, 96, activation="gelu")
    if name in NO_TENSORS:
        x, sentence = NO_TENSORS[name]
    else:
        change, sentence = JAGGED if name == "jagged" else KINDS[name]
        x = change(torch.ones(4, 64))
    rows = torch.ones(4, 96)
    with torch.set_grad_enabled(grad):
        for call in (
            lambda: layer(x),
            lambda: functional.linear(x, layer.weight, layer.bias),
            lambda: layer.weight.reverse_matmul(x, True),
        ):
            refuses(call, sentence)
            refuses(call, "x is ")
        refuses(lambda: layer.weight.reverse_matmul(x, False), "dense_a is ")
        refuses(lambda: layer.weight.matmul_with_output_sparse_support(x, x), "dense_a is ")
        refuses(lambda: layer.weight.matmul_with_output_sparse_support(rows, x), "dense_b is ")
        if name != "onednn":  # whose cast is torch's own
            with torch.autocast("cpu", torch.bfloat16):
                refuses(lambda: layer(x), "x is ")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_arguments_of_the_operators(name: str) -> None:
    change, sentence = KINDS[name]
    weight = random_weight((96, 64), (32, 32), 0.5)
    values, index, slots = weight.values, weight.index, weight.values.shape
    x, grad, bias = torch.ones(4, 64), torch.ones(4, 96), torch.ones(96)
    bad = change(x)
    refuses(lambda: ops.linear(bad, values, index, None, 96), "x is ")
    refuses(lambda: ops.linear_preactivation(bad, values, index, bias, 96, "gelu"), sentence)
    refuses(lambda: ops.linear_input_grad(bad, values, index, 64), "grad is ")
    refuses(lambda: ops.linear_weight_grad(grad, bad, index, *slots), "x is ")
    refuses(lambda: ops.linear_backward(grad, bad, values, index), "x is ")
    refuses(lambda: ops.block_norms(grad, bad, 32, 32), "x is ")
    sums = torch.zeros_like(values)
    refuses(lambda: ops.linear_weight_grad_accumulate_(sums, bad, x, index), "grad is ")
    assert not sums.any()


def test_other_arguments_of_the_operators() -> None:
    weight = random_weight((96, 64), (32, 32), 0.5)
    values, index, x = weight.values, weight.index, torch.ones(4, 64)
    sparse = torch.ones(96).to_sparse()
    refuses(lambda: ops.linear(x, values, index, sparse, 96), "bias is a torch.float32 torch.spar")
    refuses(lambda: ops.linear(x, values.to_sparse(), index, None, 96), "values is ")
    index[1] = index[1].to_sparse()
    refuses(lambda: ops.linear(x, values, index, None, 96), "index is a torch.int32 torch.sparse_")
    refuses(lambda: ops.pattern_check(*index[:3], len(values), 2), "col_indices is ")


def test_weight_and_bias() -> None:
    layer, x = BlockSparseLinear(64, 96), torch.ones(4, 64)
    for weight, sentence in (
        (None, "weight is None (NoneType), expected a BlockSparseMatrix"),
        (torch.ones(96, 64), "weight is a torch.float32 tensor of shape (96, 64) on cpu, expected"),
        ([1.0], "weight is [1.0] (list), expected"),
        (layer, "(BlockSparseLinear), expected a BlockSparseMatrix"),
    ):
        refuses(lambda weight=weight: functional.linear(x, weight), sentence)
    refuses(lambda: functional.linear(x, layer.weight, [1.0]), "bias is [1.0] (list), expected a t")
    bias = torch.ones(96).to_sparse()
    refuses(lambda: functional.linear(x, layer.weight, bias), "bias is a torch.float32 torch.spar")


def test_accumulator_that_autograd_watches() -> None:
    weight = random_weight((96, 64), (32, 32), 0.5)
    x, grad = torch.ones(4, 64), torch.ones(4, 96)
    sums = torch.zeros_like(weight.values)

    def accumulate(sums: Tensor = sums, grad: Tensor = grad, x: Tensor = x) -> None:
        ops.linear_weight_grad_accumulate_(sums, grad, x, weight.index)

    leaf = sums.clone().requires_grad_()
    for name, arguments in (
        ("accumulator", {"sums": leaf}),
        ("accumulator", {"sums": leaf * 1}),
        ("grad", {"grad": grad.clone().requires_grad_()}),
        ("x", {"x": x.clone().requires_grad_()}),
    ):
        sentence = f"{name} requires grad, but linear_weight_grad_accumulate_ works in place"
        refuses(lambda arguments=arguments: accumulate(**arguments), sentence, RuntimeError)
    assert not leaf.any()
    assert not sums.any()
    with torch.no_grad():
        accumulate(leaf)
    accumulate()
    assert torch.equal(leaf, sums)
    assert sums.any()


def test_accumulating_is_seen_by_autograd() -> None:
    """A tensor that was saved for a backward must not change unnoticed."""
    weight = random_weight((96, 64), (32, 32), 0.5)
    sums = torch.ones_like(weight.values)
    factor = torch.ones((), requires_grad=True)
    product = (factor * sums).sum()
    ops.linear_weight_grad_accumulate_(sums, torch.ones(4, 96), torch.ones(4, 64), weight.index)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


# Indices that are no whole numbers.
BAD_INDICES: dict[str, Any] = {
    "floats": torch.tensor([0.7]),
    "truth values": torch.tensor([True]),
    "two dimensions": torch.tensor([[0]]),
    "no dimension": torch.tensor(0),
    "on meta": torch.zeros(1, dtype=torch.int64, device="meta"),
    "a list": [0],
    "None": None,
}


def unchanged(matrix: BlockSparseMatrix, call: Callable[[], Any], sentence: str) -> None:
    before = [tensor.clone() for tensor in (*matrix.index, matrix.values.detach())]
    refuses(call, sentence, ValueError)
    after = [*matrix.index, matrix.values.detach()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", BAD_INDICES)
@pytest.mark.parametrize("argument", ["drop", "rows", "cols"])
def test_indices_of_drop_and_grow(name: str, argument: str) -> None:
    matrix = BlockSparseMatrix.zeros((64, 96), blocks=[(0, 0), (1, 1)])
    good = {"drop": torch.tensor([0]), "rows": torch.tensor([1]), "cols": torch.tensor([0])}
    arguments = {**good, argument: BAD_INDICES[name]}
    expected = f"{argument} is {'on the meta device' if name == 'on meta' else ''}"
    unchanged(matrix, lambda: matrix.drop_and_grow_(**arguments), expected)
    matrix.drop_and_grow_(**{key: value.to(torch.int16) for key, value in good.items()})
    assert matrix.build_coo_block_index().T.tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize(
    "moves",
    [torch.tensor([[True, False, True]]), [["a", 1, 2]], None, [[0.5, 0, 0]], torch.ones(1, 3)],
)
def test_indices_of_block_replace(moves: Any) -> None:
    matrix = BlockSparseMatrix.zeros((64, 96), blocks=[(0, 0), (1, 1)])
    unchanged(matrix, lambda: matrix.block_replace(moves), "expected ints (k, 3): row, column, sto")
    matrix.block_replace([[1, 2, 0]])
    assert matrix.build_coo_block_index().T.tolist() == [[1, 1], [1, 2]]


@pytest.mark.parametrize(
    "blocks", [[(0.7, 1.2)], [(True, 1)], [("a", 1)], [1], [(torch.tensor(1.0), 0)]]
)
def test_positions_of_blocks(blocks: Any) -> None:
    sentence = "expected at least one, (row, column) each, in ints"
    refuses(lambda: BlockSparseMatrix.zeros((64, 96), blocks=blocks), sentence, ValueError)
    whole = [(np.int32(1), torch.tensor(2))]
    assert BlockSparseMatrix.zeros((64, 96), blocks=whole).block_mask_build()[1, 2]


def test_new_blocks_are_padded_and_others_left_alone() -> None:
    """Edge blocks of a matrix whose sides are no multiples of the block."""
    matrix = BlockSparseMatrix.ones((40, 40), blocks=[(0, 0), (0, 1)])
    corner = torch.tensor([1])
    (slot,) = matrix.drop_and_grow_(torch.tensor([0]), corner, corner, torch.ones(1, 32, 32))
    assert torch.equal(matrix.values[slot].nonzero().amax(0), torch.tensor([7, 7]))
    assert int(matrix.values.detach().sum()) == 32 * 8 + 8 * 8


def test_what_the_meta_device_does_not_hold() -> None:
    layer = BlockSparseLinear(64, 96, device="meta")
    refuses(
        lambda: PseudoBlockSparseLinear(layer), "block_sparse_linear is on the meta", ValueError
    )
    refuses(layer.weight.to_dense, "is on the meta device; give it memory", RuntimeError)
    mask = torch.ones(2, 3, dtype=torch.bool)
    emulator = BlockSparseMatrixEmulator((64, 96), mask, device="meta")
    assert emulator.to_dense().shape == (64, 96)
    for call in (emulator.build_coo_block_index, emulator.block_norm, emulator.block_mask_build):
        refuses(call, "BlockSparseMatrixEmulator of shape (64, 96) is on the meta", RuntimeError)
    for kind in (BlockSparseMatrix, BlockSparseMatrixEmulator):
        dense = torch.ones(64, 96, device="meta")
        refuses(
            lambda kind=kind, dense=dense: kind.from_dense(dense, block_count=2),
            "dense is on the meta device, which holds no data",
            ValueError,
        )


@pytest.mark.parametrize("state_dict", [None, "model.bin", b"\x80", [1], {1: torch.ones(1)}])
def test_what_is_no_state_dict(state_dict: Any) -> None:
    refuses(lambda: convert_state_dict(state_dict), "expected a mapping from names to tensors")
