# SPDX-License-Identifier: Apache-2.0
"""benchmarks/quality: every method runs, a run resumes to the same result, sizes are comparable."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.quality import model as task_model
from benchmarks.quality import run as quality
from benchmarks.quality.methods import Method, method_of, methods
from benchmarks.quality.model import SIZES, LanguageModel, Size, core_masks
from benchmarks.quality.packed import train_all, train_packed
from benchmarks.quality.results import load, publish, table
from benchmarks.quality.run import Run, stored, target, train

pytestmark = pytest.mark.host

TINY = Size(layers=1, width=64, hidden=128, heads=4, context=8, batch=2)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    monkeypatch.setattr(task_model, "HELD_OUT", 1)


def task(size: str = "tiny") -> LanguageModel:
    return LanguageModel(SIZES[size], "cpu")


def a_run(method: str, **options: Any) -> Run:
    return Run(method, **{"density": 0.5, "block": 16, "steps": 8, "size": "tiny", **options})


def done(*args: Any, **options: Any) -> dict[str, Any]:
    found = train(*args, **options)
    assert found is not None
    return found


VARIANTS = ("blast+from1.5+balanced", "rigl+global+erk", "set+core+x4+every2+drop.5", "small+x2")


def test_every_method_runs_and_stores_what_it_should(tmp_path: Path) -> None:
    names = [*methods(0.5, 8), *VARIANTS]
    for name in names:
        method = method_of(name, 0.5, 8)
        run = a_run(name)
        found = done(run, "cpu", tmp_path)
        assert found["bits_per_byte"] < 12, name
        weights = target(task(), run)
        if name == "dense":
            assert found["weights"] == TINY.weights
        elif name.startswith("small"):
            assert weights - 64 < found["weights"] <= weights
        else:
            assert found["weights"] == weights, name
            expected = {0: TINY.weights, 1.5: weights * 3 // 2, 2.0: weights * 2}
            assert found["most_weights"] == expected.get(method.start, weights), name
    lines = table(load(tmp_path)).splitlines()
    assert len(lines) == 2 + len(names)
    assert any(line.startswith("| rigl | 0.5 | 16 | 8 | 1 |") for line in lines)


def test_small_models_have_as_many_weights() -> None:
    for density in (0.05, 0.1, 0.2, 0.5):
        run = Run("small", density)
        weights = target(task("gpu"), run)
        size = SIZES["gpu"].with_weights(weights)
        # A hidden feature is 2 · width weights in each of the layers.
        assert 0 <= weights - size.weights < size.layers * 2 * size.width
        assert size.width % size.heads == 0


@pytest.mark.parametrize("method", ["rigl+x4", "blast+from1.5", "gradual", "l0"])
def test_a_stopped_run_goes_on(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("whole", "stopped")]
    for folder in folders:
        folder.mkdir()
    whole = done(a_run(method), "cpu", folders[0])

    class Stop(Exception):
        pass

    def stop(*args: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        # Dies at step 6, whose checkpoint is that of step 4.
        patch.setattr(quality, "rate", lambda run, step: stop() if step == 5 else RATE(run, step))
        with pytest.raises(Stop):
            done(a_run(method), "cpu", folders[1], checkpoint_every=2)
    assert list(folders[1].glob("*.pt"))
    again = done(a_run(method), "cpu", folders[1], checkpoint_every=2)
    for key in ("bits_per_byte", "weights", "history", "text"):
        assert again[key] == whole[key], key
    assert not list(folders[1].glob("*.pt"))
    assert done(a_run(method), "cpu", folders[1]) == again


def test_names_of_variants() -> None:
    known = methods(0.1, 2000)
    found = method_of("rigl+core+x4+from1.5+every20+drop.5", 0.1, 2000)
    assert (found.pattern, found.lr_scale, found.start) == ("core", 4.0, 1.5)
    config: Any = found.config
    assert (config.update_every, config.drop_fraction, config.end) == (20, 0.5, 1500)
    assert method_of("gradual+global", 0.1, 2000).spare
    assert method_of("static+erk", 0.1, 2000) == Method(known["static"].config, density_rule="erk")
    for text, message in (
        ("magic", "the method is 'magic', expected one of dense, small"),
        ("rigl+fast", "'fast' changes a method, expected a pattern"),
        ("rigl+x", "'x' changes a method"),
        ("dense+global", "budget is of a pattern, expected none for a dense model"),
    ):
        with pytest.raises(ValueError, match=message):
            method_of(text, 0.1, 2000)


def test_stored_blocks_learn_at_a_rate_of_their_own() -> None:
    for method in ("rigl+x4", "small+x4"):
        model, found = quality.make(a_run(method), task())
        others, inside = quality.groups_of(task(), model, found.lr_scale)
        assert inside["lr_scale"] == 4.0
        assert others["lr_scale"] == 1.0
        assert len(inside["params"]) == 4 * TINY.layers
        assert sum(p.numel() for p in inside["params"]) == stored(task(), model)
        every = {id(p) for p in model.parameters()}
        assert {id(p) for group in (others, inside) for p in group["params"]} == every


def test_the_core_is_a_small_dense_model() -> None:
    size = SIZES["gpu"]
    masks = core_masks(size, 0.1, 32)
    assert len(masks) == 24
    weights = target(task("gpu"), Run("static", 0.1))
    assert sum(int(mask.sum()) for mask in masks.values()) * 32**2 == weights
    for name, mask in masks.items():
        reads = name.endswith("_in")
        stream = mask.any(0) if reads else mask.any(1)
        assert stream[:5].all(), name
        assert not stream[5:].any(), name
        inside = mask.any(1) if reads else mask.any(0)
        # Dense between them, but for the last.
        assert int(inside.sum()) == -(-int(mask.sum()) // 5), name
    # Query, key and value of a head have the same features.
    q, k, v = masks["blocks.0.attention_in"].any(1).view(3, 16)
    assert torch.equal(k, v)
    assert not (k & ~q).any()
    assert int(q.sum()) == int(k.sum()) + 1  # the one that is left over
    assert torch.equal(v, masks["blocks.0.attention_out"].any(0))


def test_a_deadline_stops_a_run_which_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("whole", "stopped")]
    for folder in folders:
        folder.mkdir()
    whole = done(a_run("rigl"), "cpu", folders[0])
    steps: list[int] = []

    def counted(run: Run, step: int) -> float:
        steps.append(step)
        return RATE(run, step)

    with monkeypatch.context() as patch:
        patch.setattr("time.monotonic", lambda: float(len(steps)))
        patch.setattr(quality, "rate", counted)
        assert train(a_run("rigl"), "cpu", folders[1], 100, deadline=3.0) is None
        assert steps == [0, 0, 1, 1]  # for two groups of parameters each
        # The first takes sixteen seconds, so the other does not fit.
        train_all([a_run("set"), a_run("static")], "cpu", folders[1], 0, 1, deadline=24.0)
    names = {path.name for path in folders[1].iterdir()}
    assert names == {f"{a_run('rigl').name}.pt", f"{a_run('set').name}.json"}
    again = done(a_run("rigl"), "cpu", folders[1])
    assert again["bits_per_byte"] == whole["bits_per_byte"]


def test_packed_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In processes of their own, where one that fails does not stop the others."""
    runs = [a_run(method, size="cpu", steps=2, block=8) for method in ("static", "dense")]
    runs.append(a_run("static", size="none"))
    train_packed(runs, "cpu", tmp_path, 0, 2, math.inf)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{run.name}.json" for run in runs[:2]
    )
    assert "KeyError: 'none'" in capfd.readouterr().err


