# SPDX-License-Identifier: Apache-2.0
"""What a change of the pattern leaves alone, what it clears, what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import randn
from small_training import small_layer, under
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

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.25),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.125),
    "RMSprop": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
    "Adafactor": torch.optim.Adafactor,
}
RHYTHM: dict[str, Any] = {"update_every": 2, "end": 20}
METHODS: list[PatternConfig] = [
    SET(**RHYTHM),
    RigL(**RHYTHM),
    RigL(**RHYTHM, budget="global", score="fisher"),
    SNFS(**RHYTHM, norm_every=1),
    BLaST(**RHYTHM, density=0.2),
    GradualMagnitude(**RHYTHM, density=0.2, budget="global"),
    MovementPruning(**RHYTHM, density=0.2),
    TopKAST(**RHYTHM, forward=0.5),
    TopKAST(**RHYTHM, forward=0.5, score="fisher"),
    L0Gates(update_every=2, end=22, density=0.2),  # the last update takes the gates into the values
]
IDS = [f"{type(config).__name__} {config.budget} {config.score}" for config in METHODS]


class Net(nn.Module):
    """A ragged layer with spare slots, and one without; a dense one that is not governed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = BlockSparseLinear(64, 72, block_shape=16, slots=14)
        self.norm = nn.LayerNorm(72)
        self.second = BlockSparseLinear(72, 40, block_shape=(8, 16))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.norm(self.first(x))))
        return y


def matrices(model: nn.Module) -> list[BlockSparseMatrix]:
    return [module for module in model.modules() if isinstance(module, BlockSparseMatrix)]


def backward(model: nn.Module, seed: int) -> Tensor:
    x, y = (randn(16, size, dtype=torch.float32, seed=seed) for size in (64, 40))
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss.detach()


def slots_by_place(matrix: BlockSparseMatrix) -> Tensor:
    """(R · C,) int64: the slot of each place, -1 where none is stored."""
    rows, cols = matrix.build_coo_block_index().long()
    slots = torch.full((matrix._grid[0] * matrix._grid[1],), -1)
    slots[rows * matrix._grid[1] + cols] = matrix._slots_of_blocks().long()
    return slots


def tensors_of(optimizer: torch.optim.Optimizer, matrix: BlockSparseMatrix) -> dict[str, Tensor]:
    """Values, gradient and every state with a row per slot."""
    state = optimizer.state.get(matrix.values, {})
    found = {k: t for k, t in state.items() if isinstance(t, Tensor) and t.ndim > 0}
    found["values"] = matrix.values.detach()
    if matrix.values.grad is not None:
        found["grad"] = matrix.values.grad
    return {k: t for k, t in found.items() if t.shape[0] == matrix.slots}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("config", METHODS, ids=IDS)
def test_kept_blocks_stay_bit_for_bit_and_grown_ones_start_anew(
    name: str, config: PatternConfig
) -> None:
    model = Net()
    optimizer = OPTIMIZERS[name](model.parameters())
    trainer = PatternTrainer(model, optimizer, config)
    start = {("Adagrad", "sum"): 0.25, ("Rprop", "step_size"): 0.125}
    moved = resized = 0
    for step in range(1, 21):
        backward(model, step)
        optimizer.step()
        before = [
            {key: tensor.clone() for key, tensor in tensors_of(optimizer, matrix).items()}
            for matrix in matrices(model)
        ]
        slots = [slots_by_place(matrix) for matrix in matrices(model)]
        rooms = [matrix.slots for matrix in matrices(model)]
        update = trainer.step()
        assert (update is not None) == (step % 2 == 0)
        for matrix, old, there, room in zip(matrices(model), before, slots, rooms, strict=True):
            here = slots_by_place(matrix)
            kept, grown = (here >= 0) & (there >= 0), (here >= 0) & (there < 0)
            if matrix.slots == room:
                assert torch.equal(here[kept], there[kept])
            else:
                resized += 1
            moved += int(grown.sum())
            tensors = tensors_of(optimizer, matrix)
            assert tensors.keys() == old.keys()
            for key, tensor in tensors.items():
                assert torch.equal(tensor[here[kept]], old[key][there[kept]]), key
                assert (tensor[here[grown]] == start.get((name, key), 0.0)).all(), key
            if update is not None:
                spare = torch.ones(matrix.slots, dtype=torch.bool)
                spare[here[here >= 0]] = False
                assert not matrix.values[spare].any()
        optimizer.zero_grad()
    assert moved > 0 or config.growth == "none"
    assert bool(resized) == hasattr(config, "max_sizes")
    for layer, matrix in zip(trainer.layers, matrices(model), strict=True):
        layer.use_all()  # without gates
        x = randn(3, matrix.shape[1], dtype=torch.float32)
        torch.testing.assert_close(matrix.reverse_matmul(x, True), x @ matrix.to_dense().T)


