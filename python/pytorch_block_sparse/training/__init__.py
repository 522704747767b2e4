# SPDX-License-Identifier: Apache-2.0
"""Training of patterns: which blocks are stored changes while the values are trained."""

from .config import PatternConfig
from .methods import (
    SET,
    SNFS,
    BLaST,
    GradualMagnitude,
    GroupGrowth,
    MovementPruning,
    RigL,
    Static,
)
from .report import LayerUpdate, PatternUpdate
from .trainer import PatternTrainer

__all__ = [
    "SET",
    "SNFS",
    "BLaST",
    "GradualMagnitude",
    "GroupGrowth",
    "LayerUpdate",
    "MovementPruning",
    "PatternConfig",
    "PatternTrainer",
    "PatternUpdate",
    "RigL",
    "Static",
]
