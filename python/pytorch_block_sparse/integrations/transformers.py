# SPDX-License-Identifier: Apache-2.0
"""Saving and loading block-sparse models with transformers.

A saved model says in its `config.json`, under `quantization_config`, which layers are block-sparse
and of what shape. `from_pretrained` asks the quantizer below to put such layers, still without
memory, into the fresh model before it reads the weights, and to check them afterwards. Nothing is
quantized; the mechanism is merely the one that transformers offers to replace layers on loading.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .._slots import SAVED_INDEX
from ..block_sparse_linear import BlockSparseLinear, PseudoBlockSparseLinear
from ..density import block_grid, density_of
from ..functional import Activation
from ..patching.activations import FusedActivation, activation_name, fusible
from ..patching.config import ACTIVATIONS, PREACTIVATIONS, Preactivation
from ..patching.layers import is_conv1d

if TYPE_CHECKING:  # not at run time: this module may be imported in the midst of transformers
    from transformers import PreTrainedModel

METHOD = "block_sparse"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class SavedLayer:
    """What `config.json` says of one block-sparse layer.

    Attributes:
        shape: (out_features, in_features).
        block: (out, in) of a block.
        slots: blocks that `values` has room for.
        bias: whether there is a bias.
        activation: fused into the layer.
        preactivation: "save" or "recompute": what training keeps of it.
        fused: whether that activation was taken from the MLP that the layer is in.
        pseudo: a dense weight with a mask of elements, `PseudoBlockSparseLinear`.
    """

    shape: tuple[int, int]
    block: tuple[int, int]
    slots: int
    bias: bool
    activation: Activation = "none"
    preactivation: Preactivation = "save"
    fused: bool = False
    pseudo: bool = False

    @classmethod
    def of(cls, name: str, entry: object) -> SavedLayer:
        """Checks the entry of layer `name`, as read from JSON.

        Raises:
            ValueError: in one sentence, if it is not what `json` makes of a `SavedLayer`.
        """
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"quantization_config: layer {name!r} is {entry!r}, expected a JSON object"
            )
        for key, value in entry.items():
            valid, expected = _CHECKS.get(key, (None, ""))
            if valid is None:
                raise ValueError(
                    f"quantization_config: layer {name!r} has the unknown key {key!r}, expected "
                    f"keys among {', '.join(_CHECKS)}"
                )
            if not valid(value):
                raise ValueError(
                    f"quantization_config: {key} of layer {name!r} is {value!r}, expected "
                    f"{expected}"
                )
        missing = [key for key in ("shape", "block", "slots", "bias") if key not in entry]
        if missing:
            raise ValueError(f"quantization_config: layer {name!r} lacks {', '.join(missing)}")
        pairs = {key: tuple(entry[key]) for key in ("shape", "block")}
        return cls(**{**entry, **pairs})


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_pair(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_count, value))


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "shape": (_is_pair, "two positive integers"),
    "block": (_is_pair, "two positive integers"),
    "slots": (_is_count, "a positive integer"),
    "bias": (_is_bool, "true or false"),
    "activation": (lambda value: value in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    "preactivation": (lambda value: value in PREACTIVATIONS, " or ".join(PREACTIVATIONS)),
    "fused": (_is_bool, "true or false"),
    "pseudo": (_is_bool, "true or false"),
}


class BlockSparseConfig(QuantizationConfigMixin):
    """The `quantization_config` of a block-sparse model.

    Made for a model, it describes that model's layers as they are whenever it is asked, so that
    what is saved is right also after a layer has changed. Read from a file, it describes what the
    file says. A copy describes the copied model when the two are copied together.

    Args:
        layers: name of each layer -> what `SavedLayer` holds.
        format_version: version of this format.
        quant_method: "block_sparse".
    """

    def __init__(
        self,
        layers: Mapping[str, Any],
        format_version: int = FORMAT_VERSION,
        quant_method: str = METHOD,
        **unknown: Any,
    ) -> None:
        if quant_method != METHOD:
            raise ValueError(f"quant_method is {quant_method!r}, expected {METHOD!r}")
        if format_version != FORMAT_VERSION:
            raise ValueError(
                f"quantization_config: format_version is {format_version!r}, expected "
                f"{FORMAT_VERSION}: a newer pytorch-block-sparse is needed to load this model"
            )
        if unknown:
            raise ValueError(f"quantization_config: unknown key {next(iter(unknown))!r}")
        if not isinstance(layers, Mapping):
            raise ValueError(
                f"quantization_config: layers is {layers!r}, expected an object of layer names"
            )
        self.quant_method = METHOD  # type: ignore[assignment]  # the base lists its own methods
        self._saved = {name: SavedLayer.of(name, entry) for name, entry in layers.items()}
        self._model: weakref.ref[PreTrainedModel] | None = None

    @classmethod
    def for_model(cls, model: PreTrainedModel) -> BlockSparseConfig:
        """A configuration that always describes `model` as it is."""
        config = cls({})
        config._model = weakref.ref(model)
        return config

    @property
    def layers(self) -> dict[str, SavedLayer]:
        """Name of each block-sparse layer -> what has to be known to build it."""
        model = None if self._model is None else self._model()
        if model is not None:
            self._saved = saved_layers(model)
        return self._saved

    def describes(self, model: nn.Module) -> bool:
        """Whether this configuration was made for `model`."""
        return self._model is not None and self._model() is model

    def get(self, key: str, default: Any = None) -> Any:
        """Like `dict.get`: transformers asks so, since a configuration from a file is a dict."""
        return self.to_dict().get(key, default)

    def to_dict(self) -> dict[str, Any]:
        """What is written to `config.json`."""
        layers = {name: dataclasses.asdict(layer) for name, layer in self.layers.items()}
        return {"quant_method": METHOD, "format_version": FORMAT_VERSION, "layers": layers}

    def __iter__(self) -> Any:
        yield from self.to_dict().items()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockSparseConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockSparseConfig:
        copied = type(self)({})
        copied._saved = dict(self.layers)
        model = None if self._model is None else self._model()
        # deepcopy(model) has put the new, still empty model into memo before it comes here.
        if model is not None and id(model) in memo:
            copied._model = weakref.ref(memo[id(model)])
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {"quant_method": METHOD, "_saved": self.layers, "_model": None}


def saved_layers(model: nn.Module) -> dict[str, SavedLayer]:
    """What has to be known to build the block-sparse layers of `model` again, by name."""
    fused = {
        (parent, child.layer)
        for parent in model.modules()
        for child in parent.children()
        if isinstance(child, FusedActivation)
    }
    layers = {}
    for name, module in model.named_modules():
        if not isinstance(module, (BlockSparseLinear, PseudoBlockSparseLinear)):
            continue
        parent, _, attribute = name.rpartition(".")
        layer = SavedLayer(
            shape=(module.out_features, module.in_features),
            block=(1, 1),
            slots=1,
            bias=module.bias is not None,
            activation=module.activation,
            fused=(model.get_submodule(parent), attribute) in fused,
            pseudo=isinstance(module, PseudoBlockSparseLinear),
        )
        if isinstance(module, BlockSparseLinear):
            layer = dataclasses.replace(
                layer,
                block=module.block_shape,
                slots=module.weight.slots,
                preactivation=module.preactivation,
            )
        layers[name] = layer
    return layers


def build_layers(model: PreTrainedModel, layers: Mapping[str, SavedLayer]) -> list[str]:
    """Puts block-sparse layers without a pattern into `model`, in place of its dense ones.

    Names may lack or have in excess the prefix of the base model, as they do when a headless model
    is loaded from the file of one with a head. Layers of parts that `model` lacks are left out,
    unless the file was saved from the very class of `model`.

    Returns:
        Names of the layers in `model`.

    Raises:
        ValueError: if `model` has no such layer, or it is not a linear layer of that shape.
    """
    modules = dict(model.named_modules())
    built = []
    for saved_name, layer in layers.items():
        name = _resolve(saved_name, modules, model.base_model_prefix)
        if name is None:
            if type(model).__name__ in (model.config.architectures or []):
                raise ValueError(
                    f"quantization_config: layer {saved_name!r} is not in {type(model).__name__}"
                )
            continue
        parent_name, _, attribute = name.rpartition(".")
        setattr(modules[parent_name], attribute, _empty_layer(saved_name, modules[name], layer))
        if layer.fused:
            _fuse_activation(saved_name, modules[parent_name], attribute, layer.activation)
        built.append(name)
    return built


def _resolve(name: str, modules: Mapping[str, nn.Module], prefix: str) -> str | None:
    for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if candidate and candidate in modules:
            return candidate
    return None


def _empty_layer(name: str, dense: nn.Module, layer: SavedLayer) -> nn.Module:
    weight = getattr(dense, "weight", None)
    if isinstance(dense, nn.Linear):
        shape = (dense.out_features, dense.in_features)
    elif is_conv1d(dense) and weight is not None:
        shape = (weight.shape[1], weight.shape[0])
    else:
        raise ValueError(
            f"quantization_config: layer {name!r} is not a Linear layer: {type(dense).__name__}"
        )
    if shape != layer.shape or weight is None:
        raise ValueError(
            f"quantization_config: shape of layer {name!r} is {layer.shape}, expected {shape} "
            "as in the model"
        )
    blocks = math.prod(block_grid(layer.shape, layer.block))
    sparse = BlockSparseLinear(
        layer.shape[1],
        layer.shape[0],
        layer.bias,
        density_of(layer.slots, blocks),
        block_shape=layer.block,
        activation=layer.activation,
        preactivation=layer.preactivation,
        slots=layer.slots,
        # The mask of a pseudo-sparse layer is taken from a pattern, which only a real layer has.
        device="cpu" if layer.pseudo else "meta",
        dtype=weight.dtype,
        generator=torch.Generator("cpu"),
    )
    return PseudoBlockSparseLinear(sparse).to("meta") if layer.pseudo else sparse


def _fuse_activation(name: str, parent: nn.Module, attribute: str, activation: Activation) -> None:
    """Removes the activation behind a layer, if it is the one that the layer computes."""
    found = fusible(parent)
    if found is None or found[0] != attribute:
        raise ValueError(
            f"quantization_config: layer {name!r} says fused, but the activation after it in "
            f"{type(parent).__name__} is not known"
        )
    own = activation_name(getattr(parent, found[1]))
    if own != activation:
        raise ValueError(
            f"quantization_config: activation of layer {name!r} is {activation!r}, expected "
            f"{own!r} as in the model"
        )
    setattr(parent, found[1], FusedActivation(activation, attribute))


class BlockSparseQuantizer(HfQuantizer):
    """Builds the block-sparse layers of a model that `from_pretrained` loads, and checks them."""

    quantization_config: BlockSparseConfig

    def __init__(self, quantization_config: BlockSparseConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # Name of each layer that was built -> the shape of each of its tensors.
        self._built: dict[str, dict[str, torch.Size]] = {}

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuses to make a dense model sparse while it is loaded."""
        if not self.pre_quantized:
            raise ValueError(
                "quantization_config is a BlockSparseConfig, but the saved model is dense: load it "
                "without quantization_config, then use BlockSparseModelPatcher"
            )

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        names = build_layers(model, self.quantization_config.layers)
        _refuse_mixed_dtypes(model, names)
        self._built = {
            name: {key: t.shape for key, t in model.get_submodule(name).state_dict().items()}
            for name in names
        }
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        for name, shapes in self._built.items():
            _finish_loading(name, model.get_submodule(name), shapes)
        # An ordinary model from here on: nothing in it is quantized, so nothing that transformers
        # refuses to quantized models (`half()`, training, a compiled Trainer) need be refused.
        for name in ("hf_quantizer", "quantization_method", "is_quantized"):
            model.__dict__.pop(name, None)
        for module in model.modules():
            config: Any = getattr(module, "config", None)
            if hasattr(config, "_is_quantized"):
                del config._is_quantized
        model.config.quantization_config = BlockSparseConfig.for_model(model)
        return model

    def is_serializable(self) -> bool:
        """Whether `save_pretrained` may be called."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the model may be trained."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether all of its weights may be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether `torch.compile` may be used."""
        return True


