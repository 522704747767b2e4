# SPDX-License-Identifier: Apache-2.0
"""Training of patterns: which blocks are stored changes while the values are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import PatternConfig
from .learning_rates import parameter_groups
from .listeners import CsvLog, PatternFilm, TensorBoardLog
from .methods import (
    SET,
    SNFS,
    BLaST,
    GradualMagnitude,
    GroupGrowth,
    L0Gates,
    MovementPruning,
    RigL,
    Static,
    TopKAST,
)
from .report import LayerUpdate, PatternUpdate
from .trainer import PatternTrainer

if TYPE_CHECKING:
    from ..integrations.trainer_callback import PatternTrainerCallback

__all__ = [
    "SET",
    "SNFS",
    "BLaST",
    "CsvLog",
    "GradualMagnitude",
    "GroupGrowth",
    "L0Gates",
    "LayerUpdate",
    "MovementPruning",
    "PatternConfig",
    "PatternFilm",
    "PatternTrainer",
    "PatternTrainerCallback",
    "PatternUpdate",
    "RigL",
    "Static",
    "TensorBoardLog",
    "TopKAST",
    "parameter_groups",
]


def __getattr__(name: str) -> Any:
    """`PatternTrainerCallback`, which imports transformers when it is asked for."""
    if name != "PatternTrainerCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..integrations.trainer_callback import PatternTrainerCallback

    return PatternTrainerCallback
