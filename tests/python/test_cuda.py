# SPDX-License-Identifier: Apache-2.0
"""What only a GPU has: graphs, streams, several devices, its memory, and the plan of a pattern."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers import assert_product, randn, random_weight

from pytorch_block_sparse import BlockSparseLinear, functional

pytestmark = pytest.mark.gpu

ops = torch.ops.block_sparse
DTYPES = (torch.bfloat16, torch.float32)


def layer_of(dtype: torch.dtype, slots: int | None = None) -> BlockSparseLinear:
    return BlockSparseLinear(
        256, 384, density=0.4, block_shape=32, activation="gelu", slots=slots, dtype=dtype
    )


def grown(layer: BlockSparseLinear, count: int) -> None:
    """Drops `count` blocks and stores twice as many elsewhere."""
    free = (~layer.weight.block_mask_build()).nonzero()[: 2 * count].T
    values = torch.randn(2 * count, *layer.weight.block_shape)
    layer.weight.drop_and_grow_(torch.arange(count), *free, values)


def step(layer: BlockSparseLinear, x: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """Result and gradients."""
    y = layer(x)
    parameters = (x, layer.weight.values, layer.bias)
    return [y, *torch.autograd.grad(y, parameters, grad)]


@pytest.mark.parametrize("tokens", [1, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_graph_follows_the_pattern(dtype, tokens):
    """Nothing waits or is read on the host, or it could not be captured."""
    layer = layer_of(dtype, slots=60)
    x = torch.randn(tokens, 256, dtype=dtype, requires_grad=True)
    grad = torch.randn(tokens, 384, dtype=dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(layer, x, grad)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(layer, x, grad)
    for moved in (0, 4, 3):
        if moved:
            grown(layer, moved)
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        for from_graph, eager in zip(captured, step(layer, x, grad), strict=True):
            assert torch.equal(from_graph, eager)


def test_derived_tensors_can_be_captured():
    layer = layer_of(torch.float32, slots=60)
    index = layer.weight.index
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        derived = [*ops.pattern_transpose(*index[:3], 8)]
        derived.append(ops.pattern_plan([*index[:3], *derived, index[6]], 384, 256, 32, 32))
    grown(layer, 5)
    graph.replay()
    for from_graph, there in zip(derived, index[3:], strict=True):
        assert torch.equal(from_graph, there)


def test_plan_is_rebuilt_in_place():
    weight = layer_of(torch.float32, slots=60).weight
    before, address = weight.plan.clone(), weight.plan.data_ptr()
    assert before.numel() > 0
    # A row without blocks and a full one: the order of the tiles is another one.
    mask = weight.block_mask_build()
    mask[0] = False
    mask[-1] = True
    weight.set_pattern_(mask)
    assert weight.plan.data_ptr() == address
    assert not torch.equal(weight.plan, before)
    assert torch.equal(weight.plan, ops.pattern_plan(weight.index, 384, 256, 32, 32))


def test_each_device_has_its_own_plan():
    layer = layer_of(torch.float32)
    plan = layer.weight.plan.clone()
    assert layer.to("cpu").weight.plan.numel() == 0
    assert torch.equal(layer.to("cuda").weight.plan, plan)


def test_plan_of_another_length_is_not_read():
    weight = random_weight((128, 96), (16, 16), 0.5)
    x = randn(40, 96, dtype=torch.float32)
    expected = functional.linear(x, weight)
    for length in (0, 1, weight.index[6].numel() + 64):
        weight.index[6] = torch.full((length,), -1, dtype=torch.int32)
        assert torch.equal(functional.linear(x, weight), expected)


@pytest.mark.parametrize("tokens", [5, 50, 500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_streams_at_once(dtype, tokens):
    layers = [layer_of(dtype) for _ in range(2)]
    inputs = [torch.randn(tokens, 256, dtype=dtype, requires_grad=True) for _ in layers]
    grad = torch.randn(tokens, 384, dtype=dtype)
    expected = [step(layer, x, grad) for layer, x in zip(layers, inputs, strict=True)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in layers]
    results = [[], []]
    for _ in range(20):
        for stream, layer, x, seen in zip(streams, layers, inputs, results, strict=True):
            with torch.cuda.stream(stream):
                seen.append(step(layer, x, grad))
    torch.cuda.synchronize()
    for once, repeats in zip(expected, results, strict=True):
        for repeat in repeats:
            assert all(torch.equal(a, b) for a, b in zip(once, repeat, strict=True))


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")


@two_gpus
@pytest.mark.parametrize("current", [0, 1])
def test_pattern_is_derived_on_its_own_device(current):
    """What checks, transposes and plans a pattern runs where the pattern is."""
    torch.manual_seed(3)
    here = layer_of(torch.float32, slots=60)
    with torch.cuda.device(current), torch.device("cuda:1"):
        torch.manual_seed(3)
        there = layer_of(torch.float32, slots=60)
        mask = torch.arange(96, device="cpu").reshape(12, 8) % 5 < 2
        for layer in (here, there):
            layer.weight.set_pattern_(mask)
        broken = [t.clone() for t in there.weight.index[:3]]
        broken[1][0] = 77
        with pytest.raises(RuntimeError, match="expected"):
            ops.pattern_check(*broken, 60, 8)
    for mine, other in zip(here.weight.index, there.weight.index, strict=True):
        assert other.device == torch.device("cuda:1")
        assert torch.equal(mine.cpu(), other.cpu())


@two_gpus
def test_graph_of_the_other_device():
    layer = layer_of(torch.bfloat16).to("cuda:1")
    with torch.cuda.device(1), torch.device("cuda:1"), torch.no_grad():
        x = torch.randn(50, 256, dtype=torch.bfloat16)
        expected = layer(x)
        graph = torch.cuda.CUDAGraph()
        # torch's own stream for captures is of the device that captured first.
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
            captured = layer(x)
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, expected)


@two_gpus
def test_device_of_the_tensors_is_the_one_used():
    layer = layer_of(torch.float32)
    x = torch.randn(7, 256, requires_grad=True)
    grad = torch.randn(7, 384)
    expected = step(layer, x, grad)
    there = layer.to("cuda:1")
    for current in (0, 1):
        with torch.cuda.device(current):
            x_there = x.detach().to("cuda:1").requires_grad_()
            results = step(there, x_there, grad.to("cuda:1"))
        assert all(t.device == torch.device("cuda:1") for t in results)
        for here, other in zip(expected, results, strict=True):
            torch.testing.assert_close(other.to(here.device), here)


def test_tensors_of_two_devices_are_refused():
    weight = random_weight((64, 96), (16, 16), 0.5)
    x = randn(4, 96, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="values is on another device than the first tensor"):
        ops.linear(x, weight.values.cpu(), weight.index, None, 64)
    with pytest.raises(RuntimeError, match="the first tensor is on the CPU and another on a GPU"):
        ops.linear(x.cpu(), weight.values, weight.index, None, 64)
    weight.index[1] = weight.index[1].cpu()
    with pytest.raises(RuntimeError, match="a tensor of index is on another device"):
        functional.linear(x, weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_is_allocated_for_results_alone(dtype):
    layer = layer_of(dtype)
    x = torch.randn(64, 256, dtype=dtype, requires_grad=True)
    grad = torch.randn(64, 384, dtype=dtype)

    def allocations(call) -> tuple[int, int]:
        call()
        key = "allocation.all.allocated"
        before = torch.cuda.memory_stats()[key]
        results = call()
        tensors = results if isinstance(results, list) else [results]
        return torch.cuda.memory_stats()[key] - before, len(tensors)

    with torch.no_grad():
        assert allocations(lambda: layer(x)) == (1, 1)
    made, results = allocations(lambda: step(layer, x, grad))
    # Beyond the results: x Wᵀ + b, its gradient, and scratch memory of the weight gradient.
    assert made <= results + 3


def test_out_of_memory_is_an_exception():
    layer = layer_of(torch.float32)
    tokens = torch.cuda.get_device_properties(0).total_memory // (4 * 384) + 1
    weight = random_weight((384, 1), (32, 1), 1.0)
    with pytest.raises(RuntimeError, match=rf"^CUDA out of memory\. .* of shape \({tokens}, 384\)"):
        ops.linear(torch.zeros(tokens, 1), weight.values, weight.index, None, 384)
    # The device goes on.
    y = layer(torch.ones(2, 256))
    assert torch.isfinite(y).all()


def test_failed_launch_is_an_exception():
    """An index that nobody checked makes a kernel fail, and with it all later launches."""
    program = """
