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
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.quality.run import Run, methods, train


def main() -> int:
    """Runs what the command line asks for; the number of runs that failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--methods", default=",".join(methods(0.1, 2000)))
    parser.add_argument("--densities", default=".1")
    parser.add_argument("--blocks", default="32")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--size", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--packed", type=int, default=1, help="runs at a time")
    parser.add_argument("--checkpoint-every", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/output/quality"))
    parser.add_argument("--table", action="store_true", help="only the table")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    if not options.table:
        runs = _runs(options)
        if len(runs) == 1 or options.packed == 1:
            for run in runs:
                train(run, options.device, options.folder, options.checkpoint_every)
        else:
            failed = _packed(runs, options)
    print(table(options.folder))
    return failed


def _runs(options: argparse.Namespace) -> list[Run]:
    """Each combination once; a dense model knows neither density nor block."""
    runs = []
    for seed in options.seeds.split(","):
        for density in options.densities.split(","):
            for block in options.blocks.split(","):
                for method in options.methods.split(","):
                    d, b = (1.0, 1) if method == "dense" else (float(density), int(block))
                    run = Run(method, d, b, int(seed), options.steps, options.lr, options.size)
                    if run not in runs:
                        runs.append(run)
    return runs


def _packed(runs: list[Run], options: argparse.Namespace) -> int:
    """Processes of one run each, so many at a time."""
    waiting, failed = list(runs), 0
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < options.packed:
            run = waiting.pop(0)
            command = [sys.executable, "-m", "benchmarks.quality", "--methods", run.method]
            command += ["--densities", str(run.density), "--blocks", str(run.block)]
            command += ["--seeds", str(run.seed), "--steps", str(run.steps), "--lr", str(run.lr)]
            command += ["--size", run.size, "--device", options.device]
            command += ["--folder", str(options.folder)]
            command += ["--checkpoint-every", str(options.checkpoint_every)]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        running[0].wait()
        failed += sum(process.poll() not in (None, 0) for process in running)
        running = [process for process in running if process.poll() is None]
    return failed


def table(folder: Path) -> str:
    """Markdown: a line for each run, best first within its density, block and number of steps."""
    results: list[dict[str, Any]] = [
        json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))
    ]
    keys = ("size", "steps", "density", "block", "bits_per_byte")
    results.sort(key=lambda result: [result[key] for key in keys])
    columns = ["method", "density", "block", "seed", "steps", "bits per byte"]
    columns += ["weights", "most weights", "step ms", "peak MB"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for r in results:
        lines.append(
            f"| {r['method']} | {r['density']:g} | {r['block']} | {r['seed']} | {r['steps']} | "
            f"{r['bits_per_byte']:.3f} | {r['weights']:,} | {r['most_weights']:,} | "
            f"{r['step_ms']:.1f} | {r['peak_mb']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
