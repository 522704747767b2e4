# SPDX-License-Identifier: Apache-2.0
"""What the timings were taken with."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

# Those that kernels are chosen by.
_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
_PEERS = ("triton", "stanford-stk", "blksprs")
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions and date, for JSON."""
    cpu = _cpuinfo()
    about = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": cpu.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "features": cpu_features(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "version": _version("pytorch-block-sparse"),
        "commit": _commit(),
        "load_before": os.getloadavg()[0],
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "gpu_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "ffma_gflops": _ffma_gflops(properties),
            "driver": _of_gpu("driver_version"),
            "cuda": torch.version.cuda,
        }
        about["peers"] = {name: v for name in _PEERS if (v := _version(name)) is not None}
    return about


def cpu_features() -> list[str]:
    """The instruction sets of this CPU that matter here."""
    flags = set(_cpuinfo().get("flags", "").split())
    return [name for name in _FEATURES if name in flags]


def copy_bandwidth(device: torch.device, nbytes: int | None = None) -> float:
    """Bytes a second that a copy within the memory of `device` reads and writes, together."""
    nbytes = COPY_BYTES[device.type] if nbytes is None else nbytes
    source = torch.ones(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(8):
        _synchronize(device)
        begin = time.perf_counter()
        target.copy_(source)
        _synchronize(device)
        times.append(time.perf_counter() - begin)
    return 2 * nbytes / statistics.median(times[1:])


def _ffma_gflops(properties: Any) -> float | None:
    """float32 multiplications and additions a second, in 1e9, that a GPU could do at best."""
    megahertz = _of_gpu("clocks.max.sm")
    if megahertz is None:
        return None
    lanes = 64 if (properties.major, properties.minor) == (8, 0) else 128
    return 2e-3 * lanes * float(properties.multi_processor_count) * float(megahertz)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpuinfo() -> dict[str, str]:
    """The entries of the first processor in /proc/cpuinfo."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _of_gpu(what: str) -> str | None:
    return _answer("nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that was measured, with -dirty where files differ from it; None outside of git,
    where BLOCK_SPARSE_COMMIT may name it."""
    named = os.environ.get("BLOCK_SPARSE_COMMIT")
    if named:
        return named
    here = str(Path(__file__).parent)
    # An installed package may lie in somebody else's repository.
    if _answer("git", "-C", here, "ls-files", "--error-unmatch", __file__) is None:
        return None
    return _answer(
        "git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"
    )


def _answer(*command: str) -> str | None:
    """What a command prints; None if it fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
