# SPDX-License-Identifier: Apache-2.0
"""SparseOptimizer: what moves, what stays, and what attached optimizers forget."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytorch_block_sparse import BlockSparseLinear, BlockSparseMatrix, SparseOptimizer
from pytorch_block_sparse.sparse_optimizer import MagnitudeSparseOptimizerStrategy


def changed_blocks(before: Tensor, after: Tensor) -> float:
    return float((before != after).sum()) / 1024


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 1.0])
def test_strategy_moves_the_smallest_blocks(ratio: float) -> None:
    torch.manual_seed(0)
    matrix = BlockSparseMatrix.randn((256, 256), 32)
    norms, values = matrix.block_norm().detach(), matrix.values.detach().clone()
    positions, dense = matrix.build_coo_block_index().T, matrix.to_dense().detach()
    slots = MagnitudeSparseOptimizerStrategy(ratio).run(matrix)
    moved = int(32 * ratio)
    smallest = norms.argsort()[:moved]
    assert slots.numel() == moved
    # A new matrix has block i in slot i.
    assert set(slots.tolist()) == set(smallest.tolist())
    assert changed_blocks(dense, matrix.to_dense()) == 2 * moved
    mask = matrix.block_mask_build()
    assert int(mask.sum()) == 32
    rows, cols = positions[smallest].long().T
    assert not mask[rows, cols].any()
    kept = [s for s in range(32) if s not in slots.tolist()]
    assert torch.equal(matrix.values[kept], values[kept])
    x = torch.randn(3, 256)
    torch.testing.assert_close(matrix.reverse_matmul(x, True), x @ matrix.to_dense().T)
    torch.testing.assert_close(matrix.reverse_matmul(x, False), x @ matrix.to_dense())


def test_as_many_as_there_are_free_places() -> None:
    matrix = BlockSparseMatrix.randn((128, 128), 14)
    assert MagnitudeSparseOptimizerStrategy(0.5).run(matrix).numel() == 2
    full = BlockSparseMatrix.randn((128, 128))
    assert MagnitudeSparseOptimizerStrategy(0.5).run(full).numel() == 0


@pytest.mark.parametrize("distribution", ["uniform", "gaussian"])
def test_new_coefficients_are_distributed(distribution: str) -> None:
    torch.manual_seed(0)
    matrix = BlockSparseMatrix.randn((512, 512), 128)
    with torch.no_grad():
        matrix.values += 0.5
    elements = matrix.stored_elements().detach()
    mean, std = float(elements.mean()), float(elements.std())
    slots = MagnitudeSparseOptimizerStrategy(0.5, distribution, 0.2).run(matrix)
    new = matrix.values[slots].detach()
    count = new.numel()
    if distribution == "uniform":
        bound = 0.2 * std
        assert float(new.abs().max()) <= bound * (1 + 1e-6)
        assert float(new.abs().max()) > 0.99 * bound
        expected_mean, expected_std = 0.0, bound / 3**0.5
    else:
        expected_mean, expected_std = 0.2 * mean, 0.2 * std
        # A normal distribution: 4.55 % lie beyond two deviations.
        beyond = float(((new - expected_mean).abs() > 2 * expected_std).double().mean())
        assert abs(beyond - 0.0455) < 5 * (0.0455 / count) ** 0.5
    assert abs(float(new.mean()) - expected_mean) < 5 * expected_std / count**0.5
    assert float(new.std()) == pytest.approx(expected_std, rel=5 / count**0.5)


def test_ragged_statistics_leave_padding_out() -> None:
    torch.manual_seed(0)
    matrix = BlockSparseMatrix.randn((33, 33), 3)
    with torch.no_grad():
        matrix.values += matrix._padding * 1e6
    slots = MagnitudeSparseOptimizerStrategy(0.5).run(matrix)
    assert float(matrix.values[slots].detach().abs().max()) < 1
    dense = matrix.to_dense()
    assert torch.allclose(matrix.reverse_matmul(torch.eye(33), True), dense.T)


def test_seed_and_generator_decide() -> None:
    start = BlockSparseMatrix.randn((256, 256), 32)
    results = []
    for _ in range(2):
        matrix = copy.deepcopy(start)
        torch.manual_seed(4)
        SparseOptimizer([matrix]).step()
        results.append(matrix.to_dense())
    for _ in range(2):
        matrix = copy.deepcopy(start)
        source = torch.Generator().manual_seed(4)
        SparseOptimizer(matrix, generator=source).step()
        results.append(matrix.to_dense())
    assert all(torch.equal(results[0], r) for r in results)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "SGD momentum": lambda p: torch.optim.SGD(p, momentum=0.9),
    "SGD": torch.optim.SGD,
    "Adagrad": lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.25),
    "Adadelta": torch.optim.Adadelta,
    "RMSprop": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.125),
    "Adamax": torch.optim.Adamax,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "ASGD": torch.optim.ASGD,
    "Adafactor": torch.optim.Adafactor,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_attached_optimizer_forgets_replaced_slots_only(name: str) -> None:
    torch.manual_seed(0)
    layer = BlockSparseLinear(256, 256)
    optimizer = OPTIMIZERS[name](layer.parameters())
    sparse_optimizer = SparseOptimizer(SparseOptimizer.sparse_objects(layer), lr=0.25)
    sparse_optimizer.attach_optimizer(optimizer)
    for _ in range(2):
        layer(torch.randn(4, 256)).square().sum().backward()
        optimizer.step()
    values = layer.weight.values
    before = {k: t.clone() for k, t in optimizer.state[values].items() if isinstance(t, Tensor)}
    weights = values.detach().clone()
    sparse_optimizer.step()
    replaced = (values != weights).flatten(1).any(1)
    assert int(replaced.sum()) == 8
    assert not values.grad[replaced].any()
    assert values.grad[~replaced].any()
    for key, old in before.items():
        new = optimizer.state[values][key]
        if old.ndim < 3:
            assert torch.equal(new, old)
            continue
        assert torch.equal(new[~replaced], old[~replaced]), key
        start = {("Adagrad", "sum"): 0.25, ("Rprop", "step_size"): 0.125}.get((name, key), 0.0)
        assert (new[replaced] == start).all(), key
    layer(torch.randn(4, 256)).square().sum().backward()
    optimizer.step()
    assert values.isfinite().all()


def test_every_attached_optimizer_is_cleared() -> None:
    # 0.1 stopped at the first one.
    layers = [BlockSparseLinear(128, 128) for _ in range(2)]
    optimizers = [torch.optim.Adam(layer.parameters()) for layer in layers]
    third = torch.optim.SGD(layers[0].parameters(), lr=0.0, momentum=0.9)
    sparse_optimizer = SparseOptimizer([layer.weight for layer in layers], lr=1.0)
    for optimizer in (*optimizers, third):
        sparse_optimizer.attach_optimizer(optimizer)
    with pytest.warns(UserWarning, match="already attached"):
        sparse_optimizer.attach_optimizer(third)
    for layer in layers:
        layer(torch.randn(3, 128)).sum().backward()
    for optimizer in (*optimizers, third):
        optimizer.step()
    sparse_optimizer.step()
    for layer, optimizer in zip(layers, optimizers, strict=True):
        assert not optimizer.state[layer.weight.values]["exp_avg"].any()
    assert not third.state[layers[0].weight.values]["momentum_buffer"].any()


@pytest.mark.parametrize("densities", [(0.5, 0.25), (0.25, 0.5)])
@pytest.mark.parametrize("name", [*OPTIMIZERS, "AdamW fused"])
def test_state_that_does_not_fit_what_was_loaded(name: str, densities: tuple[float, float]) -> None:
    """Another number of slots, under an optimizer that has stepped."""
    layer, other = (BlockSparseLinear(128, 128, density=density) for density in densities)
    dense = nn.Linear(128, 128)
    fused = {"AdamW fused": lambda p: torch.optim.AdamW(p, fused=True)}
    optimizer = {**OPTIMIZERS, **fused}[name]([*layer.parameters(), *dense.parameters()])

    def step() -> None:
        optimizer.zero_grad()
        dense(layer(torch.randn(4, 128))).square().sum().backward()
        optimizer.step()

    step()
    dense_state = {k: t.clone() for k, t in optimizer.state[dense.weight].items()}
    values = layer.weight.values
    layer.load_state_dict(other.state_dict())
    assert layer.weight.values is values
    optimizer.zero_grad()
    dense(layer(torch.randn(4, 128))).square().sum().backward()
    if name == "SGD":
        optimizer.step()  # keeps nothing
    else:
        with pytest.warns(UserWarning, match=r"starts anew for a BlockSparseMatrix .* to \d+: "):
            optimizer.step()
    for tensor in optimizer.state[values].values():
        if isinstance(tensor, Tensor) and tensor.ndim == 3:
            assert tensor.shape[0] == values.shape[0]
    assert values.isfinite().all()
    assert set(optimizer.state[dense.weight]) == set(dense_state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step()


def test_new_state_is_that_of_a_new_parameter() -> None:
    layer, other = BlockSparseLinear(128, 128), BlockSparseLinear(128, 128, density=0.25)
    kept = {"Adagrad": "sum", "Rprop": "step_size", "Adam": "exp_avg_sq"}
    for name, key in kept.items():
        sparse = copy.deepcopy(layer)
        optimizer = OPTIMIZERS[name](sparse.parameters())
        sparse(torch.randn(4, 128)).square().sum().backward()
        optimizer.step()
        sparse.load_state_dict(other.state_dict())
        sparse(torch.randn(4, 128)).square().sum().backward()
        seen: list[Tensor] = []

        # Run after the hook that starts the state anew, before the step itself.
        optimizer.register_step_pre_hook(
            lambda optimizer, *_, key=key, values=sparse.weight.values, seen=seen: seen.append(
                optimizer.state[values][key].clone()
            )
        )
        with pytest.warns(UserWarning, match="starts anew"):
            optimizer.step()
        start = {"Adagrad": 0.25, "Rprop": 0.125, "Adam": 0.0}[name]
        assert seen[0].shape == sparse.weight.values.shape, key
        assert (seen[0] == start).all(), key


def test_state_that_is_loaded_too_goes_on() -> None:
    """Resuming from a checkpoint of a model with another number of blocks."""

    def trained(density: float) -> tuple[BlockSparseLinear, torch.optim.Optimizer]:
        layer = BlockSparseLinear(128, 128, density=density)
        optimizer = torch.optim.Adam(layer.parameters())
        for seed in range(2):
            train(layer, optimizer, seed)
        return layer, optimizer

    def train(layer: BlockSparseLinear, optimizer: torch.optim.Optimizer, seed: int) -> None:
        optimizer.zero_grad()
        torch.manual_seed(seed)
        layer(torch.randn(4, 128)).square().sum().backward()
        optimizer.step()

    source, its_optimizer = trained(0.25)
    target, optimizer = trained(0.5)
    target.load_state_dict(source.state_dict())
    optimizer.load_state_dict(copy.deepcopy(its_optimizer.state_dict()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in (3, 4):
            train(source, its_optimizer, seed)
            train(target, optimizer, seed)
    assert torch.equal(target.weight.values, source.weight.values)


def test_is_an_optimizer() -> None:
    layer = BlockSparseLinear(128, 128)
    optimizer = SparseOptimizer(layer.weight, lr=0.5)
    optimizer.add_param_group(
        {
            "sparse_objects": [BlockSparseMatrix.randn((64, 64), 2)],
            "lr": 0.25,
            "new_coefficients_distribution": "gaussian",
        }
    )
    assert isinstance(optimizer, torch.optim.Optimizer)
    layer(torch.randn(2, 128)).sum().backward()
    optimizer.zero_grad()
    assert layer.weight.values.grad is None
    state = copy.deepcopy(optimizer.state_dict())
    assert [g["lr"] for g in state["param_groups"]] == [0.5, 0.25]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    optimizer.step()
    scheduler.step()
    before = layer.weight.to_dense()
    optimizer.step()
    assert torch.equal(layer.weight.to_dense(), before)
    optimizer.load_state_dict(state)
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.25]
    assert optimizer.param_groups[0]["sparse_objects"] == [layer.weight]
    assert optimizer.step(lambda: 7.0) == 7.0
    assert not torch.equal(layer.weight.to_dense(), before)
    assert "magnitude" in repr(optimizer)


def test_sparse_objects_lists_each_once() -> None:
    layer = BlockSparseLinear(64, 64)
    model = nn.ModuleList([layer, nn.Linear(2, 2), nn.Sequential(layer)])
    assert SparseOptimizer.sparse_objects(model) == [layer.weight]


def test_works_between_backward_and_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(BlockSparseLinear(128, 128), nn.ReLU(), BlockSparseLinear(128, 128))
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    sparse_optimizer = SparseOptimizer(SparseOptimizer.sparse_objects(model), lr=0.2)
    sparse_optimizer.attach_optimizer(adam)
    x, target = torch.randn(32, 128), torch.randn(32, 128)
    losses = []
    for _ in range(40):
        adam.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        sparse_optimizer.step()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = BlockSparseLinear(64, 64)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        y = self.linear(x)
        return {"loss": nn.functional.mse_loss(y, labels), "logits": y}


def test_under_the_trainer_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = Regression()
    matrix = model.linear.weight
    sparse_optimizer = SparseOptimizer(SparseOptimizer.sparse_objects(model), lr=0.5)
    moments: list[Tensor] = []

    class MoveBlocks(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
            if not sparse_optimizer.attached_optimizers:
                assert type(optimizer).__name__ == "AcceleratedOptimizer"
                sparse_optimizer.attach_optimizer(optimizer)
            weights = matrix.values.detach().clone()
            sparse_optimizer.step()
            replaced = (matrix.values != weights).flatten(1).any(1)
            assert int(replaced.sum()) == 1
            state = optimizer.state.get(matrix.values, {})
            moments.extend(state[k][replaced].clone() for k in state if k.startswith("exp_avg"))

    data = [{"x": torch.randn(64), "labels": torch.randn(64)} for _ in range(12)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_train_epochs=1,
        use_cpu=torch.get_default_device().type == "cpu",
        dataloader_pin_memory=False,
        report_to=[],
        save_strategy="no",
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[MoveBlocks()])
    trainer.train()
    # Two moments in each of three steps, but for the first, which has none yet.
    assert len(moments) == 4
    assert not any(m.any() for m in moments)
    x = torch.randn(2, 64)
    torch.testing.assert_close(model.linear(x), model.linear.to_dense()(x))
