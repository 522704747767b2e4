# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the shared libraries that hold the operators.

One library serves every torch from 2.11 on, with CUDA or without. The CUDA backend is a library of
its own: where it is missing or cannot be loaded, the reason is kept and the CPU goes on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_load_library: Callable[[str], None] = torch.ops.load_library

OLDEST_TORCH = (2, 11)
LIBRARY = "libblock_sparse_torch.so"
CUDA_LIBRARY = "libblock_sparse_torch_cuda.so"


def find_library(name: str) -> Path | None:
    """Path of a shared library of this package, or None.

    `BLOCK_SPARSE_LIBRARY` names the file of the main library, whose folder then holds the others;
    else `lib/` is searched in every folder that the package consists of (an editable install has
    two: the sources, and site-packages with what was built).
    """
    override = os.environ.get("BLOCK_SPARSE_LIBRARY")
    if override:
        path = Path(override)
        candidates = [path if name == LIBRARY else path.with_name(name)]
    else:
        candidates = [Path(p) / "lib" / name for p in sys.modules[__package__].__path__]
    return next((path for path in candidates if path.is_file()), None)


def _check_torch(version: str) -> None:
    major, minor = version.split(".")[:2]
    if (int(major), int(minor)) < OLDEST_TORCH:
        raise ImportError(
            f"pytorch_block_sparse needs torch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}, found "
            f"{version}; upgrade torch, for example with `pip install -U torch`"
        )


def _load_main() -> None:
    _check_torch(torch.__version__)
    path = find_library(LIBRARY)
    if path is None:
        override = os.environ.get("BLOCK_SPARSE_LIBRARY")
        where = (
            f"BLOCK_SPARSE_LIBRARY={override} is not a file"
            if override
            else f"it is not in lib/ of {list(sys.modules[__package__].__path__)}"
        )
        raise ImportError(
            f"{LIBRARY} was not found: {where}; install the package with `pip install .` or name "
            "the file in BLOCK_SPARSE_LIBRARY"
        )
    try:
        _load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"{path} cannot be loaded with torch {torch.__version__}: {error}"
        ) from error


def _load_cuda() -> str | None:
    """Loads the CUDA backend; the reason if that is not possible."""
    path = find_library(CUDA_LIBRARY)
    if path is None:
        return "this build of pytorch_block_sparse has no CUDA backend"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        _load_library(str(path))
    except OSError as error:
        return f"{path.name} cannot be loaded: {error}"
    return None


_load_main()

#: Why there is no CUDA backend; None if there is one.
cuda_missing: str | None = _load_cuda()


def has_backend(device: torch.device) -> bool:
    """Whether the operators can run on tensors of a device."""
    return device.type == "cpu" or (device.type == "cuda" and cuda_missing is None)
