# SPDX-License-Identifier: Apache-2.0
"""What is compared, by name: a method and what is changed about it, such as `rigl+core+x4`."""

from __future__ import annotations

import dataclasses
from typing import Any

from pytorch_block_sparse.training import (
    SET,
    SNFS,
    BLaST,
    GradualMagnitude,
    GroupGrowth,
    L0Gates,
    MovementPruning,
    PatternConfig,
    RigL,
    Static,
    TopKAST,
)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method and what it begins with.

    Attributes:
        config: None for a dense model.
        start: how dense it starts relative to its target; 0: fully dense.
        pattern: the first one, of the patcher, or "core" (see `patterns`).
        density_rule: "uniform" or "erk".
        lr_scale: by what the learning rate of stored blocks is multiplied.
        lr_power: and by the density that there is, to minus this power.
    """

    config: PatternConfig | None
    start: float = 1.0
    pattern: str = "random"
    density_rule: str = "uniform"
    lr_scale: float = 1.0
    lr_power: float = 0.0

    @property
    def spare(self) -> bool:
        """Whether layers need room to exchange blocks."""
        return self.config is not None and self.config.budget == "global"


def methods(density: float, steps: int) -> dict[str, Method]:
    """Each as published, at a density, in a run of so many steps."""
    move: dict[str, Any] = {"update_every": max(1, steps // 20), "end": steps * 3 // 4}
    thin: dict[str, Any] = {"update_every": max(1, steps // 40), "end": steps * 7 // 10}
    thin |= {"start": steps // 20, "density": density}
    return {
        "dense": Method(None),
        "small": Method(None),
        "static": Method(Static()),
        "set": Method(SET(**move)),
        "rigl": Method(RigL(**move)),
        "snfs": Method(SNFS(**move, norm_every=move["update_every"])),
        "groups": Method(GroupGrowth(**move)),
        "top-kast": Method(TopKAST(**move), start=2.0),
        "blast": Method(BLaST(**thin, drop_fraction=0.1), start=0),
        "gradual": Method(GradualMagnitude(**thin), start=0),
        "movement": Method(MovementPruning(**thin), start=0),
        "l0": Method(L0Gates(**thin), start=0),
    }


def method_of(text: str, density: float, steps: int) -> Method:
    """A method by name, changed by what follows, each after a `+`.

    - a pattern (`random`, `balanced`, `butterfly`, `magnitude`, `core`) or `erk`: the first one;
    - `from1.5`: how dense it begins, relative to the target;
    - `x4`: the learning rate of stored blocks, and `auto.6`: that by density^-.6;
    - `global`: layers compete for blocks;
    - `every20`, `drop.5`: steps between changes, and the share that moves.

    Raises:
        ValueError: for anything else.
    """
    name, *changes = text.split("+")
    known = methods(density, steps)
    if name not in known:
        raise ValueError(f"the method is {name!r}, expected one of {', '.join(known)}")
    method = known[name]
    for change in changes:
        method = _changed(method, change)
    return method


def _changed(method: Method, change: str) -> Method:
    if change in ("random", "balanced", "butterfly", "magnitude", "core"):
        return dataclasses.replace(method, pattern=change)
    if change == "erk":
        return dataclasses.replace(method, density_rule=change)
    if change == "global":
        return _configured(method, budget="global")
    for prefix, apply in (
        ("from", lambda number: dataclasses.replace(method, start=number)),
        ("x", lambda number: dataclasses.replace(method, lr_scale=number)),
        ("auto", lambda number: dataclasses.replace(method, lr_power=number)),
        ("every", lambda number: _configured(method, update_every=int(number))),
        ("drop", lambda number: _configured(method, drop_fraction=number)),
    ):
        number = change.removeprefix(prefix)
        if number != change and number.replace(".", "", 1).isdigit():
            return apply(float(number))
    raise ValueError(
        f"{change!r} changes a method, expected a pattern, erk, global, or from, x, auto, every or "
        "drop with a number"
    )


def _configured(method: Method, **fields: Any) -> Method:
    if method.config is None:
        raise ValueError(f"{', '.join(fields)} is of a pattern, expected none for a dense model")
    return dataclasses.replace(method, config=dataclasses.replace(method.config, **fields))
