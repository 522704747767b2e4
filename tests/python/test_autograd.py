# SPDX-License-Identifier: Apache-2.0
"""Derivatives of `functional.linear` and of the operators."""

from __future__ import annotations

import pytest
import torch
from helpers import ACTIVATIONS, Weight, assert_product, gather_blocks, randn, random_weight
from torch.utils._python_dispatch import TorchDispatchMode

from pytorch_block_sparse import functional

ops = torch.ops.block_sparse

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
both_modes = pytest.mark.parametrize("preactivation", ["save", "recompute"])
GEOMETRY = (5, 6), (2, 3), 0.6  # ragged rows


def layer_inputs(device, dtype=torch.float64, geometry=GEOMETRY, tokens=3):
    weight = random_weight(*geometry, dtype=dtype, device=device, requires_grad=True)
    out, in_ = weight.shape
    x = randn(tokens, in_, dtype=dtype, device=device).requires_grad_()
    bias = randn(out, dtype=dtype, device=device, seed=4).requires_grad_()
    return x, weight, bias


class Calls(TorchDispatchMode):
    """Names and results of the operators of this package that run inside."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []
        self.results: list[object] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "block_sparse":
            self.names.append(func._opname)
            self.results.append(result)
        return result


@every_activation
@both_modes
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(device, activation, preactivation, with_bias):
    x, weight, bias = layer_inputs(device)

    def f(x, values, bias):
        w = Weight(values, weight.index, weight.shape)
        return functional.linear(x, w, bias, activation, preactivation=preactivation)

    inputs = x, weight.values, bias if with_bias else None
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


@every_activation
def test_gradcheck_of_the_operators(device, activation):
    x, weight, bias = layer_inputs(device)
    values, index, (out, in_) = weight.values, weight.index, weight.shape
    grad = randn(3, out, dtype=torch.float64, device=device).requires_grad_()
    for f, inputs in (
        (lambda x, v, b: ops.linear(x, v, index, b, out, activation), (x, values, bias)),
        (
            lambda x, v, b: ops.linear_preactivation(x, v, index, b, out, activation),
            (x, values, bias),
        ),
        (lambda g, v: ops.linear_input_grad(g, v, index, in_), (grad, values)),
        (lambda g, x: ops.linear_weight_grad(g, x, index, *values.shape), (grad, x)),
        (lambda g, x, v: ops.linear_backward(g, x, v, index), (grad, x, values)),
    ):
        assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


@every_activation
def test_same_gradients_as_dense(device, activation):
    geometry = (48, 80), (16, 16), 0.5
    x, weight, bias = layer_inputs(device, geometry=geometry)
    y = functional.linear(x, weight, bias, activation)
    expected = ACTIVATIONS[activation](x @ weight.dense().T + bias)
    grad = randn(3, 48, dtype=torch.float64, device=device, seed=8)
    inputs = x, weight.values, bias
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    )


def test_weight_gradient_of_a_strided_input(device):
    """`h[:, 0]`, as BERT's pooler takes it, and a strided gradient."""
    h = randn(5, 3, 80, dtype=torch.float64, device=device)
    _, weight, bias = layer_inputs(device, geometry=((48, 80), (16, 16), 0.5))
    y = functional.linear(h[:, 0], weight, bias)
    grad = randn(48, 5, dtype=torch.float64, device=device).T
    (dvalues,) = torch.autograd.grad(y, weight.values, grad)
    torch.testing.assert_close(dvalues, gather_blocks(grad.T @ h[:, 0], weight))


def test_expanded_gradient(device):
    x, weight, bias = layer_inputs(device)
    y = functional.linear(x, weight, bias, "gelu")
    (dvalues,) = torch.autograd.grad(y.sum(), weight.values)
    z = (x @ weight.dense().T + bias).detach().requires_grad_()
    (dz,) = torch.autograd.grad(torch.nn.functional.gelu(z).sum(), z)
    torch.testing.assert_close(dvalues, gather_blocks((dz.T @ x).detach(), weight))


