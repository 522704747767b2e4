# SPDX-License-Identifier: Apache-2.0
"""`python -m pytorch_block_sparse bench`, on layers too small for their times to mean anything."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pytorch_block_sparse import __main__ as command
from pytorch_block_sparse.bench import cli, contenders, goals, machine, options, patterns, report
from pytorch_block_sparse.bench.contenders import DENSE, OURS, Offer
from pytorch_block_sparse.bench.limits import Limits
from pytorch_block_sparse.bench.problems import DTYPES, Operands, Problem, read
from pytorch_block_sparse.bench.verify import Expected, Verifier, WrongResult

ROOT = Path(__file__).parents[2]
TINY = ["--shapes", "64x96", "--blocks", "16", "--seconds", "0.01"]


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "COPY_BYTES", {"cpu": 1 << 20, "cuda": 1 << 20})


def bench(tmp_path: Path, *argv: str) -> dict[str, Any]:
    path = tmp_path / "bench.json"
    assert command.main(["bench", *argv, "--json", str(path)]) == 0
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_whole_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str) -> None:
    pictures = tmp_path / "pictures"
    argv = [*TINY, "--device", device, "--dtype", "float32", "--tokens", "2,128"]
    argv += ["--densities", "0.5,0.25"]
    content = bench(tmp_path, *argv, "--plots", str(pictures))

    about = content["about"]
    assert about["format"] == cli.FORMAT
    assert about["device"].startswith(device)
    assert about["torch"] == torch.__version__
    assert about["command"].startswith("python -m pytorch_block_sparse bench --shapes 64x96")
    assert about["copy_bytes_per_second"] > 0
    if device == "cuda":
        assert about["gpu"] == torch.cuda.get_device_name()
        assert about["driver"]

    measured = [(r["tokens"], r["density"], r["product"]) for r in content["results"]]
    training = ["forward", "input gradient", "weight gradient", "step"]
    assert measured == [
        *((2, d, "forward") for d in (0.5, 0.25)),
        *((128, d, product) for d in (0.5, 0.25) for product in training),
    ]
    for row in content["results"]:
        times = row["milliseconds"]
        assert min(times.values()) > 0
        assert {DENSE, OURS} <= set(times)
        assert row["ratio"][OURS] == pytest.approx(times[DENSE] / times[OURS])
        least = max(
            row["density"] * times[DENSE], 1e3 * row["bytes"] / about["copy_bytes_per_second"]
        )
        assert row["roofline_fraction"] == pytest.approx(least / times[OURS])
        assert (row["copy_fraction"] is None) == (row["tokens"] > 64)
    first = content["results"][0]
    assert device == "cuda" or contenders.BSR in first["ratio"]
    # 12 of 24 blocks of 256 float32, in the time of the product.
    stored = 12 * 256 * 4 / about["copy_bytes_per_second"]
    assert first["copy_fraction"] == pytest.approx(stored / first["milliseconds"][OURS] * 1e3)
    check_host(content)

    names = {"speedup-64x96-T2.png", "speedup-64x96-T128.png", "roofline.png"}
    assert {path.name for path in pictures.iterdir()} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.iterdir())
    shown = capsys.readouterr().out
    assert "64→96" in shown
    assert "weight gradient" in shown


def check_host(content: dict[str, Any]) -> None:
    titles = ["forward", "forward for a backward", "forward + backward"]
    assert list(content["host_microseconds"]) == titles
    for times in content["host_microseconds"].values():
        assert list(times) == [DENSE, OURS]
        assert min(times.values()) > 0


def test_host_time_alone(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bench(tmp_path, "--device", device, "--host", "--seconds", "0.01")
    assert content["results"] == []
    check_host(content)
    times = content["host_microseconds"]["forward + backward"]
    shown = capsys.readouterr().out
    assert f"T=1, forward + backward: {DENSE} {times[DENSE]:.1f} µs" in shown
    assert f"{times[OURS] / times[DENSE]:.2f} times as long" in shown


def test_uneven_patterns_are_compared_with_even_ones(tmp_path: Path) -> None:
    argv = [*TINY, "--device", "cpu", "--tokens", "8", "--densities", "0.5"]
    content = bench(tmp_path, *argv, "--pattern", "even,power-law,one-full-row")
    even, *others = content["results"]
    assert [row["pattern"] for row in others] == ["power-law", "one-full-row"]
    assert "even_ratio" not in even
    for row in others:
        expected = even["milliseconds"][OURS] / row["milliseconds"][OURS]
        assert row["even_ratio"] == pytest.approx(expected)
    assert "of even" in [
        c.header for c in report.layer_table(content["results"], content["about"], "").columns
    ]


def test_limits_and_which_goals_are_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fixed:
        """A processor of 1 GF/s that reads 1 GB/s."""

        def __init__(self, path: Path) -> None:
            assert path == Path("limits.so")

        flops_per_second = staticmethod(lambda dtype: 1e9)
        read_bandwidth = staticmethod(lambda nbytes: 1e9)
        seconds = Limits.seconds

    monkeypatch.setattr(cli, "Limits", Fixed)
    argv = [*TINY, "--device", "cpu", "--tokens", "1,128", "--densities", "0.5", "--peers", "none"]
    content = bench(
        tmp_path, *argv, "--limits", "limits.so", "--pattern", "even,power-law", "--plots",
        str(tmp_path),
    )  # fmt: skip
    assert content["about"]["flops_per_second"] == 1e9
    stored = 12 * 256
    for row in content["results"]:
        if row["product"] == "step":
            assert "limit_fraction" not in row
            continue
        # Reading 4 bytes for each 2 flops of the only token, 256 flops for each weight else.
        least = 4e-9 * stored if row["tokens"] == 1 else 256e-9 * stored
        assert row["limit_fraction"] == pytest.approx(1e3 * least / row["milliseconds"][OURS])
        assert row["limit_goal"] == (0.8 if row["pattern"] == "even" else None)
    table = report.layer_table(content["results"], content["about"], "")
    assert {"limit", "goals"} <= {column.header for column in table.columns}
    assert "share of what the processor allows" in capsys.readouterr().out


def test_runs_are_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for density in ("0.5", "0.25"):
        folder = tmp_path / density
        argv = [*TINY, "--device", "cpu", "--tokens", "8", "--densities", density]
        bench(folder, *argv)
        paths.append(str(folder / "bench.json"))
    content = bench(tmp_path, "--plots", str(tmp_path), "--read", *paths)
    assert [row["density"] for row in content["results"]] == [0.5, 0.25]
    assert content["about"]["command"].count("--densities") == 2
    assert (tmp_path / "speedup-64x96-T8.png").exists()

    other = json.loads(Path(paths[1]).read_text())
    other["about"]["dtype"] = "bfloat16"
    Path(paths[1]).write_text(json.dumps(other))
    assert command.main(["bench", "--read", *paths]) == 1
    assert "was measured with" in capsys.readouterr().out
    (tmp_path / "none.json").write_text("[]")
    assert command.main(["bench", "--read", str(tmp_path / "none.json")]) == 1
    assert "is not a result of this benchmark" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["llama-mlp", "roberta-base"])
def test_whole_model(model: str, tmp_path: Path, device: str) -> None:
    argv = ["--device", device, "--model", model, "--size", "tiny", "--compile", "off"]
    argv += ["--steps", "2", "--densities", "0.5,0.25", "--blocks", "16", "--seconds", "0.01"]
    content = bench(tmp_path, *argv)
    assert content["results"] == []
    assert content["about"]["dtype"] == "bfloat16"
    (measured,) = content["models"]
    assert measured["work"]["model"] == model
    dense, *sparse = measured["results"]
    assert [row["density"] for row in sparse] == [0.5, 0.25]
    for row in (dense, *sparse):
        assert len(row["step_milliseconds_all"]) == 2
        assert row["step_milliseconds"] > 0
        # Weights, gradients and two moments in float32; biases and the index are the rest.
        assert row["state_bytes"] >= 16 * row["parameters"]
        assert (row["peak_bytes"] is None) == (device == "cpu")
    for row in sparse:
        assert row["density"] <= row["layer_state_bytes"] / dense["layer_state_bytes"]
        # A GPU's allocator hands out 512 bytes at a time: for the weight, the bias, gradients, two
        # moments and the count of steps of each, and the seven tensors of the index.
        layers = 3 if model == "llama-mlp" else 12
        rounding = 0 if device == "cpu" else layers * 17 * 511
        most = (row["density"] + 0.06) * dense["layer_state_bytes"] + rounding
        assert row["layer_state_bytes"] < most
        assert math.isfinite(row["kernel_milliseconds_saved"])
    if model == "llama-mlp":
        assert dense["parameters"] == 3 * 64 * 128
        assert sparse[0]["parameters"] == 3 * 64 * 128 // 2
        assert dense["state_bytes"] == dense["layer_state_bytes"]


def test_wrong_results_are_not_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = contenders.block_sparse

    def wrong(o: Operands) -> Offer:
        offer = right(o)
        forward = offer.calls["forward"]

        def call(i: int) -> torch.Tensor:
            y = forward(i)
            y[3, 5] += 1
            return y

        return Offer({"forward": call})

    argv = [*TINY, "--device", "cpu", "--tokens", "8", "--densities", "0.5"]
    # A peer is left out, ...
    monkeypatch.setattr(contenders, "torch_bsr", wrong)
    content = bench(tmp_path, *argv)
    assert contenders.BSR not in content["results"][0]["ratio"]
    ((who, what),) = content["left_out"].items()
    assert who.startswith(contenders.BSR)
    assert "1 elements are wrong, by up to 1" in who
    assert "T=8" in what
    # ... but what this package gets wrong ends the benchmark.
    monkeypatch.setattr(contenders, "block_sparse", wrong)
    assert command.main(["bench", *argv]) == 1
    assert "block_sparse: 1 elements are wrong" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [16, 32])
def test_contenders_are_exact_on_integers(dtype: str, block: int, device: str) -> None:
    problem = Problem(40, 96, 64, block, block, 0.5)
    operands = Operands(problem, DTYPES[dtype], torch.device(device))
    verifier = Verifier(operands)
    for name, contender in contenders.available(torch.device(device), None).items():
        if name not in (DENSE, OURS, contenders.TRITON) and device == "cuda":
            continue  # what others can do is theirs
        offer = contender(operands)
        for product in offer.calls:
            verifier.check(name, product, offer)


def test_expected_allows_rounding_and_no_more() -> None:
    left, right = (torch.randint(-2, 3, shape).float() for shape in ((7, 300), (300, 5)))
    expected = Expected(left, right)
    value = expected.value
    expected.check("exact", value.float())
    expected.check("rounded", value.bfloat16())
    for change in (1.0, -1.0, math.nan, math.inf):
        wrong = value.clone()
        wrong[6, 4] += change
        with pytest.raises(WrongResult, match="1 elements are wrong"):
            expected.check("wrong", wrong.float())
        expected.check("elsewhere", wrong.float(), torch.arange(35).view(7, 5) < 34)
    with pytest.raises(WrongResult, match=r"shape \(5, 7\), expected \(7, 5\)"):
        expected.check("transposed", value.T.float())


def test_operands_are_integers_then_normal(device: str) -> None:
    o = Operands(Problem(16, 64, 32, 16, 16, 0.5), torch.bfloat16, torch.device(device))
    for tensor in (*o.x, *o.dy, *o.values, o.weights[0], o.bias):
        assert set(tensor.unique().tolist()) <= {-2, -1, 0, 1, 2}
    assert torch.equal(o.weights[0], o.matrix.to_dense())
    o.randomize()
    everything = [*o.x, *o.dy, *o.values, *o.weights, o.bias]
    assert all(tensor.float().std() > 0.5 for tensor in everything)
    assert (o.weights[0] != 0).all()
    assert o.matrix.values.data_ptr() == o.values[0].data_ptr()


@pytest.mark.host  # interprets on the CPU
def test_triton_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    program = """
import torch
from pytorch_block_sparse.bench.problems import Operands, Problem
from pytorch_block_sparse.bench.triton_peer import triton_peer
from pytorch_block_sparse.bench.verify import Verifier
for side, tokens in ((16, 40), (32, 7)):
    problem = Problem(tokens, 64, 32, side, side, 0.5)
    operands = Operands(problem, torch.float32, torch.device("cpu"))
    verifier, offer = Verifier(operands), triton_peer(operands)
    for product in offer.calls:
        verifier.check("triton", product, offer)
        print(product)
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:-1] == ["forward", "input gradient", "weight gradient"] * 2


