# SPDX-License-Identifier: Apache-2.0
"""Arguments of another kind than expected: NumPy's numbers work, the rest ends in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import says
from torch import Tensor, nn

from pytorch_block_sparse import (
    BlockSparseLinear,
    BlockSparseMatrix,
    BlockSparseModelPatcher,
    SparseOptimizer,
    functional,
)
from pytorch_block_sparse.block_sparse_linear import PseudoBlockSparseLinear
from pytorch_block_sparse.sparse_optimizer import MagnitudeSparseOptimizerStrategy

Linear, Matrix = BlockSparseLinear, BlockSparseMatrix


def matrix() -> BlockSparseMatrix:
    return Matrix.ones((64, 96), blocks=[(0, 0), (1, 1)])


def bsr(crow: list[int], col: list[int]) -> Tensor:
    """A (32, 32) tensor of 2 x 2 blocks whose index torch was told not to look at."""
    return torch.sparse_bsr_tensor(
        torch.tensor(crow),
        torch.tensor(col),
        torch.ones(2, 16, 16),
        (32, 32),
        check_invariants=False,
    )


# What is called -> the kind of error, and what its sentence says.
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "in_features a truth value": (
        lambda: Linear(True, 64),
        ValueError,
        "BlockSparseLinear invalid in_features=True, should be at least 1",
    ),
    "density a tensor": (
        lambda: Linear(64, 64, density=torch.tensor(0.5)),
        ValueError,
        "BlockSparseLinear invalid density=0.5, expected a number above 0 and at most 1",
    ),
    "pattern an array": (
        lambda: Linear(64, 64, pattern=np.ones((2, 2), bool)),
        ValueError,
        "(ndarray), expected a boolean block mask or one of 'random', 'balanced'",
    ),
    "activation a list": (
        lambda: Linear(64, 64, activation=["relu"]),
        ValueError,
        "activation is ['relu'], expected one of 'none', 'relu', 'gelu'",
    ),
    "activation None": (
        lambda: functional.linear(torch.ones(2, 96), matrix(), activation=None),
        TypeError,
        "activation is None (NoneType), expected a name such as 'none'",
    ),
    "slots a truth value": (
        lambda: Linear(64, 64, slots=True),
        ValueError,
        "slots is True (bool), expected an int of at least the 2 stored blocks and below 21",
    ),
    "slots beyond int32": (
        lambda: Linear(64, 64, slots=2**31),
        ValueError,
        "slots is 2147483648 (int), expected an int of at least the 2 stored blocks and below 21",
    ),
    "dense None": (lambda: Linear.from_dense(None), TypeError, "dense is None (NoneType), expec"),
    "pseudo of a dense layer": (
        lambda: PseudoBlockSparseLinear(nn.Linear(3, 3)),
        TypeError,
        "(Linear), expected a BlockSparseLinear",
    ),
    "matrix from a sparse tensor": (
        lambda: Matrix.from_dense(torch.eye(64).to_sparse()),
        TypeError,
        "dense is a torch.float32 torch.sparse_coo tensor of shape (64, 64) on cpu, expected a de",
    ),
    "matrix into a number": (
        lambda: Matrix.from_dense(torch.eye(64), out=5),
        TypeError,
        "out is 5 (int), expected a block-sparse matrix to fill",
    ),
    "blocks a number": (
        lambda: Matrix.zeros((64, 64), blocks=5),
        ValueError,
        "blocks is 5 (int), ",
    ),
    "bsr pointer beyond int32": (
        lambda: Matrix.from_sparse_bsr(bsr([0, 2**40, 2], [0, 1])),
        ValueError,
        "crow_indices of bsr has 1099511627776, expected at most 2147483647",
    ),
    "bsr column that int32 would wrap to a valid one": (
        lambda: Matrix.from_sparse_bsr(bsr([0, 2, 2], [0, 2**32 + 1])),
        ValueError,
        "col_indices of bsr has 4294967297, expected at most 2147483647",
    ),
    "bsr column out of range": (
        lambda: Matrix.from_sparse_bsr(bsr([0, 2, 2], [0, 2])),
        ValueError,
        "col_indices[1] is 2, expected at least 0 and below 2",
    ),
    "bsr columns not sorted": (
        lambda: Matrix.from_sparse_bsr(bsr([0, 2, 2], [1, 0])),
        ValueError,
        "col_indices[1] is 0, expected more than the 1 before it in block row 0",
    ),
    "optimizer of None": (
        lambda: SparseOptimizer(None),
        TypeError,
        "sparse_objects has a NoneType",
    ),
    "optimizer rate a name": (
        lambda: SparseOptimizer(matrix(), lr="fast"),
        ValueError,
        "Invalid learning rate: fast, expected above 0 to 1",
    ),
    "optimizer scale not finite": (
        lambda: SparseOptimizer(matrix(), new_coefficients_scale=float("nan")),
        ValueError,
        "new_coefficients_scale is nan (float), expected a number that is finite",
    ),
    "strategy scale a name": (
        lambda: MagnitudeSparseOptimizerStrategy(0.5, new_coefficients_scale="small"),
        ValueError,
        "new_coefficients_scale is 'small' (str), expected a number",
    ),
    "strategy ratio a name": (
        lambda: MagnitudeSparseOptimizerStrategy("half"),
        ValueError,
        "cleanup_ratio is 'half', expected 0 to 1",
    ),
    "patcher excludes a number": (
        lambda: BlockSparseModelPatcher(exclude=5),
        TypeError,
        "exclude is 5, expected a regular expression as a string",
    ),
    "patchable layers of None": (
        lambda: BlockSparseModelPatcher().get_patchable_layers(None),
        TypeError,
        "model is None (NoneType), expected a torch.nn.Module",
    ),
}
GENERATORS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda generator: Linear(64, 64, generator=generator),
    "linear with a mask": lambda generator: Linear(
        64, 64, pattern=torch.ones(2, 2, dtype=torch.bool), generator=generator
    ),
    "linear reset": lambda generator: Linear(64, 64).reset_parameters(generator),
    "matrix": lambda generator: Matrix.randn((64, 64), generator=generator),
    "draw": lambda generator: Matrix((64, 64), n_blocks=1).draw_pattern_(generator),
    "optimizer": lambda generator: SparseOptimizer(matrix(), generator=generator),
    "strategy": lambda generator: MagnitudeSparseOptimizerStrategy(0.5, generator=generator),
}


def refuses(call: Callable[[], Any], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind) as error:
        call()
    assert says(error, sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    refuses(*REFUSED[name])


@pytest.mark.parametrize("name", GENERATORS)
def test_what_is_no_generator(name: str) -> None:
    GENERATORS[name](torch.Generator())
    sentence = "generator is 5 (int), expected a torch.Generator or None"
    refuses(lambda: GENERATORS[name](5), TypeError, sentence)


def test_numbers_of_numpy() -> None:
    layer = Linear(
        np.int64(64),
        np.int32(96),
        density=np.float32(0.5),
        block_shape=np.array([32, 16]),
        slots=np.int64(7),
    )
    assert (layer.block_count, layer.weight.slots) == (6, 7)
    sizes = layer.in_features, layer.out_features, *layer.block_shape, layer.weight.slots
    assert all(type(size) is int for size in sizes)  # as a saved configuration needs them
    model = nn.Sequential(nn.Linear(64, 64))
    patcher = BlockSparseModelPatcher()
    patcher.add_pattern("0", {"density": np.float32(0.5), "block_shape": np.int64(32)})
    assert patcher.patch_model(model).density == 0.5


@pytest.mark.parametrize(
    ("positions", "sentence"),
    [
        (torch.tensor([[2], [0]]), "Block position (2,0) is outside the grid of 2 x 3 blocks"),
        (torch.tensor([[0], [-1]]), "Block position (0,-1) is outside the grid of 2 x 3 blocks"),
        (torch.tensor([[0.5], [0.0]]), "block_positions is a torch.float32 tensor of shape (2, 1)"),
        (torch.tensor([0, 1]), "block_positions is a torch.int64 tensor of shape (2,) on cpu, exp"),
        (torch.tensor([[0, 1, 1]]), "expected the shape (2, 3) (row and column, k)"),
        ([[0], [0]], "block_positions is [[0], [0]] (list), expected a tensor of ints (2, k)"),
    ],
)
def test_positions_of_a_mask(positions: Any, sentence: str) -> None:
    refuses(lambda: matrix().block_mask_build(positions), ValueError, sentence)
    mask = matrix().block_mask_build(torch.tensor([[0, 1, 1], [2, 0, 0]]))
    assert mask.nonzero().tolist() == [[0, 2], [1, 0]]


@pytest.mark.parametrize(
    ("values", "kind", "sentence"),
    [
        ("ones", TypeError, "values is 'ones' (str), expected a tensor"),
        (
            torch.ones(1, 32, 32).to_sparse(),
            TypeError,
            "values is a torch.float32 torch.sparse_coo",
        ),
        (torch.ones(1, 32, 32, device="meta"), ValueError, "values is on the meta device"),
    ],
)
def test_values_of_new_blocks(values: Any, kind: type[Exception], sentence: str) -> None:
    sparse, place = matrix(), torch.tensor([0])
    before = [tensor.clone() for tensor in (*sparse.index, sparse.values.detach())]
    refuses(lambda: sparse.drop_and_grow_(place, place, torch.tensor([2]), values), kind, sentence)
    after = [*sparse.index, sparse.values.detach()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("value", ["zeros", None, np.zeros((64, 96))])
def test_matrices_that_are_none(value: Any) -> None:
    for call, name in (
        (lambda: matrix().check_with_dense(value), "dense"),
        (lambda: matrix().to_dense(5 if value is None else value), "data_replace"),
        (lambda: matrix().to_sparse(5 if value is None else value), "data_replace"),
    ):
        refuses(call, TypeError, f"{name} is ")
        refuses(call, TypeError, "expected a tensor")


def _calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Operator -> the operator and arguments that fit, by name."""
    sparse, ops = matrix(), torch.ops.block_sparse
    x, grad, index = torch.ones(4, 96), torch.ones(4, 64), sparse.index
    values, bias = sparse.values.detach(), torch.ones(64)
    slots = dict(zip(("slots", "block_height", "block_width"), values.shape, strict=True))
    pattern = dict(zip(("crow_indices", "col_indices", "block_ids"), index[:3], strict=True))
    forward = {"x": x, "values": values, "index": index, "bias": bias, "out_features": 64}
    return {
        "linear": (ops.linear, forward),
        "linear_preactivation": (ops.linear_preactivation, {**forward, "activation": "gelu"}),
        "linear_input_grad": (
            ops.linear_input_grad,
            {"grad": grad, "values": values, "index": index, "in_features": 96},
        ),
        "linear_weight_grad": (
            ops.linear_weight_grad,
            {"grad": grad, "x": x, "index": index, **slots},
        ),
        "linear_weight_grad_accumulate_": (
            ops.linear_weight_grad_accumulate_,
            {"accumulator": torch.zeros_like(values), "grad": grad, "x": x, "index": index},
        ),
        "block_norms": (
            ops.block_norms,
            {"grad": grad, "x": x, "block_height": 32, "block_width": 32},
        ),
        "pattern_check": (ops.pattern_check, {**pattern, "slots": 2, "block_cols": 3}),
        "pattern_transpose": (ops.pattern_transpose, {**pattern, "block_cols": 3}),
    }


def on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    return [on_meta(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("operator", _calls())
def test_devices_that_differ(operator: str) -> None:
    """One argument on meta, or all but one: never a result that nobody has computed."""
    call, arguments = _calls()[operator]
    call(**arguments)
    tensors = [k for k, v in arguments.items() if isinstance(v, (Tensor, list))]
    assert len(tensors) > 1
    for name in tensors:
        either = f"(meta|{torch.empty(0).device})"
        refused = rf" is on {either}, \w+ on {either}; expected the same device$"
        with pytest.raises(RuntimeError, match=refused):
            call(**{k: on_meta(v) if k == name else v for k, v in arguments.items()})
        with pytest.raises(RuntimeError, match=refused):
            call(**{k: v if k == name else on_meta(v) for k, v in arguments.items()})


def test_bias_elsewhere() -> None:
    """Also where no operator is dispatched that would see to it: with and without gradients."""
    layer = Linear(64, 96)
    layer.bias = nn.Parameter(torch.zeros(96, device="meta"))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            sentence = "bias is on meta, x on cpu; expected the same device"
            refuses(lambda: layer(torch.ones(2, 64)), RuntimeError, sentence)
