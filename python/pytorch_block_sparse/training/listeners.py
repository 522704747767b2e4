# SPDX-License-Identifier: Apache-2.0
"""What can be told of each update of the pattern: a CSV, TensorBoard, pictures."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .report import PatternUpdate

if TYPE_CHECKING:
    from .layers import GovernedLayer

#: Called after each update, with the layers as they are then.
Listener = Callable[[PatternUpdate, Sequence["GovernedLayer"]], None]


class CsvLog:
    """A line for each update in a file: the step, and what `PatternUpdate.scalars` says.

    A run that goes on from a checkpoint goes on in the file: lines of later steps, which come
    again, are taken out.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._begun = False

    def __call__(self, update: PatternUpdate, layers: Sequence[GovernedLayer]) -> None:
        """Adds the line."""
        line = {"step": update.step, **update.scalars()}
        if not self._begun:
            self._begin(line)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, list(line)).writerow(line)

    def _begin(self, line: dict[str, Any]) -> None:
        before: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames is not None and list(reader.fieldnames) != list(line):
                    raise ValueError(
                        f"{self.path} is a table of other columns, expected a new file or one of "
                        f"the same layers, with {', '.join(line)}"
                    )
                before = [row for row in reader if int(row["step"]) < line["step"]]
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(line))
            writer.writeheader()
            writer.writerows(before)
        self._begun = True


class TensorBoardLog:
    """What `PatternUpdate.scalars` says, by step.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`, or what has its `add_scalar`.
    """

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def __call__(self, update: PatternUpdate, layers: Sequence[GovernedLayer]) -> None:
        """Adds the scalars."""
        for name, number in update.scalars().items():
            self.writer.add_scalar(name, number, update.step)


class PatternFilm:
    """The pattern of layers over time, to be drawn.

    Args:
        layers: regular expression that their names must match from the beginning; all if None.

    Attributes:
        frames: for each layer, (step, (R, C) bool) of the first pattern and after each update.
    """

    def __init__(self, layers: str | None = None) -> None:
        self.layers = layers
        self.frames: dict[str, list[tuple[int, Tensor]]] = {}

    def __call__(self, update: PatternUpdate, layers: Sequence[GovernedLayer]) -> None:
        """Takes a frame of each layer."""
        for layer in layers:
            if self.layers is None or re.match(self.layers, layer.name):
                frames = self.frames.setdefault(layer.name, [(0, layer.first_mask.clone())])
                frames.append((update.step, layer.mask.clone()))

    def figure(self, panels: int = 6) -> Any:
        """A row for each layer, of so many patterns over time and one of their ages.

        In a pattern, blocks that were there at the beginning are dark, others light. The age is
        the step since which a block has been stored.

        Returns:
            A `matplotlib.figure.Figure`: `figure.savefig("pattern.png")`.

        Raises:
            ValueError: if there was no update.
        """
        from matplotlib.figure import Figure

        if not self.frames:
            raise ValueError("no update was seen, expected one at least before a figure is drawn")
        rows = len(self.frames)
        figure = Figure(figsize=(1.8 * (panels + 1) + 0.6, 1.9 * rows + 0.4), layout="constrained")
        axes = figure.subplots(rows, panels + 1, squeeze=False)
        for row, (name, frames) in zip(axes, self.frames.items(), strict=True):
            last = len(frames) - 1
            first = frames[0][1]
            for i, axis in enumerate(row[:-1]):
                step, mask = frames[round(i * last / max(1, panels - 1))]
                axis.imshow(
                    (mask.float() * (2 - (first & mask).float())).numpy(),
                    cmap=_colors(),
                    vmin=0,
                    vmax=2,
                    interpolation="nearest",
                )
                axis.set_title(f"step {step}", fontsize=9)
            row[0].set_ylabel(name, fontsize=8)
            image = row[-1].imshow(ages(frames).numpy(), cmap="viridis", interpolation="nearest")
            row[-1].set_title("stored since", fontsize=9)
            figure.colorbar(image, ax=row[-1], shrink=0.8)
            for axis in row:
                axis.set_xticks([])
                axis.set_yticks([])
        return figure


def ages(frames: Sequence[tuple[int, Tensor]]) -> Tensor:
    """(R, C): the step since which each block has been stored; nan where none is."""
    step, mask = frames[0]
    since = mask.double().mul(step).masked_fill(~mask, float("nan"))
    for step, mask in frames[1:]:
        since = since.masked_fill(~mask, float("nan"))
        since = since.masked_fill(mask & since.isnan(), step)
    return since


def _colors() -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap(["#f4f4f4", "#1f3b57", "#e08a3c"])  # none, from the beginning, grown
