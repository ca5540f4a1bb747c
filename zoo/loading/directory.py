"""Models from a directory: one of ours, or a plain checkpoint of the ecosystem's libraries; and from one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import registry
from zoo.anatomy.names import FFN_WIDTH, WIDTH
from zoo.artifact import store
from zoo.artifact.manifest import MANIFEST, WEIGHTS, Manifest, read_manifest
from zoo.artifact.weights import fill, require_described
from zoo.catalog import ModelSpec
from zoo.errors import ArtifactError, RequestError, reason
from zoo.loading import weights
from zoo.loading.codes import QUANTIZED_KEYS, REMEDY, method_of
from zoo.loading.contents import instead_of_a_model
from zoo.model.building import cast_named
from zoo.model.licences import stated_in
from zoo.model.model import Model, build_empty, build_skeleton
from zoo.plugins import manager
from zoo.plugins.declarations import is_name
from zoo.plugins.names import declaration, family_declaration, recognise
from zoo.system.memory import ran_out
from zoo.tensors import safetensors

if TYPE_CHECKING:
    from zoo.tensors.offload import Offload

# of configs, by which checkpoints bring code of their own
CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
# The most that a size may be in a config, by the end of its name: what is built of them comes before weights are compared.
LARGEST_SIZES = {
    "layer": 10_000,
    "depth": 10_000,
    "expert": 10_000,
    **dict.fromkeys(("dim", "size", "head", "channel", *WIDTH.configs, *FFN_WIDTH.configs), 2**24),
}


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what names code, at any depth: for a model whose class is here, that is left over."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(inner) for key, inner in value.items() if key not in CODE_KEYS}
        return [cleaned(inner) for inner in value] if isinstance(value, list) else value

    return {key: cleaned(value) for key, value in config.items() if key not in CODE_KEYS}


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config of quantized weights, or one that would make a loader fetch code or build until memory is full.

    Raises:
        ArtifactError: names the key.
    """
    for key, value in config.items():
        if key in QUANTIZED_KEYS and value:
            raise ArtifactError(
                f"{where} says that the weights are already quantized, by {method_of(value)} ({key!r}); {REMEDY}."
            )
        if key in CODE_KEYS and value:
            raise ArtifactError(f"{where} asks for remote code ({key!r}); zoo never runs code from a checkpoint.")
        if key.lstrip("_").endswith(("_implementation", "_implementation_internal")) and "/" in str(value):
            raise ArtifactError(
                f"{where} asks for compiled code of a hub ({key!r}); zoo never runs code from a checkpoint."
            )
        most = next((most for ending, most in LARGEST_SIZES.items() if key.rstrip("s").endswith(ending)), None)
        if most and isinstance(value, int) and value > most:
            raise ArtifactError(
                f"{where}: {key} is {value:.3g}, and no model has more than {most:,}."
                if value < 1e300
                else f"{where}: {key} is no size."
            )
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                check_config(inner, where)


def take_as(model: Model, spec: ModelSpec, path: Path) -> None:
    """Take weights found in a directory as those of `spec`, which they must fit."""
    shapes, expected = (
        {n: tuple(t.shape) for n, t in m.tensors().items()}
        for m in (model, build_skeleton(model.family, spec, model.lineage))
    )
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            raise ArtifactError(
                f"{path} does not hold {spec.name}: {name} is {shapes.get(name, 'absent')} there, the model expects {expected.get(name, 'none')}."
            )
    model.spec = replace(spec, config=model.spec.config)


def from_folder(
    path: Path,
    manifest: Manifest | None = None,
    *,
    device: str | None,
    dtype: str | None,
    dequantize: bool = False,
    offload: Offload | None = None,
) -> Model:
    """Load what is in a directory, or in a file that is a whole checkpoint; `manifest` is its own, where it has been read."""
    if path.is_file():
        return _foreign(path, recognised_family(path), device=device, dtype=dtype)
    for item in path.iterdir():
        if item.exists() and not (item.is_file() or item.is_dir()):  # a pipe would be waited for
            raise ArtifactError(f"{item} is not a file.")
    if (path / MANIFEST).exists():
        return _from_artifact(path, manifest or read_manifest(path), device=device, dtype=dtype, offload=offload)
    for file in path.rglob(f"*{Path(WEIGHTS).suffix}"):
        within_another = any((folder / MANIFEST).exists() for folder in file.parents if folder.is_relative_to(path))
        with suppress(ArtifactError):  # what is no part of the model may be unfinished
            if not within_another and safetensors.read_metadata(file).get("manifest") == MANIFEST:
                without_manifest = file.name
                break
    else:
        without_manifest = ""
    if without_manifest:
        raise ArtifactError(
            f"{path / MANIFEST} is missing, the manifest that {without_manifest} was saved with: copy the whole model again."
        )
    name = recognised_family(path)
    for file in safetensors.files_of(path):
        safetensors.read_header(file)  # damaged, it is named in a plan too, which needs no weights
    model = _foreign(path, name, device=device, dtype=dtype, dequantize=dequantize, offload=offload)
    if not model.spec.license:
        model.spec = replace(model.spec, license=stated_in(path / "README.md"))
    return model


