# SPDX-License-Identifier: Apache-2.0
"""BlockSparseMatrix: slots, the index and what keeps them true."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from dense_reference import close
from helpers import packed
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear, BlockSparseMatrix
from pytorch_block_sparse._slots import DERIVED_INDEX, SAVED_INDEX

INDEX = (*SAVED_INDEX, *DERIVED_INDEX)


def scrambled(slots: int = 9, dtype: torch.dtype = torch.float32) -> BlockSparseMatrix:
    """Six blocks (16, 32) of a ragged matrix, in slots out of order, with spare ones."""
    mask = torch.zeros(4, 3, dtype=torch.bool)
    mask[[0, 0, 1, 2, 3, 3], [0, 2, 1, 0, 1, 2]] = True
    matrix = BlockSparseMatrix((50, 70), mask, None, (16, 32), slots=slots, dtype=dtype)
    rows, cols = matrix.build_coo_block_index()
    matrix._write_index(rows, cols, torch.tensor([3, 0, 5, 1, 4, 2]))
    matrix._set_stored_blocks(
        torch.randn(6, 16, 32, generator=torch.Generator().manual_seed(0), device="cpu")
    )
    return matrix


def check_works(matrix: BlockSparseMatrix) -> None:
    """Both orientations of the index agree with the dense matrix."""
    g, x = (torch.randn(3, size, dtype=matrix.dtype) for size in matrix.shape)
    dense = matrix.to_dense().detach().double()
    close(matrix.reverse_matmul(x, True), x.double() @ dense.T, matrix.shape[1])
    close(matrix.reverse_matmul(g, False), g.double() @ dense, matrix.shape[0])


def check_index_is(matrix: BlockSparseMatrix) -> None:
    """`index` is the buffers of these names; the derived ones are up to date."""
    assert all(a is b for a, b in zip(matrix.index, map(matrix.get_buffer, INDEX), strict=True))
    assert matrix.operands[0] is matrix.packed_index
    assert torch.equal(matrix.packed_index, packed(matrix.index)[0])
    crow, col, ids, ccol, row, t_ids, _ = matrix.index
    transposed = torch.ops.block_sparse.pattern_transpose(crow, col, ids, len(ccol) - 1)
    for tensor, expected in zip((ccol, row, t_ids), transposed, strict=True):
        assert torch.equal(tensor, expected)


def test_layout_is_as_documented() -> None:
    matrix = scrambled()
    *index, plan = matrix.index
    assert [tuple(t.shape) for t in index] == [(5,), (9,), (9,), (4,), (9,), (9,)]
    assert plan.is_cuda or plan.shape == (0,)
    assert all(t.dtype == torch.int32 for t in matrix.index)
    assert matrix.crow_indices.tolist() == [0, 2, 3, 4, 6]
    assert matrix.col_indices.tolist() == [0, 2, 1, 0, 1, 2, 0, 0, 0]
    assert matrix.block_ids.tolist() == [3, 0, 5, 1, 4, 2, 6, 7, 8]
    assert matrix.ccol_indices.tolist() == [0, 2, 4, 6]
    assert matrix.row_indices[:6].tolist() == [0, 2, 1, 3, 0, 3]
    assert matrix.t_block_ids[:6].tolist() == [3, 1, 5, 4, 0, 2]
    assert not matrix.values[6:].any()
    check_index_is(matrix)
    assert set(matrix.state_dict()) == {"values", *SAVED_INDEX}


def _without(matrix: BlockSparseMatrix, slots: torch.Tensor) -> torch.Tensor:
    """The elements of the dense matrix that no block of these slots covers."""
    marked = torch.zeros_like(matrix.values)
    marked[slots] = 1
    return matrix.to_dense(marked) == 0


def test_drop_and_grow_keeps_the_others_bit_for_bit() -> None:
    matrix = scrambled()
    before, pointer = matrix.values.detach().clone(), matrix.values.data_ptr()
    matrix.values.grad = torch.ones_like(matrix.values)
    index_before = [t.data_ptr() for t in matrix.index]
    grown_values = torch.full((3, 16, 32), 7.0)
    grown = matrix.drop_and_grow_(
        torch.tensor([1, 4]), torch.tensor([1, 0, 2]), torch.tensor([2, 1, 2]), grown_values
    )
    # Blocks 1 and 4 were in slots 0 and 4; the third new one takes the first spare slot.
    assert grown.tolist() == [0, 4, 6]
    assert matrix.values.data_ptr() == pointer
    kept = [3, 5, 1, 2]
    assert torch.equal(matrix.values[kept], before[kept])
    inside = matrix.to_dense(torch.ones_like(matrix.values)).bool()
    assert matrix.to_dense()[inside & ~_without(matrix, grown)].eq(7).all()
    # What sticks out of a ragged matrix counts in no norm.
    assert matrix.values[grown].count_nonzero() == matrix.stored_weights() - sum(
        matrix.values[slot].count_nonzero() for slot in kept
    )
    assert torch.equal(matrix.values.grad[kept], torch.ones(4, 16, 32))
    assert not matrix.values.grad[[0, 4, 6, 7, 8]].any()
    assert matrix.n_blocks == 7
    expected = [[0, 0], [0, 1], [1, 1], [1, 2], [2, 0], [2, 2], [3, 2]]
    assert matrix.build_coo_block_index().T.tolist() == expected
    assert [t.data_ptr() for t in matrix.index] == index_before
    check_works(matrix)
    # Fewer than before: what was dropped leaves nothing behind.
    matrix.drop_and_grow_(torch.arange(5), torch.tensor([3]), torch.tensor([0]))
    assert matrix.n_blocks == 3
    free = [s for s in range(9) if s not in matrix.block_ids[:3].tolist()]
    assert not matrix.values[free].any()
    check_works(matrix)


def test_growing_into_a_place_that_is_dropped() -> None:
    matrix = scrambled()
    matrix.drop_and_grow_(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]))
    assert matrix.n_blocks == 6
    assert not matrix._stored_blocks()[0].any()


def test_canonicalize() -> None:
    matrix = scrambled()
    dense, state = matrix.to_dense().detach(), torch.randn(matrix.values.shape)
    matrix.values.grad = state.clone()
    state_dense = matrix.to_dense(state)
    values = matrix.values
    permutation = matrix.canonicalize_()
    assert matrix.values is values
    assert matrix.block_ids.tolist() == list(range(9))
    assert torch.equal(matrix.to_dense(), dense)
    assert torch.equal(matrix.to_dense(state[permutation]), state_dense)
    assert torch.equal(matrix.to_dense(matrix.values.grad), state_dense)
    check_works(matrix)


@pytest.mark.parametrize("slots", [6, 7, 20])
def test_resize_slots(slots: int) -> None:
    matrix = scrambled()
    dense, state = matrix.to_dense().detach(), torch.randn(matrix.values.shape)
    matrix.values.grad = state.clone()
    state_dense = matrix.to_dense(state)
    values = matrix.values
    source = matrix.resize_slots_(slots)
    assert matrix.values is values
    assert matrix.slots == slots
    assert matrix.block_ids.tolist() == list(range(slots))
    assert torch.equal(matrix.to_dense(), dense)
    assert source.shape == (6,)
    moved = torch.zeros(slots, 16, 32)
    moved[:6] = state[source]
    assert torch.equal(matrix.to_dense(moved), state_dense)
    assert torch.equal(matrix.to_dense(matrix.values.grad), state_dense)
    assert not matrix.values[6:].any()
    check_works(matrix)


def test_a_backward_after_a_resize_needs_no_new_parameter() -> None:
    """A loss from before holds on to what autograd knows of the parameter."""
    layer = BlockSparseLinear(96, 96, density=1.0)
    x = torch.randn(4, 96)
    old = layer(x).sum()
    old.backward(retain_graph=True)
    layer.weight.drop_and_grow_(torch.arange(5), *torch.empty(2, 0, dtype=torch.int64))
    layer.weight.resize_slots_(4)
    layer(x).sum().backward()
    assert layer.weight.values.grad.shape == (4, 32, 32)
    expected = torch.ones(4, 96).T @ x
    ones = layer.weight.to_dense(torch.ones_like(layer.weight.values))
    # What was there before the resize, and as much again.
    torch.testing.assert_close(layer.weight.to_dense(layer.weight.values.grad), 2 * expected * ones)
    assert float(old.detach()) != 0


def test_resize_slots_refuses_what_does_not_fit() -> None:
    matrix = scrambled()
    for slots in (5, 2.0, True, 2**31):
        with pytest.raises(ValueError, match=r"slots is .* at least the 6 stored blocks and below"):
            matrix.resize_slots_(slots)  # type: ignore[arg-type]
    assert matrix.slots == 9
    check_works(matrix)


COPIES: dict[str, Callable[[BlockSparseMatrix], BlockSparseMatrix]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "torch.save": lambda m: through_file(m),
    "to": lambda m: copy.deepcopy(m).to(torch.get_default_device()),
    "clone by _apply": lambda m: copy.deepcopy(m)._apply(torch.clone),
    "share_memory": lambda m: copy.deepcopy(m).share_memory(),
    "double and back": lambda m: copy.deepcopy(m).double().float(),
    "type": lambda m: copy.deepcopy(m).type(torch.float32),
}


def through_file(matrix: BlockSparseMatrix) -> BlockSparseMatrix:
    file = io.BytesIO()
    torch.save(matrix, file)
    file.seek(0)
    copied = torch.load(file, weights_only=False)
    assert isinstance(copied, BlockSparseMatrix)
    return copied


@pytest.mark.parametrize("name", COPIES)
def test_copies_work_and_are_independent(name: str) -> None:
    matrix = scrambled()
    dense = matrix.to_dense().detach()
    copied = COPIES[name](matrix)
    assert torch.equal(copied.to_dense(), dense)
    check_index_is(copied)
    copied.drop_and_grow_(torch.tensor([0]), torch.tensor([2]), torch.tensor([2]))
    copied.multiply_(0.0)
    assert torch.equal(matrix.to_dense(), dense)
    check_works(matrix)
    check_works(copied)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_moves_leave_the_index_alone(dtype: torch.dtype) -> None:
    for matrix in (scrambled().to(dtype), scrambled().type(dtype)):
        assert matrix.dtype == dtype
        assert all(t.dtype == torch.int32 for t in matrix.index)
        torch.testing.assert_close(matrix.to_dense(), scrambled().to_dense().to(dtype))
        check_works(matrix)


def test_shared_memory_is_shared() -> None:
    matrix = scrambled().share_memory()
    assert all(t.is_shared() for t in matrix.index if t.numel())


def refuses(matrix: nn.Module, x: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"has no pattern yet: call reset_parameters\(\)"):
        matrix(x)


def test_meta_then_to_empty_then_reset() -> None:
    torch.manual_seed(5)
    expected = BlockSparseLinear(96, 64, density=0.5)
    for options in ({"device": "meta"}, {}):
        with torch.device("meta" if not options else torch.get_default_device()):
            layer = BlockSparseLinear(96, 64, density=0.5, **options)
        assert layer.weight.values.is_meta
        assert layer.weight.values.shape == expected.weight.values.shape
        assert layer(torch.empty(2, 96, device="meta")).shape == (2, 64)
        layer.to_empty(device=torch.get_default_device())
        refuses(layer, torch.randn(2, 96))
        torch.manual_seed(5)
        layer.reset_parameters()
        for ours, theirs in zip(layer.parameters(), expected.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        x = torch.randn(2, 96)
        assert torch.equal(layer(x), expected(x))


def test_meta_remembers_a_mask() -> None:
    mask = torch.eye(3, dtype=torch.bool)
    layer = BlockSparseLinear(96, 96, pattern=mask, device="meta").to_empty(
        device=torch.get_default_device()
    )
    layer.reset_parameters()
    assert torch.equal(layer.weight.block_mask_build(), mask)


def test_a_dense_layer_on_meta() -> None:
    dense = nn.Linear(64, 96, device="meta")
    layer = BlockSparseLinear.from_dense(dense, 0.5)
    assert layer.weight.values.is_meta
    layer.to_empty(device=torch.get_default_device()).load_state_dict(
        BlockSparseLinear(64, 96, density=1).state_dict()
    )
    check_linear(layer)


def test_skip_init() -> None:
    # Its own default is the CPU, not torch's default device.
    device = torch.get_default_device()
    layer = torch.nn.utils.skip_init(BlockSparseLinear, 64, 96, density=0.5, device=device)
    refuses(layer, torch.randn(2, 64))
    assert "no pattern yet" in repr(layer)
    layer.load_state_dict(BlockSparseLinear(64, 96, density=0.5).state_dict())
    assert layer(torch.randn(2, 64)).shape == (2, 96)


def test_to_empty_keeps_a_pattern_that_was_set() -> None:
    model = nn.Sequential(BlockSparseLinear(64, 96, density=0.5))
    mask = model[0].weight.block_mask_build()
    model.to_empty(device=torch.get_default_device())
    assert torch.equal(model[0].weight.block_mask_build(), mask)
    model[0].reset_parameters()
    assert torch.equal(model[0].weight.block_mask_build(), mask)
    check_linear(model[0])


def check_linear(layer: BlockSparseLinear) -> None:
    x = torch.randn(3, layer.in_features)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


def test_set_pattern_forgets_all_blocks() -> None:
    matrix = scrambled()
    matrix.values.grad = torch.ones_like(matrix.values)
    mask = ~matrix.block_mask_build()
    matrix.set_pattern_(mask)
    assert torch.equal(matrix.block_mask_build(), mask)
    assert not matrix.values.any()
    assert not matrix.values.grad.any()
    check_works(matrix)


def test_moving_to_meta_forgets_the_pattern() -> None:
    layer = BlockSparseLinear(64, 96, density=0.5).to("meta")
    assert not layer.weight.has_pattern
    refuses(layer.to_empty(device=torch.get_default_device()), torch.randn(2, 64))


def test_assigned_buffers_need_a_refresh() -> None:
    source = BlockSparseLinear(64, 96, density=0.5)
    layer = BlockSparseLinear(64, 96, density=0.5, device="meta")
    for name, tensor in source.state_dict().items():
        owner, _, attribute = name.rpartition(".")
        module = layer.get_submodule(owner)
        is_parameter = attribute in module._parameters
        setattr(module, attribute, nn.Parameter(tensor) if is_parameter else tensor)
    x = torch.randn(2, 64)
    refuses(layer, x)
    layer.weight.refresh()
    assert torch.equal(layer(x), source(x))
    # Also where a pattern was set: it is not trusted before it has been looked at.
    layer.weight.col_indices = torch.full_like(layer.weight.col_indices, 77)
    refuses(layer, x)
    with pytest.raises(ValueError, match="col"):
        layer.weight.refresh()
    refuses(layer, x)


def test_functional_call_takes_the_index_it_is_given() -> None:
    layer, other = (BlockSparseLinear(64, 96, density=0.5) for _ in range(2))
    state = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    x = torch.randn(2, 64)
    assert torch.equal(torch.func.functional_call(layer, state, (x,)), other(x))
    check_linear(layer)


def test_functional_call_differentiates() -> None:
    layer = BlockSparseLinear(64, 96, density=0.5, bias=False)
    x = torch.randn(2, 64)

    def loss(values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight.values": values}, (x,)).square().sum()

    (expected,) = torch.autograd.grad(loss(layer.weight.values), layer.weight.values)
    doubled = layer.weight.values.detach() * 2
    (grad,) = torch.autograd.grad(loss(doubled.requires_grad_()), doubled)
    torch.testing.assert_close(grad, 2 * expected)


def test_resize_survives_an_old_graph() -> None:
    layer = BlockSparseLinear(64, 96, density=0.5)
    bigger = BlockSparseLinear(64, 96, density=1.0)
    x = torch.randn(2, 64)
    old_loss = layer(x).sum()
    old_loss.backward(retain_graph=True)
    parameter = layer.weight.values
    layer.load_state_dict(bigger.state_dict())
    assert layer.weight.values is parameter
    assert parameter.grad is None
    layer(x).square().sum().backward()
    assert parameter.grad.shape == parameter.shape == (6, 32, 32)
    del old_loss


@pytest.mark.parametrize("grad", [True, False])
def test_meta_layers_refuse_real_inputs(grad: bool) -> None:
    # They would return memory that nobody has written.
    layer = BlockSparseLinear(64, 64, device="meta")
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="expected the same dev"):
        layer(torch.ones(2, 64))
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="expected the same dev"):
        BlockSparseLinear(64, 64)(torch.ones(2, 64, device="meta"))
