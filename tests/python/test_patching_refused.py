# SPDX-License-Identifier: Apache-2.0
"""What the patcher refuses: the model is as it was after each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_models import BLOCK, Mlp, Pair, pair, patcher  # noqa: F401
from torch import nn

from pytorch_block_sparse import (
    BlockSparseLinear,
    BlockSparseModelPatcher,
    LayerConfig,
)


class Shouting(nn.Linear):
    """A Linear with its own ways."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


def _tied() -> nn.Module:
    model = nn.ModuleDict({"embedding": nn.Embedding(64, 32), "head": nn.Linear(32, 64)})
    model["head"].weight = model["embedding"].weight
    return model


def _parametrized() -> nn.Module:
    return nn.ModuleDict({"head": nn.utils.parametrizations.weight_norm(nn.Linear(32, 64))})


def _integer() -> nn.Module:
    model = nn.ModuleDict({"head": nn.Linear(32, 64)})
    weight = nn.Parameter(torch.zeros(64, 32, dtype=torch.int8), requires_grad=False)
    model["head"].weight = weight
    return model


def _float8() -> nn.Module:
    return nn.ModuleDict({"head": nn.Linear(32, 64).to(torch.float8_e4m3fn)})


def _sparse() -> nn.Module:
    return nn.ModuleDict({"head": BlockSparseLinear(32, 64)})


def _of(module: nn.Module) -> Any:
    return lambda: nn.ModuleDict({"head": module})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_of(nn.LayerNorm(3)), r"^Cannot patch head: this is not a Linear layer: LayerNorm$"),
        (_of(nn.Bilinear(3, 4, 5)), "Cannot patch head: this is not a Linear layer"),
        (_of(nn.LazyLinear(3)), "^Cannot patch head: it is a LazyLinear, which the first forward"),
        (_of(nn.LazyConv1d(3, 1)), "Cannot patch head: this is not a Linear layer: LazyConv1d$"),
        (_of(Shouting(32, 32)), "Cannot patch head: .*Shouting is a subclass of Linear"),
        (
            _tied,
            "Cannot patch head: its weight is one Parameter with the names "
            "embedding.weight and head.weight",
        ),
        (_parametrized, "Cannot patch head: .*subclass of Linear"),
        (_integer, "Cannot patch head: its weight is torch.int8, expected float32, float64, bf"),
        (_float8, "Cannot patch head: its weight is torch.float8_e4m3fn, expected float32"),
        (_sparse, "Cannot patch head: it is block-sparse already"),
    ],
)
def test_layers_that_cannot_be_patched(make: Any, message: str) -> None:
    model = make()
    before = dict(model.named_modules())
    with pytest.raises(TypeError, match=message):
        patcher("head$").patch_model(model)
    assert dict(model.named_modules()) == before
    head = model["head"]
    assert all(entry["layer"] is not head for entry in patcher().get_patchable_layers(model))


@pytest.mark.parametrize(
    "kind", ["forward", "forward_pre", "backward", "full_backward", "full_backward_pre"]
)
def test_a_layer_with_a_hook_is_refused(model: Pair, kind: str) -> None:
    getattr(model.first.up, f"register_{kind}_hook")(lambda *_: None)
    up = model.first.up
    with pytest.raises(TypeError, match=r"^Cannot patch first.up: it has hooks, which would be lo"):
        patcher().patch_model(model)
    assert model.first.up is up
    assert type(model.second.down) is nn.Linear


def test_a_layer_that_accelerate_placed_is_refused(model: Pair) -> None:
    model.first.up._hf_hook = object()
    with pytest.raises(TypeError, match=r"^Cannot patch first.up: it has hooks, which would be lo"):
        patcher().patch_model(model)


@pytest.mark.parametrize("model", [nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 32))])
def test_the_model_itself_is_refused(model: nn.Module) -> None:
    kind = type(model).__name__
    sentence = rf"^Cannot patch the model itself, a {kind}, which pattern '\.\*' matches: expected"
    with pytest.raises(TypeError, match=sentence):
        patcher(".*").patch_model(model)
    with pytest.raises(TypeError, match=r"^model is None \(NoneType\), expected a torch.nn.Module"):
        patcher().patch_model(None)  # type: ignore[arg-type]


def test_a_model_in_ddp_is_refused(model: Pair) -> None:
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module = module

    with pytest.raises(TypeError, match=r"wrapped in DistributedDataParallel.*patch the model"):
        patcher().patch_model(Wrapped(model))


def test_multihead_attention_out_proj_is_refused() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(32, 4)})
    with pytest.raises(TypeError, match=r"attention.out_proj: it is the out_proj of a torch\.nn\."):
        patcher(".*out_proj").patch_model(model)
    assert patcher().get_patchable_layers(model) == []


