# SPDX-License-Identifier: Apache-2.0
"""Which goals were met, and by how much the others were missed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import goals
from .contenders import DENSE, OURS, SEMI_STRUCTURED
from .problems import Problem


@dataclass(frozen=True)
class Verdict:
    """A goal and what was measured of it; the larger the better.

    Attributes:
        title: of the goals that are counted together.
        where: what exactly was measured.
        value, goal: reached and asked for.
    """

    title: str
    where: str
    value: float
    goal: float

    @property
    def share(self) -> float:
        """What was reached of what was asked for."""
        return self.value / self.goal


def of(content: dict[str, Any]) -> list[Verdict]:
    """All goals that the content of a JSON tells about, those of a title one after the other."""
    found = [verdict for row in content["results"] for verdict in _of_row(row, content["about"])]
    for model in content.get("models", []):
        name = model["work"]["model"]
        found += [
            Verdict(
                f"{name}: gain of the kernels kept",
                row["name"],
                row["gain_kept"],
                goals.GAIN_KEPT,
            )
            for row in model["results"]
            if row["gain_kept"] is not None
        ]
    for what, times in (content.get("host_microseconds") or {}).items():
        if what in goals.HOST_RATIOS and content["about"]["device"].startswith("cuda"):
            ratio = times[DENSE] / times[OURS]
            found.append(Verdict("host time of a call", what, ratio, goals.HOST_RATIOS[what]))
    return [v for title in dict.fromkeys(v.title for v in found) for v in found if v.title == title]


def _of_row(row: dict[str, Any], about: dict[str, Any]) -> Iterator[Verdict]:
    problem = Problem(**{name: row[name] for name in Problem.__dataclass_fields__})
    product, dtype = row["product"], about["dtype"]
    ours = row["ratio"][OURS]
    layer = f"{problem.in_features}→{problem.out_features}"
    tokens = "up to 64 tokens" if problem.is_decode else f"{problem.tokens} tokens"
    block = f"{problem.block_height}×{problem.block_width}"
    where = f"{product}, {block}, density {problem.density:g}"
    if problem.is_decode:
        where += f", {problem.tokens} tokens"
    if problem.pattern != "even":
        where += f", {problem.pattern}"

    if row["goal"] is not None:
        title = f"{layer}, {tokens}"
        title += ": ratio" if problem.is_decode else f", blocks of {block}: ratio"
        yield Verdict(title, where, ours, row["goal"])
    if about["device"].startswith("cuda"):
        floor = goals.floor(problem, product, dtype)
        if floor is not None:
            yield Verdict(f"{layer}, {tokens}, blocks of {block}: floor", where, ours, floor)
        is_product = product != "step" and not problem.is_decode
        if dtype == "float32" and is_product and about["ffma_gflops"] is not None:
            share = row["useful_gflops"] / about["ffma_gflops"]
            title = f"{layer}, {tokens}: share of FFMA's peak"
            yield Verdict(title, where, share, goals.FFMA_FRACTION)
    if row["copy_goal"] is not None:
        title = f"{layer}, {tokens}: share of copy bandwidth"
        yield Verdict(title, where, row["copy_fraction"], row["copy_goal"])
    if "even_ratio" in row:
        title = f"{layer}, {tokens}, uneven patterns: speed, of even ones"
        yield Verdict(title, where, row["even_ratio"], goals.EVEN_RATIO)
    peer = best_peer(row)
    if peer is not None:
        yield Verdict(f"{layer}, {tokens}: not behind a peer", f"{where}, {peer[0]}", ours, peer[1])


def best_peer(row: dict[str, Any]) -> tuple[str, float] | None:
    """The fastest peer that multiplies the same pattern, and its ratio."""
    peers = {n: r for n, r in row["ratio"].items() if n not in (OURS, SEMI_STRUCTURED)}
    return max(peers.items(), key=lambda item: item[1]) if peers else None


def summary(verdicts: list[Verdict]) -> list[tuple[str, int, int, Verdict]]:
    """(title, how many were met, of how many, the one that was missed by most or met closest)."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.title, []).append(verdict)
    return [
        (title, sum(v.share >= 1 for v in some), len(some), min(some, key=lambda v: v.share))
        for title, some in groups.items()
    ]
