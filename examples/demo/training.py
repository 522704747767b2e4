# SPDX-License-Identifier: Apache-2.0
"""Two models trained side by side, on the same batches in the same order."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy
from transformers import DataCollatorForLanguageModeling, PreTrainedModel

from .sizes import Size
from .text import TokenizedCorpus

Batch = dict[str, torch.Tensor]  # input_ids and labels (batch, length) int64; label -100: not asked
PHASES = ("forward", "backward", "optimizer")


@dataclass(frozen=True)
class Score:
    """How well a model fills in held-out masks."""

    step: int
    loss: float  # nats a masked token
    accuracy: float


@dataclass
class Twin:
    """A model, its optimizer and what was measured of it."""

    name: str
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    milliseconds: list[dict[str, float]] = field(default_factory=list)  # a step: phase -> ms
    losses: list[float] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)

    @classmethod
    def create(cls, name: str, model: PreTrainedModel, size: Size) -> Twin:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=size.learning_rate, betas=(0.9, 0.98), fused=True
        )

        def factor(step: int) -> float:
            # Up linearly, then down linearly, to a fiftieth at the end.
            warm = (step + 1) / size.warmup_steps
            cooled = (size.steps - step) / max(1, size.steps - size.warmup_steps)
            return min(1.0, warm, max(0.02, cooled))

        return cls(name, model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor))

    def step(self, batch: Batch) -> None:
        """One training step, each phase timed."""
        self.model.train()
        self.optimizer.zero_grad()
        begin = time.perf_counter()
        loss = self.model(**batch).loss
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        end = time.perf_counter()
        self.schedule.step()
        spans = (forward - begin, backward - forward, end - backward)
        self.milliseconds.append({p: 1e3 * s for p, s in zip(PHASES, spans, strict=True)})
        self.losses.append(loss.item())

    @torch.no_grad()
    def evaluate(self, batches: list[Batch]) -> None:
        """Scores the model as it is now on batches whose masks never change."""
        self.model.eval()
        loss, right, asked = 0.0, 0, 0
        for batch in batches:
            logits = self.model(input_ids=batch["input_ids"]).logits  # (batch, length, vocabulary)
            masked = batch["labels"] != -100
            answers, labels = logits[masked], batch["labels"][masked]
            loss += float(cross_entropy(answers, labels, reduction="sum"))
            right += int((answers.argmax(dim=-1) == labels).sum())
            asked += len(labels)
        self.scores.append(Score(len(self.losses), loss / asked, right / asked))

    def median_ms(self, phase: str | None = None) -> float:
        """Median milliseconds of a phase, or of the whole step; the first step is left out."""
        steps = self.milliseconds[1:] or self.milliseconds
        return statistics.median(s[phase] if phase else sum(s.values()) for s in steps)

    def parameters(self) -> int:
        """Numbers that are learned; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters())

    def training_bytes(self) -> int:
        """Bytes of parameters, buffers (so the block indices too), gradients, optimizer state."""
        held = [*self.model.parameters(), *self.model.buffers()]
        held += [p.grad for p in self.model.parameters() if p.grad is not None]
        for state in self.optimizer.state.values():
            held += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.nbytes for tensor in held)


def train(
    twins: list[Twin],
    size: Size,
    corpus: TokenizedCorpus,
    seed: int,
    progress: Callable[[int], None],
) -> None:
    """Trains the twins in turn, a step each, so that whatever else the machine does hits both."""
    held_out = held_out_batches(size, corpus, seed)
    for step, batch in enumerate(training_batches(size, corpus, seed)):
        # Who goes first alternates: the second finds the batch in the cache.
        for twin in twins if step % 2 else reversed(twins):
            twin.step(batch)
        if (step + 1) % size.evaluate_every == 0 or step + 1 == size.steps:
            for twin in twins:
                twin.evaluate(held_out)
        progress(step + 1)


def training_batches(size: Size, corpus: TokenizedCorpus, seed: int) -> Iterator[Batch]:
    """Shuffled, and masked as BERT was: 80% <mask>, 10% another token, 10% left as it is."""
    collator = DataCollatorForLanguageModeling(
        corpus.tokenizer, mlm_probability=size.masked_share, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    rows: list[int] = []
    for _ in range(size.steps):
        while len(rows) < size.batch_size:
            rows += torch.randperm(len(corpus.training), generator=generator).tolist()
        chosen, rows = rows[: size.batch_size], rows[size.batch_size :]
        yield dict(collator(list(corpus.training[chosen])))


def held_out_batches(size: Size, corpus: TokenizedCorpus, seed: int) -> list[Batch]:
    """Held-out sequences in which every token that is asked for is hidden.

    Training leaves some of them visible. Here none is, so that the loss compares with the unigram
    entropy, which knows nothing of the token either.
    """
    collator = DataCollatorForLanguageModeling(
        corpus.tokenizer,
        mlm_probability=size.masked_share,
        mask_replace_prob=1.0,
        random_replace_prob=0.0,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(corpus.held_out), generator=generator)[: size.held_out_sequences]
    return [
        dict(collator(list(corpus.held_out[rows]))) for rows in torch.split(order, size.batch_size)
    ]