# (problem, product, dtype, device) and the goal
GOALS = [
    ((8192, 4096, 14336, 128, 128, 0.5), "forward", "bfloat16", "cuda", 1.85),
    ((4096, 4096, 14336, 32, 32, 0.05), "input gradient", "float16", "cuda", 7.5),
    ((8192, 4096, 14336, 16, 16, 0.1), "weight gradient", "tf32", "cuda", 3.0),
    ((8192, 4096, 14336, 128, 128, 0.05), "weight gradient", "bfloat16", "cuda", 12.6),
    ((8192, 4096, 14336, 128, 128, 0.05), "forward", "bfloat16", "cuda", 11.0),
    ((8192, 4096, 4096, 64, 64, 0.25), "forward", "bfloat16", "cuda", 2.9),
    ((8192, 4096, 4096, 16, 16, 0.25), "forward", "bfloat16", "cuda", None),
    ((8192, 768, 3072, 32, 32, 0.5), "forward", "bfloat16", "cuda", 1.0),
    ((8192, 768, 3072, 32, 32, 0.25), "forward", "bfloat16", "cuda", None),
    ((8192, 4096, 14336, 128, 128, 0.3), "forward", "bfloat16", "cuda", None),
    ((8192, 4096, 14336, 128, 64, 0.5), "forward", "bfloat16", "cuda", None),
    ((8192, 4096, 14336, 128, 128, 0.5), "step", "bfloat16", "cuda", None),
    ((8192, 4096, 14336, 128, 128, 0.5), "forward", "float32", "cuda", None),
    ((512, 4096, 14336, 128, 128, 0.5), "forward", "bfloat16", "cuda", None),
    ((16, 4096, 14336, 32, 32, 0.5), "forward", "bfloat16", "cuda", 1.0),
    ((16, 4096, 14336, 32, 32, 0.75), "forward", "bfloat16", "cuda", None),
    ((128, 768, 3072, 32, 32, 0.5), "forward", "float32", "cpu", 2.1),
    ((1, 768, 3072, 32, 32, 0.1), "forward", "float32", "cpu", 10.0),
    ((16, 768, 3072, 32, 32, 0.1), "forward", "float32", "cpu", None),
    ((128, 768, 3072, 8, 8, 0.5), "forward", "float32", "cpu", None),
    ((128, 768, 3072, 32, 32, 0.5), "forward", "bfloat16", "cpu", None),
    ((128, 768, 3072, 32, 32, 0.5), "forward", "bfloat16", "cpu amx_bf16", 3.0),
    ((128, 768, 3072, 16, 16, 0.5), "forward", "bfloat16", "cpu amx_bf16", 2.0),
]


