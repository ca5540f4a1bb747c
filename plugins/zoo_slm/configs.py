"""Configs as transformers reads them: their classes, what those refuse, and whether head and token table are one weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from zoo.errors import RequestError, ZooError, reason
from zoo.family.text.tasks import TASKS
from zoo.loading.directory import without_code
from zoo.system.memory import ran_out
from zoo_slm import models
from zoo_slm.sentence_encoder import KEY

# What a config class or a model class raises for values that do not go together; the last is no ValueError.
UNFIT = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    IndexError,
    RuntimeError,
    StrictDataclassError,
)


def auto_class(task: str) -> Any:
    """The class of transformers that chooses among those of a task."""
    import transformers

    return getattr(transformers, TASKS[task].auto_class)


@contextmanager
def unfit(config: Mapping[str, Any], task: str = "model") -> Iterator[None]:
    """Refuse a config that no model can be made of, in a sentence."""
    try:
        yield
    except UNFIT as error:
        if isinstance(error, ZooError) or ran_out(error):
            raise
        raise RequestError(
            f"transformers cannot build a {task} of type {config.get('model_type')!r}: {why(error)}."
        ) from None


def parsed(config: Mapping[str, Any]) -> Any:
    """The config as its class in transformers, or here, reads it."""
    import transformers

    own = models.own_type(config)
    values = _of_the_model(_decoded(models.adopted(config) if own else without_code(config)))
    read: Any = transformers.AutoConfig.for_model(values.pop("model_type", None), **values)
    if getattr(read, "rescale_every", 0):
        # RWKV would halve its own weights in place whenever it leaves training, and double them when it is back
        read.rescale_every = 0
    return read


def _of_the_model(values: dict[str, Any]) -> dict[str, Any]:
    """A config without how a model was called and with which kernels, nor a dtype that is none of torch's, at any depth."""
    return {
        key: _of_the_model(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if not (
            key in ("return_dict", "torchscript", KEY)
            or (str(key).endswith("attn_implementation") and value not in ("eager", "sdpa"))
            or (key in ("dtype", "torch_dtype") and isinstance(value, str) and not hasattr(torch, value))
        )
    }


def _decoded(value: Any) -> Any:
    """A copy of a table in which {"__float__": "Infinity"} is that number: transformers writes so what JSON has no word for.

    It is a copy since config classes write into nested tables.
    """
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {key: _decoded(inner) for key, inner in value.items()}
    return [_decoded(inner) for inner in value] if isinstance(value, list) else value


def untie(module: Any, config: Mapping[str, Any]) -> None:
    """Give the head a weight of its own where a config says so and its class does not listen.

    T5's class ties head and table always, and reads tie_word_embeddings = false, which T5 1.1 has, only as "the decoder's
    output is not scaled". Checkpoints hold both tensors; transformers leaves them apart when it reads them, and not when
    it builds from a config. FSMT has no head but the decoder's table.
    """
    if asks_untied(config) and tied(module) and hasattr(module, "lm_head"):
        module.lm_head.weight = nn.Parameter(module.lm_head.weight.detach().clone())
        for known in ("_tied_weights_keys", "all_tied_weights_keys"):
            setattr(
                module, known, {name: of for name, of in getattr(module, known).items() if name != "lm_head.weight"}
            )


def asks_untied(config: Mapping[str, Any]) -> bool:
    """Whether head and token table are two weights; a T5 1.1 written by transformers 5 says so in other words."""
    return config.get("tie_word_embeddings") is False or config.get("scale_decoder_outputs") is False


def tied(module: Any) -> bool:
    """Whether the head is a token table, or there is none; of an encoder and a decoder each may have a table of its own."""
    head = module.get_output_embeddings()
    tables = [module.get_input_embeddings(), *(part for part in module.modules() if isinstance(part, nn.Embedding))]
    own = getattr(head, "weight", None)
    return head is None or any(own is getattr(table, "weight", module) for table in tables)


def why(error: BaseException) -> str:
    """Why transformers cannot do something, for the end of a sentence: what its error says first."""
    if isinstance(error, StrictDataclassError):  # its own first line only says which check found it
        error = error.__cause__ or error
    text = reason(error, 300)
    if text.startswith(("Unrecognized model identifier", "Unrecognized configuration class")):  # and all that there are
        return f"transformers {version('transformers')} has no class for that type and task"
    return text
