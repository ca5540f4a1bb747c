"""Checks of a model: it builds, computes, learns, generates, and comes back from disk as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import RequestError
from zoo.testing.bench import LARGEST, TINY, Bench, folder_in, other_chance
from zoo.testing.check import Check, Once, Skipped, require
from zoo.testing.checks.anatomies import check_anatomy
from zoo.testing.checks.passes import check_cache, check_length, check_order, check_padding, check_samples
from zoo.testing.computed import difference, hash_of_tensors, outputs
from zoo.testing.exact import name_of
from zoo.testing.materials import LINES, picture
from zoo.testing.surroundings import surroundings_kept

if TYPE_CHECKING:
    import torch

    from zoo.model.model import Model
    from zoo.plugins.declarations import ModelSpec

GENERATED = {"max_new_tokens": 8, "steps": 2, "count": 1, "seed": 0}  # small, and only what the family takes


def checks_of_models(bench: Bench) -> Iterator[Check]:
    """The checks of every model the plugin adds, and of the tiny one for its family where it adds none."""
    for full, spec in models_of(bench).items():
        subject = _Subject(bench, full, spec)
        for name, run in subject.questions.items():
            yield Check("model", bench.label(spec.name), name, run, bench.plugin.path)


def models_of(bench: Bench) -> dict[str, ModelSpec]:
    """What `zoo.load` takes -> the spec: the plugin's models, and those of ours that its families build."""
    from dataclasses import replace

    from zoo import catalog
    from zoo.errors import ZooError

    models = dict(bench.own)
    names = {spec.name for spec in models.values()}
    for label in TINY.keys() - names:
        try:
            spec = catalog.info(TINY[label])
        except ZooError:
            continue
        if spec.plugin == bench.plugin.name:
            models[label] = replace(spec, name=label)
    return models


