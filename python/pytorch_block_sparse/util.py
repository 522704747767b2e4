# SPDX-License-Identifier: Apache-2.0
"""Names that 0.1 had here."""

from .patching import BlockSparseModelPatcher
from .patching import BlockSparseModelPatcher as ModelPatcher

__all__ = ["BlockSparseModelPatcher", "ModelPatcher"]
