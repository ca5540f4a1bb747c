"""Language models whose architecture transformers has a class for.

One family serves every such architecture: the config decides what is built, detection finds the anatomy. Remote code
is never run, and only safetensors are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from zoo.anatomy.names import CONTEXT, SIDES_CONTEXT
from zoo.anatomy.parts import Anatomy
from zoo.artifact.manifest import WEIGHTS
from zoo.catalog import ModelSpec
from zoo.errors import RequestError
from zoo.family.text.causal import CausalLM
from zoo.family.text.family import TextFamily
from zoo.family.text.readers import caches_rightly
from zoo.family.text.seq2seq import Seq2Seq
from zoo.family.text.task import WritingTask
from zoo.family.text.tasks import TASKS
from zoo.model.building import build_as_loaded
from zoo.model.model import Model
from zoo.tensors.offload import Offload
from zoo_slm import heads, sentence_files, tokenizer_files
from zoo_slm.asked import ask
from zoo_slm.checkpoints import Checkpoint
from zoo_slm.configs import UNFIT, asks_untied, auto_class, parsed, tied, unfit, untie, why
from zoo_slm.gguf import GGUF
from zoo_slm.model_types import FLOAT32_ONLY, TABLE_AS_HEAD
from zoo_slm.sentence_encoder import BACKBONE, KEY, SentenceEncoder, build_backbone, pooler_of

SIZES = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads")  # some classes build nothing of 0


# the longest sequence, those of an encoder and a decoder apart too
POSITIONS = (*CONTEXT.configs, *SIDES_CONTEXT.configs)
HALF = (torch.float16, torch.bfloat16)
COPIED = 2**30  # bytes of weights in half precision that are copied in float32 to be asked


class TransformersText(TextFamily):
    """Text models built from a transformers config."""

    tasks: ClassVar[tuple[str, ...]] = tuple(TASKS)

    def shrunk(self, spec: ModelSpec) -> dict[str, Any]:
        from zoo_slm.scale import tiny

        with unfit(spec.config):
            config = parsed(spec.config)
        return tiny(config.to_dict(), spec.config, name=spec.name)

    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        """Build the native class for `config` (its `model_type` decides) and `task`.

        Raises:
            RequestError: transformers has no class for this model type and task.
        """
        return _built(config, task)

    def build_in(self, config: dict[str, Any], task: str, dtype: torch.dtype) -> nn.Module:
        """Build as `from_pretrained(dtype=...)` does.

        Raises:
            RequestError: as `build`.
        """
        return build_as_loaded(lambda: _built(config, task, dtype=dtype), dtype)

    def initialise(self, module: nn.Module) -> None:
        # each part by the nearest model around it, which may ask for sizes of its own (Gemma 3n)
        owners: dict[nn.Module, Any] = {module: module}
        for part in module.modules():
            for child in part.children():
                owners.setdefault(child, child if hasattr(child, "_init_weights") else owners[part])
        # parts before what holds them, which may draw for them (T5, GPT-2)
        for part in reversed(list(module.modules())):
            owners[part]._init_weights(part)
        config: Any = module.config
        if (
            config.model_type in TABLE_AS_HEAD and not isinstance(module, SentenceEncoder) and not tied(module)
        ):  # see untie
            nn.init.normal_(module.lm_head.weight, std=config.initializer_factor)  # type: ignore[union-attr, arg-type]

    def anatomy(self, module: nn.Module) -> Anatomy:
        from zoo.anatomy.detect import detect

        return detect(module)

    def body_and_head(self, module: nn.Module) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]] | None:
        return None if isinstance(module, SentenceEncoder) else heads.body_and_head(module)

    def sentence_prompt(self, model: Model) -> tuple[str, bool]:
        module: Any = model.module
        return str(model.spec.config[KEY].get("prompt") or ""), module.pooling.include_prompt

    def caches(self, model: Model) -> bool:
        return ask(model.module, _caches, of_twin=_caches_in_float32)

    def vocabulary(self, model: Model) -> int:
        module: Any = model.module
        rows = getattr(module.get_input_embeddings(), "num_embeddings", None)
        return int(rows or module.config.get_text_config().vocab_size)

    def context_length(self, model: Model) -> int:
        """Longest sequence the model takes, in tokens; 1024 where it sets no bound (ALiBi, recurrent models).

        It is what its config class says, and no more than its table of positions has rows: RoBERTa's kin keep the first
        ones for padding, and ProphetNet's streams that predict stand one position further than the token they follow.
        """
        module: Any = model.module
        config = module.config.get_text_config()
        sizes = [int(size) for name in POSITIONS if (size := getattr(config, name, None) or 0) > 0]  # XLNet's is -1
        table, ahead = module.get_input_embeddings(), 1 if hasattr(config, "ngram") else 0
        for part in module.modules():
            rows = getattr(getattr(part, "weight", None), "shape", (0,))[0] if hasattr(part, "padding_idx") else 0
            if rows in sizes and part is not table:  # also of classes of their own, such as I-BERT's
                sizes.append(rows - (-1 if part.padding_idx is None else part.padding_idx) - 1 - ahead)
        return min(sizes, default=1024)

    # --- foreign checkpoints ------------------------------------------------------------------------------------

    def read_foreign(self, path: Path, *, device: str | None, dtype: torch.dtype | None) -> Model:
        """Load a plain transformers directory, or a GGUF file, through transformers itself, which converts older layouts.

        Raises:
            ArtifactError: the config or header is unreadable, names remote code, or is not that of the weights.
            RequestError: transformers does not read what it is.
        """
        read = GGUF.at if path.is_file() else Checkpoint.at
        return self._read(read(path), device=device, dtype=dtype)

    def read_offloaded(self, path: Path, *, dtype: torch.dtype | None, offload: Offload) -> Model:
        """Load such a directory a tensor at a time; a GGUF file is loaded first."""
        if path.is_file():
            return super().read_offloaded(path, dtype=dtype, offload=offload)
        return self._read(Checkpoint.at(path, offload=offload), device=None, dtype=dtype)

    def read_dequantized(self, path: Path, *, device: str | None, dtype: torch.dtype | None) -> Model:
        return self._read(Checkpoint.at(path, dequantize=True), device=device, dtype=dtype)

    def _read(self, checkpoint: Checkpoint | GGUF, *, device: str | None, dtype: torch.dtype | None) -> Model:
        path, config, task = checkpoint.path, checkpoint.config, checkpoint.task
        if config.get("model_type") in FLOAT32_ONLY:
            if dtype not in (None, torch.float32):
                raise RequestError(
                    f"{path} holds a model of type {config['model_type']}, whose class in transformers runs rightly in "
                    "float32 alone; load it with dtype='float32'."
                )
            dtype = torch.float32
        name, license = (path.stem, checkpoint.license) if isinstance(checkpoint, GGUF) else (path.name, "")
        spec = ModelSpec(name, "transformers", "text", task, license=license, plugin="zoo_slm", config=config)
        if device == "meta":
            stored = str(dtype or checkpoint.dtype()).removeprefix("torch.")
            try:
                with torch.device("meta"):
                    module = self.build_in(config, task, getattr(torch, stored))
            except RequestError as error:
                raise RequestError(f"{path if path.is_file() else path / 'config.json'}: {error}") from None
        else:
            read = checkpoint.encoder if KEY in config and isinstance(checkpoint, Checkpoint) else checkpoint.module
            module = read(dtype).to(device or "cpu")
            stored = str(module.dtype).removeprefix("torch.")
        own = checkpoint if isinstance(checkpoint, GGUF) else None
        processor = own.processor() if own else self.load_processor(path)
        if processor is not None and KEY in config:
            sentence_files.adapt_tokenizer(
                processor, config[KEY], getattr(module.config, "max_position_embeddings", None)
            )
        notes = own.notes() if own else {}
        return Model(module, self, spec, processor, dtype=stored, stored=stored, origin=str(path), notes=notes)

    def weight_files(self, config: Mapping[str, Any]) -> dict[str, str]:
        if KEY not in config:
            return super().weight_files(config)
        return {BACKBONE: WEIGHTS, **dict(sentence_files.weight_files(config[KEY]))}

    def write_foreign(self, model: Model, path: Path) -> str:
        """Write `config.json` when a plain transformers class of that config has exactly the model's tensors.

        Beside that of a sentence encoder go the files by which sentence-transformers loads what follows it.
        """
        encoder = model.module if isinstance(model.module, SentenceEncoder) else None
        module: Any = encoder.backbone if encoder else model.module
        config: Any = module.config
        given = pooler_of(model.spec.config) if encoder else {}
        with torch.device("meta"):
            try:
                plain = type(module)(type(config)(**config.to_diff_dict()), **given)
                if encoder is None:
                    untie(plain, model.spec.config)
            except UNFIT as error:
                return f"no plain config describes it: {why(error)}"
        difference = _first_difference(module, plain)
        if difference or (difference := sentence_files.why_unwritable(encoder) if encoder else ""):
            return difference
        values = {**config.to_dict(), "architectures": [type(module).__name__], "dtype": model.stored}
        for key in ("transformers_version", "_name_or_path"):
            values.pop(key, None)
        if asks_untied(model.spec.config):
            values["tie_word_embeddings"] = False
        (path / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if encoder:
            sentence_files.write(encoder, model.spec.config[KEY], path)
        return ""

    # --- tokenizer ----------------------------------------------------------------------------------------------

    def load_processor(self, path: Path) -> Any:
        if path.is_file():
            return GGUF.at(path).processor()
        tokenizer_files.require_sound(path)
        if tokenizer_files.says_all(path):
            return super().load_processor(path)
        return tokenizer_files.read(path)


def _built(config: dict[str, Any], task: str, **given: Any) -> nn.Module:
    with unfit(config, task):
        values = parsed(config)
        for name in SIZES:
            if isinstance(size := getattr(values, name, 1), int) and size < 1:
                raise ValueError(f"{name} is {size}")
        if KEY in config:
            return SentenceEncoder(build_backbone(config, values, **given), config[KEY]).eval()
        module: nn.Module = auto_class(task).from_config(values, **given)
    untie(module, config)
    return module.eval()


def _caches(module: nn.Module) -> bool:
    """Whether a module's passes with a cache compute what whole ones do; a smaller one is asked in float32, as twins are."""
    config: Any = module.config
    weights = list(module.parameters())
    if any(weight.dtype in HALF for weight in weights) and sum(weight.nbytes for weight in weights) <= COPIED:
        module = deepcopy(module).float()
    task: type[WritingTask] = Seq2Seq if config.is_encoder_decoder else CausalLM
    spec = ModelSpec(
        name="", family="transformers", modality="text", task=task.name, plugin="zoo_slm", config=config.to_dict()
    )
    rounding: list[Any] = [part for part in module.modules() if hasattr(part, "exact")]
    for part in rounding:  # packed layers whose kernels round, each in its way: of that the class knows nothing
        part.exact = True
    try:
        return caches_rightly(Model(module, TransformersText(), spec))
    finally:
        for part in rounding:
            del part.exact


