# SPDX-License-Identifier: Apache-2.0
"""One layer under pattern training: its matrix, copies that follow it, and what is known of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._optimizer_state import check_state, clear_slots, move_slots
from .._validation import describe
from ..block_sparse import BlockSparseMatrix
from ..pattern import blocks_of
from . import scores
from .distributed import on_cpu
from .forward_subset import ForwardSubset
from .gates import GatedBlocks
from .gradient_norms import GradientNorms
from .selection import Change


class GovernedLayer:
    """A matrix whose pattern is trained.

    Attributes:
        name: of the layer in the model, without what wrappers put in front.
        matrix: its weight.
        copies: matrices that are kept alike in pattern, such as those of a moving average.
        first_count, last_count: blocks at the beginning and in the end.
        first_mask: (R, C) bool, on the CPU, the pattern at the beginning.
        gathered: (slots,) a score that is gathered over steps; nan where nothing is known yet.
        norm_average: (R, C) a moving average of gradient norms.
        mask: (R, C) bool, on the CPU, the pattern now.
        blocks: (3, n) int64, on the CPU, block row, block column and slot of each block now, in
            stored order.
        slots: (n,), the last of them.
        subset: what multiplies where the forward uses a part of the blocks.
        gates: what multiplies where blocks have gates.
    """

    def __init__(
        self, name: str, matrix: BlockSparseMatrix, copies: list[BlockSparseMatrix]
    ) -> None:
        self.name = name
        self.matrix = matrix
        self.copies = copies
        self.first_count = self.last_count = matrix.n_blocks
        self.first_mask = matrix.block_mask_build().cpu()
        self.blocks = self.slots = torch.empty(0)
        self.mask = self.first_mask
        self.look()
        self.gathered: Tensor | None = None
        self.norm_average: Tensor | None = None
        self.subset: ForwardSubset | None = None
        self.gates: GatedBlocks | None = None
        for other in copies:
            alike = other.slots == matrix.slots and all(
                torch.equal(theirs.cpu(), ours.cpu())
                for theirs, ours in zip(other.index[:3], matrix.index[:3], strict=True)
            )
            if not alike:
                raise ValueError(
                    f"the copy of {name} has other slots or blocks, expected a copy of the model "
                    "as it is now"
                )

    # What is seen.

    def watch_gradient(self) -> None:
        """From now on backwards compute the norms of the gradient."""
        self.matrix.product = GradientNorms(self.matrix)

    def stop_watching(self) -> None:
        """Multiplies as it does otherwise."""
        self.matrix.product = self.gates if self.subset is None else self.subset

    @property
    def watches_gradient(self) -> bool:
        """Whether backwards compute the norms of the gradient."""
        return isinstance(self.matrix.product, GradientNorms)

    def seen_norms(self) -> Tensor | None:
        """(R, C) float32, since `watch_gradient`, which ends; None if there was no backward."""
        watching = self.matrix.product
        self.stop_watching()
        return watching.norms.grad if isinstance(watching, GradientNorms) else None

    def gather_score(self, score: str) -> None:
        """Adds what the present gradient says to a score that is gathered over steps."""
        part = scores.of_gradient(score, self.matrix)
        if part is None:
            return
        self.gathered = scores.gather(score, self.gathered, part)

    def score(self, score: str) -> Tensor:
        """(slots,) float32: how much each block matters, by slot."""
        if self.gates is not None:
            return self.gates.log_alpha.detach()
        looks_at_weights = score in scores.FROM_WEIGHTS
        by_slot = scores.of_weights(score, self.matrix) if looks_at_weights else self.gathered
        if by_slot is None:
            raise RuntimeError(
                f"{self.name} had no gradient, which the score {score!r} looks at: step the "
                "pattern after the optimizer and before zero_grad"
            )
        return by_slot

    # What the forward uses.

    def use_only(self, blocks: Tensor) -> None:
        """Lets the forward multiply with those blocks alone, given in stored order."""
        for matrix in (self.matrix, *self.copies):
            subset = matrix.product
            if not isinstance(subset, ForwardSubset):
                matrix.product = subset = ForwardSubset()
            subset.choose(matrix, blocks)
            if matrix is self.matrix:
                self.subset = subset

    def use_all(self) -> None:
        """Lets the forward multiply with all blocks again, as they are."""
        self.subset = self.gates = None
        for matrix in (self.matrix, *self.copies):
            matrix.product = None

    def use_gates(self) -> GatedBlocks:
        """Gives each block a gate; the copies share them."""
        self.gates = gates = GatedBlocks(self.matrix)
        for matrix in (self.matrix, *self.copies):
            matrix.product = gates
        return gates

    def fold_gates(self) -> None:
        """Multiplies the blocks by their gates, which end."""
        if self.gates is not None:
            for matrix in (self.matrix, *self.copies):
                self.gates.fold(matrix)
            self.use_all()

    # What changes.

    def look(self, blocks: Tensor | None = None) -> None:
        """Takes the pattern as it is now to the CPU.

        Args:
            blocks: (3, n) as `blocks_of` gives it, for who knows it.
        """
        if blocks is None:
            blocks = blocks_of(*on_cpu(self.matrix.index[:3]))
        self.blocks = blocks.cpu()
        rows, cols, self.slots = self.blocks
        self.mask = torch.zeros_like(self.first_mask)
        self.mask[rows, cols] = True

    def change(self, change: Change, owners: Owners) -> None:
        """Drops and grows; new blocks are zero, and state of slots that are left or taken starts
        anew."""
        left = self.slots[change.drop]
        now = self.blocks
        taken, then = self.matrix._drop_and_grow(now, change.drop, change.rows, change.cols)
        for other in self.copies:
            other._drop_and_grow(now, change.drop, change.rows, change.cols)
        self.look(then)
        changed = torch.cat([left, taken]).to(self.matrix.values.device)
        for optimizer, options in owners:
            clear_slots(optimizer.state.get(self.matrix.values, {}), options, changed)
        if self.gathered is not None:
            self.gathered.index_fill_(0, changed, torch.nan)

    def resize(self, slots: int, owners: Owners) -> None:
        """Room for another number of blocks, with what optimizers know of them."""
        former = self.matrix.slots
        source = self.matrix.resize_slots_(slots)
        for other in self.copies:
            other.resize_slots_(slots)
        for optimizer, options in owners:
            state = optimizer.state.get(self.matrix.values, {})
            move_slots(state, options, source, slots, former)
        self.look()
        if self.gathered is not None:
            moved = self.gathered.new_full((slots,), torch.nan)
            moved[: source.numel()] = self.gathered[source]
            self.gathered = moved
        if self.gates is not None:
            self.gates.move(source, slots)

    # What is saved.

    def state_dict(self) -> dict[str, Any]:
        """All that is not in the model or the optimizer."""
        return {
            "first_count": self.first_count,
            "last_count": self.last_count,
            "first_mask": self.first_mask.clone(),
            "gathered": _copy(self.gathered),
            "norm_average": _copy(self.norm_average),
            "subset": None if self.subset is None else self.subset.blocks.clone(),
            "gates": None if self.gates is None else self.gates.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned."""
        self.look()
        self.first_count, self.last_count = state["first_count"], state["last_count"]
        self.first_mask = state["first_mask"].clone().cpu()
        self.gathered = _copy(state["gathered"], self.matrix.crow_indices.device)
        self.norm_average = _copy(state["norm_average"], torch.device("cpu"))
        self.use_all()
        if state["subset"] is not None:
            self.use_only(state["subset"].cpu())
        if state["gates"] is not None:
            self.use_gates().load_state_dict(state["gates"])


