"""The folder of sentence-transformers: `modules.json` and what it names, read and written.

What is not computed here is refused by name. Only JSON and safetensors are read, and no path leads out of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from torch import nn

from zoo.artifact.manifest import WEIGHTS
from zoo.errors import ArtifactError, RequestError
from zoo.loading.directory import without_code
from zoo.system.reading import LARGEST_DATA, text_of
from zoo.tensors import safetensors
from zoo_slm.sentence_encoder import SentenceEncoder, require_modules

MODULES, SETTINGS, CONFIG = "modules.json", "config_sentence_transformers.json", "config.json"
# The settings of a Transformer module; older releases named the file after the model's type.
TRANSFORMER = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json")
READ = "SentenceTransformer"  # the kind of folder, of several, which is no model type of transformers
OWN = "sentence_transformers."  # what the classes of the library begin with
TASK, OUTPUT = "feature-extraction", "token_embeddings"
TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}  # the one modality that is read
# Arguments of a Transformer module that do not change what it computes.
IDLE = ("attn_implementation", "dtype", "torch_dtype", "trust_remote_code", "low_cpu_mem_usage")


def describe(path: Path) -> dict[str, Any] | None:
    """What follows the transformer of a folder, and its settings; None where it is no sentence-transformers folder.

    Raises:
        ArtifactError: a file of it is damaged, or names code of its own.
        RequestError: it computes what is not computed here.
    """
    if not (path / MODULES).is_file():
        return None
    listed = _json(path / MODULES, list)
    modules = [_module(path, entry) for entry in listed]
    if not modules or modules[0]["type"] != "Transformer":
        kind = modules[0]["type"] if modules else "no module"
        raise RequestError(
            f"{path / MODULES} begins with {kind}; sentence encoders that begin with a Transformer are read."
        )
    if modules[0]["path"]:
        raise RequestError(
            f"{path / MODULES}: the Transformer lies in {modules[0]['path']!r}; it is read where it lies beside modules.json."
        )
    require_modules(modules[1:], str(path / MODULES))
    settings = _optional(path / SETTINGS)
    if settings.get("model_type", READ) != READ:
        raise RequestError(f"{path / SETTINGS} is of a {settings['model_type']}; of such folders {READ} is read.")
    prompts, name = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if not isinstance(prompts, dict) or (name is not None and not isinstance(prompts.get(name), str)):
        raise ArtifactError(f"{path / SETTINGS}: the default prompt {name!r} is none of its prompts.")
    return {
        "modules": modules[1:],
        "settings": without_code(settings),
        "transformer": _transformer_settings(path),
        "prompt": prompts[name] if name is not None else "",
    }


def _module(path: Path, entry: Any) -> dict[str, Any]:
    """One line of modules.json: the class, its folder, and the config in it."""
    try:
        kind, place = str(entry["type"]), PurePosixPath(str(entry["path"]))
    except (TypeError, KeyError):
        raise ArtifactError(f"{path / MODULES} is damaged: a module has no type or no path.") from None
    if not kind.startswith(OWN):
        raise ArtifactError(
            f"{path / MODULES} asks for code of its own ({kind[:80]!r}); zoo never runs code from a checkpoint."
        )
    if place.is_absolute() or ".." in place.parts:
        raise ArtifactError(f"{path / MODULES} names a path outside of the folder: {str(place)[:80]!r}.")
    if entry.get("kwargs"):
        raise RequestError(
            f"{path / MODULES}: the module in {str(place)!r} takes arguments (kwargs), which are not read."
        )
    name = kind.rpartition(".")[2]
    config = {} if name == "Transformer" else _optional(path / place / CONFIG)
    return {"type": name, "path": "" if str(place) == "." else str(place), "config": config}


def _transformer_settings(folder: Path) -> dict[str, Any]:
    """The settings of a Transformer module; whatever would change what it computes is refused.

    Raises:
        RequestError: names it.
    """
    file = next((folder / name for name in TRANSFORMER if (folder / name).is_file()), folder / TRANSFORMER[0])
    settings = _optional(file)
    if (task := settings.get("transformer_task", TASK)) != TASK:
        raise RequestError(f"{file}: the transformer does {task!r}; of sentence encoders {TASK!r} is read.")
    if settings.get("modality_config", TEXT) != TEXT or settings.get("module_output_name", OUTPUT) != OUTPUT:
        raise RequestError(f"{file}: the transformer gives something else than its last hidden state of a text.")
    for key in ("processing_kwargs", "query_expansion", "tokenizer_name_or_path"):
        if settings.get(key):
            raise RequestError(f"{file}: {key!r} is a setting that is not read.")
    for key in ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs"):
        if changing := sorted((settings.get(key) or {}).keys() - set(IDLE)):
            raise RequestError(f"{file}: {changing[0]!r} under {key!r} is a setting that is not read.")
    return without_code(settings)


def adapt_tokenizer(tokenizer: Any, about: Mapping[str, Any], positions: int | None) -> None:
    """Set the longest text of a tokenizer, and small letters, as a Transformer module does."""
    from tokenizers import normalizers

    transformer = about.get("transformer", {})
    longest = transformer.get("max_seq_length")
    if type(longest) is int and longest > 0:
        tokenizer.model_max_length = longest
    elif positions is not None and positions > 0:
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    before = tokenizer.backend_tokenizer.normalizer
    parts = (
        list(cast("Any", before)) if isinstance(before, normalizers.Sequence) else [] if before is None else [before]
    )
    if transformer.get("do_lower_case") and not any(isinstance(part, normalizers.Lowercase) for part in parts):
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *parts])


def fill_head(encoder: SentenceEncoder, about: Mapping[str, Any], path: Path) -> None:
    """Read the weights of what follows the transformer, each module's from its own folder.

    Raises:
        ArtifactError: they are missing, damaged, or not those of the config.
    """
    from safetensors.torch import load_file

    for place, part in encoder.head.items():
        if not (expected := part.state_dict()):
            continue
        file = path / about["modules"][int(place)]["path"] / WEIGHTS
        if not file.is_file():
            raise ArtifactError(f"{file} is missing; other weight formats are not read.")
        safetensors.require_whole(file)
        tensors = load_file(file)
        for name in sorted(expected.keys() ^ tensors.keys()):
            raise ArtifactError(
                f"{file}: tensor {name!r} is {'missing' if name in expected else 'not part of the model'}."
            )
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape:
                raise ArtifactError(
                    f"{file}: {name!r} has shape {tuple(tensor.shape)}, its config says {tuple(expected[name].shape)}."
                )
        dtype = encoder.dtype
        part.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)


def weight_files(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The names of a head's tensors and the file of each module: prefix -> relative path."""
    for place, module in enumerate(about["modules"]):
        if module["type"] == "Dense":
            yield f"head.{place}.", f"{_folder(place, module)}/{WEIGHTS}"


