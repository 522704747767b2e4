# SPDX-License-Identifier: Apache-2.0
"""The tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from . import goals
from .contenders import DENSE, OURS
from .problems import PRODUCTS
from .verdicts import Verdict, of_row, summary


def peers_in(rows: list[dict[str, Any]]) -> list[str]:
    """Who but nn.Linear and this package was measured, in the order of the rows."""
    names = dict.fromkeys(name for row in rows for name in row["ratio"])
    return [name for name in names if name != OURS]


def layer_table(rows: list[dict[str, Any]], about: dict[str, Any], title: str) -> Table:
    """One line a problem and product; ratios are nn.Linear's time over the contender's.

    What misses a goal is red, and the last column names it.
    """
    others = peers_in(rows)
    kind = about["device"].partition(":")[0]
    decode = any(row["copy_fraction"] is not None for row in rows)
    uneven = any(row["pattern"] != "even" for row in rows)
    limited = any("limit_fraction" in row for row in rows)
    verdicts = [list(of_row(row, about)) for row in rows]
    result = Table(title=title, title_justify="left")
    for heading in ("in→out", "T", "block", "density", *(["pattern"] if uneven else []), "product"):
        result.add_column(heading, no_wrap=True)
    for heading in (
        "dense ms",
        "ours ms",
        "ratio",
        "goal",
        "roofline",
        *(["limit"] if limited else []),
        *(["copy"] if decode else []),
        *(["of even"] if uneven else []),
        "GF/s",
        *others,
        *(["goals"] if any(verdicts) else []),
    ):
        result.add_column(heading, justify="left" if heading == "goals" else "right")
    for i, row in enumerate(rows):
        cells = [
            f"{row['in_features']}→{row['out_features']}",
            str(row["tokens"]),
            f"{row['block_height']}×{row['block_width']}",
            f"{row['density']:g}",
            *([row["pattern"]] if uneven else []),
            row["product"],
            f"{row['milliseconds'][DENSE]:.3f}",
            f"{row['milliseconds'][OURS]:.3f}",
            _judged(row["ratio"][OURS], row["goal"]),
            _number(row["goal"]),
            f"{row['roofline_fraction']:.0%}",
            *([_limit(row)] if limited else []),
            *([_judged(row["copy_fraction"], row["copy_goal"], "{:.0%}")] if decode else []),
            *([_judged(row.get("even_ratio"), goals.EVEN_RATIO[kind])] if uneven else []),
            f"{row['useful_gflops']:.0f}",
            *(_number(row["ratio"].get(name)) for name in others),
            *([_met(verdicts[i])] if any(verdicts) else []),
        ]
        last = i + 1 == len(rows) or _problem(rows[i + 1]) != _problem(row)
        result.add_row(*cells, end_section=last and row["product"] == PRODUCTS[-1])
    return result


def model_table(rows: list[dict[str, Any]], about: dict[str, Any], title: str) -> Table:
    """One line for the dense model and for each density."""
    result = Table(title=title, title_justify="left")
    result.add_column("model", no_wrap=True)
    for heading in (
        "step ms",
        "ratio",
        "kernels ms saved",
        "kept",
        "peak MB",
        "w + g + opt MB",
        "of dense",
        "of its layers",
        "parameters M",
    ):
        result.add_column(heading, justify="right")
    kind = about["device"].partition(":")[0]
    dense = rows[0]
    for row in rows:
        peak = row["peak_bytes"]
        result.add_row(
            row["name"],
            f"{row['step_milliseconds']:.2f}",
            f"{dense['step_milliseconds'] / row['step_milliseconds']:.2f}",
            _number(row["kernel_milliseconds_saved"]),
            _judged(row["gain_kept"], goals.GAIN_KEPT[kind], "{:.0%}"),
            "" if peak is None else f"{peak / 1e6:.0f}",
            f"{row['state_bytes'] / 1e6:.0f}",
            f"{row['state_bytes'] / dense['state_bytes']:.1%}",
            f"{row['layer_state_bytes'] / dense['layer_state_bytes']:.1%}",
            f"{row['parameters'] / 1e6:.1f}",
        )
    return result


def goal_table(verdicts: list[Verdict]) -> Table:
    """One line for the goals of a title: how many were met, and the worst of them."""
    result = Table(title="goals", title_justify="left")
    for heading in ("", "worst"):
        result.add_column(heading, no_wrap=True)
    for heading in ("met", "reached", "asked", "share"):
        result.add_column(heading, justify="right")
    for title, met, count, worst in summary(verdicts):
        result.add_row(
            title,
            worst.where,
            f"[{'green' if met == count else 'red'}]{met} of {count}",
            f"{worst.value:.2f}",
            f"{worst.goal:.2f}",
            f"{worst.share:.0%}",
        )
    return result


def _problem(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("in_features", "out_features", "tokens", "block_height", "block_width", "density")
    return (*(row[name] for name in names), row["pattern"])


def _limit(row: dict[str, Any]) -> str:
    return _judged(row.get("limit_fraction"), row.get("limit_goal"), "{:.0%}")


def _met(verdicts: Iterable[Verdict]) -> str:
    shares = {verdict.kind: verdict.share for verdict in verdicts}
    missed = [kind for kind, share in shares.items() if share < 1]
    if missed:
        return f"[red]not {', '.join(missed)}"
    return "[green]met" if shares else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _judged(value: float | None, goal: float | None, form: str = "{:.2f}") -> str:
    if value is None:
        return ""
    text = form.format(value)
    return text if goal is None else f"[{'green' if value >= goal else 'red'}]{text}"