def _refuse_mixed_dtypes(model: PreTrainedModel, names: list[str]) -> None:
    """T5 keeps `wo` in float32 when all else is float16, and casts x only for a dense weight."""
    kept: set[str] = set()
    if model.dtype == torch.float16:
        kept.update(model._keep_in_fp32_modules or ())
    if model.dtype in (torch.float16, torch.bfloat16):
        kept.update(model._keep_in_fp32_modules_strict or ())
    for name in names:
        part = next((part for part in kept if part in name.split(".")), None)
        if part is not None:
            raise ValueError(
                f"dtype is {model.dtype}, in which {type(model).__name__} keeps {part} in "
                f"float32, but {name} is block-sparse and needs one dtype: load in float32 or "
                "bfloat16"
            )


def _finish_loading(name: str, layer: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """Checks that everything of a layer was read, and that its pattern is valid."""
    for key, tensor in layer.state_dict(keep_vars=True).items():
        if tensor.is_meta:
            raise ValueError(
                f"device_map offloads {name}.{key}, expected a device for each block-sparse layer: "
                "accelerate can't fetch their weights when they are needed"
            )
        # Not every version of transformers compares the shapes of what it reads.
        if not getattr(tensor, "_is_hf_initialized", False) or tensor.shape != shapes[key]:
            raise ValueError(
                f"the saved weights lack {name}.{key}, or have it in another shape than {name} of "
                "quantization_config"
            )
    if isinstance(layer, BlockSparseLinear):
        # transformers 5.0 casts everything below T5's `wo` to float32, also what is not floating.
        for key in SAVED_INDEX:
            index = getattr(layer.weight, key)
            if index.is_floating_point():
                setattr(layer.weight, key, index.to(torch.int32))
        try:
            layer.weight.refresh()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"the saved pattern of {name} is not valid: {error}") from error


