"""The tokenizer in a checkpoint directory, whatever files it was published as; where none can be had, why is said."""

from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zoo.artifact.manifest import MANIFEST
from zoo.errors import ArtifactError, ZooWarning
from zoo.system.reading import LARGEST_DATA, lfs_pointer, text_of
from zoo_slm.configs import why
from zoo_slm.quiet import quiet

# Of any of these transformers makes a tokenizer, with the help of others beside it.
SUFFICIENT = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
)
# Of these alone it makes none: settings, parts, and formats of other libraries.
INSUFFICIENT = ("tokenizer_config.json", "merges.txt", "tekken.json", "*.tiktoken", "*.spm", "bpe.codes")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
REMEDY = "put tokenizer.json beside its weights"


def read(path: Path) -> Any:
    """The fast tokenizer of a directory, as transformers reads it; None where there is none, with a warning where there could be.

    Raises:
        ArtifactError: a file of it is damaged, is no file yet, or needs a package that is not here.
    """
    files = [path / name for name in SUFFICIENT if (path / name).exists()]
    if not files:
        if others := sorted(file.name for pattern in INSUFFICIENT for file in path.glob(pattern)):
            _warn(path, f"of {others[0]} alone transformers makes none")
        return None
    if pointer := next(filter(None, map(lfs_pointer, files)), ""):
        raise ArtifactError(f"{pointer}.")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    lone = path / "tokenizer.json"
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        if not lone.exists():
            raise _unreadable(files[0], error) from None
    except Exception as error:  # tokenizers raises no narrower class
        raise _unreadable(files[0], error) from None
    else:
        if tokenizer.is_fast:
            return tokenizer
        if not lone.exists():
            _warn(path, f"{type(tokenizer).__name__} of transformers does not say which text a token covers")
            return None
    try:  # of the class that transformers has for every tokenizer.json, with the special tokens and template beside it
        with quiet():
            return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise _unreadable(lone, error) from None


def says_all(path: Path) -> bool:
    """Whether tokenizer.json is all there is of a tokenizer, as transformers 5 says of those it saves.

    For some model types (Qwen2) transformers then makes a tokenizer of that type's own class of it, which splits text
    otherwise. Older releases, and files on the hub, call tokenizers of such a class PreTrainedTokenizerFast too.
    """
    try:
        about = json.loads(text_of(path / "tokenizer_config.json", error=ArtifactError, most=LARGEST_DATA))
    except (ArtifactError, ValueError, RecursionError):
        return False
    generic = ("TokenizersBackend", "PreTrainedTokenizerFast") if (path / MANIFEST).exists() else ("TokenizersBackend",)
    return isinstance(about, dict) and about.get("tokenizer_class") in generic


def require_sound(path: Path) -> None:
    """Refuse settings that cannot be read: without them a tokenizer would have no special tokens."""
    for file in (path / name for name in SETTINGS):
        if not file.exists():
            continue
        text = text_of(file, error=ArtifactError, most=LARGEST_DATA)
        try:
            if not isinstance(json.loads(text), dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise ArtifactError(f"{file} is damaged: it holds no JSON object.") from None


def _warn(path: Path, why: str) -> None:
    warnings.warn(f"{path} is loaded without a tokenizer: {why}; {REMEDY}.", ZooWarning, stacklevel=2)


def _unreadable(file: Path, error: Exception) -> ArtifactError:
    """What is wrong with a file of a tokenizer; of a missing package or neighbour transformers speaks in other words."""
    if "custom code" in str(error):
        return ArtifactError(
            f"{file} is read by code of its own, which its tokenizer_config.json names, and zoo never runs code from a "
            f"checkpoint; {REMEDY}."
        )
    if file.suffix in (".model", ".spm"):
        with file.open("rb") as opened:  # a protocol buffer begins so; lines of base64 are tiktoken's
            package = "sentencepiece" if opened.read(1) == b"\n" else "tiktoken"
        if not find_spec(package):
            return ArtifactError(f"{file} cannot be read without {package}: pip install {package}, or {REMEDY}.")
    if file.name == "vocab.json" and not (file.parent / "merges.txt").exists():
        return ArtifactError(f"{file} cannot be read without merges.txt beside it, which is missing.")
    if isinstance(error, ImportError):
        return ArtifactError(f"{file} cannot be read: {why(error)}.")
    return ArtifactError(f"{file} is damaged: {why(error)}.")
