# SPDX-License-Identifier: Apache-2.0
"""Saving block-sparse models with transformers and loading them again."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import FAMILIES, Family, one_thread, sparse_layers  # noqa: F401
from torch import nn

from pytorch_block_sparse import BlockSparseModelPatcher, PseudoBlockSparseLinear
from pytorch_block_sparse.integrations import register
from pytorch_block_sparse.integrations._post_import import when_imported
from pytorch_block_sparse.integrations.transformers import BlockSparseConfig, BlockSparseQuantizer

ROBERTA = FAMILIES["roberta"]
ROBERTA_CLASS = transformers.RobertaForMaskedLM


def patched(
    family: Family = ROBERTA, *, fuse: bool = False, pattern: str = "", **config: Any
) -> Any:
    model = family.make()
    made = BlockSparseModelPatcher(fuse_activation=fuse)
    made.add_pattern(pattern or family.pattern, {"density": 0.5, "block_shape": (16, 16), **config})
    made.patch_model(model)
    return model


@torch.no_grad()
def logits(model: Any, family: Family = ROBERTA) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    inputs = family.inputs()
    return model(  # type: ignore[no-any-return]
        **{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    ).logits


@pytest.fixture
def no_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails a test in which transformers logs a warning or Python warns."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    logger.removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


# From a file and back.


@pytest.mark.usefixtures("no_log")
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip_is_exact(name: str, fuse: bool, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = patched(family, fuse=fuse)
    model.config.loss_type = None if name == "gpt2" else getattr(model.config, "loss_type", None)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[key], loaded[key]) for key in state)
    assert str(again) == str(model)
    assert torch.equal(logits(again, family), logits(model, family))


SCRIPT = """
import sys
{imports}
import torch
device = sys.argv[3]
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1]).eval().to(device)
with torch.no_grad():
    torch.save(model(torch.arange(5, 29, device=device).view(2, 12)).logits, sys.argv[2])
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import pytorch_block_sparse; from transformers import AutoModelForMaskedLM",
        "from transformers import AutoModelForMaskedLM, BertModel; import pytorch_block_sparse",
    ],
)
def test_a_new_process_gives_the_same_logits_without_a_warning(
    imports: str, tmp_path: Path, device: str
) -> None:
    model = patched(fuse=True)
    model.save_pretrained(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(imports=imports), "model", "logits.pt", device],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model(torch.arange(5, 29).view(2, 12)).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
    assert done.stdout == ""
    # Progress bars apart, nothing was written.
    lines = done.stderr.replace("\r", "\n").splitlines()
    assert [line for line in lines if line and "Loading weights" not in line] == []


