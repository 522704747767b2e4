# SPDX-License-Identifier: Apache-2.0
"""torch.func and forward mode: the transforms of a layer are those of its dense twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from helpers import ACTIVATIONS, randn, random_weight
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

from pytorch_block_sparse import BlockSparseLinear, functional

ops = torch.ops.block_sparse
OUT, IN, BLOCK = 9, 7, (2, 3)  # ragged both ways
F = Callable[..., Any]


def double(*shape: int, seed: int = 1) -> Tensor:
    return randn(*shape, dtype=torch.float64, seed=seed)


def squared(f: F) -> F:
    return lambda *inputs: f(*inputs).square().sum()


def layer_of(activation: str, seed: int = 0) -> BlockSparseLinear:
    torch.manual_seed(seed)
    return BlockSparseLinear(
        IN, OUT, block_shape=BLOCK, activation=activation, slots=9, dtype=torch.float64
    )


def sparse_and_dense(layer: BlockSparseLinear) -> tuple[dict[str, Tensor], F, F]:
    """Parameters, and two functions of (parameters, x): by the layer, and by a dense product."""
    parameters = {name: p.detach().clone() for name, p in layer.named_parameters()}

    def sparse(parameters: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(layer, parameters, (x,))

    def dense(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        weight = layer.weight.to_dense(parameters["weight.values"])
        return ACTIVATIONS[layer.activation](x @ weight.T + parameters["bias"])

    return parameters, sparse, dense


def several(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Three models of the same pattern."""
    return {name: torch.stack([p, 2 * p, -p]) for name, p in parameters.items()}


def one() -> Tensor:
    return double(5, IN)


def four() -> Tensor:
    return double(4, 5, IN, seed=2)


# (function of parameters and x, parameters) -> tensors
TRANSFORMS: dict[str, Callable[[F, dict[str, Tensor]], Any]] = {
    "functional_call": lambda f, p: f(p, one()),
    "grad of parameters": lambda f, p: grad(squared(f))(p, one()),
    "grad of x": lambda f, p: grad(squared(f), argnums=1)(p, one()),
    "grad_and_value": lambda f, p: grad_and_value(squared(f))(p, one()),
    "vjp": lambda f, p: vjp(f, p, one())[1](double(5, OUT)),
    "jvp": lambda f, p: jvp(f, (p, one()), ({k: v + 1 for k, v in p.items()}, one().sin())),
    "jvp of x": lambda f, p: jvp(lambda x: f(p, x), (one(),), (one().sin(),)),
    "linearize": lambda f, p: linearize(lambda x: f(p, x), one())[1](one().sin()),
    "vmap of x": lambda f, p: vmap(f, in_dims=(None, 0))(p, four()),
    "vmap of x, another dimension": lambda f, p: vmap(f, (None, 1), 1)(p, four()),
    "vmap of parameters": lambda f, p: vmap(f, in_dims=(0, None))(several(p), one()),
    "vmap of both": lambda f, p: vmap(f)(several(p), four()[:3]),
    "vmap of vmap": lambda f, p: vmap(lambda x: vmap(f, (0, None))(several(p), x))(four()),
    "gradients of samples": lambda f, p: vmap(grad(squared(f)), in_dims=(None, 0))(p, four()),
    "gradients of models": lambda f, p: vmap(grad(squared(f)), in_dims=(0, None))(
        several(p), one()
    ),
    "jacrev": lambda f, p: jacrev(f, argnums=(0, 1))(p, one()),
    "jacfwd": lambda f, p: jacfwd(f, argnums=(0, 1))(p, one()),
    "hessian": lambda f, p: hessian(squared(f), argnums=1)(p, one()[:2]),
    "jacrev of jacrev": lambda f, p: jacrev(jacrev(squared(f), argnums=1), argnums=1)(p, one()[:2]),
    "grad of grad": lambda f, p: grad(lambda p: squared(grad(squared(f), argnums=1))(p, one()))(p),
    "jvp of grad": lambda f, p: jvp(lambda x: grad(squared(f))(p, x), (one(),), (one().sin(),)),
}