@pytest.mark.parametrize(("sizes", "product", "dtype", "name", "expected"), GOALS)
def test_goals(
    sizes: tuple[Any, ...], product: str, dtype: str, name: str, expected: float | None
) -> None:
    kind, *features = name.split()
    found = goals.ratio(Problem(*sizes), product, dtype, kind, features)
    assert found == (None if expected is None else pytest.approx(expected))


def test_goal_for_decode_is_copy_bandwidth_beyond_the_cache() -> None:
    large = Problem(16, 8192, 28672, 64, 64, 0.5)  # 235 MB in 16 bits
    assert goals.copy_fraction(large, "forward", 2, 50 << 20) == 0.8
    assert goals.copy_fraction(large, "forward", 2, 1 << 30) is None
    assert goals.copy_fraction(large, "input gradient", 2, 50 << 20) is None
    many = Problem(128, 8192, 28672, 64, 64, 0.5)
    assert goals.copy_fraction(many, "forward", 2, 50 << 20) is None


@pytest.mark.parametrize("pattern", patterns.PATTERNS)
@pytest.mark.parametrize("grid", [(64, 48), (5, 7), (1, 9)])
@pytest.mark.parametrize("density", [0.02, 0.25, 0.5, 0.97, 1.0])
def test_patterns_have_the_same_number_of_blocks(
    pattern: str, grid: tuple[int, int], density: float
) -> None:
    count = max(1, int(density * grid[0] * grid[1]))
    mask = patterns.draw(pattern, grid, count, torch.Generator().manual_seed(0))
    assert mask.shape == grid
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == count


