# SPDX-License-Identifier: Apache-2.0
"""The dense model and its block-sparse twin."""

from __future__ import annotations

import copy

import torch
from transformers import RobertaForMaskedLM

from pytorch_block_sparse import BlockSparseModelPatcher
from pytorch_block_sparse.patching import PatchReport

from .sizes import SPARSE_LAYERS, Size
from .text import TokenizedCorpus
from .training import Twin


def build_twins(
    size: Size, corpus: TokenizedCorpus, density: float, block: int
) -> tuple[Twin, Twin, PatchReport]:
    """A new model, a copy of it with the layers of SPARSE_LAYERS made sparse, and which."""
    model = RobertaForMaskedLM(size.model_config())
    _start_from_frequencies(model, corpus.training)
    sparse = copy.deepcopy(model)
    patched = make_sparse(sparse, density, block)
    return Twin.create("dense", model, size), Twin.create("sparse", sparse, size), patched


def make_sparse(model: RobertaForMaskedLM, density: float, block: int) -> PatchReport:
    """Patches the layers of SPARSE_LAYERS in place; what was patched."""
    patcher = BlockSparseModelPatcher()
    patcher.add_pattern(SPARSE_LAYERS, {"density": density, "block_shape": (block, block)})
    return patcher.patch_model(model)


@torch.no_grad()
def _start_from_frequencies(model: RobertaForMaskedLM, sequences: torch.Tensor) -> None:
    """Sets the output bias to the log frequencies of the tokens in `sequences` (n, length).

    The model then starts as a unigram model, and no step is spent on learning that.
    """
    vocab_size = model.config.vocab_size
    counts = torch.bincount(sequences.flatten(), minlength=vocab_size).float() + 1
    model.lm_head.bias.copy_((counts / counts.sum()).log())
