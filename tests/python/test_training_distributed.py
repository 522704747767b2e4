# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes, data parallel and fully sharded, choose the same patterns."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import randn
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear, BlockSparseMatrix
from pytorch_block_sparse.training import (
    SET,
    SNFS,
    BLaST,
    GradualMagnitude,
    L0Gates,
    MovementPruning,
    PatternConfig,
    PatternTrainer,
    RigL,
    TopKAST,
)

pytestmark = pytest.mark.host

RANKS, STEPS, TOKENS = 2, 22, 12
RHYTHM: dict[str, Any] = {"update_every": 2, "end": 20}
CONFIGS: dict[str, PatternConfig] = {
    "set": SET(**RHYTHM),
    "rigl": RigL(**RHYTHM),
    "rigl fisher": RigL(**RHYTHM, score="fisher", budget="global"),
    "snfs": SNFS(**RHYTHM, norm_every=1),
    "top-kast": TopKAST(**RHYTHM, max_sizes=1),
    "blast": BLaST(**RHYTHM, density=0.2, max_sizes=1),
    "gradual": GradualMagnitude(**RHYTHM, density=0.2, budget="global", max_sizes=1),
    "l0": L0Gates(**RHYTHM, density=0.2, max_sizes=1),
    "movement": MovementPruning(**RHYTHM, density=0.2, max_sizes=1),
}


def make_model() -> nn.Sequential:
    """Ragged edges, spare slots, an odd number of slots."""
    torch.manual_seed(0)
    return nn.Sequential(
        BlockSparseLinear(48, 72, block_shape=16, slots=9, activation="relu"),
        BlockSparseLinear(72, 40, block_shape=(8, 16)),
    ).double()


def whole(tensor: Any) -> Tensor:
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().clone()


def train(config: PatternConfig, wrap: Callable[[nn.Module], nn.Module], rank: int | None) -> Any:
    """What this rank finds: its pattern after each step, losses, values and moments in the end."""
    plain = make_model()
    model = wrap(plain)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trainer = PatternTrainer(model, optimizer, config)
    matrices = [m for m in model.modules() if isinstance(m, BlockSparseMatrix)]
    patterns, losses = [], []
    for step in range(STEPS):
        x, y = (randn(TOKENS, size, dtype=torch.float64, seed=step) for size in (48, 40))
        if rank is not None:
            x, y = x.chunk(RANKS)[rank], y.chunk(RANKS)[rank]
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        trainer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        if rank is not None:
            dist.all_reduce(total)
            total /= RANKS
        losses.append(float(total))
        patterns.append([(m.block_mask_build(), m.block_ids.clone()) for m in matrices])
    return {
        "patterns": patterns,
        "losses": losses,
        "values": [whole(m.values) for m in matrices],
        "moments": [whole(optimizer.state[m.values]["exp_avg_sq"]) for m in matrices],
        "saved": trainer.state_dict(),
    }


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (RANKS,))
    for layer in model.children():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": nn.parallel.DistributedDataParallel,
    "fsdp": sharded,
}


def refusals() -> list[str]:
    """What is said about a resize under each wrapper."""
    said = []
    for wrap in WRAPPERS.values():
        model = wrap(make_model())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        try:
            PatternTrainer(model, optimizer, GradualMagnitude(**RHYTHM, density=0.2))
        except ValueError as error:
            said.append(str(error))
    return said


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS
    )
    for kind, wrap in WRAPPERS.items():
        for name, config in CONFIGS.items():
            torch.save(train(config, wrap, rank), f"{folder}/{kind} {name} {rank}.pt")
    torch.save(refusals(), f"{folder}/refusals {rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, (port, str(path)), nprocs=RANKS)
    return path


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b) or bool((a.isnan() & b.isnan() | (a == b)).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_both_ranks_have_the_same_patterns_bit_for_bit(kind: str, name: str, folder: Path) -> None:
    first, second = (torch.load(folder / f"{kind} {name} {rank}.pt") for rank in range(RANKS))
    for key in first:
        assert same(first[key], second[key]), key
    changes = sum(
        not same(a, b) for a, b in zip(first["patterns"], first["patterns"][1:], strict=False)
    )
    assert changes >= 2
    assert first["losses"][-1] < first["losses"][0]


@pytest.mark.parametrize("name", CONFIGS)
def test_runs_are_those_of_one_process(name: str, folder: Path) -> None:
    """Counts of every method; patterns and values of those that do not add norms over the ranks,
    whose sum is not the norm of the whole batch."""
    single = train(CONFIGS[name], lambda model: model, None)
    for kind in WRAPPERS:
        found = torch.load(folder / f"{kind} {name} 0.pt")
        counts = [
            [sum(int(mask.sum()) for mask, _ in step) for step in one["patterns"]]
            for one in (found, single)
        ]
        assert counts[0] == counts[1]
        if name not in ("set", "gradual", "top-kast"):
            continue
        assert same(found["patterns"], single["patterns"])
        assert found["losses"] == pytest.approx(single["losses"], rel=1e-9)
        for key in ("values", "moments"):
            for ours, theirs in zip(found[key], single[key], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_resizes_are_refused(folder: Path) -> None:
    for rank in range(RANKS):
        ddp, fsdp = torch.load(folder / f"refusals {rank}.pt")
        assert "cannot be resized under DistributedDataParallel" in ddp
        assert "cannot be resized under FSDP" in fsdp
        assert "expected max_sizes=1" in ddp
