"""`zoo.load`: from a name or a path to a model that runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import artifact, catalog, header, registry, weights
from zoo.catalog import ModelSpec
from zoo.errors import ArtifactError, RequestError, UnknownName, nearest, one_line
from zoo.model import Model, Stage

if TYPE_CHECKING:
    import torch

    from zoo.family import Family

DTYPES = artifact.PRECISIONS
UNFIT = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError)  # what a record of another model causes


def load(
    name_or_path: str | Path, *, weights: str | Path = "auto", device: str | None = None, dtype: str | torch.dtype | None = None
) -> Model:
    """Load a model by catalogue name, or from a directory: one of ours, or a plain transformers checkpoint.

    Args:
        name_or_path: a name of `zoo list`, or a directory.
        weights: "auto" (packaged, else the hub cache, else the hub), "random" (seed 0), or a directory or safetensors file.
        device: "cpu", "cuda", ...; "meta" builds the skeleton only, whatever the size.
        dtype: of the parameters in memory; by default the one the model is meant to run in.

    Raises:
        UnknownName: neither a catalogued name nor a directory.
        RequestError: the directory holds no model.
        WeightsUnavailable: the weights are not here and cannot be fetched.
        ArtifactError: the directory is damaged.
    """
    wanted = _dtype_name(dtype)
    _require_device(device)
    spec, path = _locate(name_or_path)
    weights = _checked_weights(weights, path)
    if path is None:
        assert spec is not None
        family = registry.family(spec.family)
        spec = family.complete(spec)
        if device == "meta":
            skeleton = build_skeleton(family, spec, (), dtype=wanted or spec.dtype or "float32", stored=_stored(spec, weights))
            skeleton.origin = "random" if weights == "random" else ""
            return skeleton
        if weights == "random":
            return build_random(family, spec, dtype=wanted or spec.dtype or "float32", device=device)
        path = _folder(spec, weights)
    elif weights == "random":
        skeleton = load(path, device="meta", dtype=dtype)
        skeleton.origin = "random"
        if device == "meta":
            return skeleton
        model = build_random(skeleton.family, skeleton.spec, lineage=skeleton.lineage, dtype=wanted or skeleton.dtype, device=device)
        model.processor = skeleton.processor
        return model
    if path.is_file() and spec is not None:
        return _from_file(spec, path, device=device, dtype=wanted)
    model = _from_folder(path, device=device, dtype=wanted or (spec.dtype if spec else None) or None)
    if spec is not None and model.spec.name != spec.name:
        _rename(model, spec, path)
    return model


def family_of(name_or_path: str | Path) -> Family:
    """Return the family of what `load` would load, before anything is.

    Raises:
        UnknownName, RequestError, ArtifactError: as `load`.
    """
    spec, path = _locate(name_or_path)
    if path is not None and (path / artifact.MANIFEST).exists():
        spec = artifact.read(path).spec
    if spec is not None:
        return registry.family(spec.family)
    assert path is not None
    return registry.family(_recognised(path))


def build_skeleton(
    family: Family, spec: ModelSpec, lineage: Sequence[Stage], *, dtype: str = "float32", stored: str = ""
) -> Model:
    """Build a model's structure on the meta device, its lineage replayed; nothing is allocated."""
    import torch

    with torch.device("meta"):
        module = family.build(spec.config, spec.task)
    cast_parameters(module, getattr(torch, dtype))
    return _replayed(Model(module, family, spec, dtype=dtype, stored=stored or dtype), lineage)


def build_random(
    family: Family, spec: ModelSpec, *, lineage: Sequence[Stage] = (), dtype: str = "float32", stored: str = "",
    device: str | None = None, seed: int = 0,
) -> Model:
    """Build a model with the architecture's own random initialisation, drawn from `seed`.

    Raises:
        RequestError: the lineage packs weights; codes and scales have no random initialisation.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("cpu"):
            module = family.build(spec.config, spec.task)
        model = _replayed(Model(module, family, spec, dtype=dtype, stored=stored or dtype, origin="random"), lineage)
        if any(hasattr(part, "zoo_packed") for part in model.module.modules()):
            raise RequestError(f"{spec.name} has packed weights, which cannot be drawn at random; start from the model it was made of.")
        family.initialise(model.module)
    cast_parameters(model.module, getattr(torch, dtype))
    model.module.to(device or "cpu")
    return model


def build_empty(family: Family, spec: ModelSpec, lineage: Sequence[Stage], *, dtype: str, stored: str) -> Model:
    """Build a model whose parameters are on the meta device and whose buffers are real, ready to be filled from a file."""
    import torch

    with _empty_parameters():
        module = family.build(spec.config, spec.task)
    cast_parameters(module, getattr(torch, dtype))
    return _replayed(Model(module, family, spec, dtype=dtype, stored=stored), lineage)


@contextmanager
def _empty_parameters() -> Iterator[None]:
    """Put every parameter on the meta device as it is registered; buffers, such as rotary tables, become real.

    accelerate's `init_empty_weights` does the same but takes tied parameters apart.
    """
    from torch import nn

    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def cast_parameters(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast float parameters in place; buffers (rotary tables, packed codes and scales) keep their dtype.

    So do the parameters of a normalisation with running statistics, which runs in the dtype of those.
    """
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            if parameter.is_floating_point() and getattr(part, "running_mean", None) is None:
                parameter.data = parameter.data.to(dtype)


def _replayed(model: Model, lineage: Sequence[Stage]) -> Model:
    for number, stage in enumerate(lineage, 1):
        try:
            model.replay(stage)
        except UNFIT as error:
            raise ArtifactError(
                f"the record of stage {number} ({stage.use}) does not fit the model ({one_line(error)[:160]})."
            ) from error
    return model