def assert_same(actual: Any, expected: Any) -> None:
    pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)
        assert b.isfinite().all()


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_as_the_dense_twin(name: str, activation: str) -> None:
    parameters, sparse, dense = sparse_and_dense(layer_of(activation))
    transform = TRANSFORMS[name]
    assert_same(transform(sparse, parameters), transform(dense, parameters))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("name", ["jvp", "gradients of samples", "grad of grad"])
def test_other_activations(name: str, activation: str) -> None:
    test_as_the_dense_twin(name, activation)


def test_layer_whose_parameters_want_gradients() -> None:
    layer = layer_of("gelu")
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            assert_same(vmap(layer)(four()), layer(four()))
            assert_same(jvp(layer, (one(),), (one().sin(),))[0], layer(one()))
    batched, plain = (
        torch.autograd.grad(squared(f)(four()), list(layer.parameters()))
        for f in (vmap(layer), layer)
    )
    assert_same(batched, plain)


def test_models_of_different_patterns() -> None:
    """`stack_module_state` stacks the index too."""
    layers = [layer_of("relu", seed) for seed in (1, 2, 3)]
    assert not torch.equal(layers[0].weight.col_indices, layers[1].weight.col_indices)
    parameters, buffers = stack_module_state(layers)

    def call(parameters: Any, buffers: Any, x: Tensor) -> Any:
        return functional_call(layers[0], (parameters, buffers), (x,))

    together = vmap(call, in_dims=(0, 0, None))(parameters, buffers, one())
    assert_same(together, torch.stack([layer(one()) for layer in layers]))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("grad_enabled", [True, False])
def test_forward_mode(trained: bool, grad_enabled: bool) -> None:
    """A tangent must not get lost where nothing requires a gradient."""
    layer = layer_of("silu").requires_grad_(trained)
    _, _, dense = sparse_and_dense(layer)
    _, expected = jvp(lambda x: dense(dict(layer.named_parameters()), x), (one(),), (one().sin(),))
    with torch.set_grad_enabled(grad_enabled), forward_ad.dual_level():
        y = layer(forward_ad.make_dual(one(), one().sin()))
        tangent = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_in_forward_mode(activation: str) -> None:
    layer = layer_of(activation)
    weight = layer.weight
    with torch.no_grad():
        layer.bias.add_(0.1)  # away from 0, where relu has a kink

    def f(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return functional.linear_of(
            x, values, weight.index, weight.shape, bias, layer.activation, "save"
        )

    inputs = one().clone().requires_grad_(), weight.values, layer.bias
    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True)


def test_batch_of_gradients_of_an_ordinary_call() -> None:
    layer, x = layer_of("gelu"), one().clone().requires_grad_()
    _, _, dense = sparse_and_dense(layer)
    inputs = x, layer.weight.values, layer.bias
    gradients = [
        vmap(lambda dy, y=y: torch.autograd.grad(y, inputs, dy, retain_graph=True))(
            double(3, 5, OUT)
        )
        for y in (layer(x), dense(dict(layer.named_parameters()), x))
    ]
    assert_same(*gradients)


