# SPDX-License-Identifier: Apache-2.0
"""Pattern training under the Trainer of transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import FAMILIES
from torch import Tensor

from pytorch_block_sparse import BlockSparseMatrix, BlockSparseModelPatcher
from pytorch_block_sparse.training import (
    GradualMagnitude,
    PatternConfig,
    PatternTrainer,
    PatternTrainerCallback,
    RigL,
)

pytestmark = pytest.mark.host

ROBERTA = FAMILIES["roberta"]
STEPS = 12
CONFIGS: list[PatternConfig] = [
    RigL(update_every=2, end=10, score="fisher", layers=r".*\.intermediate"),
    GradualMagnitude(update_every=1, end=10, density=0.2, max_sizes=4),
]


def model(seed: int = 0) -> Any:
    made = ROBERTA.make(seed)
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    patcher = BlockSparseModelPatcher()
    options = {"density": 0.5, "block_shape": (8, 8), "pattern": "random"}
    patcher.add_pattern(ROBERTA.pattern, options)
    patcher.patch_model(made)
    return made


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(5, 97, (16, 12), generator=generator)


def trainer(
    made: Any, callback: PatternTrainerCallback, folder: Path, **options: Any
) -> transformers.Trainer:
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": STEPS,
        "save_steps": 3,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 3e-3,
        "report_to": [],
        "disable_tqdm": True,
        "seed": 3,
        **options,
    }
    return transformers.Trainer(
        model=made,
        args=transformers.TrainingArguments(**arguments),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens()],
        callbacks=[callback],
    )


def masks(made: Any) -> list[Tensor]:
    return [m.block_mask_build() for m in made.modules() if isinstance(m, BlockSparseMatrix)]


def losses(run: transformers.Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("config", CONFIGS, ids=["rigl", "gradual"])
@pytest.mark.parametrize("stop", [3, 6])
def test_resumes_to_the_same_patterns_and_losses(
    config: PatternConfig, stop: int, tmp_path: Path
) -> None:
    callback = PatternTrainerCallback(config)
    first = trainer(model(), callback, tmp_path)
    first.train()
    assert callback.trainer is not None
    assert callback.trainer.steps == STEPS
    assert len(callback.trainer.history) == len(config.rhythm.until(STEPS))
    again = trainer(model(1), PatternTrainerCallback(config.to_json()), tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert losses(again) == losses(first)
    patterns = zip(masks(again.model), masks(first.model), strict=True)
    assert all(torch.equal(a, b) for a, b in patterns)
    for a, b in zip(again.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accumulated_gradients_count_as_one_step(tmp_path: Path) -> None:
    """As a plain loop does it: an update after so many steps of the optimizer, with the norms of
    all parts of the batch."""
    heard: list[int] = []
    callback = PatternTrainerCallback(
        RigL(update_every=2, end=5), listeners=[lambda update, layers: heard.append(update.step)]
    )
    options = {"gradient_accumulation_steps": 2, "max_steps": 5, "lr_scheduler_type": "constant"}
    run = trainer(model(), callback, tmp_path, **options, max_grad_norm=0.0)
    seen: list[Any] = []
    run.data_collator = _recorded(run.data_collator, seen)
    run.train()
    assert callback.trainer is not None
    assert [update.step for update in callback.trainer.history] == heard == [2, 4]
    assert callback.trainer.steps == 5

    plain = model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3, weight_decay=0.0)
    pattern = PatternTrainer(plain, optimizer, RigL(update_every=2, end=5))
    plain.train()
    for step in range(5):
        for batch in seen[2 * step : 2 * step + 2]:
            (plain(**batch).loss / 2).backward()
        optimizer.step()
        pattern.step()
        optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(masks(plain), masks(run.model), strict=True))


def _recorded(collator: Any, seen: list[Any]) -> Any:
    def call(features: Any) -> Any:
        batch = collator(features)
        seen.append({key: value.clone() for key, value in batch.items()})
        return batch

    return call


def test_transformers_is_imported_when_it_is_asked_for() -> None:
    script = (
        "import sys, pytorch_block_sparse.training as training\n"
        "assert 'transformers' not in sys.modules and 'torch._dynamo' not in sys.modules\n"
        "training.PatternTrainerCallback\n"
        "assert 'transformers' in sys.modules\n"
        "try: training.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "has no attribute 'nothing'" in found.stdout
