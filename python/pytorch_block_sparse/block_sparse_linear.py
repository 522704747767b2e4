# SPDX-License-Identifier: Apache-2.0
"""`BlockSparseLinear`: a linear layer whose weight is sparse in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import functional
from ._matrix_api import largest_blocks
from ._products import ACTIVATIONS
from ._validation import as_mask, as_pair, check_generator, describe, is_int, is_share
from .block_sparse import BlockSparseMatrix, copy_into
from .density import block_grid
from .pattern import block_count_of

__all__ = ["BlockSparseLinear", "PseudoBlockSparseLinear"]


class BlockSparseLinear(nn.Module):
    """y = activation(x Wᵀ + b), where W stores only some of its blocks.

    Takes the place of `torch.nn.Linear`: x (…, in_features), y (…, out_features), in float32,
    float64, bfloat16 or float16. Parameters, gradients and optimizer state take `density` times
    the memory of the dense layer.

    Args:
        in_features, out_features: as of nn.Linear. They need not be multiples of the block: the
            last block row and column then stick out, and what sticks out counts nowhere.
        bias: whether b is there.
        density: share of blocks to store, in (0, 1]: `int(density * R * C)` of them, at least 1,
            on a grid of R = ceil(out_features / h) by C = ceil(in_features / w) blocks. Not used
            where `pattern` is a mask.
        torch_nn_linear: a dense layer to take sizes, bias, device and dtype from, and the values
            of the blocks that are stored, unscaled.
        verbose: print one line about the layer.
        block_shape: (h, w), rows (out) and columns (in) of a block, or one int for both.
        pattern: which blocks: a boolean mask (R, C), or "random", "balanced", "diagonal+random" or
            "butterfly" (see `pattern.draw_pattern`). Or "magnitude", with `torch_nn_linear` only:
            the blocks of largest L2 norm. None is "magnitude" with `torch_nn_linear`, else
            "random".
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu", computed by the product itself.
        preactivation: "save" or "recompute": see `functional.linear`.
        slots: room for blocks, at least as many as are stored; as many if None. Layers with the
            same number of slots share compiled graphs.
        device, dtype: of the parameters; by default those of `torch_nn_linear`, else torch's.
        generator: CPU generator for the pattern and the values.

    Attributes:
        weight: the `BlockSparseMatrix` W (out_features, in_features).
        bias: (out_features,), or None.

    Raises:
        ValueError, TypeError: in one sentence, for arguments that do not fit.
    """

    weight: BlockSparseMatrix
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        density: float = 0.5,
        torch_nn_linear: nn.Linear | None = None,
        verbose: bool = False,
        block_shape: int | Sequence[int] = (32, 32),
        *,
        pattern: str | Tensor | None = None,
        activation: functional.Activation = "none",
        preactivation: Literal["save", "recompute"] = "save",
        slots: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if torch_nn_linear is not None:
            if not isinstance(torch_nn_linear, nn.Linear):
                raise TypeError(
                    f"torch_nn_linear is {describe(torch_nn_linear)}, expected a torch.nn.Linear"
                )
            in_features = torch_nn_linear.in_features
            out_features = torch_nn_linear.out_features
            bias = torch_nn_linear.bias is not None
            device = torch_nn_linear.weight.device if device is None else device
            dtype = torch_nn_linear.weight.dtype if dtype is None else dtype
            if torch_nn_linear.weight.is_meta and torch.device(device).type != "meta":
                raise ValueError(
                    f"torch_nn_linear is on the meta device, which holds no data, and device is "
                    f"{device}, expected 'meta'"
                )
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if not is_int(size) or size < 1:
                raise ValueError(f"BlockSparseLinear invalid {name}={size}, should be at least 1")
        if not is_share(density):
            raise ValueError(
                f"BlockSparseLinear invalid density={density}, expected a number above 0 and at "
                "most 1"
            )
        check_generator(generator)
        if activation not in tuple(ACTIVATIONS):  # it may be something that has no hash
            raise ValueError(
                f"activation is {activation!r}, expected one of "
                + ", ".join(map(repr, ACTIVATIONS))
            )
        if preactivation not in ("save", "recompute"):
            raise ValueError(f"preactivation is {preactivation!r}, expected 'save' or 'recompute'")
        self.verbose = verbose
        self.in_features = int(in_features)
        self.out_features = int(out_features)
        self.block_shape = as_pair(block_shape, "block_shape")
        self.activation = activation
        self.preactivation = preactivation
        grid = block_grid((self.out_features, self.in_features), self.block_shape)
        count = block_count_of(float(density), grid)
        if isinstance(pattern, Tensor):
            mask: Tensor | None = as_mask(pattern, grid, "pattern")
            pattern = None
        else:
            mask = _largest_blocks(pattern, torch_nn_linear, self.block_shape, count)
        self.weight = BlockSparseMatrix(
            (out_features, in_features),
            mask,
            block_shape=self.block_shape,
            n_blocks=count,
            slots=slots,
            pattern="random" if pattern is None else pattern,
            device=device,
            dtype=dtype,
        )
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        if torch_nn_linear is None:
            self.reset_parameters(generator)
        else:
            self._copy_dense(torch_nn_linear, generator)
        if verbose:
            print(f"BlockSparseLinear({self.extra_repr()})")

    @torch.no_grad()
    def _copy_dense(self, dense: nn.Linear, generator: torch.Generator | None) -> None:
        if self.weight.values.is_meta:
            return
        if not self.weight.has_pattern:
            self.weight.draw_pattern_(generator)
        BlockSparseMatrix.from_dense(dense.weight, out=self.weight)
        if self.bias is not None:
            self.bias.copy_(dense.bias)

    @classmethod
    def from_dense(
        cls, dense: nn.Linear, density: float = 0.5, **options: Any
    ) -> BlockSparseLinear:
        """The sparse counterpart of a dense layer: its values on the blocks that are stored.

        Args:
            dense: the layer, which is not changed.
            density: share of blocks to keep, by default those of largest norm.
            options: `block_shape`, `pattern` and the other options of the class.

        Raises:
            TypeError: if `dense` is something else.
        """
        if not isinstance(dense, nn.Linear):
            raise TypeError(f"dense is {describe(dense)}, expected a torch.nn.Linear")
        return cls(0, 0, density=density, torch_nn_linear=dense, **options)

    @torch.no_grad()
    def to_dense(self) -> nn.Linear:
        """A dense layer with the same weight, zeros where no block is stored, and bias.

        Raises:
            ValueError: if the layer has an activation, which a dense layer cannot hold.
        """
        if self.activation != "none":
            raise ValueError(
                f"activation is {self.activation!r}, expected 'none': torch.nn.Linear has no "
                "activation; use to_dense of the weight"
            )
        dense = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        dense.weight.copy_(self.weight.to_dense())
        if self.bias is not None:
            dense.bias.copy_(self.bias)
        return dense

    @property
    def block_count(self) -> int:
        """How many blocks are stored."""
        return self.weight.n_blocks

    @property
    def density(self) -> float:
        """Stored blocks over all blocks."""
        return self.weight.density

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the weight (see `BlockSparseMatrix.reset_parameters`) and the bias.

        An element of the bias is uniform in ±1 / sqrt(f), with f the number of inputs that its row
        has, and 0 where a row has none.
        """
        self.weight.reset_parameters(generator)
        if self.bias is None or self.bias.is_meta or not self.weight.has_pattern:
            return
        fan_in = self.weight.fan_in().cpu().repeat_interleave(self.block_shape[0])
        bound = fan_in.rsqrt().where(fan_in > 0, 0)[: self.out_features]
        uniform = torch.rand(self.out_features, generator=generator, device="cpu")
        copy_into(self.bias, (2 * uniform - 1) * bound)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        weight: Any = self._modules["weight"]  # not self.weight: see linear_of
        if weight.product is not None:
            y: Tensor = weight.product(x, weight, self.bias, self.activation, self.preactivation)
            return y
        own, of_weight = self._parameters, weight._parameters
        # They are no parameters in the replicas that torch.nn.DataParallel makes. Not `get`, whose
        # default would be looked up as an attribute each time.
        return functional.linear_of(
            x,
            of_weight["values"] if "values" in of_weight else weight.values,  # noqa: SIM401
            weight.operands,
            weight.shape,
            own["bias"] if "bias" in own else self.bias,  # noqa: SIM401
            self.activation,
            self.preactivation,
        )

    def extra_repr(self) -> str:
        """Sizes, and what differs from the defaults."""
        activation = "" if self.activation == "none" else f", activation={self.activation!r}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}{activation}"
        )


