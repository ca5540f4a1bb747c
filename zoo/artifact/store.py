"""Artifacts: a directory that holds a model exactly.

    zoo.json            the manifest: spec, lineage of structural records, aliases, and the sha256 of every other file
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
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.artifact.manifest import FORMAT, MANIFEST, manifest_text, read_manifest
from zoo.errors import ArtifactError, OutputError, RequestError, ZooError
from zoo.model.health import require_finite
from zoo.model.provenance import sealed
from zoo.plugins import manager
from zoo.plugins.declarations import is_inside
from zoo.plugins.names import declaration_of
from zoo.system.writing import inode, not_a_directory, sha256_of, sync, why_unwritable, writing
from zoo.tensors import safetensors
from zoo.tensors.safetensors import pieces_of

if TYPE_CHECKING:
    import torch

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
        raise OutputError(f"{path} {what}; choose another directory, or pass --force to replace it.")
    if names and MANIFEST not in names:
        raise OutputError(
            f"{path} holds something that is not a zoo model; --force only replaces models. Choose another directory."
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


def verify(path: Path) -> list[tuple[str, str]]:
    """Re-hash every file the manifest lists; return (file, problem) for each that is wrong.

    Raises:
        RequestError, ArtifactError: the manifest itself cannot be read.
    """
    problems = []
    for name, about in read_manifest(path).files.items():
        file = path / name
        if not is_inside(name):
            problems.append((name, "is not a file of this directory"))
        elif not file.is_file() or any(
            step.is_symlink() for step in (file, *file.parents) if step.is_relative_to(path) and step != path
        ):
            problems.append((name, "is missing"))
        elif file.stat().st_size != about["bytes"]:
            problems.append((name, f"has {file.stat().st_size} bytes, the manifest says {about['bytes']}"))
        elif sha256_of(file) != about["sha256"]:
            problems.append((name, "does not have the sha256 of the manifest"))
    return problems


def require_intact(path: Path) -> None:
    """Raise `ArtifactError` naming the first damaged file, if there is one."""
    for name, problem in verify(path):
        raise ArtifactError(f"{path / name} {problem}; the artifact is damaged, so nothing was loaded.")


def fill(model: Model, path: Path) -> None:
    """Fill a model's empty module from the weight files in the directory `path`, or from one safetensors file.

    Tensors stay memory-mapped until they are cast or moved.

    Raises:
        ArtifactError: names the first missing, unexpected or misshapen tensor.
    """
    files = (
        {"": path} if path.is_file() else {p: path / f for p, f in model.family.weight_files(model.spec.config).items()}
    )
    tensors, aliases = model.tensors(), model.aliases()
    destinations = {name: [name] for name in tensors}  # with the aliases, so that what is shared stays shared
    for alias, name in aliases.items():
        destinations[name].append(alias)
    for prefix, names in _by_file(tensors, files).items():
        _fill_from(
            model,
            files[prefix],
            {name.removeprefix(prefix): tensors[name] for name in names},
            {name.removeprefix(prefix): destinations[name] for name in names},
        )


def require_described(model: Model, path: Path) -> None:
    """Compare a skeleton with the headers of the weight files in `path`, those that are there.

    Raises:
        ArtifactError: names the first missing, unexpected or misshapen tensor.
    """
    files = {prefix: path / file for prefix, file in model.family.weight_files(model.spec.config).items()}
    tensors = model.tensors()
    for prefix, names in _by_file(tensors, files).items():
        if files[prefix].is_file():
            shapes = {name: tuple(about["shape"]) for name, about in safetensors.read_header(files[prefix]).items()}
            _require_alike(
                files[prefix], {name.removeprefix(prefix): tuple(tensors[name].shape) for name in names}, shapes
            )


def _require_alike(path: Path, expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(expected.keys() - shapes.keys()) + sorted(shapes.keys() - expected.keys()):
        raise ArtifactError(f"{path}: tensor {name!r} is {'missing' if name in expected else 'not part of the model'}.")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ArtifactError(f"{path}: {name!r} has shape {shapes[name]}, the model expects {shape}.")


def _by_file(tensors: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the tensors that go into each file, by prefix: the longest that fits."""
    names: dict[str, list[str]] = {prefix: [] for prefix in files}
    for name in tensors:
        fitting = [prefix for prefix in files if name.startswith(prefix)]
        if not fitting:
            raise ZooError(f"{name} belongs to no weight file; the family names files for {', '.join(files)}.")
        names[max(fitting, key=len)].append(name)
    return names


