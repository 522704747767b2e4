# SPDX-License-Identifier: Apache-2.0
"""What the processor does at most, through benchmarks/cpp/limits.cc: `make bench` builds it."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

from .problems import DTYPES, Problem


class Limits:
    """The rates of as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the library at `path` cannot be loaded."""
        library = ctypes.CDLL(str(path.absolute()))
        self._peaks = {"float32": library.block_sparse_fma_peak}
        # Sums of float16 are formed in float32 from widened operands.
        self._peaks["float16"] = self._peaks["float32"]
        self._peaks["bfloat16"] = library.block_sparse_bf16_peak
        for peak in self._peaks.values():
            peak.argtypes, peak.restype = [ctypes.c_int], ctypes.c_double
        bandwidth = library.block_sparse_read_bandwidth
        bandwidth.argtypes, bandwidth.restype = [ctypes.c_int64, ctypes.c_int], ctypes.c_double
        self._bandwidth = cache(lambda nbytes, threads: float(bandwidth(nbytes, threads)))

    def flops_per_second(self, dtype: str) -> float:
        """Of multiply-adds on registers (bfloat16: on tiles, where there are any), at this moment:
        clocks change with the load."""
        return float(self._peaks[dtype](torch.get_num_threads()))

    def read_bandwidth(self, nbytes: int) -> float:
        """Bytes a second at which as many are read again and again; measured once for a size."""
        return self._bandwidth(nbytes, torch.get_num_threads())

    def seconds(self, problem: Problem, product: str, dtype: str) -> float:
        """The least that a product can take: its flops, or reading the stored blocks from the cache
        that holds them."""
        stored = problem.stored_elements() * DTYPES[dtype].itemsize
        flops = problem.flops(product) / self.flops_per_second(dtype)
        return max(flops, stored / self.read_bandwidth(stored))
