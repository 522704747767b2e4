# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from examples.demo import __main__ as demo
from examples.demo import text
from examples.demo.__main__ import main
from examples.demo.models import build_twins
from examples.demo.sizes import SIZES
from examples.demo.training import PHASES, Score, Twin, train
from pytorch_block_sparse.patching import PatchReport

pytestmark = pytest.mark.host


def write_files(folder: Path, count: int) -> Path:
    """Files of a text that a model could learn, all different."""
    for i in range(count):
        lines = [f"def function_{i}_{j}(value):\n    return value + {i * j}\n" for j in range(60)]
        (folder / f"module_{i}.py").write_text("\n".join(lines))
    return folder


def test_whole_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    write_files(sources, 40)
    output = tmp_path / "output"
    assert main(["--steps", "3", "--text", str(sources), "--output", str(output)]) == 0

    report = json.loads((output / "report.json").read_text())
    dense, sparse = report["dense"], report["sparse"]
    assert report["reload_difference"] == 0
    assert len(dense["training_losses"]) == len(sparse["training_losses"]) == 3
    assert sparse["parameters"] < dense["parameters"]
    # Parameters, their gradients and two moments of AdamW, in float32; the rest are buffers.
    for twin in (dense, sparse):
        assert 16 * twin["parameters"] <= twin["training_bytes"] < 16.2 * twin["parameters"]
    assert all(math.isfinite(score["loss"]) for score in sparse["held_out"])
    for name in ("losses.png", "patterns.png", "model/model.safetensors", "model/config.json"):
        assert (output / name).stat().st_size > 0
    shown = capsys.readouterr().out
    assert "the same logits, bit for bit" in shown
    assert "whole step, ms" in shown


@pytest.mark.parametrize(
    ("difference", "dense", "sparse", "options", "code"),
    [
        # By how much the logits differ after reloading; loss below the unigram entropy, in nats.
        (0.0, 0.5, 0.5, [], 0),
        (1e-7, 0.5, 0.5, [], 1),
        (0.0, -0.5, 0.5, [], 1),
        (0.0, 0.5, -0.5, [], 1),
        # Nothing is promised of the losses here, but the logits are.
        (0.0, -0.5, -0.5, ["--size", "roberta"], 0),
        (0.0, -0.5, -0.5, ["--steps", "3"], 0),
        (0.0, -0.5, -0.5, ["--text", "one's own"], 0),
        (1e-7, 0.5, 0.5, ["--size", "roberta", "--steps", "3", "--text", "one's own"], 1),
    ],
)
def test_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    difference: float,
    dense: float,
    sparse: float,
    options: list[str],
    code: int,
) -> None:
    """Of the whole demo, without a model being trained, saved or drawn."""
    corpus = SimpleNamespace(unigram_entropy=6.0)

    def twin(name: str, gain: float) -> Twin:
        model: Any = torch.nn.Linear(2, 2)
        made = Twin.create(name, model, SIZES["small"])
        made.milliseconds.append(dict.fromkeys(PHASES, 1.0))
        # Only the last score counts.
        made.scores += [Score(1, 6.0 + gain, 0.5), Score(2, 6.0 - gain, 0.5)]
        return made

    twins = twin("dense", dense), twin("sparse", sparse), PatchReport((), 6, 6)
    for name, result in {
        "prepare": corpus,
        "build_twins": twins,
        "train_with_progress": None,
        "save_and_reload": difference,
    }.items():
        monkeypatch.setattr(demo, name, lambda *_, result=result: result)
    for name in ("draw_losses", "draw_patterns"):
        monkeypatch.setattr(demo.report, name, lambda *_: None)
    assert main([*options, "--output", str(tmp_path)]) == code
    assert json.loads((tmp_path / "report.json").read_text())["reload_difference"] == difference
    said = "bit for bit" if difference == 0 else f"logits differ by {difference}"
    assert said in capsys.readouterr().out


