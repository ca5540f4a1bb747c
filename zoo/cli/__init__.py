"""The `zoo` command."""

from __future__ import annotations

from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """Run `zoo` with `args` (default: the process's own) and return the exit code."""
    from zoo.cli.shell import run

    return run(args)
