# SPDX-License-Identifier: Apache-2.0
"""Damaged files and configurations: one sentence each, never a crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_transformers import ROBERTA, ROBERTA_CLASS, logits, patched
from tiny_models import FAMILIES, one_thread  # noqa: F401

from pytorch_block_sparse.integrations.transformers import BlockSparseConfig

pytestmark = pytest.mark.host

LAYER = "roberta.encoder.layer.0.intermediate.dense"
PATTERN = r".*layer\.0\.intermediate\.dense"
ENTRY = {"shape": [128, 64], "block": [16, 16], "slots": 16, "bias": True}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    patched(pattern=PATTERN, fuse=True).save_pretrained(tmp_path)
    return tmp_path


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path, {"format": "pt"})


def edit_entry(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    layer = config["quantization_config"]["layers"][LAYER]
    for key, value in changes.items():
        if value is None:
            del layer[key]
        else:
            layer[key] = value
    path.write_text(json.dumps(config))


# The weights.


@pytest.mark.parametrize(
    ("key", "position", "value", "message"),
    [
        ("crow_indices", 0, 1, "crow_indices"),
        ("crow_indices", -1, 17, "crow_indices"),
        ("crow_indices", 3, 2**31 - 1, "crow_indices"),
        ("crow_indices", 3, -1, "crow_indices"),
        ("col_indices", 0, 4, "col_indices"),
        ("col_indices", 0, -1, "col_indices"),
        ("block_ids", 0, 16, "block_ids"),
        ("block_ids", 0, 1, "block_ids"),
    ],
)
def test_a_bad_index(saved: Path, key: str, position: int, value: int, message: str) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        state[f"{LAYER}.weight.{key}"][position] = value

    edit_weights(saved, spoil)
    with pytest.raises(
        ValueError, match=rf"the saved pattern of {LAYER} is not valid: .*{message}"
    ):
        ROBERTA_CLASS.from_pretrained(saved)


def test_unsorted_and_repeated_columns(saved: Path) -> None:
    key = f"{LAYER}.weight.col_indices"

    def repeat(state: dict[str, torch.Tensor]) -> None:
        crow = state[f"{LAYER}.weight.crow_indices"]
        row = int((crow.diff() >= 2).nonzero()[0])
        start = int(crow[row])
        state[key][start + 1] = state[key][start]

    edit_weights(saved, repeat)
    with pytest.raises(ValueError, match=f"the saved pattern of {LAYER} is not valid"):
        ROBERTA_CLASS.from_pretrained(saved)


@pytest.mark.parametrize(
    "key", ["weight.values", "weight.crow_indices", "weight.block_ids", "bias"]
)
def test_a_tensor_that_is_not_there(saved: Path, key: str) -> None:
    edit_weights(saved, lambda state: state.pop(f"{LAYER}.{key}"))
    with pytest.raises(ValueError, match=f"the saved weights lack {LAYER}.{key}"):
        ROBERTA_CLASS.from_pretrained(saved)


@pytest.mark.parametrize("key", ["weight.values", "bias"])
@pytest.mark.parametrize("change", [lambda t: t[:8], lambda t: t[..., :8]], ids=["first", "last"])
def test_a_tensor_of_another_shape(saved: Path, key: str, change: Callable[[Any], Any]) -> None:
    key = f"{LAYER}.{key}"
    edit_weights(saved, lambda state: state.update({key: change(state[key]).clone()}))
    ours = f"the saved weights lack {key}, or have it in another shape than {LAYER} of quant"
    # transformers has a message of its own, but not in every version and for every tensor.
    with pytest.raises((RuntimeError, ValueError), match=f"mismatch|{ours}"):
        ROBERTA_CLASS.from_pretrained(saved)
    with pytest.raises(ValueError, match=ours):
        ROBERTA_CLASS.from_pretrained(saved, ignore_mismatched_sizes=True)


def test_an_index_of_another_dtype(saved: Path) -> None:
    key = f"{LAYER}.weight.col_indices"
    edit_weights(saved, lambda state: state.update({key: state[key].long()}))
    with pytest.raises(ValueError, match=rf"{LAYER} is not valid: col_indices is a torch\.int64"):
        ROBERTA_CLASS.from_pretrained(saved)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file(saved: Path, share: float) -> None:
    path = saved / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(Exception, match=r"(?i)header|incomplete|invalid|too small|deserializ"):
        ROBERTA_CLASS.from_pretrained(saved)


indices = st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 17)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 8)), indices, max_size=4))
def test_any_index_loads_or_is_refused(saved: Path, changes: dict[tuple[int, int], int]) -> None:
    original = load_file(saved / "model.safetensors")
    keys = ("crow_indices", "col_indices", "block_ids")

    def spoil(state: dict[str, torch.Tensor]) -> None:
        for (which, position), value in changes.items():
            state[f"{LAYER}.weight.{keys[which]}"][position] = value

    edit_weights(saved, spoil)
    try:
        model = ROBERTA_CLASS.from_pretrained(saved)
    except ValueError as error:
        model, message = None, str(error)
    assert logits(model).isfinite().all() if model else "is not valid" in message
    save_file(original, saved / "model.safetensors", {"format": "pt"})


def test_offloaded_layers(saved: Path) -> None:
    places = {"roberta.embeddings": "cpu", "roberta.encoder": "disk", "lm_head": "cpu"}
    with pytest.raises(ValueError, match=rf"device_map offloads {LAYER}\..*, expected a device"):
        ROBERTA_CLASS.from_pretrained(saved, device_map=places, offload_folder=saved / "offload")


# The configuration.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [64, 128]}, r"shape of layer '.*' is \(64, 128\), expected \(128, 64\)"),
        ({"shape": [128]}, r"shape of layer '.*' is \[128\], expected two positive integers"),
        ({"shape": [128, "64"]}, "shape of layer .* expected two positive integers"),
        ({"block": [0, 16]}, r"block of layer '.*' is \[0, 16\], expected two positive integers"),
        ({"block": 16}, "block of layer .* is 16, expected two positive integers"),
        ({"slots": 0}, "slots of layer .* is 0, expected a positive integer"),
        ({"slots": True}, "slots of layer .* is True, expected a positive integer"),
        ({"slots": 2**31}, "slots is 2147483648"),
        ({"bias": 1}, "bias of layer .* is 1, expected true or false"),
        ({"bias": None}, "layer .* lacks bias"),
        ({"slots": None, "block": None}, "layer .* lacks block, slots"),
        ({"activation": "tanh"}, "activation of layer .* is 'tanh', expected one of none, relu"),
        ({"activation": ["gelu"]}, r"activation of layer .* is \['gelu'\], expected one of"),
        ({"activation": "silu"}, "activation of layer .* is 'silu', expected 'gelu' as in the"),
        ({"preactivation": "x"}, "preactivation of layer .* is 'x', expected save or recompute"),
        ({"fused": "yes"}, "fused of layer .* is 'yes', expected true or false"),
        ({"colour": "red"}, "layer .* has the unknown key 'colour'"),
    ],
)
def test_a_bad_entry(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit_entry(saved, **changes)
    with pytest.raises(ValueError, match=message):
        ROBERTA_CLASS.from_pretrained(saved)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("roberta.encoder.layer.7.output.dense", "layer 'roberta.encoder.layer.7.* is not in Rob"),
        ("roberta.encoder.layer.0", "layer 'roberta.encoder.layer.0' is not a Linear layer"),
        ("roberta.embeddings.word_embeddings", "is not a Linear layer: Embedding"),
        ("", "layer '' is not in RobertaForMaskedLM"),
    ],
)
def test_a_bad_name(saved: Path, name: str, message: str) -> None:
    path = saved / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["layers"] = {name: ENTRY}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        ROBERTA_CLASS.from_pretrained(saved)


def test_fused_where_no_activation_is_known(tmp_path: Path) -> None:
    patched(pattern=r".*layer\.0\.output\.dense").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["layers"]["roberta.encoder.layer.0.output.dense"]["fused"] = True
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"says fused, but the activation after .* RobertaOutput"):
        ROBERTA_CLASS.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers": [LAYER]}, r"layers is \['roberta.*expected an object"),
        ({"layers": {LAYER: 3}}, "is 3, expected a JSON object"),
        ({"layers": {}, "format_version": 2}, "format_version is 2, expected 1: a newer"),
        ({"layers": {}, "bits": 4}, "unknown key 'bits'"),
        ({"layers": {}, "quant_method": "fp8"}, "quant_method is 'fp8', expected 'block_sparse'"),
    ],
)
def test_a_bad_configuration(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockSparseConfig(**config)


def test_a_dense_model_is_not_made_sparse_by_loading(tmp_path: Path) -> None:
    ROBERTA.make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the saved model is dense: .*BlockSparseModelPatcher"):
        ROBERTA_CLASS.from_pretrained(
            tmp_path, quantization_config=BlockSparseConfig({LAYER: ENTRY})
        )


def test_t5_in_float16_needs_a_dense_wo(tmp_path: Path) -> None:
    kind = transformers.T5ForConditionalGeneration
    patched(FAMILIES["t5"]).save_pretrained(tmp_path / "wo")
    with pytest.raises(ValueError, match=r"dtype is torch.float16, .*keeps wo in float32"):
        kind.from_pretrained(tmp_path / "wo", dtype=torch.float16)
    assert kind.from_pretrained(tmp_path / "wo", dtype=torch.bfloat16).dtype == torch.bfloat16
    patched(FAMILIES["t5"], pattern=r".*\.wi").save_pretrained(tmp_path / "wi")
    model = kind.from_pretrained(tmp_path / "wi", dtype=torch.float16)
    assert logits(model, FAMILIES["t5"]).isfinite().all()