def test_uneven_patterns_are_what_they_say() -> None:
    grid, count = (64, 48), 768
    counts = {
        pattern: patterns.draw(pattern, grid, count, torch.Generator().manual_seed(0)).sum(1)
        for pattern in patterns.PATTERNS
    }
    assert counts["even"].min() >= 4
    assert counts["even"].max() <= 24
    power = counts["power-law"].sort(descending=True).values
    assert (power == 0).sum() == 4  # one in sixteen
    assert power[0] == 48
    assert power[40] == pytest.approx(power[20] / 2, abs=1)
    assert counts["one-full-row"][32] == 48
    assert counts["one-full-row"].sort().values[-2] <= 24


def test_shapes_file_and_what_else_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "shapes.txt"
    path.write_text("# comment\n128 64 96 16 32 0.5\n1 64 96 16 16 0.25  # decode\n")
    with path.open("a") as file:
        file.write("9 64 96 16 16 0.25 power-law\n")
    asked = options.parse(["--device", "cpu", "--shapes", str(path), "--pattern", "even"])
    assert asked.problems.pop() == Problem(9, 64, 96, 16, 16, 0.25, "power-law")
    expected = [Problem(128, 64, 96, 16, 32, 0.5), Problem(1, 64, 96, 16, 16, 0.25)]
    assert asked.problems == expected
    for option, value in (("--tokens", "128"), ("--blocks", "16x32"), ("--densities", "0.5,1")):
        asked = options.parse(["--device", "cpu", "--shapes", str(path), option, value])
        assert asked.problems == expected[:1]
    for path in (ROOT / "benchmarks/shapes").glob("*.txt"):
        assert list(read(path))


