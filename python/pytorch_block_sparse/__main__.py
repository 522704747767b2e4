# SPDX-License-Identifier: Apache-2.0
"""python -m pytorch_block_sparse bench: measures this package beside what else one could use."""

from __future__ import annotations

import importlib.util
import sys

USAGE = "usage: python -m pytorch_block_sparse bench [options]   (bench --help lists them)"


def main(argv: list[str] | None = None) -> int:
    """The exit code of the command that `argv` names."""
    command, *options = (sys.argv[1:] if argv is None else argv) or [""]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command != "bench":
        print(f"the command is {command!r}, expected 'bench'\n{USAGE}", file=sys.stderr)
        return 2
    if importlib.util.find_spec("rich") is None:
        print(
            "bench needs rich, which is not installed: pip install 'pytorch-block-sparse[bench]'",
            file=sys.stderr,
        )
        return 2
    from .bench.cli import main as bench  # not before it is asked for: it takes its time

    return bench(options)


if __name__ == "__main__":
    sys.exit(main())