class _Subject:
    """One model under test."""

    def __init__(self, bench: Bench, full: str, spec: ModelSpec) -> None:
        self.bench, self.full, self.spec = bench, full, spec
        self.loads = TINY.get(full, full)
        self.answer: Once[Any] = Once(self._generate)
        self.questions = {
            "build": self.build,
            "random weights": self.random_weights,
            "anatomy": self.anatomy,
            "forward": self.forward,
            "samples": self.samples,
            "order": self.order,
            "cache": self.cache,
            "padding": self.padding,
            "length": self.length,
            "gradients": self.gradients,
            "generate": self.generate,
            "save and reload": self.save_and_reload,
            "packaged weights": self.packaged_weights,
            "side effects": self.side_effects,
        }

    def model(self) -> Model:
        """The model with weights, for checks that need them."""
        if self.spec.params > LARGEST:
            raise Skipped(f"it has {self.spec.params:,} parameters, and is built on the meta device alone")
        self.bench.fresh.start()  # it will be asked, and imports for seconds
        return self.bench.model(self.full)

    def build(self, folder: Path) -> None:
        """A skeleton has exactly the parameters that are declared."""
        from zoo.loading.load import load

        skeleton = load(self.loads, device="meta")
        require(
            skeleton.family.modality == self.spec.modality,
            f"{self.spec.name} is declared as {self.spec.modality}, but its family is of {skeleton.family.modality}",
        )
        require(
            self.spec.task in skeleton.family.tasks,
            f"{self.spec.name} has the task {self.spec.task!r}, but its family does {', '.join(skeleton.family.tasks)}",
        )
        real = [name for name, p in skeleton.module.named_parameters() if not p.is_meta]
        require(not real, f"{name_of(skeleton)} allocates {real[:1]} when it is built on the meta device")
        if self.full in self.bench.own:
            require(
                skeleton.params == self.spec.params,
                f"{self.spec.name} has {skeleton.params:,} parameters, but registry.toml says params = {self.spec.params:,}",
            )

    def random_weights(self, folder: Path) -> None:
        """Random weights follow from the seed alone, and are all finite."""
        import torch

        from zoo.loading.load import load

        self.model()
        model = load(self.loads, weights="random")
        there = self.bench.fresh.random_weights(self.loads)
        with other_chance():
            again = load(self.loads, weights="random").tensors()
        for name, tensor in model.tensors().items():
            require(finite(tensor), f"{name_of(model)}: `initialise` leaves {name} with values that are not finite")
            require(
                torch.equal(tensor, again[name]),
                f"{name_of(model)}: {name} is not the same twice; `initialise` must draw from torch's "
                "global state (which the caller seeds) and from nothing else",
            )
        require(
            there == hash_of_tensors(model),
            f"{name_of(model)}: its random weights are others in another process; does `initialise` follow the order of a set?",
        )

    def anatomy(self, folder: Path) -> None:
        """Its anatomy describes the module; of a large one, the skeleton's."""
        from zoo.loading.load import load

        check_anatomy(load(self.loads, device="meta") if self.spec.params > LARGEST else self.model())

    def forward(self, folder: Path) -> None:
        """The example runs, alike every time, and gives finite numbers, one row for each sample."""
        import torch

        from zoo.family.vision.classifier import VisionFamily

        model = self.model()
        batch, same = (model.family.example(model, batch=2, seed=1) for _ in range(2))
        require(_alike(batch, same), f"{name_of(model)}: `example` is not the same twice for one seed")
        with torch.no_grad():
            output, again = (model.family.forward(model, batch) for _ in range(2))
        require(finite(output), f"{name_of(model)}: `forward` gives values that are not finite")
        require(len(output) == 2, f"{name_of(model)}: `forward` gives {len(output)} rows for 2 samples")
        if isinstance(model.family, VisionFamily):
            names = len(model.family.labels(model))
            require(
                names == output.shape[-1],
                f"{name_of(model)}: `labels` names {names} classes, and the module has {output.shape[-1]}",
            )
        require(
            not any(part.training for part in model.module.modules()),
            f"{name_of(model)}: `build` leaves it in train mode; return module.eval()",
        )
        require(
            torch.equal(output, again),
            f"{name_of(model)}: `forward` is not the same twice for one batch; is dropout on?",
        )

    def samples(self, folder: Path) -> None:
        """What is computed of a sample does not depend on those beside it."""
        check_samples(self.model())

    def order(self, folder: Path) -> None:
        """A token of a causal model sees none that comes after it."""
        check_order(self.model())

    def cache(self, folder: Path) -> None:
        """Token after token, with a cache, a causal model says what it says of all of them at once."""
        check_cache(self.model())

    def padding(self, folder: Path) -> None:
        """Prompts of several lengths, read together, are read as each is alone."""
        check_padding(self.model())

    def length(self, folder: Path) -> None:
        """It reads as many tokens as it says."""
        check_length(self.model())

    def gradients(self, folder: Path) -> None:
        """Every parameter gets a gradient from the example."""
        import torch

        model = self.model().copy()
        model.module.requires_grad_(True)
        for seed in range(2):
            out = model.family.forward(model, model.family.example(model, batch=4, size=32, seed=seed)).float()
            if not out.requires_grad:
                raise Skipped("its forward pass is not differentiated")
            weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.device)
            torch.autograd.backward((out * weights).sum())
        idle = [name for name, p in model.module.named_parameters() if p.grad is None or not p.grad.any()]
        require(
            not idle,
            f"{name_of(model)}: no gradient reaches {', '.join(idle[:3])}{' and others' if len(idle) > 3 else ''}",
        )

    def generate(self, folder: Path) -> None:
        """What is generated follows from the prompt and the seed, whatever else is made beside it."""
        self.answer()

    def _generate(self) -> Any:
        """The answer to a request, where the model gives the same every time."""
        from zoo.family.task import task_of

        model = self.model()
        if not readable(model):
            raise Skipped("its family saves a processor of its own kind, which random weights come without")
        prompt, options = request(model)
        answer = model.generate(prompt, **options)
        with other_chance():
            again = model.generate(prompt, **options)
        require(
            _alike(answer, again), f"{name_of(model)}: `generate` gives something else for the same prompt and seed"
        )
        kind = "images" if isinstance(answer, list) else "text" if isinstance(answer, str) else "vectors"
        makes = task_of(model).makes(model)
        require(kind == makes, f"{name_of(model)}: the family makes {makes}, but `generate` gave {kind}")
        _check_company(model, prompt, options)
        return answer

    def answers(self) -> bool:
        """Whether it generates; "generate" says why it does not."""
        with contextlib.suppress(Exception, SystemExit):
            self.answer()
        return self.answer.made

    def save_and_reload(self, folder: Path) -> None:
        """A fresh process loads what was saved and computes the same bits."""
        model = self.model()
        artifact = model.save(folder_in(folder, self.spec.name))
        if self.answers():
            _check_speaks(model, artifact, self.answer())
        wrong = difference(name_of(model), outputs(model), self.bench.fresh.outputs(artifact))
        require(not wrong, wrong)

    def packaged_weights(self, folder: Path) -> None:
        """Packaged weights are there, undamaged, and those of the model."""
        from zoo.artifact import store
        from zoo.artifact.manifest import MANIFEST
        from zoo.loading import weights
        from zoo.loading.load import load

        if not self.spec.packaged:
            raise Skipped("none are declared")
        packaged = weights.packaged_at(self.spec)
        require(
            packaged is not None,
            f"{self.spec.name}: packaged = {self.spec.packaged!r} is no folder of the installed package",
        )
        assert packaged is not None
        if (packaged / MANIFEST).exists():
            problems = store.verify(packaged)
            require(not problems, f"{packaged}: " + "; ".join(f"{name} {problem}" for name, problem in problems))
        load(self.loads)

    def side_effects(self, folder: Path) -> None:
        """Loading, running, generating and saving leave random states, torch, the process, family and model as they were."""
        from zoo.loading.load import load

        model = self.model()
        family, weights = model.family, hash_of_tensors(model)
        with other_chance(), surroundings_kept(f"{name_of(model)}: loading it", family):
            load(self.loads, weights="random")
        with other_chance(), surroundings_kept(f"{name_of(model)}: running it", family):
            family.forward(model, family.example(model))
        with other_chance(), surroundings_kept(f"{name_of(model)}: saving it", family):
            model.save(folder_in(folder, self.spec.name))
        if readable(model):
            prompt, options = request(model)
            with other_chance(), surroundings_kept(f"{name_of(model)}: generating", family):
                model.generate(prompt, **options)
        require(hash_of_tensors(model) == weights, f"{name_of(model)}: running it changes its own weights or buffers")


