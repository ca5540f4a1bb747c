"""What the checks of one plugin share: tiny models of every modality, the plugin's own, data for them, a fresh process."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError, one_line
from zoo.plugins import manager
from zoo.plugins.names import resolve
from zoo.testing.alphabet import give_processor
from zoo.testing.check import Once, Skipped
from zoo.testing.fresh import shared
from zoo.testing.materials import awake, data_for

if TYPE_CHECKING:
    from zoo.model.model import Model
    from zoo.plugins.declarations import ModelSpec
    from zoo.plugins.installed import Plugin
    from zoo.tensors.batch import Batch

# One of each modality and sort of answer, small enough to be compressed in a second: what the tables call it -> what `zoo.load` takes.
TINY = {
    "tiny-code": "tiny-code",
    "tiny-vlm": "tiny-vlm",
    "tiny-t2i": "tiny-t2i",
    "tiny-vit": "timm:vit_tiny_patch16_224?num_classes=10&img_size=32&depth=4",
    "tiny-vectors": "timm:vit_tiny_patch16_224?num_classes=0&img_size=32&depth=2",
}
LARGEST = 50_000_000  # parameters of a model that is built with weights; larger ones are built on the meta device alone


class Bench:
    """The tools for one plugin's checks; nothing is loaded before it is needed."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.fresh = shared()
        self._models: dict[tuple[str, bool], Once[Model]] = {}
        self._saved: dict[str, Path] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="zoo-check.")  # goes with the bench

    @cached_property
    def own(self) -> dict[str, ModelSpec]:
        """The models the plugin adds, by what `zoo.load` takes: those it declares, and those that others declare as its own."""
        models = {}
        for other in manager.plugins_in_use(disabled=True):
            for spec in other.models:
                if self.plugin.name in (other.name, spec.plugin):
                    models[f"{other.name}:{spec.name}"] = spec
        return models

    @cached_property
    def bases(self) -> dict[str, str]:
        """Every model that compressors, losses and evaluators are tried on, the plugin's first: its label -> what `zoo.load` takes."""
        own = {spec.name: full for full, spec in self.own.items() if spec.name not in TINY and spec.params <= LARGEST}
        return {**own, **dict(sorted(TINY.items(), key=lambda item: self._plugin_of(item[1]) != self.plugin.name))}

    def _plugin_of(self, name: str) -> str:
        from zoo import catalog

        with contextlib.suppress(ZooError):
            return catalog.info(name).plugin
        return ""

    def label(self, name: str) -> str:
        """What the tables call something of this plugin."""
        return f"{self.plugin.name}:{name}"

    def model(self, base: str, *, random: bool = False) -> Model:
        """The model of a base, loaded once; who changes it takes a copy.

        Its weights are the packaged ones, else random, none of them zero, so that every one matters to the output; a
        language model without a tokenizer is then given one, unless `random` asks for what knows none.
        """
        key = (base, random)
        if key not in self._models:
            self._models[key] = Once(lambda: _loaded(self.bases.get(base, base), random=random))
        return self._models[key]()

    def usable(self, base: str, *, random: bool = False) -> Model:
        """The same for checks of something else than the model, which do not apply where it cannot be had."""
        try:
            return self.model(base, random=random)
        except Exception as error:
            raise Skipped(f"{base} cannot be had: {one_line(error)}") from None

    def start(self, base: str, *, random: bool = False) -> dict[str, str]:
        """How another process comes by the model of a base, as `zoo.testing.fresh` reads it; where it is saved, once."""
        if random:
            return {"random": self.bases.get(base, base)}
        if base not in self._saved:
            self._saved[base] = self.model(base).save(Path(self._folder.name) / f"{len(self._saved)}")
        return {"saved": str(self._saved[base])}

    def batch(self, model: Model) -> Batch:
        """A training batch of the model's own windows."""
        from zoo.tensors.batch import generators

        windows = model.family.windows(model, data_for(model), length=64)
        some = range(min(4, len(windows)))
        joined = model.family.collate(model, [windows[i] for i in some])
        drawn = model.family.draw(model, joined, generators(0, some))
        return {name: tensor.to(model.device) for name, tensor in drawn.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, on which tiny tensors are several times faster than on two that wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def other_chance(seed: int = 8_191) -> Iterator[None]:
    """Set the global random states to something else, and back afterwards: what draws from them, or sets them, shows."""
    import random

    import numpy as np
    import torch

    plain, old = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(old)


def _loaded(name: str, *, random: bool) -> Model:
    from zoo import catalog
    from zoo.loading import weights
    from zoo.loading.load import load

    spec = catalog.info(name)
    if not random and weights.packaged_at(spec) is not None:
        return load(name)
    model = awake(load(name, weights="random"))
    if not random:
        give_processor(model)
    return model


def thing(kind: str, name: str) -> Any:
    """The object behind a full name.

    Raises:
        PluginError: it cannot be had; says why.
    """
    return resolve(kind, name)


def folder_in(folder: Path, stem: str) -> Path:
    """A new folder for one artifact."""
    parent = Path(tempfile.mkdtemp(dir=folder, prefix="".join(c if c.isalnum() else "-" for c in stem)[:40] + "."))
    return parent / "model"
