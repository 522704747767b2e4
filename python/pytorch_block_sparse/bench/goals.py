# SPDX-License-Identifier: Apache-2.0
"""How fast is fast enough: the goals that this project set itself.

On CUDA they were set for an H100.
"""

from __future__ import annotations

from collections.abc import Collection

from .problems import Problem

DENSITIES = (0.5, 0.25, 0.1, 0.05)
# (in, out) -> side of a block -> ratio at each of DENSITIES, from 4096 tokens on.
CUDA = {
    (4096, 14336): {
        128: (1.85, 3.6, 8.5, 11.0),
        64: (1.7, 3.2, 6.5, 9.0),
        32: (1.4, 2.6, 5.0, 7.5),
        16: (0.95, 1.7, 3.0, 4.5),
    },
    (4096, 4096): {
        128: (1.7, 3.2, 5.5, 6.0),
        64: (1.6, 2.9, 5.0, 5.5),
        32: (1.3, 2.3, 4.0, 4.5),
    },
}
# Below these no small block may be, at 4096→14336.
FLOORS = {32: (1.2, 2.2, 4.2, 5.5), 16: (0.6, 1.05, 1.9, 2.6)}
# What a peer, STK, reaches at 4096→14336, blocks of 128, density .05.
WEIGHT_GRADIENT_128_005 = 12.6
CUDA_TOKENS = 4096
FEW_TOKENS = 32
"""On a CPU: up to so many, reading W counts as much as the multiplications."""
COPY_FRACTION = 0.8
"""Up to 64 tokens: stored bytes over time, in copy bandwidths, for a W larger than the L2."""
FFMA_FRACTION = 0.8
"""float32 on a GPU: multiplications and additions on stored blocks, of what FFMA could do."""
EVEN_RATIO = {"cpu": 1 / 1.15, "cuda": 1 / 1.2}
"""The time of the even pattern over that of an uneven one with as many blocks."""
GAIN_KEPT = {"cpu": 0.9, "cuda": 0.85}
"""The share of what the kernels of a whole model save that its step gets faster by."""
HOST_RATIOS = {"forward": 1.0, "forward + backward": 1 / 1.1}
"""On a GPU, nn.Linear's host time of a call over ours."""
HOST_MICROSECONDS = 3.0
"""On a CPU, what the host may take longer than nn.Linear for a call without gradients ..."""
HOST_TRAINING = 1 / 1.2
"""... and nn.Linear's time over ours with gradients."""


def ratio(
    problem: Problem, product: str, dtype: str, device: str, features: Collection[str] = ()
) -> float | None:
    """The ratio aimed at; None where there is no goal.

    Args:
        problem, product: what is measured.
        dtype: a key of `problems.DTYPES`.
        device: "cpu" or "cuda".
        features: the instruction sets of the CPU.
    """
    if problem.block_height != problem.block_width or problem.pattern != "even":
        return None
    if product == "step":
        return None
    if device == "cuda":
        return None if dtype == "float32" else _cuda(problem, product)
    times_density = _cpu(problem, dtype, features)
    return None if times_density is None else times_density / problem.density


def floor(problem: Problem, product: str, dtype: str) -> float | None:
    """The ratio that a small block must reach on a GPU in any case; None where there is none."""
    goal = ratio(problem, product, dtype, "cuda")
    shape = (problem.in_features, problem.out_features)
    row = FLOORS.get(problem.block_height)
    if goal is None or row is None or shape != (4096, 14336) or problem.is_decode:
        return None
    return row[DENSITIES.index(problem.density)]


def limit_fraction(
    problem: Problem, product: str, dtype: str, features: Collection[str] = ()
) -> float | None:
    """On a CPU: the share aimed at of the least time that its instructions and caches allow."""
    if problem.pattern != "even" or product == "step":
        return None
    thin, thick = sorted((problem.block_height, problem.block_width))
    tiles = "amx_bf16" in features
    if dtype == "float16" or (dtype == "bfloat16" and not tiles):
        return None
    if problem.tokens <= FEW_TOKENS:
        return 0.8 if thin >= 16 else None
    if problem.tokens < 128:
        return None
    if dtype == "bfloat16":
        return None if thin < 32 else 0.45 if problem.density <= 0.1 else 0.6
    if thin >= 16:
        return 0.88 if thin >= 32 else 0.8
    return 0.65 if thick >= 8 else None


def host_ratio(what: str, device: str, dense_microseconds: float) -> float | None:
    """nn.Linear's host time of a call over ours that is aimed at; None where there is no goal.

    Args:
        what: a key of `host.host_microseconds`.
        device: "cpu" or "cuda".
        dense_microseconds: what nn.Linear takes.
    """
    if device == "cuda":
        return HOST_RATIOS.get(what)
    if what == "forward":
        return dense_microseconds / (dense_microseconds + HOST_MICROSECONDS)
    return HOST_TRAINING if what == "forward + backward" else None


def copy_fraction(problem: Problem, product: str, itemsize: int, l2_bytes: int) -> float | None:
    """The share of copy bandwidth aimed at on a GPU; None where there is no goal."""
    large = problem.stored_elements() * itemsize > l2_bytes
    return COPY_FRACTION if problem.is_decode and large and product == "forward" else None


def _cuda(problem: Problem, product: str) -> float | None:
    shape, block = (problem.in_features, problem.out_features), problem.block_height
    if problem.is_decode:
        return 1.0 if problem.density <= 0.5 and product == "forward" else None
    if problem.tokens < CUDA_TOKENS:
        return None
    if shape == (768, 3072):
        return 1.0 if problem.density == 0.5 and block >= 32 else None
    row = CUDA.get(shape, {}).get(block)
    if row is None or problem.density not in DENSITIES:
        return None
    if (shape[1], block, problem.density, product) == (14336, 128, 0.05, "weight gradient"):
        return WEIGHT_GRADIENT_128_005
    return row[DENSITIES.index(problem.density)]


def _cpu(problem: Problem, dtype: str, features: Collection[str]) -> float | None:
    """The goal for ratio x density.

    From 128 tokens on in float32, a twentieth better than the work saved promises; for a single
    token, which only streams W, as much as is saved.
    """
    if problem.block_height < 16:
        return None
    if dtype == "bfloat16":
        if "amx_bf16" not in features or problem.tokens < 128:
            return None
        return 1.5 if problem.block_height >= 32 else 1.0
    if dtype != "float32":
        return None
    if problem.tokens == 1:
        return 1.0
    return 1.05 if problem.tokens >= 128 else None
