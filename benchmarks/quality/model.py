# SPDX-License-Identifier: Apache-2.0
"""A decoder over bytes, and the bytes: the sources of Python's standard library."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytorch_block_sparse.pattern import block_count_of

HELD_OUT = 16


@dataclasses.dataclass(frozen=True)
class Size:
    """What a model is, and how much it reads in a step."""

    layers: int = 6
    width: int = 512
    hidden: int = 2048
    heads: int = 8
    context: int = 256
    batch: int = 64

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of the linear layers inside of the blocks."""
        attention = [(3 * self.width, self.width), (self.width, self.width)]
        return self.layers * [*attention, (self.hidden, self.width), (self.width, self.hidden)]

    @property
    def weights(self) -> int:
        """Of these layers, dense."""
        return sum(math.prod(shape) for shape in self.shapes)

    def with_weights(self, count: int) -> Size:
        """A smaller model of at most that many weights, as near to it as whole features allow."""
        share = (count / self.weights) ** 0.5
        width = max(self.heads, round(share * self.width / self.heads) * self.heads)
        hidden = (count // self.layers - 4 * width**2) // (2 * width)
        return dataclasses.replace(self, width=width, hidden=hidden)


SIZES = {"gpu": Size(), "cpu": Size(layers=2, width=128, hidden=512, heads=4, context=64, batch=16)}


class Block(nn.Module):
    """Attention and an MLP, each after a norm. Without biases and scales of norms, whose gradients
    are sums over all tokens and took a sixth of a step's time."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.attention_in = nn.Linear(size.width, 3 * size.width, bias=False)
        self.attention_out = nn.Linear(size.width, size.width, bias=False)
        self.mlp_in = nn.Linear(size.width, size.hidden, bias=False)
        self.mlp_out = nn.Linear(size.hidden, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        split = self.attention_in(normed(x)).view(b, t, 3, self.heads, width // self.heads)
        q, k, v = (part.transpose(1, 2) for part in split.unbind(2))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(y.transpose(1, 2).reshape(b, t, width))
        y = self.mlp_out(functional.gelu(self.mlp_in(normed(x))))
        result: Tensor = x + y
        return result


def normed(x: Tensor) -> Tensor:
    """Layer norm in the type of x, also under autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return functional.layer_norm(x, x.shape[-1:])


class Decoder(nn.Module):
    """Bytes in, logits of the next byte out. Under autocast the residual stream has its type."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, size.width)
        self.places = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.head = nn.Linear(size.width, 256)
        for embedding in (self.bytes, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bytes(x) + self.places(torch.arange(x.shape[1], device=x.device))
        if torch.is_autocast_enabled(x.device.type):
            h = h.to(torch.get_autocast_dtype(x.device.type))
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.head(normed(h))
        return logits


def core_masks(size: Size, density: float, block: int) -> Mapping[str, Tensor]:
    """Layer -> (R, C) bool: each layer reads from and writes to the same few blocks of the residual
    stream, about sqrt(density) of them, and is dense between these and as few blocks inside.

    A random pattern of 32 x 32 blocks at density .1 shows a block of features 1.6 of 16 blocks of
    its input; here a feature that is connected at all sees a whole small model.
    """
    width, hidden = size.width // block, size.hidden // block
    stream = max(1, round(math.sqrt(density) * width))
    per_head = width // math.gcd(width, size.heads)
    # One block of each head, then the next of each.
    inside = [i for first in range(per_head) for i in range(first, width, per_head)]
    qkv = [part * width + i for i in inside for part in range(3)]
    masks = {}
    for layer in range(size.layers):
        for name, order, total, reads in (
            ("attention_in", qkv, 3 * width, True),
            ("attention_out", inside, width, False),
            ("mlp_in", list(range(hidden)), hidden, True),
            ("mlp_out", list(range(hidden)), hidden, False),
        ):
            grid = (total, width) if reads else (width, total)
            count = block_count_of(density, grid)
            seen = max(stream, -(-count // total))
            places = [(i, j) for i in order for j in range(seen)][:count]
            mask = torch.zeros(total, width, dtype=torch.bool)
            mask[tuple(torch.tensor(places).T)] = True
            masks[f"blocks.{layer}.{name}"] = mask if reads else mask.T.contiguous()
    return masks


def source_files() -> list[Path]:
    """All .py files of the standard library but its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    return sorted(
        path for path in root.rglob("*.py") if skipped.isdisjoint(path.relative_to(root).parts[:-1])
    )


class Text:
    """The bytes of the standard library; every tenth file is held out."""

    def __init__(self, device: str) -> None:
        parts = [path.read_bytes() for path in source_files()]
        train = b"".join(part for i, part in enumerate(parts) if i % 10)
        held_out = b"".join(part for i, part in enumerate(parts) if i % 10 == 0)
        self.digest = hashlib.sha256(train + held_out).hexdigest()[:16]
        self.train, self.held_out = (
            torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
            for text in (train, held_out)
        )

    def batch(self, size: Size, seed: int, step: int) -> Tensor:
        """(batch, context + 1) of what is trained on, the same for every method."""
        generator = torch.Generator(device="cpu").manual_seed(1_000_003 * seed + step)
        last = self.train.numel() - size.context - 1
        starts = torch.randint(0, last, (size.batch, 1), generator=generator)
        return self._windows(self.train, starts, size.context)

    def held_out_batches(self, size: Size, count: int) -> list[Tensor]:
        """As many batches, spread evenly over what is held out."""
        windows = count * size.batch
        stride = (self.held_out.numel() - size.context - 1) // windows
        starts = torch.arange(windows).mul(stride).view(count, size.batch, 1)
        return [self._windows(self.held_out, part, size.context) for part in starts]

    @staticmethod
    def _windows(text: Tensor, starts: Tensor, context: int) -> Tensor:
        at = (starts + torch.arange(context + 1)).to(text.device)
        return text[at].long()


@functools.cache
def text_on(device: str) -> Text:
    """The text, read once in a process."""
    return Text(device)


class LanguageModel:
    """What is learned: the next byte. See `run.Task`."""

    layers = r"blocks\.\d+\.(attention|mlp)_(in|out)"
    metric = "bits_per_byte"
    pretrained = False

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device = size, device
        self.text = text_on(device)
        self.shapes: Sequence[tuple[int, int]] = size.shapes
        self.digest = self.text.digest

    def model(self, weights: int | None) -> nn.Module:
        """A dense model, or a small one of at most so many weights."""
        size = self.size if weights is None else self.size.with_weights(weights)
        return Decoder(size).to(self.device)

    def loss(self, model: nn.Module, seed: int, step: int) -> Tensor:
        """Of a batch."""
        return bits_per_byte(model, self.text.batch(self.size, seed, step))

    @torch.no_grad()
    def found(self, model: nn.Module) -> float:
        """Bits per byte of held-out files."""
        batches = self.text.held_out_batches(self.size, HELD_OUT)
        return float(torch.stack([bits_per_byte(model, batch) for batch in batches]).mean())

    def core(self, density: float, block: int) -> Mapping[str, Tensor]:
        """See `core_masks`."""
        return core_masks(self.size, density, block)


def bits_per_byte(model: nn.Module, windows: Tensor) -> Tensor:
    """The mean over a batch; differentiable."""
    logits = model(windows[:, :-1])
    nats = functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())
    return nats / math.log(2)
