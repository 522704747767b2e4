# SPDX-License-Identifier: Apache-2.0
"""Fusing the activation of an MLP into the block-sparse layer before it.

Only in modules whose forward is known: the activation is called once, right on the output of the
linear layer. After fusing, the layer computes it and `FusedActivation` stands in its place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..functional import Activation

# Class of transformers.models -> (linear layer, activation that is applied to its output).
_ENCODER = ("dense", "intermediate_act_fn")
_GATED = ("gate_proj", "act_fn")
FUSIBLE = {
    "BertIntermediate": _ENCODER,
    "RobertaIntermediate": _ENCODER,
    "XLMRobertaIntermediate": _ENCODER,
    "CamembertIntermediate": _ENCODER,
    "ElectraIntermediate": _ENCODER,
    "FFN": ("lin1", "activation"),  # DistilBERT
    "GPT2MLP": ("c_fc", "act"),
    "LlamaMLP": _GATED,
    "MistralMLP": _GATED,
    "GemmaMLP": _GATED,
    "Qwen2MLP": _GATED,
    "Qwen3MLP": _GATED,
    "ViTMLP": ("fc1", "activation_fn"),
    "T5DenseActDense": ("wi", "act"),
    "T5DenseGatedActDense": ("wi_0", "act"),
}

# Class of transformers.activations -> what computes the same function here.
_BY_CLASS: dict[str, Activation] = {
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "SiLUActivation": "silu",
    "LinearActivation": "none",
}
_FUNCTIONS: dict[Any, Activation] = {
    torch.relu: "relu",
    nn.functional.relu: "relu",
    nn.functional.gelu: "gelu",
    nn.functional.silu: "silu",
}


class FusedActivation(nn.Module):
    """Stands where an activation was that the layer before it computes now: the identity.

    Args:
        activation: what the layer computes.
        layer: the attribute of the parent module that holds the layer.
    """

    def __init__(self, activation: Activation, layer: str) -> None:
        super().__init__()
        self.activation = activation
        self.layer = layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns `input`, of any shape, as it is."""
        return input

    def extra_repr(self) -> str:
        """The activation and the layer that computes it."""
        return f"{self.activation} in {self.layer}"


def fusible(parent: nn.Module) -> tuple[str, str] | None:
    """Attributes (linear layer, activation) of an MLP whose activation can be fused, or None."""
    kind = type(parent)
    if not kind.__module__.startswith("transformers.models."):
        return None
    return FUSIBLE.get(kind.__name__)


def activation_name(function: Any) -> Activation | None:
    """What `BlockSparseLinear` calls the activation `function`; None if it can't compute it."""
    if isinstance(function, FusedActivation):
        return function.activation
    if isinstance(function, nn.Module):
        if function._forward_hooks or function._forward_pre_hooks:
            return None
        kind = type(function)
        if kind is nn.ReLU:
            return "relu"
        if kind is nn.SiLU:
            return "silu"
        if kind is nn.GELU:
            return "gelu_tanh" if function.approximate == "tanh" else "gelu"
        return (
            _BY_CLASS.get(kind.__name__) if kind.__module__ == "transformers.activations" else None
        )
    try:
        return _FUNCTIONS.get(function)
    except TypeError:  # not hashable, so none of ours
        return None