def test_roberta_goes_from_84_to_68_million_and_takes_a_step(tmp_path: Path) -> None:
    """The model and the step of `make demo SIZE=roberta`, on fewer tokens."""
    size = replace(
        SIZES["roberta"], sequence_length=32, batch_size=2, steps=1, held_out_sequences=2
    )
    raw = text.load(write_files(tmp_path, 60))
    corpus = text.tokenize(raw, size.model_config().vocab_size, size.sequence_length)
    dense, sparse, patched = build_twins(size, corpus, 0.5, 32)
    assert (round(dense.parameters() / 1e6), round(sparse.parameters() / 1e6)) == (84, 68)
    assert len(patched) == 18  # three layers in each of six
    before = [parameter.detach().clone() for parameter in sparse.model.parameters()]
    train([dense, sparse], size, corpus, 0, lambda step: None)
    for twin in (dense, sparse):
        assert math.isfinite(twin.losses[0])
        assert all(twin.milliseconds[0][phase] > 0 for phase in PHASES)
        assert 16 * twin.parameters() <= twin.training_bytes() < 16.2 * twin.parameters()
    for (name, parameter), old in zip(sparse.model.named_parameters(), before, strict=True):
        assert parameter.grad is not None, name
        assert not torch.equal(parameter, old), name


def test_training_and_held_out_share_no_file(tmp_path: Path) -> None:
    corpus = text.load(write_files(tmp_path, 60))
    assert len(corpus.training) + len(corpus.held_out) == 60
    assert corpus.held_out
    assert set(corpus.training).isdisjoint(corpus.held_out)
    assert text.load(tmp_path) == corpus


def test_copies_of_a_file_count_once(tmp_path: Path) -> None:
    write_files(tmp_path, 60)
    alone = text.load(tmp_path)
    for path in list(tmp_path.glob("*.py")):
        (tmp_path / f"copy_of_{path.name}").write_text(path.read_text())
    corpus = text.load(tmp_path)
    assert sorted(corpus.training + corpus.held_out) == sorted(alone.training + alone.held_out)


def test_end_of_a_single_file_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("0123456789" * 10)
    corpus = text.load(path)
    assert (corpus.training, corpus.held_out) == (["0123456789" * 9], ["0123456789"])


def test_sequences_begin_with_s_and_lose_nothing_inside(tmp_path: Path) -> None:
    corpus = text.load(write_files(tmp_path, 60))
    tokenized = text.tokenize(corpus, vocab_size=400, length=32)
    assert tokenized.training.shape[1] == 32
    assert set(tokenized.training[:, 0].tolist()) == {tokenized.tokenizer.bos_token_id}
    inside = tokenized.tokenizer.decode(tokenized.training[:, 1:].flatten())
    together = "</s>".join(corpus.training) + "</s>"
    assert together.startswith(inside)
    assert len(inside) > 0.99 * len(together)


def test_unigram_entropy() -> None:
    special, a, b = 0, len(text.SPECIAL_TOKENS), len(text.SPECIAL_TOKENS) + 1
    even = torch.tensor([[special, a, b], [special, a, b]])
    assert text.unigram_entropy(even, 8) == pytest.approx(math.log(2))
    uneven = torch.tensor([[a, a, a, b]])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert text.unigram_entropy(uneven, 8) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no such file or folder"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
        (b"too short", "too little text"),
    ],
)
def test_unusable_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    assert main(["--text", str(path), "--output", str(tmp_path / "output")]) == 2
    assert sentence in capsys.readouterr().out


def test_folder_with_too_few_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path, 1)
    assert main(["--text", str(tmp_path)]) == 2
    assert "give a folder with more files" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option", [["--density", "0"], ["--density", "1.5"], ["--block", "0"], ["--steps", "0"]]
)
def test_options_out_of_range(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(option)
    assert f"{option[0]} {float(option[1]):g}"[:8] in capsys.readouterr().err
