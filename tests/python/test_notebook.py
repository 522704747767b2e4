# SPDX-License-Identifier: Apache-2.0
"""The notebook in examples/ runs, cell by cell, and shows what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.host

NOTEBOOK = Path(__file__).parents[2] / "examples" / "ModelSparsification.ipynb"


def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text())
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    assert names["losses"][-1] < 0.8 * names["losses"][0]
    assert names["model"].num_parameters() < 0.7 * names["dense_parameters"]
    assert names["before"] < 0.4
    assert names["found"]() >= 0.8
    assert len(names["trainer"].history) == 30
    assert names["log"].with_name("pattern.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert r"roberta\.encoder\.layer\.0\.output\.dense" in printed
    assert "of the teacher's blocks" in printed
