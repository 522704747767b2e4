# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose weight is sparse in blocks, for PyTorch."""

from . import functional
from .block_sparse import BlockSparseMatrix, stored_parameters
from .block_sparse_linear import BlockSparseLinear, PseudoBlockSparseLinear
from .util import BlockSparseModelPatcher

__all__ = [
    "BlockSparseLinear",
    "BlockSparseMatrix",
    "BlockSparseModelPatcher",
    "PseudoBlockSparseLinear",
    "functional",
    "stored_parameters",
]
