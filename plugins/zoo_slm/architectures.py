"""What transformers says of the class that a config names: whose task it is, and whether a text model at all."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from zoo.errors import RequestError
from zoo.family.text.causal import CausalLM
from zoo.family.text.embedding import TextEmbedding
from zoo.family.text.masked import MaskedLM
from zoo.family.text.seq2seq import Seq2Seq
from zoo.family.text.tasks import TASKS, named_after
from zoo_slm.model_types import EITHER_SIDE, ENCODERS, SEES_LATER, UNREPEATABLE

# What the classes of other mappings are. The first ones win over our tasks: their text classes read more than text.
MORE_THAN_TEXT = {
    "IMAGE_TEXT_TO_TEXT": "a vision-language model",
    "SPEECH_SEQ_2_SEQ": "a speech recognition model",
    "MULTIMODAL_LM": "a model of several modalities",
}
OTHERS = {
    "SEQUENCE_CLASSIFICATION": "a text classifier",
    "TOKEN_CLASSIFICATION": "a classifier of tokens",
    "QUESTION_ANSWERING": "a model that answers questions from a text",
    "MULTIPLE_CHOICE": "a multiple-choice model",
    "NEXT_SENTENCE_PREDICTION": "a next-sentence model",
    "IMAGE_CLASSIFICATION": "an image classifier",
    "OBJECT_DETECTION": "an object detector",
    "AUDIO_CLASSIFICATION": "an audio classifier",
    "CTC": "a speech recognition model",
    "TEXT_TO_WAVEFORM": "a speech synthesis model",
}
READS = "text models need a causal, masked or seq2seq LM head, or are encoders without one"


@cache
def _classes(mapping: str) -> dict[str, str]:
    """Class name -> model type, of one of transformers' Auto mappings."""
    from transformers.models.auto import modeling_auto

    table = getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES", {})
    return {name: kind for kind, names in table.items() for name in ((names,) if isinstance(names, str) else names)}


def is_known(config: Mapping[str, Any]) -> bool:
    """Whether transformers itself has classes for a config's model type."""
    from transformers import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def task_of(config: Mapping[str, Any], path: Path) -> str:
    """The task of the checkpoint in `path`: that of the class it names, else the usual one of its model type.

    Raises:
        RequestError: it is no language model of ours; says what it is.
    """
    names = [str(name) for name in config.get("architectures") or []]
    kind = str(config["model_type"])
    if kind in UNREPEATABLE:
        raise RequestError(f"{path} holds a model of type {kind}, {UNREPEATABLE[kind]}; such models are not read.")
    for name in names:
        task = _named_task(name) or (TextEmbedding.name if _is_headless(name, config) else "")
        if not task:
            what = _kind_of_class(name)
            raise RequestError(f"{path} holds a {name} ({kind}){f', {what}' if what else ''}; {READS}.")
        if TASKS[task].causal and _sees_later_tokens(config):
            if name in _classes(MaskedLM.mapping):  # XLM, one class for both
                return MaskedLM.name
            raise RequestError(
                f"{path} holds a {name} whose tokens see those after them (is_decoder is false in its config.json), which "
                "generates nothing; its kind is trained as a masked model, with a class that ends in ForMaskedLM."
            )
        return task
    return _usual_task(config, kind, path)


def _usual_task(config: Mapping[str, Any], kind: str, path: Path) -> str:
    """The task of a model type whose config names no class."""
    if not is_known(config):
        return CausalLM.name  # of ours, or of nobody; building it says so
    tasks = {task.name for task in TASKS.values() if kind in _classes(task.mapping).values()}
    others = [mapping for mapping in MORE_THAN_TEXT if kind in _classes(mapping).values()]
    # of vision-language types that have a causal class (Llama 4) that one is taken; the causal Whisper is a part of it
    if not tasks or (others and (CausalLM.name not in tasks or "SPEECH_SEQ_2_SEQ" in others)):
        what = MORE_THAN_TEXT[others[0]] if others else "of which transformers has no language model"
        raise RequestError(f"{path} holds a model of type {kind}, {what}; {READS}.")
    if Seq2Seq.name in tasks and (config.get("is_encoder_decoder") or len(tasks) == 1):
        return Seq2Seq.name
    if MaskedLM.name in tasks and (_sees_later_tokens(config) or len(tasks) == 1):
        return MaskedLM.name
    return CausalLM.name


def _named_task(name: str) -> str:
    """The task of a class, "" where it is none of ours; one that transformers does not know is taken by the end of its name."""
    if any(name in _classes(mapping) for mapping in MORE_THAN_TEXT):
        return ""
    for task in TASKS.values():
        if name in _classes(task.mapping):
            return task.name
    if any(name in _classes(mapping) for mapping in OTHERS):
        return ""
    return named_after(name)


def _is_headless(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a class is a text model up to its head: one of an encoder or of a decoder alone."""
    from transformers.models.auto import modeling_auto

    kind = config.get("model_type")
    if name == ENCODERS.get(str(kind)):
        return True
    texts = any(kind in _classes(mapping).values() for mapping in (CausalLM.mapping, MaskedLM.mapping))
    others = any(kind in _classes(mapping).values() for mapping in MORE_THAN_TEXT)
    whole = bool(config.get("is_encoder_decoder"))
    return texts and not others and not whole and name == modeling_auto.MODEL_MAPPING_NAMES.get(str(kind))


def _kind_of_class(name: str) -> str:
    return next((what for mapping, what in {**MORE_THAN_TEXT, **OTHERS}.items() if name in _classes(mapping)), "")


def _sees_later_tokens(config: Mapping[str, Any]) -> bool:
    """Whether a model of a type that is both an encoder and a decoder is the encoder, as its class is by default."""
    kind = str(config.get("model_type"))
    if kind in SEES_LATER:
        field, later = SEES_LATER[kind]
        return bool(config.get(field, later) == later)
    both = set(_classes(CausalLM.mapping).values()) & set(_classes(MaskedLM.mapping).values())
    return (
        kind in both | EITHER_SIDE
        and not config.get("is_encoder_decoder")
        and not config.get("is_decoder")
        and not config.get("causal")
    )