def _locate(name_or_path: str | Path) -> tuple[ModelSpec | None, Path | None]:
    """A catalogued name wins over a folder of the same name; "./name" means the folder."""
    text = str(name_or_path)
    try:
        path = Path(text).expanduser()
        there, is_folder = bool(text) and path.exists(), path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise UnknownName(f"{text[:80]!r} is no model and no path: {getattr(error, 'strerror', None) or error}.") from None
    if isinstance(name_or_path, str) and not text.startswith((".", "/", "~")):
        try:
            return catalog.info(text), None
        except UnknownName:
            if not there:
                raise
    if not is_folder:
        what = "is a file, not a model directory" if path.exists() else "does not exist"
        names = [spec.name for spec in catalog.models()]
        raise UnknownName(f"{path} {what}.{nearest(path.name, names)} `zoo list` shows the models that load by name.")
    return None, path


def _checked_weights(weights_at: str | Path, path: Path | None) -> str | Path:
    """Return "auto", "random" or a path that exists.

    Raises:
        RequestError: something else, or a path beside a directory that has weights of its own.
    """
    if weights_at in ("auto", "random"):
        return weights_at
    place = Path(weights_at).expanduser()
    if not place.exists():
        hint = nearest(str(weights_at), ("auto", "random"))
        raise RequestError(f"weights={str(weights_at)!r} is neither 'auto' nor 'random' nor a directory or file that exists.{hint}")
    if path is not None:
        raise RequestError(f"weights={str(weights_at)!r} goes with a name of `zoo list`; {path} is a directory with weights of its own.")
    return place


def _folder(spec: ModelSpec, weights_at: str | Path) -> Path:
    """Where the weights of `spec` are: a directory that says what it holds, or a safetensors file."""
    if weights_at == "auto":
        return weights.resolve(spec)
    path = Path(weights_at)
    if path.is_dir() and not (path / artifact.MANIFEST).exists() and not registry.recognise(path) and (path / artifact.WEIGHTS).exists():
        return path / artifact.WEIGHTS
    return path


def stored_in(place: Path) -> str:
    """The dtype of the weights in a directory or a file: from its manifest, else from the headers; "" where there are none."""
    if (place / artifact.MANIFEST).exists():
        return artifact.read(place).stored
    files = [place] if place.is_file() else sorted(place.rglob("*.safetensors"))
    kinds = {tensor["dtype"] for file in files for tensor in header.read(file).values()}
    return next((name for kind, name in (("BF16", "bfloat16"), ("F16", "float16")) if kind in kinds), "float32" if kinds else "")


def _stored(spec: ModelSpec, weights_at: str | Path) -> str:
    """The dtype that the weights of `spec` have on disk, as far as they are on this machine."""
    place = weights.packaged_at(spec) if weights_at == "auto" else None if weights_at == "random" else Path(weights_at)
    return stored_in(place) if place else ""


def _rename(model: Model, spec: ModelSpec, path: Path) -> None:
    """Take weights found in a directory as those of `spec`, which they must fit."""
    found, expected = ({n: tuple(t.shape) for n, t in m.tensors().items()}
                       for m in (model, build_skeleton(model.family, spec, model.lineage)))  # fmt: skip
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ArtifactError(f"{path} does not hold {spec.name}: {name} is {found.get(name, 'absent')} there, the model expects {expected.get(name, 'none')}.")
    model.spec = spec


def _from_folder(path: Path, *, device: str | None, dtype: str | None) -> Model:
    if (path / artifact.MANIFEST).exists():
        return _from_artifact(path, device=device, dtype=dtype)
    import torch

    from zoo.alignment import align

    model = registry.family(_recognised(path)).read_foreign(path, device=device, dtype=getattr(torch, dtype) if dtype else None)
    align(model.module)
    return model


def _recognised(path: Path) -> str:
    """The family whose checkpoint directory `path` is."""
    for name in registry.recognise(path):
        return name
    raise RequestError(f"{path} is not a model directory: it holds neither {artifact.MANIFEST} nor a known config such as config.json.")


def _from_artifact(path: Path, *, device: str | None, dtype: str | None) -> Model:
    manifest = artifact.read(path)
    spec, lineage = manifest.spec, manifest.lineage
    run = dtype or manifest.dtype
    try:
        family = registry.family(spec.family)
    except UnknownName:
        raise ArtifactError(f"{path} holds a {spec.family} model, which needs plugin {spec.plugin}: install it, then load again.") from None
    unlisted = [file for file in family.weight_files(spec.config).values() if file not in manifest.files]
    if unlisted:
        raise ArtifactError(f"{path / artifact.MANIFEST} is damaged: it does not list {unlisted[0]}.")
    if device != "meta":
        artifact.require_intact(path)
    build = build_skeleton if device == "meta" else build_empty
    try:
        model = build(family, spec, lineage, dtype=run, stored=manifest.stored)
    except (RequestError, ArtifactError) as error:
        raise ArtifactError(f"{path / artifact.MANIFEST}: {error}") from error
    if device != "meta":
        artifact.fill(model, path)
        if device:
            model.module.to(device)
    model.processor = family.load_processor(path)
    model.origin, model.notes = str(path), dict(manifest.notes)
    return model


def _from_file(spec: ModelSpec, path: Path, *, device: str | None, dtype: str | None) -> Model:
    if path.suffix != ".safetensors":
        raise ArtifactError(f"{path} is not a .safetensors file; other weight formats are not read.")
    run = dtype or spec.dtype or "float32"
    model = build_empty(registry.family(spec.family), spec, (), dtype=run, stored=run)
    artifact.fill(model, path)
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
        raise RequestError(f"dtype {name!r} is not one models run in.{nearest(name, DTYPES)} Dtypes: {', '.join(DTYPES)}.")
    return name
