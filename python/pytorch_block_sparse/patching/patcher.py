# SPDX-License-Identifier: Apache-2.0
"""Replacing the linear layers of a model, chosen by regular expressions on their names."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .._validation import as_mask, describe
from ..block_sparse import stored_parameters
from ..block_sparse_linear import BlockSparseLinear, PseudoBlockSparseLinear
from ..density import block_grid, erk_block_counts
from ..functional import Activation
from ..integrations import describe_model, foreign_quantization
from ..pattern import block_count_of
from .activations import FusedActivation, activation_name, fusible
from .config import ACTIVATIONS, LayerConfig
from .layers import dense_view, make_sparse, refusal
from .report import PatchedLayer, PatchReport


@dataclasses.dataclass(eq=False)
class _Replacement:
    """A layer that will be replaced, under all of its names."""

    names: list[str]
    module: nn.Module
    pattern: int
    config: LayerConfig
    activation: Activation
    fused_in: nn.Module | None = None  # the MLP whose activation moves into the layer
    mask: torch.Tensor | None = None
    blocks: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        linear = dense_view(self.module)
        return linear.out_features, linear.in_features


class BlockSparseModelPatcher:
    """Makes the linear layers of a model block-sparse, in place.

    Example::

        patcher = BlockSparseModelPatcher()
        patcher.add_pattern(r".*\\.intermediate\\.dense", {"density": 0.5})
        print(patcher.patch_model(model))

    Replaced are `torch.nn.Linear` and transformers' `Conv1D`. Patch before making the optimizer
    and before wrapping the model (DDP, FSDP, `torch.compile`): these hold on to the old weights.

    Args:
        exclude: regular expressions, matched like the patterns; layers they match stay as they are.
        fuse_activation: in the MLPs of known transformers models (`patching.activations.FUSIBLE`),
            lets the first linear layer compute the activation too, when a pattern matches it. The
            outputs stay the same. An activation that the layer can't compute is an error.
    """

    def __init__(self, *, exclude: str | Iterable[str] = (), fuse_activation: bool = False) -> None:
        self._patterns: list[tuple[re.Pattern[str], LayerConfig]] = []
        several = isinstance(exclude, Iterable) and not isinstance(exclude, str)
        expressions = list(exclude) if several else [exclude]
        self._exclude = [_compiled(expression, "exclude") for expression in expressions]
        self._fuse_activation = fuse_activation

    def add_pattern(self, pattern: str, patch_info: LayerConfig | Mapping[str, Any]) -> None:
        """Adds a rule: layers whose name `pattern` matches become what `patch_info` says.

        Args:
            pattern: regular expression for `re.match` on the name of the module, so it may match
                a mere beginning. Of several matching patterns the first added counts.
            patch_info: a `LayerConfig`, or a dict of its fields such as `{"density": 0.5}`.

        Raises:
            ValueError: if `pattern` is not a regular expression or a field is out of range.
            TypeError: if `patch_info` or one of its fields has the wrong type.
        """
        self._patterns.append((_compiled(pattern, "pattern"), LayerConfig.of(patch_info)))

    def get_patchable_layers(self, model: nn.Module) -> list[dict[str, Any]]:
        """The layers of `model` that can be patched.

        Returns:
            One `{"regexp": name with special characters escaped, "layer": module}` a layer.

        Raises:
            TypeError: if `model` is no module.
        """
        _check_module(model)
        holders = _parameter_holders(model)
        return [
            {"regexp": re.escape(name), "layer": module}
            for name, module in model.named_modules()
            if name and _refusal(module, holders) is None
        ]

    def patch_model(self, model: nn.Module) -> PatchReport:
        """Replaces the matching layers of `model` in place.

        Everything is checked and all new layers are built before the first is replaced: after an
        error the model is as it was. Meanwhile the old and the new weights are both in memory.
        Patterns are drawn from torch's default CPU generator, in the order of the layers, so
        `torch.manual_seed` fixes them. A layer used under several names is replaced once, under
        all of them. The configuration of a transformers model is told about its layers, so that
        `save_pretrained` and `from_pretrained` work.

        Returns:
            What was replaced; false, and printed as such, if nothing was. Then there is a warning.

        Raises:
            TypeError: "Cannot patch <name>: …" if a pattern matches what can't be patched.
            ValueError: "Cannot patch <name>: …" if a mask has the wrong shape or no block, or a
                pattern does not fit; or if an activation can't be fused.
        """
        _check_module(model)
        # What a lazy layer elsewhere in the model has not made yet has no size.
        before = sum(p.numel() for p in model.parameters() if not is_lazy(p))
        plan = self._plan(model)
        if not plan:
            warnings.warn(
                "BlockSparseModelPatcher did not patch anything: no layer matches "
                f"{[expression.pattern for expression, _ in self._patterns]}; "
                "get_patchable_layers(model) lists the layers",
                stacklevel=2,
            )
            return PatchReport((), before, before)
        foreign = foreign_quantization(model)
        if foreign is not None:
            raise ValueError(f"Cannot patch the model: {foreign}")
        layers = [_made(item) for item in plan]
        # Before anything is replaced: a warning may be an error.
        self._warn_of_idle_patterns({item.pattern for item in plan})
        with _Swaps() as swaps:
            for item, layer in zip(plan, layers, strict=True):
                for name in item.names:
                    parent, _, attribute = name.rpartition(".")
                    swaps.set(model.get_submodule(parent), attribute, layer)
                if item.fused_in is not None:
                    linear, activation = fusible(item.fused_in) or ("", "")
                    stand_in = FusedActivation(item.activation, linear)
                    swaps.set(item.fused_in, activation, stand_in)
            describe_model(model)
        patched = tuple(_report(item, layer) for item, layer in zip(plan, layers, strict=True))
        saved = sum(layer.parameters_before - layer.parameters_after for layer in patched)
        return PatchReport(patched, before, before - saved)

    def _plan(self, model: nn.Module) -> list[_Replacement]:
        """The replacements to make, checked; raises on the first that can't be made."""
        _refuse_wrapped(model)
        holders = _parameter_holders(model)
        names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(name)
        plan = []
        for module, aliases in names.items():
            if any(expression.match(name) for expression in self._exclude for name in aliases):
                continue
            index = self._first_match(aliases)
            if index is None:
                continue
            expression, config = self._patterns[index]
            if "" in aliases:
                raise TypeError(
                    f"Cannot patch the model itself, a {type(module).__name__}, which pattern "
                    f"{expression.pattern!r} matches: expected a pattern of the names of layers in "
                    "it, which get_patchable_layers(model) lists"
                )
            reason = _refusal(module, holders)
            if reason is not None:
                raise TypeError(f"Cannot patch {aliases[0]}: {reason}")
            item = _Replacement(aliases, module, index, config, config.activation)
            if self._fuse_activation:
                _plan_fusion(item, model)
            plan.append(item)
        _plan_blocks(plan)
        return plan

    def _first_match(self, names: list[str]) -> int | None:
        for index, (expression, _) in enumerate(self._patterns):
            if any(expression.match(name) for name in names):
                return index
        return None

    def _warn_of_idle_patterns(self, used: set[int]) -> None:
        for index, (expression, _) in enumerate(self._patterns):
            if index not in used:
                warnings.warn(
                    f"pattern {expression.pattern!r} patched nothing: it matches no layer, or "
                    "only layers that an earlier pattern or exclude takes",
                    stacklevel=3,
                )


