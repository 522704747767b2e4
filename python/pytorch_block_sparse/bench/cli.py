# SPDX-License-Identifier: Apache-2.0
"""Measures what the command line asks for, and shows it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from . import contenders, host, layers, machine, models, options, report, verdicts
from .limits import Limits
from .verify import WrongResult

FORMAT = 2
"""Of the JSON; raised when the meaning of a field changes."""
_LAYER_TITLE = "nn.Linear's time / the contender's time"


def main(argv: list[str]) -> int:
    """The exit code; options and results are those of docs/benchmarks.md."""
    asked = options.parse(argv)
    console = Console(width=max(Console().width, 160))
    if asked.plots is not None and importlib.util.find_spec("matplotlib") is None:
        console.print(
            "--plots needs matplotlib, which is not installed: pip install "
            "'pytorch-block-sparse[bench]'",
            markup=False,
        )
        return 2
    try:
        command = shlex.join(argv)
        content = joined(asked.read) if asked.read else measured(asked, command, console)
    except (WrongResult, ValueError, OSError) as error:
        console.print(f"{error}", markup=False)
        return 1
    show(content, console)
    if asked.json is not None:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(as_json(content))
        console.print(f"written to {asked.json}", markup=False)
    if asked.plots is not None and content["results"]:
        from .plots import draw

        for path in draw(content["results"], content["about"], asked.plots):
            console.print(f"written to {path}", markup=False)
    return 0


def measured(asked: argparse.Namespace, command: str, console: Console) -> dict[str, Any]:
    """The content of the JSON: what was measured, with what, and who was left out."""
    if asked.device.type == "cuda":
        torch.cuda.set_device(asked.device)
    found = contenders.available(asked.device, asked.libxsmm)
    if asked.peers is not None:
        own = (contenders.DENSE, contenders.OURS)
        found = {n: c for n, c in found.items() if n in own or n in asked.peers}
    about = machine.describe(asked.device) | {
        "format": FORMAT,
        "command": f"python -m pytorch_block_sparse bench {command}".strip(),
        "dtype": asked.dtype if asked.model is None else "bfloat16",  # by autocast
        "copy_bytes_per_second": machine.copy_bandwidth(asked.device),
    }
    limits = None if asked.limits is None else Limits(asked.limits)
    if limits is not None:
        about["flops_per_second"] = limits.flops_per_second(asked.dtype)
    setting = layers.Setting(
        asked.device, asked.dtype, found, asked.seconds, about["copy_bytes_per_second"], limits
    )
    content: dict[str, Any] = {"about": about, "results": []}
    with _precision(asked.dtype), warnings.catch_warnings():
        # Of prototypes, of parameters that are not tuned, of a context that there soon is.
        warnings.filterwarnings("ignore", module=r"torch\.sparse")
        warnings.filterwarnings("ignore", "Sparse (BSR tensor support|invariant checks)")
        warnings.filterwarnings("ignore", "Attempting to run cuBLAS")
        if asked.host:
            content["host_microseconds"] = host.host_microseconds(
                asked.device, asked.dtype, asked.seconds
            )
            return content
        if asked.model is not None:
            usual = options.DEFAULTS[asked.device.type]
            work = models.Work.of(
                asked.model,
                asked.size,
                asked.batch,
                asked.length,
                compile=asked.compile,
                steps=asked.steps,
                block=(asked.blocks or [(64, 64)])[0],
                device=asked.device,
            )
            densities = asked.densities or [d for d in usual.densities if d >= 0.1]
            rows = models.measure(work, densities, setting)
            content["models"] = [{"work": work.about(), "results": rows}]
            return content
        for problem in track(asked.problems, console=console):
            products = options.products_of(problem, asked.products)
            content["results"] += layers.measure(problem, products, setting)
            layers.free_memory(asked.device)
        content["host_microseconds"] = host.host_microseconds(
            asked.device, asked.dtype, min(1.0, 10 * asked.seconds)
        )
    layers.compare_patterns(content["results"])
    content["left_out"] = setting.left_out
    return content


def joined(paths: list[Path]) -> dict[str, Any]:
    """What several runs on the same device wrote, as if it had been one.

    Raises:
        ValueError: if a file is no result, or the runs were not alike.
    """
    contents = []
    for path in paths:
        try:
            content = json.loads(path.read_text())
            kind = {name: content["about"].get(name) for name in ("format", "gpu", "cpu", "dtype")}
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path} is not a result of this benchmark") from None
        if kind["format"] != FORMAT:
            raise ValueError(f"{path} is of format {kind['format']}, expected {FORMAT}")
        contents.append((path, kind, content))
    first_kind = contents[0][1]
    whole: dict[str, Any] = contents[0][2]
    for path, kind, content in contents[1:]:
        if kind != first_kind:
            raise ValueError(f"{path} was measured with {kind}, {paths[0]} with {first_kind}")
        whole["about"]["command"] += "; " + content["about"]["command"]
        whole["results"] += content["results"]
        whole.setdefault("models", []).extend(content.get("models", []))
        whole.setdefault("left_out", {}).update(content.get("left_out", {}))
        whole.setdefault("host_microseconds", content.get("host_microseconds"))
    return whole


def as_json(content: dict[str, Any]) -> str:
    """JSON with one line for each result, so that files can be compared line by line."""
    rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in content["results"])
    others = {name: value for name, value in content.items() if name != "results"}
    head = json.dumps(others, indent=1, ensure_ascii=False)
    return f'{head[:-2]},\n "results": [\n{rows}\n ]\n}}\n'


def show(content: dict[str, Any], console: Console) -> None:
    """Prints the tables and what else there is to know."""
    about = content["about"]
    console.print(
        f"{about.get('gpu') or about['cpu']}, torch {about['torch']}, {about['dtype']}, copy "
        f"{about['copy_bytes_per_second'] / 1e9:.1f} GB/s, {about['date']}",
        markup=False,
    )
    if content["results"]:
        console.print(report.layer_table(content["results"], about, _LAYER_TITLE))
    for model in content.get("models", []):
        work = model["work"]
        title = (
            f"{work['model']} ({work['size']}), {work['batch']} x {work['length']} tokens, blocks "
            f"{work['block'][0]}×{work['block'][1]}, torch.compile: {work['compile']}"
        )
        console.print(report.model_table(model["results"], about, title))
    judged = verdicts.of(content)
    if judged:
        console.print(report.goal_table(judged))
    for row in content["results"]:
        if "not_captured" in row:
            names = ", ".join(row["not_captured"])
            console.print(f"launched one by one, not as a CUDA graph: {names}", markup=False)
            break
    for who_and_why, what in content.get("left_out", {}).items():
        console.print(f"left out, first at {what}: {who_and_why}", markup=False)
    for title, times in (content.get("host_microseconds") or {}).items():
        console.print(
            f"host time of a call, 64→64, T=1, {title}: "
            + ", ".join(f"{name} {t:.1f} µs" for name, t in times.items())
            + f"; {times[contenders.OURS] / times[contenders.DENSE]:.2f} times as long",
            markup=False,
        )


@contextlib.contextmanager
def _precision(dtype: str) -> Iterator[None]:
    """float32 products on a GPU in full precision, or "tf32"."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