import torch
from pytorch_block_sparse import BlockSparseLinear
layer = BlockSparseLinear(256, 384, density=0.4, block_shape=32, device="cuda")
x = torch.ones(200, 256, device="cuda")
with torch.no_grad():
    layer(x)
    layer.weight.packed_index[32:].fill_(1 << 30)  # all but the row pointers
    for call in range(2):
        try:
            layer(x)
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(call, str(error).partition("\\n")[0])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    first, second = run.stdout.splitlines()
    assert "illegal memory access" in first
    # It is this package that says so, before torch looks.
    assert second.startswith("1 CUDA error while "), second
    assert "illegal memory access" in second


def test_kernel_that_cannot_run_is_an_exception(monkeypatch):
    weight = random_weight((64, 96), (16, 16), 0.5)
    x = randn(4, 96, dtype=torch.float32)
    monkeypatch.setenv("BLOCK_SPARSE_FORCE", "sm90_spmm")
    with pytest.raises(RuntimeError, match="BLOCK_SPARSE_FORCE=sm90_spmm cannot run this call: "):
        functional.linear(x, weight)


def test_broken_pattern_is_told_as_on_the_cpu():
    weight = random_weight((64, 96), (16, 16), 0.5)
    for part, at, value in ((0, 1, 77), (1, 0, -3), (2, 1, 10**6)):
        index = [t.clone() for t in weight.index[:3]]
        index[part][at] = value
        sentences = []
        for device in ("cuda", "cpu"):
            with pytest.raises(RuntimeError) as caught:
                ops.pattern_check(*(t.to(device) for t in index), len(weight.values), 6)
            sentences.append(str(caught.value).partition("\n")[0])
        assert sentences[0] == sentences[1]
        assert "expected" in sentences[0]


def test_tf32_only_where_torch_allows_it():
    """True float32 by default: to its own bound, which TF32 would miss by far."""
    weight = random_weight((384, 512), (64, 64), 0.5)
    x = randn(300, 512, dtype=torch.float32)
    expected = x.double() @ weight.dense().T
    magnitude = x.double().abs() @ weight.dense().abs().T
    assert_product(functional.linear(x, weight), expected, magnitude, 512)
