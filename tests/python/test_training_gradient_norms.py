# SPDX-License-Identifier: Apache-2.0
"""The block norms of the dense gradient: right, seen only when needed, and never dense."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers import ACTIVATIONS, randn
from small_training import governed_one, small_layer, under
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear
from pytorch_block_sparse._matrix_api import split_into_blocks
from pytorch_block_sparse.training import SET, SNFS, GradualMagnitude, RigL
from pytorch_block_sparse.training.layers import governed


def dense_norms(layer: BlockSparseLinear, xs: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Sum over the pairs of the block norms of d/dW sum(weights · activation(x Wᵀ + b))."""
    total = torch.zeros(layer.weight._grid, dtype=torch.float64)
    for x, factor in zip(xs, weights, strict=True):
        w = layer.weight.to_dense().detach().double().requires_grad_()
        bias = None if layer.bias is None else layer.bias.detach().double()
        y = ACTIVATIONS[layer.activation](nn.functional.linear(x.detach().double(), w, bias))
        (y * factor.double()).sum().backward()
        blocks = split_into_blocks(w.grad, layer.weight.block_shape)
        total += torch.linalg.vector_norm(blocks, dim=(2, 3)).to(total.device)
    return total


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("shape", "block"), [((64, 96), (16, 16)), ((50, 70), (16, 32)), ((12, 20), (3, 5))]
)
def test_norms_are_those_of_the_dense_gradient(
    activation: str, shape: tuple[int, int], block: tuple[int, int]
) -> None:
    layer: Any = BlockSparseLinear(
        shape[1], shape[0], block_shape=block, density=0.4, activation=activation
    )
    plain = copy.deepcopy(layer)
    one = governed_one(layer)
    # Two parts of an accumulated batch, of another number of tokens each.
    xs = [randn(tokens, shape[1], dtype=torch.float32, seed=tokens) for tokens in (7, 12)]
    factors = [randn(len(x), shape[0], dtype=torch.float32, seed=len(x) + 50) for x in xs]
    one.watch_gradient()
    for x, factor in zip(xs, factors, strict=True):
        x.requires_grad_()
        (layer(x) * factor).sum().backward()
    norms = one.seen_norms()
    assert norms is not None
    assert layer.weight.product is None
    expected = dense_norms(layer, xs, factors)
    torch.testing.assert_close(norms.double(), expected, rtol=1e-5, atol=1e-5)
    # Watching changes nothing but roundings of a fused activation.
    for x, factor in zip(xs, factors, strict=True):
        again = x.detach().requires_grad_()
        (plain(again) * factor).sum().backward()
        torch.testing.assert_close(again.grad, x.grad)
    for a, b in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_an_activation_in_place_may_follow() -> None:
    layer = small_layer()
    model = nn.Sequential(layer, nn.ReLU(inplace=True), small_layer())
    layers = governed(model, None, [])
    for one in layers:
        one.watch_gradient()
    x = randn(8, 64, dtype=torch.float32)
    model(x).square().sum().backward()
    seen = [one.seen_norms() for one in layers]
    hidden = torch.relu(layer(x))
    dy = 2 * model(x)
    grad = dy.T @ hidden
    blocks = torch.linalg.vector_norm(split_into_blocks(grad, (16, 16)), dim=(2, 3))
    torch.testing.assert_close(seen[1], blocks)
    assert float(seen[0].sum()) > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16])
def test_under_autocast(inputs: torch.dtype) -> None:
    layer = small_layer()
    one = governed_one(layer)
    one.watch_gradient()
    x = randn(32, 64, dtype=inputs)
    device = torch.get_default_device().type
    with torch.autocast(device, torch.bfloat16):
        layer(x).float().square().sum().backward()
    norms = one.seen_norms()
    dy = (2 * (x.double() @ layer.weight.to_dense().double().T + layer.bias.double())).detach()
    grad = dy.T @ x.double()
    expected = torch.linalg.vector_norm(split_into_blocks(grad, (16, 16)), dim=(2, 3))
    # bfloat16 has 8 bits: x, w, y and dy are each rounded to half of 2^-7 relative.
    torch.testing.assert_close(norms, expected.float(), rtol=2e-2, atol=0)


def test_without_gradients_nothing_is_seen() -> None:
    layer = small_layer()
    one = governed_one(layer)
    one.watch_gradient()
    with torch.no_grad():
        layer(randn(4, 64, dtype=torch.float32))
    assert one.seen_norms() is None


def test_copies_of_a_watched_model_are_not_watched() -> None:
    layer = small_layer()
    one = governed_one(layer)
    one.watch_gradient()
    assert layer.weight.product is not None
    assert copy.deepcopy(layer).weight.product is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RigL(update_every=4, start=2, end=14, decay="constant"), {6, 10, 14}),
        (RigL(update_every=4, start=2, end=14), {6, 10}),  # a cosine ends at 0
        (SNFS(update_every=4, end=8, norm_every=2), {2, 4, 6, 8}),
        (SET(update_every=4, end=12), set()),
        (GradualMagnitude(update_every=4, end=12), set()),
    ],
    ids=["rigl", "rigl cosine", "snfs", "set", "gradual"],
)
def test_norms_are_computed_at_the_steps_that_need_them(
    config: Any, expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer, trainer = under(config)
    calls = []
    from pytorch_block_sparse.training import gradient_norms

    class Counted(gradient_norms.GradientNorms):
        def __call__(self, *args: Any) -> Tensor:
            calls.append(trainer.steps + 1)
            return super().__call__(*args)

    monkeypatch.setattr("pytorch_block_sparse.training.layers.GradientNorms", Counted)
    trainer._get_ready()
    for step in range(1, 18):
        assert trainer.watches_gradient == (step in expected)
        model(randn(4, 64, dtype=torch.float32, seed=step)).square().sum().backward()
        optimizer.step()
        trainer.step()
        optimizer.zero_grad()
    assert set(calls) == expected
    assert len(calls) == len(expected)


def test_a_replayed_step_is_noticed() -> None:
    """As from a captured CUDA graph, in which nothing of the layer runs."""
    _, optimizer, trainer = under(RigL(update_every=1, end=9))
    optimizer.step()
    with pytest.raises(RuntimeError, match="no backward went through any of 1 block-sparse"):
        trainer.step()


@pytest.mark.host
def test_no_dense_gradient_is_in_memory() -> None:
    """Peak memory of the process in a step with norms, against the 256 MiB of a dense gradient."""
    script = """
import resource, torch
from torch import nn
from pytorch_block_sparse import BlockSparseLinear
from pytorch_block_sparse.training import PatternTrainer, RigL
torch.set_num_threads(1)
model = nn.Sequential(BlockSparseLinear(8192, 8192, bias=False, density=1 / 256))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
trainer = PatternTrainer(model, optimizer, RigL(update_every=2, end=9))
peaks = []
for step in range(2):
    model(torch.randn(32, 8192)).square().sum().backward()
    optimizer.step()
    update = trainer.step()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
assert update is not None and sum(layer.grown for layer in update.layers.values())
print((peaks[1] - peaks[0]) / 1024)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 32
