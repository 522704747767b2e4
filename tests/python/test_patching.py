# SPDX-License-Identifier: Apache-2.0
"""Patching plain torch modules: which layers, and what becomes of them."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from plain_models import BLOCK, Pair, kinds, pair, patcher  # noqa: F401
from torch import nn

from pytorch_block_sparse import (
    BlockSparseLinear,
    BlockSparseModelPatcher,
    LayerConfig,
    PatchReport,
    PseudoBlockSparseLinear,
)
from pytorch_block_sparse.patching.layers import dense_view
from pytorch_block_sparse.util import ModelPatcher

# What is replaced, and by what.


def test_replaces_what_the_pattern_matches_from_the_start_of_the_name(model: Pair) -> None:
    report = patcher(r"first\.u").patch_model(model)
    assert [layer.name for layer in report] == ["first.up"]
    assert isinstance(model.first.up, BlockSparseLinear)
    assert type(model.first.down) is type(model.second.up) is nn.Linear


def test_first_matching_pattern_wins(model: Pair) -> None:
    made = BlockSparseModelPatcher()
    made.add_pattern(r".*\.up", {"density": 0.25, "block_shape": BLOCK})
    made.add_pattern(r"first\.(up|down)", {"density": 0.75, "block_shape": (8, 8)})
    report = made.patch_model(model)
    assert {layer.name: (layer.density, layer.block_shape) for layer in report} == {
        "first.up": (0.25, BLOCK),
        "first.down": (0.75, (8, 8)),
        "second.up": (0.25, BLOCK),
    }


def test_surface_of_0_1(model: Pair) -> None:
    made = ModelPatcher()
    made.add_pattern("first.up", {"density": 0.5})
    made.add_pattern("first.down", {"density": 0.5, "pseudo_linear": True})
    layers = made.get_patchable_layers(model)
    assert [entry["regexp"] for entry in layers] == [
        r"first\.up",
        r"first\.down",
        r"second\.up",
        r"second\.down",
    ]
    assert layers[0]["layer"] is model.first.up
    made.patch_model(model)
    assert isinstance(model.first.up, BlockSparseLinear)
    assert model.first.up.block_shape == (32, 32)
    assert isinstance(model.first.down, PseudoBlockSparseLinear)


@pytest.mark.parametrize("pattern", ["magnitude", "random", "balanced", "diagonal+random"])
@pytest.mark.parametrize("pseudo_linear", [False, True])
def test_keeps_the_trained_weights_on_the_chosen_blocks(
    model: Pair, pattern: str, pseudo_linear: bool
) -> None:
    dense = copy.deepcopy(model).double()
    patcher(pattern=pattern, pseudo_linear=pseudo_linear).patch_model(model.double())
    for name in ("first.up", "first.down"):
        layer, old = model.get_submodule(name), dense.get_submodule(name)
        kept = layer.weight * layer.mask if pseudo_linear else layer.weight.to_dense()
        mask = kept != 0
        assert torch.equal(kept, old.weight * mask)
        assert 0.3 < mask.double().mean() < 0.7
        if old.bias is not None:
            assert torch.equal(layer.bias, old.bias)
        x = torch.randn(3, old.in_features, dtype=torch.float64)
        exact = nn.functional.linear(x, kept, old.bias)
        # Both sum at most 128 products; each rounding is at most eps times the largest sum.
        bound = 2 * 128 * torch.finfo(torch.float64).eps
        assert (layer(x) - exact).abs().max() <= bound * (x.abs() @ kept.abs().T).max()


def test_magnitude_keeps_the_blocks_of_largest_norm(model: Pair) -> None:
    with torch.no_grad():
        model.first.up.weight[32:48, 16:32] *= 100
        model.first.up.weight[0:16, 48:64] *= 100
    patcher("first.up", density=2 / 32).patch_model(model)
    mask = model.first.up.weight.block_mask_build(None)
    assert mask.nonzero().tolist() == [[0, 3], [2, 1]]


def test_masks(model: Pair) -> None:
    up = torch.zeros(8, 4, dtype=torch.bool)
    up[3, 1] = up[0, 0] = True
    down = torch.ones(3, 8, dtype=torch.bool)
    made = BlockSparseModelPatcher()
    made.add_pattern(r".*\.up", {"pattern": up, "block_shape": BLOCK})
    made.add_pattern("first.down", LayerConfig(pattern={"first.down": down}, block_shape=BLOCK))
    report = made.patch_model(model)
    assert torch.equal(model.second.up.weight.block_mask_build(None), up)
    assert model.first.down.weight.block_mask_build(None).all()
    assert [layer.blocks for layer in report] == [2, 24, 2]


def test_device_dtype_mode_and_requires_grad_stay(model: Pair) -> None:
    model.to(torch.bfloat16)
    model.first.up.weight.requires_grad_(False)
    model.first.down.eval()
    bias = model.first.up.bias
    bias.requires_grad_(False)
    patcher().patch_model(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.first.up.weight.values.requires_grad
    assert model.first.up.bias is bias
    assert not bias.requires_grad
    assert model.second.up.weight.values.requires_grad
    assert [m.training for m in (model.first.up, model.first.down, model.first)] == [1, 0, 1]
    assert not model.first.down.weight.training


def test_patterns_follow_the_seed(model: Pair) -> None:
    masks = []
    for seed in (1, 1, 2):
        copied = copy.deepcopy(model)
        torch.manual_seed(seed)
        patcher(pattern="random").patch_model(copied)
        masks.append([m.weight.block_mask_build(None) for m in (copied.first.up, copied.second.up)])
    assert torch.equal(masks[0][0], masks[1][0])
    assert torch.equal(masks[0][1], masks[1][1])
    assert not torch.equal(masks[0][0], masks[0][1])
    assert not torch.equal(masks[0][0], masks[2][0])


def test_exclude(model: Pair) -> None:
    report = patcher(".*", exclude=["$", r"(first|second)$", ".*norm", r"second\.up"]).patch_model(
        model
    )
    assert [layer.name for layer in report] == ["first.up", "first.down", "second.down"]
    report = patcher(".*(up|down)", exclude=".*first").patch_model(Pair())
    assert [layer.name for layer in report] == ["second.up", "second.down"]


def test_a_layer_with_two_names_is_replaced_once_and_stays_shared() -> None:
    model = Pair()
    model.second.up = model.first.up
    report = patcher(r"second\.up").patch_model(model)
    assert [layer.name for layer in report] == ["first.up"]
    assert isinstance(model.first.up, BlockSparseLinear)
    assert model.second.up is model.first.up
    model = Pair()
    model.second.up = model.first.up
    with pytest.warns(UserWarning, match="did not patch anything"):
        patcher(r"first\.up", exclude=r"second\.up").patch_model(model)


def test_a_lazy_layer_that_is_not_matched_stays_and_counts_for_nothing_yet() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.LazyLinear(3), nn.LazyBatchNorm1d())
    report = patcher("0").patch_model(model)
    assert (report.parameters_before, report.parameters_after) == (64 * 64 + 64, 32 * 64 + 64)
    assert isinstance(model[0], BlockSparseLinear)
    assert type(model[1]) is nn.LazyLinear
    assert model(torch.randn(4, 64)).shape == (4, 3)
    assert len(patcher("1", block_shape=(1, 16)).patch_model(model)) == 1  # now it has a weight
    with pytest.warns(UserWarning, match="did not patch anything"):
        assert patcher("x").patch_model(nn.Sequential(nn.LazyLinear(3))).parameters_before == 0


def test_containers() -> None:
    model = nn.ModuleDict(
        {"a": nn.Sequential(OrderedDict(x=nn.Linear(32, 32), y=nn.Linear(32, 32)))}
    )
    model["b"] = nn.ModuleList([nn.Linear(32, 32)])
    order = [name for name, _ in model.named_modules()]
    assert len(patcher(r"(a\.[xy]|b\.0)$").patch_model(model)) == 3
    assert [name for name, _ in model.named_modules() if "weight" not in name] == order
    assert isinstance(model["b"][0], BlockSparseLinear)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activation_and_preactivation_reach_the_layer(model: Pair, activation: str) -> None:
    patcher("first.up", activation=activation, preactivation="recompute").patch_model(model)
    assert model.first.up.activation == activation
    assert model.first.up.preactivation == "recompute"


# Densities.


def test_uniform_density_is_that_of_each_layer(model: Pair) -> None:
    report = patcher(density=0.3).patch_model(model)
    assert [layer.blocks for layer in report] == [int(0.3 * 32), int(0.3 * 24)] * 2


def test_erk_shares_one_density_out_over_the_layers_of_a_pattern() -> None:
    model = nn.ModuleDict({"big": nn.Linear(256, 256), "small": nn.Linear(64, 64)})
    model["other"] = nn.Linear(64, 64)
    made = patcher("(big|small)", density=0.4, density_rule="erk")
    made.add_pattern("other", {"density": 0.5, "block_shape": BLOCK})
    report = made.patch_model(model)
    big, small, other = report.layers
    # By hand: (256 + 64) sides share int(0.4 * 272) = 108 blocks, which is 86.4 for the large
    # layer and 21.6 for the small one, of 16; it stays dense and leaves 92.
    assert (big.blocks, small.blocks, other.blocks) == (92, 16, 8)
    assert model["big"].weight.n_blocks == 92


def test_a_density_below_one_block_keeps_one(model: Pair) -> None:
    report = patcher(density=1e-9).patch_model(model)
    assert [layer.blocks for layer in report] == [1] * 4


def test_density_one_is_the_dense_layer(model: Pair) -> None:
    dense = copy.deepcopy(model)
    patcher(density=1.0).patch_model(model)
    assert torch.equal(model.first.down.weight.to_dense(), dense.first.down.weight)


# The report.


def test_report(model: Pair) -> None:
    before = sum(p.numel() for p in model.parameters())
    report = patcher(pattern="balanced").patch_model(model)
    up, down = report.layers[:2]
    assert (up.name, up.shape, up.block_shape) == ("first.up", (128, 64), BLOCK)
    assert (up.blocks, up.total_blocks, up.density) == (16, 32, 0.5)
    assert (up.parameters_before, up.parameters_after) == (128 * 64 + 128, 16 * 256 + 128)
    # 40 rows are two block rows of 16 and one of 8: padding does not count.
    assert model.first.down.weight.block_mask_build(None).sum(1).tolist() == [4, 4, 4]
    assert down.parameters_before == 40 * 128
    assert down.parameters_after == 4 * 256 + 4 * 256 + 4 * 128
    assert report.parameters_before == before
    saved = sum(layer.parameters_before - layer.parameters_after for layer in report)
    assert report.parameters_after == before - saved
    assert len(report) == 4
    assert report.density == 0.5


def test_report_prints_a_table(model: Pair) -> None:
    lines = str(patcher("(first.up|first.down)").patch_model(model)).splitlines()
    assert lines[0].split() == [
        "layer",
        "out",
        "x",
        "in",
        "block",
        "blocks",
        "density",
        "parameters",
    ]
    assert lines[1].startswith("first.up ")
    assert "16 of 32" in lines[1]
    assert "8,320 -> 4,224" in lines[1]
    assert lines[-1].startswith("2 layers patched at density 0.500: ")
    assert len({len(line) for line in lines[:-1]}) == 1
    activated = str(patcher("second.up", activation="gelu").patch_model(model))
    assert activated.splitlines()[0].endswith("activation")
    assert activated.splitlines()[-1].startswith("1 layer patched")


def test_nothing_patched_is_said(model: Pair) -> None:
    before = kinds(model)
    with pytest.warns(UserWarning, match=r"did not patch anything.*'third'"):
        report = patcher("third").patch_model(model)
    assert isinstance(report, PatchReport)
    assert not report
    assert str(report).startswith("no layer patched")
    assert report.density == 1.0
    assert kinds(model) == before
    with pytest.warns(UserWarning, match="did not patch anything"):
        BlockSparseModelPatcher().patch_model(model)


def test_an_idle_pattern_is_said(model: Pair) -> None:
    made = patcher()
    made.add_pattern("fist", {"density": 0.5})
    with pytest.warns(UserWarning, match="pattern 'fist' patched nothing"):
        made.patch_model(model)


def test_patching_is_silent(model: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patcher().patch_model(model)
    assert capfd.readouterr() == ("", "")


# What comes of a patched model.


def test_dense_view_of_a_linear_is_itself(model: Pair) -> None:
    assert dense_view(model.first.up) is model.first.up


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder_in_training_and_eval(activation: str, norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        64, 4, 128, dropout=0.0, batch_first=True, activation=activation, norm_first=norm_first
    )
    nested = {"enable_nested_tensor": not norm_first}
    dense = nn.TransformerEncoder(layer, 2, **nested).double()
    model = copy.deepcopy(dense)
    assert len(patcher(r"layers\.\d\.linear[12]").patch_model(model)) == 4
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, BlockSparseLinear):
                dense.get_submodule(name).weight.copy_(module.weight.to_dense())
    x = torch.randn(3, 7, 64, dtype=torch.float64)
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 4:] = True
    expected = dense(x, src_key_padding_mask=padding)[~padding]
    # Two layers of a handful of sums of at most 128 terms of order 1, normalised in between.
    bound = 1e4 * torch.finfo(torch.float64).eps
    trained = model(x, src_key_padding_mask=padding)[~padding]
    assert (trained - expected).abs().max() <= bound
    trained.sum().backward()
    assert model.layers[0].linear1.weight.values.grad is not None
    model.eval()
    # In eval without gradients torch would take a fused path that reads the dense weights.
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            found = model(x, src_key_padding_mask=padding)
            assert (found[~padding] - expected).abs().max() <= bound


def test_state_dict_round_trip(model: Pair) -> None:
    patcher(pattern="random").patch_model(model)
    again = Pair()
    patcher(pattern="random", density=0.25).patch_model(again)
    again.load_state_dict(model.state_dict())
    x = torch.randn(5, 64)
    assert torch.equal(model.second(x), again.second(x))


def test_a_warning_that_is_an_error_leaves_the_model(model: Pair) -> None:
    made = patcher()
    made.add_pattern("fist", {"density": 0.5})
    before = dict(model.named_modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="fist"):
            made.patch_model(model)
    assert dict(model.named_modules()) == before