@pytest.mark.parametrize("needed", ["x", "values", "bias"])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_only_the_gradients_asked_for(device, needed, activation):
    x, weight, bias = layer_inputs(device)
    for name, tensor in (("x", x), ("values", weight.values), ("bias", bias)):
        tensor.requires_grad_(name == needed)
    y = functional.linear(x, weight, bias, activation)
    with Calls() as calls:
        y.sum().backward()
    expected = {"x": ["linear_input_grad"], "values": ["linear_backward"], "bias": []}
    assert calls.names == expected[needed]
    if needed == "values":
        dx, _, dbias = calls.results[0]
        assert dx is None
        assert dbias is None


def kept_elements(*args, **kwargs) -> dict[int, int]:
    """Storages that autograd keeps for the backward of `functional.linear`: elements of each."""
    kept: dict[int, int] = {}

    def pack(tensor):
        if tensor.is_floating_point():
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = functional.linear(*args, **kwargs)
    kept.pop(y.data_ptr(), None)  # lives anyway
    return kept


def test_what_is_kept_for_the_backward(device):
    x, weight, bias = layer_inputs(device)
    inputs = {t.data_ptr() for t in (x, weight.values, bias)}
    y_size = 3 * weight.shape[0]
    for activation in ACTIVATIONS:
        own = {
            mode: [
                n
                for pointer, n in kept_elements(
                    x, weight, bias, activation, preactivation=mode
                ).items()
                if pointer not in inputs
            ]
            for mode in ("save", "recompute")
        }
        at_preactivation = activation not in ("none", "relu")
        assert own["save"] == ([y_size] if at_preactivation else [])
        assert own["recompute"] == []
    weight.values.requires_grad_(False)
    assert x.data_ptr() not in kept_elements(x, weight, bias, "none")


def test_no_gradient_no_function(device):
    x, weight, bias = layer_inputs(device)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, Calls() as calls:
            y = functional.linear(x, weight, bias, "silu")
        assert not y.requires_grad
        assert calls.names == ["linear"]


def test_pattern_changed_before_the_backward_is_noticed(device):
    x, weight, bias = layer_inputs(device)
    for tensor in weight.index[:6]:
        y = functional.linear(x, weight, bias)
        tensor.copy_(tensor.clone())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


# Autocast ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_autocast(device, dtype, activation):
    geometry = (48, 80), (16, 16), 0.5
    x, weight, bias = layer_inputs(device, torch.float32, geometry, tokens=33)
    with torch.autocast(device, dtype=dtype):
        y = functional.linear(x, weight, bias, activation)
        dense = torch.nn.functional.linear(x, weight.dense().float(), bias)
    assert y.dtype == dense.dtype == dtype
    assert y.requires_grad
    cast = Weight(weight.values.detach().to(dtype), weight.index, weight.shape)
    exact = functional.linear(x.detach().to(dtype), cast, bias.detach().to(dtype), activation)
    assert torch.equal(y, exact)

    grad = randn(33, 48, dtype=dtype, device=device, seed=8)
    dx, dvalues, dbias = torch.autograd.grad(y, (x, weight.values, bias), grad)
    assert {dx.dtype, dvalues.dtype, dbias.dtype} == {torch.float32}
    if activation == "none":
        # Not rounded to 16 bits on the way: within float32's own error.
        flat = grad.double(), x.detach().to(dtype).double()
        assert_product(
            dvalues,
            gather_blocks(flat[0].T @ flat[1], weight),
            gather_blocks(flat[0].abs().T @ flat[1].abs(), weight),
            33,
        )
        torch.testing.assert_close(dbias, grad.float().sum(0))


