"""Language models whose architecture transformers has a class for.

One family serves every such architecture: the config decides what is built, detection finds the anatomy. Remote code
is never run, and only safetensors are read.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from zoo.anatomy.parts import Anatomy
from zoo.catalog import ModelSpec
from zoo.errors import ArtifactError, RequestError, ZooError
from zoo.family.text.family import TextFamily
from zoo.loading.directory import CODE_KEYS, check_config
from zoo.loading.load import DTYPES
from zoo.model.building import cast_parameters
from zoo.model.model import Model
from zoo.system.reading import LARGEST_DATA, text_of
from zoo.tensors import safetensors
from zoo_slm import models

TASKS = {"causal-lm": "AutoModelForCausalLM", "masked-lm": "AutoModelForMaskedLM", "seq2seq": "AutoModelForSeq2SeqLM"}
SIZES = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads")  # some classes build nothing of 0
# tables that old checkpoints store
FIXED = (".version", ".inv_freq", ".position_ids", ".masked_bias", ".attn.bias", ".attention.bias")
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


class TransformersText(TextFamily):
    """Text models built from a transformers config."""

    tasks: ClassVar[tuple[str, ...]] = tuple(TASKS)

    def shrunk(self, spec: ModelSpec) -> dict[str, Any]:
        from zoo_slm.scale import tiny

        with _unfit(spec.config):
            parsed = _parsed(spec.config)
        return tiny(parsed.to_dict(), spec.config, name=spec.name)

    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        """Build the native class for `config` (its `model_type` decides) and `task`.

        Raises:
            RequestError: transformers has no class for this model type and task.
        """
        import transformers

        with _unfit(config, task):
            parsed = _parsed(config)
            for size in SIZES:
                if isinstance(found := getattr(parsed, size, 1), int) and found < 1:
                    raise ValueError(f"{size} is {found}")
            module: nn.Module = getattr(transformers, TASKS[task]).from_config(parsed)
        _untie(module, config)
        return module.eval()

    def initialise(self, module: nn.Module) -> None:
        # parts before what holds them, which may draw for them (T5, GPT-2)
        for part in reversed(list(module.modules())):
            module._init_weights(part)  # type: ignore[operator]
        config: Any = module.config
        if "T5" in type(config).__name__ and not _tied(module):  # its class takes the head for the table, see _untie
            nn.init.normal_(module.lm_head.weight, std=config.initializer_factor)  # type: ignore[union-attr, arg-type]

    def anatomy(self, module: nn.Module) -> Anatomy:
        from zoo.anatomy.detect import detect

        return detect(module)

    def body_and_head(self, module: nn.Module) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]] | None:
        head = module.get_output_embeddings()  # type: ignore[operator]
        body = getattr(module, "base_model", None)
        if head is None or body is None or getattr(module, "lm_head", None) is not head:
            return None
        if getattr(module.config, "is_encoder_decoder", False):  # T5 scales between the two, BART adds a bias after
            return None
        read: Any = head
        config: Any = module.config
        cap: float | None = getattr(config, "final_logit_softcapping", None)
        # Cohere, Granite
        scale = float(getattr(config, "logit_scale", None) or 1) / float(getattr(config, "logits_scaling", None) or 1)

        def logits(hidden: torch.Tensor) -> torch.Tensor:
            raw: torch.Tensor = read(hidden) * scale if scale != 1 else read(hidden)
            return torch.tanh(raw / cap) * cap if cap else raw

        return body, logits

    # --- foreign checkpoints ------------------------------------------------------------------------------------

    def read_foreign(self, path: Path, *, device: str | None, dtype: torch.dtype | None) -> Model:
        """Load a plain transformers directory through transformers itself, which converts older layouts.

        Raises:
            ArtifactError: the config is unreadable or names remote code, or the folder holds no safetensors.
        """
        import transformers

        config, task = _read_config(path)
        auto, beside = getattr(transformers, TASKS[task]), {}
        if models.own_type(config):
            models.require_sound(config, path)
            with _unfit(config, task):
                beside = {"config": _parsed(config)}
        spec = ModelSpec(
            name=path.name, family="transformers", modality="text", task=task, plugin="zoo_slm", config=config
        )
        if device == "meta":
            kept = str(dtype or _own_dtype(path, config)).removeprefix("torch.")
            try:
                with torch.device("meta"):
                    module = self.build(config, task)
            except RequestError as error:
                raise RequestError(f"{path / 'config.json'}: {error}") from None
            cast_parameters(module, getattr(torch, kept))
            return Model(
                module, self, spec, processor=self.load_processor(path), dtype=kept, stored=kept, origin=str(path)
            )
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ArtifactError(f"{path} holds no .safetensors file; other weight formats are not read.")
        for file in files:
            safetensors.require_whole(file)
        _require_shards(path, {file.name for file in files})
        try:
            with _quiet():
                module, report = auto.from_pretrained(
                    path,
                    dtype=dtype or "auto",
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **beside,
                )
        except (*UNFIT, OSError, SafetensorError) as error:
            raise ArtifactError(f"{path} cannot be loaded: {_odd_expert(files) or _first_line(error)}") from None
        _require_complete(path, report, module)
        _untie(module, config)
        if not _tied(module) and getattr(module.config, "tie_word_embeddings", False) and not _asks_untied(config):
            # both are in the file, and differ
            config["tie_word_embeddings"] = module.config.tie_word_embeddings = False
        if "eos_token_id" in config:
            module.config.eos_token_id = config["eos_token_id"]
        module = module.eval().to(device or "cpu")
        kept = str(module.dtype).removeprefix("torch.")
        return Model(
            module,
            self,
            spec,
            processor=self.load_processor(path),
            dtype=kept,
            stored=kept,
            origin=str(path),
        )

    def write_foreign(self, model: Model, path: Path) -> str:
        """Write `config.json` when a plain transformers class of that config has exactly the model's tensors."""
        config: Any = model.module.config
        with torch.device("meta"):
            try:
                plain = type(model.module)(type(config)(**config.to_diff_dict()))
                _untie(plain, model.spec.config)
            except UNFIT as error:
                return f"no plain config describes it: {_first_line(error)}"
        difference = _first_difference(model.module, plain)
        if difference:
            return difference
        values = {**config.to_dict(), "architectures": [type(model.module).__name__], "dtype": model.stored}
        for key in ("transformers_version", "_name_or_path"):
            values.pop(key, None)
        if _asks_untied(model.spec.config):
            values["tie_word_embeddings"] = False
        (path / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return ""

    # --- tokenizer ----------------------------------------------------------------------------------------------

    def load_processor(self, path: Path) -> Any:
        if not (path / "tokenizer.json").exists():
            return None
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError):  # a lone tokenizer.json
            pass
        except Exception as error:  # tokenizers raises no narrower class
            raise _damaged_tokenizer(path, error) from None
        try:
            return PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
        except Exception as error:
            raise _damaged_tokenizer(path, error) from None

    def save_processor(self, processor: Any, path: Path) -> None:
        processor.save_pretrained(path)


