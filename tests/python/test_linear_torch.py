# SPDX-License-Identifier: Apache-2.0
"""BlockSparseLinear among what torch users do with layers."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import pytorch_block_sparse
from pytorch_block_sparse import BlockSparseLinear, BlockSparseMatrix, functional
from pytorch_block_sparse.block_sparse_linear import PseudoBlockSparseLinear


def sparse_encoder_layer(**options: object) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, **options)
    layer.linear1 = BlockSparseLinear.from_dense(layer.linear1)
    layer.linear2 = BlockSparseLinear.from_dense(layer.linear2)
    return layer


def dense_twin(layer: nn.TransformerEncoderLayer) -> nn.TransformerEncoderLayer:
    twin = copy.deepcopy(layer)
    twin.linear1, twin.linear2 = layer.linear1.to_dense(), layer.linear2.to_dense()
    return twin


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("layers", [0, 2])
def test_transformer_encoder(training: bool, grad: bool, layers: int) -> None:
    # In eval without gradients torch has a fused path that multiplies with `.weight` itself.
    torch.manual_seed(0)
    layer = sparse_encoder_layer(dropout=0.0)
    twin = dense_twin(layer)
    if layers:
        layer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=True)
        twin = nn.TransformerEncoder(twin, layers, enable_nested_tensor=True)
    x = torch.randn(2, 5, 64)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.set_grad_enabled(grad):
        y = layer.train(training)(x, src_key_padding_mask=mask)
        expected = twin.train(training)(x, src_key_padding_mask=mask)
    torch.testing.assert_close(y[~mask], expected[~mask], rtol=1e-4, atol=1e-5)
    if grad:
        y[~mask].square().sum().backward()
        grads = [m.values.grad for m in layer.modules() if isinstance(m, BlockSparseMatrix)]
        assert all(g is not None and g.any() for g in grads)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_attention_out_proj_is_refused(training: bool, grad: bool) -> None:
    attention = nn.MultiheadAttention(64, 4, batch_first=True).train(training)
    attention.out_proj = BlockSparseLinear(64, 64)
    x = torch.randn(2, 5, 64)
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(TypeError, match="MultiheadAttention cannot have a block-sparse out_proj"),
    ):
        attention(x, x, x)


def test_weight_given_to_torchs_functions() -> None:
    layer = BlockSparseLinear(64, 96)
    x = torch.randn(3, 64)
    for y in (
        nn.functional.linear(x, layer.weight, layer.bias),
        nn.functional.linear(input=x, weight=layer.weight, bias=layer.bias),
        functional.linear(x, layer.weight, layer.bias),
    ):
        assert torch.equal(y, layer(x))
    torch.testing.assert_close(nn.functional.linear(x, layer.weight), x @ layer.weight.to_dense().T)
    with pytest.raises(
        TypeError, match=r"torch.matmul was given a BlockSparseMatrix as a tensor, expected a dense"
    ):
        torch.matmul(x, layer.weight)
    with pytest.raises(TypeError, match="was given a BlockSparseMatrix as a tensor"):
        nn.functional.linear(layer.weight, x)


def test_compile_whole_graph_and_pattern_changes() -> None:
    torch.compiler.reset()
    model = nn.Sequential(
        BlockSparseLinear(64, 96, activation="gelu"), BlockSparseLinear(96, 64, bias=False)
    )
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    graphs = torch._dynamo.testing.CompileCounter()
    counted = torch.compile(model, fullgraph=True, backend=graphs, dynamic=True)
    for tokens in (4, 7):
        x = torch.randn(tokens, 64)
        torch.testing.assert_close(compiled(x), model(x))
        counted(x)
    frames = graphs.frame_count
    matrix = model[0].weight
    free = (~matrix.block_mask_build()).nonzero()[:1]
    matrix.drop_and_grow_(torch.tensor([1]), *free.T, torch.ones(1, 32, 32))
    x = torch.randn(9, 64)
    torch.testing.assert_close(counted(x), model(x))
    torch.testing.assert_close(compiled(x), model(x))
    assert graphs.frame_count == frames, "a pattern that changes in its slots compiled again"
    compiled(x).square().sum().backward()
    assert matrix.values.grad.any()


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool) -> None:
    model = nn.Sequential(BlockSparseLinear(64, 96, activation="silu"), BlockSparseLinear(96, 64))
    tokens = torch.export.Dim("tokens", min=2, max=64)
    program = torch.export.export(
        model, (torch.randn(4, 64),), dynamic_shapes=({0: tokens},), strict=strict
    )
    x = torch.randn(9, 64)
    assert torch.equal(program.module()(x), model(x))
    # The index travels as buffers of the program, so a saved program holds its pattern.
    assert {k for k in program.state_dict if k.startswith("0.weight.")} >= {
        "0.weight.values",
        "0.weight.crow_indices",
    }


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.host  # its mesh is one of CPUs
@pytest.mark.usefixtures("one_process")
def test_fsdp_from_meta() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    torch.manual_seed(3)
    expected = nn.Sequential(BlockSparseLinear(64, 96), BlockSparseLinear(96, 64))
    with torch.device("meta"):
        model = nn.Sequential(BlockSparseLinear(64, 96), BlockSparseLinear(96, 64))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    torch.manual_seed(3)
    for layer in model:
        layer.reset_parameters()
    x = torch.randn(4, 64)
    for _ in range(2):
        for module in (model, expected):
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            module(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(model(x), expected(x))
    state = model.state_dict()
    model.load_state_dict(state)
    with pytest.raises(RuntimeError, match="a distributed parameter cannot be resized"):
        model.load_state_dict(expected.state_dict())
    assert torch.equal(model(x), expected(x))


@pytest.mark.usefixtures("one_process")
def test_ddp_refuses_another_number_of_slots() -> None:
    layer, same, other = (BlockSparseLinear(64, 96, False, density) for density in (0.5, 0.5, 1.0))
    wrapped = nn.parallel.DistributedDataParallel(layer)
    layer.load_state_dict(same.state_dict())
    with pytest.raises(RuntimeError, match="6 slots do not fit the 3 of a layer that is wrapped"):
        layer.load_state_dict(other.state_dict())
    x = torch.randn(2, 64)
    assert torch.equal(wrapped(x), same(x))
    del wrapped
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))


@pytest.mark.host  # its mesh is one of CPUs
@pytest.mark.usefixtures("one_process")
def test_fsdp_refuses_what_moves_blocks_between_slots() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layer = BlockSparseLinear(64, 96, density=0.5)
    fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    for change in (layer.weight.canonicalize_, lambda: layer.weight.resize_slots_(9)):
        with pytest.raises(NotImplementedError, match="do this before fully_shard"):
            change()


def test_weight_norms_and_ema_see_plain_parameters() -> None:
    model = nn.Sequential(BlockSparseLinear(64, 96))
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    x = torch.randn(2, 64)
    assert torch.equal(average(x), model(x))
    assert all(type(p) is nn.Parameter for p in model.parameters())


@pytest.mark.parametrize("use_amp", [torch.bfloat16, torch.float16])
def test_autocast(use_amp: torch.dtype) -> None:
    layer = BlockSparseLinear(64, 96)
    x = torch.randn(3, 64)
    with torch.autocast(torch.get_default_device().type, dtype=use_amp):
        y = layer(x)
    assert y.dtype == use_amp
    y.float().sum().backward()
    assert layer.weight.values.grad.dtype == torch.float32
    expected = layer.to_dense().to(use_amp)(x.to(use_amp))
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)


def test_replica_of_data_parallel() -> None:
    """What torch.nn.DataParallel makes of a model on each of several GPUs (by hand, since its own
    copying needs them): Trainer takes it where it is not started by torchrun."""
    for bias in (True, False):
        layer, x = BlockSparseLinear(64, 96, bias=bias, activation="gelu"), torch.randn(4, 64)
        replicas = {m: m._replicate_for_data_parallel() for m in layer.modules()}
        for module, replica in replicas.items():
            for name, child in module.named_children():
                replica._modules[name] = replicas[child]
            for name, parameter in module._parameters.items():
                if parameter is None:
                    replica._parameters[name] = None
                else:
                    setattr(replica, name, parameter * 1)
            for name, buffer in module._buffers.items():
                setattr(replica, name, buffer.clone())
        y = replicas[layer](x)
        assert torch.equal(y, layer(x))
        y.sum().backward()
        assert all(parameter.grad.any() for parameter in layer.parameters())


def test_import_everything_and_only_torch() -> None:
    program = (
        "import sys\n"
        "from pytorch_block_sparse import *\n"
        "from pytorch_block_sparse.block_sparse import BlockSparseMatrix as A\n"
        "from pytorch_block_sparse.block_sparse import BlockSparseMatrixEmulator as B\n"
        "from pytorch_block_sparse.block_sparse_linear import PseudoBlockSparseLinear as C\n"
        "from pytorch_block_sparse.sparse_optimizer import MagnitudeSparseOptimizerStrategy as D\n"
        "from pytorch_block_sparse.util import ModelPatcher as E\n"
        "assert A is BlockSparseMatrix and B is BlockSparseMatrixEmulator\n"
        "BlockSparseLinear, BlockSparseModelPatcher, SparseOptimizer\n"
        "heavy = {'transformers', 'matplotlib', 'safetensors', 'accelerate', 'rich'}\n"
        "heavy.add('torch._dynamo')\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_all_is_right() -> None:
    assert sorted(pytorch_block_sparse.__all__) == pytorch_block_sparse.__all__
    for name in pytorch_block_sparse.__all__:
        assert hasattr(pytorch_block_sparse, name)


def test_pseudo_linear_is_a_plain_module() -> None:
    pseudo = PseudoBlockSparseLinear(BlockSparseLinear(64, 96))
    copied = copy.deepcopy(pseudo)
    copied.load_state_dict(pseudo.state_dict())
    x: Tensor = torch.randn(2, 64)
    assert torch.equal(copied(x), pseudo(x))
