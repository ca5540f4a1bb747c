"""What there is to sweep: every architecture of transformers' auto classes, every module file of timm, every denoiser."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from small_configs import SIZES, small
from twins import _shake as shake

PARTS = ("transformers", "timm", "diffusers")
# Stages that aim at "language" where nobody says another part, and many models have none.
AIMED = ("inherit", "prune.magnitude", "prune.wanda", "prune.sparsegpt", "share.ffn", "lowrank.svd")
LARGEST = 4_000_000  # parameters of what counts as small
# How the auto classes of transformers call the tasks of ours.
MAPPINGS = {
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}

# Transformers without a head that sentences are encoded with; of others the heads are what there is to sweep.
ENCODERS = ("bert", "distilbert", "modernbert", "mpnet", "nomic_bert", "qwen3", "roberta", "t5", "xlm-roberta")


class NotBuilt(Exception):
    """The library itself does not make a small model of this; the message says why."""


@dataclass(frozen=True)
class Architecture:
    """One line of the sweep."""

    part: str
    name: str  # a model type of transformers with its task, a module file of timm, or a class of diffusers
    kind: str = ""  # the class in its library
    task: str = ""


def architectures(part: str) -> list[Architecture]:
    """Everything of a part, in the order of its library."""
    if part == "transformers":
        return _of_transformers()
    if part == "timm":
        from timm_models import modules

        return [Architecture(part, name) for name in modules()]
    from pipelines_of import denoisers

    return [Architecture(part, name, name, "text-to-image") for name in denoisers()]


def _of_transformers() -> list[Architecture]:
    from transformers.models.auto import modeling_auto

    heads = [
        Architecture("transformers", f"{name} {task}", kind, task)
        for task, mapping in MAPPINGS.items()
        for name, kind in getattr(modeling_auto, mapping).items()
    ]
    plain = {**modeling_auto.MODEL_MAPPING_NAMES, "t5": "T5EncoderModel"}
    return heads + [Architecture("transformers", f"{name} embedding", plain[name], "embedding") for name in ENCODERS]


def library_model(architecture: Architecture) -> Any:
    """The small model of an architecture of transformers, built by transformers, with no weight at its default.

    Raises:
        NotBuilt: no size of it builds and runs on a few tokens.
    """
    import transformers
    from zoo_slm.configs import why as cause

    model_type = architecture.name.split()[0]
    if model_type not in transformers.CONFIG_MAPPING:
        raise NotBuilt(f"transformers has no config of type {model_type!r}")
    config_class, build = transformers.CONFIG_MAPPING[model_type], getattr(transformers, architecture.kind, None)
    if build is None:
        raise NotBuilt(f"transformers has no class {architecture.kind}")
    why: list[str] = []
    for size in SIZES:
        try:
            config = small(config_class, model_type, size)
            both = hasattr(config, "is_decoder") or model_type == "bert-generation"
            if architecture.task == "causal-lm" and both:
                config.is_decoder = True
            return _built(build, config, architecture.task)
        except Exception as error:  # whatever transformers says of a config that does not go together
            why.append(f"{type(error).__name__}: {cause(error)}"[:160])
    raise NotBuilt(why[0])


def _built(build: Any, config: Any, task: str) -> Any:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build(config).parameters())
    if count > LARGEST:
        raise NotBuilt(f"the small config still makes {count:,} parameters")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = build(config).eval()
        shake(module)
        # on a copy, since RWKV's forward changes its own weights
        outputs = copy.deepcopy(module)(**inputs(module, task))
    if not torch.isfinite(outputs.last_hidden_state if task == "embedding" else outputs.logits).all():
        raise NotBuilt("random weights give values that are not finite")
    return module


def inputs(module: Any, task: str, *, length: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """A few tokens, and where the model writes apart from what it reads, others."""
    draw = torch.Generator().manual_seed(seed)
    table = module.get_input_embeddings()
    vocabulary = getattr(table, "num_embeddings", None) or module.config.get_text_config().vocab_size
    names = ("input_ids", "decoder_input_ids") if task == "seq2seq" else ("input_ids",)
    return {name: torch.randint(3, min(vocabulary, 300), (2, length), generator=draw) for name in names}


def save(module: Any, folder: Path, task: str) -> Path:
    """A directory as transformers saves it, with a tokenizer of whole words beside it."""
    from contract.cases import tokenizer_for

    module.save_pretrained(folder)
    tokenizer_for(task).save_pretrained(folder)
    return folder
