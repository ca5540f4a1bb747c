"""`modules.json` names a class by its import path, and so does the activation of a Dense module: sentence-transformers, told
to trust the author, imports both. Another one points out of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from victim import Commands, all_of, checkpoint, code

OWN = "sentence_transformers.models"
DENSE = {"in_features": 32, "out_features": 8, "activation_function": "os.system"}


def prepare(place: Path, canary: Path) -> Commands:
    folder = checkpoint(place)
    (folder / "evil.py").write_text(code(canary))
    others = [Path(shutil.copytree(folder, place / name)) for name in ("activation", "outside")]
    _modules(folder, [("", f"{OWN}.Transformer"), ("1_Pooling", "evil.Pooling")])
    _modules(others[0], [("", f"{OWN}.Transformer"), ("1_Pooling", f"{OWN}.Pooling"), ("2_Dense", f"{OWN}.Dense")])
    (others[0] / "2_Dense").mkdir()
    (others[0] / "2_Dense" / "config.json").write_text(json.dumps(DENSE))
    _modules(others[1], [("", f"{OWN}.Transformer"), ("../evil", f"{OWN}.Pooling")])
    return [
        *all_of(folder, "asks for code of its own"),
        *all_of(others[0], "the activation 'os.system' is none of torch's"),
        *all_of(others[1], "names a path outside of the folder"),
    ]


def _modules(folder: Path, modules: list[tuple[str, str]]) -> None:
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
