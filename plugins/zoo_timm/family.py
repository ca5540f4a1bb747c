"""Image classifiers of timm: one family for all of its architectures.

timm builds the module, and says how its images are prepared; detection finds the anatomy. A config is timm's own
(`config.json` of its checkpoints): {"architecture", "model_args", "pretrained_cfg"}. Only safetensors are read.

timm: Apache-2.0, https://github.com/huggingface/pytorch-image-models; weights have licences of their own, which
`pretrained_cfg` names.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from zoo.anatomy.parts import Anatomy
from zoo.artifact.manifest import WEIGHTS
from zoo.artifact.weights import fill, require_described
from zoo.catalog import ModelSpec
from zoo.errors import ArtifactError, RequestError, UnknownName, nearest, reason
from zoo.family.vision.classifier import VisionFamily
from zoo.family.vision.embedding import ImageEmbedding
from zoo.family.vision.labels import plain_name
from zoo.loading.codes import require_no_codes
from zoo.model.model import Model
from zoo.tensors import safetensors
from zoo_timm import caches
from zoo_timm.classes import TASK, classes_of, task_named_by
from zoo_timm.differences import first_difference, tensors_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

    from zoo.tensors.batch import Batch

DTYPES = {"BF16": "bfloat16", "F16": "float16"}
LONGEST = 4  # an image is first cut to this many times its shorter side: only the middle is looked at


class TimmVision(VisionFamily):
    """Models built by `timm.create_model`."""

    tasks: ClassVar[tuple[str, ...]] = (TASK, ImageEmbedding.name)
    library: ClassVar[str] = "timm"

    def complete(self, spec: ModelSpec) -> ModelSpec:
        """Add what timm knows of a name: the preparation of images, the licence, the repository on the hub.

        Raises:
            UnknownName: timm has no such architecture, or no such weights of it.
        """
        if "pretrained_cfg" in spec.config:
            return spec
        known = _published(str(spec.config.get("architecture")))
        config = {
            "architecture": known.architecture,
            "model_args": dict(spec.config.get("model_args", {})),
            "pretrained_cfg": _json(known.to_dict(remove_source=True)),
        }
        hub = known.hf_hub_id or ""
        return replace(
            spec,
            config=config,
            task=task_named_by(config),
            license=known.license or "",
            hub=hub if self._fits(config) else "",
        )

    def _fits(self, config: Mapping[str, Any]) -> bool:
        """Whether the published weights, of the architecture without arguments, have the shapes that a config asks for."""
        if not config["model_args"]:
            return True
        with torch.device("meta"):
            asked = self.build(dict(config), TASK)
            published = self.build({**config, "model_args": {}}, TASK)
        shapes, others = ({name: t.shape for name, t in tensors_of(module).items()} for module in (asked, published))
        return shapes == others

    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        """Build the architecture a config names.

        Raises:
            UnknownName: timm has no such architecture.
            RequestError: it does not take the arguments.
        """
        import timm

        architecture, arguments = str(config.get("architecture")), dict(config.get("model_args", {}))
        if not timm.is_model(architecture):
            raise _unknown(architecture)
        prepared = dict(config.get("pretrained_cfg") or _json(_published(architecture).to_dict(remove_source=True)))
        prepared |= {"architecture": architecture, "input_size": _input_size(prepared, arguments)}
        try:
            with _quiet():
                module: Any = timm.create_model(architecture, pretrained_cfg=_known_keys(prepared), **arguments)
        except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
            given = ", ".join(f"{key} = {value}" for key, value in arguments.items()) or "no arguments"
            raise RequestError(f"timm cannot build {architecture} with {given}: {reason(error, 200)}.") from None
        module.zoo_config = dict(config)  # what `initialise` and `write_foreign` build the plain model from
        built: nn.Module = module.eval()
        return built

    def build_in(self, config: dict[str, Any], task: str, dtype: torch.dtype) -> nn.Module:
        """Cast buffers as well as parameters, as timm's users do with `model.to(dtype)`, but for batch norms."""
        module = self.build(config, task).to(dtype)
        for part in module.modules():
            if getattr(part, "running_mean", None) is not None:
                part.float()
        return module

    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        caches.forget(model.module)
        return super().forward(model, batch)

    def initialise(self, module: nn.Module) -> None:
        """Draw the plain architecture's own initialisation; a tensor that was cut takes the leading part.

        What the plain architecture does not have (factors, packed layers) draws its own.
        """
        own = tensors_of(self.build(module.zoo_config, TASK))  # type: ignore[arg-type]
        for part in module.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
        with torch.no_grad():
            for name, tensor in tensors_of(module).items():
                fresh = own.get(name)
                if (
                    fresh is not None
                    and fresh.dim() == tensor.dim()
                    and all(a >= b for a, b in zip(fresh.shape, tensor.shape, strict=True))
                ):
                    tensor.copy_(fresh[tuple(slice(size) for size in tensor.shape)])

    def anatomy(self, module: nn.Module) -> Anatomy:
        """Detected stacks ("vision"), and all other layers, the convolutions of blocks included, by the top part that they
        belong to ("stem", "layer1.0", "head").
        """
        from zoo.anatomy.detect import detect, plain_layers

        found = detect(module)
        blocks = [block for stack in found.stacks.values() for block in stack.blocks]
        named = {path for block in blocks for path in (*block.projections(), *block.all_routers)}
        regions: dict[str, tuple[str, ...]] = {}
        for top, _ in module.named_children():
            for path in plain_layers(module, top, skip=named):
                region = re.match(r"[^.]+(\.\d+)?", path)
                if region and _computes_as_named(module.get_submodule(path)):
                    regions[region[0]] = (*regions.get(region[0], ()), path)
        return replace(found, layers=regions)

    # --- images -------------------------------------------------------------------------------------------------

    def input_size(self, model: Model) -> tuple[int, int, int]:
        channels, height, width = _preparation(model)["input_size"]
        return channels, height, width

    def preprocess(self, model: Model, image: Image) -> torch.Tensor:
        """Prepare an image (C, H, W) as timm does for evaluation."""
        from timm.data import create_transform

        about = _preparation(model)
        side = min(image.size) * LONGEST
        if max(image.size) > side:  # scaled as it is, a strip of 1 x 20000 would take gigabytes
            left, top = ((length - min(length, side)) // 2 for length in image.size)
            image = image.crop((left, top, image.width - left, image.height - top))
        if about["input_size"][0] == 1:
            image = image.convert("L")
            about = {**about, "mean": (math.fsum(about["mean"]) / 3,), "std": (math.fsum(about["std"]) / 3,)}
        prepared: torch.Tensor = create_transform(**about, is_training=False)(image)
        return prepared

    def labels(self, model: Model) -> Sequence[str]:
        module: Any = model.module
        about: Mapping[str, Any] = module.pretrained_cfg
        count = int(getattr(module, "num_classes", 0))
        if count < 1:
            raise RequestError(
                f"{model.spec.name} has no classes, only features. Give it some: {model.spec.name}?num_classes=10."
            )
        classes = classes_of(about, model.spec.config["architecture"], count)
        shared = Counter(description for _, description in classes)  # ImageNet has two classes called "crane"
        return [text if shared[text] == 1 else f"{text} ({name})" for name, text in classes]

    def aliases(self, model: Model) -> Mapping[str, Sequence[int]]:
        """ImageNet's synsets ("n01440764"), and each of the common names that a class's label lists."""
        module: Any = model.module
        classes = classes_of(module.pretrained_cfg, model.spec.config["architecture"], int(module.num_classes))
        meant: dict[str, dict[int, None]] = {}
        for number, (name, description) in enumerate(classes):
            for alias in (name, description, *description.split(", ")):
                meant.setdefault(plain_name(alias), {})[number] = None
        return {alias: tuple(numbers) for alias, numbers in meant.items()}

    # --- checkpoints --------------------------------------------------------------------------------------------

    def read_foreign(self, path: Path, *, device: str | None, dtype: torch.dtype | None) -> Model:
        """Load a checkpoint directory as timm writes it: config.json and model.safetensors.

        Raises:
            ArtifactError: a file is missing or damaged, or a tensor does not fit the config.
        """
        from zoo.model.model import build_empty, build_skeleton

        config = _read_config(path)
        spec = ModelSpec(
            path.name,
            "timm",
            self.modality,
            task_named_by(config),
            plugin="zoo_timm",
            config=config,
            license=str(config["pretrained_cfg"].get("license") or ""),
        )
        file = path / WEIGHTS
        if not file.is_file():
            raise ArtifactError(f"{path} holds no {WEIGHTS}; pickled weights and other formats are not read.")
        require_no_codes([file])
        kinds = [about["dtype"] for about in safetensors.read_header(file).values()]
        run = (
            str(dtype).removeprefix("torch.")
            if dtype
            else next((DTYPES[kind] for kind in kinds if kind in DTYPES), "float32")
        )
        if device == "meta":
            skeleton = replace(build_skeleton(self, spec, (), dtype=run), origin=str(path))
            require_described(skeleton, path)
            return skeleton
        model = build_empty(self, spec, (), dtype=run, stored=run)
        fill(model, file)
        model.module.to(device or "cpu")
        model.origin = str(path)
        return model

    def write_foreign(self, model: Model, path: Path) -> str:
        """Write timm's config.json when the plain architecture, with other arguments if need be, has exactly the module's tensors."""
        module = model.module
        arguments = _arguments_now(model)
        config = {**module.zoo_config, "model_args": arguments}  # type: ignore[dict-item]
        try:
            with torch.device("meta"):
                plain = self.build(config, TASK)
        except RequestError as error:
            return f"no arguments of timm describe it ({error})"
        if found := first_difference(module, plain):
            return found
        about: Any = plain
        prepared = {**about.pretrained_cfg, "num_classes": about.num_classes, "custom_load": False}
        written = {
            "architecture": prepared.pop("architecture"),
            "num_classes": about.num_classes,
            "num_features": about.num_features,
            "model_args": arguments,
            "pretrained_cfg": prepared,
        }
        (path / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        return ""


# --- names and configs ------------------------------------------------------------------------------------------------


def _published(name: str) -> Any:
    """timm's PretrainedCfg of "architecture" or "architecture.tag"."""
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise _unknown(name)
    known = (
        timm.get_pretrained_cfg(name, allow_unregistered=True)
        if timm.is_model_pretrained(name) or name == architecture
        else None
    )
    if known is None:
        tags = timm.list_pretrained(f"{architecture}.*")
        raise UnknownName(f"timm has no weights {name!r}.{nearest(name, tags)} There is: {', '.join(tags) or 'none'}.")
    return known if known.architecture else replace(known, architecture=architecture)


def _unknown(name: str) -> UnknownName:
    import timm

    names = timm.list_models()
    return UnknownName(
        f"timm has no architecture {name!r}.{nearest(name, names)} timm.list_models() names all {len(names)}."
    )


def _read_config(path: Path) -> dict[str, Any]:
    """Read timm's config.json, in the present or the old flat layout."""
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
        architecture = str(found.pop("architecture"))
        prepared = dict(found.get("pretrained_cfg", found))
        arguments = dict(found.get("model_args") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{path / 'config.json'} is not a timm config with an architecture.") from None
    if "labels" in prepared:
        prepared["label_names"] = prepared.pop("labels")
    prepared |= {key: found[key] for key in ("num_classes", "label_names", "label_descriptions") if key in found}
    return {"architecture": architecture, "model_args": arguments, "pretrained_cfg": _json(_known_keys(prepared))}


def _known_keys(prepared: Mapping[str, Any]) -> dict[str, Any]:
    """What this version of timm knows of a `pretrained_cfg`, without where weights might be fetched from."""
    from timm.models import PretrainedCfg

    sources = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")
    known = {field.name for field in fields(PretrainedCfg)} - set(sources)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in prepared.items() if key in known}


def _input_size(prepared: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels, height and width, as the arguments change them."""
    channels, height, width = prepared.get("input_size") or (3, 224, 224)
    if (size := arguments.get("img_size")) is not None:
        height, width = (size, size) if isinstance(size, int) else size
    return int(arguments.get("in_chans") or channels), int(height), int(width)


def _preparation(model: Model) -> dict[str, Any]:
    from timm.data import resolve_data_config

    found: dict[str, Any] = resolve_data_config({}, pretrained_cfg=model.module.pretrained_cfg)
    return found


def _arguments_now(model: Model) -> dict[str, Any]:
    """The arguments that would build the module as it is now: fewer blocks, narrower FFNs."""
    arguments = dict(model.spec.config.get("model_args", {}))
    stack = model.anatomy.stacks.get("vision") if model.lineage else None
    if stack is None:
        return arguments
    arguments["depth"] = len(stack.blocks)
    widths = {block.ffn.width for block in stack.blocks if block.ffn}
    if len(widths) == 1 and stack.width:
        arguments["mlp_ratio"] = widths.pop() / stack.width
    return arguments


# --- modules ----------------------------------------------------------------------------------------------------------


def _computes_as_named(part: nn.Module) -> bool:
    """Whether a convolution or linear layer does nothing more: timm's padded and standardised ones do."""
    from timm.layers.linear import Linear  # the same for the scripting of half precision

    plain = (nn.Conv2d.forward, nn.Linear.forward, Linear.forward)
    return not isinstance(part, nn.Conv2d | nn.Linear) or type(part).forward in plain


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what timm logs while it builds: what matters becomes an error."""
    import logging

    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))
