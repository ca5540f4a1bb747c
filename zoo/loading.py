"""`zoo.load`: from a name or a path to a model that runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import catalog, registry, weights
from zoo.artifact import store
from zoo.artifact.manifest import MANIFEST, PRECISIONS, WEIGHTS, Manifest, read_manifest
from zoo.catalog import ModelSpec
from zoo.errors import ArtifactError, RequestError, UnknownName, nearest, one_line
from zoo.model.model import Model, build_empty, build_random, build_skeleton
from zoo.model.provenance import source
from zoo.plugins import manager
from zoo.plugins.declarations import is_name
from zoo.plugins.names import declaration, family_declaration, recognise
from zoo.tensors import safetensors

if TYPE_CHECKING:
    import torch

    from zoo.family.base import Family

DTYPES = PRECISIONS
SCALES = ("tiny",)
# of configs, by which checkpoints bring code of their own
CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
# The most that a size may be in a config, by the end of its name: what is built of them comes before weights are compared.
MOST = {
    "layer": 10_000,
    "depth": 10_000,
    "expert": 10_000,
    **dict.fromkeys(("dim", "size", "head", "channel", "n_embd", "n_inner", "d_model"), 2**24),
}


def load(
    name_or_path: str | Path,
    *,
    weights: str | Path = "auto",
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    scale: str | None = None,
) -> Model:
    """Load a model by catalogue name, or from a directory: one of ours, or a plain transformers checkpoint.

    Args:
        name_or_path: a name of `zoo list`, or a directory.
        weights: "auto" (packaged, else the hub cache, else the hub), "random" (seed 0), or a directory or safetensors file.
        device: "cpu", "cuda", ...; "meta" builds the skeleton only, whatever the size.
        dtype: of the parameters in memory; by default the one the model is meant to run in.
        scale: "tiny" builds a twin for tests: the same architecture with a few layers and heads, and every ratio and quirk
            of it (heads per key/value head, FFN to width, tied or not, kinds of layers, windows, experts, rotary settings).
            It has random weights and no tokenizer: give it one as `model.processor`, or train one with `vocabulary.bpe`.

    Raises:
        UnknownName: neither a catalogued name nor a directory.
        RequestError: the directory holds no model.
        WeightsUnavailable: the weights are not here and cannot be fetched.
        ArtifactError: the directory is damaged.
    """
    wanted = _dtype_name(dtype)
    _require_device(device)
    spec, path = _locate(name_or_path)
    if scale is not None:
        spec, path = _twin(spec, path, scale, weights=weights, device=device), None
    weights = _checked_weights(weights, path)
    model = _loaded(spec, path, weights, device=device, dtype=wanted)
    if scale is not None:
        model.spec = replace(model.spec, params=model.params)
    if spec is not None or not model.source:
        model.source = source(name_or_path, weights=weights, dtype=wanted, stages=len(model.lineage))
    return model


def _loaded(
    spec: ModelSpec | None, path: Path | None, weights: str | Path, *, device: str | None, dtype: str | None
) -> Model:
    """Load what was located: a catalogued model, or what is in a directory."""
    if path is None:
        assert spec is not None
        _require_known(spec)
        family = registry.family_of(spec)
        spec = family.complete(spec)
        if device == "meta":
            skeleton = build_skeleton(
                family, spec, (), dtype=dtype or spec.dtype or "float32", stored=_stored(spec, weights)
            )
            skeleton.origin = "random" if weights == "random" else ""
            return skeleton
        if weights == "random":
            return build_random(family, spec, dtype=dtype or spec.dtype or "float32", device=device)
        path = _folder(spec, weights)
    elif weights == "random":
        skeleton = load(path, device="meta", dtype=dtype)
        skeleton.origin = "random"
        if device == "meta":
            return skeleton
        model = build_random(
            skeleton.family, skeleton.spec, lineage=skeleton.lineage, dtype=dtype or skeleton.dtype, device=device
        )
        model.processor = skeleton.processor
        return model
    if path.is_file() and spec is not None:
        return _from_file(spec, path, device=device, dtype=dtype)
    model = _from_folder(path, device=device, dtype=dtype or (spec.dtype if spec else None) or None)
    if spec is not None and model.spec.name != spec.name:
        _rename(model, spec, path)
    return model


def _twin(
    spec: ModelSpec | None, path: Path | None, scale: str, *, weights: str | Path, device: str | None
) -> ModelSpec:
    """The spec of a located model's twin.

    Raises:
        RequestError: there is no such scale, weights were asked for, or the architecture cannot be shrunk.
    """
    if scale not in SCALES:
        raise RequestError(f"{scale!r} is no scale.{nearest(scale, SCALES)} Scales: {', '.join(SCALES)}.")
    if weights != "random" and device != "meta":
        raise RequestError(f"scale={scale!r} makes a model that nobody has trained: add weights='random'.")
    if spec is None:
        assert path is not None
        skeleton = load(path, device="meta")
        if skeleton.lineage:
            raise RequestError(
                f"{path} was changed by {len(skeleton.lineage)} stages, and a twin has the shape of an original; take the twin of that."
            )
        spec = skeleton.spec
    _require_known(spec)
    family = registry.family_of(spec)
    spec = family.complete(spec)
    return replace(
        spec,
        name=f"{spec.name}-{scale}",
        config=family.shrunk(spec),
        params=0,
        params_non_embedding=0,
        hub="",
        revision="",
        sha256={},
        packaged="",
        dtype="",
        summary=f"{spec.name} at test size, untrained",
        plugin=spec.plugin,
    )


def _require_known(spec: ModelSpec) -> None:
    """Refuse a model of the catalogue whose shape is not known.

    Raises:
        RequestError: says what is missing.
    """
    if spec.unknown and not spec.config:
        raise RequestError(f"{spec.name} cannot be built, for this is not known of it: {spec.unknown}.")


def family_of(name_or_path: str | Path) -> Family:
    """Return the family of what `load` would load, before anything is.

    Raises:
        UnknownName, RequestError, ArtifactError: as `load`.
    """
    spec, path = _locate(name_or_path)
    if path is not None and (path / MANIFEST).exists():
        manifest = read_manifest(path)
        _require_plugins(manifest, path)
        return registry.family_of(manifest.spec, plugin=manifest.family_plugin)
    if spec is not None:
        return registry.family_of(spec)
    assert path is not None
    return registry.family(_recognised(path))


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config that would make a loader fetch code, or build until memory is full, before anything is built of it.

    Raises:
        ArtifactError: names the key.
    """
    for key, value in config.items():
        if key in CODE_KEYS and value:
            raise ArtifactError(f"{where} asks for remote code ({key!r}); zoo never runs code from a checkpoint.")
        if key.lstrip("_").endswith(("_implementation", "_implementation_internal")) and "/" in str(value):
            raise ArtifactError(
                f"{where} asks for compiled code of a hub ({key!r}); zoo never runs code from a checkpoint."
            )
        most = next((most for ending, most in MOST.items() if key.rstrip("s").endswith(ending)), None)
        if most and isinstance(value, int) and value > most:
            raise ArtifactError(
                f"{where}: {key} is {value:.3g}, and no model has more than {most:,}."
                if value < 1e300
                else f"{where}: {key} is no size."
            )
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                check_config(inner, where)


