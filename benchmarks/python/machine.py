# SPDX-License-Identifier: Apache-2.0
"""What the timings were taken with."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

# Those that kernels are chosen by.
_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")


def describe() -> dict[str, Any]:
    """Machine, versions and date, for JSON."""
    cpu = _cpuinfo()
    flags = set(cpu.get("flags", "").split())
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": cpu.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "features": [name for name in _FEATURES if name in flags],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "commit": _commit(),
        "load_before": os.getloadavg()[0],
    }


def _cpuinfo() -> dict[str, str]:
    """The entries of the first processor in /proc/cpuinfo."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _commit() -> str | None:
    """The commit that was measured, with -dirty where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
