# SPDX-License-Identifier: Apache-2.0
"""benchmarks/quality: every method runs, a run resumes to the same result, sizes are comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.quality import run as quality
from benchmarks.quality.__main__ import table
from benchmarks.quality.model import SIZES, Size
from benchmarks.quality.run import Run, methods, stored, target, train

pytestmark = pytest.mark.host

TINY = Size(layers=1, width=64, hidden=128, heads=4, context=8, batch=2)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    monkeypatch.setattr(quality, "HELD_OUT", 1)


def a_run(method: str, **options: Any) -> Run:
    return Run(method, **{"density": 0.5, "block": 16, "steps": 8, "size": "tiny", **options})


def test_every_method_runs_and_stores_what_it_should(tmp_path: Path) -> None:
    for name, method in methods(0.5, 8).items():
        run = a_run(name)
        found = train(run, "cpu", tmp_path)
        assert found["bits_per_byte"] < 12, name
        weights = target(TINY, run)
        if name == "dense":
            assert found["weights"] == TINY.weights
        elif name == "small":
            assert weights - 64 < found["weights"] <= weights
        else:
            assert found["weights"] == weights, name
            expected = {0: TINY.weights, 1.5: weights * 3 // 2, 2.0: weights * 2}
            assert found["most_weights"] == expected.get(method.start, weights), name
    lines = table(tmp_path).splitlines()
    assert len(lines) == 2 + len(methods(0.5, 8))
    assert "| rigl | 0.5 | 16 | 0 | 8 |" in table(tmp_path)


def test_small_models_have_as_many_weights() -> None:
    for density in (0.05, 0.1, 0.2, 0.5):
        run = Run("small", density)
        size = SIZES["gpu"].with_weights(target(SIZES["gpu"], run))
        # A hidden feature is 2 · width weights in each of the layers.
        assert 0 <= target(SIZES["gpu"], run) - size.weights < size.layers * 2 * size.width
        assert size.width % size.heads == 0


@pytest.mark.parametrize("method", ["rigl", "blast-1.5", "gradual"])
def test_a_stopped_run_goes_on(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("whole", "stopped")]
    for folder in folders:
        folder.mkdir()
    whole = train(a_run(method), "cpu", folders[0])

    class Stop(Exception):
        pass

    def stop(*args: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        # Dies at step 6, whose checkpoint is that of step 4.
        patch.setattr(quality, "rate", lambda run, step: stop() if step == 5 else RATE(run, step))
        with pytest.raises(Stop):
            train(a_run(method), "cpu", folders[1], checkpoint_every=2)
    assert list(folders[1].glob("*.pt"))
    again = train(a_run(method), "cpu", folders[1], checkpoint_every=2)
    for key in ("bits_per_byte", "weights", "history", "text"):
        assert again[key] == whole[key], key
    assert not list(folders[1].glob("*.pt"))
    assert train(a_run(method), "cpu", folders[1]) == again


RATE = quality.rate


def test_stored_counts_dense_and_sparse_layers() -> None:
    torch.manual_seed(0)
    dense, _ = quality.make(a_run("dense"), "cpu")
    sparse, _ = quality.make(a_run("static"), "cpu")
    assert stored(dense) == TINY.weights == 4 * 64**2 + 2 * 64 * 128
    assert stored(sparse) == TINY.weights // 2