def readable(model: Model) -> bool:
    """Whether the model can read a prompt: it has what its family needs for that."""
    return model.processor is not None or not model.family.needs_processor


def request(model: Model) -> tuple[Any, dict[str, Any]]:
    """A prompt and a few options that the family takes."""
    from zoo.family.task import task_of

    takes = model.family.taken(model)
    if task_of(model).masks:
        return f"{LINES[0]} {model.processor.mask_token}", {}
    options: dict[str, Any] = {name: value for name, value in GENERATED.items() if name in takes}
    if "images" in takes:
        options["images"] = [picture()]
    if "prompt" not in takes:
        return None, options
    return "" if model.family.makes == "images" else "What digit is this?" if "images" in takes else LINES[0], options


def _check_speaks(model: Model, artifact: Path, answer: Any) -> None:
    """What can generate still can when it was saved, and says the same."""
    from zoo.loading.load import load

    prompt, options = request(model)
    try:
        again = load(artifact).generate(prompt, **options)
    except RequestError as error:
        raise AssertionError(
            f"{name_of(model)}: the saved model cannot generate; `save_processor` has to write what `load_processor` "
            f"reads ({str(error).rstrip('.')})"
        ) from None
    require(_alike(answer, again), f"{name_of(model)}: the saved model generates something else")


def _check_company(model: Model, prompt: Any, options: Mapping[str, Any]) -> None:
    """What is made does not depend on what is made with it, where a family makes several things at once."""
    import numpy as np

    takes = model.family.taken(model)
    ask = partial(model.generate, prompt)
    if model.family.makes == "images" and {"count", "seed"} <= set(takes):
        together = ask(**{**options, "count": 2, "seed": 5})
        alone = ask(**{**options, "count": 1, "seed": 6})
        require(
            _alike(together[1:], alone),
            f"{name_of(model)}: the second of two images from seed 5 is not the first from seed 6",
        )
    elif "images" in takes and "prompt" not in takes:
        pictures = [picture(seed=seed) for seed in range(2)]
        together, alone = (ask(**{**options, "images": some}) for some in (pictures, pictures[1:]))
        alike = together.endswith(alone) if isinstance(together, str) else np.allclose(together[1:], alone, atol=1e-5)
        require(alike, f"{name_of(model)}: what is said of an image depends on the one before it")
    elif "max_new_tokens" in takes:
        pieces = list(ask(**options, stream=True))
        require(
            "".join(pieces) == ask(**options),
            f"{name_of(model)}: the pieces of `stream=True` are not the text without it",
        )
    if "temperature" in takes:
        drawn = {**options, "temperature": 1.0, "seed": 3}
        answer = ask(**drawn)
        with other_chance():
            require(
                _alike(answer, ask(**drawn)),
                f"{name_of(model)}: `generate` with a temperature does not follow from its seed",
            )


def _alike(answer: Any, other: Any) -> bool:
    """Whether two answers are the same: texts, tensors, images, and lists and dicts of them."""
    import numpy as np

    if isinstance(answer, Mapping):
        return (
            isinstance(other, Mapping)
            and answer.keys() == other.keys()
            and all(_alike(answer[key], other[key]) for key in answer)
        )
    if isinstance(answer, list | tuple):
        return len(answer) == len(other) and all(_alike(a, b) for a, b in zip(answer, other, strict=True))
    if isinstance(answer, str):
        return bool(answer == other)
    first, second = (np.asarray(_cpu(value)) for value in (answer, other))
    return first.shape == second.shape and bool((first == second).all())


def _cpu(value: Any) -> Any:
    return value.detach().cpu() if hasattr(value, "detach") else value


def finite(tensor: torch.Tensor) -> bool:
    """Whether all values of a tensor are finite."""
    import torch

    return bool(torch.isfinite(tensor.detach().float()).all())
