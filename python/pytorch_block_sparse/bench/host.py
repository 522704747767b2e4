# SPDX-License-Identifier: Apache-2.0
"""The host's time of a call of a layer so small that the product hardly counts."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .. import BlockSparseLinear
from .contenders import DENSE, OURS
from .problems import DTYPES
from .timing import medians

FEATURES = 64
CALLS_A_TURN = 50


def host_microseconds(
    device: torch.device, dtype: str, seconds: float
) -> dict[str, dict[str, float]]:
    """What is called -> contender -> microseconds of one call, in about `seconds` each.

    "forward" is without gradients, "forward for a backward" records one, "forward + backward"
    gives the gradients of input, weight and bias. On a GPU it is the time to enqueue a call:
    nothing waits for the result.
    """
    # Drawn on the CPU: the GPU's generator refuses after a capture that failed.
    options: dict[str, Any] = {"device": device, "dtype": DTYPES[dtype]}
    x, grad = (torch.randn(1, FEATURES).to(**options) for _ in range(2))
    x_with_grad = x.clone().requires_grad_()
    layers: dict[str, torch.nn.Module] = {
        DENSE: torch.nn.Linear(FEATURES, FEATURES, **options),
        OURS: BlockSparseLinear(FEATURES, FEATURES, density=0.5, **options),
    }

    def inference(layer: torch.nn.Module, i: int) -> None:
        with torch.no_grad():
            for _ in range(CALLS_A_TURN):
                layer(x)

    def recording(layer: torch.nn.Module, i: int) -> None:
        for _ in range(CALLS_A_TURN):
            layer(x_with_grad)

    def training(layer: torch.nn.Module, i: int) -> None:
        for _ in range(CALLS_A_TURN):
            layer(x_with_grad).backward(grad)

    result = {}
    for title, call in (
        ("forward", inference),
        ("forward for a backward", recording),
        ("forward + backward", training),
    ):
        calls = {name: partial(call, layer) for name, layer in layers.items()}
        times = medians(calls, seconds)
        result[title] = {name: 1e6 * t / CALLS_A_TURN for name, t in times.items()}
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return result