MASK = torch.ones(8, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"density": 0}, ValueError, r"density is 0, expected a number above 0 and at most 1"),
        ({"density": 1.5}, ValueError, r"density is 1.5, expected"),
        ({"density": "half"}, ValueError, r"density is 'half', expected"),
        ({"block_shape": (0, 16)}, ValueError, r"block_shape is"),
        ({"block_shape": (16, 16, 16)}, ValueError, r"block_shape is"),
        ({"pattern": "stripes"}, ValueError, r"pattern is 'stripes', expected one of magnitude"),
        ({"pattern": 3}, TypeError, r"pattern is 3.*expected one of"),
        ({"pattern": {"up": [True]}}, TypeError, r"pattern is \[True\]"),
        ({"pattern": MASK, "density": 0.5}, ValueError, r"density .*with a mask"),
        ({"pattern": MASK, "density_rule": "erk"}, ValueError, r"density_rule .*with a mask"),
        ({"density_rule": "fair"}, ValueError, r"density_rule is 'fair', expected one of uniform"),
        ({"activation": "tanh"}, ValueError, r"activation is 'tanh', expected one of none"),
        ({"preactivation": "drop"}, ValueError, r"preactivation is 'drop', expected one of save"),
        ({"pseudo_linear": 1}, TypeError, r"pseudo_linear is 1, expected True or False"),
        ({"densty": 0.5}, ValueError, r"unknown key 'densty', expected keys among density,"),
        (0.5, TypeError, r'is 0.5, expected a dict such as \{"density": 0.5\} or a LayerConfig'),
    ],
)
def test_bad_configurations(config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BlockSparseModelPatcher().add_pattern("x", config)


def test_bad_regular_expressions() -> None:
    with pytest.raises(ValueError, match=r"pattern '\(' is not a regular expression: missing"):
        patcher("(")
    with pytest.raises(ValueError, match=r"exclude '\[' is not a regular expression"):
        BlockSparseModelPatcher(exclude=["["])
    with pytest.raises(TypeError, match=r"pattern is None, expected a regular expression"):
        BlockSparseModelPatcher().add_pattern(None, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pattern": MASK.T}, r"Cannot patch second.up: pattern is .*\(4, 8\).*\(8, 4\)"),
        ({"pattern": MASK.int()}, r"Cannot patch second.up: pattern is a torch.int32"),
        ({"pattern": ~MASK}, r"Cannot patch second.up: pattern has no block set"),
        ({"pattern": {"first.up": MASK}}, r"Cannot patch second.up: .*not among them"),
        (
            {"pattern": "diagonal+random", "density": 0.01},
            r"^Cannot patch second.up: block_count is 1, expected at least",
        ),
    ],
)
def test_an_error_in_one_layer_leaves_all_as_they_were(
    model: Pair, config: dict[str, Any], message: str
) -> None:
    made = BlockSparseModelPatcher()
    made.add_pattern(r"first\.up", {"density": 0.5})
    made.add_pattern(r"second\.up", {"block_shape": BLOCK, **config})
    before = dict(model.named_modules())
    with pytest.raises((TypeError, ValueError), match=message):
        made.patch_model(model)
    assert dict(model.named_modules()) == before


def test_an_error_while_replacing_puts_the_layers_back(model: Pair) -> None:
    class Stubborn(Mlp):
        def __setattr__(self, name: str, value: Any) -> None:
            if isinstance(value, BlockSparseLinear):
                raise RuntimeError("no")
            super().__setattr__(name, value)

    model.second = Stubborn()
    before = list(model.named_modules())
    with pytest.raises(RuntimeError, match="no"):
        patcher().patch_model(model)
    assert list(model.named_modules()) == before


def test_meta_model() -> None:
    with torch.device("meta"):
        model = Pair()
    with pytest.raises(ValueError, match="pattern is 'magnitude', but the weight is on the meta"):
        patcher().patch_model(model)
    for pattern in ("random", MASK):
        config = LayerConfig(block_shape=BLOCK, pattern=pattern, pseudo_linear=True)
        pseudo = BlockSparseModelPatcher()
        pseudo.add_pattern(r"first\.up", config)
        with pytest.raises(ValueError, match=r"^Cannot patch first.up: pseudo_linear is True, but"):
            pseudo.patch_model(model)
    patcher(pattern="random").patch_model(model)
    assert model.first.up.weight.values.is_meta
    with pytest.raises(RuntimeError, match=r"on the meta device; give it memory with to_empty"):
        model.first.up.weight.to_dense()
    model.to_empty(device=torch.get_default_device())
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert model.first(torch.randn(2, 64)).shape == (2, 40)
