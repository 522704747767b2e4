# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of pytorch_block_sparse 0.1.

The fixtures were saved by 0.1's own CUDA kernels on an H100, together with what they computed.
"""

from __future__ import annotations

import gzip
import io
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_reference import close
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear, BlockSparseMatrix, BlockSparseModelPatcher
from pytorch_block_sparse.checkpoint import convert_state_dict

FIXTURES = Path(__file__).parent / "fixtures"
FILES = ("linear_64x128.pt.gz", "linear_256x256.pt.gz")


@cache
def cases_of(file: str) -> list[dict[str, Any]]:
    content = gzip.decompress((FIXTURES / file).read_bytes())
    cases: list[dict[str, Any]] = torch.load(io.BytesIO(content), weights_only=True)["cases"]
    return cases


def all_cases() -> list[Any]:
    return [
        pytest.param(
            case,
            id=f"{case['in_features']}x{case['out_features']}-{case['density']}-{case['bias']}",
        )
        for file in FILES
        for case in cases_of(file)
    ]


def layer_for(case: dict[str, Any], density: float | None = None) -> BlockSparseLinear:
    return BlockSparseLinear(
        case["in_features"],
        case["out_features"],
        bias=case["bias"],
        density=case["density"] if density is None else density,
        block_shape=case["block_shape"],
    )


@pytest.mark.parametrize("case", all_cases())
@pytest.mark.parametrize("density", [None, 1.0, 0.125], ids=["same", "from more", "from fewer"])
def test_fixture(case: dict[str, Any], density: float | None) -> None:
    layer = layer_for(case, density)
    result = layer.load_state_dict(case["state_dict"])  # from the CPU
    case = {
        k: v.to(torch.get_default_device()) if isinstance(v, Tensor) else v for k, v in case.items()
    }
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(layer.weight.to_dense(), case["dense"])
    assert torch.equal(layer.weight.block_mask_build(), case["mask"])
    x = case["x"].clone().requires_grad_()
    y = layer(x)
    y.backward(case["g"])
    # Twice the bound of one computation: 0.1 rounded its result as well.
    tokens = x[..., 0].numel()
    close(y / 2, case["y"] / 2, 2 * case["in_features"])
    close(x.grad / 2, case["grad_x"] / 2, 2 * case["out_features"])
    if case["bias"]:
        close(layer.bias.grad / 2, case["grad_bias"] / 2, 2 * tokens)
    h, w = case["block_shape"]
    # The slot of a block is its index in 0.1's data, whose blocks are transposed.
    grad = case["grad_data"].view(-1, w, h).transpose(1, 2)
    close(layer.weight.values.grad / 2, grad / 2, 2 * tokens)


def saved_by_0_1(matrix: BlockSparseMatrix, prefix: str) -> dict[str, Tensor]:
    """The entries of 0.1 for a matrix; blocks in `data` in the order of their slots."""
    rows, cols = matrix.build_coo_block_index()
    ids = matrix.block_ids[: matrix.n_blocks]
    by_column = torch.stack([cols, rows]).long()
    order = (by_column[0] * matrix.blocks_count()[0] + by_column[1]).argsort()
    in_data_order = ids.long().argsort()
    entries = {
        "data": matrix.values.detach().transpose(1, 2).reshape(-1, matrix.block_shape[1]),
        "cols_a": torch.stack([cols, ids], 1),
        "row_start_ends_a": matrix.crow_indices,
        "rows_b": torch.stack([rows, ids], 1)[order],
        "col_start_ends_b": matrix.ccol_indices,
        "blocks": torch.stack([cols, rows], 1)[in_data_order].flatten(),
    }
    return {prefix + key: value.clone() for key, value in entries.items()}


def test_the_writer_of_these_tests_agrees_with_0_1() -> None:
    for file in FILES:
        for case in cases_of(file):
            layer = layer_for(case)
            layer.load_state_dict(case["state_dict"])
            written = saved_by_0_1(layer.weight, "weight.")
            for key, value in written.items():
                assert torch.equal(value.cpu(), case["state_dict"][key]), key


def test_any_order_of_data() -> None:
    source = BlockSparseLinear(96, 128, density=0.5)
    rows, cols = source.weight.build_coo_block_index()
    source.weight._write_index(rows, cols, torch.tensor([3, 0, 5, 1, 4, 2]))
    target = BlockSparseLinear(96, 128, density=1.0)
    target.load_state_dict({"bias": source.bias, **saved_by_0_1(source.weight, "weight.")})
    assert torch.equal(target.weight.to_dense(), source.weight.to_dense())
    assert torch.equal(target.weight.block_ids, source.weight.block_ids)


def in_the_format_of_0_1(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model, its matrices as 0.1 saved them."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, BlockSparseMatrix):
            for key in module.state_dict():
                del state[f"{name}.{key}"]
            state |= saved_by_0_1(module, f"{name}.")
    return state


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 64)
        self.layers = nn.ModuleList(
            nn.Sequential(BlockSparseLinear(64, 128), BlockSparseLinear(128, 64, bias=False))
            for _ in range(2)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("converted_before", [False, True])
def test_whole_model(converted_before: bool, assign: bool) -> None:
    source, target = Encoder(), Encoder()
    state = in_the_format_of_0_1(source)
    keys = set(state)
    target.load_state_dict(convert_state_dict(state) if converted_before else state, assign=assign)
    assert set(state) == keys
    tokens = torch.arange(10)
    assert torch.equal(target(tokens), source(tokens))
    assert set(convert_state_dict(state)) == set(source.state_dict())


def test_roberta_patched_by_0_1() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig(
        vocab_size=60,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=20,
    )
    models = []
    for density in (0.5, 0.25):
        model = transformers.RobertaForMaskedLM(config).eval()
        patcher = BlockSparseModelPatcher()
        for name in ("intermediate.dense", "output.dense", "attention.output.dense"):
            patcher.add_pattern(rf"roberta\.encoder\.layer\.[0-9]+\.{name}", {"density": density})
        patcher.patch_model(model)
        models.append(model)
    source, target = models
    state = in_the_format_of_0_1(source)
    # A buffer that transformers saved in 2020.
    state["roberta.embeddings.position_ids"] = torch.arange(20)[None]
    result = target.load_state_dict(state, strict=False)
    assert result.unexpected_keys == ["roberta.embeddings.position_ids"]
    assert result.missing_keys == []
    tokens = torch.randint(5, 60, (2, 10))
    with torch.no_grad():
        assert torch.equal(target(tokens).logits, source(tokens).logits)


def test_matrix_that_0_1_emulated() -> None:
    source = BlockSparseMatrix.randn((16, 24), 5, block_shape=(4, 8))
    state = saved_by_0_1(source, "")
    trained = source.to_dense().detach() * 3
    state |= {"_dense": trained}
    target = BlockSparseMatrix.zeros((16, 24), 2, block_shape=(4, 8))
    target.load_state_dict(state)
    assert torch.equal(target.to_dense(), trained)


def good() -> dict[str, Any]:
    return dict(cases_of(FILES[0])[2]["state_dict"])


def put(key: str, position: Any, value: int) -> dict[str, Any]:
    state = good()
    state[key] = state[key].clone()
    state[key][position] = value
    return state


WRONG: dict[str, tuple[Any, str]] = {
    "slot beyond data": (lambda: put("weight.cols_a", (0, 1), 4), "weight.cols_a[0, 1] is 4, "),
    "column beyond the matrix": (
        lambda: put("weight.cols_a", (1, 0), 2),
        "weight.cols_a[1, 0] is 2, ",
    ),
    "negative column": (lambda: put("weight.cols_a", (1, 0), -1), "weight.cols_a[1, 0] is -1, "),
    "pointers fall": (
        lambda: put("weight.row_start_ends_a", 1, 3),
        "weight.row_start_ends_a[2] is 2",
    ),
    "pointers beyond data": (
        lambda: put("weight.row_start_ends_a", 4, 999),
        "at most the 4 blocks of data",
    ),
    "blocks contradict": (lambda: put("weight.blocks", 0, 1), "weight.blocks contradicts"),
    "rows_b contradicts": (lambda: put("weight.rows_b", (0, 1), 3), "weight.rows_b contradicts"),
    "col_start_ends_b contradicts": (
        lambda: put("weight.col_start_ends_b", 1, 3),
        "weight.col_start_ends_b contradicts",
    ),
    "an entry is missing": (
        lambda: {k: v for k, v in good().items() if k != "weight.rows_b"},
        "weight is a matrix of a 0.1 checkpoint without weight.rows_b, expected all of",
    ),
    "data is cut": (
        lambda: good() | {"weight.data": good()["weight.data"][:-32]},
        "weight.data is a torch.float32 tensor of shape (96, 32) on cpu, expected the shape "
        "(128, 32)",
    ),
    "data is int": (lambda: good() | {"weight.data": good()["weight.data"].int()}, "floating"),
    "index is int64": (
        lambda: good() | {"weight.cols_a": good()["weight.cols_a"].long()},
        "weight.cols_a is a torch.int64 tensor of shape (4, 2) on cpu, expected a torch.int32",
    ),
    "no blocks": (
        lambda: good() | {"weight.cols_a": good()["weight.cols_a"][:0]},
        "weight.cols_a is a torch.int32 tensor of shape (0, 2) on cpu, expected",
    ),
    "blocks of one dimension": (
        lambda: good() | {"weight.cols_a": good()["weight.cols_a"].flatten()},
        "weight.data is a torch.float32 tensor of shape (128, 32) on cpu, expected the shape "
        "(256, 32)",
    ),
    "another matrix": (
        lambda: good() | {"weight.row_start_ends_a": torch.tensor([0, 4], dtype=torch.int32)},
        "weight.row_start_ends_a is a torch.int32 tensor of shape (2,) on cpu, expected the shape "
        "(5,)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_file_changes_nothing(name: str) -> None:
    state, sentence = WRONG[name][0](), WRONG[name][1]
    layer = BlockSparseLinear(64, 128, density=0.5)
    before = {k: t.clone() for k, t in layer.weight.named_buffers()}
    values = layer.weight.values.detach().clone()
    with pytest.raises(RuntimeError) as error:
        layer.load_state_dict(state)
    assert sentence in str(error.value)
    assert torch.equal(layer.weight.values, values)
    assert all(torch.equal(t, before[k]) for k, t in layer.weight.named_buffers())


def test_file_of_another_shape() -> None:
    layer = BlockSparseLinear(128, 64, density=0.5)
    with pytest.raises(RuntimeError, match=r"row_start_ends_a is .*expected the shape \(3,\)"):
        layer.load_state_dict(cases_of(FILES[0])[3]["state_dict"], strict=False)
    blocks_of_16 = BlockSparseLinear(64, 128, density=0.5, block_shape=16)
    with pytest.raises(RuntimeError, match=r"weight.data is .*expected the shape \(64, 16\)"):
        blocks_of_16.load_state_dict(good())
