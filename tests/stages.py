"""What the tests of single stages share: a twin as a `Model`, data for it, the proof that a stage can be replayed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from twins import VOCABULARY, twin
from zoo_compress.recipe.runner import apply as apply
from zoo_slm.language import TransformersText

import zoo
from zoo import registry
from zoo.catalog import ModelSpec
from zoo.data.dataset import Dataset, Sample
from zoo.model.context import Context
from zoo.model.model import Model


def small(name: str, *, seed: int = 0, **changes: Any) -> Model:
    """The twin `name` as a model with a tokenizer of whole words "w3" ... "w95"."""
    module = twin(name, seed=seed, **changes)
    task = "masked-lm" if name == "bert" else "causal-lm"
    config = {key: value for key, value in module.config.to_dict().items() if value is not None}
    spec = ModelSpec(name, family="transformers", modality="text", task=task, plugin="zoo_slm", config=config)
    return Model(module, TransformersText(), spec, processor=tokenizer(), origin="random")


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def data(*, tokens: int = 2048, seed: int = 0) -> Dataset:
    """Random text, as calibration data."""
    draw = random.Random(seed)
    words = [f"w{draw.randrange(3, VOCABULARY)}" for _ in range(tokens)]
    return Dataset("random", [Sample({"text": " ".join(words)}, "random:1")])


def context(**kwargs: Any) -> Context:
    return Context(data={"calibration": data()}, **kwargs)


@torch.no_grad()
def logits(model: Model, ids: torch.Tensor) -> torch.Tensor:
    return model.family.forward(model, {"input_ids": ids})


def exact(model: Model) -> Model:
    """The model with packed layers that round no product."""
    for part in model.module.modules():
        if hasattr(part, "exact"):
            part.exact = True
    return model


def options(stage: str, **values: Any) -> Any:
    """The validated options of a stage."""
    return registry.compressor(stage).Options(**values)


def check(model: Model, stage: str, **values: Any) -> None:
    registry.compressor(stage).check(model, model.state(), options(stage, **values))


def structure(model: Model) -> tuple[dict[str, Any], dict[str, str]]:
    """Every tensor's shape, the dtype of packed ones (parameters take the model's), and which names share."""
    tensors = model.module.state_dict(keep_vars=True)
    shapes = {
        name: (tuple(tensor.shape), None if isinstance(tensor, torch.nn.Parameter) else tensor.dtype)
        for name, tensor in tensors.items()
    }
    return shapes, model.aliases()


def assert_outline_foretells(model: Model, stage: str, **values: Any) -> None:
    """Sizes after replaying the outline on a skeleton are those after the stage itself, which this applies."""
    skeleton = model.skeleton()
    found = registry.compressor(stage)
    found.rebuild(skeleton, found.outline(skeleton, options(stage, **values)))
    assert all(tensor.is_meta for tensor in skeleton.module.state_dict().values())
    apply(model, stage, values, context())
    assert structure(skeleton) == structure(model)
    assert (skeleton.params, skeleton.bytes) == (model.params, model.bytes)


def assert_replays(model: Model, ids: torch.Tensor, folder: Path) -> None:
    """A skeleton that replays the lineage has the same tensors; a saved model loads with bit-identical outputs."""
    assert structure(model.skeleton()) == structure(model)
    loaded = zoo.load(model.save(folder / "model"))
    assert structure(loaded) == structure(model)
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert loaded.state() == model.state()
