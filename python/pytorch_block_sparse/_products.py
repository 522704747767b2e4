# SPDX-License-Identifier: Apache-2.0
"""The products as functions that torch can transform at will.

`_autograd.py` has the first derivative, backwards: what training needs, at little cost on the host.
Here is everything else: second and further derivatives, forward mode, and `torch.func` (`grad`,
`jvp`, `vmap` and what is made of them). The three products are bilinear, and the derivatives of
each are the other two, so one `torch.autograd.Function` does it for all orders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import _library as _library  # the operators must be there first

_ops = torch.ops.block_sparse
_linear = _ops.linear.default
_linear_input_grad = _ops.linear_input_grad.default
_linear_weight_grad = _ops.linear_weight_grad.default

#: Name of an activation -> torch's function.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda y: nn.functional.gelu(y, approximate="tanh"),
    "silu": nn.functional.silu,
}

_transforms_active = torch._C._are_functorch_transforms_active
_forward_ad: Any = forward_ad


def is_transformed() -> bool:
    """Whether the call is inside of `torch.func` or of forward mode: `requires_grad` then does not
    say what has to be differentiated."""
    return _transforms_active() or _forward_ad._current_level >= 0


def below_autograd(op: Any, *args: Any) -> Any:
    """`op(*args)`, recording nothing.

    The dispatcher enters the autograd kernel, which is Python, even where no gradient is needed:
    6 µs a call, against the 0.7 µs of this guard.
    """
    with torch._C._AutoDispatchBelowAutograd():
        return op._op(*args)  # what op(*args) calls, a third of a microsecond earlier


class Form(NamedTuple):
    """What the products know of W beside its values and index."""

    out_features: int
    in_features: int
    values_shape: tuple[int, ...]  # (slots, block height, block width)
    allow_tf32: bool
    out_dtype: torch.dtype | None = None  # of the weight gradient; that of its arguments if None


Kind = Literal["output", "input", "weight"]


class Product(torch.autograd.Function):
    """One of the three products.

    ========  ============  ===========  ==========================================
    kind      a             b            result
    ========  ============  ===========  ==========================================
    output    x (…, in)     values       x Wᵀ (…, out)
    input     dy (…, out)   values       dy W (…, in)
    weight    dy (…, out)   x (…, in)    dyᵀ x on the stored blocks (slots, h, w)
    ========  ============  ===========  ==========================================
    """

    @staticmethod
    def forward(kind: Kind, a: Tensor, b: Tensor, form: Form, *index: Tensor) -> Tensor:
        out, in_, values_shape, allow_tf32, out_dtype = form
        parts = list(index)
        result: Tensor
        if kind == "output":
            result = below_autograd(
                _linear, a, b.contiguous(), parts, None, out, "none", allow_tf32
            )
        elif kind == "input":
            result = below_autograd(_linear_input_grad, a, b.contiguous(), parts, in_, allow_tf32)
        else:
            result = below_autograd(
                _linear_weight_grad, a, b, parts, *values_shape, out_dtype, allow_tf32
            )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kind, a, b, ctx.form, *index = inputs
        ctx.save_for_backward(a, b, *index)
        ctx.save_for_forward(a, b, *index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b, *index = ctx.saved_tensors
        grad = grad.to(a.dtype)  # that of a weight gradient may be wider
        form = ctx.form._replace(out_dtype=None)
        if ctx.kind == "output":
            factors: Any = (("input", grad, b), ("weight", grad, a))
        elif ctx.kind == "input":
            factors = (("output", grad, b), ("weight", a, grad))
        else:
            factors = (("output", b, grad), ("input", a, grad))
        da, db = (
            product(kind, left, right, form, index) if needed else None
            for (kind, left, right), needed in zip(factors, ctx.needs_input_grad[1:3], strict=True)
        )
        return None, da, db, None, *(None for _ in index)

    @staticmethod
    def jvp(ctx: Any, _: None, da: Tensor | None, db: Tensor | None, *rest: None) -> Any:
        a, b, *index = ctx.saved_tensors
        terms = []
        if da is not None:
            terms.append(product(ctx.kind, da, b, ctx.form, index))
        if db is not None:
            terms.append(product(ctx.kind, a, db, ctx.form, index))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], kind: Kind, a: Tensor, b: Tensor, form: Form,
        *index: Tensor,
    ) -> tuple[Tensor, int]:  # fmt: skip
        _, a_dim, b_dim, _, *index_dims = in_dims
        if kind != "weight" and b_dim is None and index_dims == [None] * len(index):
            return product(kind, a.movedim(a_dim, 0), b, form, index), 0  # more tokens
        # A weight of its own for each, or a weight gradient: one product after the other.
        tensors, dims = (a, b, *index), (a_dim, b_dim, *index_dims)
        results = []
        for i in range(info.batch_size):
            a, b, *index_i = (
                tensor if dim is None else tensor.select(dim, i)
                for tensor, dim in zip(tensors, dims, strict=True)
            )
            results.append(product(kind, a, b, form, index_i))
        return torch.stack(results), 0


def product(
    kind: Kind, a: Tensor, b: Tensor, form: Form, index: list[Tensor] | tuple[Tensor, ...]
) -> Tensor:
    """The product of `kind`, see `Product`; differentiable and batchable without limit."""
    result: Tensor = Product.apply(kind, a, b, form, *index)
    return result


def linear(
    x: Tensor,
    values: Tensor,
    index: list[Tensor],
    bias: Tensor | None,
    out_features: int,
    activation: str = "none",
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """activation(x Wᵀ + bias) and x Wᵀ + bias, the product ours and the rest torch's."""
    if activation not in ACTIVATIONS:
        raise RuntimeError(
            f"activation is {activation!r}; expected one of " + ", ".join(map(repr, ACTIVATIONS))
        )
    form = Form(out_features, x.size(-1), tuple(values.shape), allow_tf32)
    z = product("output", x, values, form, index)
    if bias is not None:
        z = z + bias.to(z.dtype)  # of 16 bits under autocast
    return ACTIVATIONS[activation](z), z


def input_grad(
    grad: Tensor, values: Tensor, index: list[Tensor], in_features: int, allow_tf32: bool = False
) -> Tensor:
    """grad W."""
    form = Form(grad.size(-1), in_features, tuple(values.shape), allow_tf32)
    return product("input", grad, values, form, index)


def weight_grad(
    grad: Tensor,
    x: Tensor,
    index: list[Tensor],
    slots: int,
    block_height: int,
    block_width: int,
    out_dtype: torch.dtype | None = None,
    allow_tf32: bool = False,
) -> Tensor:
    """gradᵀ x on the stored blocks."""
    values_shape = slots, block_height, block_width
    form = Form(grad.size(-1), x.size(-1), values_shape, allow_tf32, out_dtype)
    return product("weight", grad, x, form, index)
