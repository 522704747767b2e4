# SPDX-License-Identifier: Apache-2.0
"""Real text for the demo: gathered, split by file, tokenized, cut into sequences."""

from __future__ import annotations

import hashlib
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# RoBERTa's special tokens, in the order of their ids (the configurations name 0, 1 and 2).
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
HELD_OUT_SHARE = 0.1
MAX_BYTES = 32 * 2**20  # more would only make the tokenizer slower
# Of the standard library: sources, not what tests them or was installed beside them.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)


class TextError(Exception):
    """The text asked for cannot be used; the message says why."""


@dataclass(frozen=True)
class Corpus:
    """Texts of a training part and a held-out part, which share no file."""

    source: str
    training: list[str]
    held_out: list[str]


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus as sequences: int64 (sequences, length), each starting with <s>."""

    tokenizer: PreTrainedTokenizerFast
    training: torch.Tensor
    held_out: torch.Tensor
    unigram_entropy: float  # of the held-out tokens, in nats a token


def load(path: Path | None) -> Corpus:
    """The text under `path`, a file or a folder; without one, the standard library's sources."""
    if path is None:
        library = Path(sysconfig.get_path("stdlib"))
        return _split(f"the Python standard library in {library}", _files(library, ".py"))
    if path.is_dir():
        return _split(str(path), _files(path, ""))
    if not path.is_file():
        raise TextError(f"--text {path}: no such file or folder")
    text = _read(path)
    if text is None:
        raise TextError(f"--text {path}: this is not a text file in UTF-8")
    # A single file cannot be split by file: its end is held out.
    cut = int(len(text) * (1 - HELD_OUT_SHARE))
    return Corpus(str(path), [text[:cut][:MAX_BYTES]], [text[cut:][:MAX_BYTES]])


def tokenize(corpus: Corpus, vocab_size: int, length: int) -> TokenizedCorpus:
    """Trains a byte-level BPE tokenizer on the training part and cuts both into sequences."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus.training, trainer)
    training, held_out = (
        _sequences(bpe, texts, length) for texts in (corpus.training, corpus.held_out)
    )
    for name, sequences in (("training", training), ("held-out", held_out)):
        if len(sequences) < 2:
            raise TextError(
                f"{corpus.source}: too little text, its {name} part gives {len(sequences)} "
                f"sequences of {length} tokens"
            )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=length,
    )
    return TokenizedCorpus(tokenizer, training, held_out, unigram_entropy(held_out, vocab_size))


def unigram_entropy(sequences: torch.Tensor, vocab_size: int) -> float:
    """Entropy, in nats, of the frequencies of the tokens in `sequences` (n, length).

    No predictor that ignores the context can have a lower mean cross entropy on these tokens,
    not even one that knows their frequencies. Special tokens, which are never masked, don't count.
    """
    counts = torch.bincount(sequences.flatten(), minlength=vocab_size).double()
    counts[: len(SPECIAL_TOKENS)] = 0
    frequencies = counts / counts.sum()
    return float(torch.special.entr(frequencies).sum())


def _files(folder: Path, suffix: str) -> Iterator[tuple[str, str]]:
    """(relative path, content) of the distinct text files under `folder`, in a fixed order."""
    seen = set()
    total = 0
    for path in sorted(folder.rglob(f"*{suffix}")):
        name = path.relative_to(folder)
        if not SKIPPED_FOLDERS.isdisjoint(name.parts) or not path.is_file():
            continue
        text = _read(path)
        if not text:
            continue
        digest = hashlib.sha256(text.encode()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        total += len(text)
        if total > MAX_BYTES:
            return
        yield name.as_posix(), text


def _read(path: Path) -> str | None:
    """The content of a text file in UTF-8, None if it is anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return None if "\0" in text else text


def _split(source: str, files: Iterator[tuple[str, str]]) -> Corpus:
    """Every tenth file, chosen by a checksum of its name, is held out."""
    training: list[str] = []
    held_out: list[str] = []
    for name, text in files:
        share = zlib.crc32(name.encode()) / 2**32
        (held_out if share < HELD_OUT_SHARE else training).append(text)
    if not training or not held_out:
        raise TextError(
            f"{source}: found {len(training)} text files to train on and {len(held_out)} to hold "
            "out; give a folder with more files, or a single file"
        )
    return Corpus(source, training, held_out)


def _sequences(bpe: Tokenizer, texts: list[str], length: int) -> torch.Tensor:
    """All texts, each ended by </s>, cut into rows of <s> and length - 1 tokens."""
    start, end = SPECIAL_TOKENS.index("<s>"), SPECIAL_TOKENS.index("</s>")
    ids: list[int] = []
    for encoding in bpe.encode_batch(texts, add_special_tokens=False):
        ids += encoding.ids
        ids.append(end)
    width = length - 1
    rows = len(ids) // width
    body = torch.tensor(ids[: rows * width]).reshape(rows, width)
    return torch.cat([torch.full((rows, 1), start), body], dim=1)