@contextmanager
def _unfit(config: Mapping[str, Any], task: str = "model") -> Iterator[None]:
    """Refuse a config that no model can be made of, in a sentence."""
    try:
        yield
    except UNFIT as error:
        if isinstance(error, ZooError):
            raise
        raise RequestError(
            f"transformers cannot build a {task} of type {config.get('model_type')!r}: {_first_line(error)}"
        ) from None


def _parsed(config: Mapping[str, Any]) -> Any:
    """The config as its class in transformers, or here, reads it."""
    import transformers

    own = models.own_type(config)
    values = models.adopted(config) if own else {key: value for key, value in config.items() if key not in CODE_KEYS}
    values = copy.deepcopy(values)  # config classes write into nested tables
    return transformers.AutoConfig.for_model(values.pop("model_type", None), **values)


def _untie(module: Any, config: Mapping[str, Any]) -> None:
    """Give the head a weight of its own where a config says so and its class does not listen.

    T5's class ties head and table always, and reads tie_word_embeddings = false, which T5 1.1 has, only as "the decoder's
    output is not scaled". Checkpoints hold both tensors; transformers leaves them apart when it reads them, and not when
    it builds from a config.
    """
    if _asks_untied(config) and _tied(module):
        module.lm_head.weight = nn.Parameter(module.lm_head.weight.detach().clone())
        for known in ("_tied_weights_keys", "all_tied_weights_keys"):
            setattr(
                module, known, {name: of for name, of in getattr(module, known).items() if name != "lm_head.weight"}
            )


def _asks_untied(config: Mapping[str, Any]) -> bool:
    """Whether head and token table are two weights; a T5 1.1 written by transformers 5 says so in other words."""
    return config.get("tie_word_embeddings") is False or config.get("scale_decoder_outputs") is False


def _tied(module: Any) -> bool:
    """Whether the head is the token table, or there is none."""
    head, table = module.get_output_embeddings(), module.get_input_embeddings()
    return head is None or getattr(head, "weight", None) is getattr(table, "weight", module)


