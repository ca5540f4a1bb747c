"""Which classes a pipeline directory may name: the public ones of diffusers and transformers, and this plugin's own.

A directory says class names. A name is looked up in a fixed place and has to be of the right kind; a module path taken
from data is never imported, and code beside the weights is never run.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import transformers
from torch import nn
from transformers.image_processing_base import ImageProcessingMixin

from zoo.errors import ArtifactError
from zoo.loading.directory import CODE_KEYS, check_config

COMPONENTS = (diffusers.ModelMixin, transformers.PreTrainedModel)
OTHERS = (diffusers.SchedulerMixin, transformers.PreTrainedTokenizerBase, ImageProcessingMixin)


def own() -> dict[str, tuple[str, type]]:
    """This plugin's classes by name, each with the library that a model_index.json names for it."""
    from zoo_snapgen.decoder import SnapGenDecoder
    from zoo_snapgen.pipeline import SnapGenPipeline
    from zoo_snapgen.unet import SnapGenUNet

    return {one.__name__: (one.__module__, one) for one in (SnapGenUNet, SnapGenDecoder, SnapGenPipeline)}


def find(name: Any, kinds: tuple[type, ...], *, where: str) -> Any:
    """Return the class of that name, one of ours or a public one of diffusers or transformers, of one of the kinds.

    Raises:
        ArtifactError: there is none, or it is of another kind.
    """
    if isinstance(name, str) and name in own():
        places: tuple[Any, ...] = (own()[name][1],)
    elif isinstance(name, str) and name.isidentifier() and not name.startswith("_"):
        places = tuple(_public(library, name) for library in (diffusers, transformers))
    else:
        places = ()
    for found in places:
        if isinstance(found, type) and issubclass(found, kinds):
            return found
    wanted = " or ".join(kind.__name__ for kind in kinds)
    raise ArtifactError(
        f"{where} names {str(name)[:80]!r}, which is no public {wanted} of diffusers or transformers; zoo runs no code from a checkpoint."
    )


def takes(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """What the call of a pipeline takes, by name."""
    parameters = inspect.signature(pipeline.__call__).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "self"}


def require_drawing(pipeline: Any, *, where: str) -> None:
    """Refuse a pipeline that does not draw images of a prompt.

    Raises:
        ArtifactError: says what it takes instead, or what else it makes.
    """
    names = list(takes(pipeline))
    others = [name for name in names if any(word in name for word in ("frames", "video", "audio"))]
    if "prompt" in names and not others:
        return
    what = f"makes no single images (it takes {others[0]})" if others else "takes no prompt"
    raise ArtifactError(
        f"{where} is a {pipeline.__name__}, which {what}; zoo reads pipelines that draw images of a text prompt, "
        "such as StableDiffusionPipeline."
    )


def needs_images(pipeline: Any) -> bool:
    """Whether a pipeline draws into, or from, images that must come with the prompt."""
    from diffusers.pipelines import auto_pipeline

    needed = [name for name, parameter in takes(pipeline).items() if parameter.default is parameter.empty]
    tables = (auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING, auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING)
    into_images = {cls for table in tables for cls in table.values()}
    into_images -= set(auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values())
    return any("image" in name for name in needed) or pipeline in into_images


def _public(library: Any, name: str) -> Any:
    try:
        return getattr(library, name, None)
    except (ImportError, RuntimeError):  # lazily imported, and lacks something it needs
        return None


def library_of(cls: type) -> str:
    """The library that a model_index.json names for a class."""
    if cls.__name__ in own():
        return own()[cls.__name__][0]
    return cls.__module__.partition(".")[0]


def component_class(config: dict[str, Any], *, where: str) -> Any:
    """Return the class that a component's config.json names."""
    check_config(config, where)
    architectures = config.get("architectures") or [None]
    return find(config.get("_class_name") or architectures[0], COMPONENTS, where=where)


def build_component(config: dict[str, Any], *, where: str) -> nn.Module:
    """Build one component from its config, under whatever device context is active."""
    cls = component_class(config, where=where)
    values = {key: value for key, value in config.items() if not key.startswith("_") and key not in CODE_KEYS}
    try:
        if issubclass(cls, diffusers.ModelMixin):
            module: nn.Module = cls.from_config(values)
        else:
            module = cls(
                cls.config_class(**{k: v for k, v in values.items() if k not in ("model_type", "dtype", "torch_dtype")})
            )
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{where} does not describe a {cls.__name__}: {reason}.") from None
    return module.eval()
