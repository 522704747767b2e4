# SPDX-License-Identifier: Apache-2.0
"""What the demo shows at the end: a table, two pictures and the same figures as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws into files, needs no display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from rich.table import Table

from .training import PHASES, Twin

COLORS = {"dense": "tab:gray", "sparse": "tab:blue"}


def figures(twin: Twin) -> dict[str, Any]:
    """Everything measured of one twin, ready for JSON."""
    return {
        "parameters": twin.parameters(),
        "training_bytes": twin.training_bytes(),
        "median_ms": {phase: twin.median_ms(phase) for phase in PHASES}
        | {"step": twin.median_ms()},
        "training_losses": twin.losses,
        "held_out": [vars(score) for score in twin.scores],
    }


def table(dense: Twin, sparse: Twin, title: str) -> Table:
    """One line a measure: dense, sparse, and how many times smaller sparse is."""
    result = Table(title=title, title_justify="left")
    result.add_column("")
    for heading in ("dense", "sparse", "dense / sparse"):
        result.add_column(heading, justify="right")

    def add(name: str, a: float, b: float, form: str, ratio: bool = True) -> None:
        result.add_row(name, form.format(a), form.format(b), f"{a / b:.2f}" if ratio else "")

    add("parameters, millions", dense.parameters() / 1e6, sparse.parameters() / 1e6, "{:.2f}")
    add(
        "parameters + gradients + optimizer state, MB",
        dense.training_bytes() / 1e6,
        sparse.training_bytes() / 1e6,
        "{:.1f}",
    )
    for phase in PHASES:
        add(f"{phase}, ms (median)", dense.median_ms(phase), sparse.median_ms(phase), "{:.1f}")
    add("whole step, ms (median)", dense.median_ms(), sparse.median_ms(), "{:.1f}")
    a, b = dense.scores[-1], sparse.scores[-1]
    add("held-out loss, nats a masked token", a.loss, b.loss, "{:.3f}", ratio=False)
    add("held-out masked accuracy", a.accuracy, b.accuracy, "{:.1%}", ratio=False)
    return result


def draw_losses(twins: list[Twin], unigram_entropy: float, path: Path) -> None:
    """Training losses, faint, and held-out losses over the steps."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for twin in twins:
        color = COLORS[twin.name]
        axes.plot(range(1, len(twin.losses) + 1), twin.losses, color=color, alpha=0.25)
        axes.plot(
            [score.step for score in twin.scores],
            [score.loss for score in twin.scores],
            color=color,
            marker="o",
            markersize=3,
            label=f"{twin.name}, held-out ({twin.parameters() / 1e6:.2f}M parameters)",
        )
    axes.axhline(unigram_entropy, color="black", linestyle="--", label="unigram entropy")
    axes.set(xlabel="step", ylabel="nats a masked token", title="Masked language model loss")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_patterns(layers: dict[str, Any], path: Path) -> None:
    """The stored blocks of every `BlockSparseLinear` of `layers`, one small picture each."""
    columns = min(6, len(layers))
    rows = -(-len(layers) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.4 * columns, 2.8 * rows), layout="constrained", squeeze=False
    )
    spots: list[Axes] = list(grid.flat)
    for axes in spots:
        axes.set_axis_off()
    for axes, (name, layer) in zip(spots, layers.items(), strict=False):
        mask = layer.weight.block_mask_build(None).cpu()
        axes.imshow(mask, cmap="Blues", vmin=0, vmax=1.3, interpolation="nearest")
        short = name.replace("roberta.encoder.layer.", "").replace(".dense", "")
        shape = "×".join(map(str, (layer.out_features, layer.in_features)))
        axes.set_title(f"{short}\n{shape}, {mask.float().mean():.0%}", fontsize=8)
    height, width = next(iter(layers.values())).block_shape
    figure.suptitle(f"Stored blocks of {height}×{width}")
    figure.savefig(path, dpi=120)
    plt.close(figure)
