# SPDX-License-Identifier: Apache-2.0
"""Several runs, packed on one device, and the table of all results in a folder.

    python -m benchmarks.quality --methods dense,small,static,rigl,gradual --densities .1,.2
    python -m benchmarks.quality --size cpu --device cpu --steps 300   # minutes
    python -m benchmarks.quality --table                               # of what is there

A run that was stopped goes on from its checkpoint; one that is there is not repeated. Runs that
share a device slow each other down: `step_ms` counts with `--packed 1` only.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.quality.methods import method_of, methods
from benchmarks.quality.packed import train_all, train_packed
from benchmarks.quality.run import Run


def main() -> int:
    """Runs what the command line asks for; the number of runs that did not end."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--methods", default=",".join(methods(0.1, 2000)), help=method_of.__doc__)
    parser.add_argument("--densities", default=".1")
    parser.add_argument("--blocks", default="32")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--size", choices=("gpu", "cpu", "minilm"), default="gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--list", type=Path, help="file with a line of such options for each slice")
    parser.add_argument("--packed", type=int, default=1, help="runs at a time")
    parser.add_argument("--seconds", type=float, default=math.inf, help="then stop")
    parser.add_argument("--checkpoint-every", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/output/quality"))
    parser.add_argument("--table", action="store_true", help="only the table")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    options.folder.mkdir(parents=True, exist_ok=True)
    missing = 0
    if not options.table:
        slices = [options]
        if options.list is not None:
            lines = [
                line.partition("#")[0].split() for line in options.list.read_text().split("\n")
            ]
            slices = [parser.parse_args(line) for line in lines if line]
        runs = list(dict.fromkeys(run for part in slices for run in runs_of(part)))
        work = (options.device, options.folder, options.checkpoint_every, options.packed, deadline)
        (train_all if options.packed == 1 else train_packed)(runs, *work)
        missing = sum(not (options.folder / f"{run.name}.json").exists() for run in runs)
    print(table(options.folder))
    return missing


def runs_of(options: argparse.Namespace) -> list[Run]:
    """Each combination; a dense model knows neither density nor block."""
    runs = []
    for seed in options.seeds.split(","):
        for density in options.densities.split(","):
            for block in options.blocks.split(","):
                for method in options.methods.split(","):
                    d, b = float(density), int(block)
                    if method.partition("+")[0] == "dense":
                        d, b = 1.0, 1
                    method_of(method, d, options.steps)  # is refused here, not in the middle
                    run = Run(method, d, b, int(seed), options.steps, options.lr, options.size)
                    runs.append(run)
    return runs


def table(folder: Path) -> str:
    """Markdown: a line for each run, best first within its density, block and number of steps."""
    results: list[dict[str, Any]] = [
        json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))
    ]
    for result in results:
        result["found"] = result.get("bits_per_byte", result.get("cosine"))
    keys = ("size", "steps", "density", "block")
    best = {"minilm": -1.0}  # a cosine is better the larger it is
    results.sort(key=lambda r: [*(r[key] for key in keys), r["found"] * best.get(r["size"], 1.0)])
    columns = ["method", "density", "block", "seed", "steps", "bits per byte or cosine"]
    columns += ["weights", "most weights", "step ms", "peak MB"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for r in results:
        lines.append(
            f"| {r['method']} | {r['density']:g} | {r['block']} | {r['seed']} | {r['steps']} | "
            f"{r['found']:.3f} | {r['weights']:,} | {r['most_weights']:,} | "
            f"{r['step_ms']:.1f} | {r['peak_mb']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
