# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from pytorch_block_sparse import _library

DEVICES = ["cpu"]
if _library.cuda_missing is None and torch.cuda.is_available():
    DEVICES.append("cuda")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device that has a backend here."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
