# SPDX-License-Identifier: Apache-2.0
"""torch.export and AOTInductor round trips, the result loaded in a new process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from helpers import randn

from pytorch_block_sparse import BlockSparseLinear

TOKENS = {0: torch.export.Dim("tokens", min=1, max=4096)}


def model() -> torch.nn.Module:
    return torch.nn.Sequential(
        BlockSparseLinear(64, 48, density=0.5, block_shape=(16, 16), activation="gelu"),
        BlockSparseLinear(48, 32, density=0.5, block_shape=(16, 16), bias=False),
    ).eval()


def in_new_process(code: str, *args: object) -> None:
    """Runs `code` with `sys.argv[1:] = args`; the operators are loaded, nothing else is known."""
    prelude = "import sys, torch, pytorch_block_sparse.ops\n"
    command = [sys.executable, "-c", prelude + code, *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


CHECK = """
for tokens, x, y in torch.load(sys.argv[2]):
    torch.testing.assert_close(call(x), y)
"""


def expected_results(module: torch.nn.Module, path) -> None:
    cases = []
    for tokens in (1, 2, 5, 100):
        x = randn(tokens, 64, dtype=torch.float32)
        with torch.no_grad():
            cases.append((tokens, x, module(x)))
    torch.save(cases, path)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export_save_load(tmp_path, strict):
    module = model()
    x = randn(7, 64, dtype=torch.float32)
    program = torch.export.export(module, (x,), dynamic_shapes=(TOKENS,), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets == {"block_sparse.linear.default"}, "the operator stays whole"
    torch.export.save(program, tmp_path / "model.pt2")
    expected_results(module, tmp_path / "cases.pt")
    in_new_process(
        "call = torch.export.load(sys.argv[1]).module()" + CHECK,
        tmp_path / "model.pt2",
        tmp_path / "cases.pt",
    )


def test_exported_program_trains():
    module = model().train()
    x = randn(7, 64, dtype=torch.float32)
    exported = torch.export.export(module, (x,), dynamic_shapes=(TOKENS,)).module()
    grads = []
    for m in (module, exported):
        m.zero_grad()
        m(x).square().sum().backward()
        grads.append({n: p.grad for n, p in m.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    torch.testing.assert_close(grads[0], grads[1])


def test_aot_inductor_package(tmp_path):
    module = model()
    x = randn(7, 64, dtype=torch.float32)
    with torch.no_grad():
        program = torch.export.export(module, (x,), dynamic_shapes=(TOKENS,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    expected_results(module, tmp_path / "cases.pt")
    in_new_process(
        "call = torch._inductor.aoti_load_package(sys.argv[1])" + CHECK,
        tmp_path / "model.pt2",
        tmp_path / "cases.pt",
    )


# An AOTInductor package under torch 2.11 hands a dtype on as another (float32 is serialised as 7,
# which its executor takes for float64): there the default has to do, which is the same here.
OUT_DTYPE = None if torch.__version__.startswith("2.11.") else torch.float32


class Gradients(torch.nn.Module):
    """All operators with a result, as a graph embeds them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = BlockSparseLinear(64, 48, density=0.5, block_shape=(16, 16)).weight

    def forward(self, x):
        ops, values, index = torch.ops.block_sparse, self.weight.values, self.weight.index
        y, z = ops.linear_preactivation(x, values, index, None, 48, "silu")
        dx = ops.linear_input_grad(y, values, index, 64)
        dvalues = ops.linear_weight_grad(y, x, index, *values.shape, OUT_DTYPE)
        return y, z, dx, dvalues, ops.block_norms(y, x, 16, 16)


def test_aot_inductor_package_of_every_operator(tmp_path):
    module = Gradients().eval()
    x = randn(7, 64, dtype=torch.float32)
    with torch.no_grad():
        program = torch.export.export(module, (x,), dynamic_shapes=(TOKENS,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "m.pt2"))
    expected_results(module, tmp_path / "cases.pt")
    in_new_process(
        "call = torch._inductor.aoti_load_package(sys.argv[1])"
        + CHECK.replace("call(x), y", "tuple(call(x)), tuple(y)"),
        tmp_path / "m.pt2",
        tmp_path / "cases.pt",
    )
