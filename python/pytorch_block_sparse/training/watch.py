# SPDX-License-Identifier: Apache-2.0
"""Whether the optimizer has really stepped, and by what its gradients were scaled."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

#: Calls in a row without a step of the optimizer, after which something must be wrong: a
#: `GradScaler` that starts at 2^16 has come down to 1 by then.
PATIENCE = 100


class StepWatch:
    """Looks at the optimizers through their hooks, so that it does not matter who steps them.

    Attributes:
        wants_scale: whether the scale of the loss is asked for, which waits for the device.
        loss_scale: what the loss of the last step was multiplied by.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], scaler: Any) -> None:
        self._scaler = scaler
        self._stepped = False
        self._missed = 0
        self.wants_scale = False
        self.loss_scale = 1.0
        for optimizer in optimizers:
            optimizer.register_step_post_hook(self._after)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # A fused optimizer is called by the scaler in any case, and told what was found.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        self._stepped = True
        if self.wants_scale and self._scaler is not None:
            self.loss_scale = float(self._scaler.get_scale())

    def has_stepped(self, expected: bool = True) -> bool:
        """Whether an optimizer has stepped since the last call; warns if none ever does, though
        that is expected."""
        stepped, self._stepped = self._stepped, False
        self._missed = 0 if stepped or not expected else self._missed + 1
        if self._missed == PATIENCE:
            warnings.warn(
                f"PatternTrainer.step was called {PATIENCE} times and its optimizer has not "
                "stepped, so the pattern stands still: is it given the optimizer that trains?",
                stacklevel=3,
            )
        return stepped
