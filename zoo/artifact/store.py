"""Artifacts: a directory that holds a model exactly.

    zoo.json            the manifest: spec, lineage of structural records, aliases, and of every other file the sha256, which
                        says what it is, and the xxh3 of its chunks, which are compared at every load
    model.safetensors   every distinct tensor once; a pipeline has a file for each of its parts, as its library lays them out
    config.json, ...    the ecosystem's own files, where it can represent the model
    README.md           the model card

A directory appears by one rename when it is complete, so nothing half-written is ever read.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.artifact import weights
from zoo.artifact.manifest import FORMAT, MANIFEST, Manifest, manifest_text, problem_of, read_manifest
from zoo.errors import ArtifactError, OutputError, RequestError, ZooError, spelled
from zoo.model.health import require_finite
from zoo.model.provenance import sealed
from zoo.plugins import manager
from zoo.plugins.declarations import is_inside
from zoo.plugins.names import declaration_of
from zoo.system.hashing import chunks_of, digests_of
from zoo.system.writing import inode, not_a_directory, sha256_of, sync, why_unwritable, writing

if TYPE_CHECKING:
    from zoo.model.model import Model

ATTEMPTS = 100  # to take the place of an artifact that other processes replace at the same time


def write(model: Model, path: Path, *, force: bool = False) -> Path:
    """Write `model` into the directory `path`, whole or not at all.

    Raises:
        OutputError: `path` cannot be written, or holds something else; an older artifact is replaced only with `force`.
    """
    check_writable(path, force=force)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with writing(path, size=model.bytes):
            _write_files(model, draft)
            for item in (draft, *draft.rglob("*")):
                item.chmod(0o755 if item.is_dir() else 0o644)
                sync(item)
            _put(draft, path, force=force)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path


def check_writable(path: Path, *, force: bool = False) -> None:
    """Refuse an output directory that holds something else, before any work is done."""
    if not_a_directory(path):
        raise OutputError(f"{path} is a file; name a directory.")
    names = _listed(path)
    if names and not force:
        what = "already holds a model" if MANIFEST in names else "is not empty and holds no zoo model"
        raise OutputError(
            f"{path} {what}; choose another directory, or pass {spelled('force=True', '--force')} to replace it."
        )
    if names and MANIFEST not in names:
        raise OutputError(
            f"{path} holds something that is not a zoo model; {spelled('force=True', '--force')} only replaces models. Choose another directory."
        )
    if reason := why_unwritable(path):
        raise OutputError(f"{path} cannot be written: {reason}.")


def _listed(path: Path) -> set[str]:
    """The names in the directory `path`; none where it is not there, or another process replaces it at this moment."""
    there = inode(path)
    try:
        names = {item.name for item in path.iterdir()}
    except OSError:
        return set()
    return names if inode(path) == there else set()


def verify(path: Path, manifest: Manifest | None = None) -> list[tuple[str, str]]:
    """Re-hash every file the manifest lists; return (file, problem) for each that is wrong.

    Args:
        manifest: of the directory, where it has been read.

    Raises:
        RequestError, ArtifactError: the manifest itself cannot be read.
    """
    problems = []
    for name, about in (manifest or read_manifest(path)).files.items():
        problem = _misplaced(path, name, about)
        if not problem:
            digests = digests_of(path / name)
            differing = [kind for kind in ("sha256", "xxh3") if about.get(kind, digests[kind]) != digests[kind]]
            problem = f"does not have the {differing[0]} of the manifest" if differing else ""
        if problem:
            problems.append((name, problem))
    return problems


def _misplaced(path: Path, name: str, about: Mapping[str, Any]) -> str:
    """Say that a file is not there, or not of the size that the manifest says, or return ""."""
    file = path / name
    if not is_inside(name):
        return "is not a file of this directory"
    steps = [step for step in (file, *file.parents) if step.is_relative_to(path) and step != path]
    if not file.is_file() or (any(step.is_symlink() for step in steps) and not _in_hub_cache(path, file)):
        return "is missing"
    if file.stat().st_size != about["bytes"]:
        return f"has {file.stat().st_size} bytes, the manifest says {about['bytes']}"
    return ""


def _in_hub_cache(path: Path, file: Path) -> bool:
    """Whether a directory is a snapshot in the hub's cache, and a file of it a link to what was downloaded for it."""
    repository = path.absolute().parents[1] if path.absolute().parent.name == "snapshots" else None
    return repository is not None and file.resolve().parent == (repository / "blobs").resolve()


def require_intact(path: Path, manifest: Manifest | None = None) -> None:
    """Raise `ArtifactError` naming the first file that `verify` finds, if there is one; `manifest` as for `verify`."""
    for name, problem in verify(path, manifest):
        raise _damaged(path / name, problem)


