# SPDX-License-Identifier: Apache-2.0
"""BlockSparseMatrix: the surface of 0.1, against dense arithmetic in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from dense_reference import close, random_matrix
from torch import Tensor

from pytorch_block_sparse import BlockSparseMatrix, stored_parameters

# shape, block shape, number of blocks: square, rectangular, tiny and ragged blocks.
SIZES = [
    ((128, 64), (32, 32), 5),
    ((64, 96), (16, 32), 7),
    ((6, 10), (1, 1), 17),
    ((50, 70), (16, 32), 6),
    ((7, 5), (16, 16), 1),
]


def blocks_one_by_one(matrix: BlockSparseMatrix, dense: Tensor) -> list[Tensor]:
    """The stored blocks cut out of a dense matrix, in stored order; edge blocks are smaller."""
    h, w = matrix.block_shape
    positions = matrix.build_coo_block_index().T.tolist()
    return [dense[r * h : (r + 1) * h, c * w : (c + 1) * w] for r, c in positions]


@pytest.mark.parametrize(("shape", "block_shape", "n"), SIZES)
def test_to_dense_places_every_block(
    shape: tuple[int, int], block_shape: tuple[int, int], n: int
) -> None:
    matrix = random_matrix(shape, block_shape, n)
    dense = matrix.to_dense().detach()
    assert dense.shape == shape
    expected = torch.zeros(shape)
    h, w = block_shape
    slots = matrix.block_ids.tolist()
    for i, (r, c) in enumerate(matrix.build_coo_block_index().T.tolist()):
        place = expected[r * h : (r + 1) * h, c * w : (c + 1) * w]
        place.copy_(matrix.values[slots[i], : place.shape[0], : place.shape[1]])
    assert torch.equal(dense, expected)
    assert matrix.stored_weights() == sum(b.numel() for b in blocks_one_by_one(matrix, dense))


@pytest.mark.parametrize(("shape", "block_shape", "n"), SIZES)
@pytest.mark.parametrize("lead", [(3,), (2, 3), (0,), (1,)])
def test_products(
    shape: tuple[int, int], block_shape: tuple[int, int], n: int, lead: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    matrix = random_matrix(shape, block_shape, n)
    dense = matrix.to_dense().detach().double()
    a, b = torch.randn(*lead, shape[0]), torch.randn(*lead, shape[1])
    close(matrix.reverse_matmul(b, transpose=True), b.double() @ dense.T, shape[1])
    close(matrix.reverse_matmul(a, transpose=False), a.double() @ dense, shape[0])
    support = matrix.matmul_with_output_sparse_support(a, b)
    product = a.double().flatten(0, -2).T @ b.double().flatten(0, -2)
    assert support.shape == matrix.values.shape
    close(
        matrix.to_dense(data_replace=support),
        product * matrix.to_dense(torch.ones_like(matrix.values)).bool(),
        a[..., 0].numel(),
    )
    before = matrix.values
    assert torch.equal(matrix.matmul_with_output_sparse_support(a, b, overwrite_data=True), support)
    assert matrix.values is before
    assert torch.equal(matrix.values, support)


def test_products_are_differentiable() -> None:
    matrix = random_matrix((10, 7), (4, 3), 4, dtype=torch.float64)
    a = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    dense = matrix.to_dense().detach().requires_grad_()
    mask = matrix.to_dense(torch.ones_like(matrix.values)).detach()
    ours = (
        matrix.reverse_matmul(b, transpose=True).sin().sum()
        + matrix.reverse_matmul(a, transpose=False).cos().sum()
        + matrix.to_dense().exp().sum()
    )
    theirs = (b @ dense.T).sin().sum() + (a @ dense).cos().sum() + dense.exp().sum()
    grads = torch.autograd.grad(ours, [a, b, matrix.values])
    expected = torch.autograd.grad(theirs, [a, b, dense])
    torch.testing.assert_close(grads[0], expected[0])
    torch.testing.assert_close(grads[1], expected[1])
    torch.testing.assert_close(matrix.to_dense(grads[2]), expected[2] * mask)


def test_constructors() -> None:
    zeros = BlockSparseMatrix.zeros((64, 96), 3)
    assert zeros.shape == (64, 96)
    assert isinstance(zeros.shape, torch.Size)
    assert zeros.block_shape == (32, 32)
    assert zeros.blocks_count() == (2, 3)
    assert (zeros.n_blocks, zeros.slots) == (3, 3)
    assert not zeros.to_dense().any()
    everything = BlockSparseMatrix.ones((64, 96), block_shape=(32, 16))
    assert torch.equal(everything.to_dense(), torch.ones(64, 96))
    chosen = BlockSparseMatrix.ones((64, 96), blocks=[(1, 2), (0, 1)])
    assert chosen.build_coo_block_index().tolist() == [[0, 1], [1, 2]]
    assert chosen.build_coo_block_index().dtype == torch.int32
    assert int(chosen.to_dense().sum()) == 2 * 32 * 32
    assert BlockSparseMatrix.zeros((9, 9), block_shape=4).blocks_count() == (3, 3)


def test_randn_is_normal_and_reproducible() -> None:
    torch.manual_seed(3)
    first = BlockSparseMatrix.randn((256, 256), 32)
    torch.manual_seed(3)
    second = BlockSparseMatrix.randn((256, 256), 32)
    assert torch.equal(first.to_dense(), second.to_dense())
    elements = first.stored_elements().detach()
    assert elements.numel() == 32 * 1024
    # Five standard deviations of the mean and of the variance of as many N(0, 1).
    assert abs(float(elements.mean())) < 5 / elements.numel() ** 0.5
    assert abs(float(elements.var()) - 1) < 5 * (2 / elements.numel()) ** 0.5
    positive = BlockSparseMatrix.randn((64, 64), 2, positive=True)
    assert float(positive.stored_elements().detach().min()) >= 0
    source = torch.Generator().manual_seed(1)
    third = BlockSparseMatrix.randn((64, 64), 2, generator=source)
    fourth = BlockSparseMatrix.randn((64, 64), 2, generator=source.manual_seed(1))
    assert torch.equal(third.to_dense(), fourth.to_dense())


@pytest.mark.parametrize(("shape", "block_shape", "n"), SIZES)
def test_from_dense(shape: tuple[int, int], block_shape: tuple[int, int], n: int) -> None:
    torch.manual_seed(0)
    dense = torch.randn(shape)
    whole = BlockSparseMatrix.from_dense(dense, block_shape)
    assert torch.equal(whole.to_dense(), dense)
    whole.check_with_dense(dense)
    norms = [float(b.double().norm()) for b in blocks_one_by_one(whole, dense)]
    kept = BlockSparseMatrix.from_dense(dense, block_shape, block_count=n)
    mask = kept.to_dense(torch.ones_like(kept.values)).bool()
    assert torch.equal(kept.to_dense(), dense * mask)
    threshold = sorted(norms)[-n]
    kept_norms = [float(b.double().norm()) for b in blocks_one_by_one(kept, dense)]
    assert sorted(kept_norms) == sorted(norm for norm in norms if norm >= threshold)
    chosen = BlockSparseMatrix.from_dense(dense, block_shape, blocks=[(0, 0)])
    assert int((chosen.to_dense() != 0).sum()) == blocks_one_by_one(chosen, dense)[0].numel()


def test_from_dense_into_out() -> None:
    dense = torch.arange(64 * 64.0).view(64, 64)
    out = BlockSparseMatrix.zeros((64, 64), blocks=[(0, 1), (1, 0)])
    values = out.values
    assert BlockSparseMatrix.from_dense(dense, out=out) is out
    assert out.values is values
    out.check_with_dense(dense)
    with pytest.raises(ValueError, match="non matching data"):
        out.check_with_dense(dense + 1)


def test_to_sparse_is_hybrid_coo() -> None:
    matrix = random_matrix((50, 70), (16, 32), 6)
    sparse = matrix.to_sparse()
    assert sparse.is_coalesced()
    assert sparse.shape == (4, 3, 16, 32)
    assert sparse.sparse_dim() == 2
    grid = sparse.to_dense().transpose(1, 2).reshape(64, 96)
    assert torch.equal(grid[:50, :70], matrix.to_dense())
    sparse.values().sum().backward()
    assert matrix.values.grad is not None


@pytest.mark.parametrize("p", [1, 2, 3.5, float("inf")])
@pytest.mark.parametrize(("shape", "block_shape", "n"), SIZES)
def test_block_norm(shape: tuple[int, int], block_shape: tuple[int, int], n: int, p: float) -> None:
    matrix = random_matrix(shape, block_shape, n)
    with torch.no_grad():
        # What sticks out counts nowhere, even if someone wrote to it.
        padding = matrix._padding
        if padding is not None:
            matrix.values[matrix._slots_of_blocks().long()] += 1e6 * padding
    dense = matrix.to_dense().detach().double()
    expected = torch.stack([b.flatten().norm(p) for b in blocks_one_by_one(matrix, dense)])
    torch.testing.assert_close(matrix.block_norm(p).double(), expected, rtol=1e-5, atol=0)


def test_block_mask_build() -> None:
    matrix = BlockSparseMatrix.zeros((64, 96), blocks=[(0, 2), (1, 0)])
    expected = torch.tensor([[False, False, True], [True, False, False]])
    assert torch.equal(matrix.block_mask_build(None), expected)
    positions = torch.tensor([[0, 1], [0, 1]])
    assert torch.equal(matrix.block_mask_build(positions), torch.eye(2, 3, dtype=torch.bool))


def test_block_replace_moves_values_with_blocks() -> None:
    matrix = BlockSparseMatrix.randn((128, 64), blocks=[(0, 0), (1, 0), (2, 0), (0, 1)])
    assert matrix.build_coo_block_index().T.tolist() == [[0, 0], [0, 1], [1, 0], [2, 0]]
    values = matrix.values.detach().clone()
    before = matrix._stored_blocks().detach()
    matrix.block_replace(torch.tensor([(3, 1, 0), (2, 1, 2), (1, 1, 1)]))
    assert matrix.build_coo_block_index().T.tolist() == [[1, 1], [2, 0], [2, 1], [3, 1]]
    assert torch.equal(matrix._stored_blocks(), before[[1, 3, 2, 0]])
    assert torch.equal(matrix.values, values)
    x = torch.randn(5, 64)
    torch.testing.assert_close(matrix.reverse_matmul(x, True), x @ matrix.to_dense().T)
    g = torch.randn(5, 128)
    torch.testing.assert_close(matrix.reverse_matmul(g, False), g @ matrix.to_dense())


def test_block_replace_may_swap() -> None:
    matrix = BlockSparseMatrix.randn((64, 64), blocks=[(0, 0), (1, 1)])
    first, second = matrix._stored_blocks().detach()
    matrix.block_replace(torch.tensor([(1, 1, 0), (0, 0, 1)]))
    assert torch.equal(matrix.to_dense()[:32, :32], second)
    assert torch.equal(matrix.to_dense()[32:, 32:], first)


def test_multiply_and_differentiable_data() -> None:
    matrix = BlockSparseMatrix.randn((64, 64), 2)
    values, dense = matrix.values, matrix.to_dense().detach()
    matrix.multiply_(0.5)
    assert matrix.get_differentiable_data() is values
    assert torch.equal(matrix.to_dense(), dense * 0.5)


def test_answers_what_code_asks_of_a_weight() -> None:
    matrix = BlockSparseMatrix.zeros((64, 96), 2, dtype=torch.bfloat16)
    assert matrix.dtype == torch.bfloat16
    assert matrix.device.type == torch.get_default_device().type
    assert matrix.requires_grad
    matrix.requires_grad_(False)
    assert not matrix.requires_grad
    assert {matrix: 1}[matrix] == 1
    assert len({matrix, copy.deepcopy(matrix)}) == 2
    assert "shape" not in matrix.state_dict()
    assert repr(matrix) == (
        "BlockSparseMatrix((64, 96), block_shape=(32, 32), blocks=2, density=0.333)"
    )


def test_stored_parameters_leave_out_padding_and_spare_slots() -> None:
    matrix = random_matrix((50, 70), (16, 32), 6)
    model = torch.nn.ModuleList([torch.nn.Linear(3, 2), matrix, torch.nn.ModuleList([matrix])])
    expected = 8 + int(matrix.to_dense(torch.ones_like(matrix.values)).sum())
    assert stored_parameters(model) == expected
    assert expected < sum(p.numel() for p in model.parameters())
