"""The classes of timm's models: whether there are any, what a config says of them, or the names of ImageNet's, which timm ships."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from zoo.errors import RequestError
from zoo.family.vision.embedding import ImageEmbedding

TASK = "image-classification"


def classes_of(about: Mapping[str, Any], architecture: str, count: int) -> list[tuple[str, str]]:
    """Name and description of every class, in the order of the logits; where they are not known, numbers."""
    names, said = about.get("label_names"), about.get("label_descriptions") or {}
    if names:
        names = [names[i] for i in sorted(names, key=int)] if isinstance(names, Mapping) else list(names)
        classes = [(str(name), str(said.get(name, name))) for name in names]
    else:
        classes = list(_imagenet(str(about.get("tag") or ""), architecture, count))
    return classes if len(classes) == count else [(str(i), str(i)) for i in range(count)]


@functools.cache
def _imagenet(tag: str, architecture: str, count: int) -> tuple[tuple[str, str], ...]:
    """Synset and names of ImageNet's classes, which timm ships, where `tag` says that a model was trained on them."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if not any(
        word in tag for word in ("in1k", "in12k", "in21k", "in22k")
    ):  # "fb_in22k_ft_in1k_384": the count says which
        return ()

    class Asked:  # all that timm looks at
        num_classes = count
        pretrained_cfg: ClassVar[dict[str, Any]] = {"tag": tag, "architecture": architecture}

    subset = infer_imagenet_subset(Asked)
    info = ImageNetInfo(subset) if subset else None
    if not info or info.num_classes() != count:
        return ()
    return tuple((info.index_to_label_name(i), info.index_to_description(i)) for i in range(count))


def task_named_by(config: Mapping[str, Any]) -> str:
    """What a model is for, by its number of classes; one of none gives what its head would read.

    Raises:
        RequestError: that would be no vector.
    """
    given = [
        table["num_classes"] for table in (config["model_args"], config["pretrained_cfg"]) if "num_classes" in table
    ]
    if given[:1] != [0]:
        return TASK
    if "global_pool" in config["model_args"] and not config["model_args"]["global_pool"]:
        raise RequestError(
            f"{config['architecture']} without classes and without global_pool gives a map of features, and no vector of an "
            "image: leave global_pool out."
        )
    return ImageEmbedding.name
