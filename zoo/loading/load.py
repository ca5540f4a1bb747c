"""`zoo.load`: from a name or a path to a model that runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import registry
from zoo.artifact.manifest import PRECISIONS
from zoo.catalog import ModelSpec
from zoo.errors import RequestError, nearest, reason
from zoo.loading.directory import from_file, from_folder, take_as
from zoo.loading.locate import Located, locate, require_known
from zoo.model.model import Model, build_random, build_skeleton
from zoo.model.provenance import source
from zoo.plugins.names import recognise

if TYPE_CHECKING:
    import torch

    from zoo.tensors.offload import Offload

DTYPES = PRECISIONS
SCALES = ("tiny",)


def load(
    name_or_path: str | Path | Located,
    *,
    weights: str | Path = "auto",
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    scale: str | None = None,
    offload: str | Path | None = None,
) -> Model:
    """Load a model by catalogue name, or from a directory: one of ours, or a plain transformers checkpoint.

    Args:
        name_or_path: a name of `zoo list`, a directory, or a GGUF file; or what `locate` has made of one, with its weights.
        weights: "auto" (packaged, else the hub cache, else the hub), "random" (seed 0), or a directory or safetensors file;
            of a directory of quantized weights "dequantized", which widens them to plain ones as far as transformers can.
        device: "cpu", "cuda", ...; "meta" builds the skeleton only, whatever the size.
        dtype: of the parameters in memory; by default the one the model is meant to run in.
        scale: "tiny" builds a twin for tests: the same architecture with a few layers and heads, and every ratio and quirk
            of it (heads per key/value head, FFN to width, tied or not, kinds of layers, windows, experts, rotary settings).
            It has random weights and, where its family makes none, no tokenizer: give it one as `model.processor`, or
            train one with `vocabulary.bpe`.
        offload: a directory on a local disk, where the weights are kept in files without names in place of memory: for
            models larger than it. They are read when they are used, and gone with the model.

    Raises:
        UnknownName: neither a catalogued name nor a directory.
        RequestError: the directory holds no model.
        WeightsUnavailable: the weights are not here and cannot be fetched.
        ArtifactError: the directory is damaged.
    """
    wanted = _dtype_name(dtype)
    _require_device(device)
    located = name_or_path if isinstance(name_or_path, Located) else locate(name_or_path, weights)
    if scale is not None:
        located = replace(located, spec=_twin(located, scale, device=device), path=None)
    place = _offload(offload, device)
    model = _loaded(located, device=device, dtype=wanted, offload=place)
    if place:
        place.take(model.module)
    if scale is not None:
        model.spec = replace(model.spec, params=model.params)
    if located.spec is not None or not model.source:
        model.source = source(located.asked, weights=located.weights, dtype=wanted, stages=len(model.lineage))
    return model


def _loaded(located: Located, *, device: str | None, dtype: str | None, offload: Offload | None = None) -> Model:
    """Load what was located: a catalogued model, or what is in a directory."""
    spec, random = located.spec, located.weights == "random"
    if located.path is None:
        assert spec is not None
        require_known(spec)
        family = located.family
        spec = family.complete(spec)
        run = dtype or spec.dtype or "float32"
        if device == "meta":
            skeleton = build_skeleton(family, spec, (), dtype=run, stored=located.stored)
            skeleton.origin = "random" if random else str(located.here or "")
            if located.here is not None and (located.here.is_dir() or recognise(located.here)):
                skeleton.processor = family.load_processor(located.here)
            return skeleton
        if random:
            return build_random(family, spec, dtype=run, device=device)
    elif random:
        skeleton = _loaded(replace(located, weights="auto"), device="meta", dtype=dtype)
        skeleton.origin = "random"
        if device == "meta":
            return skeleton
        model = build_random(
            skeleton.family, skeleton.spec, lineage=skeleton.lineage, dtype=dtype or skeleton.dtype, device=device
        )
        model.processor = skeleton.processor
        return model
    path = located.fetched()
    if path.is_file() and spec is not None and not recognise(path):
        return from_file(spec, path, device=device, dtype=dtype, offload=offload)
    wanted = dtype or (spec.dtype if spec else None) or None
    model = from_folder(
        path,
        located.manifest,
        device=device,
        dtype=wanted,
        dequantize=located.weights == "dequantized",
        offload=offload,
    )
    if spec is not None and model.spec.name != spec.name:
        take_as(model, spec, path)
    return model


def _twin(located: Located, scale: str, *, device: str | None) -> ModelSpec:
    """The spec of a located model's twin.

    Raises:
        RequestError: there is no such scale, weights were asked for, or the architecture cannot be shrunk.
    """
    if scale not in SCALES:
        raise RequestError(f"{scale!r} is no scale.{nearest(scale, SCALES)} Scales: {', '.join(SCALES)}.")
    if located.weights != "random" and device != "meta":
        raise RequestError(f"scale={scale!r} makes a model that nobody has trained: add weights='random'.")
    spec = located.spec
    if spec is None:
        skeleton = _loaded(replace(located, weights="auto"), device="meta", dtype=None)
        if skeleton.lineage:
            raise RequestError(
                f"{located.path} was changed by {len(skeleton.lineage)} stages, and a twin has the shape of an original; "
                "take the twin of that."
            )
        spec = skeleton.spec
    require_known(spec)
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
        distribution="",
        dtype="",
        summary=f"{spec.name} at test size, untrained",
        plugin=spec.plugin,
    )


def _offload(folder: str | Path | None, device: str | None) -> Offload | None:
    """What keeps the weights of a model in files of a directory.

    Raises:
        RequestError: there is no such directory, or the model is to be elsewhere than in memory.
    """
    from zoo.tensors.offload import Offload

    if folder is None:
        return None
    if device not in (None, "cpu"):
        raise RequestError(f"offload goes with device 'cpu': weights on {device!r} are not kept in files.")
    if not isinstance(folder, str | Path) or not Path(folder).is_dir():
        shown = str(folder) if isinstance(folder, Path) else folder
        raise RequestError(f"offload={shown!r} is no directory; name one on a local disk.")
    return Offload(Path(folder))


def _require_device(device: str | None) -> None:
    """Refuse a device that torch does not know or this machine does not have."""
    if device in (None, "cpu", "meta"):
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise RequestError(f"device {device!r} cannot be used here: {reason(error)}.") from None


def _dtype_name(dtype: Any) -> str | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise RequestError(
            f"dtype {name!r} is not one models run in.{nearest(name, DTYPES)} Dtypes: {', '.join(DTYPES)}."
        )
    return name