class _Swaps:
    """Sets attributes, and on an exception puts the old values back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> _Swaps:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        if kind is not None:
            for undo in reversed(self._undo):
                undo()

    def set(self, owner: nn.Module, attribute: str, value: nn.Module) -> None:
        old = getattr(owner, attribute)
        setattr(owner, attribute, value)

        def undo() -> None:
            if not isinstance(old, nn.Module):
                delattr(owner, attribute)  # else the module would go on hiding the function
            setattr(owner, attribute, old)

        self._undo.append(undo)


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {describe(model)}, expected a torch.nn.Module")


def _compiled(expression: object, what: str) -> re.Pattern[str]:
    if not isinstance(expression, str):
        raise TypeError(f"{what} is {expression!r}, expected a regular expression as a string")
    try:
        return re.compile(expression)
    except re.error as error:
        raise ValueError(f"{what} {expression!r} is not a regular expression: {error}") from None


def _parameter_holders(model: nn.Module) -> dict[int, list[str]]:
    """For each parameter, by id, the names it has in different modules."""
    holders: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            holders.setdefault(id(parameter), []).append(name)
    return holders


def _refusal(module: nn.Module, holders: dict[int, list[str]]) -> str | None:
    reason = refusal(module)
    if reason is None and len(holders[id(module.weight)]) > 1:
        names = holders[id(module.weight)]
        reason = (
            f"its weight is one Parameter with the names {' and '.join(names)}, and replacing one "
            "would untie them: exclude the layer, or untie the weights first"
        )
    return reason


def _refuse_wrapped(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise TypeError(
                f"Cannot patch {name or 'the model'}: it is wrapped in DistributedDataParallel, "
                "which holds on to the dense weights; patch the model first, then wrap it"
            )


def _plan_fusion(item: _Replacement, model: nn.Module) -> None:
    """Notes the activation that moves into the layer, if it is the first one of a known MLP."""
    places = {}  # parent module -> (its name, attribute); more than one if the layer is shared
    for name in item.names:
        parent_name, _, attribute = name.rpartition(".")
        places[model.get_submodule(parent_name)] = (parent_name, attribute)
    for parent, (parent_name, attribute) in places.items():
        found = fusible(parent)
        if found is None or found[0] != attribute:
            continue
        error = f"Cannot fuse the activation of {parent_name}"
        if len(places) > 1:
            raise ValueError(f"{error}: its {attribute} is shared, as {' and '.join(item.names)}")
        if item.config.activation != "none":
            raise ValueError(
                f"{error}: the configuration of its {attribute} says "
                f"activation={item.config.activation!r} already, expected 'none'"
            )
        function = getattr(parent, found[1])
        activation = activation_name(function)
        if activation is None:
            raise ValueError(
                f"{error}: {found[1]} is {function}, expected one of {', '.join(ACTIVATIONS)}"
            )
        item.activation = activation
        item.fused_in = parent


def _plan_blocks(plan: list[_Replacement]) -> None:
    """Fills in the masks that were given and the number of blocks of each layer."""
    shared_out: dict[int, list[_Replacement]] = {}
    for item in plan:
        name, config = item.names[0], item.config
        grid = block_grid(item.shape, config.block_shape)
        mask = config.mask_for(name)
        if config.pseudo_linear and item.module.weight.is_meta:
            raise ValueError(
                f"Cannot patch {name}: pseudo_linear is True, but the weight is on the meta "
                "device, which holds no values to copy; expected a model that holds data"
            )
        if mask is not None:
            item.mask = as_mask(mask, grid, f"Cannot patch {name}: pattern")
            item.blocks = int(item.mask.sum())
        elif config.pattern == "magnitude" and item.module.weight.is_meta:
            raise ValueError(
                f"Cannot patch {name}: pattern is 'magnitude', but the weight is on the meta "
                "device, which holds no values; expected a pattern that is drawn, or a mask"
            )
        elif config.density_rule == "erk":
            shared_out.setdefault(item.pattern, []).append(item)
        elif config.density is not None:
            item.blocks = block_count_of(config.density, grid)
    for items in shared_out.values():
        config = items[0].config
        if config.density is not None:
            shapes = [item.shape for item in items]
            counts = erk_block_counts(shapes, config.block_shape, config.density)
            for item, count in zip(items, counts, strict=True):
                item.blocks = count


def _made(item: _Replacement) -> BlockSparseLinear | PseudoBlockSparseLinear:
    """The layer that takes the place of the one in `item`."""
    try:
        return make_sparse(
            item.module,
            item.config,
            blocks=item.blocks,
            mask=item.mask,
            activation=item.activation,
        )
    except ValueError as error:
        raise ValueError(f"Cannot patch {item.names[0]}: {error}") from error


def _report(item: _Replacement, layer: nn.Module) -> PatchedLayer:
    return PatchedLayer(
        name=item.names[0],
        shape=item.shape,
        block_shape=item.config.block_shape,
        blocks=item.blocks,
        total_blocks=math.prod(block_grid(item.shape, item.config.block_shape)),
        parameters_before=sum(parameter.numel() for parameter in item.module.parameters()),
        parameters_after=stored_parameters(layer),
        activation=item.activation,
        pseudo_linear=item.config.pseudo_linear,
    )
