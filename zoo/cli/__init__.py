"""The `zoo` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """Run `zoo` with `args` (default: the process's own) and return the exit code."""
    try:
        from zoo.cli.shell import run
    except KeyboardInterrupt:
        print("error: interrupted before the work was done.", file=sys.stderr)
        return 130
    return run(args)