def test_factors_of_rows_and_columns_follow() -> None:
    """transformers' Adafactor keeps (slots, h) and (slots, w)."""
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    model = Net()
    optimizer = adafactor(model.parameters())
    trainer = PatternTrainer(model, optimizer, GradualMagnitude(update_every=2, end=8, density=0.1))
    keys = {"exp_avg_sq_row", "exp_avg_sq_col"}
    for step in range(1, 9):
        backward(model, step)
        optimizer.step()
        slots = [slots_by_place(matrix) for matrix in matrices(model)]
        before = [
            {key: optimizer.state[matrix.values][key].clone() for key in keys}
            for matrix in matrices(model)
        ]
        trainer.step()
        for matrix, old, there in zip(matrices(model), before, slots, strict=True):
            here = slots_by_place(matrix)
            stored = here >= 0
            for key in keys:
                tensor = optimizer.state[matrix.values][key]
                assert tensor.shape[0] == matrix.slots
                assert torch.equal(tensor[here[stored]], old[key][there[stored]])
        optimizer.zero_grad()


class EightBit(torch.optim.SGD):
    """Keeps its momentum as bitsandbytes does, in bytes."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["state1"] = torch.zeros(p.shape, dtype=torch.uint8)


class Flat(torch.optim.SGD):
    """Keeps one flat tensor, as optimizers do that fuse parameters."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["flat"] = torch.zeros(p.numel())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (EightBit, "EightBit keeps state1, a torch.uint8 tensor .* a row per slot"),
        (Flat, "Flat keeps flat, a torch.float32 tensor"),
    ],
)
def test_state_that_cannot_follow_is_refused(make: Any, message: str) -> None:
    model = small_layer()
    optimizer = make(model.parameters(), lr=0.1)
    trainer = PatternTrainer(model, optimizer, SET(update_every=1, end=9))
    before = model.weight.block_mask_build()
    model(randn(8, 64, dtype=torch.float32)).square().sum().backward()
    optimizer.step()
    with pytest.raises(TypeError, match=message):
        trainer.step()
    assert torch.equal(model.weight.block_mask_build(), before)


def test_muon_and_lbfgs_are_refused() -> None:
    model = small_layer()
    with pytest.raises(TypeError, match="LBFGS keeps a history of all parameters as one"):
        PatternTrainer(model, torch.optim.LBFGS(model.parameters()), SET(end=9))
    if hasattr(torch.optim, "Muon"):
        with pytest.raises(ValueError, match="2D"):
            torch.optim.Muon([model.weight.values])

    class MuonOfMyOwn(torch.optim.SGD):
        pass

    optimizer = MuonOfMyOwn(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"MuonOfMyOwn orthogonalises .* as .8, 16, 16., blocks"):
        PatternTrainer(model, optimizer, SET(end=9))


@pytest.mark.parametrize("config", METHODS, ids=IDS)
def test_moving_averages_follow(config: PatternConfig) -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = Net()
    average: Any = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trainer = PatternTrainer(model, optimizer, config, copies=[average])
    # What a dense average would be, but for blocks that go.
    dense = [matrix.to_dense().detach().clone() for matrix in matrices(model)]
    average.update_parameters(model)  # the first is a copy
    for step in range(1, 21):
        backward(model, step)
        optimizer.step()
        average.update_parameters(model)
        for ours, matrix in zip(dense, matrices(model), strict=True):
            ours.lerp_(matrix.to_dense().detach(), 0.5)
        trainer.step()
        optimizer.zero_grad()
        for ours, matrix, other in zip(dense, matrices(model), matrices(average), strict=True):
            assert torch.equal(other.block_mask_build(), matrix.block_mask_build())
            assert torch.equal(other.block_ids, matrix.block_ids)
            ones = matrix.to_dense(torch.ones_like(matrix.values))
            ours *= ones
            torch.testing.assert_close(other.to_dense(), ours)
    average(randn(2, 64, dtype=torch.float32))