def _fill_from(model: Model, path: Path, expected: Mapping[str, Any], destinations: Mapping[str, list[str]]) -> None:
    """Fill from one file what it is expected to hold: name in the file -> empty tensor, and where it goes."""
    from safetensors import SafetensorError, safe_open
    from torch import nn

    from zoo.tensors.alignment import aligned

    safetensors.require_whole(path)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _require_alike(path, {name: tuple(empty.shape) for name, empty in expected.items()}, shapes)
            for name, empty in expected.items():
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and empty.is_floating_point():
                    tensor = tensor.to(empty.dtype)
                if isinstance(empty, nn.Parameter):
                    tensor = nn.Parameter(aligned(tensor), requires_grad=tensor.is_floating_point())
                else:
                    tensor = aligned(tensor)
                for destination in destinations[name]:
                    _assign(model.module, destination, tensor)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged: {error}.") from None


def _assign(module: Any, name: str, tensor: Any) -> None:
    parent, _, leaf = name.rpartition(".")
    owner = module.get_submodule(parent)
    (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = tensor


def _write_files(model: Model, path: Path) -> None:
    from zoo.artifact.card import card

    _require_replayable(model)
    require_finite(model, what=f"{model.spec.name} cannot be saved")
    tensors, layout = _storable(model), model.family.weight_files(model.spec.config)
    for prefix, names in _by_file(tensors, layout).items():
        (path / layout[prefix]).parent.mkdir(parents=True, exist_ok=True)
        _write_weights({name.removeprefix(prefix): tensors[name] for name in names}, path / layout[prefix])
    if model.processor is not None:
        model.family.save_processor(model.processor, path)
    plain = model.family.write_foreign(model, path)
    (path / "README.md").write_text(card(model, plain), encoding="utf-8")
    files = {
        file.relative_to(path).as_posix(): {"sha256": sha256_of(file), "bytes": file.stat().st_size}
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    manifest = {
        "format": FORMAT,
        "spec": {**asdict(model.spec), "packaged": "", "params": model.params, "params_non_embedding": 0},
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
        **_made_with(model),
    }
    (path / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")


def _made_with(model: Model) -> dict[str, Any]:
    """Which plugin provides the family, and the distributions and versions of all that the model needs or comes from."""
    try:
        family = declaration_of("family", model.family, model.spec.family).plugin
    except RequestError:  # a family that nobody declares, which can be saved but not loaded
        family = model.spec.plugin
    installed = {plugin.name: plugin for plugin in manager.plugins_in_use()}
    names = {family, model.spec.plugin, *(stage.plugin for stage in model.lineage)} & installed.keys()
    table = {name: {"distribution": installed[name].distribution, "version": installed[name].version} for name in names}
    return {"family_plugin": family, "plugins": table}


def _require_replayable(model: Model) -> None:
    """Refuse to save what could not be loaded: the lineage, replayed, must give exactly the module's tensors."""
    fresh = model.skeleton()
    mine, theirs = ({n: tuple(t.shape) for n, t in m.tensors().items()} for m in (model, fresh))
    for name in sorted(mine.keys() ^ theirs.keys()) or [n for n in mine if mine[n] != theirs[n]]:
        raise ZooError(
            f"{model.spec.name} cannot be saved: {name} is {mine.get(name, 'absent')} in the model but "
            f"{theirs.get(name, 'absent')} when its {len(model.lineage)} recorded stages are replayed."
        )
    if model.aliases() != fresh.aliases():
        raise ZooError(f"{model.spec.name} cannot be saved: it shares tensors in a way its recorded stages do not.")


def _storable(model: Model) -> dict[str, Any]:
    """The tensors as they go to disk: float parameters in the stored dtype where that loses nothing."""
    import torch
    from torch import nn

    stored = getattr(torch, model.stored)
    tensors = {}
    for name, tensor in model.tensors().items():
        values = tensor.detach()
        if isinstance(tensor, nn.Parameter) and values.is_floating_point() and values.dtype.itemsize > stored.itemsize:
            narrow = values.to(stored)
            values = narrow if torch.equal(narrow.to(values.dtype), values) else values
        tensors[name] = values.cpu().contiguous()
    return tensors


def _write_weights(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as file:
        file.writelines(pieces_of(tensors, {"format": "pt", "manifest": MANIFEST}))


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
