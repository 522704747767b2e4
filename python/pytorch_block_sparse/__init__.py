# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose weight is sparse in blocks, for PyTorch."""

from . import functional, integrations
from .block_sparse import BlockSparseMatrix, BlockSparseMatrixEmulator, stored_parameters
from .block_sparse_linear import BlockSparseLinear, PseudoBlockSparseLinear
from .patching import LayerConfig, PatchReport
from .sparse_optimizer import SparseOptimizer
from .util import BlockSparseModelPatcher

__all__ = [
    "BlockSparseLinear",
    "BlockSparseMatrix",
    "BlockSparseMatrixEmulator",
    "BlockSparseModelPatcher",
    "LayerConfig",
    "PatchReport",
    "PseudoBlockSparseLinear",
    "SparseOptimizer",
    "functional",
    "stored_parameters",
]

# So that `from_pretrained` knows block-sparse models, whichever library is imported first.
integrations.register()