def test_shards(tmp_path: Path) -> None:
    model = patched()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(ROBERTA_CLASS.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize("device_map", [None, "named", "auto"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, "auto"])
def test_dtype_and_device_map(dtype: Any, device_map: Any, device: str, tmp_path: Path) -> None:
    model = patched()
    model.save_pretrained(tmp_path)
    where = device if device_map == "named" else device_map
    loaded = ROBERTA_CLASS.from_pretrained(tmp_path, dtype=dtype, device_map=where)
    expected = torch.float32 if dtype == "auto" else dtype
    assert {p.dtype for p in loaded.parameters()} == {expected}
    for layer in sparse_layers(loaded).values():
        assert layer.weight.crow_indices.dtype == torch.int32
        assert layer.weight.has_pattern
    assert torch.equal(logits(loaded), logits(model.to(expected)))


def test_other_heads_and_the_base_model(tmp_path: Path) -> None:
    pattern = r"(roberta\.)?encoder\..*\.dense|lm_head\.dense"
    model = patched(pattern=pattern)
    model.save_pretrained(tmp_path / "head")
    base = transformers.RobertaModel.from_pretrained(tmp_path / "head", add_pooling_layer=False)
    assert sparse_layers(base).keys() == {
        name.removeprefix("roberta.") for name in sparse_layers(model) if "lm_head" not in name
    }
    inputs = ROBERTA.inputs()["input_ids"]
    with torch.no_grad():
        hidden = model.roberta(inputs).last_hidden_state
        assert torch.equal(base(inputs).last_hidden_state, hidden)
    base.save_pretrained(tmp_path / "base")
    saved = json.loads((tmp_path / "base" / "config.json").read_text())["quantization_config"]
    assert saved["layers"].keys() == sparse_layers(base).keys()
    task = transformers.RobertaForSequenceClassification.from_pretrained(tmp_path / "base")
    assert sparse_layers(task).keys() == {f"roberta.{name}" for name in sparse_layers(base)}
    with torch.no_grad():
        assert torch.equal(task.roberta(inputs).last_hidden_state, hidden)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_generation(name: str, tmp_path: Path) -> None:
    model = patched(FAMILIES[name], fuse=True)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    inputs = FAMILIES[name].inputs()["input_ids"]
    options: Any = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(again.generate(inputs, **options), model.generate(inputs, **options))


def test_pseudo_linear(tmp_path: Path) -> None:
    model = patched(pseudo_linear=True, fuse=True)
    model.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    again = ROBERTA_CLASS.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    layer = again.roberta.encoder.layer[0].intermediate.dense
    assert isinstance(layer, PseudoBlockSparseLinear)
    assert layer.activation == "gelu"
    assert torch.equal(logits(again), logits(model))


def test_a_model_is_ordinary_after_loading(tmp_path: Path) -> None:
    patched().save_pretrained(tmp_path)
    model = ROBERTA_CLASS.from_pretrained(tmp_path)
    assert not getattr(model, "is_quantized", False)
    assert getattr(model, "hf_quantizer", None) is None
    expected = logits(model)
    model.half().float()
    assert (logits(model) - expected).abs().max() < 0.05
    model.train()
    assert all(p.requires_grad for p in model.parameters())


def test_saving_again_and_patching_more(tmp_path: Path) -> None:
    patched(pattern=r".*intermediate\.dense").save_pretrained(tmp_path / "1")
    model = ROBERTA_CLASS.from_pretrained(tmp_path / "1")
    made = BlockSparseModelPatcher()
    made.add_pattern(r".*\.query", {"density": 0.25, "block_shape": (8, 8)})
    made.patch_model(model)
    model.save_pretrained(tmp_path / "2")
    again = ROBERTA_CLASS.from_pretrained(tmp_path / "2")
    assert len(sparse_layers(again)) == 4
    assert torch.equal(logits(again), logits(model))


def test_what_is_saved_describes_the_layers_as_they_are(tmp_path: Path) -> None:
    model = patched(pattern=r".*layer\.0\.intermediate\.dense")
    layer = model.roberta.encoder.layer[0].intermediate.dense
    other = patched(pattern=r".*layer\.0\.intermediate\.dense", density=0.25)
    assert layer.weight.slots == 16
    model.load_state_dict(other.state_dict())
    assert layer.weight.slots == 8
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved == {
        "quant_method": "block_sparse",
        "format_version": 1,
        "layers": {
            "roberta.encoder.layer.0.intermediate.dense": {
                "shape": [128, 64],
                "block": [16, 16],
                "slots": 8,
                "bias": True,
                "activation": "none",
                "preactivation": "save",
                "fused": False,
                "pseudo": False,
            }
        },
    }
    assert torch.equal(logits(ROBERTA_CLASS.from_pretrained(tmp_path)), logits(other))


def test_spare_slots_and_moved_blocks(tmp_path: Path) -> None:
    model = patched(pattern=r".*layer\.0\.intermediate\.dense")
    matrix = model.roberta.encoder.layer[0].intermediate.dense.weight
    moved = matrix.build_coo_block_index().T.tolist()
    mask = matrix.block_mask_build(None)
    free = (~mask).nonzero()[0].tolist()
    matrix.block_replace(torch.tensor([[*free, 3]]))
    assert matrix.build_coo_block_index().T.tolist() != moved
    model.save_pretrained(tmp_path)
    again = ROBERTA_CLASS.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))


# The configuration.


def test_a_dense_twin_made_from_the_same_configuration_stays_dense(tmp_path: Path) -> None:
    config = ROBERTA.config()
    dense, model = ROBERTA_CLASS(config), ROBERTA_CLASS(config)
    assert dense.config is model.config
    made = BlockSparseModelPatcher()
    made.add_pattern(ROBERTA.pattern, {"density": 0.5})
    made.patch_model(model)
    assert not hasattr(dense.config, "quantization_config")
    assert model.config is model.roberta.config is model.roberta.encoder.config is not config
    dense.save_pretrained(tmp_path)
    assert sparse_layers(ROBERTA_CLASS.from_pretrained(tmp_path)) == {}


