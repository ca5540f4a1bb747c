"""`zoo verify`: re-hash a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli import output
from zoo.errors import RequestError, plain


def verify(
    path: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The directory of a saved model, or a name whose weights are packaged."),
    ],
    json: output.JsonOption = False,
) -> None:
    """Check every file of a saved model against the hashes in its manifest."""
    path = _directory(path)
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


def _directory(path: Path) -> Path:
    """The directory that is meant: the one named, else that of the packaged weights of a model of that name."""
    from zoo import catalog
    from zoo.loading.weights import packaged_at
    from zoo.system.writing import not_a_directory

    if path.is_dir():
        return path
    if not_a_directory(path):
        raise RequestError(f"{path} is not a directory.")
    spec = catalog.catalogue().get(str(path))
    if spec is None:
        raise RequestError(f"There is no directory {path}.")
    packaged = packaged_at(spec)
    if packaged is None or not (packaged / "zoo.json").is_file():
        raise RequestError(
            f"{path} is a name of the catalogue, and none of its weights are packaged: name the directory of a saved model."
        )
    return packaged
