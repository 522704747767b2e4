# SPDX-License-Identifier: Apache-2.0
"""The README's table of measured speed: python -m benchmarks.python.readme writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .contenders import DENSE, OURS
from .problems import PRODUCTS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/cpu.json"
README = ROOT / "README.md"
BEGIN = "<!-- speed: written by `python -m benchmarks.python.readme`, checked by the tests -->\n"
END = "<!-- /speed -->\n"
# (in, out, tokens, block side): the lines of the table, one for each density measured.
LINES = (
    (768, 3072, 1024, 32),
    (768, 3072, 1024, 16),
    (768, 3072, 1024, 64),
    (768, 3072, 128, 32),
    (768, 3072, 1, 32),
)
PEERS = ("torch BSR", "libxsmm")


def render(content: dict[str, Any]) -> str:
    """Markdown for what `make bench` wrote."""
    about, host = content["about"], content["host_microseconds"]["forward"]
    times = {(*_key(row), row["product"]): row["ratio"] for row in content["results"]}
    densities = sorted({row["density"] for row in content["results"]}, reverse=True)
    lines = [
        f"How many times as fast as `nn.Linear`, {about['dtype']}, random patterns. Measured on "
        f"{about['date']} on {about['cores']} cores of an {about['cpu']} ({about['threads']} "
        f"threads, torch {about['torch']}, {about['torch_capability']}) by `{about['command']}`; "
        f"all of it in [{RESULTS.name}]({RESULTS.relative_to(ROOT)}). Below 1 is slower than "
        "dense. torch BSR and libxsmm (1.17, driven by hand, weights packed beforehand) are "
        "measured in the forward.",
        "",
        f"| in→out | tokens | block | density | {' | '.join(PRODUCTS)} | {' | '.join(PEERS)} |",
        "| --- " * (4 + len(PRODUCTS) + len(PEERS)) + "|",
    ]
    for in_features, out_features, tokens, block in LINES:
        for density in densities:
            key = (in_features, out_features, tokens, block, density)
            ratios = [times.get((*key, product), {}).get(OURS) for product in PRODUCTS]
            ratios += [times.get((*key, PRODUCTS[0]), {}).get(peer) for peer in PEERS]
            if ratios[0] is None:
                continue
            cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            lines.append(
                f"| {in_features}→{out_features} | {tokens} | {block}×{block} | {density:g} | "
                + " | ".join(cells)
                + " |"
            )
    lines += [
        "",
        "A step is forward, backward and AdamW. The time of a call itself, without gradients, on a "
        f"64→64 layer: {host[OURS]:.1f} µs, `nn.Linear` {host[DENSE]:.1f} µs.",
    ]
    return "\n".join(lines) + "\n"


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("in_features", "out_features", "tokens", "block_height", "density")
    return tuple(row[name] for name in names)


def main() -> None:
    text = README.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    README.write_text(head + BEGIN + render(json.loads(RESULTS.read_text())) + END + tail)


if __name__ == "__main__":
    main()
