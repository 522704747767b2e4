# SPDX-License-Identifier: Apache-2.0
"""Saving and loading: round trips, other numbers of blocks, and files that are wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import says
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear

INDEX = ("weight.crow_indices", "weight.col_indices", "weight.block_ids")
KEYS = {"bias", "weight.values", *INDEX}


def layer(density: float = 0.5, seed: int = 0, **options: Any) -> BlockSparseLinear:
    source = torch.Generator().manual_seed(seed)
    return BlockSparseLinear(96, 128, density=density, generator=source, **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Same function and same index, derived tensors included."""
    theirs = dict(b.named_buffers()) | dict(b.named_parameters())
    ours = dict(a.named_buffers()) | dict(a.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {k: t.detach().clone() for k, t in [*module.named_parameters(), *module.named_buffers()]}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    after = snapshot(module)
    return after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in after)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("density", [0.5, 1.0, 0.1], ids=["same", "more", "fewer"])
def test_state_dict_round_trip(density: float, assign: bool) -> None:
    source, target = layer(density, seed=1), layer(0.5, seed=2)
    state = source.state_dict()
    assert set(state) == KEYS
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    result = target.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert same(target, source)
    x = torch.randn(3, 96, requires_grad=True)
    target(x).square().sum().backward()
    assert target.weight.values.grad.shape == source.weight.values.shape
    assert torch.equal(target(x), source(x))
    # The loaded layer is its own: changing it does not reach the source (unless assigned).
    if not assign:
        target.weight.multiply_(0.0)
        assert source.weight.values.any()


def test_loading_keeps_the_parameter_and_its_memory() -> None:
    target = layer(seed=2)
    parameter, pointers = target.weight.values, [t.data_ptr() for t in target.weight.index]
    memory = parameter.data_ptr()
    target.load_state_dict(layer(seed=1).state_dict())
    assert target.weight.values is parameter
    assert parameter.data_ptr() == memory
    assert [t.data_ptr() for t in target.weight.index] == pointers


def test_spare_slots_travel() -> None:
    source = layer(seed=1, slots=9)
    source.weight.drop_and_grow_(
        torch.tensor([2]), *(~source.weight.block_mask_build()).nonzero()[:1].T
    )
    target = layer(seed=2)
    target.load_state_dict(source.state_dict())
    assert target.weight.slots == 9
    assert same(target, source)


def test_other_dtype_is_converted() -> None:
    source = layer(seed=1).to(torch.bfloat16)
    target = layer(seed=2)
    target.load_state_dict(source.state_dict())
    assert target.weight.dtype == torch.float32
    assert torch.equal(target.weight.values, source.weight.values.float())
    assigned = layer(seed=2)
    assigned.load_state_dict(source.state_dict(), assign=True)
    assert assigned.weight.dtype == torch.bfloat16


def test_meta_with_assign() -> None:
    source = layer(1.0, seed=1)
    target = layer(0.5, device="meta")
    target.load_state_dict(source.state_dict(), assign=True)
    assert same(target, source)
    assert torch.equal(target(torch.ones(1, 96)), source(torch.ones(1, 96)))


def test_meta_without_assign_is_torchs_warning() -> None:
    target = layer(device="meta")
    with pytest.warns(UserWarning, match="assign=True"):
        target.load_state_dict(layer(seed=1).state_dict())
    assert not target.weight.has_pattern


def test_hooks_and_extra_keys_as_in_torch() -> None:
    source, target = layer(seed=1), layer(seed=2)
    seen: list[str] = []
    target.weight.register_load_state_dict_pre_hook(lambda module, *_: seen.append("before"))
    target.register_load_state_dict_post_hook(lambda module, keys: seen.append("after"))
    state = source.state_dict() | {"weight.extra": torch.zeros(1), "other": torch.zeros(1)}
    result = target.load_state_dict(state, strict=False)
    assert sorted(result.unexpected_keys) == ["other", "weight.extra"]
    assert seen == ["before", "after"]
    assert same(target, source)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: .*"weight.extra"'):
        target.load_state_dict(state)