def describe(model: PreTrainedModel) -> None:
    """Makes `model.config.quantization_config` describe the block-sparse layers of `model`.

    The configuration is copied first: a dense twin may have been made from the same object. A
    model without such layers is left alone.
    """
    own = getattr(model.config, "quantization_config", None)
    if (isinstance(own, BlockSparseConfig) and own.describes(model)) or not saved_layers(model):
        return
    copies: dict[int, Any] = {}  # old configuration, by id, -> new one, nested ones too
    config = copy.deepcopy(model.config, copies)
    for module in model.modules():
        new = copies.get(id(module.__dict__.get("config")))
        if new is not None:
            module.config = new
    config.quantization_config = BlockSparseConfig.for_model(model)


def foreign_method(model: PreTrainedModel) -> str | None:
    """The quantization method of `model`, if it is another one than ours."""
    config = getattr(model.config, "quantization_config", None)
    if config is None or isinstance(config, BlockSparseConfig):
        return None
    method = config.get("quant_method") if isinstance(config, Mapping) else config.quant_method
    return None if method == METHOD else str(getattr(method, "value", method))


# Here and not in a function that others call: when this module is imported before transformers, it
# is not complete yet when transformers has been, and only its own end is the right moment.
AUTO_QUANTIZER_MAPPING[METHOD] = BlockSparseQuantizer
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = BlockSparseConfig