def why_unwritable(encoder: SentenceEncoder) -> str:
    """Say why no config of sentence-transformers describes what follows the transformer now; "" where one does."""
    for place, part in encoder.head.items():
        for name, inner in part.named_modules():
            if name in ("linear", "residual") and type(inner) is not nn.Linear:
                return f"head.{place}.{name} is of class {type(inner).__name__}, not Linear"
    return ""


def write(encoder: SentenceEncoder, about: Mapping[str, Any], path: Path) -> None:
    """Write the files by which sentence-transformers loads a folder; those of a transformer that came alone are not made."""
    if "settings" not in about:
        return
    listed = [_entry(0, "", "models.Transformer")]
    for place, module in enumerate(about["modules"]):
        folder, config = _folder(place, module), dict(module.get("config", {}))
        if module["type"] == "Pooling":
            key = next((key for key in ("word_embedding_dimension", "embedding_dimension") if key in config), "")
            config |= {key or "embedding_dimension": encoder.config.hidden_size}
        elif module["type"] == "Dense":
            linear: Any = encoder.head[str(place)].linear
            config |= {"in_features": linear.in_features, "out_features": linear.out_features}
        if config:
            (path / folder).mkdir(parents=True, exist_ok=True)
            _write_json(path / folder / CONFIG, config)
        listed.append(_entry(place + 1, folder, f"models.{module['type']}"))
    _write_json(path / MODULES, listed)
    _write_json(path / SETTINGS, about["settings"])
    _write_json(path / TRANSFORMER[0], about["transformer"])


def _entry(place: int, folder: str, kind: str) -> dict[str, Any]:
    return {"idx": place, "name": str(place), "path": folder, "type": f"{OWN}{kind}"}


def _folder(place: int, module: Mapping[str, Any]) -> str:
    """The folder of a module, named as sentence-transformers names it."""
    return f"{place + 1}_{module['type']}"


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _optional(file: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no file."""
    table: dict[str, Any] = _json(file, dict) if file.is_file() else {}
    return table


def _json(file: Path, kind: type) -> Any:
    text = text_of(file, error=ArtifactError, most=LARGEST_DATA)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise ArtifactError(f"{file} is damaged: it holds no JSON {'list' if kind is list else 'object'}.")
    return value
