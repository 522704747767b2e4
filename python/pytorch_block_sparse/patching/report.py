# SPDX-License-Identifier: Apache-2.0
"""What a call of `patch_model` changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class PatchedLayer:
    """One replaced layer. Parameters count elements of weight and bias, without padding."""

    name: str
    shape: tuple[int, int]
    block_shape: tuple[int, int]
    blocks: int
    total_blocks: int
    parameters_before: int
    parameters_after: int
    activation: str = "none"
    pseudo_linear: bool = False

    @property
    def density(self) -> float:
        """Share of the blocks that are stored."""
        return self.blocks / self.total_blocks


@dataclasses.dataclass(frozen=True)
class PatchReport:
    """The replaced layers, and the parameters of the whole model before and after.

    Prints as a table. It is false when nothing was patched. Parameters that lazy layers have not
    made yet do not count.
    """

    layers: tuple[PatchedLayer, ...]
    parameters_before: int
    parameters_after: int

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[PatchedLayer]:
        return iter(self.layers)

    @property
    def density(self) -> float:
        """Share of the blocks of all replaced layers that are stored; 1 when there are none."""
        total = sum(layer.total_blocks for layer in self.layers)
        return sum(layer.blocks for layer in self.layers) / total if total else 1.0

    def __str__(self) -> str:
        if not self.layers:
            return f"no layer patched, {self.parameters_before:,} parameters"
        rows: list[tuple[str, ...]] = [
            ("layer", "out x in", "block", "blocks", "density", "parameters", "activation")
        ]
        rows += [_row(layer) for layer in self.layers]
        if all(layer.activation == "none" for layer in self.layers):
            rows = [row[:-1] for row in rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        count = f"{len(self.layers)} layer{'s' if len(self.layers) > 1 else ''} patched"
        lines.append(
            f"{count} at density {self.density:.3f}: "
            f"{self.parameters_before:,} -> {self.parameters_after:,} parameters in the model"
        )
        return "\n".join(lines)


def _row(layer: PatchedLayer) -> tuple[str, ...]:
    return (
        layer.name,
        f"{layer.shape[0]} x {layer.shape[1]}",
        f"{layer.block_shape[0]}x{layer.block_shape[1]}" + (" pseudo" * layer.pseudo_linear),
        f"{layer.blocks} of {layer.total_blocks}",
        f"{layer.density:.3f}",
        f"{layer.parameters_before:,} -> {layer.parameters_after:,}",
        layer.activation,
    )