def test_autocast_without_gradients(device):
    x, weight, bias = layer_inputs(device, torch.float32)
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
        assert functional.linear(x, weight, bias).dtype == torch.bfloat16
        y, z = ops.linear_preactivation(x, weight.values, weight.index, bias, 5, "gelu")
        assert y.dtype == z.dtype == torch.bfloat16
    with torch.autocast(device, enabled=False):
        assert functional.linear(x, weight, bias).dtype == torch.float32


def test_autocast_leaves_float64_alone(device):
    x, weight, bias = layer_inputs(device, torch.float64)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert functional.linear(x, weight, bias).dtype == torch.float64


def test_autocast_of_the_gradient_operators(device):
    x, weight, _ = layer_inputs(device, torch.float32)
    values, index, (out, in_) = weight.values.detach(), weight.index, weight.shape
    x, grad = x.detach(), randn(3, out, dtype=torch.float32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert ops.linear_input_grad(grad, values, index, in_).dtype == torch.bfloat16
        assert ops.linear_weight_grad(grad, x, index, *values.shape).dtype == torch.bfloat16
        for gradient in ops.linear_backward(grad, x, values, index):
            assert gradient.dtype == torch.bfloat16
        assert ops.block_norms(grad, x, 2, 3).dtype == torch.float32
        sums = torch.zeros_like(values)
        ops.linear_weight_grad_accumulate_(sums, grad, x, index)
    expected = ops.linear_weight_grad(
        grad.bfloat16(), x.bfloat16(), index, *values.shape, torch.float32
    )
    assert torch.equal(sums, expected)


# What is refused --------------------------------------------------------------------------------


def test_second_derivative_of_what_was_not_kept(device):
    x, weight, bias = layer_inputs(device)
    weight.values.requires_grad_(False)
    y = functional.linear(x, weight, bias, "gelu")
    with pytest.raises(RuntimeError, match="call it with preactivation='recompute'"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    y = functional.linear(x, weight, bias, "gelu", preactivation="recompute")
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert dx.requires_grad


def test_second_derivative_under_autocast(device):
    x, weight, bias = layer_inputs(device, torch.float32)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = functional.linear(x, weight, bias)
    with pytest.raises(RuntimeError, match="under autocast has no second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("shape", [(), (4, 5), (6, 4)])
def test_features_that_do_not_fit(device, shape):
    _, weight, bias = layer_inputs(device)
    x = torch.zeros(shape, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match=r"x has shape .*; expected \(\.\.\., 6\)"):
        functional.linear(x, weight, bias)


def test_unknown_options(device):
    x, weight, bias = layer_inputs(device)
    with pytest.raises(ValueError, match="preactivation is 'keep'; expected 'save' or 'recompute'"):
        functional.linear(x, weight, bias, preactivation="keep")
    with pytest.raises(RuntimeError, match="activation is 'tanh'; expected 'none', 'relu'"):
        functional.linear(x, weight, bias, "tanh")


def test_block_norms_are_not_differentiable(device):
    x = randn(4, 6, dtype=torch.float32, device=device).requires_grad_()
    assert not ops.block_norms(x.detach(), x, 2, 3).requires_grad


def test_tf32_setting_is_read_whichever_way_it_was_set():
    """The old attribute raises once the new one was used; a call must survive both."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    x, weight, bias = layer_inputs("cpu")
    try:
        for precision in ("tf32", "ieee"):
            matmul.fp32_precision = precision
            functional.linear(x, weight, bias).sum().backward()
    finally:
        matmul.fp32_precision = before


def test_tensor_that_has_left_its_transform_is_a_plain_one(device):
    x, weight, bias = layer_inputs(device)
    left = []

    def f(x):
        left.append(x * x)  # it has a history there, which the transform frees
        return left[0].square().sum()

    torch.func.grad(f)(x.detach())
    functional.linear(left[0], weight, bias).sum().backward()  # not into that history
    y = functional.linear(x.detach() * x.detach(), weight, bias)
    leaves = weight.values, bias
    for leaf, expected in zip(leaves, torch.autograd.grad(y.sum(), leaves), strict=True):
        torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=0)