def _locate(name_or_path: str | Path) -> tuple[ModelSpec | None, Path | None]:
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
    if not is_folder:
        what = "is a file, not a model directory" if path.exists() else "does not exist"
        raise UnknownName(
            f"{path} {what}.{nearest(path.name, catalog.catalogue())} `zoo list` shows the models that load by name."
        )
    return None, path


def _checked_weights(weights_at: str | Path, path: Path | None) -> str | Path:
    """Return "auto", "random" or a path that exists.

    Raises:
        RequestError: something else, or a path beside a directory that has weights of its own.
    """
    if weights_at in ("auto", "random"):
        return weights_at
    try:
        place = Path(weights_at).expanduser()
        there = place.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"weights={str(weights_at)[:80]!r} is no path: {getattr(error, 'strerror', None) or error}."
        ) from None
    if not there:
        hint = nearest(str(weights_at), ("auto", "random"))
        raise RequestError(
            f"weights={str(weights_at)!r} is neither 'auto' nor 'random' nor a directory or file that exists.{hint}"
        )
    if path is not None:
        raise RequestError(
            f"weights={str(weights_at)!r} goes with a name of `zoo list`; {path} is a directory with weights of its own."
        )
    return place


def _folder(spec: ModelSpec, weights_at: str | Path) -> Path:
    """Where the weights of `spec` are: a directory that says what it holds, or a safetensors file."""
    if weights_at == "auto":
        return weights.resolve(spec)
    path = Path(weights_at)
    if path.is_dir() and not (path / MANIFEST).exists() and not recognise(path) and (path / WEIGHTS).exists():
        return path / WEIGHTS
    return path


def stored_in(place: Path) -> str:
    """The dtype of the weights in a directory or a file: from its manifest, else from the headers; "" where there are none."""
    if (place / MANIFEST).exists():
        return read_manifest(place).stored
    files = [place] if place.is_file() else sorted(place.rglob("*.safetensors"))
    kinds = {tensor["dtype"] for file in files for tensor in safetensors.read_header(file).values()}
    return next(
        (name for kind, name in (("BF16", "bfloat16"), ("F16", "float16")) if kind in kinds), "float32" if kinds else ""
    )


def _stored(spec: ModelSpec, weights_at: str | Path) -> str:
    """The dtype that the weights of `spec` have on disk, as far as they are on this machine."""
    place = weights.packaged_at(spec) if weights_at == "auto" else None if weights_at == "random" else Path(weights_at)
    return stored_in(place) if place else ""