def _foreign(
    path: Path,
    name: str,
    *,
    device: str | None,
    dtype: str | None,
    dequantize: bool = False,
    offload: Offload | None = None,
) -> Model:
    import torch

    from zoo.tensors.alignment import align

    family = registry.family(name)
    run = getattr(torch, dtype) if dtype else None
    if offload and not dequantize:
        model = family.read_offloaded(path, dtype=run, offload=offload)
    else:
        read = family.read_dequantized if dequantize else family.read_foreign
        model = read(path, device=device, dtype=run)
    align(model.module, just_read=True)
    return model


def recognised_family(path: Path) -> str:
    """The family whose checkpoint directory `path` is."""
    for name in recognise(path):
        return name
    raise RequestError(f"{path} is not a model directory: {instead_of_a_model(path)}.")


def _from_artifact(
    path: Path, manifest: Manifest, *, device: str | None, dtype: str | None, offload: Offload | None = None
) -> Model:
    spec, lineage = manifest.spec, manifest.lineage
    run = dtype or manifest.dtype
    require_plugins(manifest, path)
    family = registry.family_of(spec, plugin=manifest.family_plugin)
    with _readable(path / MANIFEST):
        files = family.weight_files(spec.config).values()
    for file in files:
        if file not in manifest.files:
            raise ArtifactError(f"{path / MANIFEST} is damaged: it does not list {file}.")
    check_config(spec.config, str(path / MANIFEST))
    if device != "meta":
        store.require_undamaged(path, manifest, read_later=files)
    build = build_skeleton if device == "meta" else build_empty
    with _readable(path / MANIFEST):
        model = build(family, spec, lineage, dtype=run, stored=manifest.stored)
        if run == manifest.dtype:
            cast_named(model.module, manifest.dtypes)
    if device == "meta":
        require_described(model, path)
    else:
        digests = {file: manifest.files[file] for file in files if "xxh3" in manifest.files[file]}
        fill(model, path, digests=digests, offload=offload)
        if device:
            model.module.to(device)
    model.processor = family.load_processor(path)
    model.origin, model.notes, model.source = str(path), dict(manifest.notes), dict(manifest.source)
    return model


@contextmanager
def _readable(manifest: Path) -> Iterator[None]:
    """Refuse a manifest whose config or records nobody can make a model of, whatever that leads to in a library."""
    try:
        yield
    except (RequestError, ArtifactError) as error:
        raise ArtifactError(f"{manifest}: {error}") from error
    except Exception as error:
        if ran_out(error):
            raise
        raise ArtifactError(f"{manifest} describes a model that cannot be built ({reason(error)}).") from error


def require_plugins(manifest: Manifest, path: Path) -> None:
    """Refuse an artifact whose family or whose stages come with plugins that cannot be used; nothing is imported.

    Raises:
        ArtifactError: names what needs which plugin, and what to do.
    """
    spec, what, plugin = (
        manifest.spec,
        f"its family {manifest.spec.family!r}",
        manifest.family_plugin or manifest.spec.plugin,
    )
    try:
        family_declaration(spec, plugin=manifest.family_plugin)
        for number, stage in enumerate(manifest.lineage, 1):
            what, plugin = f"stage {number} ({stage.use})", stage.plugin
            declaration("compressor", stage.use, plugin=plugin)
    except RequestError as error:
        raise ArtifactError(f"{path}: {what} {missing(plugin, manifest) or f'is not to be had: {error}'}") from None


def missing(name: str, manifest: Manifest, *, then: str = "load again") -> str:
    """Say why a plugin does not give what a saved model needs, and what to do about it; "" where it is not known which."""
    if not name:
        return ""
    made = manifest.plugins.get(name, {})
    if reason := manager.why_absent(name):
        known = str(made.get("distribution", ""))
        remedy = f": `zoo plugins install {known}`, then {then}" if is_name(known) else f"; install it, then {then}"
        return f"needs plugin {name}, which {reason}" + (f"{remedy}." if reason == "is not installed" else ".")
    plugin = manager.find(name)
    if plugin.fault and not plugin.names:
        return f"needs plugin {name}, which cannot be used: {plugin.fault}"
    version = str(made.get("version", ""))
    made_with = f"; the model was made with version {version}" if version.isprintable() and version else ""
    return f"is not in plugin {name} {plugin.version}, which is installed{made_with}."


def from_file(
    spec: ModelSpec, path: Path, *, device: str | None, dtype: str | None, offload: Offload | None = None
) -> Model:
    if path.suffix != ".safetensors":
        raise ArtifactError(f"{path} is not a .safetensors file; other weight formats are not read.")
    run = dtype or spec.dtype or "float32"
    model = build_empty(registry.family_of(spec), spec, (), dtype=run, stored=run)
    fill(model, path, offload=offload)
    model.processor = model.family.load_processor(weights.packaged_at(spec) or path.parent)
    model.module.to(device or "cpu")
    model.origin = str(path)
    return model
