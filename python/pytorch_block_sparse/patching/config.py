# SPDX-License-Identifier: Apache-2.0
"""What the layers that match one regular expression become."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from .._validation import as_pair, describe
from ..density import DENSITY_RULES, check_density
from ..functional import Activation
from ..pattern import PATTERNS as DRAWN_PATTERNS

Preactivation = Literal["save", "recompute"]

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
PREACTIVATIONS: tuple[Preactivation, ...] = get_args(Preactivation)
PATTERNS = ("magnitude", *DRAWN_PATTERNS)


@dataclasses.dataclass(frozen=True, eq=False)
class LayerConfig:
    """How a matched linear layer is made block-sparse.

    Attributes:
        density: share of the blocks to keep, in (0, 1]; 0.5 when left out. Not given with masks.
        block_shape: (out, in) of a block.
        pattern: "magnitude" keeps the blocks of largest Frobenius norm, which for a fresh layer is
            as good as random; "random", "balanced", "diagonal+random" and "butterfly" draw them
            (see `pattern.draw_pattern`). Or a boolean mask (block rows, block columns), or a
            mapping from layer name to such a mask.
        density_rule: "uniform" gives each matched layer `density`; "erk" shares it out among all
            layers that this configuration matches by the Erdős-Rényi-Kernel rule, so that
            together they hold `density` of their blocks (see `erk_densities`).
        activation: fused into the layer; whoever sets it removes the activation that followed.
            `BlockSparseModelPatcher(fuse_activation=True)` does both.
        preactivation: what training keeps for the gradient of a fused 'gelu', 'gelu_tanh' or
            'silu': "save" keeps its input, as many elements as the output, "recompute" keeps
            nothing and repeats the product in the backward.
        pseudo_linear: makes a dense layer with a mask instead: the same outputs, no saving.
    """

    density: float | None = None
    block_shape: tuple[int, int] = (32, 32)
    pattern: str | torch.Tensor | Mapping[str, torch.Tensor] = "magnitude"
    density_rule: str = "uniform"
    activation: Activation = "none"
    preactivation: Preactivation = "save"
    pseudo_linear: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_shape", as_pair(self.block_shape, "block_shape"))
        if isinstance(self.pattern, str):
            _check_choice("pattern", self.pattern, PATTERNS)
            density = 0.5 if self.density is None else self.density
            check_density(density)
            object.__setattr__(self, "density", float(density))
        else:
            self._check_masks()
        _check_choice("density_rule", self.density_rule, DENSITY_RULES)
        _check_choice("activation", self.activation, ACTIVATIONS)
        _check_choice("preactivation", self.preactivation, PREACTIVATIONS)
        if not isinstance(self.pseudo_linear, bool):
            raise TypeError(f"pseudo_linear is {self.pseudo_linear!r}, expected True or False")

    def _check_masks(self) -> None:
        masks = self.pattern.values() if isinstance(self.pattern, Mapping) else [self.pattern]
        for mask in masks:
            if not isinstance(mask, torch.Tensor):
                raise TypeError(
                    f"pattern is {describe(mask)}, expected one of {', '.join(PATTERNS)}, a "
                    "boolean mask of blocks, or a mapping from layer name to such a mask"
                )
        if self.density is not None or self.density_rule != "uniform":
            raise ValueError(
                "density and density_rule are given together with a mask as pattern, "
                "expected neither: the mask says which blocks are kept"
            )

    @classmethod
    def of(cls, value: LayerConfig | Mapping[str, Any]) -> LayerConfig:
        """Takes a `LayerConfig` as it is, or makes one from a dict like 0.1's `{"density": d}`."""
        if isinstance(value, LayerConfig):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(
                f"the configuration of a pattern is {value!r}, "
                'expected a dict such as {"density": 0.5} or a LayerConfig'
            )
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in value if key not in known]
        if unknown:
            raise ValueError(
                f"the configuration of a pattern has the unknown key {unknown[0]!r}, "
                f"expected keys among {', '.join(known)}"
            )
        return cls(**value)

    def mask_for(self, name: str) -> torch.Tensor | None:
        """The mask given for layer `name`; None where the pattern is drawn by name."""
        if isinstance(self.pattern, str):
            return None
        if isinstance(self.pattern, torch.Tensor):
            return self.pattern
        if name not in self.pattern:
            raise ValueError(
                f"Cannot patch {name}: pattern maps {len(self.pattern)} layer names to masks, "
                "and this one is not among them"
            )
        return self.pattern[name]


def _check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} is {value!r}, expected one of {', '.join(choices)}")
