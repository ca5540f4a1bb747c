"""What attacks start from: an honest artifact, an honest checkpoint, a recipe; and how a manifest is made to fit again."""

from __future__ import annotations

import json
import shutil
import struct
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny import checkpoint as tiny_checkpoint
from zoo_compress import apply

import zoo
from zoo.artifact.manifest import manifest_text
from zoo.system.hashing import digests_of

Commands = list[tuple[list[str], str]]


@cache
def _made(folder: Path) -> Path:
    """An artifact with two stages, made once."""
    tiny_checkpoint(folder / "checkpoint")
    model = zoo.load(folder / "checkpoint")
    apply(model, "inherit", {"layers": "first:2"})
    apply(model, "quantize.int8")
    model.save(folder / "artifact")
    return folder


def artifact(place: Path) -> Path:
    """A fresh copy of the honest artifact."""
    return Path(shutil.copytree(_made(place.parent / "honest") / "artifact", place / "artifact"))


def checkpoint(place: Path) -> Path:
    """A fresh copy of the honest transformers checkpoint."""
    return Path(shutil.copytree(_made(place.parent / "honest") / "checkpoint", place / "checkpoint"))


def all_of(folder: Path, says: str, *, runs: bool = True) -> Commands:
    """The commands somebody would try on a model folder; `says` is expected of those that read all of it."""
    return (
        [(["run", str(folder), "--prompt", "w5 w6", "--max-new-tokens", "2"], says)]
        if runs
        else [(["info", str(folder)], says)]
    )


def chats(folder: Path, says: str) -> Commands:
    """The command that renders the chat template of a model folder."""
    return [(["run", str(folder), "--chat", "--prompt", "w5 w6", "--max-new-tokens", "2"], says)]


def change(path: Path, **values: Any) -> None:
    """Set top-level keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "zoo.json").read_text())
    return found


def seal(folder: Path, data: dict[str, Any] | None = None) -> None:
    """Make the manifest fit the files again, as an attacker would."""
    data = data or manifest(folder)
    for name in data["files"]:
        file = folder / name
        if file.is_file():
            data["files"][name] = digests_of(file)
    (folder / "zoo.json").write_text(manifest_text(data))


def header(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the body of a safetensors file."""
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write(file: Path, head: dict[str, Any] | bytes, body: bytes) -> None:
    """A safetensors file with that header."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


class Payload:
    """Unpickled, it writes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.canary,)  # type: ignore[return-value]


def pickle_to(file: Path, canary: Path) -> None:
    """A pickle as torch.save writes it, with a payload."""
    torch.save({"weight": Payload(canary)}, file)


def code(canary: Path) -> str:
    """A module that writes the canary when it is imported."""
    return f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n"


def recipe(place: Path, text: str) -> Path:
    file = place / "recipe.toml"
    file.write_text(text)
    return file
