# SPDX-License-Identifier: Apache-2.0
"""`PatternTrainerCallback`: pattern training under the `Trainer` of transformers."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..training.config import PatternConfig
from ..training.trainer import PatternTrainer


class PatternTrainerCallback(TrainerCallback, ExportableState):
    """Steps a `PatternTrainer` after each step of the optimizer::

        Trainer(model, args, callbacks=[PatternTrainerCallback(RigL(end=7_500))], …)

    The steps that count are those of the optimizer, however many batches it accumulates. What a
    resumed run needs is in `trainer_state.json` of its checkpoints, and is found there by itself.

    Args:
        config: a method, or the JSON of one.
        options: of the `PatternTrainer`, such as `listeners`.

    Attributes:
        trainer: the `PatternTrainer`, once training has begun; its `history` says what changed.
    """

    def __init__(self, config: PatternConfig | str, **options: Any) -> None:
        self.options = options
        self.config = PatternConfig.from_json(config) if isinstance(config, str) else config
        self.trainer: PatternTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the trainer, and lets it go on where a checkpoint stopped."""
        optimizer = kwargs["optimizer"]
        self.trainer = PatternTrainer(
            kwargs["model"],
            optimizer,
            self.config,
            scaler=getattr(optimizer, "scaler", None),
            **self.options,
        )
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        if saved is not None:
            # Of several checkpoints in one run the last is the one that is resumed from.
            last = saved[-1] if isinstance(saved, list) else saved
            self.trainer.load_state_dict(_decoded(last["attributes"]["saved"]))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Changes the pattern, if it is time."""
        assert self.trainer is not None  # training has begun
        self.trainer.step()

    def state(self) -> dict[str, Any]:
        """What transformers writes into a checkpoint."""
        saved = None if self.trainer is None else _encoded(self.trainer.state_dict())
        return {"args": {"config": self.config.to_json()}, "attributes": {"saved": saved}}


def _encoded(state: dict[str, Any]) -> str:
    """As JSON can hold it."""
    file = io.BytesIO()
    torch.save(state, file)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _decoded(text: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(
        io.BytesIO(base64.b64decode(text)), map_location="cpu", weights_only=True
    )
    return state
