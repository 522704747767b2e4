# SPDX-License-Identifier: Apache-2.0
"""Whole models: a RoBERTa-base training step and the MLP of a Llama, dense and block-sparse."""

from __future__ import annotations

import gc
import itertools
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..block_sparse_linear import BlockSparseLinear
from ..patching import BlockSparseModelPatcher
from . import layers
from .contenders import DENSE, OURS, block_sparse, dense
from .problems import Problem

MODELS = ("roberta-base", "llama-mlp")
SIZES = ("full", "tiny")
COMPILE = ("whole", "layers", "off")
# The linear layers that become sparse, by the names of their modules.
_SPARSE = {
    "roberta-base": r"roberta\.encoder\.layer\.\d+\..*(query|key|value|dense)$",
    "llama-mlp": r"(gate|up|down)$",
}
# (sequences, tokens in each) of a batch.
_BATCH = {
    ("roberta-base", "full"): (32, 512),
    ("roberta-base", "tiny"): (2, 16),
    ("llama-mlp", "full"): (8, 1024),
    ("llama-mlp", "tiny"): (2, 16),
}
# (hidden, intermediate)
_LLAMA = {"full": (4096, 14336), "tiny": (64, 128)}
# What differs from the defaults of RobertaConfig.
_ROBERTA = {"vocab_size": 50265, "type_vocab_size": 1, "max_position_embeddings": 514}
_TINY_ROBERTA = _ROBERTA | {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
_WARM_UP = 3


@dataclass(frozen=True)
class Work:
    """What is trained and how.

    Attributes:
        model: of MODELS.
        size: of SIZES; "tiny" is for a first look and for tests.
        batch, length: sequences, and tokens in each.
        compile: "whole" compiles the model, "layers" each layer of its encoder, "off" nothing.
        steps: to time.
        block: sides of the blocks.
    """

    model: str
    size: str
    batch: int
    length: int
    compile: str
    steps: int
    block: tuple[int, int]
    device: torch.device

    @classmethod
    def of(
        cls, model: str, size: str, batch: int | None, length: int | None, **others: Any
    ) -> Work:
        """With the usual batch and length where they are None."""
        usual = _BATCH[model, size]
        return cls(model, size, batch or usual[0], length or usual[1], **others)

    def about(self) -> dict[str, Any]:
        """For the JSON."""
        return {name: value for name, value in vars(self).items() if name != "device"}


class LlamaMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, intermediate, bias=False)
        self.up = nn.Linear(hidden, intermediate, bias=False)
        self.down = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, hidden) -> (…, hidden)."""
        y: Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return y


def build(work: Work, density: float | None) -> nn.Module:
    """The model on its device, in float32; dense if density is None."""
    torch.manual_seed(0)
    with work.device:  # a GPU draws faster
        if work.model == "llama-mlp":
            model: nn.Module = LlamaMLP(*_LLAMA[work.size])
        else:
            from transformers import RobertaConfig, RobertaForMaskedLM

            sizes: dict[str, Any] = _TINY_ROBERTA if work.size == "tiny" else _ROBERTA
            model = RobertaForMaskedLM(RobertaConfig(**sizes))
    if density is not None:
        patcher = BlockSparseModelPatcher()
        sparse = {"density": density, "block_shape": work.block, "pattern": "random"}
        patcher.add_pattern(_SPARSE[work.model], sparse)
        patcher.patch_model(model)
    return model.train()


def linear_layers(work: Work, model: nn.Module) -> list[nn.Linear | BlockSparseLinear]:
    """The layers that are, or in the dense model would be, sparse."""
    return [
        module
        for name, module in model.named_modules()
        if re.match(_SPARSE[work.model], name)
        and isinstance(module, (nn.Linear, BlockSparseLinear))
    ]


class Training:
    """A model, a batch and AdamW, in bfloat16 autocast.

    A step of the RoBERTa is forward, backward and AdamW; of the MLP forward and backward.
    """

    def __init__(self, work: Work, model: nn.Module) -> None:
        self._work, self.model = work, model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        generator = torch.Generator().manual_seed(1)
        shape: tuple[int, ...] = (work.batch, work.length)
        if isinstance(model, LlamaMLP):
            shape = (*shape, model.gate.in_features)
            self._x, self._y = (
                torch.randn(shape, generator=generator, device="cpu").to(
                    work.device, torch.bfloat16
                )
                for _ in range(2)
            )
            self._x.requires_grad_()
        else:
            vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
            # From 4 on, where the special tokens end: nothing is padding.
            self._x, self._y = (
                torch.randint(4, vocabulary, shape, generator=generator, device="cpu").to(
                    work.device
                )
                for _ in range(2)
            )

    def step(self) -> None:
        """One step; the gradients are there afterwards."""
        self._x.grad = None
        self.optimizer.zero_grad()
        is_mlp = self._work.model == "llama-mlp"
        with torch.autocast(self._work.device.type, torch.bfloat16):
            if is_mlp:
                y = self.model(self._x)
            else:
                loss = self.model(input_ids=self._x, labels=self._y).loss
        if is_mlp:
            y.backward(self._y)
        else:
            loss.backward()
            self.optimizer.step()


def measure(
    work: Work, densities: Sequence[float], setting: layers.Setting
) -> list[dict[str, Any]]:
    """The rows of the JSON: the dense model, then one for each density."""
    rows = [_measure(work, density) for density in (None, *densities)]
    for density, row in zip(densities, rows[1:], strict=True):
        saved = _saved_by_kernels(work, density, setting)
        gain = rows[0]["step_milliseconds"] - row["step_milliseconds"]
        row["kernel_milliseconds_saved"] = saved
        row["gain_kept"] = gain / saved if saved > 0 else None
    return rows


def _measure(work: Work, density: float | None) -> dict[str, Any]:
    state, layer_state = (_state_bytes(work, density, layers_only=only) for only in (False, True))
    torch.compiler.reset()  # else sizes that differ from the last model's would become dynamic
    before = _allocated(work.device)
    model = build(work, density)
    if work.compile == "whole":
        model.compile()
    elif work.compile == "layers":
        for module in _encoder_layers(model):
            module.compile()
    training = Training(work, model)
    for _ in range(_WARM_UP):
        training.step()
    if work.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    milliseconds = _step_milliseconds(training, work)
    peak = None
    if work.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() - before
    return {
        "name": "dense" if density is None else f"density {density:g}",
        "density": density,
        "step_milliseconds": statistics.median(milliseconds),
        "step_milliseconds_all": milliseconds,
        "kernel_milliseconds_saved": None,
        "gain_kept": None,
        "peak_bytes": peak,
        "state_bytes": state,
        "layer_state_bytes": layer_state,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _encoder_layers(model: nn.Module) -> list[nn.Module]:
    """What is there several times over; the MLP is one such layer."""
    if isinstance(model, LlamaMLP):
        return [model]
    layers_of_encoder: Any = model.get_submodule("roberta.encoder.layer")
    return list(layers_of_encoder)


def _step_milliseconds(training: Training, work: Work) -> list[float]:
    """Of each step, one after the other; on a GPU nothing waits between them."""
    if work.device.type == "cpu":
        times = [time.perf_counter()]
        for _ in range(work.steps):
            training.step()
            times.append(time.perf_counter())
        return [1e3 * (b - a) for a, b in itertools.pairwise(times)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(work.steps + 1)]
    events[0].record()
    for event in events[1:]:
        training.step()
        event.record()
    events[-1].synchronize()
    return [a.elapsed_time(b) for a, b in itertools.pairwise(events)]


def _state_bytes(work: Work, density: float | None, *, layers_only: bool) -> int:
    """Memory of weights, gradients and the state of AdamW after a step, index included.

    On a GPU as its allocator tells; on the CPU, which has none that could be asked, the sum of the
    tensors. `layers_only`: of the layers that are or would be sparse, not of the rest of the model.
    """
    before = _allocated(work.device)
    model = build(work, density)
    if layers_only:
        model = nn.ModuleList(linear_layers(work, model))
        for layer in model:
            x = torch.ones(1, layer.in_features, device=work.device)  # type: ignore[call-overload]
            layer(x).sum().backward()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    else:
        small = Work(**vars(work) | {"batch": 1, "length": 8})
        training = Training(small, model)
        training.step()
        optimizer = training.optimizer
        del training
    optimizer.step()
    x = None
    if work.device.type == "cuda":
        return _allocated(work.device) - before
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def _saved_by_kernels(work: Work, density: float, setting: layers.Setting) -> float:
    """Milliseconds that the three products of all sparse layers take less than dense ones."""
    alone = layers.Setting(
        setting.device,
        "bfloat16",
        {DENSE: dense, OURS: block_sparse},
        setting.seconds,
        setting.copy_bandwidth,
    )
    skeleton = build(Work(**vars(work) | {"device": torch.device("meta")}), None)
    problems = Counter(
        Problem(
            work.batch * work.length, layer.in_features, layer.out_features, *work.block, density
        )
        for layer in linear_layers(work, skeleton)
    )
    saved = 0.0
    for problem, count in problems.items():
        for row in layers.measure(problem, ("forward", "input gradient", "weight gradient"), alone):
            saved += count * (row["milliseconds"][DENSE] - row["milliseconds"][OURS])
        layers.free_memory(work.device)
    return saved


def _allocated(device: torch.device) -> int:
    """Bytes that tensors hold on a GPU, without the workspaces of cuBLAS; 0 for the CPU."""
    gc.collect()
    if device.type == "cpu":
        return 0
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()