def _damaged_tokenizer(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path / 'tokenizer.json'} is damaged: {_first_line(error).rstrip('.')}.")


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    place = path / "config.json"
    text = text_of(place, error=ArtifactError, most=LARGEST_DATA)
    try:
        config = json.loads(text)
        model_type = models.own_type(config) or config["model_type"]
        named = " ".join(config.get("architectures") or [])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ArtifactError(f"{place} is not a transformers config with a model_type and architectures.") from None
    if models.own_type(config):
        with _unfit(config):
            config = models.adopted(config)
        named = config["architectures"][0]
    check_config(config, str(place))
    if ends := _ends(path):
        config["eos_token_id"] = ends
    if "MaskedLM" in named:
        return config, "masked-lm"
    if "ConditionalGeneration" in named or config.get("is_encoder_decoder"):
        return config, "seq2seq"
    if named and "CausalLM" not in named and "LMHead" not in named:
        raise RequestError(
            f"{path} holds a {named} ({model_type}); text models need a causal, masked or seq2seq LM head."
        )
    return config, "causal-lm"


def _ends(path: Path) -> int | list[int] | None:
    """The tokens that end a text, where `generation_config.json` says so: of chat models often more than the config says."""
    place = path / "generation_config.json"
    if not place.is_file():
        return None
    try:
        found = json.loads(text_of(place, error=ArtifactError, most=LARGEST_DATA)).get("eos_token_id")
    except (ValueError, AttributeError, RecursionError):
        raise ArtifactError(f"{place} is not a JSON object.") from None
    ids = found if isinstance(found, list) else [found]
    return found if found and all(type(one) is int and one >= 0 for one in ids) else None


def _own_dtype(path: Path, config: dict[str, Any]) -> str:
    """The dtype that transformers loads a checkpoint in when it is not told: the config's, else that of the tensors."""
    named = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    if named in DTYPES:
        return named
    kinds = [
        about["dtype"]
        for file in sorted(path.glob("*.safetensors"))
        for about in safetensors.read_header(file).values()
    ]
    return next(
        (name for kind in kinds for short, name in (("BF16", "bfloat16"), ("F16", "float16")) if kind == short),
        "float32",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report of transformers: what matters in it becomes an error."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _require_shards(path: Path, there: set[str]) -> None:
    """Refuse an index that names weight files which are not in the folder: transformers would follow it anywhere."""
    for place in sorted(path.glob("*.safetensors.index.json")):
        try:
            named = set(json.loads(text_of(place, error=ArtifactError, most=LARGEST_DATA))["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ArtifactError(f"{place} is not an index of weight files.") from None
        for name in sorted(named - there, key=str):
            raise ArtifactError(f"{place}: {str(name)[:80]!r} is not a file of this directory.")


def _odd_expert(files: list[Path]) -> str:
    """Say which tensor of an expert is missing or of another shape than those of its neighbours; transformers only says that there is one."""
    found: dict[str, dict[int, tuple[int, ...]]] = {}
    for file in files:
        for name, about in safetensors.read_header(file).items():
            if part := re.fullmatch(r"(.+\.experts\.)(\d+)(\..+)", name):
                found.setdefault(f"{part[1]}{{}}{part[3]}", {})[int(part[2])] = tuple(about["shape"])
    count = max((max(shapes) + 1 for shapes in found.values()), default=0)
    for place, shapes in sorted(found.items()):
        for index in range(count):
            first = shapes[min(shapes)]
            if shapes.get(index) != first:
                return f"{place.format(index)!r} is {shapes.get(index, 'missing')}, where other experts have {first}."
    return ""


def _require_complete(path: Path, report: dict[str, Any], module: nn.Module) -> None:
    """Refuse what transformers would fill with random numbers, tensors that are missing or of another shape, or leave out.

    A head of another task may be left out; a tensor of the body or of its own head may not, unless it only holds positions
    or a mask.
    """
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise ArtifactError(
            f"{path}: {name!r} has shape {tuple(found)}, the model of its config.json expects {tuple(expected)}."
        )
    for name in sorted(report["missing_keys"]):
        raise ArtifactError(f"{path}: tensor {name!r} is missing; the model of its config.json has it.")
    stem = f"{getattr(module, 'base_model_prefix', '')}."
    head = next((f"{name}." for name, part in module.named_modules() if part is module.get_output_embeddings()), stem)  # type: ignore[operator]
    lists = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, nn.ModuleList))
    for name in sorted(report["unexpected_keys"]):
        within = name.startswith((stem, head, *lists)) or (stem + name).startswith(lists)
        if within and not name.endswith(FIXED) and ".pooler." not in name:
            raise ArtifactError(f"{path}: tensor {name!r} is not part of the model of its config.json.")


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


def _first_line(error: BaseException) -> str:
    if isinstance(error, StrictDataclassError):  # its own first line only says which check found it
        error = error.__cause__ or error
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
