# SPDX-License-Identifier: Apache-2.0
"""The tables of measured speed in README.md and docs: python -m benchmarks.readme writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytorch_block_sparse.bench.contenders import DENSE, OURS
from pytorch_block_sparse.bench.patterns import PATTERNS
from pytorch_block_sparse.bench.problems import PRODUCTS

from . import gpu
from .markdown import heading, number, row, write

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/cpu.json"
README = ROOT / "README.md"
# (in, out, tokens, block side): the lines of the table for the CPU, one for each density measured.
LINES = (
    (768, 3072, 1024, 32),
    (768, 3072, 1024, 16),
    (768, 3072, 1024, 64),
    (768, 3072, 128, 32),
    (768, 3072, 1, 32),
)
PEERS = ("torch BSR", "libxsmm")


def render(content: dict[str, Any]) -> str:
    """Markdown for what `make bench` measured on a CPU."""
    about, host = content["about"], content["host_microseconds"]["forward"]
    even = [r for r in content["results"] if r.get("pattern", PATTERNS[0]) == PATTERNS[0]]
    times = {(*_key(row), row["product"]): row["ratio"] for row in even}
    densities = sorted({row["density"] for row in content["results"]}, reverse=True)
    lines = [
        f"How many times as fast as `nn.Linear`, {about['dtype']}, random patterns. Measured on "
        f"{about['date']} on {about['cores']} cores of an {about['cpu']} ({about['threads']} "
        f"threads, torch {about['torch']}, {about['torch_capability']}) with commit "
        f"{about['commit'][:7]}, there by `{about['command']}`; "
        f"all of it in [{RESULTS.name}]({RESULTS.relative_to(ROOT)}). Below 1 is slower than "
        "dense. torch BSR and libxsmm (1.17, driven by hand, weights packed beforehand) are "
        "measured in the forward.",
        "",
        *heading("in→out", "tokens", "block", "density", *PRODUCTS, *PEERS),
    ]
    for in_features, out_features, tokens, block in LINES:
        for density in densities:
            key = (in_features, out_features, tokens, block, density)
            ratios = [times.get((*key, product), {}).get(OURS) for product in PRODUCTS]
            ratios += [times.get((*key, PRODUCTS[0]), {}).get(peer) for peer in PEERS]
            if ratios[0] is None:
                continue
            layer = (f"{in_features}→{out_features}", str(tokens), f"{block}×{block}")
            lines.append(row(*layer, f"{density:g}", *map(number, ratios)))
    lines += [
        "",
        "A step is forward, backward and AdamW. The time of a call itself, without gradients, on a "
        f"64→64 layer: {host[OURS]:.1f} µs, `nn.Linear` {host[DENSE]:.1f} µs.",
    ]
    return "\n".join(lines) + "\n"


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("in_features", "out_features", "tokens", "block_height", "density")
    return tuple(row[name] for name in names)


def sections() -> dict[tuple[Path, str], str]:
    """(document, name of the section) -> what it must say between its marks."""
    found = {(README, "speed"): render(json.loads(RESULTS.read_text()))}
    contents = gpu.published()
    if gpu.MAIN in contents:
        found[README, "speed on a GPU"] = gpu.render(contents[gpu.MAIN])
        found[ROOT / "docs/benchmarks.md", "an H100"] = gpu.render_all(contents)
    return found


def main() -> None:
    """Rewrites the sections in place."""
    for (document, name), text in sections().items():
        write(document, name, text)


if __name__ == "__main__":
    main()
