"""Where a model comes from, and what its stages were made with: what it takes to make a saved model again."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.open import declared_source
from zoo.model.licences import of_data, of_teacher, problem_of_licences
from zoo.system.writing import sha256_of

if TYPE_CHECKING:
    from zoo.compressor import Compressor
    from zoo.model.context import Context
    from zoo.model.model import Model
    from zoo.plugins.declarations import Declared

TAKEN = ("loss", "data", "evaluator")  # the kinds of things that a stage takes of plugins, beside itself
COUNTED = (".safetensors", ".json", ".txt", ".model")  # weights, and what a tokenizer is made of
# whose versions numbers depend on
PACKAGES = ("zoo-compress", "torch", "transformers", "tokenizers", "timm", "diffusers")


def source(
    name: str | Path, *, weights: str | Path = "auto", dtype: str | None = None, stages: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Describe the original of a model, as a manifest holds it.

    Args:
        stages: how many stages the original already has in its lineage; those after them are to be made again.
        seed: from which random weights were drawn.

    Returns:
        Also `rounded`, the dtype its weights were rounded to before the first stage, if any, and the hash of its files.
    """
    return {
        "name": str(name),
        "weights": str(weights),
        "dtype": dtype or "",
        "rounded": "",
        "stages": stages,
        "seed": seed,
        "sha256": "",
    }


def sealed(model: Model) -> dict[str, Any]:
    """The model's source with the hash of the original's files, read now where it is not yet known."""
    if model.source and not model.source["sha256"] and model.source["weights"] != "random":
        model.source = {**model.source, "sha256": weights_digest(Path(model.origin))}
    return model.source


def weights_digest(location: Path) -> str:
    """Hash the weights and tokenizer in a folder, or one file; "" where there is nothing."""
    if not location.is_dir():
        return sha256_of(location) if location.is_file() else ""
    files = sorted(p for p in location.rglob("*") if p.suffix in COUNTED and p.is_file())
    return _digest({p.relative_to(location).as_posix(): sha256_of(p) for p in files})


def tensors_digest(model: Model) -> str:
    """Hash every tensor of a model as it is in memory, by its name, kind and shape."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.tensors().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    return {name: _version(name) for name in PACKAGES}


@functools.cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def circumstances(device: str) -> dict[str, str]:
    """What numbers depend on besides the request: processor, threads, and versions of packages."""
    import torch

    return {
        "device": device,
        "cpu": cpu(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **versions(),
    }


@functools.cache
def cpu() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


class Inputs:
    """What a stage takes in besides the model: data and teachers, noted as they are used."""

    def __init__(self, compressor: Compressor, options: Any, context: Context) -> None:
        self.teachers: dict[str, str] = {}
        self.data = {
            role: {"reference": context.data[role].name, "fingerprint": context.data[role].fingerprint}
            for role in compressor.roles(options)
            if role in context.data
        }
        self.licenses = of_data(about["reference"] for about in self.data.values())
        self.context = replace(context, load=self._load if context.load else None)
        self._loads = context.load

    def _load(self, name: str) -> Model:
        assert self._loads is not None
        model = self._loads(name)
        self.teachers[name] = weights_digest(Path(model.origin)) if model.origin != "random" else "random"
        if name != "original":
            self.licenses |= of_teacher(name, model)
        return model

    def made(self, model: Model, resolved: Iterable[Declared]) -> dict[str, Any]:
        """What the lineage says of how a stage was made; `model` is what it left, `resolved` what it took of plugins."""
        sources = (declared_source(about["reference"]) for about in self.data.values())
        taken = {entry for entry in (*resolved, *sources) if entry is not None and entry.kind in TAKEN}
        return {
            "data": self.data,
            "teachers": self.teachers,
            "licenses": self.licenses,
            "uses": dict(sorted((f"{entry.kind} {entry.name}", entry.plugin) for entry in taken)),
            "with": circumstances(model.device.type),
            "sha256": tensors_digest(model),
        }


def problem_of_source(table: Any) -> str:
    """Say what in a manifest's source is not as `source` writes it, or return ""."""
    if table == {}:
        return ""
    kinds = {name: type(value) for name, value in source("").items()}
    if not isinstance(table, dict) or table.keys() != kinds.keys():
        return f"source is no table of {', '.join(kinds)}"
    wrong = [name for name, kind in kinds.items() if type(table[name]) is not kind]
    return f"source has a {wrong[0]} that is {type(table[wrong[0]]).__name__}" if wrong else ""


def problem_of_made(table: Any) -> str:
    """Say what is wrong with what a lineage says of how a stage was made, or return ""."""
    if table == {}:
        return ""
    kinds = {"data": dict, "teachers": dict, "with": dict, "sha256": str}
    if not isinstance(table, dict) or any(not isinstance(table.get(name), kind) for name, kind in kinds.items()):
        return "what it was made with is no table of data, teachers, with and sha256"
    data = table["data"].values()
    if not all(
        isinstance(dataset, dict) and {type(dataset.get(key)) for key in ("reference", "fingerprint")} == {str}
        for dataset in data
    ):
        return "its data has no reference and fingerprint"
    if problem := problem_of_licences(table.get("licenses", {})):
        return problem
    uses = table.get("uses", {})  # what an older zoo wrote has none
    if not isinstance(uses, dict):
        return "what it uses is no table"
    texts = (*table["teachers"].values(), *table["with"].values(), *uses.values())
    return "" if all(isinstance(text, str) for text in texts) else "a teacher, a plugin or a circumstance is no text"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with that many threads, on which the last bits of sums depend."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
