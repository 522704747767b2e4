# SPDX-License-Identifier: Apache-2.0
"""Tables in Markdown, and the sections of documents that are written by program."""

from __future__ import annotations

from pathlib import Path

WRITTEN = "written by `python -m benchmarks.readme`, checked by the tests"


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def heading(*cells: str) -> list[str]:
    """The first lines of a table."""
    return [row(*cells), "| --- " * len(cells) + "|"]


def number(value: float | None) -> str:
    """With two decimals; nothing for None."""
    return "" if value is None else f"{value:.2f}"


def marked(name: str, text: str) -> str:
    """A section with its marks."""
    return f"<!-- {name}: {WRITTEN} -->\n{text}<!-- /{name} -->\n"


def write(path: Path, name: str, text: str) -> None:
    """Replaces a section of a document.

    Raises:
        ValueError: if the document has none of that name.
    """
    head, _, rest = path.read_text().partition(f"<!-- {name}: {WRITTEN} -->\n")
    _, end, tail = rest.partition(f"<!-- /{name} -->\n")
    if not end:
        raise ValueError(f"{path} has no section marked {name!r}")
    path.write_text(head + marked(name, text) + tail)
