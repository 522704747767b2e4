# SPDX-License-Identifier: Apache-2.0
"""What runs have found: a table over seeds, and one JSON of many."""

from __future__ import annotations

import datetime
import json
import statistics
from pathlib import Path
from typing import Any

#: What runs have in common that are seeds of one another.
SAME = ("size", "steps", "density", "block", "method", "lr")
METRICS = {"bits_per_byte": "bits per byte", "cosine": "cosine"}


def metric_of(run: dict[str, Any]) -> str:
    """What a run has found."""
    return next(name for name in METRICS if name in run)


def load(path: Path) -> list[dict[str, Any]]:
    """The runs of a folder, or of a file that `publish` wrote."""
    if path.is_file():
        runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
        return runs
    return [json.loads(file.read_text()) for file in sorted(path.glob("*.json"))]


def publish(folder: Path, file: Path, command: str) -> None:
    """All runs of a folder in one file, a line each, without their histories.

    Args:
        folder: of the runs.
        file: to write.
        command: that made them, for whoever wants to know.
    """
    runs = load(folder)
    lines = [json.dumps({k: v for k, v in run.items() if k != "history"}) for run in runs]
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    head = json.dumps({"date": date, "command": command})[:-1]
    file.write_text(head + ', "runs": [\n' + ",\n".join(lines) + "\n]}\n")


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: a line for each method and setting, over its seeds, best first among its like."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run[key] for key in SAME), []).append(run)
    rows = []
    for same in groups.values():
        first = same[0]
        metric = metric_of(first)
        found = [run[metric] for run in same]
        mean = statistics.mean(found)
        spread = f" ± {(max(found) - min(found)) / 2:.3f}" if len(found) > 1 else ""
        order = (*(first[key] for key in SAME[:4]), -mean if metric == "cosine" else mean)
        rate = "" if first["lr"] == 1e-3 else f", lr {first['lr']:g}"
        cells = [first["method"] + rate, f"{first['density']:g}", first["block"], first["steps"]]
        cells += [len(same), f"{mean:.3f}{spread}", f"{first['weights']:,}"]
        peak = min(run["peak_mb"] for run in same)  # 0 on the CPU, where it is not known
        cells += [f"{first['most_weights']:,}", f"{peak:.0f}" if peak else "-"]
        cells += [f"{min(run['step_ms'] / run['packed'] for run in same):.1f}"]
        rows.append((order, "| " + " | ".join(map(str, cells)) + " |"))
    names = " or ".join(dict.fromkeys(METRICS[m] for run in runs for m in METRICS if m in run))
    columns = ["method", "density", "block", "steps", "seeds", names, "weights", "most weights"]
    columns += ["peak MB", "step ms"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    return "\n".join([*lines, *(line for _, line in sorted(rows))])