Owners = Sequence[tuple[torch.optim.Optimizer, dict[str, Any]]]


def owners_of(
    layer: GovernedLayer, optimizers: Sequence[torch.optim.Optimizer]
) -> list[tuple[torch.optim.Optimizer, dict[str, Any]]]:
    """The optimizers that train a layer, each with its parameter group.

    Raises:
        ValueError, TypeError: in one sentence, if none does, or one cannot follow its blocks.
    """
    values = layer.matrix.values
    found = [
        (optimizer, group)
        for optimizer in optimizers
        for group in optimizer.param_groups
        if any(parameter is values for parameter in group["params"])
    ]
    if not found:
        raise ValueError(
            f"no optimizer trains {layer.name}, expected its weight.values in the parameters of "
            "one of them: make the optimizer of the parameters of the patched model, or leave the "
            "layer out by layers="
        )
    for optimizer, _ in found:
        if any("muon" in kind.__name__.lower() for kind in type(optimizer).__mro__):
            raise TypeError(
                f"{type(optimizer).__name__} orthogonalises matrices, but {layer.name} stores its "
                f"weight as {tuple(values.shape)}, blocks in slots: give it to another optimizer, "
                "such as torch.optim.AdamW"
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError(
                "LBFGS keeps a history of all parameters as one, which blocks that come and go "
                "cannot be followed in: take another optimizer, such as torch.optim.AdamW"
            )
        check_state(optimizer, values)
    return found


def look_at(layers: Sequence[GovernedLayer]) -> None:
    """Takes the patterns of layers as they are now to the CPU, in one transfer."""
    index = on_cpu([tensor for layer in layers for tensor in layer.matrix.index[:3]])
    for i, layer in enumerate(layers):
        layer.look(blocks_of(*index[3 * i : 3 * i + 3]))


def governed(
    model: nn.Module,
    layers: str | None,
    copies: Iterable[nn.Module],
    modules: Iterable[nn.Module] | None = None,
) -> list[GovernedLayer]:
    """The layers of a model whose names match from their beginning, all if `layers` is None; of
    those only what is in one of `modules`, if these are given.

    Raises:
        ValueError, TypeError: in one sentence, if there is none, or a copy lacks one.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {describe(model)}, expected a torch.nn.Module")
    matrices = named_matrices(model)
    others = [named_matrices(copy) for copy in copies]
    chosen = {
        name: matrix
        for name, matrix in matrices.items()
        if layers is None or re.match(layers, name)
    }
    if chosen and modules is not None:
        inside = {id(part) for module in modules for part in _module(module).modules()}
        chosen = {name: matrix for name, matrix in chosen.items() if id(matrix) in inside}
        if not chosen:
            raise ValueError(
                "modules has none of the block-sparse layers of the model that layers matches, "
                f"expected one of {', '.join(matrices)} or what contains it"
            )
    if not chosen:
        raise ValueError(
            f"layers is {layers!r}, which matches none of the block-sparse layers of the model, "
            f"expected one of {', '.join(matrices) or 'them, but it has none: patch it first'}"
        )
    for name in chosen:
        if any(name not in other for other in others):
            raise ValueError(f"a copy of the model has no block-sparse layer {name}, expected all")
    return [
        GovernedLayer(name, matrix, [other[name] for other in others])
        for name, matrix in chosen.items()
    ]


def named_matrices(model: nn.Module) -> dict[str, BlockSparseMatrix]:
    """The matrices of a model, each once, by the name of their layer in the unwrapped model."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, BlockSparseMatrix):
            parts = [part for part in name.split(".") if part != "_orig_mod"]
            while parts[:1] == ["module"]:
                parts = parts[1:]
            if parts[-1:] == ["weight"]:
                parts = parts[:-1]
            found[".".join(parts)] = module
    return found


def _module(module: Any) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise TypeError(f"modules has {describe(module)}, expected a torch.nn.Module")
    return module


def _copy(tensor: Tensor | None, device: torch.device | None = None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone().to(device or tensor.device)