def test_missing_matrix() -> None:
    target = layer(seed=2)
    before = snapshot(target)
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight.values", "weight.crow_indices"'):
        target.load_state_dict({"bias": target.bias})
    result = target.load_state_dict({"bias": target.bias}, strict=False)
    assert set(result.missing_keys) == KEYS - {"bias"}
    assert unchanged(target, before)


def test_values_alone_fit_their_own_pattern() -> None:
    source, target = layer(seed=1), layer(seed=2)
    mask = target.weight.block_mask_build()
    parameters = {name: p.detach() for name, p in source.named_parameters()}
    result = target.load_state_dict(parameters, strict=False)
    assert set(result.missing_keys) == set(INDEX)
    assert torch.equal(target.weight.values, source.weight.values)
    assert torch.equal(target.weight.block_mask_build(), mask)


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    source, target = layer(0.75, seed=1, slots=12), layer(seed=2)
    safetensors.save_model(source, str(tmp_path / "model.safetensors"))
    assert safetensors.load_model(target, str(tmp_path / "model.safetensors")) == (set(), [])
    assert same(target, source)


def edited(**edits: Any) -> dict[str, Any]:
    """A good state dict, seven of twelve blocks, with some entries changed."""
    state: dict[str, Any] = layer(0.6, seed=1, slots=8).state_dict()
    assert state["weight.values"].shape[0] == 8
    for key, change in edits.items():
        name = key if key == "bias" else f"weight.{key}"
        state[name] = change(state[name].clone())
    return state


def put(position: int, value: int) -> Any:
    def change(tensor: Tensor) -> Tensor:
        tensor[position] = value
        return tensor

    return change


# What is wrong with a file -> a part of the sentence that says so.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "pointer does not start at 0": ({"crow_indices": put(0, 1)}, "crow_indices"),
    "pointers fall": ({"crow_indices": put(1, 6)}, "crow_indices"),
    "negative pointer": ({"crow_indices": put(1, -5)}, "crow_indices"),
    "more blocks than slots": ({"crow_indices": put(-1, 2000)}, "crow_indices"),
    "column out of range": ({"col_indices": put(0, 3)}, "col_indices"),
    "negative column": ({"col_indices": put(0, -1)}, "col_indices"),
    "columns not sorted": ({"col_indices": lambda t: t.flip(0)}, "col_indices"),
    "columns duplicated": ({"col_indices": lambda t: t * 0}, "col_indices"),
    "slot out of range": ({"block_ids": put(2, 8)}, "block_ids"),
    "slot twice": ({"block_ids": put(2, 1)}, "block_ids"),
    "index is int64": (
        {"col_indices": lambda t: t.long()},
        "weight.col_indices is a torch.int64 tensor of shape (8,) on cpu, expected a torch.int32 "
        "tensor of shape (8,)",
    ),
    "index is float": ({"block_ids": lambda t: t.float()}, "expected a torch.int32 tensor"),
    "index is too short": ({"col_indices": lambda t: t[:-1]}, "expected a torch.int32 tensor"),
    "index has two dimensions": ({"col_indices": lambda t: t[None]}, "of shape (8,)"),
    "index is no tensor": ({"col_indices": lambda t: t.tolist()}, "expected a torch.int32"),
    "index is on meta": ({"crow_indices": lambda t: t.to("meta")}, "the meta device"),
    "rows of another matrix": ({"crow_indices": lambda t: t[:-1]}, "of shape (5,)"),
    "values are ints": ({"values": lambda t: t.int()}, "expected a floating tensor of shape"),
    "values of other blocks": (
        {"values": lambda t: t.view(8, 16, 64)},
        "weight.values is a torch.float32 tensor of shape (8, 16, 64) on cpu, expected a floating "
        "tensor of shape (slots, 32, 32)",
    ),
    "values of fewer slots than the index": ({"values": lambda t: t[:3]}, "of shape (3,)"),
    "values are sparse": ({"values": lambda t: t.to_sparse()}, "expected a floating tensor"),
    "values are on meta": (
        {"values": lambda t: t.to("meta")},
        "weight.values is on the meta device, which holds no data",
    ),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_file_changes_nothing(name: str, assign: bool, strict: bool) -> None:
    edits, sentence = WRONG[name]
    target = layer(seed=2)
    before = snapshot(target.weight)
    with pytest.raises(RuntimeError) as error:
        target.load_state_dict(edited(**edits), assign=assign, strict=strict)
    assert says(error, sentence)
    assert "the matrix was left as it was" in str(error.value)
    assert unchanged(target.weight, before)
    assert target.weight.has_pattern
    assert target(torch.randn(2, 96)).isfinite().all()


