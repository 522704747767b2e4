# SPDX-License-Identifier: Apache-2.0
"""What is said of results: which goals were met, and the tables of the documents."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks import gpu
from benchmarks.markdown import WRITTEN, marked, write
from pytorch_block_sparse.bench import cli, goals, machine, report, verdicts
from pytorch_block_sparse.bench.contenders import BSR, DENSE, OURS, SEMI_STRUCTURED
from pytorch_block_sparse.bench.problems import Problem

pytestmark = pytest.mark.host

ABOUT = {
    "gpu": "a GPU",
    "driver": "1.0",
    "device": "cuda:0",
    "torch": "2.15",
    "date": "2026-11-25",
    "commit": "0123456789abcdef",
    "command": "bench",
    "copy_bytes_per_second": 3e12,
    "ffma_gflops": 60e3,
}


def row_of(
    sizes: tuple[Any, ...],
    product: str,
    ratio: dict[str, float],
    dtype: str = "bfloat16",
    **more: Any,
) -> dict[str, Any]:
    """A row as the JSON has it: nn.Linear takes 1 ms."""
    problem = Problem(*sizes)
    return vars(problem) | {
        "product": product,
        "milliseconds": {DENSE: 1.0} | {name: 1 / r for name, r in ratio.items()},
        "ratio": ratio,
        "useful_gflops": 45e3,
        "roofline_fraction": 0.5,
        "copy_fraction": 0.6 if problem.is_decode and product == "forward" else None,
        "goal": goals.ratio(problem, product, dtype, "cuda"),
        "copy_goal": goals.copy_fraction(problem, product, 2, 1 << 20),
        **more,
    }


def content_of(*rows: dict[str, Any], dtype: str = "bfloat16", **more: Any) -> dict[str, Any]:
    return {"about": ABOUT | {"dtype": dtype}, "results": list(rows), **more}


LARGE = (8192, 4096, 14336, 32, 32)
WHOLE = content_of(
    row_of((*LARGE, 0.5), "forward", {OURS: 1.3, BSR: 0.2, SEMI_STRUCTURED: 1.4}),
    row_of((*LARGE, 0.1), "forward", {OURS: 5.5, BSR: 0.6}),
    row_of((*LARGE, 0.5), "input gradient", {OURS: 0.7}),
    row_of((16, 4096, 14336, 32, 32, 0.5), "forward", {OURS: 1.5}),
    row_of((*LARGE, 0.1, "power-law"), "forward", {OURS: 4.4}, even_ratio=0.8),
    models=[
        {
            "work": {
                "model": "llama-mlp",
                "batch": 8,
                "length": 1024,
                "block": [64, 64],
                "compile": "whole",
            },
            "results": [
                {
                    "name": name,
                    "density": density,
                    "step_milliseconds": milliseconds,
                    "gain_kept": kept,
                    "peak_bytes": 2e9,
                    "layer_state_bytes": state,
                    "state_bytes": state,
                }
                for name, density, milliseconds, kept, state in (
                    ("dense", None, 12.0, None, 4e9),
                    ("density 0.5", 0.5, 8.0, 0.9, 2e9),
                )
            ],
        }
    ],
    host_microseconds={
        "forward": {DENSE: 10.0, OURS: 12.5},
        "forward for a backward": {DENSE: 10.0, OURS: 30.0},
        "forward + backward": {DENSE: 100.0, OURS: 105.0},
    },
)


# (problem, dtype, features) and the share of what instructions and caches allow
LIMITS = [
    ((128, 768, 3072, 32, 64, 0.05), "float32", "", 0.88),
    ((1024, 768, 3072, 16, 64, 0.5), "float32", "", 0.8),
    ((1024, 768, 3072, 8, 8, 0.5), "float32", "", 0.65),
    ((1024, 768, 3072, 1, 16, 0.5), "float32", "", 0.65),
    ((1024, 768, 3072, 4, 4, 0.5), "float32", "", None),
    ((64, 768, 3072, 32, 32, 0.5), "float32", "", None),
    ((32, 768, 3072, 32, 32, 0.5), "float32", "", 0.8),
    ((1024, 768, 3072, 32, 32, 0.5), "bfloat16", "avx512_bf16", None),
    ((1024, 768, 3072, 32, 32, 0.5), "bfloat16", "amx_bf16", 0.6),
    ((1024, 768, 3072, 32, 32, 0.1), "bfloat16", "amx_bf16", 0.45),
    ((1024, 768, 3072, 16, 32, 0.5), "bfloat16", "amx_bf16", None),
    ((1024, 768, 3072, 32, 32, 0.5), "float16", "amx_bf16", None),
    ((1024, 768, 3072, 32, 32, 0.5, "power-law"), "float32", "", None),
]


@pytest.mark.parametrize(("sizes", "dtype", "features", "expected"), LIMITS)
def test_goals_of_the_limit(
    sizes: tuple[Any, ...], dtype: str, features: str, expected: float | None
) -> None:
    problem = Problem(*sizes)
    assert goals.limit_fraction(problem, "forward", dtype, features.split()) == expected
    assert goals.limit_fraction(problem, "step", dtype, features.split()) is None


def test_goals_on_a_cpu() -> None:
    about = ABOUT | {"device": "cpu", "dtype": "float32"}
    sizes = (128, 768, 3072, 32, 32, 0.5)
    row = row_of(sizes, "forward", {OURS: 2.0}, goal=2.1, limit_fraction=0.9, limit_goal=0.88)
    uneven = row_of(
        (*sizes, "power-law"),
        "forward",
        {OURS: 2.0},
        goal=None,
        limit_fraction=0.5,
        even_ratio=0.86,
    )
    found = [[(v.kind, v.share >= 1) for v in verdicts.of_row(r, about)] for r in (row, uneven)]
    assert found == [[("ratio", False), ("limit", True)], [("even", False)]]
    columns = {
        c.header: list(c.cells) for c in report.layer_table([row, uneven], about, "").columns
    }
    assert columns["goals"] == ["[red]not ratio", "[red]not even"]
    assert columns["limit"] == ["[green]90%", "50%"]

    times = {DENSE: 6.0, OURS: 8.9}
    host = {"forward": times, "forward for a backward": times, "forward + backward": times}
    content = {"about": about, "results": [], "host_microseconds": host}
    assert [(v.where, v.share >= 1) for v in verdicts.of(content)] == [
        ("forward", True),  # at most 3 µs more
        ("forward + backward", False),  # at most 1.2 times as long
    ]


def test_goals_are_counted_and_the_worst_is_named() -> None:
    found = {
        title: (met, count, worst.where, pytest.approx(worst.share))
        for title, met, count, worst in verdicts.summary(verdicts.of(WHOLE))
    }
    layer = "4096→14336, 8192 tokens"
    least = "input gradient, 32×32, density 0.5"
    assert found == {
        f"{layer}, blocks of 32×32: ratio": (1, 3, least, 0.7 / 1.4),
        f"{layer}, blocks of 32×32: floor": (2, 3, least, 0.7 / 1.2),
        f"{layer}: not behind a peer": (
            2,
            2,
            f"forward, 32×32, density 0.5, {BSR}",
            1.3 / 0.2,
        ),
        "4096→14336, up to 64 tokens: ratio": (
            1,
            1,
            "forward, 32×32, density 0.5, 16 tokens",
            1.5,
        ),
        "4096→14336, up to 64 tokens: share of copy bandwidth": (
            0,
            1,
            "forward, 32×32, density 0.5, 16 tokens",
            0.6 / 0.8,
        ),
        f"{layer}, uneven patterns: speed, of even ones": (
            0,
            1,
            "forward, 32×32, density 0.1, power-law",
            0.8 * 1.2,
        ),
        "llama-mlp: gain of the kernels kept": (1, 1, "density 0.5", 0.9 / 0.85),
        "host time of a call": (1, 2, "forward", 0.8),
    }


def test_goal_of_float32_is_a_share_of_the_peak() -> None:
    rows = [row_of((*LARGE, 0.5), p, {OURS: 1.6}, "float32") for p in ("forward", "step")]
    (verdict,) = verdicts.of(content_of(*rows, dtype="float32"))
    assert verdict.title == "4096→14336, 8192 tokens: share of FFMA's peak"
    assert (verdict.value, verdict.goal) == (0.75, goals.FFMA_FRACTION)


@pytest.mark.parametrize(
    ("capability", "count", "peak"), [((9, 0), 132, 66908.16), ((8, 0), 108, 27371.52)]
)
def test_peak_of_float32(
    capability: tuple[int, int], count: int, peak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    major, minor = capability
    properties = SimpleNamespace(major=major, minor=minor, multi_processor_count=count)
    monkeypatch.setattr(machine, "_of_gpu", lambda what: "1980")
    assert machine._ffma_gflops(properties) == pytest.approx(peak)
    monkeypatch.setattr(machine, "_of_gpu", lambda what: None)  # without nvidia-smi
    assert machine._ffma_gflops(properties) is None


@pytest.mark.parametrize(
    ("sizes", "product", "expected"),
    [
        ((*LARGE, 0.25), "weight gradient", 2.2),
        ((8192, 4096, 14336, 16, 16, 0.05), "forward", 2.6),
        ((8192, 4096, 14336, 64, 64, 0.5), "forward", None),
        ((8192, 4096, 4096, 32, 32, 0.5), "forward", None),
        ((16, 4096, 14336, 32, 32, 0.5), "forward", None),
        ((*LARGE, 0.3), "forward", None),
    ],
)
def test_floors(sizes: tuple[Any, ...], product: str, expected: float | None) -> None:
    assert goals.floor(Problem(*sizes), product, "bfloat16") == expected


def test_goals_are_shown() -> None:
    console = Console(width=160, record=True)
    console.print(report.goal_table(verdicts.of(WHOLE)))
    (line,) = (at for at in console.export_text().splitlines() if "32×32: floor" in at)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[1:] == ["input gradient, 32×32, density 0.5", "2 of 3", "0.70", "1.20", "58%"]


def test_results_without_goals_have_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    row = row_of((8192, 512, 512, 32, 32, 0.5), "forward", {OURS: 1.3})
    cli.show(content_of(row), Console(width=160))
    shown = capsys.readouterr().out
    assert "512→512" in shown
    assert "goals" not in shown


def test_section_of_the_readme() -> None:
    lines = gpu.render(WHOLE).splitlines()
    for line in (
        "| 4096→14336 | 8192 | 32×32 | 1.30 / 5.50 | 0.70 | 1.4 / 5 | 0.20 / 0.60 |",
        "| 4096→14336 | 16 | 32×32 | 1.50 (60%) |",
        "| dense | 12.0 | 1.00 |  | 2.00 | 4.00 | 4.00 |",
        "| density 0.5 | 8.0 | 1.50 | 90% | 2.00 | 2.00 | 2.00 |",
    ):
        assert line in lines


def test_section_about_all_results() -> None:
    tf32 = content_of(row_of((*LARGE, 0.5), "forward", {OURS: 0.8}, "tf32"), dtype="tf32")
    uneven = content_of(*WHOLE["results"], host_microseconds=WHOLE["host_microseconds"])
    text = gpu.render_all({gpu.MAIN: WHOLE, gpu.UNEVEN: uneven, "h100-tf32": tf32})
    for line in (
        "| 4096→14336, 8192 tokens, blocks of 32×32: floor | tf32 | 0 of 1 | forward, 32×32, "
        "density 0.5 | 0.80 | 1.20 |",
        "| 4096→14336 | 8192 | 32×32 | 0.80 | 1.4 |",
        "| 4096→14336 | 8192 | 32×32 | power-law | 0.80 |",
        "| block_sparse | 12.5 | 30.0 | 105.0 |",
    ):
        assert line in text.splitlines()
    for title in ("32×32: ratio | bfloat16", "uneven patterns: speed", "host time of a call |"):
        assert text.count(title) == 1


def test_sections_are_replaced(tmp_path: Any) -> None:
    document = tmp_path / "document.md"
    document.write_text(f"before\n<!-- speed: {WRITTEN} -->\nold\n<!-- /speed -->\nafter\n")
    write(document, "speed", "new\n")
    assert document.read_text() == "before\n" + marked("speed", "new\n") + "after\n"
    with pytest.raises(ValueError, match="has no section marked 'other'"):
        write(document, "other", "new\n")
