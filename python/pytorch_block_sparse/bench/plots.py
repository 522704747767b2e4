# SPDX-License-Identifier: Apache-2.0
"""Pictures of what was measured: speed-up against density, and the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws into files, needs no display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, NullLocator

from .contenders import DENSE, OURS
from .problems import PRODUCTS
from .report import peers_in

_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
_STYLES = ("--", ":", "-.", (0, (1, 4)), (0, (5, 1, 1, 1, 1, 1)))


def draw(rows: list[dict[str, Any]], about: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the pictures that the rows give into `folder`; which."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    even = [row for row in rows if row["pattern"] == "even"]
    layers = dict.fromkeys((r["in_features"], r["out_features"], r["tokens"]) for r in even)
    for in_features, out_features, tokens in layers:
        some = [
            row
            for row in even
            if (row["in_features"], row["out_features"], row["tokens"])
            == (in_features, out_features, tokens)
        ]
        if len({row["density"] for row in some}) > 1:
            path = folder / f"speedup-{in_features}x{out_features}-T{tokens}.png"
            _save(_speedup(some, about), path)
            written.append(path)
    products = [row for row in even if row["product"] != PRODUCTS[-1]]
    if products:
        path = folder / "roofline.png"
        _save(_roofline(products, about), path)
        written.append(path)
    return written


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _blocks(rows: list[dict[str, Any]]) -> dict[tuple[int, int], str]:
    """The block shapes of the rows, each with a color."""
    shapes = sorted({(row["block_height"], row["block_width"]) for row in rows}, reverse=True)
    return {shape: _COLORS[i % len(_COLORS)] for i, shape in enumerate(shapes)}


def _where(about: dict[str, Any]) -> str:
    machine = about.get("gpu") or f"{about['threads']} threads of {about['cpu']}"
    return f"{machine}, {about['dtype']}, {about['date']}"


def _speedup(rows: list[dict[str, Any]], about: dict[str, Any]) -> Figure:
    """One plot a product: ratio over density; a color a block size, a line style a contender."""
    products = [p for p in PRODUCTS if any(row["product"] == p for row in rows)]
    figure, grid = plt.subplots(
        1, len(products), figsize=(4.8 * len(products), 5), layout="constrained", squeeze=False
    )
    first = rows[0]
    figure.suptitle(
        f"{first['in_features']}→{first['out_features']}, {first['tokens']} tokens: "
        f"nn.Linear's time / the contender's time\n{_where(about)}"
    )
    colors = _blocks(rows)
    styles = dict(zip((OURS, *peers_in(rows)), ("-", *_STYLES), strict=False))
    for axes, product in zip(grid.flat, products, strict=True):
        _product(axes, [row for row in rows if row["product"] == product], colors, styles)
        axes.set_title(product)
    lines = [
        Line2D([], [], color="lightgray", lw=4, label="1 / density"),
        Line2D([], [], color="black", lw=1, label=DENSE),
        *(Line2D([], [], color="gray", ls=style, label=name) for name, style in styles.items()),
        *(Line2D([], [], color=c, label=f"{h}×{w}") for (h, w), c in colors.items()),
    ]
    if any(row["goal"] is not None for row in rows):
        lines.append(Line2D([], [], color="gray", ls="", marker="_", ms=14, mew=2, label="goal"))
    figure.legend(handles=lines, loc="outside right upper", fontsize=8)
    return figure


def _product(
    axes: Axes,
    rows: list[dict[str, Any]],
    colors: dict[tuple[int, int], str],
    styles: dict[str, Any],
) -> None:
    densities = sorted({row["density"] for row in rows})
    axes.plot(densities, [1 / d for d in densities], color="lightgray", lw=4)
    axes.axhline(1, color="black", lw=1)
    for (height, width), color in colors.items():
        block = [r for r in rows if (r["block_height"], r["block_width"]) == (height, width)]
        for name, style in styles.items():
            points = sorted((r["density"], r["ratio"][name]) for r in block if name in r["ratio"])
            ours = name == OURS
            axes.plot(
                [density for density, _ in points],
                [ratio for _, ratio in points],
                color=color,
                linestyle=style,
                marker="o" if ours else ".",
                lw=2 if ours else 1,
            )
        goals = [(row["density"], row["goal"]) for row in block if row["goal"] is not None]
        axes.plot(
            [d for d, _ in goals], [goal for _, goal in goals], "_", color=color, ms=14, mew=2
        )
    axes.set(xscale="log", yscale="log", xlabel="density")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(densities, [f"{d:g}" for d in densities])
    _plain_numbers(axes.yaxis)
    axes.grid(alpha=0.3)


def _plain_numbers(axis: Axis) -> None:
    """1, 2, 5, 10, … instead of powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def _roofline(rows: list[dict[str, Any]], about: dict[str, Any]) -> Figure:
    """Useful flops a second over useful flops a byte, below what copying and multiplying reach.

    The roof is the peak of the processor where it was measured, else the best of nn.Linear.
    """
    bandwidth = about["copy_bytes_per_second"]
    dense = max(_dense_gflops(row) for row in rows) / 1e3
    peak = about.get("flops_per_second", 0) / 1e12 or dense
    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    intensity = [
        row["useful_gflops"] * row["milliseconds"][OURS] * 1e6 / row["bytes"] for row in rows
    ]
    ends = (min(intensity) / 2, max(*intensity, 2 * peak * 1e12 / bandwidth))
    ridge = peak * 1e12 / bandwidth
    roof = sorted({ends[0], min(max(ridge, ends[0]), ends[1]), ends[1]})
    axes.plot(
        roof,
        [min(peak, i * bandwidth / 1e12) for i in roof],
        color="black",
        label=f"copy {bandwidth / 1e9:.0f} GB/s, "
        + (f"nn.Linear {dense:.3g} TF/s" if peak == dense else f"peak {peak:.3g} TF/s"),
    )
    if peak != dense:
        axes.axhline(dense, color="black", lw=1, ls=":", label=f"nn.Linear {dense:.3g} TF/s")
    markers = dict(zip(PRODUCTS, "ovs", strict=False))
    blocks = _blocks(rows)
    shown = set()
    for row, at in zip(rows, intensity, strict=True):
        shape = (row["block_height"], row["block_width"])
        label = f"{shape[0]}×{shape[1]}, {row['product']}"
        axes.plot(
            at,
            row["useful_gflops"] / 1e3,
            markers[row["product"]],
            color=blocks[shape],
            alpha=0.7,
            label=None if label in shown else label,
        )
        shown.add(label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="useful flop a byte that must be moved",
        ylabel="useful TF/s",
        title=f"Roofline, {_where(about)}",
    )
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def _dense_gflops(row: dict[str, Any]) -> float:
    flops: float = 2.0 * row["tokens"] * row["in_features"] * row["out_features"]
    milliseconds: float = row["milliseconds"][DENSE]
    return flops / milliseconds / 1e6