def _largest_blocks(
    pattern: object, dense: nn.Linear | None, block_shape: tuple[int, int], count: int
) -> Tensor | None:
    """The mask (R, C) of pattern "magnitude", which None means where there are values to look at;
    None for a pattern that is to be drawn."""
    if pattern is not None and not (isinstance(pattern, str) and pattern == "magnitude"):
        return None
    if dense is not None and not dense.weight.is_meta:
        return largest_blocks(dense.weight, block_shape, count)
    if pattern is not None:
        raise ValueError(
            f"torch_nn_linear is {dense}, expected a layer with values to look at, which pattern "
            "'magnitude' needs"
        )
    return None


class PseudoBlockSparseLinear(nn.Module):
    """The same function as a `BlockSparseLinear` by dense PyTorch alone, to find bugs with.

    Args:
        block_sparse_linear: the layer to copy; it is not changed.

    Raises:
        TypeError: for anything else.
        ValueError: if the layer is on the meta device, and so has neither values nor a pattern.

    Attributes:
        weight: dense parameter (out_features, in_features); what it holds outside of the stored
            blocks is never used.
        mask: bool buffer of the same shape, True in the stored blocks.
        bias: (out_features,), or None.
        density: share of the elements that is stored.
    """

    weight: nn.Parameter
    mask: Tensor

    def __init__(self, block_sparse_linear: BlockSparseLinear) -> None:
        super().__init__()
        if not isinstance(block_sparse_linear, BlockSparseLinear):
            raise TypeError(
                f"block_sparse_linear is {describe(block_sparse_linear)}, expected a "
                "BlockSparseLinear"
            )
        matrix = block_sparse_linear.weight
        if matrix.values.is_meta:
            raise ValueError(
                "block_sparse_linear is on the meta device, expected a layer with values and a "
                "pattern to copy"
            )
        self.weight = nn.Parameter(matrix.to_dense().detach().clone())
        mask = matrix.to_dense(data_replace=torch.ones_like(matrix.values)) != 0
        self.register_buffer("mask", mask)
        if block_sparse_linear.bias is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(block_sparse_linear.bias.detach().clone())
        self.in_features = block_sparse_linear.in_features
        self.out_features = block_sparse_linear.out_features
        self.activation = block_sparse_linear.activation
        self.density = int(mask.sum()) / mask.numel()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) -> (…, out_features)."""
        # Not a product: 0 * nan is nan, in the weight as in its gradient.
        weight = self.weight.masked_fill(~self.mask, 0)
        y = nn.functional.linear(x, weight, self.bias)
        return ACTIVATIONS[self.activation](y)

    def extra_repr(self) -> str:
        """Sizes and density."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, density={self.density:.3g}"
        )
