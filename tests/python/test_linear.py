# SPDX-License-Identifier: Apache-2.0
"""BlockSparseLinear and PseudoBlockSparseLinear, against dense arithmetic in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dense_reference import close
from helpers import ACTIVATIONS
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear, BlockSparseMatrix
from pytorch_block_sparse.block_sparse_linear import PseudoBlockSparseLinear
from pytorch_block_sparse.pattern import PATTERNS

# in_features, out_features, block shape: multiples, other multiples, ragged both ways.
SIZES = [(64, 128, (32, 32)), (96, 64, (16, 48)), (70, 50, (16, 32)), (5, 3, (1, 1))]


def mask_of(layer: BlockSparseLinear) -> Tensor:
    """(out, in) bool: the elements that are stored."""
    h, w = layer.block_shape
    mask = layer.weight.block_mask_build().repeat_interleave(h, 0).repeat_interleave(w, 1)
    return mask[: layer.out_features, : layer.in_features]


@pytest.mark.parametrize(("in_features", "out_features", "block_shape"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_and_gradients(
    in_features: int, out_features: int, block_shape: tuple[int, int], bias: bool, activation: Any
) -> None:
    torch.manual_seed(0)
    layer = BlockSparseLinear(
        in_features, out_features, bias, 0.5, block_shape=block_shape, activation=activation
    )
    x = torch.randn(2, 3, in_features, requires_grad=True)
    g = torch.randn(2, 3, out_features)
    y = layer(x)
    y.backward(g)
    dense = nn.Linear(in_features, out_features, bias, dtype=torch.float64)
    dense.load_state_dict(dense_state(layer))
    x64 = x.detach().double().requires_grad_()
    y64 = ACTIVATIONS[activation](dense(x64))
    y64.backward(g.double())
    close(y, y64, in_features)
    close(x.grad, x64.grad, out_features)
    grad = layer.weight.to_dense(layer.weight.values.grad)
    close(grad, dense.weight.grad * mask_of(layer), 6)
    if bias:
        close(layer.bias.grad, dense.bias.grad, 6)


def dense_state(layer: BlockSparseLinear) -> dict[str, Tensor]:
    state = {"weight": layer.weight.to_dense().detach()}
    return state if layer.bias is None else state | {"bias": layer.bias.detach()}


@pytest.mark.parametrize("shape", [(64,), (0, 64), (1, 64), (2, 0, 64), (2, 3, 4, 64)])
def test_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    layer = BlockSparseLinear(64, 96, density=0.5)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == (*shape[:-1], 96)
    y.sum().backward()
    assert x.grad.shape == shape
    torch.testing.assert_close(y, layer.to_dense()(x))


def test_strided_inputs() -> None:
    # 0.1 gave wrong weight gradients for h[:, 0].
    layer = BlockSparseLinear(64, 96, density=0.5)
    for view in (
        lambda h: h[:, 0],
        lambda h: h[:, :, :].transpose(0, 1),
        lambda h: h[::2, 1],
        lambda h: h.transpose(1, 2).contiguous().transpose(1, 2),
        lambda h: h[:1, :1].expand(4, 3, 64),
    ):
        h = torch.randn(5, 4, 64, requires_grad=True)
        layer.zero_grad()
        layer(view(h)).square().sum().backward()
        twin = layer.to_dense()
        h2 = h.detach().clone().requires_grad_()
        twin(view(h2)).square().sum().backward()
        torch.testing.assert_close(h.grad, h2.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            layer.weight.to_dense(layer.weight.values.grad),
            twin.weight.grad * mask_of(layer),
            rtol=1e-4,
            atol=1e-4,
        )


def test_gradient_that_is_all_zero() -> None:
    # 0.1 asserted that it never is.
    layer = BlockSparseLinear(64, 96, density=0.5)
    layer(torch.zeros(2, 64)).sum().backward()
    assert not layer.weight.values.grad.any()


def test_spare_slots_and_padding_have_no_gradient() -> None:
    layer = BlockSparseLinear(70, 50, density=0.5, block_shape=(16, 32), slots=9)
    layer(torch.randn(4, 70)).square().sum().backward()
    grad = layer.weight.values.grad
    assert not grad[6:].any()
    stored = layer.weight.to_dense(torch.ones_like(grad)).sum()
    assert int((grad != 0).sum()) <= int(stored)
    assert float(grad.norm()) == pytest.approx(float(layer.weight.to_dense(grad).norm()), rel=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str) -> None:
    torch.manual_seed(0)
    layer = BlockSparseLinear(256, 256, density=0.5, pattern=pattern)
    assert layer.block_count == 32
    assert layer.density == 0.5
    x = torch.randn(3, 256)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


def test_mask_as_pattern() -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    layer = BlockSparseLinear(96, 64, density=0.9, pattern=mask)
    assert torch.equal(layer.weight.block_mask_build(), mask)
    assert layer.block_count == 3


def test_reproducible_from_manual_seed(device: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(11)
        states.append(BlockSparseLinear(128, 256, pattern="balanced", device=device).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    source = torch.Generator()
    by_generator = [
        BlockSparseLinear(128, 256, generator=source.manual_seed(3)).state_dict() for _ in range(2)
    ]
    assert all(torch.equal(by_generator[0][k], by_generator[1][k]) for k in by_generator[0])


def test_dtype_draws_the_same_pattern_and_values() -> None:
    layers = [
        BlockSparseLinear(64, 64, dtype=dtype, generator=torch.Generator().manual_seed(0))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert torch.equal(layers[0].weight.to_dense().bfloat16(), layers[1].weight.to_dense())


def test_initialisation_follows_the_fan_in_that_is_there() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[0, 0] = mask[1, :] = True
    mask[2, 6:] = True  # the last column of blocks is cut to 16 columns
    layer = BlockSparseLinear(240, 128, pattern=mask)
    dense = layer.weight.to_dense().detach()
    for row, fan_in in ((0, 32), (1, 240), (2, 48)):
        part = dense[32 * row : 32 * row + 32]
        part = part[part != 0]
        bound = fan_in**-0.5
        assert float(part.abs().max()) <= bound
        # Uniform in ±bound: the largest of so many is close to the bound, the variance bound²/3.
        assert float(part.abs().max()) > 0.97 * bound
        deviation = (4 / 45 / part.numel()) ** 0.5  # of the mean of u² for u uniform in ±1
        assert abs(float((part / bound).square().mean()) - 1 / 3) < 5 * deviation
        assert float(layer.bias[32 * row : 32 * row + 32].detach().abs().max()) <= bound
    assert not layer.bias[96:].any()
    assert layer.bias[:96].all()


def test_density_one_starts_as_nn_linear_does() -> None:
    torch.manual_seed(0)
    layer, dense = BlockSparseLinear(256, 256, density=1.0), nn.Linear(256, 256)
    ours, theirs = layer.weight.to_dense().detach(), dense.weight.detach()
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.02)
    assert float(ours.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.001)


@pytest.mark.parametrize(("in_features", "out_features", "block_shape"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_from_a_dense_layer(
    in_features: int, out_features: int, block_shape: tuple[int, int], bias: bool
) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(in_features, out_features, bias)
    x = torch.randn(4, in_features)
    whole = BlockSparseLinear(
        0, 0, False, torch_nn_linear=dense, density=1.0, block_shape=block_shape
    )
    assert (whole.in_features, whole.out_features) == (in_features, out_features)
    assert torch.equal(whole.weight.to_dense(), dense.weight)
    close(whole(x), dense.double()(x.double()), in_features)
    dense.float()
    for pattern in (None, "random", "balanced"):
        half = BlockSparseLinear.from_dense(dense, 0.5, block_shape=block_shape, pattern=pattern)
        assert torch.equal(half.weight.to_dense(), dense.weight * mask_of(half))
        assert (half.bias is None) == (not bias)
        if bias:
            assert torch.equal(half.bias, dense.bias)
            assert half.bias is not dense.bias
        back = half.to_dense()
        assert torch.equal(back.weight, dense.weight * mask_of(half))
        torch.testing.assert_close(back(x), half(x))


def test_from_a_dense_layer_keeps_the_largest_blocks() -> None:
    dense = nn.Linear(128, 128)
    with torch.no_grad():
        for block, scale in (((0, 3), 9.0), ((2, 1), 8.0), ((3, 0), 7.0)):
            r, c = (32 * i for i in block)
            dense.weight[r : r + 32, c : c + 32] *= scale
    layer = BlockSparseLinear.from_dense(dense, 3 / 16)
    assert layer.weight.build_coo_block_index().T.tolist() == [[0, 3], [2, 1], [3, 0]]
    assert torch.equal(
        BlockSparseLinear.from_dense(dense, 3 / 16, pattern="magnitude").weight.to_dense(),
        layer.weight.to_dense(),
    )


def test_from_a_dense_layer_keeps_dtype() -> None:
    dense = nn.Linear(64, 64, dtype=torch.bfloat16)
    assert BlockSparseLinear.from_dense(dense).weight.dtype == torch.bfloat16
    assert BlockSparseLinear.from_dense(dense, dtype=torch.float32).bias.dtype == torch.float32


def test_block_count_is_as_in_0_1() -> None:
    for density in (0.1, 0.29, 0.42, 0.5, 0.999, 1.0):
        layer = BlockSparseLinear(320, 640, density=density, block_shape=(32, 64))
        assert layer.block_count == int(density * (320 * 640 / (32 * 64)))
    assert BlockSparseLinear(64, 64, density=0.01).block_count == 1


def test_repr() -> None:
    layer = BlockSparseLinear(64, 128, activation="relu", slots=6)
    assert repr(layer) == (
        "BlockSparseLinear(\n"
        "  in_features=64, out_features=128, bias=True, activation='relu'\n"
        "  (weight): BlockSparseMatrix((128, 64), block_shape=(32, 32), blocks=4, density=0.5, "
        "slots=6)\n)"
    )


def test_verbose_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    BlockSparseLinear(64, 128)
    assert capsys.readouterr().out == ""
    BlockSparseLinear(64, 128, verbose=True)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_pseudo_linear(bias: bool, activation: Any) -> None:
    torch.manual_seed(0)
    layer = BlockSparseLinear(70, 50, bias, 0.5, block_shape=(16, 32), activation=activation)
    pseudo = PseudoBlockSparseLinear(layer)
    assert pseudo.mask.dtype == torch.bool
    assert torch.equal(pseudo.mask, mask_of(layer))
    assert pseudo.density == float(mask_of(layer).double().mean())
    x = torch.randn(3, 70, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    y, y2 = layer(x), pseudo(x2)
    torch.testing.assert_close(y, y2)
    y.square().sum().backward()
    y2.square().sum().backward()
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(layer.weight.to_dense(layer.weight.values.grad), pseudo.weight.grad)
    assert "density=" in repr(pseudo)
    assert pseudo.weight is not layer.weight


@pytest.mark.parametrize("outside", [float("nan"), float("inf"), 3.0])
def test_what_the_twin_holds_outside_of_the_blocks_is_never_used(outside: float) -> None:
    layer = BlockSparseLinear(70, 50, density=0.5, block_shape=(16, 32))
    twin = PseudoBlockSparseLinear(layer)
    with torch.no_grad():
        twin.weight[~twin.mask] = outside
    x = torch.randn(3, 70)
    y = twin(x)
    torch.testing.assert_close(y, layer(x))
    y.backward(torch.full_like(y, outside))
    gradient = twin.weight.grad
    assert gradient is not None
    assert not gradient[~twin.mask].any()
    assert gradient[twin.mask].any()


def test_training_follows_the_dense_twin() -> None:
    torch.manual_seed(0)
    layer = BlockSparseLinear(96, 64, density=0.5, dtype=torch.float64)
    twin = PseudoBlockSparseLinear(layer)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (layer, twin)]
    for _ in range(10):
        x = torch.randn(8, 96, dtype=torch.float64)
        for module, optimizer in zip((layer, twin), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimizer.step()
    torch.testing.assert_close(
        layer.weight.to_dense(), twin.weight * twin.mask, rtol=1e-9, atol=1e-12
    )


def test_seventh_argument_is_the_block_shape() -> None:
    layer = BlockSparseLinear(64, 64, True, 0.5, None, False, (16, 16))
    assert layer.block_shape == (16, 16)
    assert isinstance(layer.weight, BlockSparseMatrix)
    assert BlockSparseLinear(64, 64, block_shape=16).block_shape == (16, 16)