def test_the_forward_uses_the_best_blocks_and_all_get_a_gradient() -> None:
    model = nn.Sequential(BlockSparseLinear(64, 72, block_shape=16, activation="gelu")).double()
    (matrix,) = matrices(model)
    average = copy.deepcopy(model)
    _, optimizer, trainer = under(
        TopKAST(update_every=2, end=8, forward=0.5), model, copies=[average]
    )
    bias: Any = model[0].bias
    for step in range(10):
        count = 5 if step < 8 else matrix.n_blocks
        assert matrix.n_blocks == (10 if step < 8 else 5)
        best = matrix.block_norm().argsort(descending=True)[:count]
        if step % 2 == 0:
            used = torch.zeros(matrix.n_blocks, dtype=torch.bool).index_fill(0, best, True)
            places = matrix.build_coo_block_index().long()[:, used]
        mask = torch.zeros(5, 4, dtype=torch.float64).index_put(
            (places[0], places[1]), torch.ones((), dtype=torch.float64)
        )
        dense = (
            torch.kron(mask, torch.ones(16, 16, dtype=torch.float64))[:72]
            * matrix.to_dense().detach()
        )
        dense.requires_grad_()
        x = randn(8, 64, dtype=torch.float64, seed=step).requires_grad_()
        again = x.detach().requires_grad_()
        y = model(x)
        expected = nn.functional.gelu(nn.functional.linear(again, dense, bias.detach()))
        torch.testing.assert_close(y, expected)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected)
        y.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(x.grad, again.grad)
        stored = matrix.to_dense(torch.ones_like(matrix.values))
        torch.testing.assert_close(matrix.to_dense(matrix.values.grad), dense.grad * stored)
        if step == 0:
            torch.testing.assert_close(average(x), y)
        optimizer.step()
        trainer.step()
        optimizer.zero_grad()
        assert not trainer.watches_gradient
    assert matrix.product is None


def test_a_copy_with_another_pattern_is_refused() -> None:
    torch.manual_seed(3)
    model, other = Net(), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="the copy of first has other slots or blocks"):
        PatternTrainer(model, optimizer, SET(end=9), copies=[other])
    with pytest.raises(ValueError, match="a copy of the model has no block-sparse layer first"):
        PatternTrainer(model, optimizer, SET(end=9), copies=[nn.Linear(2, 2)])


def run(
    config: PatternConfig, steps: int, *, resume_at: int | None = None, seed: int = 0
) -> tuple[list[float], list[Tensor], PatternTrainer]:
    """Losses and patterns of a run, stopped and begun anew from its checkpoint at a step."""

    def fresh(seed: int) -> tuple[Net, torch.optim.Optimizer, PatternTrainer]:
        torch.manual_seed(seed)
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return model, optimizer, PatternTrainer(model, optimizer, config)

    model, optimizer, trainer = fresh(seed)
    losses, patterns = [], []
    for step in range(1, steps + 1):
        losses.append(float(backward(model, step)))
        optimizer.step()
        trainer.step()
        optimizer.zero_grad()
        patterns += [matrix.block_mask_build().cpu() for matrix in matrices(model)]
        if step == resume_at:
            saved = copy.deepcopy([x.state_dict() for x in (model, optimizer, trainer)])
            model, optimizer, trainer = fresh(seed + 1)
            # The trainer looks at a model of another pattern, and of as many slots as at first.
            for target, state in zip((model, optimizer, trainer), saved, strict=True):
                target.load_state_dict(state)
    return losses, patterns, trainer


@pytest.mark.parametrize("config", METHODS, ids=IDS)
@pytest.mark.parametrize("resume_at", [7, 8])
def test_resuming_is_as_good_as_not_stopping(config: PatternConfig, resume_at: int) -> None:
    losses, patterns, _ = run(config, 24)
    again, same, trainer = run(config, 24, resume_at=resume_at)
    assert again == losses
    assert all(torch.equal(a, b) for a, b in zip(patterns, same, strict=True))
    assert trainer.steps == 24


def test_the_seed_decides() -> None:
    first, second, third = (
        run(SET(update_every=2, end=20, seed=seed), 20)[1] for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, third, strict=True))


def test_state_of_another_model_or_method() -> None:
    model, other = Net(), nn.Sequential(small_layer())
    trainers = [under(SET(end=end), m).trainer for m, end in ((model, 9), (other, 9), (model, 11))]
    with pytest.raises(ValueError, match="the state is of other layers: 0, first, second are on"):
        trainers[1].load_state_dict(trainers[0].state_dict())
    with pytest.warns(UserWarning, match='goes on with .*"end": 11'):
        trainers[2].load_state_dict(trainers[0].state_dict())