def _rename(model: Model, spec: ModelSpec, path: Path) -> None:
    """Take weights found in a directory as those of `spec`, which they must fit."""
    found, expected = (
        {n: tuple(t.shape) for n, t in m.tensors().items()}
        for m in (model, build_skeleton(model.family, spec, model.lineage))
    )
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ArtifactError(
                f"{path} does not hold {spec.name}: {name} is {found.get(name, 'absent')} there, the model expects {expected.get(name, 'none')}."
            )
    model.spec = spec


def _from_folder(path: Path, *, device: str | None, dtype: str | None) -> Model:
    for place in path.iterdir():
        if place.exists() and not (place.is_file() or place.is_dir()):  # a pipe would be waited for
            raise ArtifactError(f"{place} is not a file.")
    if (path / MANIFEST).exists():
        return _from_artifact(path, device=device, dtype=dtype)
    for file in path.rglob(f"*{Path(WEIGHTS).suffix}"):
        within_another = any((place / MANIFEST).exists() for place in file.parents if place.is_relative_to(path))
        if not within_another and safetensors.read_metadata(file).get("manifest") == MANIFEST:
            raise ArtifactError(
                f"{path / MANIFEST} is missing, the manifest that {file.name} was saved with: copy the whole model again."
            )
    import torch

    from zoo.tensors.alignment import align

    model = registry.family(_recognised(path)).read_foreign(
        path, device=device, dtype=getattr(torch, dtype) if dtype else None
    )
    align(model.module)
    return model


def _recognised(path: Path) -> str:
    """The family whose checkpoint directory `path` is."""
    for name in recognise(path):
        return name
    raise RequestError(
        f"{path} is not a model directory: it holds neither {MANIFEST} nor a known config such as config.json."
    )


def _from_artifact(path: Path, *, device: str | None, dtype: str | None) -> Model:
    manifest = read_manifest(path)
    spec, lineage = manifest.spec, manifest.lineage
    run = dtype or manifest.dtype
    _require_plugins(manifest, path)
    family = registry.family_of(spec, plugin=manifest.family_plugin)
    with _readable(path / MANIFEST):
        unlisted = [file for file in family.weight_files(spec.config).values() if file not in manifest.files]
    if unlisted:
        raise ArtifactError(f"{path / MANIFEST} is damaged: it does not list {unlisted[0]}.")
    check_config(spec.config, str(path / MANIFEST))
    if device != "meta":
        store.require_intact(path)
    build = build_skeleton if device == "meta" else build_empty
    with _readable(path / MANIFEST):
        model = build(family, spec, lineage, dtype=run, stored=manifest.stored)
    if device == "meta":
        store.require_described(model, path)
    else:
        store.fill(model, path)
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
        raise ArtifactError(f"{manifest} describes a model that cannot be built ({one_line(error)[:160]}).") from error


def _require_plugins(manifest: Manifest, path: Path) -> None:
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
        raise ArtifactError(f"{path}: {what} {_missing(plugin, manifest) or f'is not to be had: {error}'}") from None


def _missing(plugin: str, manifest: Manifest) -> str:
    """Say why a plugin does not give what a saved model needs, and what to do about it; "" where it is not known which."""
    if not plugin:
        return ""
    made = manifest.plugins.get(plugin, {})
    if reason := manager.why_absent(plugin):
        known = str(made.get("distribution", ""))
        remedy = (
            f": `zoo plugins install {known}`, then load again" if is_name(known) else "; install it, then load again"
        )
        return f"needs plugin {plugin}, which {reason}" + (f"{remedy}." if reason == "is not installed" else ".")
    found = manager.find(plugin)
    if found.fault and not found.names:
        return f"needs plugin {plugin}, which cannot be used: {found.fault}"
    version = str(made.get("version", ""))
    then = f"; the model was made with version {version}" if version.isprintable() and version else ""
    return f"is not in plugin {plugin} {found.version}, which is installed{then}."


def _from_file(spec: ModelSpec, path: Path, *, device: str | None, dtype: str | None) -> Model:
    if path.suffix != ".safetensors":
        raise ArtifactError(f"{path} is not a .safetensors file; other weight formats are not read.")
    run = dtype or spec.dtype or "float32"
    model = build_empty(registry.family_of(spec), spec, (), dtype=run, stored=run)
    store.fill(model, path)
    model.processor = model.family.load_processor(weights.packaged_at(spec) or path.parent)
    model.module.to(device or "cpu")
    model.origin = str(path)
    return model


def _require_device(device: str | None) -> None:
    """Refuse a device that torch does not know or this machine does not have."""
    if device in (None, "cpu", "meta"):
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")[:150]
        raise RequestError(f"device {device!r} cannot be used here: {reason}.") from None


def _dtype_name(dtype: Any) -> str | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise RequestError(
            f"dtype {name!r} is not one models run in.{nearest(name, DTYPES)} Dtypes: {', '.join(DTYPES)}."
        )
    return name
