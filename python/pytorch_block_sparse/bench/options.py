# SPDX-License-Identifier: Apache-2.0
"""The command line of the benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from .. import _library
from . import patterns, problems
from .contenders import PEERS
from .models import COMPILE, MODELS, SIZES
from .problems import DTYPES, PRODUCTS, Problem

T = TypeVar("T")
EPILOG = """\
Lists are separated by commas. Examples:

  bench                                          the usual layers on this machine's GPU, or CPU
  bench --shapes 1024x4096 --tokens 512 --blocks 32,64
  bench --tokens 1,4,16,64 --shapes 8192x28672   decode
  bench --pattern even,power-law,one-full-row
  bench --model roberta-base                     a whole training step
"""


@dataclass(frozen=True)
class Defaults:
    """What is measured on a device unless told otherwise."""

    shapes: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]
    densities: tuple[float, ...]
    dtype: str
    seconds: float


DEFAULTS = {
    "cpu": Defaults(
        ((768, 3072),),
        (1, 128, 1024),
        ((16, 16), (32, 32), (64, 64)),
        (0.5, 0.25, 0.1),
        "float32",
        0.6,
    ),
    "cuda": Defaults(
        ((4096, 14336), (4096, 4096), (768, 3072)),
        (8192,),
        ((128, 128), (64, 64), (32, 32), (16, 16)),
        (0.5, 0.25, 0.1, 0.05),
        "bfloat16",
        0.1,
    ),
}


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; exits with a sentence where they make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m pytorch_block_sparse bench",
        description="Measures block-sparse layers beside nn.Linear and what else one could use.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", type=_device, help="cpu, cuda, cuda:1, … (a GPU if usable)")
    parser.add_argument(
        "--shapes", help="INxOUT or INxOUTxTOKENS, …; or a file as in benchmarks/shapes"
    )
    parser.add_argument("--tokens", type=_list(_positive), help="rows of x")
    parser.add_argument("--blocks", type=_list(_block), help="sides, or HEIGHTxWIDTH")
    parser.add_argument("--densities", type=_list(_density), help="shares of the blocks stored")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument(
        "--products", type=_list(_product), help=f"of {', '.join(PRODUCTS)} (all; up to 64 tokens "
        "the forward alone)"
    )  # fmt: skip
    parser.add_argument(
        "--pattern",
        type=_list(_pattern),
        default=["even"],
        help=f"of {', '.join(patterns.PATTERNS)} (%(default)s)",
    )
    parser.add_argument("--seconds", type=float, help="of timing for each product")
    parser.add_argument(
        "--peers", type=_list(_peer), help=f"only these of {', '.join(PEERS)}; none"
    )
    parser.add_argument(
        "--host", action="store_true", help="only the host's time of a call of a small layer"
    )
    parser.add_argument("--libxsmm", type=Path, help="the driver that `make bench` builds")
    parser.add_argument(
        "--limits", type=Path, help="what measures the CPU's limits; `make bench` builds it"
    )
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--plots", type=Path, help="a folder for pictures (needs matplotlib)")
    parser.add_argument(
        "--read",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="measure nothing: show, join and draw what earlier runs wrote",
    )
    model = parser.add_argument_group("whole models")
    model.add_argument("--model", choices=MODELS, help="a training step instead of products")
    model.add_argument("--size", choices=SIZES, default="full", help="(%(default)s)")
    model.add_argument("--batch", type=_positive, help="sequences in a batch (roberta-base: 32)")
    model.add_argument("--length", type=_positive, help="of a sequence (roberta-base: 512)")
    model.add_argument("--steps", type=_positive, default=20, help="to time (%(default)s)")
    model.add_argument(
        "--compile", choices=COMPILE, default="whole", help="by torch.compile (%(default)s)"
    )
    options = parser.parse_args(argv)
    if options.model is not None and len(options.blocks or [0]) > 1:
        parser.error("--blocks names several sizes, expected one for --model")
    if options.device is None:
        usable = _library.cuda_missing is None and torch.cuda.is_available()
        options.device = _device("cuda" if usable else "cpu")
    other = options.model or options.read or options.host
    try:
        options.problems = [] if other else list(_problems(options))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.dtype is None:
        options.dtype = DEFAULTS[options.device.type].dtype
    if options.seconds is None:
        options.seconds = DEFAULTS[options.device.type].seconds
    return options


def products_of(problem: Problem, asked: list[str] | None) -> tuple[str, ...]:
    """The products to measure, in the order of the table."""
    if asked is None:
        return PRODUCTS[:1] if problem.is_decode else PRODUCTS
    return tuple(product for product in PRODUCTS if product in asked)


def _problems(options: argparse.Namespace) -> Iterator[Problem]:
    """Those of a file, as far as the other options do not exclude them, or all combinations."""
    usual = DEFAULTS[options.device.type]
    if options.shapes is not None and Path(options.shapes).is_file():
        plain: list[Problem] = [
            p
            for p in problems.read(Path(options.shapes))
            if (options.tokens is None or p.tokens in options.tokens)
            and (options.blocks is None or (p.block_height, p.block_width) in options.blocks)
            and (options.densities is None or p.density in options.densities)
        ]
    else:
        plain = []
        for sizes in usual.shapes if options.shapes is None else _list(_shape)(options.shapes):
            tokens = options.tokens or sizes[2:] or usual.tokens
            plain += problems.combinations(
                [(sizes[0], sizes[1])],
                tokens,
                options.blocks or usual.blocks,
                options.densities or usual.densities,
            )
    for problem in plain:
        if problem.pattern != "even":  # a line of the file that says so
            yield problem
            continue
        for pattern in options.pattern:
            yield replace(problem, pattern=pattern)


def _list(element: Callable[[str], T]) -> Callable[[str], list[T]]:
    def parse(text: str) -> list[T]:
        return [element(part.strip()) for part in text.split(",")]

    return parse


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no device, expected cpu or cuda") from None
    if device.type not in DEFAULTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not supported, expected cpu or cuda")
    if device.type == "cuda":
        if _library.cuda_missing is not None:
            raise argparse.ArgumentTypeError(f"cuda cannot be used: {_library.cuda_missing}")
        if not torch.cuda.is_available():
            raise argparse.ArgumentTypeError("cuda cannot be used: torch finds no GPU")
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        elif device.index >= torch.cuda.device_count():
            raise argparse.ArgumentTypeError(
                f"{text!r} is not there, expected one of {torch.cuda.device_count()} GPUs"
            )
    return device


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _sides(text: str, counts: tuple[int, ...], expected: str) -> tuple[int, ...]:
    sides = text.split("x")
    if len(sides) not in counts or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return tuple(map(int, sides))


def _shape(text: str) -> tuple[int, ...]:
    try:
        return _sides(text, (2, 3), "a file, INxOUT or INxOUTxTOKENS")
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"argument --shapes: {error}") from None


def _block(text: str) -> tuple[int, int]:
    sides = _sides(text, (1, 2), "the side of a block or HEIGHTxWIDTH")
    return sides[0], sides[-1]


def _density(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a density above 0 and at most 1")
    return value


def _choice(text: str, choices: tuple[str, ...], what: str) -> str:
    if text not in choices:
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}, expected {', '.join(choices)}")
    return text


def _peer(text: str) -> str:
    return _choice(text, (*PEERS, "none"), "peer")


def _product(text: str) -> str:
    return _choice(text, PRODUCTS, "product")


def _pattern(text: str) -> str:
    return _choice(text, patterns.PATTERNS, "pattern")
