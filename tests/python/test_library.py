# SPDX-License-Identifier: Apache-2.0
"""What the shared library depends on, and how it is found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pytorch_block_sparse import _library

pytestmark = pytest.mark.host


@pytest.fixture(params=[_library.LIBRARY, _library.CUDA_LIBRARY])
def library(request: pytest.FixtureRequest) -> Path:
    path = _library.find_library(request.param)
    if path is None:
        pytest.skip(f"{request.param} was not built")
    return path


def readelf(path: Path, *options: str) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    command = ["readelf", "--wide", *options, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_needs_torch_and_the_c_runtime_alone(library):
    needed = set(re.findall(r"\(NEEDED\).*\[(.*?)\]", readelf(library, "-d")))
    allowed = {"libtorch_cpu.so", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}
    allowed |= {"libpthread.so.0", "ld-linux-x86-64.so.2"}
    assert "libtorch_cpu.so" in needed
    assert needed <= allowed, "no CUDA library, no libtorch_cuda, no libtorch_python, no libc10"


def test_has_no_path_of_the_build_machine(library):
    assert not re.search(r"\((RPATH|RUNPATH)\)", readelf(library, "-d"))


def test_uses_the_stable_abi_alone(library):
    symbols = readelf(library, "--dyn-syms")
    undefined = re.findall(r"UND (\S+)", symbols)
    assert any(name.startswith("aoti_torch_") for name in undefined)
    assert not [
        n for n in undefined if n.startswith(("Py", "_Py", "_ZN2at", "_ZN3c10", "_ZN5torch", "cu"))
    ]


def test_cuda_code_of_every_generation():
    """Machine code for those that there are, and PTX that later ones compile at their first call.

    The Hopper kernels exist for sm_90a alone, beside it.
    """
    path = _library.find_library(_library.CUDA_LIBRARY)
    tool = shutil.which("cuobjdump")
    if path is None or tool is None:
        pytest.skip("there is no CUDA library, or no cuobjdump")
    listed = {
        kind: re.findall(rf"sm_\w+(?=\.{suffix})", subprocess.run(
            [tool, f"--list-{kind}", str(path)], check=True, capture_output=True, text=True
        ).stdout)
        for kind, suffix in (("elf", "cubin"), ("ptx", "ptx"))
    }  # fmt: skip
    assert {"sm_80", "sm_86", "sm_89", "sm_90a"} <= set(listed["elf"])
    assert set(listed["ptx"]) == {"sm_90"}
    # Whatever is not of Hopper alone is there as PTX too.
    assert listed["ptx"].count("sm_90") == listed["elf"].count("sm_80")


def run_import(environment: dict[str, str]) -> str:
    result = subprocess.run(
        [sys.executable, "-c", "import pytorch_block_sparse.ops"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert result.returncode != 0
    return result.stderr.strip().splitlines()[-1]


def test_missing_library_is_named(tmp_path):
    missing = tmp_path / "nowhere.so"
    last = run_import({"BLOCK_SPARSE_LIBRARY": str(missing)})
    assert last.startswith("ImportError: libblock_sparse_torch.so was not found")
    assert f"BLOCK_SPARSE_LIBRARY={missing} is not a file" in last


def test_broken_library_is_named(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    last = run_import({"BLOCK_SPARSE_LIBRARY": str(broken)})
    assert last.startswith(f"ImportError: {broken} cannot be loaded with torch")


def test_torch_without_cuda_goes_on_without_the_backend(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(_library, "find_library", lambda name: Path("/there") / name)
    assert _library._load_cuda() == f"torch {torch.__version__} is built without CUDA"


def test_cuda_library_that_cannot_be_loaded_is_named(monkeypatch, tmp_path):
    broken = tmp_path / _library.CUDA_LIBRARY
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_library, "find_library", lambda name: broken)
    reason = _library._load_cuda()
    assert reason is not None
    assert reason.startswith(f"{_library.CUDA_LIBRARY} cannot be loaded: ")


@pytest.mark.parametrize("version", ["2.10.0", "2.9.1+cu128", "1.13.0"])
def test_old_torch_is_refused(version):
    with pytest.raises(ImportError, match=f"needs torch >= 2.11, found {re.escape(version)}"):
        _library._check_torch(version)


@pytest.mark.parametrize("version", ["2.11.0+cpu", "2.12.0a0+git1234", "3.0.0"])
def test_new_torch_is_accepted(version):
    _library._check_torch(version)


def test_library_is_searched_in_every_folder_of_the_package(tmp_path, monkeypatch):
    """An editable install has its sources in one folder and what was built in another."""
    built = tmp_path / "site-packages" / "pytorch_block_sparse"
    (built / "lib").mkdir(parents=True)
    (built / "lib" / _library.LIBRARY).touch()
    monkeypatch.delenv("BLOCK_SPARSE_LIBRARY", raising=False)
    package = sys.modules["pytorch_block_sparse"]
    monkeypatch.setattr(package, "__path__", [str(tmp_path / "sources"), str(built)])
    assert _library.find_library(_library.LIBRARY) == built / "lib" / _library.LIBRARY
    assert _library.find_library("libother.so") is None


def test_schemas_are_the_documented_ones() -> None:
    """They are final: exported programs embed them, so changing one is no refactoring."""
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    documented = text.split("## Operators")[1].split("```")[1].strip().splitlines()
    registered = {
        name.removeprefix("block_sparse::"): schema
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("block_sparse::")
        for schema in torch._C._jit_get_schemas_for_operator(name)
    }
    assert {line.split("(")[0]: line for line in documented} == {
        name: str(schema).removeprefix("block_sparse::") for name, schema in registered.items()
    }
