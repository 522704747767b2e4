# SPDX-License-Identifier: Apache-2.0
"""Training patched models: plain loops, and transformers' Trainer with its checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import FAMILIES, masked_twin, one_thread, sparse_layers  # noqa: F401
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseModelPatcher

ROBERTA = FAMILIES["roberta"]
STEPS = 4
# The new name came within transformers 5.
DEPRECATED = pytest.mark.filterwarnings("ignore:.*activation_checkpointing:FutureWarning")


def patch(model: nn.Module, *, fuse: bool = False, **config: Any) -> Any:
    made = BlockSparseModelPatcher(fuse_activation=fuse)
    made.add_pattern(ROBERTA.pattern, {"density": 0.5, "block_shape": (16, 16), **config})
    made.patch_model(model)
    return model


def tokens(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(5, 97, (count, 12), generator=generator, device="cpu").to(
        torch.get_default_device()
    )


def keep_zeros(dense: nn.Module, sparse: nn.Module) -> None:
    """Makes a masked dense twin train only where the sparse model has weights."""
    for name, layer in sparse_layers(sparse).items():
        ones = torch.ones_like(layer.weight.values)
        mask = layer.weight.to_dense(data_replace=ones).detach()
        dense.get_submodule(name).weight.register_hook(lambda grad, mask=mask: grad * mask)


def train(
    model: nn.Module,
    *,
    steps: int = STEPS,
    optimizer: torch.optim.Optimizer | None = None,
    accumulate: int = 1,
    autocast: bool = False,
    clip: float | None = None,
) -> list[float]:
    """Losses of a plain loop over one batch of 4 sequences."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for part in tokens(4).chunk(accumulate):
            with torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=autocast):
                loss = model(input_ids=part, labels=part).loss / accumulate
            loss.backward()
            total += float(loss.detach())
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(total)
    return losses


def spread(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


SCALE = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"clip": 0.1}, {"accumulate": 2}, {"accumulate": 4, "clip": 0.1}]
)
def test_trains_like_the_masked_dense_model(fuse: bool, options: dict[str, Any]) -> None:
    dense = ROBERTA.make()
    model = patch(copy.deepcopy(dense), fuse=fuse)
    twin = masked_twin(dense, model)
    rounded = copy.deepcopy(twin)
    model.double()
    twin.double()
    keep_zeros(twin, model)
    keep_zeros(rounded, patch(copy.deepcopy(dense)))
    exact = train(twin, **options)
    # What roundings of float32 do to these losses, scaled to float64. Four times that: both runs
    # are rounded, each in its own order, and this is one sample of it.
    bound = 4 * SCALE * spread(train(rounded, **options), exact)
    assert spread(train(model, **options), exact) <= bound
    assert exact[-1] < exact[0] - 0.1


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("preactivation", ["save", "recompute"])
def test_loss_falls_in_fp32_and_under_autocast(autocast: bool, preactivation: str) -> None:
    model = patch(ROBERTA.make(), fuse=True, preactivation=preactivation).train()
    losses = train(model, steps=30, autocast=autocast)
    # 4 sequences of 12 tokens are learned by heart: from log(97) = 4.6 down.
    assert losses[0] > 4
    assert losses[-1] < 1
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@DEPRECATED
def test_gradient_checkpointing_changes_nothing() -> None:
    model = patch(ROBERTA.make(), fuse=True).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    again = copy.deepcopy(model)
    again.gradient_checkpointing_enable({"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in again.modules())
    assert train(again) == train(model)


def test_a_plain_loop_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    def fresh(seed: int) -> tuple[Any, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = patch(ROBERTA.make(seed), pattern="random")
        return model, torch.optim.AdamW(model.parameters(), lr=3e-3)

    model, optimizer = fresh(0)
    train(model, optimizer=optimizer)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "checkpoint.pt")
    expected = train(model, optimizer=optimizer)

    model, optimizer = fresh(1)  # other weights, and blocks in other places
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    assert train(model, optimizer=optimizer) == expected


# transformers' Trainer.


def trainer(model: Any, folder: Path, **options: Any) -> transformers.Trainer:
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder),
            use_cpu=torch.get_default_device().type == "cpu",
            dataloader_pin_memory=False,
            max_steps=6,
            save_steps=3,
            logging_steps=1,
            per_device_train_batch_size=2,
            learning_rate=3e-3,
            report_to=[],
            disable_tqdm=True,
            seed=3,
            **options,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens(8)],
    )


def losses_of(run: transformers.Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"bf16": True, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
    {"gradient_checkpointing": True, "optim": "adamw_torch"},
]


@DEPRECATED
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "bf16", "checkpointing"])
def test_trainer_resumes_to_the_same_losses(options: dict[str, Any], tmp_path: Path) -> None:
    first = trainer(patch(ROBERTA.make(), fuse=True), tmp_path, **options)
    first.train()
    expected = losses_of(first)
    assert len(expected) == 6
    assert expected[-1] < expected[0]
    checkpoint = str(tmp_path / "checkpoint-3")
    # Into a model patched anew, with blocks elsewhere, and into one that `from_pretrained` made.
    models: list[Callable[[], Any]] = [
        lambda: patch(ROBERTA.make(5), fuse=True, pattern="random"),
        lambda: type(first.model).from_pretrained(checkpoint),
    ]
    for make in models:
        again = trainer(make(), tmp_path / "again", **options)
        again.train(resume_from_checkpoint=checkpoint)
        assert losses_of(again) == expected
        for a, b in zip(again.model.parameters(), first.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_trainer_saves_what_from_pretrained_loads(tmp_path: Path) -> None:
    run = trainer(patch(ROBERTA.make(), fuse=True), tmp_path)
    run.train()
    run.save_model(str(tmp_path / "final"))
    model = type(run.model).from_pretrained(tmp_path / "final")
    assert len(sparse_layers(model)) == ROBERTA.patched
    inputs = ROBERTA.inputs()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, run.model.eval()(**inputs).logits)
