"""What a name or a path means: the spec, the folder, and where the weights are."""

from __future__ import annotations

from pathlib import Path

from zoo import catalog
from zoo.artifact.manifest import MANIFEST, WEIGHTS, read_manifest
from zoo.catalog import ModelSpec
from zoo.errors import RequestError, UnknownName, nearest
from zoo.loading import weights
from zoo.plugins.names import recognise
from zoo.system.writing import not_a_directory
from zoo.tensors import safetensors

# of `weights`: those of the model or the directory itself, as they are or widened from the codes of a quantizer
OWN = ("auto", "dequantized")


def require_known(spec: ModelSpec) -> None:
    """Refuse a model of the catalogue whose shape is not known.

    Raises:
        RequestError: says what is missing.
    """
    if spec.unknown and not spec.config:
        raise RequestError(f"{spec.name} cannot be built, for this is not known of it: {spec.unknown}.")


def locate(name_or_path: str | Path) -> tuple[ModelSpec | None, Path | None]:
    """A catalogued name wins over a folder of the same name; "./name" means the folder."""
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
        return None, only_file(path)
    if not recognise(path):
        what = "is a file, not a model directory" if not_a_directory(path) else "does not exist"
        raise UnknownName(
            f"{path} {what}.{nearest(path.name, catalog.catalogue())} `zoo list` shows the models that load by name."
        )
    return None, path


def only_file(folder: Path) -> Path:
    """The one file that is the whole model of a folder, or the folder where it is one itself."""
    if (folder / MANIFEST).exists() or recognise(folder):
        return folder
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and recognise(file)]
    if len(files) > 1:
        kind, names = files[0].suffix[1:].upper(), ", ".join(file.name for file in files)
        raise RequestError(f"{folder} holds several {kind} files ({names}); give one of them.")
    return files[0] if files else folder


def checked_weights(weights_at: str | Path, path: Path | None) -> str | Path:
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


def weights_folder(spec: ModelSpec, weights_at: str | Path) -> Path:
    """Where the weights of `spec` are: a directory that says what it holds, or a safetensors file."""
    if weights_at == "auto":
        return weights.resolve(spec)
    path = Path(weights_at)
    if path.is_dir() and not (path / MANIFEST).exists() and not recognise(path) and (path / WEIGHTS).exists():
        return path / WEIGHTS
    return path


def stored_in(location: Path) -> str:
    """The dtype of the weights in a directory or a file: from its manifest, else from the headers; "" where there are none."""
    if (location / MANIFEST).exists():
        return read_manifest(location).stored
    if location.is_file() and recognise(location):  # its family says, when it reads it
        return ""
    files = (
        [location] if location.is_file() else safetensors.files_of(location) or sorted(location.rglob("*.safetensors"))
    )
    kinds = {tensor["dtype"] for file in files for tensor in safetensors.read_header(file).values()}
    return next(
        (name for kind, name in (("BF16", "bfloat16"), ("F16", "float16")) if kind in kinds), "float32" if kinds else ""
    )


def stored_dtype(spec: ModelSpec, weights_at: str | Path) -> str:
    """The dtype that the weights of `spec` have on disk, as far as they are on this machine."""
    location = (
        weights.packaged_at(spec) if weights_at == "auto" else None if weights_at == "random" else Path(weights_at)
    )
    return stored_in(location) if location else ""