def test_copies_of_a_model_describe_themselves() -> None:
    model = patched(pattern=r".*layer\.0\.intermediate\.dense")
    copied = copy.deepcopy(model)
    pickled = pickle.loads(pickle.dumps(model))
    alone = copy.deepcopy(model.config)
    name = "roberta.encoder.layer.0.intermediate.dense"
    smaller = patched(pattern=r".*layer\.0\.intermediate\.dense", density=0.25)
    copied.load_state_dict(smaller.state_dict())
    assert copied.config.quantization_config.layers[name].slots == 8
    for config in (model.config, alone, pickled.config):
        assert config.quantization_config.layers[name].slots == 16
    assert alone.quantization_config == model.config.quantization_config
    assert copied.config.quantization_config != model.config.quantization_config
    assert dict(alone.quantization_config)["quant_method"] == "block_sparse"
    del model
    assert alone.quantization_config.layers[name].slots == 16


def test_loading_with_the_configuration_of_a_model(tmp_path: Path) -> None:
    model = patched()
    model.save_pretrained(tmp_path)
    again = ROBERTA_CLASS.from_pretrained(tmp_path, config=model.config)
    assert torch.equal(logits(again), logits(model))


def test_a_part_of_a_model() -> None:
    holder = nn.ModuleDict({"left": ROBERTA.make(), "right": FAMILIES["bert"].make()})
    made = BlockSparseModelPatcher()
    made.add_pattern(r"left\..*intermediate\.dense", {"density": 0.5})
    made.patch_model(holder)
    assert len(holder["left"].config.quantization_config.layers) == 2
    assert not hasattr(holder["right"].config, "quantization_config")


def test_another_quantization_is_refused() -> None:
    model = ROBERTA.make()
    model.config.quantization_config = {"quant_method": "fp8"}
    made = BlockSparseModelPatcher()
    made.add_pattern(ROBERTA.pattern, {"density": 0.5})
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match="RobertaForMaskedLM is quantized with fp8, expected"):
        made.patch_model(model)
    assert dict(model.named_modules()) == before


def test_the_quantizer_says_what_it_may() -> None:
    quantizer = BlockSparseQuantizer(BlockSparseConfig({}))
    assert quantizer.is_serializable()
    assert quantizer.is_trainable
    assert quantizer.is_qat_trainable
    assert quantizer.is_compileable
    assert (
        transformers.quantizers.auto.AUTO_QUANTIZER_MAPPING["block_sparse"] is BlockSparseQuantizer
    )
    register()  # once more does no harm


# Importing.


def test_importing_does_not_import_transformers() -> None:
    code = (
        "import sys, pytorch_block_sparse\n"
        "heavy = {'transformers', 'accelerate', 'matplotlib', 'safetensors'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable package `later_package` with a module `late`."""
    folder = tmp_path / "later_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "late.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield folder
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.startswith("later_package")]:
        del sys.modules[name]


def test_an_action_runs_after_the_import(package: Path) -> None:
    seen: list[int] = []
    finders = list(sys.meta_path)
    when_imported(
        "later_package.late", lambda: seen.append(sys.modules["later_package.late"].value)
    )
    importlib.import_module("later_package")
    assert seen == []
    late = importlib.import_module("later_package.late")
    assert seen == [1]
    assert sys.meta_path == finders
    assert type(late.__loader__).__name__ == "SourceFileLoader"
    assert late.__spec__ is not None
    assert late.__spec__.loader is late.__loader__
    when_imported("later_package.late", lambda: seen.append(2))
    assert seen == [1, 2]


def test_an_action_waits_for_an_import_that_works(package: Path) -> None:
    seen: list[int] = []
    (package / "late.py").write_text("raise RuntimeError('not yet')\n")
    when_imported("later_package.late", lambda: seen.append(1))
    with pytest.raises(RuntimeError, match="not yet"):
        importlib.import_module("later_package.late")
    assert seen == []
    (package / "late.py").write_text("value = 'longer than before'\n")
    importlib.import_module("later_package.late")
    assert seen == [1]


def test_a_failing_action_is_a_warning(package: Path) -> None:
    when_imported("later_package.late", lambda: 1 / 0)
    with pytest.warns(
        UserWarning, match=r"could not register itself with later_package\.late: div"
    ):
        late = importlib.import_module("later_package.late")
    assert late.value == 1


def test_a_module_that_is_not_there(package: Path) -> None:
    when_imported("later_package.never", lambda: None)
    with pytest.raises(ModuleNotFoundError, match=r"later_package\.never"):
        importlib.import_module("later_package.never")