def test_layers_are_chosen_by_name() -> None:
    model = nn.ModuleDict({"encoder": Net(), "decoder": Net()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def names(layers: str | None) -> list[str]:
        trainer = PatternTrainer(model, optimizer, SET(end=9, layers=layers))
        return [layer.name for layer in trainer.layers]

    assert len(names(None)) == 4
    assert names(r"encoder\.(first|second)$") == ["encoder.first", "encoder.second"]
    assert names("decoder") == ["decoder.first", "decoder.second"]
    with pytest.raises(ValueError, match=r"layers is 'head', which matches none .* encoder\.first"):
        names("head")
    with pytest.raises(ValueError, match="it has none: patch it first"):
        PatternTrainer(nn.Linear(2, 2), optimizer, SET(end=9))


def test_layers_are_chosen_by_module() -> None:
    model = nn.ModuleDict({"encoder": Net(), "decoder": Net()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def names(modules: list[Any], layers: str | None = None) -> list[str]:
        trainer = PatternTrainer(model, optimizer, SET(end=9, layers=layers), modules=modules)
        return [layer.name for layer in trainer.layers]

    encoder, decoder = model["encoder"], model["decoder"]
    assert names([encoder]) == ["encoder.first", "encoder.second"]
    assert names([decoder.second, encoder.first]) == ["encoder.first", "decoder.second"]
    assert names([decoder], r".*\.first") == ["decoder.first"]
    with pytest.raises(ValueError, match=r"modules has none of the .* encoder\.first, encoder\.se"):
        names([encoder.norm])
    with pytest.raises(TypeError, match=r"modules has 'encoder' .*expected a torch\.nn\.Module"):
        names(["encoder"])


def test_what_is_no_model_method_or_optimizer() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="config is 'rigl'"):
        PatternTrainer(model, optimizer, "rigl")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer is 3"):
        PatternTrainer(model, 3, SET(end=9))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model is 3"):
        PatternTrainer(3, optimizer, SET(end=9))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no optimizer trains first, expected"):
        PatternTrainer(model, torch.optim.SGD(model.second.parameters()), SET(end=9))


def test_several_optimizers() -> None:
    model = Net()
    optimizers = [
        torch.optim.AdamW(model.first.parameters()),
        torch.optim.SGD([*model.norm.parameters(), *model.second.parameters()], momentum=0.9),
    ]
    trainer = PatternTrainer(model, optimizers, SET(update_every=1, end=9))
    backward(model, 0)
    for optimizer in optimizers:
        optimizer.step()
    update = trainer.step()
    assert update is not None
    assert all(layer.grown for layer in update.layers.values())


def test_only_steps_of_the_optimizer_count() -> None:
    _, optimizer, trainer = under(SET(update_every=1, end=999))
    for _ in range(99):
        assert trainer.step() is None
    with pytest.warns(UserWarning, match="called 100 times and its optimizer has not stepped"):
        trainer.step()
    assert trainer.steps == 0
    optimizer.step()
    assert trainer.step() is not None


def test_a_score_without_gradients() -> None:
    model, optimizer, trainer = under(MovementPruning(update_every=1, end=9), Net())
    backward(model, 0)
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="first had no gradient, which the score 'movement'"):
        trainer.step()


def test_updates_as_numbers() -> None:
    _, patterns, trainer = run(RigL(update_every=5, end=20), 20)
    firsts = [layer.first_mask for layer in trainer.layers]
    for update in trainer.history:
        step = update.step
        now, before = patterns[2 * step - 2 : 2 * step], patterns[2 * step - 4 : 2 * step - 2]
        numbers = update.scalars()
        stored = sum(int(mask.sum()) for mask in now)
        new = sum(int((a & ~b).sum()) for a, b in zip(now, before, strict=True))
        drifted = sum(int((a & ~b).sum()) for a, b in zip(now, firsts, strict=True))
        assert numbers["pattern/churn"] == pytest.approx(new / stored)
        assert numbers["pattern/drift"] == pytest.approx(drifted / stored)
        assert numbers["pattern/density"] == stored / sum(mask.numel() for mask in now)
        assert numbers["pattern/density/second"] == float(now[1].double().mean())
    assert [update.step for update in trainer.history] == [5, 10, 15, 20]
