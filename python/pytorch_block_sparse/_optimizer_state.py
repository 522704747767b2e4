# SPDX-License-Identifier: Apache-2.0
"""What optimizers keep about the slots of a matrix, where these come to hold something else.

Whatever has a row per slot is such a state: moments, sums, step sizes. Rows that no longer belong
to what is in the slot start again as those of a new parameter; step counts go on.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

_RESIZED = "_block_sparse_resized"
_hooked = False


def clear_slots(state: dict[str, Any], options: dict[str, Any], slots: Tensor) -> None:
    """Starts the rows `slots` anew, in place.

    Args:
        state: of one parameter.
        options: of its parameter group.
        slots: (k,) int64.
    """
    for key, tensor in _rows(state).items():
        tensor[slots.to(tensor.device)] = _initial(key, options)


def note_resize(values: nn.Parameter) -> None:
    """Lets every optimizer start its state of `values` anew at its next step, if that has another
    number of slots by then.

    A parameter does not know its optimizers, so they look: each before its step, from the first
    resize in the process on.
    """
    global _hooked
    setattr(values, _RESIZED, True)
    if not _hooked:
        register_optimizer_step_pre_hook(_refit)
        _hooked = True


def _refit(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for options in optimizer.param_groups:
        for values in options["params"]:
            if not hasattr(values, _RESIZED):
                continue
            state = optimizer.state.get(values, {})
            stale = {k: t for k, t in _rows(state).items() if t.shape[0] != values.shape[0]}
            for key, tensor in stale.items():
                shape = values.shape[0], *tensor.shape[1:]
                state[key] = tensor.new_full(shape, _initial(key, options))
            if stale:
                warnings.warn(
                    f"{type(optimizer).__name__} starts anew for a BlockSparseMatrix whose number "
                    f"of slots a load has changed to {values.shape[0]}: {', '.join(stale)} did not "
                    "fit; to go on from saved ones, load the state of the optimizer too",
                    stacklevel=3,  # past the wrapper that torch puts around step
                )


def _rows(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that have a row per slot."""
    return {k: t for k, t in state.items() if isinstance(t, Tensor) and t.ndim == 3}


def _initial(key: str, options: dict[str, Any]) -> float:
    """What a state starts with: zero in every optimizer of torch but for the two named here."""
    if key == "sum":  # Adagrad
        return float(options.get("initial_accumulator_value", 0.0))
    return float(options["lr"]) if key == "step_size" else 0.0  # Rprop