def _caches_in_float32(twin: nn.Module) -> bool:
    """In half precision an expert may be chosen by a hair."""
    return _caches(twin.float())


def _first_difference(module: nn.Module, plain: nn.Module) -> str:
    """Say where `module` differs from the plain class in modules, tensors, sharing or run-time numbers; "" where nowhere."""
    others = dict(plain.named_modules())
    for name, part in module.named_modules():
        if name in others and type(part) is not type(others[name]):
            return f"{name} is of class {type(part).__name__}, not {type(others[name]).__name__}"
    ours, theirs = (_tensors(m) for m in (module, plain))
    for name in sorted(ours.keys() ^ theirs.keys()):
        return f"{name} is {'not in' if name in ours else 'only in'} the plain {type(module).__name__}"
    for name, (shape, first) in ours.items():
        if (shape, first) != theirs[name]:
            return f"{name} is {shape} sharing {first}; the plain class has {theirs[name][0]} sharing {theirs[name][1]}"
    for (name, a), (_, b) in zip(module.named_modules(), plain.named_modules(), strict=True):
        if _numbers(a) != _numbers(b):
            return f"{name} runs with {_numbers(a)}, the plain class with {_numbers(b)}"
    return ""


def _tensors(module: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    first: dict[int, str] = {}
    return {
        name: (tuple(tensor.shape), first.setdefault(id(tensor), name))
        for name, tensor in module.state_dict(keep_vars=True).items()
    }


def _numbers(module: nn.Module) -> dict[str, int | float]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith("_")
    }
