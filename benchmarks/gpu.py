# SPDX-License-Identifier: Apache-2.0
"""What is said of benchmarks/results/h100*.json, which benchmarks/h100.sh measures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_block_sparse.bench import verdicts
from pytorch_block_sparse.bench.contenders import DENSE, OURS
from pytorch_block_sparse.bench.patterns import PATTERNS
from pytorch_block_sparse.bench.problems import PRODUCTS

from .markdown import heading, number, row

RESULTS = Path(__file__).parent / "results"
MAIN = "h100"
UNEVEN = "h100-uneven"
OTHERS = ("h100-float16", "h100-tf32", "h100-float32")
"""Results of other types."""

Row = dict[str, Any]


def published() -> dict[str, dict[str, Any]]:
    """Name of the file -> what it has, of those that are there."""
    names = (MAIN, UNEVEN, *OTHERS)
    paths = {name: RESULTS / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def render(content: dict[str, Any]) -> str:
    """The section of the README."""
    about = content["about"]
    rows = _even(content)
    large = [r for r in rows if r["tokens"] > 64]
    densities = " / ".join(f"{d:g}" for d in _densities(large))
    peers = dict.fromkeys(found[0] for r in large if (found := verdicts.best_peer(r)))
    lines = [
        f"On an {about['gpu']} (driver {about['driver']}, torch {about['torch']}, "
        f"{about['date']}), {about['dtype']}, random patterns, at density {densities}; all of it "
        f"in [{MAIN}.json](benchmarks/results/{MAIN}.json), the method, other types, uneven "
        "patterns and which goals are met in [docs/benchmarks.md](docs/benchmarks.md). The best "
        f"peer of those measured in the forward: {', '.join(peers)}.",
        "",
        *_ratios(large),
        *_decode([r for r in rows if r["copy_fraction"] is not None]),
    ]
    models = content.get("models", [])
    if models:
        lines += [
            "",
            "Whole models. *Kept* is the share of what the kernels save that the step gets faster "
            "by. Memory is that of weights, gradients and optimizer state as the allocator counts "
            "it, of the sparse layers alone and of the whole model.",
        ]
    for model in models:
        lines += _model(model)
    return "\n".join(lines) + "\n"


def render_all(contents: dict[str, dict[str, Any]]) -> str:
    """The section of docs/benchmarks.md: goals, then what the README does not show."""
    about = contents[MAIN]["about"]
    files = ", ".join(f"[{n}.json](../benchmarks/results/{n}.json)" for n in contents)
    lines = [
        f"Measured on {about['date']} with commit {about['commit'][:12]} on an {about['gpu']}, "
        f"there by `benchmarks/h100.sh`, with the options that each file names: {files}. The "
        f"README has the ratios of {about['dtype']}.",
        "",
        "Which goals are met. *Worst* is the one of which the smallest share was reached.",
        "",
        *heading("", "type", "met", "worst", "reached", "asked"),
    ]
    told = set()
    for name, content in contents.items():
        # The host's time is in all files, and the even patterns among the uneven ones in two.
        whole = content if name == MAIN else content | {"host_microseconds": None}
        dtype = content["about"]["dtype"]
        for title, met, count, worst in verdicts.summary(verdicts.of(whole)):
            if (title, dtype) not in told:
                told.add((title, dtype))
                cells = (title, dtype, f"{met} of {count}", worst.where)
                lines.append(row(*cells, f"{worst.value:.2f}", f"{worst.goal:.2f}"))
    for name in OTHERS:
        if name in contents:
            rows = _even(contents[name])
            lines += ["", f"{contents[name]['about']['dtype']}, {_at(rows)}:", "", *_ratios(rows)]
    if UNEVEN in contents:
        lines += _uneven(contents[UNEVEN]["results"])
    lines += _host(contents[MAIN])
    return "\n".join(lines) + "\n"


def _ratios(rows: list[Row]) -> list[str]:
    """A line for each layer and block: the ratios of each product at all densities."""
    products = [p for p in PRODUCTS if any(r["product"] == p for r in rows)]
    peers = any(verdicts.best_peer(r) for r in rows)
    others = ["best peer"] if peers else []
    lines = heading("in→out", "tokens", "block", *products, "goal", *others)
    for key, some in _grouped(rows, "in_features", "out_features", "tokens", "block_height"):
        cells = [_by_density(some, product, lambda r: r["ratio"][OURS]) for product in products]
        cells.append(_by_density(some, products[0], lambda r: r["goal"], "{:g}"))
        if peers:
            cells.append(_by_density(some, products[0], _best_peer))
        lines.append(row(f"{key[0]}→{key[1]}", str(key[2]), f"{key[3]}×{key[3]}", *cells))
    return lines


def _decode(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        "",
        "Few tokens, where the time is that of reading the weight: the ratio, and in brackets the "
        f"bytes of the stored blocks over the time, as a share of copy bandwidth ({_at(rows)}).",
        "",
        *heading("in→out", "tokens", "block", "forward"),
    ]
    for key, some in _grouped(rows, "in_features", "out_features", "tokens", "block_height"):
        ratios = _by_density(some, PRODUCTS[0], lambda r: r["ratio"][OURS])
        shares = _by_density(some, PRODUCTS[0], lambda r: 100 * r["copy_fraction"], "{:.0f}")
        layer = (f"{key[0]}→{key[1]}", str(key[2]), f"{key[3]}×{key[3]}")
        lines.append(row(*layer, f"{ratios} ({shares}%)"))
    return lines


def _model(model: dict[str, Any]) -> list[str]:
    work, (dense, *sparse) = model["work"], model["results"]
    height, width = work["block"]
    compiled = {
        "whole": "both compiled by torch.compile",
        "layers": "the layers of both compiled by torch.compile",
        "off": "eager",
    }[work["compile"]]
    lines = [
        "",
        f"{work['model']}, {work['batch']} x {work['length']} tokens, blocks of {height}×{width}, "
        f"{compiled}:",
        "",
        *heading(
            "", "step, ms", "ratio", "kept", "peak, GB", "sparse layers, GB", "whole model, GB"
        ),
    ]
    for r in (dense, *sparse):
        kept = r["gain_kept"]
        lines.append(
            row(
                r["name"],
                f"{r['step_milliseconds']:.1f}",
                number(dense["step_milliseconds"] / r["step_milliseconds"]),
                "" if kept is None else f"{kept:.0%}",
                *(
                    f"{r[name] / 1e9:.2f}"
                    for name in ("peak_bytes", "layer_state_bytes", "state_bytes")
                ),
            )
        )
    return lines


def _uneven(rows: list[Row]) -> list[str]:
    """How fast uneven patterns are, relative to even ones."""
    rows = [r for r in rows if "even_ratio" in r]
    products = [p for p in PRODUCTS if any(r["product"] == p for r in rows)]
    lines = [
        "",
        f"Uneven patterns: the time of the even pattern over theirs, {_at(rows)}.",
        "",
        *heading("in→out", "tokens", "block", "pattern", *products),
    ]
    names = ("in_features", "out_features", "tokens", "block_height", "pattern")
    for key, some in _grouped(rows, *names):
        cells = [_by_density(some, product, lambda r: r["even_ratio"]) for product in products]
        layer = (f"{key[0]}→{key[1]}", str(key[2]), f"{key[3]}×{key[3]}")
        lines.append(row(*layer, key[4], *cells))
    return lines


def _host(content: dict[str, Any]) -> list[str]:
    times = content["host_microseconds"]
    lines = ["", "The host's time of a call of a 64→64 layer with one row, µs.", ""]
    lines += heading("", *times)
    for name in (DENSE, OURS):
        lines.append(row(name, *(f"{some[name]:.1f}" for some in times.values())))
    return lines


def _even(content: dict[str, Any]) -> list[Row]:
    return [r for r in content["results"] if r["pattern"] == PATTERNS[0]]


def _best_peer(r: Row) -> float | None:
    found = verdicts.best_peer(r)
    return None if found is None else found[1]


def _by_density(
    rows: list[Row], product: str, value: Callable[[Row], float | None], form: str = "{:.2f}"
) -> str:
    """The values of a product at all densities, largest density first."""
    found = {r["density"]: value(r) for r in rows if r["product"] == product}
    ordered = [found[density] for density in sorted(found, reverse=True)]
    return " / ".join("-" if v is None else form.format(v) for v in ordered)


def _grouped(rows: list[Row], *names: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for r in rows:
        groups.setdefault(tuple(r[name] for name in names), []).append(r)
    return list(groups.items())


def _densities(rows: list[Row]) -> list[float]:
    return sorted({r["density"] for r in rows}, reverse=True)


def _at(rows: list[Row]) -> str:
    return f"density {' / '.join(f'{d:g}' for d in _densities(rows))}"
