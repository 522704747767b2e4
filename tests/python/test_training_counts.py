# SPDX-License-Identifier: Apache-2.0
"""Configurations, schedules, and which blocks are chosen: what is exact."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import train
from small_training import under
from torch import Tensor

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
from pytorch_block_sparse.training.schedules import (
    Rhythm,
    cubic_count,
    decayed,
    resize_steps,
)
from pytorch_block_sparse.training.selection import Candidates, choose, shares

METHODS: list[PatternConfig] = [
    Static(),
    SET(end=300, update_every=20, decay="linear"),
    RigL(end=300, start=40, drop_fraction=0.5),
    SNFS(end=300, update_every=20, momentum=0.8),
    BLaST(end=300, density=0.05, max_sizes=2, layers=r"encoder\.\d+"),
    GradualMagnitude(end=300, density_rule="erk", budget="global", seed=7),
    MovementPruning(end=300),
    GroupGrowth(end=300, group=2),
    TopKAST(end=300, forward=0.25),
    L0Gates(end=300, penalty=0.5),
]


@pytest.mark.host
@pytest.mark.parametrize("config", METHODS, ids=lambda config: type(config).__name__)
def test_configurations_go_to_json_and_back(config: PatternConfig) -> None:
    text = config.to_json()
    assert json.loads(text)["method"] == type(config).__name__
    assert PatternConfig.from_json(text) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.end = 3  # type: ignore[misc]


@pytest.mark.host
@pytest.mark.parametrize("config", METHODS, ids=lambda config: type(config).__name__)
def test_a_docstring_names_the_paper_and_the_storage(config: PatternConfig) -> None:
    text = type(config).__doc__ or ""
    assert "Storage: " in text
    # What this package adds of its own has none.
    assert isinstance(config, GroupGrowth) or re.search(r"arXiv:\d{4}\.\d{5}", text)


@pytest.mark.host
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RigL(update_every=0), r"update_every is 0 \(int\), expected an int of at least 1"),
        (lambda: RigL(start=-1), "start is -1"),
        (lambda: RigL(end=1.5), "end is 1.5"),
        (lambda: RigL(drop_fraction=0), "drop_fraction is 0 .* above 0 and at most 1"),
        (lambda: RigL(decay="cubic"), "decay is 'cubic' .* 'cosine', 'linear', 'constant'"),
        (lambda: RigL(score="norm"), "score is 'norm' .* 'frobenius'"),
        (
            lambda: RigL(score="gate"),
            "score is 'gate' .* expected one of 'frobenius', .*'movement'$",
        ),
        (lambda: L0Gates(score="max"), "score is 'max' .* expected one of 'gate'"),
        (lambda: L0Gates(penalty=-1), "penalty is -1"),
        (lambda: L0Gates(gate_lr=float("nan")), "gate_lr is nan"),
        (lambda: RigL(budget="model"), "budget is 'model' .* 'layer', 'global'"),
        (lambda: RigL(layers="("), r"layers is '\(', expected a regular expression or None: "),
        (lambda: GradualMagnitude(density=1.5), "density is 1.5"),
        (lambda: GradualMagnitude(density_rule="er"), "density_rule is 'er'"),
        (lambda: GradualMagnitude(max_sizes=7), "max_sizes is 7 .* expected an int of 1 to 6"),
        (lambda: SNFS(momentum=1.0), "momentum is 1.0 .* from 0.0 to 1.0"),
        (lambda: SNFS(norm_every=30), "norm_every is 30, expected a divisor of update_every, 100"),
        (lambda: TopKAST(forward=0), "forward is 0"),
        (lambda: TopKAST(max_sizes=3), "max_sizes is 3 .* an int of 1 to 2"),
        (lambda: GroupGrowth(group=0), "group is 0"),
        (lambda: GroupGrowth(attraction=-1), "attraction is -1"),
        (lambda: PatternConfig.from_json('{"method": "Magic"}'), "method is 'Magic', expected one"),
        (lambda: PatternConfig.from_json('{"method": "SET", "x": 1}'), "SET has no x, expected"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.host
def test_only_methods_can_be_made() -> None:
    with pytest.raises(TypeError, match=r"expected one of them: BLaST, GradualMagnitude, .*SET"):
        PatternConfig()
    with pytest.raises(TypeError, match="expected an object with a method"):
        PatternConfig.from_json("[]")


@pytest.mark.host
@given(st.integers(1, 50), st.integers(0, 300), st.integers(0, 600))
def test_rhythm(every: int, start: int, end: int) -> None:
    rhythm = Rhythm(every, start, end)
    changes = [step for step in range(1, 700) if rhythm.includes(step)]
    assert changes == rhythm.until(700)
    assert all(b - a == every for a, b in itertools.pairwise(changes))
    assert all(start < step <= end for step in changes)
    assert len(changes) == max(0, (end - start) // every)
    times = [rhythm.progress(step) for step in changes]
    assert times == sorted(times)
    if changes:
        assert rhythm.last == changes[-1]
        assert times[-1] == 1.0
        assert rhythm.progress(start) == 0.0


@pytest.mark.host
def test_decay_and_cubic_schedule() -> None:
    assert [decayed(0.4, "linear", t) for t in (0, 0.5, 1)] == [0.4, 0.2, 0.0]
    assert [decayed(0.4, "constant", t) for t in (0, 0.5, 1)] == [0.4] * 3
    assert [decayed(0.4, "cosine", t) for t in (0, 0.5, 1)] == pytest.approx([0.4, 0.2, 0.0])
    assert decayed(0.4, "cosine", 0.25) == pytest.approx(0.2 * (1 + 0.5**0.5))
    assert [cubic_count(100, 10, t) for t in (0, 0.5, 1)] == [100, round(10 + 90 / 8), 10]


@pytest.mark.host
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 60), st.integers(1, 6))
def test_storage_takes_few_sizes(a: int, b: int, changes: int, sizes: int) -> None:
    last, first = sorted((a, b))
    totals = [(10 * k, cubic_count(first, last, k / changes)) for k in range(1, changes + 1)]
    steps = resize_steps(totals, first, sizes)
    assert len(steps) <= sizes - 1
    assert steps == sorted(set(steps))
    counts = dict(totals)
    if sizes > 1 and last < first:
        assert counts[steps[-1]] == last
    elif sizes == 1 or last == first:
        assert steps == []


@pytest.mark.host
def test_sizes_are_near_to_a_geometric_sequence() -> None:
    totals = [(k, cubic_count(10_000, 100, k / 1000)) for k in range(1, 1001)]
    counts = dict(totals)
    sizes = [10_000, *(counts[step] for step in resize_steps(totals, 10_000, 6))]
    ratios = [b / a for a, b in itertools.pairwise(sizes)]
    assert ratios == pytest.approx([0.01**0.2] * 5, rel=0.03)


@st.composite
def layer(draw: Any) -> Candidates:
    rows, cols = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    stored = draw(st.integers(1, rows * cols))
    mask = torch.zeros(rows * cols, dtype=torch.bool)
    mask[torch.randperm(rows * cols, generator=generator)[:stored]] = True
    # Few different numbers, so that there are ties.
    keep = torch.randint(0, 4, (stored,), generator=generator).float()
    grow = torch.randint(0, 4, (rows, cols), generator=generator).float()
    slots = draw(st.integers(stored, rows * cols + 2))
    return Candidates(keep, mask.view(rows, cols), slots, grow, draw(st.booleans()))


@pytest.mark.host
@given(st.lists(layer(), min_size=1, max_size=3), st.data())
def test_counts_are_exact_and_the_least_go(layers: list[Candidates], data: Any) -> None:
    room = sum(min(one.slots, one.stored.numel()) for one in layers)
    stored = sum(one.keep.numel() for one in layers)
    count = data.draw(st.integers(len(layers), room))
    moving = data.draw(st.integers(0, stored))
    changes = choose(layers, count, moving)
    total, dropped, kept = 0, [], []
    for one, change in zip(layers, changes, strict=True):
        gone = torch.zeros(one.keep.numel(), dtype=torch.bool)
        gone[change.drop] = True
        assert int(gone.sum()) == change.drop.numel()
        now = one.keep.numel() - change.drop.numel() + change.rows.numel()
        assert 1 <= now <= one.slots
        total += now
        places = change.rows * one.stored.shape[1] + change.cols
        assert torch.equal(places, places.unique())
        assert not one.stored.flatten()[places].any()
        dropped += one.keep[gone].tolist()
        kept += one.keep[~gone].tolist()
    assert total == count
    grown = sum(change.rows.numel() for change in changes)
    assert grown <= max(0, count - stored) + moving
    if len(layers) == 1 and not layers[0].may_return and dropped and kept:
        assert max(dropped) <= min(kept)


@pytest.mark.host
def test_the_most_promising_places_are_taken() -> None:
    stored = torch.tensor([[True, True, False], [False, False, False]])
    grow = torch.tensor([[9.0, 0.0, 1.0], [5.0, 2.0, 3.0]])
    keep = torch.tensor([1.0, 2.0])

    def chosen(may_return: bool) -> tuple[list[int], list[list[int]]]:
        (change,) = choose([Candidates(keep, stored, 4, grow, may_return)], 3, 1)
        return change.drop.tolist(), torch.stack([change.rows, change.cols], 1).tolist()

    assert chosen(False) == ([0], [[1, 0], [1, 2]])
    # The block at (0, 0) promises most, so it stays though it is the least.
    assert chosen(True) == ([], [[1, 0]])


@pytest.mark.host
def test_no_room_is_refused() -> None:
    one = Candidates(torch.ones(2), torch.tensor([[True, True, False]]), 2)
    with pytest.raises(ValueError, match="3 blocks for 1 layers with room for 2 in all"):
        choose([one], 3, 0)
    one.slots = 3
    with pytest.raises(ValueError, match="3 blocks, of 2, for layers where none may grow"):
        choose([one], 3, 0)


@pytest.mark.host
@given(
    st.lists(st.tuples(st.floats(0, 1e3), st.integers(0, 20)), min_size=1, max_size=5), st.data()
)
def test_shares(things: list[tuple[float, int]], data: Any) -> None:
    weights, limits = zip(*things, strict=True)
    total = data.draw(st.integers(0, sum(limits)))
    given_ = shares(weights, limits, total)
    assert sum(given_) == total
    assert all(0 <= one <= limit for one, limit in zip(given_, limits, strict=True))
    roomy = shares(weights, [total] * len(weights), total)
    if sum(weights) > 0:
        exact = [total * weight / sum(weights) for weight in weights]
        assert all(abs(a - b) <= 1 for a, b in zip(roomy, exact, strict=True))


def blocks_after(config: PatternConfig, **options: Any) -> list[tuple[int, int, int]]:
    """(step, stored, allocated) after each update."""
    updates = train(config, config.end + 10, **options).updates
    totals = [
        (
            update.step,
            sum(layer.blocks for layer in update.layers.values()),
            sum(layer.slots for layer in update.layers.values()),
        )
        for update in updates
    ]
    assert [step for step, _, _ in totals] == config.rhythm.until(config.end)
    return totals


@pytest.mark.parametrize(
    "config",
    [
        SET(update_every=5, end=60, decay="linear"),
        RigL(update_every=5, end=60),
        SNFS(update_every=5, norm_every=5, end=60),
        RigL(update_every=5, end=60, budget="global"),
        GroupGrowth(update_every=5, end=60, decay="constant"),
    ],
    ids=lambda config: f"{type(config).__name__} {config.budget}",
)
def test_target_storage_from_first_to_last(config: PatternConfig) -> None:
    totals = blocks_after(config, student=(0.2, 0.1), teacher=(0.1, 0.2), slots=80)
    assert {stored for _, stored, _ in totals} == {51 + 25}
    assert {allocated for _, _, allocated in totals} == {160}


@pytest.mark.parametrize("budget", ["layer", "global"])
@pytest.mark.parametrize("kind", [GradualMagnitude, BLaST, MovementPruning, L0Gates])
@pytest.mark.parametrize("sizes", [1, 3, 6])
def test_storage_goes_down_by_the_cubic_schedule(kind: Any, budget: Any, sizes: int) -> None:
    config = kind(update_every=5, start=5, end=65, density=0.1, budget=budget, max_sizes=sizes)
    totals = blocks_after(config, student=(0.5, 1.0), teacher=(0.1, 0.1))
    for step, stored, allocated in totals:
        left = (1 - (step - 5) / 60) ** 3
        assert stored == round(25 + 103 * left) + round(25 + 231 * left)
        assert stored <= allocated
    allocated = [128 + 256, *(slots for _, _, slots in totals)]
    assert len(set(allocated)) == sizes
    assert allocated[-1] == (384 if sizes == 1 else 50)


def test_backward_sets_are_stored_until_the_last_update() -> None:
    config = TopKAST(update_every=5, end=60, forward=0.3)
    totals = blocks_after(config, student=(0.5, 0.25), teacher=(0.1, 0.1), slots=130)
    assert totals[:-1] == [(step, 128 + 64, 260) for step in range(5, 60, 5)]
    assert totals[-1] == (60, int(0.3 * 128) + int(0.3 * 64), 38 + 19)


def test_erk_counts() -> None:
    from torch import nn

    from pytorch_block_sparse import BlockSparseLinear
    from pytorch_block_sparse.density import erk_block_counts

    model = nn.ModuleList(
        BlockSparseLinear(size, 64, density=1.0, block_shape=16) for size in (64, 256, 512)
    )
    config = GradualMagnitude(update_every=1, end=4, density=0.2, density_rule="erk")
    _, optimizer, trainer = under(config, model)
    for _ in range(4):
        optimizer.step()
        trainer.step()
    counts = [layer.weight.n_blocks for layer in model]
    assert counts == erk_block_counts([(64, 64), (64, 256), (64, 512)], (16, 16), 0.2)
    assert len(set(layer.weight.density for layer in model)) == 3


def test_static_changes_nothing() -> None:
    result = train(Static(), 5)
    before: Tensor = result.trainer.layers[0].first_mask
    assert torch.equal(result.student.masks()[0], before)
    assert result.trainer.steps == 5
