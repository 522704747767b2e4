# SPDX-License-Identifier: Apache-2.0
"""Several runs, packed on one device, and the table of all results in a folder.

    python -m benchmarks.quality --methods dense,small,static,rigl,gradual --densities .1,.2
    python -m benchmarks.quality --size cpu --device cpu --steps 300   # minutes
    python -m benchmarks.quality --table                               # of what is there

A run that was stopped goes on from its checkpoint; one that is there is not repeated. Runs that
share a device slow each other down: the table divides their time by how many there were.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

from benchmarks.quality.methods import method_of, methods
from benchmarks.quality.packed import train_all, train_packed
from benchmarks.quality.results import load, publish, table
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
    parser.add_argument("--table", type=Path, nargs="*", help="only that, of folders and files")
    parser.add_argument("--publish", type=Path, help="a JSON to write of all runs in the folder")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    options.folder.mkdir(parents=True, exist_ok=True)
    missing = 0
    if options.table is None and options.publish is None:
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
    if options.publish is not None:
        publish(options.folder, options.publish, "python -m benchmarks.quality")
    print(table([run for path in options.table or [options.folder] for run in load(path)]))
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


if __name__ == "__main__":
    sys.exit(main())
