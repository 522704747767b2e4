# SPDX-License-Identifier: Apache-2.0
"""A RobertaForMaskedLM goes block-sparse and trains beside its dense twin.

Builds the model from a configuration in this folder (nothing is downloaded), patches a copy of it
with BlockSparseModelPatcher, trains both as masked language models on the same batches of real
text, compares them, saves the sparse one and loads it back in a new process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

from . import reload, report, text
from .models import build_twins
from .sizes import SIZES, Size
from .training import Twin, train


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small", help="which model (%(default)s)")
    parser.add_argument(
        "--text",
        type=Path,
        metavar="DIR_OR_FILE",
        help="the text to learn (the sources of Python's standard library)",
    )
    parser.add_argument("--density", type=float, default=0.5, help="share kept (%(default)s)")
    parser.add_argument("--block", type=int, default=32, help="side of a block (%(default)s)")
    parser.add_argument("--steps", type=int, help="training steps (as the size says)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="(%(default)s)")
    options = parser.parse_args(argv)
    if not 0 < options.density <= 1:
        parser.error(f"--density {options.density}: expected a share above 0 and up to 1")
    if options.block < 1:
        parser.error(f"--block {options.block}: expected at least 1")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps {options.steps}: expected at least 1")
    return options


def train_with_progress(
    console: Console, dense: Twin, sparse: Twin, size: Size, corpus: text.TokenizedCorpus, seed: int
) -> None:
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss: {task.fields[losses]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=size.steps, losses="")

        def show(step: int) -> None:
            recent = (
                f"{twin.name} {sum(twin.losses[-20:]) / len(twin.losses[-20:]):.3f}"
                for twin in (dense, sparse)
            )
            bar.update(task, completed=step, losses=", ".join(recent))

        train([dense, sparse], size, corpus, seed, show)


def save_and_reload(sparse: Twin, corpus: text.TokenizedCorpus, output: Path) -> float:
    """Saves the model, loads it in a new process; the largest difference of the logits."""
    folder, sample = output / "model", output / "sample.safetensors"
    sparse.model.save_pretrained(folder)
    corpus.tokenizer.save_pretrained(folder)
    reload.save_sample(sparse.model, corpus.held_out[:2], sample)
    answer = subprocess.run(
        [sys.executable, "-m", reload.__name__, str(folder), str(sample)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(answer.stdout)


def prepare(console: Console, path: Path | None, size: Size) -> text.TokenizedCorpus:
    """The text, tokenized for the model; raises TextError where it is unusable."""
    with console.status("reading the text and training the tokenizer"):
        raw = text.load(path)
        corpus = text.tokenize(raw, size.model_config().vocab_size, size.sequence_length)
    console.print(
        f"text: {raw.source}: {corpus.training.numel():,} tokens to train on, "
        f"{corpus.held_out.numel():,} held out"
    )
    return corpus


def show(console: Console, dense: Twin, sparse: Twin, size: Size, unigram_entropy: float) -> None:
    """Prints the table and what it means."""
    title = f"{size.steps} steps of {size.tokens} tokens, {torch.get_num_threads()} threads"
    console.print()
    console.print(report.table(dense, sparse, title))
    if not size.compares_losses:
        console.print(f"{size.steps} steps show what a step costs; they say nothing of the losses.")
        return
    gaps = (f"{t.name} by {unigram_entropy - t.scores[-1].loss:.3f}" for t in (dense, sparse))
    console.print(
        f"unigram entropy of the held-out text, the least loss that is possible without looking at "
        f"the context: {unigram_entropy:.3f} nats a token; below it: {', '.join(gaps)}"
    )


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    console = Console(soft_wrap=True, highlight=False)
    size = SIZES[options.size]
    if options.steps is not None:
        size = replace(size, steps=options.steps)
    transformers_logging.disable_progress_bar()  # while saving; ours are enough
    torch.manual_seed(options.seed)
    try:
        corpus = prepare(console, options.text, size)
    except text.TextError as error:
        console.print(str(error), markup=False)
        return 2

    dense, sparse, patched = build_twins(size, corpus, options.density, options.block)
    console.print(str(patched), markup=False)
    train_with_progress(console, dense, sparse, size, corpus, options.seed)

    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    report.draw_losses([dense, sparse], corpus.unigram_entropy, output / "losses.png")
    layers = {layer.name: sparse.model.get_submodule(layer.name) for layer in patched}
    report.draw_patterns(layers, output / "patterns.png")
    difference = save_and_reload(sparse, corpus, output)
    results = {
        "size": options.size,
        "tokens_a_step": size.tokens,
        "threads": torch.get_num_threads(),
        "unigram_entropy": corpus.unigram_entropy,
        "dense": report.figures(dense),
        "sparse": report.figures(sparse),
        "reload_difference": difference,
    }
    (output / "report.json").write_text(json.dumps(results, indent=2) + "\n")

    show(console, dense, sparse, size, corpus.unigram_entropy)
    console.print(
        f"saved in {output / 'model'}, loaded back by AutoModelForMaskedLM in a new process: "
        + ("the same logits, bit for bit" if difference == 0 else f"logits differ by {difference}")
    )
    console.print(f"pictures: {output / 'losses.png'}, {output / 'patterns.png'}")
    # With a text or a length of one's own there is no saying how far the losses come.
    promised = size.compares_losses and options.text is None and options.steps is None
    learned = all(t.scores[-1].loss < corpus.unigram_entropy for t in (dense, sparse))
    return 0 if difference == 0 and (learned or not promised) else 1


if __name__ == "__main__":
    sys.exit(main())