def require_undamaged(path: Path, manifest: Manifest, *, read_later: Collection[str]) -> None:
    """Raise `ArtifactError` naming the first file that was damaged, if there is one, before anything is loaded.

    Files are compared by xxh3, which is quicker than they can be read; those that an older zoo wrote by sha256.

    Args:
        read_later: files whose bytes are compared with their xxh3 when they are read.
    """
    for name, about in manifest.files.items():
        problem, file = _misplaced(path, name, about), path / name
        if not problem and "xxh3" not in about and sha256_of(file) != about["sha256"]:
            problem = "does not have the sha256 of the manifest"
        if not problem and "xxh3" in about and name not in read_later and chunks_of(file) != about["xxh3"]:
            problem = "does not have the xxh3 of the manifest"
        if problem:
            raise _damaged(file, problem)


def _damaged(file: Path, problem: str) -> ArtifactError:
    return ArtifactError(f"{file} {problem}; the artifact is damaged, so nothing was loaded.")


def _write_files(model: Model, path: Path) -> None:
    from zoo.artifact import proof
    from zoo.artifact.card import card
    from zoo.model.model import build_empty

    fresh = build_empty(model.family, model.spec, model.lineage, dtype=model.dtype, stored=model.stored)
    fresh.processor = model.processor
    _require_replayable(model, fresh)
    require_finite(model, what=f"{model.spec.name} cannot be saved")
    weights.write(model, path)
    if model.processor is not None:
        model.family.save_processor(model.processor, path)
    plain = model.family.write_foreign(model, path)
    (path / "README.md").write_text(card(model, plain), encoding="utf-8")
    dtypes = proof.other_dtypes(model, fresh)
    proof.require_same(model, fresh, path, dtypes)
    files = {file.relative_to(path).as_posix(): digests_of(file) for file in sorted(path.rglob("*")) if file.is_file()}
    manifest = {
        "format": FORMAT,
        "spec": {
            **asdict(model.spec),
            "packaged": "",
            "distribution": "",
            "params": model.params,
            "params_non_embedding": 0,
        },
        "lineage": [asdict(stage) for stage in model.lineage],
        "dtype": model.dtype,
        "stored": model.stored,
        "plain": plain,
        "params": model.params,
        "bytes": model.bytes,
        "shape": model.anatomy.sizes(),  # as the stages left it; the spec's config is the original's
        "notes": model.notes,
        "source": sealed(model),
        "files": files,
        **({"dtypes": dtypes} if dtypes else {}),
        **_made_with(model),
    }
    if problem := problem_of(manifest):  # as loading reads it
        raise ZooError(f"{model.spec.name} cannot be saved: {problem}.")
    (path / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")


def _made_with(model: Model) -> dict[str, Any]:
    """Which plugin provides the family, and the distributions and versions of all that the model needs or comes from."""
    try:
        family = declaration_of("family", model.family, model.spec.family).plugin
    except RequestError:  # a family that nobody declares, which can be saved but not loaded
        family = model.spec.plugin
    installed = {plugin.name: plugin for plugin in manager.plugins_in_use()}
    taken = (plugin for stage in model.lineage for plugin in stage.made.get("uses", {}).values())
    names = {family, model.spec.plugin, *(stage.plugin for stage in model.lineage), *taken} & installed.keys()
    table = {name: {"distribution": installed[name].distribution, "version": installed[name].version} for name in names}
    return {"family_plugin": family, "plugins": table}


def _require_replayable(model: Model, fresh: Model) -> None:
    """Refuse to save what could not be loaded: the lineage, replayed, must give exactly the module's tensors."""
    mine, theirs = ({n: tuple(t.shape) for n, t in m.tensors().items()} for m in (model, fresh))
    for name in sorted(mine.keys() ^ theirs.keys()) or [n for n in mine if mine[n] != theirs[n]]:
        raise ZooError(
            f"{model.spec.name} cannot be saved: {name} is {mine.get(name, 'absent')} in the model but "
            f"{theirs.get(name, 'absent')} when its {len(model.lineage)} recorded stages are replayed."
        )
    if model.aliases() != fresh.aliases():
        raise ZooError(f"{model.spec.name} cannot be saved: it shares tensors in a way its recorded stages do not.")


def _put(draft: Path, path: Path, *, force: bool) -> None:
    """Move a finished draft into place; an artifact that was there goes only after the new one is complete.

    Other processes may do so at the same time: each comes whole after the other.
    """
    old: list[Path] = []
    for _ in range(ATTEMPTS):
        try:
            draft.rename(path)  # where nothing is, or an empty directory
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        check_writable(path, force=force)
        if not force:  # what was there is gone, or has just come: try again
            continue
        old.append(Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old.")))
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            path.rename(old[-1] / path.name)
    else:
        raise OutputError(f"{path} cannot be written: other processes keep replacing it.")
    for folder in old:
        for _ in range(ATTEMPTS):  # another process may just be trying out whether it can write here
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
    sync(path.parent)
