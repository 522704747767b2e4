# SPDX-License-Identifier: Apache-2.0
"""The methods by name: whose idea each is, and what it stores when.

"Target" is the number of blocks in the end. What a method stores is exact at every step; the
optimizer's state is in proportion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from .config import (
    Budget,
    Growth,
    Moving,
    PatternConfig,
    Score,
    Thinning,
    check_int,
    check_number,
    check_share,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static(PatternConfig):
    """The pattern that the layers were made with stays.

    Which one is chosen when a model is patched: `pattern="random"`, `"balanced"`, `"butterfly"`
    (Dao et al., "Pixelated Butterfly", 2022, arXiv:2112.00029) or `"magnitude"`, and
    `density_rule="erk"` for layers of different densities (Mocanu et al., 2018; Evci et al., 2020).

    Storage: the target from the first step to the last.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class SET(Moving):
    """The least blocks move to random free places.

    Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science", Nature Communications 2018 (arXiv:1707.04780).

    Storage: the target from the first step to the last. An update looks at weights alone.
    """

    growth: ClassVar[Growth] = "random"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RigL(Moving):
    """The least blocks move to where the gradient of the dense weight has the largest norm.

    Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020 (arXiv:1911.11134).
    A block that is dropped competes with the absent ones, and stays as it is if it wins.

    Storage: the target from the first step to the last. The gradient norms, one number a block of
    the dense weight, are computed in the backward of the step before an update, and only there.
    """

    growth: ClassVar[Growth] = "gradient"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradualMagnitude(Thinning):
    """The least blocks go, from whatever density there is to `density`.

    Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
    compression", 2017 (arXiv:1710.01878), for blocks.

    Storage: from the density at the beginning to the target along a cubic curve, (1 - time)³. What
    is allocated follows in at most `max_sizes` sizes, near to a geometric sequence.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class SNFS(Moving):
    """Sparse networks from scratch: blocks go by magnitude, and come where a moving average of the
    gradient norm is largest; layers whose average is larger get more of them.

    Dettmers and Zettlemoyer, "Sparse Networks from Scratch: Faster Training without Losing
    Performance", 2019 (arXiv:1907.04840). There the momentum is dense; here it is one norm per
    block, taken every `norm_every` steps.

    Attributes:
        norm_every: steps between two looks at the gradient norms; each costs one product of the
            dense weight gradient, without its memory.
        momentum: how much of the average is the past, at each look.

    Storage: the sum over layers is the target from the first step to the last; layers exchange
    blocks within their slots, so make them with some to spare (`slots=`).
    """

    growth: ClassVar[Growth] = "momentum"
    budget: Budget = "global"
    norm_every: int = 10
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("norm_every", self.norm_every, 1)
        check_number("momentum", self.momentum, 0.0, 1.0)
        if self.update_every % self.norm_every:
            raise ValueError(
                f"norm_every is {self.norm_every}, expected a divisor of update_every, "
                f"{self.update_every}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BLaST(Thinning, Moving):
    """Prune and grow: by a cubic schedule blocks of least norm go, and at each change a share more
    of them for places where the gradient is largest.

    Okanovic et al., "BLaST: High Performance Inference and Pretraining using BLock Sparse
    Transformers", 2025 (arXiv:2507.03117).

    Storage: as `GradualMagnitude`, from the density at the beginning to the target.
    """

    growth: ClassVar[Growth] = "gradient"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MovementPruning(Thinning):
    """The blocks go that the gradient has moved least away from zero since the beginning.

    Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020
    (arXiv:2005.07683); for blocks: Lagunas et al., "Block Pruning For Faster Transformers", EMNLP
    2021 (arXiv:2109.04838). The score of a block is learned by the gradient of its weight,
    -sum(g w) over its elements, added up over all steps.

    Storage: as `GradualMagnitude`, from the density at the beginning to the target.
    """

    score: Score = "movement"


@dataclasses.dataclass(frozen=True, kw_only=True)
class L0Gates(Thinning):
    """Each block has a gate, open to a random degree; the blocks go whose gates close.

    Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR
    2018 (arXiv:1712.01312), for blocks. The forward of a layer that trains multiplies each block by
    a hard-concrete variable, whose location is learned with Adam by the trainer; `model.eval()`
    leaves out the noise. There the penalty alone decides how many blocks are left; here the
    schedule does, and the gates say which. The last update multiplies those that are left into the
    values, and the layers are plain again.

    Attributes:
        gate_lr: the learning rate of the gates.
        penalty: what the loss gets for the share of the blocks that is expected to be open.

    Storage: as `GradualMagnitude`, from the density at the beginning to the target; and until the
    last update a product of all values with their gates in each forward.
    """

    scores: ClassVar[tuple[str, ...]] = ("gate",)
    score: Score = "gate"
    gate_lr: float = 0.05
    penalty: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("gate_lr", self.gate_lr, 0.0, float("inf"))
        check_number("penalty", self.penalty, 0.0, float("inf"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopKAST(Moving):
    """The forward multiplies with the best of the stored blocks; all of them get a gradient.

    After Jayakumar et al., "Top-KAST: Top-K Always Sparse Training", NeurIPS 2020
    (arXiv:2106.03517). There the weight is dense on the host, of which two sets are taken; here
    what is stored is the backward set, and the forward set is its best part by `score`, chosen at
    each update. Of the others, the least move to random places. Input gradients are those of the
    forward set.

    Attributes:
        forward: share of the stored blocks that the forward uses.
        max_sizes: 1 keeps the slots of the blocks that go in the end, 2 gives their memory back.

    Storage: the backward set until the last update, which keeps the forward set alone: the target,
    `forward` times what was stored.
    """

    growth: ClassVar[Growth] = "random"
    forward: float = 0.5
    max_sizes: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("forward", self.forward)
        check_int("max_sizes", self.max_sizes, 1, 2)

    def forward_count(self, stored: int) -> int:
        """Blocks of the forward set, of so many stored ones."""
        return max(1, int(self.forward * stored))

    def count_at(self, first: int, last: int, step: int) -> int:
        """All until the last update."""
        return last if self.end and step >= self.rhythm.last else first

    def last_counts(
        self, shapes: Sequence[tuple[int, int]], blocks: Sequence[tuple[int, int]], now: list[int]
    ) -> list[int]:
        """The forward sets."""
        return [self.forward_count(count) for count in now]

    def moving_share(self, step: int) -> float:
        """None moves at the last update: a block that is new is not used yet."""
        return 0.0 if step >= self.rhythm.last else super().moving_share(step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupGrowth(Moving):
    """RigL whose new blocks prefer the block columns that neighbouring block rows already use.

    The block rows are taken in groups of `group`. A place that `share` of its group use counts as
    if its gradient norm were 1 + `attraction` · share times as large. Products that work off a
    group of block rows together then load fewer different block columns of their input.

    Attributes:
        group: block rows in a group.
        attraction: 0 is RigL.

    Storage: the target from the first step to the last.
    """

    growth: ClassVar[Growth] = "group"
    group: int = 4
    attraction: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("group", self.group, 1)
        check_number("attraction", self.attraction, 0.0, float("inf"))
