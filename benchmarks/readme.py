# SPDX-License-Identifier: Apache-2.0
"""The README's tables of measured speed: python -m benchmarks.readme writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_block_sparse.bench.contenders import DENSE, OURS, SEMI_STRUCTURED
from pytorch_block_sparse.bench.problems import PRODUCTS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/cpu.json"
GPU_RESULTS = ROOT / "benchmarks/results/h100.json"
README = ROOT / "README.md"
WRITTEN = "written by `python -m benchmarks.readme`, checked by the tests"
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
    times = {(*_key(row), row["product"]): row["ratio"] for row in content["results"]}
    densities = _densities(content["results"])
    lines = [
        f"How many times as fast as `nn.Linear`, {about['dtype']}, random patterns. Measured on "
        f"{about['date']} on {about['cores']} cores of an {about['cpu']} ({about['threads']} "
        f"threads, torch {about['torch']}, {about['torch_capability']}) with commit "
        f"{about['commit'][:7]}, there by `{about['command']}`; "
        f"all of it in [{RESULTS.name}]({RESULTS.relative_to(ROOT)}). Below 1 is slower than "
        "dense. torch BSR and libxsmm (1.17, driven by hand, weights packed beforehand) are "
        "measured in the forward.",
        "",
        *_heading("in→out", "tokens", "block", "density", *PRODUCTS, *PEERS),
    ]
    for in_features, out_features, tokens, block in LINES:
        for density in densities:
            key = (in_features, out_features, tokens, block, density)
            ratios = [times.get((*key, product), {}).get(OURS) for product in PRODUCTS]
            ratios += [times.get((*key, PRODUCTS[0]), {}).get(peer) for peer in PEERS]
            if ratios[0] is None:
                continue
            layer = (f"{in_features}→{out_features}", str(tokens), f"{block}×{block}")
            lines.append(_row(*layer, f"{density:g}", *map(_number, ratios)))
    lines += [
        "",
        "A step is forward, backward and AdamW. The time of a call itself, without gradients, on a "
        f"64→64 layer: {host[OURS]:.1f} µs, `nn.Linear` {host[DENSE]:.1f} µs.",
    ]
    return "\n".join(lines) + "\n"


def render_gpu(content: dict[str, Any]) -> str:
    """Markdown for what benchmarks/h100.sh measured."""
    about = content["about"]
    rows = [row for row in content["results"] if row["pattern"] == "even"]
    large = [row for row in rows if row["copy_fraction"] is None]
    lines = [
        f"On an {about['gpu']} (driver {about['driver']}, torch {about['torch']}, "
        f"{about['date']}), {about['dtype']}, random patterns, at density "
        f"{' / '.join(f'{d:g}' for d in _densities(large))}; all of it in "
        f"[{GPU_RESULTS.name}]({GPU_RESULTS.relative_to(ROOT)}), the method in "
        "[docs/benchmarks.md](docs/benchmarks.md). The best peer is the fastest of torch BSR, STK "
        "and a plain Triton kernel in the forward.",
        "",
        *_heading("in→out", "tokens", "block", *PRODUCTS, "best peer"),
    ]
    for key, some in _grouped(large, "in_features", "out_features", "tokens", "block_height"):
        cells = [_by_density(some, product, lambda row: row["ratio"][OURS]) for product in PRODUCTS]
        cells.append(_by_density(some, PRODUCTS[0], _best_peer))
        lines.append(_row(f"{key[0]}→{key[1]}", str(key[2]), f"{key[3]}×{key[3]}", *cells))
    lines += _decode([row for row in rows if row["copy_fraction"] is not None])
    for model in content.get("models", []):
        lines += _model(model)
    return "\n".join(lines) + "\n"


def _decode(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    densities = _densities(rows)
    lines = [
        "",
        "Few tokens, where the time is that of reading the weight: the ratio, and in brackets the "
        "bytes of the stored blocks over the time, as a share of copy bandwidth "
        f"({' / '.join(f'{d:g}' for d in densities)}).",
        "",
        *_heading("in→out", "tokens", "block", "forward"),
    ]
    for key, some in _grouped(rows, "in_features", "out_features", "tokens", "block_height"):
        ratios = _by_density(some, PRODUCTS[0], lambda row: row["ratio"][OURS])
        shares = _by_density(some, PRODUCTS[0], lambda row: 100 * row["copy_fraction"], "{:.0f}")
        layer = (f"{key[0]}→{key[1]}", str(key[2]), f"{key[3]}×{key[3]}")
        lines.append(_row(*layer, f"{ratios} ({shares}%)"))
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
        f"{compiled}. Memory of weights, gradients and optimizer state as the allocator counts "
        "it; that of the sparse layers alone, and of the whole model.",
        "",
        *_heading("", "step, ms", "ratio", "peak, GB", "sparse layers, GB", "whole model, GB"),
    ]
    for row in (dense, *sparse):
        lines.append(
            _row(
                row["name"],
                f"{row['step_milliseconds']:.1f}",
                _number(dense["step_milliseconds"] / row["step_milliseconds"]),
                *(
                    f"{row[name] / 1e9:.2f}"
                    for name in ("peak_bytes", "layer_state_bytes", "state_bytes")
                ),
            )
        )
    return lines


def _best_peer(row: dict[str, Any]) -> float | None:
    peers = [r for name, r in row["ratio"].items() if name not in (OURS, SEMI_STRUCTURED)]
    return max(peers, default=None)


def _by_density(
    rows: list[dict[str, Any]],
    product: str,
    value: Callable[[dict[str, Any]], float | None],
    form: str = "{:.2f}",
) -> str:
    """The values of a product at all densities, largest density first."""
    found = {row["density"]: value(row) for row in rows if row["product"] == product}
    ordered = (found[density] for density in sorted(found, reverse=True))
    return " / ".join("-" if v is None else form.format(v) for v in ordered)


def _grouped(
    rows: list[dict[str, Any]], *names: str
) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.items())


def _densities(rows: list[dict[str, Any]]) -> list[float]:
    return sorted({row["density"] for row in rows}, reverse=True)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("in_features", "out_features", "tokens", "block_height", "density")
    return tuple(row[name] for name in names)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _heading(*cells: str) -> list[str]:
    return [_row(*cells), "| --- " * len(cells) + "|"]


def sections() -> dict[str, str]:
    """What the README must say between the marks of each name."""
    found = {"speed": render(json.loads(RESULTS.read_text()))}
    if GPU_RESULTS.exists():
        found["speed on a GPU"] = render_gpu(json.loads(GPU_RESULTS.read_text()))
    return found


def marked(name: str, text: str) -> str:
    """A section of the README with its marks."""
    return f"<!-- {name}: {WRITTEN} -->\n{text}<!-- /{name} -->\n"


def main() -> None:
    """Rewrites the sections in place."""
    text = README.read_text()
    for name, section in sections().items():
        head, _, rest = text.partition(f"<!-- {name}: {WRITTEN} -->\n")
        _, end, tail = rest.partition(f"<!-- /{name} -->\n")
        if not end:
            raise SystemExit(f"{README} has no section marked {name!r}")
        text = head + marked(name, section) + tail
    README.write_text(text)


if __name__ == "__main__":
    main()
