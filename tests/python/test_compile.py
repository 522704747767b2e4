# SPDX-License-Identifier: Apache-2.0
"""torch.compile: whole graphs, dynamic tokens, few graphs for layers of different counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import ACTIVATIONS, randn
from torch._dynamo.testing import CompileCounterWithBackend

from pytorch_block_sparse import BlockSparseLinear, BlockSparseMatrix, functional

every_backend = pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def layer(n: int, device: str, activation: str = "none", **options) -> BlockSparseLinear:
    """(64 -> 48) with n of 12 blocks."""
    return BlockSparseLinear(
        64, 48, density=n / 12, block_shape=(16, 16), activation=activation, **options
    ).to(device)


def step(call, module, x):
    """Result and gradients of one forward and backward."""
    x = x.detach().requires_grad_()
    y = call(x)
    inputs = x, *module.parameters()
    return y, *torch.autograd.grad(y, inputs, torch.ones_like(y))


@every_backend
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_dynamic_tokens(device, backend, activation):
    module = layer(6, device, activation)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for tokens in (5, 8, 33, 2):
        x = randn(tokens, 64, dtype=torch.float32, device=device)
        torch.testing.assert_close(step(compiled, module, x), step(module, module, x))
    assert counter.frame_count <= 2, "one for the first number of tokens, one for all others"


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("preactivation", ["save", "recompute"])
def test_same_as_eager(device, activation, preactivation):
    module = layer(6, device, activation, preactivation=preactivation)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    x = randn(7, 64, dtype=torch.float32, device=device)
    torch.testing.assert_close(step(compiled, module, x), step(module, module, x))
    with torch.no_grad():
        assert torch.equal(compiled(x), module(x))


def test_autocast_and_float32_weight_gradient(device):
    module = layer(6, device, "gelu")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = randn(7, 64, dtype=torch.float32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        got, expected = step(compiled, module, x), step(module, module, x)
    assert got[0].dtype == torch.bfloat16
    assert got[2].dtype == torch.float32
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@every_backend
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_twelve_layers_of_different_counts(device, backend, train):
    """Compiled one by one, as for regional compilation: at most 3 graphs in all."""
    modules = [layer(n, device) for n in range(1, 13)]
    assert len({m.weight.values.shape[0] for m in modules}) == 12
    counter = CompileCounterWithBackend(backend)
    for i, module in enumerate(modules):
        compiled = torch.compile(module, fullgraph=True, backend=counter)
        for tokens in (5 + i, 40):
            x = randn(tokens, 64, dtype=torch.float32, device=device)
            if train:
                torch.testing.assert_close(step(compiled, module, x), step(module, module, x))
            else:
                with torch.no_grad():
                    torch.testing.assert_close(compiled(x), module(x))
    assert counter.frame_count <= 3


class Projection(torch.nn.Module):
    """Keeps its matrix under a name of its own."""

    def __init__(self, matrix: BlockSparseMatrix) -> None:
        super().__init__()
        self.proj = matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.proj)


def test_matrix_under_another_name(device):
    """By the setting that docs/architecture.md names, and not without it."""
    sources = r",.*\._modules\['proj'\]\..*\['(values|packed_index|\w+_indices|\w+_ids)'\]"
    documented = Path(__file__).parents[2] / "docs" / "architecture.md"
    assert f'dynamic_sources += r"{sources}"' in documented.read_text()
    config = torch.compiler.config
    for added, fewest, most in (("", 6, 12), (sources, 1, 3)):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        with config.patch(dynamic_sources=config.dynamic_sources + added):
            for n in range(1, 7):
                module = Projection(layer(n, device).weight)
                compiled = torch.compile(module, fullgraph=True, backend=counter)
                x = randn(5, 64, dtype=torch.float32, device=device)
                torch.testing.assert_close(compiled(x), module(x))
        assert fewest <= counter.frame_count <= most, counter.frame_count


def test_pattern_changes_without_recompiling(device):
    module = layer(6, device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    x = randn(7, 64, dtype=torch.float32, device=device)
    first = compiled(x)
    mask = module.weight.block_mask_build(None)
    with torch.no_grad():
        module.weight.set_pattern_(mask.flip(0))
        module.weight.values.fill_(0.5)
    torch.testing.assert_close(compiled(x), module(x))
    assert not torch.equal(compiled(x), first)
    assert counter.frame_count == 1


def test_inside_a_model(device):
    """Two layers and dense ones between, whole, with inductor."""
    model = torch.nn.Sequential(
        layer(6, device, "gelu"), torch.nn.LayerNorm(48, device=device), torch.nn.Linear(48, 64),
        layer(4, device),
    ).to(device)  # fmt: skip
    compiled = torch.compile(model, fullgraph=True)
    x = randn(3, 5, 64, dtype=torch.float32, device=device)
    torch.testing.assert_close(
        step(compiled, model, x), step(model, model, x), rtol=1e-5, atol=1e-5
    )