@pytest.mark.parametrize("mode", ["grad", "jvp", "dual", "vmap"])
def test_operators(mode: str) -> None:
    weight = random_weight((OUT, IN), BLOCK, 0.5, dtype=torch.float64)
    values, index, w = weight.values, weight.index, weight.dense()
    rows, bias, slots = double(5, OUT, seed=3), double(OUT, seed=4), values.shape
    none = torch.zeros_like(values)

    def on_blocks(x: Tensor) -> Tensor:
        """`rowsᵀ x` in the slots, by the derivative of the dense product."""
        return vjp(lambda values: x @ weight.dense(values).T, none)[1](rows)[0]

    pairs: list[tuple[F, F, Tensor]] = [
        (lambda x: ops.linear(x, values, index, None, OUT), lambda x: x @ w.T, one()),
        (
            lambda x: ops.linear_preactivation(x, values, index, bias, OUT, "relu"),
            lambda x: (torch.relu(x @ w.T + bias), x @ w.T + bias),
            one(),
        ),
        (lambda g: ops.linear_input_grad(g, values, index, IN), lambda g: g @ w, rows),
    ]
    if mode != "vmap":  # of one row, which this is for one sample
        pairs.append((lambda x: ops.linear_weight_grad(rows, x, index, *slots), on_blocks, one()))

    def total(f: F) -> F:
        return lambda x: sum(t.square().sum() for t in pytree.tree_leaves(f(x)))

    def dual(f: F, x: Tensor) -> Any:
        with forward_ad.dual_level():
            y = f(forward_ad.make_dual(x, x.sin()))
            return [forward_ad.unpack_dual(t).tangent for t in pytree.tree_leaves(y)]

    for ours, dense, x in pairs:
        run: dict[str, F] = {
            "grad": lambda f, x=x: grad(total(f))(x),
            "jvp": lambda f, x=x: jvp(f, (x,), (x.sin(),)),
            "dual": lambda f, x=x: dual(f, x),
            "vmap": lambda f, x=x: vmap(f)(x),
        }
        if mode == "dual":
            expected = pytree.tree_leaves(jvp(dense, (x,), (x.sin(),))[1])
            assert_same(run[mode](ours), expected)
        else:
            assert_same(run[mode](ours), run[mode](dense))


def test_products_of_a_matrix() -> None:
    matrix = layer_of("none").weight
    dense = matrix.to_dense().detach()
    rows = double(5, OUT, seed=3)
    assert_same(vmap(lambda g: matrix.reverse_matmul(g, False))(rows), rows @ dense)
    _, tangent = jvp(lambda g: matrix.reverse_matmul(g, False), (rows,), (rows.cos(),))
    assert_same(tangent, rows.cos() @ dense)
    ours = vmap(matrix.matmul_with_output_sparse_support)(double(3, 5, OUT), double(3, 5, IN))
    loop = [
        matrix.matmul_with_output_sparse_support(a, b)
        for a, b in zip(double(3, 5, OUT), double(3, 5, IN), strict=True)
    ]
    assert_same(ours, torch.stack(loop))


def test_norms_have_no_derivative() -> None:
    """Of whatever order: they are there to choose blocks by."""
    rows = double(5, OUT, seed=3)
    norms, tangent = jvp(lambda x: ops.block_norms(rows, x, *BLOCK), (one(),), (one().sin(),))
    assert_same(norms, ops.block_norms(rows, one(), *BLOCK))
    assert not tangent.any()


def test_autocast() -> None:
    layer = BlockSparseLinear(64, 96, activation="gelu")
    x = randn(5, 64, dtype=torch.float32)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        assert vmap(layer)(x).dtype == layer(x).dtype == torch.bfloat16
        tangent = jvp(layer, (x,), (x,))[1]
        gradients = grad(lambda p: functional_call(layer, p, (x,)).float().sum())(parameters)
    assert tangent.dtype == torch.bfloat16
    assert {g.dtype for g in gradients.values()} == {torch.float32}


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled(backend: str) -> None:
    torch._dynamo.reset()
    layer = BlockSparseLinear(64, 96, activation="relu")
    x = randn(5, 64, dtype=torch.float32)
    f = grad(lambda x: layer(x).square().sum())
    assert_same(torch.compile(f, backend=backend, fullgraph=True)(x), f(x))
    torch._dynamo.reset()


def test_inside_a_model() -> None:
    model = nn.Sequential(layer_of("gelu"), nn.LayerNorm(OUT, dtype=torch.float64))
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x,)).pow(3).sum()

    samples = vmap(grad(loss), in_dims=(None, 0))(parameters, four())
    loop = [grad(loss)(parameters, x) for x in four()]
    assert_same(samples, {k: torch.stack([g[k] for g in loop]) for k in parameters})


def test_what_is_wrong_is_still_said() -> None:
    layer = layer_of("none")
    with pytest.raises(ValueError, match=r"x has shape \(6,\); expected \(..., 7\)"):
        vmap(layer)(double(4, 6))
    with pytest.raises(RuntimeError, match="activation is 'tanh'; expected one of 'none', 'relu'"):
        vmap(lambda x: functional.linear(x, layer.weight, None, "tanh"))(one())  # type: ignore[arg-type]
