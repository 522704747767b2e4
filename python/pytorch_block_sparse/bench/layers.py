# SPDX-License-Identifier: Apache-2.0
"""Measuring products: one row of results for each problem and product."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from . import goals, machine
from .contenders import DENSE, OURS, Contender, Offer
from .limits import Limits
from .problems import DTYPES, PRODUCTS, Operands, Problem
from .timing import graph_medians, medians
from .verify import Verifier


@dataclass
class Setting:
    """With what is measured.

    Attributes:
        device, dtype: of the operands; dtype is a key of `problems.DTYPES`.
        contenders: who takes part, by name.
        seconds: of timing for each product.
        copy_bandwidth: bytes a second, of a copy on the device.
        limits: of the CPU, where they can be measured.
        left_out: filled in: why a peer did not take part in a product.
    """

    device: torch.device
    dtype: str
    contenders: dict[str, Contender]
    seconds: float
    copy_bandwidth: float
    limits: Limits | None = None
    left_out: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def measure(problem: Problem, products: Sequence[str], setting: Setting) -> list[dict[str, Any]]:
    """Verifies, then times every contender; the rows of the JSON.

    Raises:
        WrongResult: if nn.Linear or this package is wrong; a wrong peer is left out.
    """
    operands = Operands(problem, DTYPES[setting.dtype], setting.device)
    verifier = Verifier(operands)
    takes_part: dict[str, set[str]] = {}
    for name, contender in setting.contenders.items():
        try:
            offer = contender(operands)
        except Exception as error:  # whatever a peer raises where it cannot do a problem
            _leave_out(setting, name, f"{problem}", error)
            continue
        for product in products:
            if product not in offer.calls:
                continue
            try:
                verifier.check(name, product, offer)
            except Exception as error:
                _leave_out(setting, name, f"{problem} {product}", error)
            else:
                takes_part.setdefault(product, set()).add(name)
        del offer  # and with it what it holds of the integers
    del verifier
    operands.randomize()
    names = set().union(*takes_part.values())
    offers = {
        name: contender(operands) for name, contender in setting.contenders.items() if name in names
    }
    return [
        _timed(problem, product, offers, takes_part[product], operands, setting)
        for product in products
    ]


def _leave_out(setting: Setting, name: str, what: str, error: Exception) -> None:
    """Writes down why, once for each peer and reason; our own and torch's failures are final."""
    if name in (OURS, DENSE):
        raise error
    sentence = str(error).strip().partition("\n")[0] or type(error).__name__
    if not any(key.startswith(f"{name}: ") and sentence in key for key in setting.left_out):
        setting.left_out[f"{name}: {sentence}"] = what


def _timed(
    problem: Problem,
    product: str,
    offers: dict[str, Offer],
    names: set[str],
    operands: Operands,
    setting: Setting,
) -> dict[str, Any]:
    calls = {name: offer.calls[product] for name, offer in offers.items() if name in names}
    if setting.device.type == "cuda":
        times, eager = graph_medians(calls, setting.seconds, operands.sets)
    else:
        times, eager = medians(calls, setting.seconds), []
    row = _derived(problem, product, times, setting)
    if setting.limits is not None and product != PRODUCTS[-1]:
        least = setting.limits.seconds(problem, product, setting.dtype)
        features = machine.cpu_features()
        row["limit_fraction"] = least / times[OURS]
        row["limit_goal"] = goals.limit_fraction(problem, product, setting.dtype, features)
    return row | ({"not_captured": eager} if eager else {})


def _derived(
    problem: Problem, product: str, times: dict[str, float], setting: Setting
) -> dict[str, Any]:
    """What the JSON says of the seconds that a product took."""
    itemsize = DTYPES[setting.dtype].itemsize
    device = setting.device.type
    ours, dense = times[OURS], times[DENSE]
    density = problem.stored_elements() / (problem.in_features * problem.out_features)
    roofline = max(density * dense, problem.bytes(product, itemsize) / setting.copy_bandwidth)
    copied = problem.stored_elements() * itemsize / setting.copy_bandwidth / ours
    l2 = torch.cuda.get_device_properties(setting.device).L2_cache_size if device == "cuda" else 0
    features = machine.cpu_features() if device == "cpu" else ()
    return vars(problem) | {
        "product": product,
        "milliseconds": {name: 1e3 * t for name, t in times.items()},
        "ratio": {name: dense / t for name, t in times.items() if name != DENSE},
        "ratio_x_density": dense / ours * problem.density,
        "useful_gflops": problem.flops(product) / ours / 1e9,
        "bytes": problem.bytes(product, itemsize),
        "roofline_fraction": roofline / ours,
        "copy_fraction": copied if problem.is_decode and product == "forward" else None,
        "goal": goals.ratio(problem, product, setting.dtype, device, features),
        "copy_goal": (
            goals.copy_fraction(problem, product, itemsize, l2) if device == "cuda" else None
        ),
    }


def compare_patterns(rows: list[dict[str, Any]]) -> None:
    """Adds to the rows of uneven patterns how fast they are, relative to the even one."""
    sizes = [name for name in Problem.__dataclass_fields__ if name != "pattern"]

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return (row["product"], *(row[name] for name in sizes))

    even = {key(row): row["milliseconds"][OURS] for row in rows if row["pattern"] == "even"}
    for row in rows:
        if row["pattern"] != "even" and key(row) in even:
            row["even_ratio"] = even[key(row)] / row["milliseconds"][OURS]


def free_memory(device: torch.device) -> None:
    """Gives back what graphs and operands of a problem held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
