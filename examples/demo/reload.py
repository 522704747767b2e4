# SPDX-License-Identifier: Apache-2.0
"""Run in a process of its own: loads a saved model and compares its logits with saved ones.

python -m examples.demo.reload MODEL_FOLDER SAMPLE_FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

import pytorch_block_sparse  # noqa: F401  (teaches from_pretrained to read block-sparse models)


@torch.no_grad()
def save_sample(model: PreTrainedModel, input_ids: torch.Tensor, path: Path) -> None:
    """Writes `input_ids` (batch, length) and the model's logits for them."""
    model.eval()
    save_file({"input_ids": input_ids, "logits": model(input_ids=input_ids).logits}, path)


@torch.no_grad()
def largest_difference(folder: Path, sample: Path) -> float:
    """Between the saved logits and those of the model loaded from `folder`; 0 if bit for bit."""
    transformers_logging.disable_progress_bar()
    expected = load_file(sample)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    logits = model(input_ids=expected["input_ids"]).logits
    if torch.equal(logits, expected["logits"]):
        return 0.0
    return float((logits - expected["logits"]).abs().max())


if __name__ == "__main__":
    print(largest_difference(Path(sys.argv[1]), Path(sys.argv[2])))
