# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes, data parallel and fully sharded, train as one process does."""

from __future__ import annotations

import copy
import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear, BlockSparseModelPatcher

pytestmark = pytest.mark.host

RANKS, STEPS, TOKENS = 2, 5, 12


def make_model(dtype: torch.dtype) -> nn.Sequential:
    """Sparse layers with an odd number of slots, ragged edges, a fused activation, spare slots."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 72), nn.GELU(), nn.Linear(72, 40), nn.Linear(40, 16))
    made = BlockSparseModelPatcher()
    made.add_pattern("0", {"density": 7 / 15, "block_shape": (16, 16), "activation": "silu"})
    made.add_pattern("2", {"density": 0.6, "block_shape": (16, 16)})
    made.patch_model(model)
    model[1] = nn.Identity()
    model[3] = BlockSparseLinear(40, 16, density=1 / 3, block_shape=16, slots=3)
    return model.to(dtype)


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, 48, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randn(TOKENS, 16, generator=generator, dtype=torch.float64).to(dtype)


def train(model: nn.Module, dtype: torch.dtype, rank: int | None) -> list[float]:
    """Losses over the whole batch, of which a rank has its share."""
    x, y = batch(dtype)
    if rank is not None:
        x, y = x.chunk(RANKS)[rank], y.chunk(RANKS)[rank]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        total = loss.detach().clone()
        if rank is not None:
            dist.all_reduce(total)
            total /= RANKS
        losses.append(float(total))
    return losses


def data_parallel(rank: int) -> dict[str, Any]:
    model = nn.parallel.DistributedDataParallel(make_model(torch.float64))
    losses = train(model, torch.float64, rank)
    return {"losses": losses, "state": copy.deepcopy(model.module.state_dict())}


def fully_sharded(rank: int) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    model = make_model(torch.float64)
    mesh = dist.init_device_mesh("cpu", (RANKS,))
    for layer in model:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    losses = train(model, torch.float64, rank)
    shards = {n: p.to_local().shape for n, p in model.named_parameters()}  # type: ignore[operator]
    state = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }
    return {"losses": losses, "state": state, "shards": shards}


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS
    )
    for job in (data_parallel, fully_sharded):
        torch.save(job(rank), f"{folder}/{job.__name__}.{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, str(folder)), nprocs=RANKS)
    return lambda job: [torch.load(Path(folder) / f"{job}.{rank}.pt") for rank in range(RANKS)]


@dataclasses.dataclass
class Single:
    """What one process finds, and how far roundings may drive another such run from it.

    A float32 run is off by what roundings of float32 amount to after these steps; scaled to those
    of float64 that is what the other order of sums in two ranks may amount to. Four times it: both
    runs are rounded, and the measured run is one sample.
    """

    losses: list[float]
    state: dict[str, Tensor]
    loss_bound: float
    weight_bound: float


@pytest.fixture(scope="module")
def single() -> Single:
    model, rounded = make_model(torch.float64), make_model(torch.float32)
    losses = train(model, torch.float64, None)
    others = train(rounded, torch.float32, None)
    scale = 4 * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    weights = zip(model.parameters(), rounded.parameters(), strict=True)
    return Single(
        losses,
        model.state_dict(),
        scale * max(abs(a - b) for a, b in zip(losses, others, strict=True)),
        scale * max(float((a - b).detach().abs().max()) for a, b in weights),
    )


@pytest.mark.parametrize("job", ["data_parallel", "fully_sharded"])
def test_losses_and_weights_are_those_of_one_process(
    job: str, results: Callable[[str], list[dict[str, Any]]], single: Single
) -> None:
    assert single.losses[-1] < single.losses[0]
    for found in results(job):
        pairs = zip(found["losses"], single.losses, strict=True)
        assert max(abs(a - b) for a, b in pairs) <= single.loss_bound
        assert found["state"].keys() == single.state.keys()
        for name, value in single.state.items():
            bound = single.weight_bound if value.is_floating_point() else 0
            assert (found["state"][name] - value).abs().max() <= bound, name


def test_values_are_sharded_by_slots_and_indices_are_not(
    results: Callable[[str], list[dict[str, Any]]],
) -> None:
    model = make_model(torch.float64)
    ranks = results("fully_sharded")
    for name, parameter in model.named_parameters():
        shapes = [rank["shards"][name] for rank in ranks]
        assert sum(shape[0] for shape in shapes) == parameter.shape[0]
        assert all(shape[1:] == parameter.shape[1:] for shape in shapes)
    slots = [rank["shards"]["0.weight.values"][0] for rank in ranks]
    assert slots == [4, 3]
    assert all(
        torch.equal(rank["state"][name], buffer)
        for rank in ranks
        for name, buffer in model.state_dict().items()
        if name.endswith("indices") or name.endswith("block_ids")
    )
