# SPDX-License-Identifier: Apache-2.0
"""What other libraries need to know of block-sparse layers, told to them only when they are used.

Nothing here imports transformers by itself: importing it takes seconds, and many do without.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from torch import nn

from ._post_import import when_imported

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def register() -> None:
    """Teaches transformers to load block-sparse models, now or once it is imported.

    `from_pretrained` looks a saved `quantization_config` up in a table of
    `transformers.quantizers.auto`. If that module is loaded, our entries are added at once, else
    right after it has been executed, which every model class of transformers causes.
    """
    when_imported("transformers.quantizers.auto", _register_quantizer)


def _register_quantizer() -> None:
    importlib.import_module(".transformers", __package__)  # which registers


def describe_model(model: nn.Module) -> None:
    """Writes `config.quantization_config` of the transformers models in `model`, if there are any.

    So that `save_pretrained` says which layers are block-sparse, and of what shape.
    """
    for part in _transformers_models(model):
        from .transformers import describe

        describe(part)


def foreign_quantization(model: nn.Module) -> str | None:
    """A sentence if a transformers model in `model` is quantized by another method, else None."""
    for part in _transformers_models(model):
        from .transformers import foreign_method

        method = foreign_method(part)
        if method is not None:
            return (
                f"{type(part).__name__} is quantized with {method}, expected a model in "
                "floating point"
            )
    return None


def _transformers_models(model: nn.Module) -> list[PreTrainedModel]:
    """The outermost transformers models in `model`; none if transformers is not loaded."""
    library = sys.modules.get("transformers.modeling_utils")
    kind = getattr(library, "PreTrainedModel", None)
    if kind is None:
        return []
    found: list[PreTrainedModel] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, kind) and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found
