"""`zoo run` of models that make vectors: one line of JSON each, or one file of all.

The file is NumPy's own .npy: one array of float32 (N, D), which every tool for vectors reads and which runs no code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli import output
from zoo.errors import OutputError

if TYPE_CHECKING:
    from zoo.loading.locate import Located
    from zoo.model.model import Model

SUFFIX = ".npy"


def makes_vectors(located: Located) -> bool:
    """Whether a model makes vectors; its skeleton is built only where its name does not tell what it is for."""
    from zoo.family.embedding import Embedding
    from zoo.loading.load import load

    if Embedding.name not in located.family.tasks:
        return False
    if located.manifest:
        return located.manifest.spec.task == Embedding.name
    spec = load(located, device="meta").spec if located.spec is None or ":" in located.asked else located.spec
    return isinstance(located.family.task(spec.task), Embedding)


def lines_of(text: str) -> list[str]:
    """The sentences of a text that is piped in, one a line."""
    return [line for line in text.splitlines() if line.strip()]


def require_writable(out: Path | None, *, force: bool) -> None:
    """Refuse a file that vectors cannot go to, before any work."""
    if out is None:
        return
    if out.suffix.lower() != SUFFIX:
        named = out.with_suffix(SUFFIX) if out.name else f"vectors{SUFFIX}"
        raise OutputError(
            f"{out}: vectors are written as NumPy's {SUFFIX}; name it {named}, or print them with --json."
        )
    require_free([out], force=force)


def require_free(files: Sequence[Path], *, force: bool) -> None:
    """Refuse files, all of one folder, that are there already or cannot be written."""
    from zoo.system.writing import why_unwritable

    for path in files:
        if path.is_dir():
            raise OutputError(f"{path} is a directory; name a file.")
        if path.exists() and not force:
            raise OutputError(f"{path} is there already; choose another --out, or pass --force to replace it.")
    if reason := why_unwritable(files[0].absolute().parent):
        raise OutputError(f"{files[0]} cannot be written: {reason}.")


def embed(model: Model, asked: str, prompt: Any, options: Mapping[str, Any], *, out: Path | None, json: bool) -> None:
    """Print or write the vectors of what was asked."""
    import numpy as np

    from zoo.family.embedding import shown

    with output.status("Embedding"):
        start = time.perf_counter()
        vectors_ND = np.atleast_2d(model.generate(prompt, **options))
        seconds = time.perf_counter() - start
    about: dict[str, Any] = {
        "model": asked,
        **({} if prompt is None else {"prompt": prompt}),
        **options,
        "seconds": seconds,
    }
    if out is not None:
        about["file"] = {"path": str(out), "shape": list(vectors_ND.shape), "bytes": _write(vectors_ND, out)}
    else:
        about["vectors"] = vectors_ND.tolist()
    if json:
        output.print_json(about)
    elif out is not None:
        print(f"{out}  {vectors_ND.shape[0]} x {vectors_ND.shape[1]}")
    else:
        print(*map(shown, vectors_ND), sep="\n")


def _write(vectors_ND: Any, path: Path) -> int:
    """Write vectors whole or not at all; return the bytes of the file."""
    import io

    import numpy as np

    from zoo.system.writing import replace_file, writing

    content = io.BytesIO()
    np.save(content, vectors_ND.astype(np.float32), allow_pickle=False)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())
    return len(content.getvalue())
