# SPDX-License-Identifier: Apache-2.0
"""What a training run says about its patterns: dataclasses that go to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar, get_args

from .._validation import describe, is_int, is_share
from ..density import DENSITY_RULES
from .schedules import Decay, Rhythm, cubic_count, decayed

Score = Literal["frobenius", "mean_abs", "max", "gradient_weight", "fisher", "movement", "gate"]
Growth = Literal["none", "random", "gradient", "momentum", "group"]
Budget = Literal["layer", "global"]

Config = TypeVar("Config", bound="PatternConfig")
MAX_SIZES = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatternConfig:
    """What all methods have in common; make one of its subclasses.

    Attributes:
        update_every: steps of the optimizer between two changes of the pattern.
        start: the step that schedules count from; the first change is `update_every` later.
        end: no change after this step. What is left of the run trains the final pattern; three
            quarters of the run is usual.
        score: by what stored blocks are ranked, the least going first (see `scores`).
        budget: "layer": each layer keeps its own count; "global": layers compete for blocks, their
            sum is kept.
        layers: regular expression that the names of the layers must match from their beginning
            (`re.match`); all block-sparse layers if None.
        seed: of all that is drawn.
    """

    update_every: int = 100
    start: int = 0
    end: int = 0
    score: Score = "frobenius"
    budget: Budget = "layer"
    layers: str | None = None
    seed: int = 0

    growth: ClassVar[Growth] = "none"
    #: What the method can rank by; "gate" is for blocks that have some alone.
    scores: ClassVar[tuple[str, ...]] = tuple(name for name in get_args(Score) if name != "gate")
    _by_name: ClassVar[dict[str, type[PatternConfig]]] = {}

    def __init_subclass__(cls) -> None:
        PatternConfig._by_name[cls.__name__] = cls

    def __post_init__(self) -> None:
        if type(self) is PatternConfig:
            raise TypeError(
                "PatternConfig is what all methods have in common, expected one of them: "
                + ", ".join(sorted(self._by_name))
            )
        check_int("update_every", self.update_every, 1)
        check_int("start", self.start, 0)
        check_int("end", self.end, 0)
        check_int("seed", self.seed, 0)
        check_choice("score", self.score, self.scores)
        check_choice("budget", self.budget, get_args(Budget))
        if self.layers is not None:
            try:
                re.compile(self.layers)
            except (re.error, TypeError) as error:
                raise ValueError(
                    f"layers is {self.layers!r}, expected a regular expression or None: {error}"
                ) from None

    @property
    def rhythm(self) -> Rhythm:
        """When the pattern changes."""
        return Rhythm(self.update_every, self.start, self.end)

    def moving_share(self, step: int) -> float:
        """Share of the stored blocks that move at a step."""
        return 0.0

    def count_at(self, first: int, last: int, step: int) -> int:
        """Blocks stored after a step, of `first` at the beginning and `last` in the end."""
        return first

    def last_counts(
        self, shapes: Sequence[tuple[int, int]], blocks: Sequence[tuple[int, int]], now: list[int]
    ) -> list[int]:
        """Blocks of each layer in the end: as many as `now`.

        Args:
            shapes: (out, in) of each layer.
            blocks: (h, w) of each.
            now: how many blocks each stores at the beginning.
        """
        return now

    def to_json(self) -> str:
        """The name of the method and its fields, which `from_json` reads."""
        return json.dumps({"method": type(self).__name__, **dataclasses.asdict(self)})

    @staticmethod
    def from_json(text: str) -> PatternConfig:
        """The configuration that `to_json` wrote.

        Raises:
            ValueError, TypeError: in one sentence, for anything else.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise TypeError(f"the JSON is {describe(fields)}, expected an object with a method")
        name = fields.pop("method", None)
        if not isinstance(name, str) or name not in PatternConfig._by_name:
            raise ValueError(
                f"method is {name!r}, expected one of " + ", ".join(sorted(PatternConfig._by_name))
            )
        kind = PatternConfig._by_name[name]
        unknown = sorted(fields.keys() - {field.name for field in dataclasses.fields(kind)})
        if unknown:
            raise ValueError(f"{name} has no {', '.join(unknown)}, expected its own fields alone")
        return kind(**fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moving(PatternConfig):
    """Methods that move a share of the blocks at each change.

    Attributes:
        drop_fraction: share of the stored blocks that moves, at the beginning.
        decay: how that share goes down until `end`: "cosine", "linear" or "constant".
    """

    drop_fraction: float = 0.3
    decay: Decay = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("drop_fraction", self.drop_fraction)
        check_choice("decay", self.decay, get_args(Decay))

    def moving_share(self, step: int) -> float:
        """The drop fraction at a step."""
        return decayed(self.drop_fraction, self.decay, self.rhythm.progress(step))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thinning(PatternConfig):
    """Methods that store fewer blocks the longer they run, by a cubic schedule.

    Attributes:
        density: share of the blocks of the governed layers that is left in the end.
        density_rule: "uniform": of each layer; "erk": shared out by `density.erk_densities`. A
            layer that stores less than that keeps what it has.
        max_sizes: how many sizes the storage takes in a run, 1 to 6. Between two of them blocks
            that are gone leave free slots; 1 never frees memory, and is what
            DistributedDataParallel, FSDP and a captured CUDA graph need.
    """

    density: float = 0.1
    density_rule: str = "uniform"
    max_sizes: int = MAX_SIZES

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("density", self.density)
        check_choice("density_rule", self.density_rule, DENSITY_RULES)
        check_int("max_sizes", self.max_sizes, 1, MAX_SIZES)

    def count_at(self, first: int, last: int, step: int) -> int:
        """By the cubic schedule."""
        return cubic_count(first, last, self.rhythm.progress(step))

    def last_counts(
        self, shapes: Sequence[tuple[int, int]], blocks: Sequence[tuple[int, int]], now: list[int]
    ) -> list[int]:
        """Blocks of each layer in the end, by density and rule."""
        from ..density import block_grid, erk_block_counts
        from ..pattern import block_count_of

        grids = [block_grid(shape, block) for shape, block in zip(shapes, blocks, strict=True)]
        if self.density_rule == "uniform":
            wanted = [block_count_of(self.density, grid) for grid in grids]
        elif len(set(blocks)) == 1:
            wanted = erk_block_counts(shapes, blocks[0], self.density)
        else:
            raise ValueError(
                f"density_rule is 'erk' for layers of the block shapes {sorted(set(blocks))}, "
                "expected one shape for all"
            )
        return [min(want, have) for want, have in zip(wanted, now, strict=True)]


def check_int(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raises ValueError unless `value` is an int from `least` to `most`."""
    if not is_int(value) or value < least or (most is not None and value > most):  # type: ignore[operator]
        limit = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} is {describe(value)}, expected an int of {limit}")


def check_share(name: str, value: object) -> None:
    """Raises ValueError unless `value` is a number above 0 and at most 1."""
    if not is_share(value):
        raise ValueError(f"{name} is {describe(value)}, expected a number above 0 and at most 1")


def check_number(name: str, value: Any, least: float, below: float) -> None:
    """Raises ValueError unless `value` is a number from `least` on and less than `below`."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not least <= value < below:
        raise ValueError(f"{name} is {describe(value)}, expected a number from {least} to {below}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of the names."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name} is {describe(value)}, expected one of " + ", ".join(map(repr, choices))
        )
