# SPDX-License-Identifier: Apache-2.0
"""What is told of updates: a CSV, TensorBoard, pictures."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import Heads, batch
from small_training import under
from torch import Tensor, nn

from pytorch_block_sparse.training import (
    SET,
    CsvLog,
    PatternFilm,
    PatternTrainer,
    RigL,
    TensorBoardLog,
)
from pytorch_block_sparse.training.listeners import Listener, ages


def train(*listeners: Listener, steps: int = 12, begin: int = 0) -> PatternTrainer:
    """Two layers, an update every second step, from a step on that a checkpoint was made at."""
    model, target = Heads((0.2, 0.1), seed=1), Heads((0.1, 0.1), seed=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    config = RigL(update_every=2, end=40, decay="constant")
    trainer = PatternTrainer(model, optimizer, config, listeners=listeners)
    trainer.steps = begin
    for step in range(begin, steps):
        x = batch(step)
        nn.functional.mse_loss(model(x), target(x).detach()).backward()
        optimizer.step()
        trainer.step()
        optimizer.zero_grad()
    return trainer


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_line_for_each_update(tmp_path: Path) -> None:
    path = tmp_path / "pattern.csv"
    trainer = train(CsvLog(path))
    rows = rows_of(path)
    assert [int(row.pop("step")) for row in rows] == [2, 4, 6, 8, 10, 12]
    for row, update in zip(rows, trainer.history, strict=True):
        assert {name: float(number) for name, number in row.items()} == update.scalars()
    assert {"pattern/churn", "pattern/density/heads.0", "pattern/drift/heads.1"} <= rows[0].keys()


def test_a_resumed_run_goes_on_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pattern.csv"
    train(CsvLog(path), steps=9)
    before = rows_of(path)
    train(CsvLog(path), steps=14, begin=6)  # from a checkpoint after step 6
    rows = rows_of(path)
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8, 10, 12, 14]
    assert rows[:3] == before[:3]


def test_a_file_of_something_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("step,loss\n1,2.5\n")
    with pytest.raises(ValueError, match=r"other\.csv is a table of other columns, expected a new"):
        train(CsvLog(path))
    assert path.read_text() == "step,loss\n1,2.5\n"


def test_scalars_to_a_writer() -> None:
    """Whose interface is that of SummaryWriter; tensorboard itself need not be there."""
    seen: dict[str, list[tuple[int, float]]] = {}

    class Writer:
        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            seen.setdefault(tag, []).append((global_step, scalar_value))

    trainer = train(TensorBoardLog(Writer()))
    for name in trainer.history[0].scalars():
        assert seen[name] == [(update.step, update.scalars()[name]) for update in trainer.history]


def test_a_film_has_the_patterns() -> None:
    film, all_ = PatternFilm(r"heads\.1"), PatternFilm()
    masks: list[Tensor] = []
    trainer = train(film, all_, lambda update, layers: masks.append(layers[1].mask.clone()))
    assert list(film.frames) == ["heads.1"]
    assert list(all_.frames) == ["heads.0", "heads.1"]
    steps, patterns = zip(*film.frames["heads.1"], strict=True)
    assert steps == (0, 2, 4, 6, 8, 10, 12)
    assert torch.equal(patterns[0], trainer.layers[1].first_mask)
    assert all(torch.equal(a, b) for a, b in zip(patterns[1:], masks, strict=True))
    assert any(not torch.equal(a, patterns[0]) for a in masks)


def test_ages() -> None:
    frames = [
        (0, torch.tensor([[True, True, False, False]])),
        (5, torch.tensor([[True, False, True, False]])),
        (9, torch.tensor([[True, True, True, False]])),
    ]
    first, second, third, fourth = ages(frames)[0].tolist()
    assert (first, second, third) == (0, 9, 5)
    assert math.isnan(fourth)


def test_a_figure_shows_them(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    film = PatternFilm()
    with pytest.raises(ValueError, match="no update was seen, expected one at least"):
        film.figure()
    train(film)
    figure = film.figure(panels=4)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == 2 * ["step 0", "step 4", "step 8", "step 12", "stored since"]
    shown: Any = figure.axes[3].get_images()[0].get_array()
    mask, first = film.frames["heads.0"][-1][1], film.frames["heads.0"][0][1]
    assert shown.tolist() == (mask.float() * (2 - (mask & first).float())).tolist()
    figure.savefig(tmp_path / "pattern.png")
    assert (tmp_path / "pattern.png").stat().st_size > 1000


def test_listeners_hear_of_updates_alone() -> None:
    heard = []
    train(lambda update, layers: heard.append(update.step), steps=5)
    assert heard == [2, 4]
    assert under(SET(end=9)).trainer.step() is None
