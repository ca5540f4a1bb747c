"""`zoo verify`: re-hash a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli import output
from zoo.errors import RequestError, plain


def verify(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a saved model.")],
    json: output.JsonOption = False,
) -> None:
    """Check every file of a saved model against the hashes in its manifest."""
    from zoo.system.writing import not_a_directory

    if not path.is_dir():
        raise RequestError(f"{path} is not a directory." if not_a_directory(path) else f"There is no directory {path}.")
    with output.status(f"Hashing {path}"):
        from zoo.artifact import store

        problems = store.verify(path)
    if json:
        found = [{"file": str(file), "problem": problem} for file, problem in problems]
        output.print_json({"path": str(path), "ok": not problems, "problems": found})
    else:
        for file, problem in problems:
            print(f"{plain(file)}: {problem}")
        print(
            f"{path}: {len(problems)} of its files are not as saved."
            if problems
            else f"{path}: every file is as saved."
        )
    if problems:
        raise typer.Exit(1)
