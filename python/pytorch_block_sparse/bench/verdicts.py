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
        kind: of goal, in a word.
        title: of the goals that are counted together.
        where: what exactly was measured.
        value, goal: reached and asked for.
    """

    kind: str
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
    device = _device(content["about"])
    found = [verdict for row in content["results"] for verdict in of_row(row, content["about"])]
    for model in content.get("models", []):
        name = model["work"]["model"]
        found += [
            Verdict(
                "kept",
                f"{name}: gain of the kernels kept",
                row["name"],
                row["gain_kept"],
                goals.GAIN_KEPT[device],
            )
            for row in model["results"]
            if row["gain_kept"] is not None
        ]
    for what, times in (content.get("host_microseconds") or {}).items():
        goal = goals.host_ratio(what, device, times[DENSE])
        if goal is not None:
            ratio = times[DENSE] / times[OURS]
            found.append(Verdict("host", "host time of a call", what, ratio, goal))
    return [v for title in dict.fromkeys(v.title for v in found) for v in found if v.title == title]


def _device(about: dict[str, Any]) -> str:
    device: str = about["device"].partition(":")[0]
    return device


def of_row(row: dict[str, Any], about: dict[str, Any]) -> Iterator[Verdict]:
    """The goals of one product."""
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
        yield Verdict("ratio", title, where, ours, row["goal"])
    if _device(about) == "cuda":
        floor = goals.floor(problem, product, dtype)
        if floor is not None:
            title = f"{layer}, {tokens}, blocks of {block}: floor"
            yield Verdict("floor", title, where, ours, floor)
        is_product = product != "step" and not problem.is_decode
        if dtype == "float32" and is_product and about["ffma_gflops"] is not None:
            share = row["useful_gflops"] / about["ffma_gflops"]
            title = f"{layer}, {tokens}: share of FFMA's peak"
            yield Verdict("FFMA", title, where, share, goals.FFMA_FRACTION)
    if row.get("limit_goal") is not None:
        title = f"{layer}, {tokens}: share of what the processor allows"
        yield Verdict("limit", title, where, row["limit_fraction"], row["limit_goal"])
    if row["copy_goal"] is not None:
        title = f"{layer}, {tokens}: share of copy bandwidth"
        yield Verdict("copy", title, where, row["copy_fraction"], row["copy_goal"])
    if "even_ratio" in row:
        title = f"{layer}, {tokens}, uneven patterns: speed, of even ones"
        yield Verdict("even", title, where, row["even_ratio"], goals.EVEN_RATIO[_device(about)])
    peer = best_peer(row)
    if peer is not None:
        title = f"{layer}, {tokens}: not behind a peer"
        yield Verdict("peer", title, f"{where}, {peer[0]}", ours, peer[1])


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
