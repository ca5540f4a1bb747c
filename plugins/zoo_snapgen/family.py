"""Text-to-image pipelines of the diffusers kind: SnapGen's, and any other whose classes are public.

One family serves both. The config holds the config.json of every trained component; the module holds the components as
children; the tokenizers and the scheduler are the processor. A saved model keeps the layout of a diffusers directory, so
that what is still representable loads with `from_pretrained` as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from zoo.catalog import ModelSpec
from zoo.errors import ArtifactError, RequestError
from zoo.family.diffusion.family import TextToImageFamily
from zoo.family.diffusion.latents import DENOISERS
from zoo.family.diffusion.task import TextToImage
from zoo.loading.codes import require_no_codes
from zoo.model.building import build_as_loaded, kept_in_float32
from zoo.model.model import Model
from zoo.system.memory import ran_out
from zoo.tensors import safetensors
from zoo.tensors.offload import Offload
from zoo_snapgen import classes
from zoo_snapgen.scale import tiny

INDEX = "model_index.json"
STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class PipelineParts(nn.Module):
    """The trained components of a pipeline, by name, the denoiser first."""

    def __init__(self, components: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name in sorted(components, key=lambda name: (name not in DENOISERS, name)):
            self.add_module(name, components[name])


class PipelineTask(TextToImage):
    """Images of what a text says, by a pipeline that may ask for more than a text."""

    def check_prompts(self, model: Model, prompts: Sequence[str]) -> None:
        super().check_prompts(model, prompts)
        cls = classes.find(model.spec.config["pipeline"], (diffusers.DiffusionPipeline,), where=model.spec.name)
        if prompts and classes.needs_images(cls):
            raise RequestError(
                f"{model.spec.name} is a {cls.__name__}, which draws from images that prompts alone do not bring; "
                "evaluate it without prompts."
            )


class DiffusersPipeline(TextToImageFamily):
    """Pipelines built from the configs of their components."""

    def task(self, name: str) -> PipelineTask:
        return PipelineTask()

    def shrunk(self, spec: ModelSpec) -> dict[str, Any]:
        return tiny(spec.config, name=spec.name)

    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        """Build every component of `config["components"]` from its own config.

        Raises:
            ArtifactError: a component's class is not public, or its config does not describe one.
        """
        components = config["components"]
        return PipelineParts(
            {name: classes.build_component(dict(own), where=name) for name, own in components.items()}
        ).eval()

    def build_in(self, config: dict[str, Any], task: str, dtype: torch.dtype) -> nn.Module:
        """Build every component as the `from_pretrained` of its library does; that of diffusers casts whatever is saved."""
        module = build_as_loaded(lambda: self.build(config, task), dtype)
        for component in module.children():
            if isinstance(component, diffusers.ModelMixin):
                kept = kept_in_float32(component, dtype)
                for name, tensor in component.state_dict(keep_vars=True).items():
                    if tensor.is_floating_point() and name not in kept:
                        tensor.data = tensor.data.to(dtype)
        return module

    def initialise(self, module: nn.Module) -> None:
        """Draw every component's weights: by its own rule where it has one, else as its layers come."""
        for component in module.children():
            # parts before what holds them, which may draw for them (CLIP)
            for part in reversed(list(component.modules())):
                if hasattr(component, "_init_weights"):
                    component._init_weights(part)  # type: ignore[operator]
                elif hasattr(part, "reset_parameters"):
                    part.reset_parameters()  # type: ignore[operator]
                else:
                    _fill(part)
            if hasattr(component, "quiet"):
                component.quiet()  # type: ignore[operator]

    def pipeline(self, model: Model) -> Any:
        """Put the pipeline object together.

        Raises:
            RequestError: a part is missing.
        """
        cls = classes.find(model.spec.config["pipeline"], (diffusers.DiffusionPipeline,), where=model.spec.name)
        needed, optional = cls._get_signature_keys(cls)
        parts: dict[str, Any] = {**dict(model.module.named_children()), **self.parts(model)}
        absent = [name for name in needed if name not in parts and name not in cls._optional_components]
        if absent:
            raise RequestError(
                f"{model.spec.name} lacks {', '.join(absent)}, which {cls.__name__} needs; it has {', '.join(parts)}."
            )
        given = {name: parts.get(name) for name in needed} | {name: parts[name] for name in optional if name in parts}
        if "requires_safety_checker" in optional:
            given["requires_safety_checker"] = False
        made = cls(**given)
        made.set_progress_bar_config(disable=True)
        return made

    def default_parts(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Make tokenizer and scheduler from a config that says the caption vocabulary, as SnapGen's does."""
        if "words" not in config:
            return None
        from zoo_snapgen.text import word_tokenizer

        length = config["components"]["text_encoder"]["max_position_embeddings"]
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=config.get("shift", 1.0))
        return {"tokenizer": word_tokenizer(config["words"], length=length), "scheduler": scheduler}

    # --- directories --------------------------------------------------------------------------------------------

    def weight_files(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Name the file of each component as its library does."""
        ours = {name: "_class_name" in own for name, own in config["components"].items()}
        return {
            f"{name}.": f"{name}/{'diffusion_pytorch_model' if is_ours else 'model'}.safetensors"
            for name, is_ours in ours.items()
        }

    def load_processor(self, path: Path) -> Any:
        """Load every subfolder that holds a tokenizer, a scheduler or an image processor; None where there is none."""
        readers = {
            "tokenizer_config.json": _tokenizer,
            "scheduler_config.json": _scheduler,
            "preprocessor_config.json": _images,
        }
        found = {}
        for folder in sorted(place for place in path.iterdir() if place.is_dir()):
            for marker, read in readers.items():
                if (folder / marker).is_file():
                    found[folder.name] = read(folder)
        return found or None

    def save_processor(self, processor: Any, path: Path) -> None:
        for name, one in processor.items():
            one.save_pretrained(path / name)

    def read_foreign(self, path: Path, *, device: str | None, dtype: torch.dtype | None) -> Model:
        """Load a diffusers directory: each component through its own library, safetensors only.

        Raises:
            ArtifactError: it names a class that is not public, asks for remote code, or lacks weights.
        """
        return self._read(path, device=device, dtype=dtype)

    def read_offloaded(self, path: Path, *, dtype: torch.dtype | None, offload: Offload) -> Model:
        """Load such a directory with no more than one component in memory."""
        return self._read(path, device=None, dtype=dtype, offload=offload)

    def _read(
        self, path: Path, *, device: str | None, dtype: torch.dtype | None, offload: Offload | None = None
    ) -> Model:
        index = _index(path)
        configs = {name: _config(path / name) for name in index["components"]}
        config = {"pipeline": index["pipeline"], "components": configs}
        spec = ModelSpec(
            name=path.name,
            family="diffusers",
            modality=self.modality,
            task=self.tasks[0],
            plugin="zoo_snapgen",
            config=config,
        )
        stored = _stored(path, configs)  # which looks into every weight file
        kept = str(dtype or "").removeprefix("torch.") or stored
        if device == "meta":
            with torch.device("meta"):
                module = self.build_in(config, spec.task, getattr(torch, kept))
        else:
            parts = {}
            for name, own in configs.items():
                parts[name] = _load_component(path / name, own, getattr(torch, kept))
                if offload:
                    offload.take(parts[name])
            module = PipelineParts(parts).eval().to(device or "cpu")
        processor = self.load_processor(path)
        return Model(module, self, spec, processor=processor, dtype=kept, stored=kept, origin=str(path))

    def write_foreign(self, model: Model, path: Path) -> str:
        """Write model_index.json and the components' configs when the plain classes have exactly the model's tensors."""
        config, parts = model.spec.config, self.parts(model)
        with torch.device("meta"):
            plain = self.build(config, model.spec.task)
        difference = _first_difference(model.module, plain)
        if difference:
            return difference
        cls = classes.find(config["pipeline"], (diffusers.DiffusionPipeline,), where=model.spec.name)
        needed, _ = cls._get_signature_keys(cls)
        index: dict[str, Any] = {"_class_name": cls.__name__, "_diffusers_version": diffusers.__version__}
        named = {**dict(model.module.named_children()), **parts}
        for name in sorted({*needed, *named}):
            kind = type(named[name]) if name in named else None
            index[name] = [classes.library_of(kind), kind.__name__] if kind else [None, None]
        _write_json(path / INDEX, index)
        for name, own in config["components"].items():
            _write_json(path / name / "config.json", own)
        return (
            "its classes come with zoo (after `import zoo_snapgen.pipeline` it can)"
            if cls.__name__ in classes.own()
            else ""
        )


# --- reading --------------------------------------------------------------------------------------------------------


def _index(path: Path) -> dict[str, Any]:
    """Read model_index.json: the pipeline's class name, and the names of its trained components."""
    index = _json(path / INDEX)
    name = index.get("_class_name")
    cls = classes.find(name, (diffusers.DiffusionPipeline,), where=str(path / INDEX))
    classes.require_drawing(cls, where=str(path))
    components = []
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or entry == [None, None]:
            continue
        where = f"{path / INDEX}, {part!r},"
        library, kind = entry if len(entry) == 2 else (None, None)
        ours = isinstance(kind, str) and kind in classes.own() and library == classes.own()[kind][0]
        if library not in ("diffusers", "transformers") and not ours:
            if part in cls._optional_components:  # such as a safety checker, whose class is the pipeline's private one
                continue
            raise ArtifactError(
                f"{where} names the library {str(library)[:80]!r}; zoo runs no code but that of diffusers and transformers."
            )
        found = classes.find(kind, classes.COMPONENTS + classes.OTHERS, where=where)
        if not part.isidentifier():
            raise ArtifactError(f"{where} is not the name of a component.")
        if issubclass(found, classes.COMPONENTS):
            components.append(part)
    return {"pipeline": name, "components": components}


def _config(folder: Path) -> dict[str, Any]:
    """Read a component's config without what changes from one version of a library to the next."""
    config = _json(folder / "config.json")
    classes.component_class(config, where=str(folder / "config.json"))
    dropped = ("_diffusers_version", "_name_or_path", "transformers_version", "_commit_hash", "_use_default_values")
    return {key: value for key, value in config.items() if key not in dropped}


def _json(place: Path) -> dict[str, Any]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{place} is missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{place} cannot be read: {error}.") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{place} does not hold a JSON object.")
    return found