RATE = quality.rate


def test_stored_counts_dense_and_sparse_layers() -> None:
    torch.manual_seed(0)
    dense, _ = quality.make(a_run("dense"), task())
    sparse, _ = quality.make(a_run("static"), task())
    assert stored(task(), dense) == TINY.weights == 4 * 64**2 + 2 * 64 * 128
    assert stored(task(), sparse) == TINY.weights // 2


def test_a_table_over_seeds_and_one_file_of_many(tmp_path: Path) -> None:
    same = {"size": "gpu", "steps": 2000, "density": 0.1, "block": 32, "weights": 5, "lr": 1e-3}
    same |= {"most_weights": 10, "history": [[1, 2]]}
    found = [("rigl", 0, 1.25, 30.0, 2), ("rigl", 1, 1.5, 40.0, 2), ("set", 0, 1.0, 8.0, 1)]
    for method, seed, bits, ms, packed in found:
        run = {**same, "method": method, "seed": seed, "bits_per_byte": bits}
        run |= {"step_ms": ms, "packed": packed, "peak_mb": 100.0 + seed}
        (tmp_path / f"{method}-{seed}.json").write_text(json.dumps(run))
    file = tmp_path / "published"
    publish(tmp_path, file, "the command")
    assert json.loads(file.read_text())["command"] == "the command"
    assert all("history" not in run for run in load(file))
    assert table(load(file)) == table(load(tmp_path))
    assert table(load(file)).splitlines()[2:] == [
        "| set | 0.1 | 32 | 2000 | 1 | 1.000 | 5 | 10 | 100 | 8.0 |",
        "| rigl | 0.1 | 32 | 2000 | 2 | 1.375 ± 0.125 | 5 | 10 | 100 | 15.0 |",
    ]
