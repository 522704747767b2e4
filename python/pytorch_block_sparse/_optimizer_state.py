# SPDX-License-Identifier: Apache-2.0
"""What optimizers keep about the slots of a matrix, where these come to hold something else.

Whatever has a row per slot is such a state: moments, sums, step sizes, also the factors of
Adafactor. Rows that no longer belong to what is in the slot start again as those of a new
parameter; step counts go on.
"""

from __future__ import annotations

import warnings
from collections.abc import Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ._sharding import local_rows
from ._validation import describe, is_distributed

_FORMER_SLOTS = "_block_sparse_former_slots"
_hooked = False


def check_state(optimizer: torch.optim.Optimizer, values: nn.Parameter) -> None:
    """Raises TypeError, in one sentence, if what an optimizer keeps about `values` cannot follow
    blocks that come and go."""
    kind = type(optimizer).__name__
    for key, entry in optimizer.state.get(values, {}).items():
        if isinstance(entry, (int, float, str, type(None))):
            continue
        plain = isinstance(entry, Tensor) and (
            type(entry) in (Tensor, nn.Parameter) or is_distributed(entry)
        )
        if plain and entry.numel() <= 1:
            continue
        by_slot = plain and entry.is_floating_point() and entry.shape[0] == values.shape[0]
        if not by_slot:
            raise TypeError(
                f"{kind} keeps {key}, {describe(entry)}, about values of shape "
                f"{tuple(values.shape)}, expected a floating tensor with a row per slot, which "
                "blocks that come and go can be followed in: take an optimizer that keeps plain "
                "tensors, such as torch.optim.AdamW"
            )


def clear_slots(state: dict[str, Any], options: dict[str, Any], slots: Tensor) -> None:
    """Starts the rows `slots` anew, in place.

    Args:
        state: of one parameter.
        options: of its parameter group.
        slots: (k,) int64.
    """
    for key, tensor in _rows(state).items():
        local, rows = local_rows(tensor, slots)
        local.index_fill_(0, rows, _initial(key, options))


def move_slots(
    state: dict[str, Any], options: dict[str, Any], source: Tensor, slots: int, former: int
) -> None:
    """Gives the state another number of slots: what was in slot `source[i]` of `former` ones is
    in slot i of `slots`; the rows beyond start anew.

    Args:
        state: of one parameter.
        options: of its parameter group.
        source: (n,) int64, n <= slots.
        slots, former: the new and the old number.
    """
    for key, tensor in _rows(state, {former}).items():
        moved = tensor.new_full((slots, *tensor.shape[1:]), _initial(key, options))
        moved[: source.numel()] = tensor[source.to(tensor.device)]
        state[key] = moved


def note_resize(values: nn.Parameter, former: int) -> None:
    """Lets every optimizer start its state of `values`, which had `former` slots, anew at its next
    step, if that has another number of slots by then.

    A parameter does not know its optimizers, so they look: each before its step, from the first
    resize in the process on.
    """
    global _hooked
    setattr(values, _FORMER_SLOTS, getattr(values, _FORMER_SLOTS, frozenset()) | {former})
    if not _hooked:
        register_optimizer_step_pre_hook(_refit)
        _hooked = True


def _refit(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for options in optimizer.param_groups:
        for values in options["params"]:
            former: frozenset[int] = getattr(values, _FORMER_SLOTS, frozenset()) - {values.shape[0]}
            if not former:
                continue
            state = optimizer.state.get(values, {})
            stale = _rows(state, former)
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


def _rows(state: dict[str, Any], counts: Set[int] | None = None) -> dict[str, Tensor]:
    """The tensors that have a row per slot: of one of `counts` rows, or of any number."""
    return {
        key: tensor
        for key, tensor in state.items()
        if isinstance(tensor, Tensor)
        and tensor.ndim >= 2
        and (counts is None or tensor.shape[0] in counts)
    }


def _initial(key: str, options: dict[str, Any]) -> float:
    """What a state starts with: zero in every optimizer of torch but for the two named here."""
    if key == "sum":  # Adagrad
        return float(options.get("initial_accumulator_value", 0.0))
    return float(options["lr"]) if key == "step_size" else 0.0  # Rprop
