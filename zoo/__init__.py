"""Zoo: a model zoo whose models come with the means to make them smaller.

Everything here is imported when it is first used, so `import zoo` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoo.system.hub_kernels import leave_on_the_hub

if TYPE_CHECKING:
    from zoo.catalog import ModelSpec, info, models
    from zoo.errors import (
        ArtifactError,
        DataError,
        OutputError,
        PluginError,
        RecipeError,
        Refused,
        RequestError,
        UnknownName,
        WeightsUnavailable,
        ZooError,
    )
    from zoo.loading.load import load
    from zoo.model.model import Model

    __version__: str

leave_on_the_hub()

__all__ = [
    "ArtifactError",
    "DataError",
    "Model",
    "ModelSpec",
    "OutputError",
    "PluginError",
    "RecipeError",
    "Refused",
    "RequestError",
    "UnknownName",
    "WeightsUnavailable",
    "ZooError",
    "__version__",
    "info",
    "load",
    "models",
]

_HOMES = {
    "load": "zoo.loading.load",
    "Model": "zoo.model.model",
    **dict.fromkeys(("ModelSpec", "info", "models"), "zoo.catalog"),
}  # the rest are errors


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("zoo-compress")
    if name not in __all__:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "zoo.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