def test_tokens_belong_to_a_shape_or_to_all() -> None:
    def tokens(*argv: str) -> list[tuple[int, int]]:
        argv = ("--device", "cpu", "--blocks", "16", "--densities", "0.5", *argv)
        return [(p.in_features, p.tokens) for p in options.parse(list(argv)).problems]

    assert tokens("--shapes", "64x96x8,32x96x4") == [(64, 8), (32, 4)]
    assert tokens("--shapes", "64x96,32x96", "--tokens", "1,2") == [
        (64, 1),
        (64, 2),
        (32, 1),
        (32, 2),
    ]
    usual = options.DEFAULTS["cpu"]
    assert tokens() == [(768, t) for t in usual.tokens]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--shapes", "64"], "argument --shapes: '64' is not a file, INxOUT or INxOUTxTOKENS"),
        (["--shapes", "64x0"], "'64x0' is not a file, INxOUT or INxOUTxTOKENS"),
        (["--blocks", "16x16x16"], "'16x16x16' is not the side of a block or HEIGHTxWIDTH"),
        (["--densities", "0"], "'0' is not a density above 0 and at most 1"),
        (["--densities", "half"], "'half' is not a density above 0 and at most 1"),
        (["--tokens", "-3"], "'-3' is not a positive number"),
        (["--products", "forwards"], "'forwards' is no product, expected forward, input gradient"),
        (["--peers", "Triton"], "'Triton' is no peer, expected torch BSR, torch 2:4, plain"),
        (["--pattern", "odd"], "'odd' is no pattern, expected even, power-law, one-full-row"),
        (
            ["--model", "llama-mlp", "--blocks", "16,32"],
            "--blocks names several sizes, expected one",
        ),
        (["--device", "meta"], "'meta' is not supported, expected cpu or cuda"),
        (["--device", "gpu"], "'gpu' is no device, expected cpu or cuda"),
    ],
)
def test_options_that_make_no_sense(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options.parse(argv)
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options.parse(["--device", "cuda"])
    assert "cuda cannot be used: " in capsys.readouterr().err


def test_shapes_file_with_a_bad_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shapes.txt"
    path.write_text("128 64 96 16 0.5\n")
    with pytest.raises(SystemExit):
        options.parse(["--shapes", str(path)])
    assert f"{path}:1: " in capsys.readouterr().err


def test_command_line_of_the_package(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.main([]) == 2
    assert command.main(["benchmark"]) == 2
    assert "the command is 'benchmark', expected 'bench'" in capsys.readouterr().err
    assert command.main(["--help"]) == 0
    assert "usage" in capsys.readouterr().out
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main(["bench"]) == 2
    assert "pip install 'pytorch-block-sparse[bench]'" in capsys.readouterr().err


def test_importing_the_package_does_not_load_the_benchmark() -> None:
    program = "import sys, torch; torchs = {*sys.modules}; import pytorch_block_sparse; "
    program += "print(*{*sys.modules} - torchs)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(run.stdout.split())
    assert "pytorch_block_sparse" in loaded
    assert not loaded & {"pytorch_block_sparse.bench", "rich", "matplotlib"}
