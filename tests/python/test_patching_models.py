# SPDX-License-Identifier: Apache-2.0
"""Patching models of transformers: the sparse model computes what the dense one would with the
same weights, zeros included."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
import transformers
from tiny_models import FAMILIES, Family, masked_twin, one_thread, run, sparse_layers  # noqa: F401
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear, BlockSparseModelPatcher
from pytorch_block_sparse.patching import patcher
from pytorch_block_sparse.patching.activations import FUSIBLE, FusedActivation, activation_name
from pytorch_block_sparse.patching.layers import dense_view, is_conv1d

CONFIG = {"density": 0.5, "block_shape": (16, 16)}


def patch(family: Family, model: nn.Module, *, fuse: bool = False, **config: Any) -> Any:
    made = BlockSparseModelPatcher(fuse_activation=fuse)
    made.add_pattern(family.pattern, {**CONFIG, **config})
    return made.patch_model(model)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm())


def check_as_accurate_as_dense(
    found: Tensor, dense: Tensor, exact: Tensor, what: str, size: float = 0.0
) -> None:
    """At most twice the error of the dense float32 model, and one rounding of each element.

    `size` is the norm of the terms that were summed, where they cancel out.
    """
    rounding = torch.finfo(torch.float32).eps * max(float(exact.norm()), size)
    assert error(found, exact) <= 2 * error(dense, exact) + rounding, what


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_and_gradients_are_those_of_the_masked_dense_model(name: str, fuse: bool) -> None:
    family = FAMILIES[name]
    dense = family.make()
    model = copy.deepcopy(dense)
    # "recompute" is worth a run where there is something to recompute.
    report = patch(family, model, fuse=fuse, preactivation="recompute" if fuse else "save")
    assert len(report) == len(sparse_layers(model)) == family.patched
    assert sum(layer.activation != "none" for layer in report) == (family.mlps if fuse else 0)
    twin = masked_twin(dense, model)
    inputs = family.inputs()
    found_loss, found_logits, found = run(model, inputs)
    loss, logits, grads = run(twin, inputs)
    exact_loss, exact_logits, exact = run(copy.deepcopy(twin).double(), inputs)
    check_as_accurate_as_dense(found_loss, loss, exact_loss, "loss")
    check_as_accurate_as_dense(found_logits, logits, exact_logits, "logits")
    assert found.keys() == grads.keys() == exact.keys()
    layers = sparse_layers(model)
    for key, gradient in found.items():
        # Of a patched weight only the stored blocks have a gradient. Conv1D has (in, out).
        owner = layers.get(key.removesuffix(".weight")) if key.endswith(".weight") else None
        mask: Any = True
        if owner is not None:
            weight = owner.weight
            mask = weight.to_dense(data_replace=torch.ones_like(weight.values)) != 0
            if is_conv1d(twin.get_submodule(key.removesuffix(".weight"))):
                gradient, mask = gradient.T, mask.T
        # The gradient of a bias sums over the tokens what the gradient of the weight sums with
        # factors of order 1. For the keys of attention the exact sum is zero.
        size = float(exact.get(key.removesuffix("bias") + "weight", exact[key]).norm())
        check_as_accurate_as_dense(gradient, grads[key] * mask, exact[key] * mask, key, size)


def test_fusing_changes_no_output_and_leaves_a_stand_in() -> None:
    family = FAMILIES["llama"]
    plain, fused = family.make(), family.make()
    patch(family, plain)
    patch(family, fused, fuse=True)
    mlp = fused.model.layers[0].mlp
    assert isinstance(mlp.act_fn, FusedActivation)
    assert str(mlp.act_fn) == "FusedActivation(silu in gate_proj)"
    assert mlp.gate_proj.activation == "silu"
    assert mlp.up_proj.activation == "none"
    with torch.no_grad():
        exact = copy.deepcopy(plain).double()(**family.inputs()).logits
        check_as_accurate_as_dense(
            fused(**family.inputs()).logits, plain(**family.inputs()).logits, exact, "logits"
        )


def test_fusing_leaves_the_activation_of_an_mlp_that_is_not_patched() -> None:
    model = FAMILIES["bert"].make()
    made = BlockSparseModelPatcher(fuse_activation=True)
    made.add_pattern(r".*layer\.0\.intermediate\.dense|.*output\.dense", CONFIG)
    made.patch_model(model)
    layers = model.bert.encoder.layer
    assert isinstance(layers[0].intermediate.intermediate_act_fn, FusedActivation)
    assert not isinstance(layers[1].intermediate.intermediate_act_fn, FusedActivation)


def test_fusing_a_function() -> None:
    model = FAMILIES["bert"].make()
    mlp = model.bert.encoder.layer[0].intermediate
    del mlp.intermediate_act_fn
    mlp.intermediate_act_fn = torch.nn.functional.gelu
    inputs = FAMILIES["bert"].inputs()
    exact = copy.deepcopy(model).double()(**inputs).logits.detach()
    expected = model(**inputs).logits.detach()
    patch(FAMILIES["bert"], model, fuse=True, density=1.0)
    assert isinstance(mlp.intermediate_act_fn, FusedActivation)
    found = model(**inputs).logits.detach()
    check_as_accurate_as_dense(found, expected, exact, "logits")


def test_an_error_after_fusing_puts_the_function_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["bert"].make()
    mlp = model.bert.encoder.layer[0].intermediate
    del mlp.intermediate_act_fn
    mlp.intermediate_act_fn = torch.nn.functional.gelu
    inputs = FAMILIES["bert"].inputs()
    before, expected = dict(model.named_modules()), model(**inputs).logits
    fused = []

    def fail(model: nn.Module) -> None:
        fused.append(isinstance(mlp.intermediate_act_fn, FusedActivation))
        raise RuntimeError("no")

    monkeypatch.setattr(patcher, "describe_model", fail)
    with pytest.raises(RuntimeError, match=r"^no$"):
        patch(FAMILIES["bert"], model, fuse=True)
    assert fused == [True]
    assert dict(model.named_modules()) == before
    assert mlp.intermediate_act_fn is torch.nn.functional.gelu
    assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("activation", ["quick_gelu", "tanh", "mish"])
def test_an_unknown_activation_is_refused(activation: str) -> None:
    config = FAMILIES["roberta"].config()
    config.hidden_act = activation
    model = transformers.RobertaForMaskedLM(config)
    before = dict(model.named_modules())
    with pytest.raises(
        ValueError, match=r"Cannot fuse the activation of roberta\.encoder\.layer\."
    ):
        patch(FAMILIES["roberta"], model, fuse=True)
    assert dict(model.named_modules()) == before
    assert not hasattr(model.config, "quantization_config")
    patch(FAMILIES["roberta"], model)  # without fusing any activation will do


def test_an_activation_that_is_set_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="says activation='relu' already, expected 'none'"):
        patch(FAMILIES["bert"], FAMILIES["bert"].make(), fuse=True, activation="relu")


def test_an_activation_with_a_hook_is_refused() -> None:
    model = FAMILIES["bert"].make()
    mlp = model.bert.encoder.layer[1].intermediate
    mlp.intermediate_act_fn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"layer\.1\.intermediate: intermediate_act_fn is"):
        patch(FAMILIES["bert"], model, fuse=True)


def test_a_shared_mlp_is_fused_once_and_a_shared_layer_not_at_all() -> None:
    model = FAMILIES["bert"].make()
    layers = model.bert.encoder.layer
    layers[1].intermediate = layers[0].intermediate
    report = patch(FAMILIES["bert"], model, fuse=True)
    assert [layer.activation for layer in report].count("gelu") == 1
    model = FAMILIES["bert"].make()
    layers = model.bert.encoder.layer
    layers[1].intermediate.dense = layers[0].intermediate.dense
    with pytest.raises(ValueError, match="its dense is shared"):
        patch(FAMILIES["bert"], model, fuse=True)


@pytest.mark.parametrize("name", transformers.activations.ACT2FN)
def test_known_activations_compute_the_same(name: str) -> None:
    try:
        function = transformers.activations.ACT2FN[name]
    except (ImportError, TypeError):
        pytest.skip("this activation needs a package that is not there")
    known = activation_name(function)
    if known is None:
        assert name not in ("relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "swish")
        return
    layer = BlockSparseLinear(16, 16, density=1.0, block_shape=16, activation=known).double()
    x = torch.linspace(-6, 6, 320, dtype=torch.float64).view(20, 16)
    with torch.no_grad():
        expected = function(torch.nn.functional.linear(x, layer.weight.to_dense(), layer.bias))
        # "gelu_fast" and "gelu_new" write sqrt(2/pi) with ten digits.
        assert (layer(x) - expected).abs().max() < 1e-9


def test_fusible_classes_exist() -> None:
    models = [
        "bert",
        "roberta",
        "xlm_roberta",
        "camembert",
        "electra",
        "distilbert",
        "gpt2",
        "llama",
        "mistral",
        "gemma",
        "qwen2",
        "qwen3",
        "vit",
        "t5",
    ]
    modules = [importlib.import_module(f"transformers.models.{m}.modeling_{m}") for m in models]
    assert {kind for module in modules for kind in vars(module)} >= FUSIBLE.keys()


# Conv1D.


def test_conv1d_is_a_transposed_linear() -> None:
    conv = transformers.pytorch_utils.Conv1D(48, 32)
    linear = dense_view(conv)
    x = torch.randn(3, 32)
    assert (linear.in_features, linear.out_features) == (32, 48)
    assert (linear(x) - conv(x)).abs().max() < 1e-6
    assert linear.weight.data_ptr() == conv.weight.data_ptr()
    assert linear.bias is conv.bias


# Tied weights.


@pytest.mark.parametrize(
    ("name", "pattern", "others"),
    [
        ("bert", r"cls\.predictions\.decoder", "bert.embeddings.word_embeddings.weight"),
        ("roberta", r"lm_head\.decoder", "roberta.embeddings.word_embeddings.weight"),
        ("gpt2", "lm_head", "transformer.wte.weight"),
        ("t5", "lm_head", "shared.weight"),
    ],
)
def test_a_tied_head_is_refused(name: str, pattern: str, others: str) -> None:
    model = FAMILIES[name].make()
    head = model.get_output_embeddings()
    made = BlockSparseModelPatcher()
    made.add_pattern(pattern, {"density": 0.5})
    with pytest.raises(TypeError, match=rf"its weight is one Parameter with the names .*{others}"):
        made.patch_model(model)
    assert model.get_output_embeddings() is head
    assert head.weight is model.get_input_embeddings().weight
    assert all(entry["layer"] is not head for entry in made.get_patchable_layers(model))


def test_patching_the_rest_keeps_a_tied_head_tied() -> None:
    for name in ("bert", "gpt2", "t5"):
        model = FAMILIES[name].make()
        patch(FAMILIES[name], model)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_an_untied_head_is_patched_and_a_tied_bias_stays_tied() -> None:
    config = FAMILIES["llama"].config()
    assert not config.tie_word_embeddings
    model = transformers.LlamaForCausalLM(config)
    made = BlockSparseModelPatcher()
    made.add_pattern("lm_head", CONFIG)
    assert len(made.patch_model(model)) == 1
    assert isinstance(model.get_output_embeddings(), BlockSparseLinear)
    assert model(**FAMILIES["llama"].inputs()).loss.isfinite()

    head = nn.ModuleDict({"a": nn.Linear(32, 32), "b": nn.Linear(32, 32)})
    head["b"].bias = head["a"].bias
    made = BlockSparseModelPatcher()
    made.add_pattern("[ab]", CONFIG)
    made.patch_model(head)
    assert head["b"].bias is head["a"].bias


def test_readme_example_of_0_1() -> None:
    """84 million parameters become 68 million."""
    config = transformers.RobertaConfig(
        vocab_size=52_000,
        max_position_embeddings=514,
        num_attention_heads=12,
        num_hidden_layers=6,
        type_vocab_size=1,
    )
    with torch.device("meta"):
        model = transformers.RobertaForMaskedLM(config)
    made = BlockSparseModelPatcher()
    made.add_pattern(
        r"roberta\.encoder\.layer\.[0-9]+\.(intermediate\.dense|output\.dense|"
        r"attention\.output\.dense)",
        {"density": 0.5, "pattern": "random"},
    )
    report = made.patch_model(model)
    assert len(report) == 18
    assert round(report.parameters_before / 1e6) == 84
    assert round(report.parameters_after / 1e6) == 68
    assert sum(p.numel() for p in model.parameters()) == report.parameters_after
