# SPDX-License-Identifier: Apache-2.0
"""`SparseOptimizer`: moves blocks that matter little to new places while a model trains.

The interface of 0.1 to a part of `pytorch_block_sparse.training`, whose `PatternTrainer` does more.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ._optimizer_state import check_state, clear_slots
from ._validation import check_generator, describe, is_share
from .block_sparse import BlockSparseMatrix
from .training.selection import Candidates, choose

__all__ = ["MagnitudeSparseOptimizerStrategy", "SparseOptimizer", "SparseOptimizerStrategy"]


class SparseOptimizerStrategy:
    """How the blocks to move, their new places and their new values are chosen."""

    def run(self, block_sparse_matrix: BlockSparseMatrix) -> Tensor:
        """Moves blocks of the matrix; returns (k,) int64 on the CPU, the slots that hold others
        now."""
        raise NotImplementedError


class MagnitudeSparseOptimizerStrategy(SparseOptimizerStrategy):
    """Moves the blocks of smallest L2 norm to random free places.

    Args:
        cleanup_ratio: r in [0, 1]: int(n · r) of the n stored blocks move, or as many as there
            are free places. A place that is left is not free within the same run.
        new_coefficients_distribution: of the values there: "uniform" within ± scale times the
            standard deviation of the elements stored before the run, or "gaussian" with scale
            times their mean and scale times their deviation.
        new_coefficients_scale: that scale.
        generator: a CPU generator for places and values; torch's default one if None. Under data
            parallelism every rank must draw the same.
    """

    def __init__(
        self,
        cleanup_ratio: float,
        new_coefficients_distribution: str = "uniform",
        new_coefficients_scale: float = 0.1,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if cleanup_ratio != 0 and not is_share(cleanup_ratio):
            raise ValueError(f"cleanup_ratio is {cleanup_ratio!r}, expected 0 to 1")
        _check_distribution(new_coefficients_distribution)
        _check_scale(new_coefficients_scale)
        check_generator(generator)
        self.cleanup_ratio = cleanup_ratio
        self.new_coefficients_distribution = new_coefficients_distribution
        self.new_coefficients_scale = new_coefficients_scale
        self.generator = generator

    @torch.no_grad()
    def run(self, block_sparse_matrix: BlockSparseMatrix) -> Tensor:
        """Moves the blocks; gradients of the slots involved become zero.

        Returns:
            (k,) int64 on the CPU, the slots that hold other blocks than before.
        """
        matrix = block_sparse_matrix
        stored = matrix.block_mask_build().cpu()
        chance = torch.rand(
            stored.shape, generator=self.generator, dtype=torch.float64, device="cpu"
        )
        candidates = Candidates(matrix.block_norm().cpu(), stored, matrix.slots, chance)
        moving = int(matrix.n_blocks * self.cleanup_ratio)
        (change,) = choose([candidates], matrix.n_blocks, moving)
        if not change.drop.numel():
            return change.drop
        values = self._new_values(matrix, change.drop.numel())
        return matrix.drop_and_grow_(change.drop, change.rows, change.cols, values)

    def _new_values(self, matrix: BlockSparseMatrix, count: int) -> Tensor:
        """(count, h, w) float32 on the CPU."""
        elements = matrix.stored_elements().float()
        mean, std = float(elements.mean()), float(elements.std(correction=0))
        shape = (count, *matrix.block_shape)
        if self.new_coefficients_distribution == "gaussian":
            values = torch.randn(shape, generator=self.generator, device="cpu") * std + mean
        else:
            values = (2 * torch.rand(shape, generator=self.generator, device="cpu") - 1) * std
        return values * self.new_coefficients_scale


class SparseOptimizer(torch.optim.Optimizer):
    """Moves a share of the blocks of `BlockSparseMatrix` modules at each `step()`.

    Step it before the optimizer that trains the model, and attach that one, so that moments which
    belonged to the old blocks are cleared::

        sparse_optimizer = SparseOptimizer(SparseOptimizer.sparse_objects(model), lr=0.1)
        sparse_optimizer.attach_optimizer(adam)

    Args:
        sparse_objects: a `BlockSparseMatrix`, or several.
        lr: share of the blocks of each matrix to move, in (0, 1]. A learning rate scheduler may
            change it, to 0 as well.
        method: "magnitude": see `MagnitudeSparseOptimizerStrategy`.
        new_coefficients_scale, new_coefficients_distribution: of the new values, see there.
        generator: a CPU generator; see there.

    Raises:
        ValueError, TypeError: in one sentence, for arguments that do not fit.
    """

    METHODS = ("magnitude",)
    COEFFICIENTS_DISTRIBUTION = ("uniform", "gaussian")
    allowed_keys = frozenset(
        ("lr", "method", "new_coefficients_scale", "new_coefficients_distribution")
    )

    def __init__(
        self,
        sparse_objects: BlockSparseMatrix | Iterable[BlockSparseMatrix],
        lr: float = 1e-1,
        method: str = "magnitude",
        new_coefficients_scale: float = 0.1,
        new_coefficients_distribution: str = "uniform",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "method": method,
            "new_coefficients_scale": new_coefficients_scale,
            "new_coefficients_distribution": new_coefficients_distribution,
        }
        check_generator(generator)
        self.attached_optimizers: list[torch.optim.Optimizer] = []
        self.generator = generator
        super().__init__([{"sparse_objects": sparse_objects}], defaults)

    @staticmethod
    def sparse_objects(model: nn.Module) -> list[BlockSparseMatrix]:
        """The `BlockSparseMatrix` modules of a model, each once."""
        return [module for module in model.modules() if isinstance(module, BlockSparseMatrix)]

    def attach_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on `step` clears what this optimizer keeps about blocks that move.

        Any optimizer of torch will do, also wrapped by accelerate. More than one may be attached.
        """
        if any(optimizer is other for other in self.attached_optimizers):
            warnings.warn("the optimizer is already attached", stacklevel=2)
            return
        if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "state"):
            raise TypeError(f"optimizer is {describe(optimizer)}, expected a torch.optim.Optimizer")
        self.attached_optimizers.append(optimizer)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds matrices with options of their own.

        Args:
            param_group: `sparse_objects`, and any of `lr`, `method`, `new_coefficients_scale`,
                `new_coefficients_distribution`.
        """
        if not isinstance(param_group, dict) or "sparse_objects" not in param_group:
            raise TypeError(f"param_group is {param_group!r}, expected a dict with sparse_objects")
        unknown = sorted(param_group.keys() - self.allowed_keys - {"sparse_objects"})
        if unknown:
            raise ValueError(
                f"Unknown cleaning parameter {', '.join(unknown)}, expected one of "
                + ", ".join(sorted(self.allowed_keys))
            )
        group = {**self.defaults, **param_group}
        if not is_share(group["lr"]):
            raise ValueError(f"Invalid learning rate: {group['lr']}, expected above 0 to 1")
        if group["method"] not in self.METHODS:
            raise ValueError(f"Invalid Method {group['method']}, expected one of {self.METHODS}")
        _check_distribution(group["new_coefficients_distribution"])
        _check_scale(group["new_coefficients_scale"])
        objects = group["sparse_objects"]
        several = isinstance(objects, Iterable) and not isinstance(objects, nn.Module)
        objects = list(objects) if several else [objects]
        for item in objects:
            if not isinstance(item, BlockSparseMatrix):
                raise TypeError(
                    f"sparse_objects has a {type(item).__name__}, expected BlockSparseMatrix "
                    "modules: SparseOptimizer.sparse_objects(model) lists them"
                )
        if not objects:
            raise ValueError("sparse_objects is empty, expected at least one BlockSparseMatrix")
        others = [item for group in self.param_groups for item in group["sparse_objects"]]
        if len({*objects}) < len(objects) or not {*others}.isdisjoint(objects):
            raise ValueError("some parameters appear in more than one parameter group")
        group["sparse_objects"] = objects
        group["params"] = [matrix.values for matrix in objects]
        self.param_groups.append(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves blocks, clears their gradients and what attached optimizers keep about them.

        Args:
            closure: called first, with gradients enabled; its result is returned.

        Raises:
            ValueError: if optimizers are attached and none of them trains one of the matrices;
                then nothing has been moved.
            TypeError: likewise, if one keeps state that cannot follow blocks, as in 8 bits.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [group for group in self.param_groups if group["lr"] > 0]
        owners = {
            matrix: self._optimizers_of(matrix)
            for group in moving
            for matrix in group["sparse_objects"]
        }
        for group in moving:
            strategy = MagnitudeSparseOptimizerStrategy(
                group["lr"],
                group["new_coefficients_distribution"],
                group["new_coefficients_scale"],
                generator=self.generator,
            )
            for matrix in group["sparse_objects"]:
                slots = strategy.run(matrix)
                for optimizer, options in owners[matrix]:
                    clear_slots(optimizer.state.get(matrix.values, {}), options, slots)
        return loss

    def _optimizers_of(
        self, matrix: BlockSparseMatrix
    ) -> list[tuple[torch.optim.Optimizer, dict[str, Any]]]:
        """The attached optimizers that train a matrix, each with its parameter group."""
        found = [
            (optimizer, group)
            for optimizer in self.attached_optimizers
            for group in optimizer.param_groups
            if any(parameter is matrix.values for parameter in group["params"])
        ]
        if self.attached_optimizers and not found:
            raise ValueError(
                f"no attached optimizer trains {matrix}, expected its values in the parameters of "
                "one of them"
            )
        for optimizer, _ in found:
            check_state(optimizer, matrix.values)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Options of the groups. The matrices are saved with their model."""
        state: dict[str, Any] = super().state_dict()
        for group in state["param_groups"]:
            del group["sparse_objects"]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the options of another `SparseOptimizer` of as many groups and matrices."""
        objects = [group["sparse_objects"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, matrices in zip(self.param_groups, objects, strict=True):
            group["sparse_objects"] = matrices


def _check_distribution(name: str) -> None:
    if name not in SparseOptimizer.COEFFICIENTS_DISTRIBUTION:
        raise ValueError(
            f"Invalid new coefficients distribution {name}, expected one of "
            f"{SparseOptimizer.COEFFICIENTS_DISTRIBUTION}"
        )


def _check_scale(scale: object) -> None:
    if not isinstance(scale, numbers.Real) or not math.isfinite(scale):
        raise ValueError(
            f"new_coefficients_scale is {describe(scale)}, expected a number that is finite"
        )
