# SPDX-License-Identifier: Apache-2.0
"""What a new user meets first: the version, the README, the documentation, the make targets."""

from __future__ import annotations

import json
import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.markdown import marked

pytestmark = pytest.mark.host

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_version_is_that_of_cmake() -> None:
    version = re.search(
        r"project\(block_sparse VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text()
    )
    assert version is not None
    assert metadata.version("pytorch-block-sparse") == version[1]


def test_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert "roberta.encoder.layer.0.intermediate.dense" in capsys.readouterr().out


def test_documents_quote_the_published_results() -> None:
    for (document, name), section in readme.sections().items():
        text = document.read_text()
        assert marked(name, section) in text, "run python -m benchmarks.readme"


def test_uneven_patterns_are_not_in_the_table_of_the_readme() -> None:
    results = json.loads(readme.RESULTS.read_text())
    table = readme.render(results)
    uneven = [
        row | {"pattern": "power-law", "ratio": dict.fromkeys(row["ratio"], 99.0)}
        for row in results["results"]
    ]
    assert readme.render(results | {"results": results["results"] + uneven}) == table


def test_published_results_are_what_the_readme_may_claim() -> None:
    results = json.loads(readme.RESULTS.read_text())
    for row in results["results"]:
        ours, peer = row["ratio"]["block_sparse"], row["ratio"].get("torch BSR", 0)
        assert ours > peer, row
        at_half = row["density"] == 0.5 and row["block_height"] == 32
        if row["product"] == "forward" and row["tokens"] >= 128 and at_half:
            assert ours >= 1.5, row
    host = results["host_microseconds"]["forward"]
    assert host["block_sparse"] <= host["nn.Linear"] + 5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_index_of_the_documentation_is_complete() -> None:
    index = (ROOT / "docs/README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (help .*)$", makefile, re.MULTILINE)
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # Parts of `make test` are found through CONTRIBUTING.
    expected = set(phony.split()) - {"test-cpp", "test-python"}
    assert set(re.findall(r"^  make (\S+)", listed, re.MULTILINE)) == expected