@pytest.mark.parametrize("missing", ["values", "crow_indices", "col_indices", "block_ids"])
def test_incomplete_matrix_changes_nothing(missing: str) -> None:
    state = edited()
    del state[f"weight.{missing}"]
    target = layer(seed=2)
    before = snapshot(target.weight)
    with pytest.raises(RuntimeError, match=f"weight comes without weight.{missing}, expected all"):
        target.load_state_dict(state, strict=False)
    assert unchanged(target.weight, before)


def test_one_bad_layer_does_not_stop_the_others() -> None:
    good = nn.Sequential(layer(seed=1), BlockSparseLinear(128, 96))
    target = nn.Sequential(layer(seed=2), BlockSparseLinear(128, 96))
    state = good.state_dict()
    state["0.weight.col_indices"] = state["0.weight.col_indices"] + 1
    before = snapshot(target[0].weight)
    with pytest.raises(RuntimeError, match=r"0\.weight\."):
        target.load_state_dict(state)
    assert unchanged(target[0].weight, before)
    assert same(target[1], good[1])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "layer.pt"
    torch.save(layer(seed=1).state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    target = layer(seed=2)
    before = snapshot(target)
    with pytest.raises((RuntimeError, EOFError, OSError)):
        target.load_state_dict(torch.load(path, weights_only=True))
    assert unchanged(target, before)


int32 = st.integers(-(2**31), 2**31 - 1)


@settings(max_examples=150, deadline=None)
@given(
    crow=st.lists(st.one_of(st.integers(-2, 14), int32), min_size=5, max_size=5),
    col=st.lists(st.one_of(st.integers(-1, 4), int32), min_size=6, max_size=6),
    ids=st.lists(st.one_of(st.integers(-1, 7), int32), min_size=6, max_size=6),
)
def test_random_index_is_refused_or_right(crow: list[int], col: list[int], ids: list[int]) -> None:
    target = layer(seed=2)
    before = snapshot(target.weight)
    state = layer(seed=1).state_dict()
    for key, content in zip(INDEX, (crow, col, ids), strict=True):
        state[key] = torch.tensor(content, dtype=torch.int32)
    try:
        target.load_state_dict(state)
    except RuntimeError:
        assert unchanged(target.weight, before)
    x = torch.randn(2, 96, requires_grad=True)
    y = target(x)
    torch.testing.assert_close(y, target.to_dense()(x))
    y.sum().backward()


def test_a_pattern_without_blocks_is_refused() -> None:
    target = layer()
    before = snapshot(target)
    state = target.state_dict()
    state["weight.crow_indices"] = torch.zeros_like(state["weight.crow_indices"])
    with pytest.raises(RuntimeError, match="crow_indices ends at 0, expected a pattern with a bl"):
        target.load_state_dict(state)
    assert unchanged(target, before)


@pytest.mark.parametrize(
    "change", [lambda v: v.to(torch.float8_e4m3fn), lambda v: v.mT.contiguous().mT]
)
def test_assigned_values_are_such_as_the_kernels_take(change: Any) -> None:
    target = layer()
    before = snapshot(target)
    state = target.state_dict()
    state["weight.values"] = change(state["weight.values"])
    with pytest.raises(RuntimeError, match="expected with assign=True a contiguous one of float32"):
        target.load_state_dict(state, assign=True)
    assert unchanged(target, before)