def _weights(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The weight files of a component, as its library calls them; another precision beside them is none of it."""
    stem = "diffusion_pytorch_model" if "_class_name" in config else "model"
    files = safetensors.files_of(folder, stem=stem)
    if not files:
        raise ArtifactError(f"{folder} holds no .safetensors file; other weight formats are not read.")
    safetensors.require_named(folder, files, stem=stem)
    for file in files:
        safetensors.require_whole(file)
    require_no_codes(files)
    return files


def _stored(path: Path, configs: Mapping[str, Any]) -> str:
    """The dtype of the components' weights where they have one, else float32, which holds all."""
    kinds = {
        about["dtype"]
        for name, config in configs.items()
        for file in _weights(path / name, config)
        for about in safetensors.read_header(file).values()
    }
    floats = [STORED[kind] for kind in kinds if kind in STORED]
    return floats[0] if len(floats) == 1 else "float32"


def _load_component(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    _weights(folder, config)
    cls = classes.component_class(config, where=str(folder))
    key = "torch_dtype" if issubclass(cls, diffusers.ModelMixin) else "dtype"
    try:
        with _quiet():
            module, report = cls.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **{key: dtype}
            )
    except Exception as error:  # whatever two libraries meet in a damaged folder
        if ran_out(error):
            raise
        raise ArtifactError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    missing = sorted(report["missing_keys"]) + [str(one) for one in report["mismatched_keys"]]
    if missing:
        raise ArtifactError(
            f"{folder}: tensor {missing[0]!r} is missing or of another shape; the model of its config.json has it."
        )
    return module  # type: ignore[no-any-return]


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no reports of the two libraries: what matters in them becomes an error."""
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    before = [(one.is_progress_bar_enabled(), one.get_verbosity()) for one in loggers]
    for one in loggers:
        one.disable_progress_bar()
        one.set_verbosity_error()
    try:
        yield
    finally:
        for one, (bars, level) in zip(loggers, before, strict=True):
            one.set_verbosity(level)
            if bars:
                one.enable_progress_bar()


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    config = _json(folder / "tokenizer_config.json")
    if config.get("auto_map"):
        raise ArtifactError(
            f"{folder / 'tokenizer_config.json'} asks for remote code; zoo never runs code from a checkpoint."
        )
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _scheduler(folder: Path) -> Any:
    place = folder / "scheduler_config.json"
    config = _json(place)
    return classes.find(config.get("_class_name"), (diffusers.SchedulerMixin,), where=str(place)).from_config(config)


def _images(folder: Path) -> Any:
    place = folder / "preprocessor_config.json"
    config = _json(place)
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    return classes.find(name, classes.OTHERS[2:], where=str(place)).from_dict(config)


# --- writing --------------------------------------------------------------------------------------------------------


def _write_json(place: Path, values: Mapping[str, Any]) -> None:
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _first_difference(module: nn.Module, plain: nn.Module) -> str:
    """Say where `module` differs from the plain classes in modules, tensors, sharing or numbers; "" where nowhere."""
    mine, theirs = (dict(one.named_modules(remove_duplicate=False)) for one in (module, plain))
    for name in sorted(mine.keys() ^ theirs.keys()):
        return f"{name} is {'not in' if name in mine else 'only in'} the plain classes of its config"
    for name, part in mine.items():
        if type(part) is not type(theirs[name]):
            return f"{name} is of class {type(part).__name__}, not {type(theirs[name]).__name__}"
        if _numbers(part) != _numbers(theirs[name]):
            return f"{name} runs with {_numbers(part)}, the plain class with {_numbers(theirs[name])}"
    ours, plainly = _tensors(module), _tensors(plain)
    for name in sorted(ours.keys() | plainly.keys()):
        if ours.get(name) != plainly.get(name):
            return f"{name} is {ours.get(name, 'absent')}, in the plain classes of its config {plainly.get(name, 'absent')}"
    return ""


def _tensors(module: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    first: dict[int, str] = {}
    named = module.state_dict(keep_vars=True).items()
    return {name: (tuple(tensor.shape), first.setdefault(id(tensor), name)) for name, tensor in named}


def _numbers(module: nn.Module) -> dict[str, int | float]:
    found = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int | float) and not name.startswith("_")
    }
    return {name: value for name, value in found.items() if not isinstance(value, bool)}


def _fill(part: nn.Module) -> None:
    """Draw the parameters of a layer that has no rule of its own: ones in a norm, else small numbers."""
    for name, parameter in part.named_parameters(recurse=False):
        if name == "bias":
            nn.init.zeros_(parameter)
        elif parameter.ndim < 2:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02)
