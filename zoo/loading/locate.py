"""What a name or a path means: the spec, the folder, and where the weights are. It is decided here, and once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from zoo import catalog
from zoo.artifact.manifest import MANIFEST, WEIGHTS, Manifest, read_manifest
from zoo.catalog import ModelSpec
from zoo.errors import RequestError, UnknownName, nearest
from zoo.loading import weights
from zoo.plugins.names import Declared, declaration, family_declaration, object_of, recognise
from zoo.system.writing import not_a_directory
from zoo.tensors import safetensors

if TYPE_CHECKING:
    from zoo.family.base import Family

# of `weights`: those of the model or the directory itself, as they are or widened from the codes of a quantizer
OWN = ("auto", "dequantized")


def require_known(spec: ModelSpec) -> None:
    """Refuse a model of the catalogue whose shape is not known.

    Raises:
        RequestError: says what is missing.
    """
    if spec.unknown and not spec.config:
        raise RequestError(f"{spec.name} cannot be built, for this is not known of it: {spec.unknown}.")


@dataclass(frozen=True)
class Located:
    """A name or a path with what it means: handed to whoever loads, plans, runs or tells of the model.

    What is looked up in files is looked up when it is first asked for, and kept.
    """

    asked: str  # the name or the path, as it was written
    spec: ModelSpec | None  # of the catalogue, or of a family's library; None where `path` says what it is
    path: Path | None  # the directory or the file that was named
    weights: str | Path = "auto"  # or "random", "dequantized", the place of others

    @cached_property
    def here(self) -> Path | None:
        """Where the weights are on this machine: given, in the path, or packaged; None where they are drawn or fetched."""
        if self.weights not in OWN:
            return None if self.weights == "random" else Path(self.weights)
        return self.path or weights.packaged_at(self._of_catalogue)

    def fetched(self) -> Path:
        """Where the weights are, downloaded where they are not here: a directory that says what it holds, or one file.

        Raises:
            WeightsUnavailable: they are not here and cannot be fetched.
        """
        if self.here is None:
            return weights.resolve(self.family.complete(self._of_catalogue))
        bare = self.spec is not None and self.here.is_dir() and not (self.here / MANIFEST).exists()
        alone = bare and not recognise(self.here) and (self.here / WEIGHTS).exists()
        return self.here / WEIGHTS if alone else self.here

    @cached_property
    def manifest(self) -> Manifest | None:
        """What a model of ours says of itself, where the weights are here and are one.

        Raises:
            ArtifactError: it is damaged.
        """
        return read_manifest(self.here) if self.here and (self.here / MANIFEST).exists() else None

    @property
    def family(self) -> Family:
        """The family of what would be loaded, before anything is.

        Raises:
            RequestError, ArtifactError: the path holds no model, or one whose plugins cannot be used.
        """
        return cast("Family", object_of(self.family_entry))

    @cached_property
    def family_entry(self) -> Declared:
        """What declares that family, which is not imported for it.

        Raises:
            RequestError, ArtifactError: as `family`.
        """
        from zoo.loading.directory import recognised_family, require_plugins

        if self.path is None:
            return family_declaration(self._of_catalogue)
        if self._own is not None:
            require_plugins(self._own, self.path)
            return family_declaration(self._own.spec, plugin=self._own.family_plugin)
        return declaration("family", recognised_family(self.path))

    @cached_property
    def task(self) -> str:
        """The task of the model; "" where only whoever loads it knows."""
        spec = self.spec or (self._own.spec if self._own else None)
        return spec.task if spec else ""

    @cached_property
    def _own(self) -> Manifest | None:
        """The manifest in the path, wherever the weights are."""
        if self.path is None or not (self.path / MANIFEST).exists():
            return None
        return self.manifest or read_manifest(self.path)

    @cached_property
    def stored(self) -> str:
        """The dtype that the weights have on disk, as far as they are here; "" where that is not known."""
        if self.here is None or self.weights == "dequantized":
            return ""
        if self.manifest:
            return self.manifest.stored
        if self.here.is_file():
            # of a file that is a whole checkpoint its family says, when it reads it
            files = [] if recognise(self.here) else [self.here]
        else:
            files = safetensors.files_of(self.here) or sorted(self.here.rglob("*.safetensors"))
        kinds = {tensor["dtype"] for file in files for tensor in safetensors.read_header(file).values()}
        halves = (name for kind, name in (("BF16", "bfloat16"), ("F16", "float16")) if kind in kinds)
        return next(halves, "float32" if kinds else "")

    @property
    def _of_catalogue(self) -> ModelSpec:
        assert self.spec is not None, "what has no path has a spec"
        return self.spec


def locate(name_or_path: str | Path, weights_at: str | Path = "auto") -> Located:
    """Say what a name or a path means; a catalogued name wins over a folder of the same name, "./name" means the folder.

    Raises:
        UnknownName: it is neither a name nor a model.
        RequestError: the weights do not go with it.
    """
    spec, path = _meant(name_or_path)
    return Located(str(name_or_path), spec, path, _checked_weights(weights_at, path))


def _meant(name_or_path: str | Path) -> tuple[ModelSpec | None, Path | None]:
    text = str(name_or_path)
    try:
        path = Path(text).expanduser()
        there, is_folder = bool(text) and path.exists(), path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise UnknownName(
            f"{text[:80]!r} is no model and no path: {getattr(error, 'strerror', None) or error}."
        ) from None
    if isinstance(name_or_path, str) and not text.startswith((".", "/", "~")):
        try:
            return catalog.info(text), None
        except UnknownName:
            if not there:
                raise
    if is_folder:
        return None, _only_file(path)
    if not recognise(path):
        what = "is a file, not a model directory" if not_a_directory(path) else "does not exist"
        raise UnknownName(
            f"{path} {what}.{nearest(path.name, catalog.catalogue())} `zoo list` shows the models that load by name."
        )
    return None, path


def _only_file(folder: Path) -> Path:
    """The one file that is the whole model of a folder, or the folder where it is one itself."""
    if (folder / MANIFEST).exists() or recognise(folder):
        return folder
    try:
        files = [file for file in sorted(folder.iterdir()) if file.is_file() and recognise(file)]
    except OSError:  # another process is replacing it; whoever reads it says so
        return folder
    if len(files) > 1:
        kind, names = files[0].suffix[1:].upper(), ", ".join(file.name for file in files)
        raise RequestError(f"{folder} holds several {kind} files ({names}); give one of them.")
    return files[0] if files else folder


def _checked_weights(weights_at: str | Path, path: Path | None) -> str | Path:
    """Return "auto", "random", "dequantized" or a path that exists.

    Raises:
        RequestError: something else, a path beside a directory that has weights of its own, or a directory of ours or a
            name to be dequantized.
    """
    if weights_at == "dequantized" and (path is None or (path / MANIFEST).exists()):
        raise RequestError("weights='dequantized' goes with a directory of quantized weights that transformers reads.")
    if weights_at in (*OWN, "random"):
        return weights_at
    try:
        location = Path(weights_at).expanduser()
        there = location.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"weights={str(weights_at)[:80]!r} is no path: {getattr(error, 'strerror', None) or error}."
        ) from None
    if not there:
        hint = nearest(str(weights_at), (*OWN, "random"))
        raise RequestError(
            f"weights={str(weights_at)!r} is neither 'auto', 'random' nor 'dequantized', nor a directory or file that exists.{hint}"
        )
    if path is not None:
        raise RequestError(
            f"weights={str(weights_at)!r} goes with a name of `zoo list`; {path} is a directory with weights of its own."
        )
    return location
