# SPDX-License-Identifier: Apache-2.0
"""Times forward, both gradients and a whole training step of block-sparse layers.

Beside torch's nn.Linear, torch's own BSR tensors and, where it is installed, libxsmm, over the
problems of a shapes file. Every result is verified before it is timed. Prints one table and writes
one JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pytorch_block_sparse import BlockSparseLinear

from . import contenders, machine, problems
from .contenders import DENSE, OURS, Call
from .libxsmm import Libxsmm
from .problems import Operands, Problem
from .timing import medians
from .verify import Expected, WrongResult

# With fewer tokens nobody trains, and only the forward is measured.
DECODE_TOKENS = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Contender = Callable[[Operands], dict[str, Call]]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few problems (shapes/quick.txt)")
    parser.add_argument("--shapes", type=Path, help="the problems (shapes/cpu.txt)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=0.6, help="of timing per product (%(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmarks/output/bench.json"),
        help="where the JSON goes (%(default)s)",
    )
    options = parser.parse_args(argv)
    if options.shapes is None:
        options.shapes = problems.SHAPES / ("quick.txt" if options.quick else "cpu.txt")
    return options


def peers(console: Console) -> dict[str, Contender]:
    """All contenders that this machine has, in the order in which they take turns."""
    found: dict[str, Contender] = {
        DENSE: contenders.dense,
        OURS: contenders.block_sparse,
        "torch BSR": contenders.torch_bsr,
    }
    try:
        found["libxsmm"] = Libxsmm().contender
    except OSError:
        console.print("libxsmm is left out: not installed when this was built (libxsmm-dev)")
    return found


def expected(product: str, o: Operands) -> Expected:
    """What `product` must give, and how nearly."""
    if product == "forward":
        return Expected(o.x, o.dense.weight.detach().T, o.dense.bias.detach())
    if product == "weight gradient":
        return Expected(o.dy.T, o.x)
    return Expected(o.dy, o.dense.weight.detach())


def verify(name: str, product: str, result: torch.Tensor, o: Operands, target: Expected) -> None:
    """Raises WrongResult unless `result` is right, a blocked dW where blocks are stored."""
    if product != "weight gradient" or result.dim() == 2:
        target.check(name, result)
        return
    weight = o.sparse.weight
    stored = weight.to_dense(torch.ones_like(weight.values)) != 0
    target.check(name, weight.to_dense(result), stored)


def measure(
    problem: Problem, product: str, operands: Operands, calls: dict[str, Call], seconds: float
) -> dict[str, Any]:
    """Verifies, then times one product; what the JSON says of it."""
    target = expected(product, operands)
    for name, call in calls.items():
        verify(f"{problem} {product}, {name}", product, call(), operands, target)
    times = medians(calls, seconds)
    ratio = times[DENSE] / times[OURS]
    return vars(problem) | {
        "product": product,
        "milliseconds": {name: 1e3 * t for name, t in times.items()},
        "ratio": {name: times[DENSE] / t for name, t in times.items() if name != DENSE},
        "ratio_x_density": ratio * problem.density,
        "useful_gflops": operands.useful_flops(product) / times[OURS] / 1e9,
        "goal": goal(problem),
    }


def goal(problem: Problem) -> float | None:
    """The ratio x density aimed at in fp32; None where there is no goal.

    From 128 tokens on, a twentieth better than the work saved promises; for a single token, which
    only streams W, as much as is saved.
    """
    if problem.tokens == 1:
        return 1.0
    small = min(problem.block_height, problem.block_width) < 16
    return None if small or problem.tokens < 128 else 1.05


@torch.no_grad()
def measure_problem(
    problem: Problem, dtype: torch.dtype, found: dict[str, Contender], seconds: float
) -> list[dict[str, Any]]:
    operands = Operands(problem, dtype)
    offers = {name: contender(operands) for name, contender in found.items()}
    decode = problem.tokens < DECODE_TOKENS
    return [
        measure(
            problem,
            product,
            operands,
            {name: offer[product] for name, offer in offers.items() if product in offer},
            seconds,
        )
        for product in (("forward",) if decode else problems.PRODUCTS)
    ]


def host_microseconds() -> dict[str, dict[str, float]]:
    """Time of a call so small that almost all of it is spent outside the product."""
    calls_a_turn = 100
    x = torch.randn(1, 64)
    layers: dict[str, torch.nn.Module] = {
        DENSE: torch.nn.Linear(64, 64),
        OURS: BlockSparseLinear(64, 64, density=0.5),
    }

    def inference(layer: torch.nn.Module) -> None:
        with torch.no_grad():
            for _ in range(calls_a_turn):
                layer(x)

    def training(layer: torch.nn.Module) -> None:
        for _ in range(calls_a_turn):
            layer(x).sum().backward()

    result = {}
    for title, call in (("forward", inference), ("forward + backward", training)):
        times = medians({name: partial(call, layer) for name, layer in layers.items()}, 1.0)
        result[title] = {name: 1e6 * t / calls_a_turn for name, t in times.items()}
    return result


def table(rows: list[dict[str, Any]], names: list[str]) -> Table:
    """One line a problem and product; ratios are nn.Linear's time over the contender's."""
    result = Table(title="nn.Linear's time / the contender's time", title_justify="left")
    for heading in ("in→out", "T", "block", "density", "product"):
        result.add_column(heading, no_wrap=True)
    others = [name for name in names if name not in (DENSE, OURS)]
    for heading in ("dense ms", "ours ms", "ratio", "x density", "goal", "GF/s", *others):
        result.add_column(heading, justify="right")
    for row in rows:
        aim = row["goal"]
        met = aim is None or row["ratio_x_density"] >= aim
        result.add_row(
            f"{row['in_features']}→{row['out_features']}",
            str(row["tokens"]),
            f"{row['block_height']}×{row['block_width']}",
            f"{row['density']:g}",
            row["product"],
            f"{row['milliseconds'][DENSE]:.3f}",
            f"{row['milliseconds'][OURS]:.3f}",
            f"{row['ratio'][OURS]:.2f}",
            f"[{'green' if met else 'red'}]{row['ratio_x_density']:.2f}",
            "" if aim is None else f"{aim:.2f}",
            f"{row['useful_gflops']:.0f}",
            *(f"{row['ratio'][n]:.2f}" if n in row["ratio"] else "" for n in others),
            end_section=row["product"] == problems.PRODUCTS[-1],
        )
    return result


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    console = Console(width=max(Console().width, 132))
    found = peers(console)
    given = shlex.join(sys.argv[1:] if argv is None else argv)
    about = machine.describe() | {
        "command": "make bench" + (f' ARGS="{given}"' if given else ""),
        "dtype": options.dtype,
    }
    rows: list[dict[str, Any]] = []
    try:
        for problem in track(list(problems.read(options.shapes)), console=console):
            rows += measure_problem(problem, DTYPES[options.dtype], found, options.seconds)
    except (WrongResult, ValueError, OSError) as error:
        console.print(f"{error}", markup=False)
        return 1
    host = host_microseconds()

    console.print(table(rows, list(found)))
    for title, times in host.items():
        console.print(
            f"host time of a call, 64→64, T=1, {title}: "
            + ", ".join(f"{name} {t:.1f} µs" for name, t in times.items())
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "results": rows, "host_microseconds": host}
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    console.print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
