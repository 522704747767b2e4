# SPDX-License-Identifier: Apache-2.0
"""What the demo trains, and how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import RobertaConfig

# The layers that pytorch_block_sparse 0.1 made sparse in its README: the two of each MLP and the
# output of each attention.
SPARSE_LAYERS = (
    r"roberta\.encoder\.layer\.[0-9]+\.(intermediate\.dense|output\.dense|attention\.output\.dense)"
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model (a file of configs/) and its training."""

    config: str
    sequence_length: int
    batch_size: int
    steps: int
    warmup_steps: int
    evaluate_every: int
    held_out_sequences: int
    learning_rate: float
    masked_share: float = 0.3
    compares_losses: bool = True  # False: too few steps to say anything about the loss

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.sequence_length * self.batch_size

    def model_config(self) -> RobertaConfig:
        path = Path(__file__).parent / "configs" / f"{self.config}.json"
        return RobertaConfig.from_json_file(path)


SIZES = {
    # Learns something in a few minutes on two cores.
    "small": Size(
        config="small",
        sequence_length=64,
        batch_size=16,
        steps=500,
        warmup_steps=60,
        evaluate_every=50,
        held_out_sequences=256,
        learning_rate=7e-4,
    ),
    # The model of the 0.1 README; a few steps, to see what they cost.
    "roberta": Size(
        config="roberta",
        sequence_length=128,
        batch_size=8,
        steps=6,
        warmup_steps=6,
        evaluate_every=6,
        held_out_sequences=16,
        learning_rate=1e-4,
        compares_losses=False,
    ),
}
