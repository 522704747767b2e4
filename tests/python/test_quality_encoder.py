# SPDX-License-Identifier: Apache-2.0
"""benchmarks/quality: the encoder, here a tiny one in the place of MiniLM's package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.quality import encoder
from benchmarks.quality.encoder import MiniLM, docstrings, embedded
from benchmarks.quality.methods import method_of
from benchmarks.quality.packed import train_all
from benchmarks.quality.results import load, table
from benchmarks.quality.run import Run, make, stored, target, train

pytestmark = pytest.mark.host

SOURCE = '''
"""What this module is for, in a sentence."""

class A:
    """Too short."""

    def f(self):
        """Gives back the number of words that there are."""
        return 1
'''


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder as the package's, of a model with two layers, and a library of 20 files."""
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import BertConfig, BertModel

    folder, library = tmp_path / "model", tmp_path / "library"
    library.mkdir()
    files = []
    for i in range(20):
        files.append(library / f"{i:02}.py")
        files[-1].write_text(SOURCE.replace("number of words", f"number of words {i}"))
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *sorted(set(SOURCE.split()))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        # As large as those of a trained one, so that it matters which are there.
        initializer_range=0.2,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    monkeypatch.setattr(encoder, "folder", lambda: folder)
    monkeypatch.setattr(encoder, "source_files", lambda: files)
    monkeypatch.setitem(encoder.BATCH, "cpu", 16)
    for cached in (encoder.teacher_on, encoder.docstrings_on):
        cached.cache_clear()


def a_run(method: str, **options: Any) -> Run:
    return Run(method, **{"density": 0.5, "block": 16, "steps": 30, "size": "minilm", **options})


def test_docstrings_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    path.write_text(SOURCE)
    assert list(docstrings(path)) == [
        "What this module is for, in a sentence.",
        "Gives back the number of words that there are.",
    ]


def test_files_that_are_held_out_are_not_trained_on() -> None:
    task = MiniLM("cpu")
    # 18 files of two docstrings and three paragraphs each, one of them too short; 2 held out.
    assert len(task.held_out) == 2 * 2
    assert len(task.train) == 18 * (2 + 3)
    assert task.held_out.shape[1] == encoder.TOKENS
    assert len(task.shapes) == 2 * 6


def test_embeddings_do_not_depend_on_padding() -> None:
    task = MiniLM("cpu")
    tokens = task.held_out[:3].long()
    wide = torch.nn.functional.pad(tokens, (0, 20))
    got, states = embedded(task.teacher, tokens)
    torch.testing.assert_close(embedded(task.teacher, wide)[0], got)
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(3))
    assert len(states) == 3


def test_the_dense_student_is_the_teacher() -> None:
    task = MiniLM("cpu")
    model, _ = make(a_run("gradual"), task)
    assert task.found(model) == pytest.approx(1.0, abs=1e-6)
    assert float(task.loss(model, 0, 0).detach()) == pytest.approx(0.0, abs=1e-6)
    pruned, _ = make(a_run("static+magnitude"), task)
    assert stored(task, pruned) == target(task, a_run("static"))
    assert float(task.loss(pruned, 0, 0).detach()) > 0.1


def test_a_student_learns(tmp_path: Path) -> None:
    pruned, _ = make(a_run("static+magnitude"), MiniLM("cpu"))
    before = MiniLM("cpu").found(pruned)
    found = train(a_run("static+magnitude", lr=3e-3), "cpu", tmp_path)
    assert found is not None
    assert before + 0.02 < found["cosine"] < 1
    assert found["weights"] == found["most_weights"] == target(MiniLM("cpu"), a_run("static"))


def test_runs_of_a_list_say_what_they_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run("static+magnitude", steps=2)
    train_all([run], "cpu", tmp_path, 0, 1, math.inf)
    (found,) = load(tmp_path)
    assert capsys.readouterr().out.startswith(f"{run.name}: {found['cosine']:.3f} in ")
    assert f"| 0.5 | 16 | 2 | 1 | {found['cosine']:.3f} |" in table([found])


def test_what_there_is_not() -> None:
    for method, message in (("small", "there is no smaller MiniLM"), ("static+core", "'core'")):
        assert method_of(method, 0.5, 30) is not None
        with pytest.raises(ValueError, match=message):
            make(a_run(method), MiniLM("cpu"))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(encoder, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package is not installed, .* pip inst"):
        encoder.folder()
