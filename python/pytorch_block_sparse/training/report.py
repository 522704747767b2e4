# SPDX-License-Identifier: Apache-2.0
"""What an update of the pattern has changed, as numbers to log."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .layers import GovernedLayer
    from .selection import Change


@dataclasses.dataclass(frozen=True)
class LayerUpdate:
    """One layer after an update.

    Attributes:
        dropped, grown: how many blocks went and came.
        blocks: stored now.
        slots: allocated now.
        total: blocks of the dense weight.
        drift: share of the blocks that were not in the first pattern.
    """

    dropped: int
    grown: int
    blocks: int
    slots: int
    total: int
    drift: float

    @classmethod
    def of(cls, layer: GovernedLayer, change: Change) -> LayerUpdate:
        """Of a layer to which a change was just applied."""
        mask = layer.mask
        return cls(
            dropped=change.drop.numel(),
            grown=change.rows.numel(),
            blocks=layer.matrix.n_blocks,
            slots=layer.matrix.slots,
            total=mask.numel(),
            drift=int((mask & ~layer.first_mask).sum()) / layer.matrix.n_blocks,
        )


@dataclasses.dataclass(frozen=True)
class PatternUpdate:
    """One update: `step`, and for each layer by name what it did."""

    step: int
    layers: dict[str, LayerUpdate]

    def scalars(self) -> dict[str, float]:
        """Flat names and numbers, for TensorBoard or a CSV: `churn` is the share of the blocks that
        are new, over all layers and by layer, likewise `density` and `drift`."""
        blocks = sum(layer.blocks for layer in self.layers.values())
        total = sum(layer.total for layer in self.layers.values())
        grown = sum(layer.grown for layer in self.layers.values())
        drifted = sum(layer.drift * layer.blocks for layer in self.layers.values())
        numbers = {
            "pattern/churn": grown / blocks,
            "pattern/density": blocks / total,
            "pattern/drift": drifted / blocks,
        }
        for name, layer in self.layers.items():
            numbers[f"pattern/churn/{name}"] = layer.grown / layer.blocks
            numbers[f"pattern/density/{name}"] = layer.blocks / layer.total
            numbers[f"pattern/drift/{name}"] = layer.drift
        return numbers
