# SPDX-License-Identifier: Apache-2.0
"""Replacing the linear layers of a model by block-sparse ones."""

from .config import LayerConfig
from .patcher import BlockSparseModelPatcher
from .report import PatchedLayer, PatchReport

__all__ = ["BlockSparseModelPatcher", "LayerConfig", "PatchReport", "PatchedLayer"]
