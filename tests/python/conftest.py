# SPDX-License-Identifier: Apache-2.0
"""One suite for every device.

Each test runs once for each device that has a backend here, with that device as torch's default: a
layer, or a tensor of a test, is made there unless it says otherwise. `--device` chooses one.
Tests marked `host` have nothing to do with a device, or are about the CPU alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pytorch_block_sparse import _library


def _cuda_missing() -> str | None:
    if _library.cuda_missing is not None:
        return _library.cuda_missing
    return None if torch.cuda.is_available() else "torch finds no GPU"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), help="run the tests on this device alone")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "host: runs on the CPU only, whatever devices there are")
    config.addinivalue_line("markers", "gpu: runs on cuda only")
    if config.getoption("--device") == "cuda" and _cuda_missing() is not None:
        raise pytest.UsageError(f"--device cuda: {_cuda_missing()}")


_NOWHERE = "nowhere"


def _devices_of(item: pytest.Item, config: pytest.Config) -> list[str]:
    devices = {"cpu"} if _cuda_missing() else {"cpu", "cuda"}
    if item.get_closest_marker("host"):
        devices &= {"cpu"}
    if item.get_closest_marker("gpu"):
        devices &= {"cuda"}
    chosen = config.getoption("--device")
    return sorted(device for device in devices if chosen in (None, device)) or [_NOWHERE]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    definition: pytest.Item = metafunc.definition
    metafunc.parametrize("device", _devices_of(definition, metafunc.config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out, instead of skipping one by one, what has no device here."""
    idle = [item for item in items if item.callspec.params["device"] == _NOWHERE]  # type: ignore[attr-defined]
    if idle:
        config.hook.pytest_deselected(items=idle)
        items[:] = [item for item in items if item not in set(idle)]


@pytest.fixture(autouse=True)
def _default_device(device: str) -> Iterator[None]:
    if device == "cpu":
        yield  # torch's own default, without the cost of a mode
    else:
        with torch.device(device):
            yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
