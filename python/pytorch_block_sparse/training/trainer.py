# SPDX-License-Identifier: Apache-2.0
"""`PatternTrainer`: changes which blocks are stored while a model trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._slots import ddp_wrapper_of
from .._validation import describe, is_distributed
from . import distributed, gates
from .config import PatternConfig
from .layers import governed, look_at, owners_of
from .learning_rates import DensityRates
from .listeners import Listener
from .methods import SNFS, L0Gates, TopKAST
from .planning import growth_scores, plan
from .report import LayerUpdate, PatternUpdate
from .schedules import resize_steps
from .scores import FROM_GRADIENTS, FROM_WEIGHTS
from .watch import StepWatch


class PatternTrainer:
    """Drops and grows blocks of the block-sparse layers of a model while an optimizer trains it.

    Make it after the optimizer (and after DistributedDataParallel or fully_shard), and step it
    after each step of the optimizer, before the gradients are cleared::

        trainer = PatternTrainer(model, optimizer, RigL(update_every=100, end=7_500))
        for batch in batches:
            loss(model, batch).backward()
            optimizer.step()
            trainer.step()
            optimizer.zero_grad()

    The number of stored blocks follows the schedule of the method exactly. Blocks that stay keep
    their slots, values and optimizer state bit for bit; new blocks are zero, with the state of a
    new parameter. On every rank of a process group the pattern is the same.

    Args:
        model: with block-sparse layers, wrapped or not.
        optimizer: that trains them, or several.
        config: the method, one of `training.methods`.
        modules: the layers that are governed, or what contains them; None leaves it to
            `config.layers`, which must match in any case.
        lr_power: lets values learn at the rate of their group times density^-lr_power, whatever
            the density is by then; see `parameter_groups`.
        scaler: the `torch.amp.GradScaler` of the loss, if there is one. A step that it skips is
            none for the pattern either.
        copies: models that are averages of this one (EMA, SWA), to be kept alike in pattern.
        listeners: called after each update with it and `layers`, on the first rank alone: a
            `CsvLog`, a `TensorBoardLog`, a `PatternFilm` or a function.
        process_group: of the ranks that train the same layers; None finds that of
            DistributedDataParallel or FSDP2.

    Attributes:
        steps: how many steps the optimizer has made.
        layers: what is governed.
        history: a `PatternUpdate` for each change so far in this process.
        watches_gradient: whether the next backward computes gradient norms. Then the forward and
            backward of that step must run anew, not replayed from a captured CUDA graph.

    Raises:
        ValueError, TypeError, NotImplementedError: in one sentence, for what cannot work.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        config: PatternConfig,
        *,
        modules: Iterable[nn.Module] | None = None,
        lr_power: float = 0.0,
        scaler: Any = None,
        copies: Iterable[nn.Module] = (),
        listeners: Iterable[Listener] = (),
        process_group: Any = None,
    ) -> None:
        if not isinstance(config, PatternConfig):
            raise TypeError(f"config is {describe(config)}, expected a method such as RigL(end=…)")
        self.config = config
        self.layers = governed(model, config.layers, copies, modules)
        several = optimizer if isinstance(optimizer, Sequence) else [optimizer]
        self._optimizers = [unwrapped(one) for one in several]
        for layer in self.layers:
            owners_of(layer, self._optimizers)
        self._plan_counts()
        values = [layer.matrix.values for layer in self.layers]
        self._group = distributed.group_of(values) if process_group is None else process_group
        if self._resizes:
            _refuse_resize(values)
        if lr_power:
            DensityRates(self._optimizers, self.layers, lr_power)
        self._watch = StepWatch(self._optimizers, scaler)
        self._listeners = list(listeners) if distributed.is_first(self._group) else []
        self._generator = torch.Generator(device="cpu").manual_seed(config.seed)
        self.steps = 0
        self.history: list[PatternUpdate] = []
        if config.score in FROM_WEIGHTS:
            self._choose_forward_sets(0)
        if isinstance(config, L0Gates) and config.rhythm.last > config.start:
            for layer in self.layers:
                layer.use_gates()
        self._get_ready()

    def _plan_counts(self) -> None:
        config, layers = self.config, self.layers
        counts = config.last_counts(
            [(layer.matrix.shape[0], layer.matrix.shape[1]) for layer in layers],
            [layer.matrix.block_shape for layer in layers],
            [layer.first_count for layer in layers],
        )
        for layer, count in zip(layers, counts, strict=True):
            layer.last_count = count
        self._plan_sizes()

    def _plan_sizes(self) -> None:
        """The steps at which storage shrinks."""
        sizes = getattr(self.config, "max_sizes", 1)  # of methods whose storage changes
        rhythm = self.config.rhythm
        totals = [(step, sum(self._counts_at(step))) for step in rhythm.until(rhythm.last)]
        first = sum(layer.first_count for layer in self.layers)
        self._resizes = resize_steps(totals, first, sizes)

    def _counts_at(self, step: int) -> list[int]:
        return [
            self.config.count_at(layer.first_count, layer.last_count, step) for layer in self.layers
        ]

    @property
    def watches_gradient(self) -> bool:
        """See the class."""
        return any(layer.watches_gradient for layer in self.layers)

    @torch.no_grad()
    def step(self, *, stepped: bool | None = None) -> PatternUpdate | None:
        """Changes the pattern, if it is time.

        Args:
            stepped: whether the optimizer has made a step since the last call. None looks at its
                hooks, which a replayed CUDA graph does not call.

        Returns:
            What changed; None at most steps, and where the optimizer has not stepped since the
            last call, as with infinite gradients under a `GradScaler`.

        Raises:
            TypeError: if an optimizer keeps state that cannot follow; nothing has changed then.
            RuntimeError: if gradients were needed and there were none, likewise.
        """
        seen = self._watch.has_stepped(expected=stepped is None)
        if not (seen if stepped is None else stepped):
            self._get_ready()
            return None
        step = self.steps + 1
        if self.config.score in FROM_GRADIENTS and self.config.start < step <= self.config.end:
            for layer in self.layers:
                layer.gather_score(self.config.score)
        norms = self._seen_norms()
        self._learn_gates(step)
        update = None
        if self.config.rhythm.includes(step):
            update = self._change(step, norms)
            self.history.append(update)
            for listener in self._listeners:
                listener(update, self.layers)
        self.steps = step
        self._get_ready()
        return update

    def _change(self, step: int, norms: list[Tensor] | None) -> PatternUpdate:
        owners = [owners_of(layer, self._optimizers) for layer in self.layers]
        look_at(self.layers)
        keep = self._scores()
        if isinstance(self.config, SNFS):
            norms = [_required(layer.norm_average) for layer in self.layers]
        moves = self.config.moving_share(step) > 0
        grow = growth_scores(self.config, self.layers, norms, self._generator) if moves else None
        changes = plan(self.config, self.layers, keep, grow, step)
        for layer, change, its_owners in zip(self.layers, changes, owners, strict=True):
            layer.change(change, its_owners)
        if step in self._resizes:
            for layer, its_owners in zip(self.layers, owners, strict=True):
                if layer.matrix.slots != layer.matrix.n_blocks:
                    layer.resize(layer.matrix.n_blocks, its_owners)
        self._choose_forward_sets(step)
        if step == self.config.rhythm.last:
            for layer in self.layers:
                layer.fold_gates()
        return PatternUpdate(
            step,
            {
                layer.name: LayerUpdate.of(layer, change)
                for layer, change in zip(self.layers, changes, strict=True)
            },
        )

    def _scores(self) -> list[Tensor]:
        """(n,) for each layer, on the CPU: how much each block matters, in stored order."""
        by_slot = [layer.score(self.config.score) for layer in self.layers]
        by_slot = distributed.on_cpu(distributed.of_first_rank(by_slot, self._group))
        return [score[layer.slots] for layer, score in zip(self.layers, by_slot, strict=True)]

    def _choose_forward_sets(self, step: int) -> None:
        """The best of what is stored after a step, until the last update."""
        if not isinstance(self.config, TopKAST):
            return
        for layer, score in zip(self.layers, self._scores(), strict=True):
            if step >= self.config.rhythm.last:
                layer.use_all()
            else:
                count = self.config.forward_count(layer.matrix.n_blocks)
                best = score.nan_to_num(-math.inf).argsort(descending=True, stable=True)
                layer.use_only(best[:count])

    @property
    def _gates(self) -> list[gates.GatedBlocks]:
        return [layer.gates for layer in self.layers if layer.gates is not None]

    def _learn_gates(self, step: int) -> None:
        """From the backward of this step."""
        gated = self._gates
        if not gated:
            return
        assert isinstance(self.config, L0Gates)
        grads = [grad / self._watch.loss_scale for grad in gates.gradients(gated)]
        gates.learn(
            gated,
            distributed.averaged(grads, self._group),
            lr=self.config.gate_lr,
            penalty=self.config.penalty,
            blocks=sum(layer.matrix.n_blocks for layer in self.layers),
            step=step,
        )

    # Gradient norms.

    def _looks_at(self, step: int) -> bool:
        """Whether the gradient norms of a step are wanted."""
        config = self.config
        if config.growth in ("none", "random") or not config.start < step <= config.end:
            return False
        if isinstance(config, SNFS):
            return (step - config.start) % config.norm_every == 0
        return config.rhythm.includes(step) and config.moving_share(step) > 0

    def _get_ready(self) -> None:
        """For the backward of the next step."""
        looks = self._looks_at(self.steps + 1)
        gated = self._gates
        self._watch.wants_scale = looks or bool(gated)
        if gated:
            gates.clear_gradients(gated)
            gates.draw_noise(gated, self.config.seed, self.steps + 1)
        for layer in self.layers:
            if looks:
                layer.watch_gradient()
            else:
                layer.stop_watching()

    def _seen_norms(self) -> list[Tensor] | None:
        """What the backward of this step has shown, on the CPU, the same on every rank."""
        if not self._looks_at(self.steps + 1):
            return None
        seen = [layer.seen_norms() for layer in self.layers]
        if all(norm is None for norm in seen):
            raise RuntimeError(
                f"no backward went through any of {len(seen)} block-sparse layers since the last "
                "step, and their gradient norms are needed now: a step captured in a CUDA graph "
                "must run anew where watches_gradient is true"
            )
        grids = [layer.first_mask.shape for layer in self.layers]
        device = self.layers[0].matrix.crow_indices.device
        norms = [  # of a layer that was not used in this step: zero
            torch.zeros(grid, device=device) if norm is None else norm / self._watch.loss_scale
            for norm, grid in zip(seen, grids, strict=True)
        ]
        norms = distributed.on_cpu(distributed.averaged(norms, self._group))
        if isinstance(self.config, SNFS):
            for layer, norm in zip(self.layers, norms, strict=True):
                past = layer.norm_average
                layer.norm_average = (
                    norm if past is None else torch.lerp(norm, past, self.config.momentum)
                )
        return norms

    # Saving.

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, beside the model and the optimizer."""
        return {
            "config": self.config.to_json(),
            "steps": self.steps,
            "generator": self._generator.get_state(),
            "layers": {layer.name: layer.state_dict() for layer in self.layers},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from `state_dict()`; load the model and the optimizer too.

        The configuration stays the one given here, which may be another: a longer run, say.

        Raises:
            ValueError: in one sentence, if other layers are governed.
        """
        ours, theirs = {layer.name for layer in self.layers}, state_dict["layers"].keys()
        if ours != theirs:
            raise ValueError(
                f"the state is of other layers: {', '.join(sorted(ours ^ theirs))} are on one side "
                "only, expected the same"
            )
        if state_dict["config"] != self.config.to_json():
            warnings.warn(
                f"the state was saved with {state_dict['config']}, and goes on with "
                f"{self.config.to_json()}",
                stacklevel=2,
            )
        for layer in self.layers:
            layer.load_state_dict(state_dict["layers"][layer.name])
        self._plan_sizes()
        self.steps = int(state_dict["steps"])
        self._generator.set_state(state_dict["generator"].cpu())
        self._get_ready()


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer of torch, in what accelerate wraps around it."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is {describe(optimizer)}, expected a torch.optim.Optimizer")
    return optimizer


def _refuse_resize(values: Sequence[nn.Parameter]) -> None:
    reason = None
    if any(is_distributed(parameter) for parameter in values):
        reason = "FSDP, which holds shards of them"
    elif any(ddp_wrapper_of(parameter) is not None for parameter in values):
        reason = "DistributedDataParallel, which holds on to their gradients"
    if reason is not None:
        raise ValueError(
            f"the values cannot be resized under {reason}, expected max_sizes=1: blocks that are "
            "gone then leave free slots, until you unwrap the model, call resize_slots_ and wrap "
            "it again"
        )


def _required(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # an update is a step at which norms are seen
    return tensor
