"""Published checkpoints: directories as transformers writes them, with a config and safetensors."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from zoo.errors import ArtifactError
from zoo.family.text.embedding import TextEmbedding
from zoo.loading.codes import require_no_codes, without_codes
from zoo.loading.contents import require_own_weights
from zoo.loading.directory import check_config, without_code
from zoo.loading.load import DTYPES
from zoo.system.memory import ran_out
from zoo.system.reading import LARGEST_DATA, text_of
from zoo.system.writing import writing
from zoo.tensors import safetensors
from zoo.tensors.mapped import KINDS, MappedTensors
from zoo.tensors.offload import Offload, let_go
from zoo_slm import architectures, models, quantized, sentence_files
from zoo_slm.configs import UNFIT, asks_untied, auto_class, parsed, tied, unfit, untie, why
from zoo_slm.quiet import quiet
from zoo_slm.sentence_encoder import KEY, SentenceEncoder, backbone_class, plain, pooler_of, require_masked

# tables that old checkpoints store
FIXED = (".version", ".inv_freq", ".position_ids", ".masked_bias", ".attn.bias", ".attention.bias")


@dataclass(frozen=True)
class Checkpoint:
    """A directory that transformers can read; what it cannot, or would take from elsewhere, is refused."""

    path: Path
    config: dict[str, Any]
    task: str
    own: Any = None  # the config as a class of ours reads it, where transformers has none
    quantizer: dict[str, Any] | None = None  # what made the codes that its tensors are, where they are to be widened
    offload: Offload | None = None  # where its tensors are put in place of memory

    @classmethod
    def at(cls, path: Path, *, dequantize: bool = False, offload: Offload | None = None) -> Checkpoint:
        """Read the config of a directory.

        Raises:
            ArtifactError: it is unreadable, names remote code, or contradicts the files beside it; its tensors are codes,
                and are not to be widened.
            RequestError: they are to be, and transformers does not widen them.
        """
        config, task, quantizer = _read_config(path, dequantize=dequantize)
        files = safetensors.files_of(path)
        require_own_weights(path, files)
        if quantizer is None:
            require_no_codes(files)
        else:
            quantized.require_whole_blocks(files, quantizer)
        if not models.own_type(config):
            return cls(path, config, task, quantizer=quantizer, offload=offload)
        models.require_sound(config, path)
        with unfit(config, task):
            return cls(path, config, task, parsed(config), offload=offload)

    def dtype(self) -> str:
        """The dtype to load it in when nobody says: as in transformers the config's, else that of the first tensor of floats.

        Models do not run in float64, nor in eight bits; what is stored so is read as float32.
        """
        named = str(self.config.get("dtype") or self.config.get("torch_dtype") or "").removeprefix("torch.")
        if named in DTYPES:
            return named
        names = {safetensors.DTYPES[name]: name for name in DTYPES}
        headers = map(safetensors.read_header, safetensors.files_of(self.path)[:1])
        kinds = (header[name]["dtype"] for header in headers for name in sorted(header))
        return next((names.get(kind, "float32") for kind in kinds if kind in names or kind == "F64"), "float32")

    def module(self, dtype: torch.dtype | None) -> nn.Module:
        """Load the model, and note in the config where head and token table are two weights.

        Raises:
            ArtifactError: there are no safetensors, or they are not those of the config.
        """
        module, report = self._load(dtype, auto_class(self.task))
        require_complete(self.path, report, module)
        if not self.config.get("architectures") and tied(module):  # then no tensor tells that there is a head
            _require_used(self.path, report, module)
        untie(module, self.config)
        if not tied(module) and _ties_head(module) and not asks_untied(self.config):
            # both are in the file, and differ
            self.config["tie_word_embeddings"] = module.config.tie_word_embeddings = False
        if "eos_token_id" in self.config:
            module.config.eos_token_id = self.config["eos_token_id"]
        evaluated: nn.Module = module.eval()
        return evaluated

    def encoder(self, dtype: torch.dtype | None) -> nn.Module:
        """Load a transformer without its head, and what follows it.

        Raises:
            ArtifactError: as `module`.
        """
        about = self.config[KEY]
        backbone, report = self._load(dtype, backbone_class(self.config), **pooler_of(self.config))
        require_masked(backbone, self.config)
        require_complete(self.path, report, backbone)
        encoder = SentenceEncoder(backbone, about)
        sentence_files.fill_head(encoder, about, self.path)
        return encoder.eval()

    def _load(self, dtype: torch.dtype | None, cls: Any, **given: Any) -> tuple[Any, dict[str, Any]]:
        """What a class of transformers makes of the files, and its report on their tensors."""
        files = safetensors.files_of(self.path)
        if not files:
            raise ArtifactError(f"{self.path} holds no .safetensors file; other weight formats are not read.")
        for file in files:
            safetensors.require_whole(file)
        dtype = dtype or getattr(torch, self.dtype())
        with _alone(self.path, files, self.config) as folder, quiet():
            try:
                config = parsed(self.config) if self.own is None else self.own
                if self.quantizer is not None:
                    config.quantization_config = dict(self.quantizer)
                source: dict[str, Any] = {"pretrained_model_name_or_path": folder}
                if self.offload is not None:
                    cls, run = _chosen(cls, config, dtype, **given)
                    tensors = dict(self._offloaded(files, self.offload, run))
                    source = {"pretrained_model_name_or_path": None, "state_dict": tensors}
                module, report = cls.from_pretrained(
                    **source,
                    config=config,
                    dtype=dtype,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **quantized.settings(self.quantizer),
                    **given,
                )
                if self.quantizer is not None:
                    module = quantized.widened(module, self.quantizer, dtype)
            except (*UNFIT, OSError, SafetensorError, ImportError) as error:
                if ran_out(error):
                    raise
                reason = _odd_expert(files) or why(error).replace(str(folder), str(self.path))
                raise ArtifactError(f"{self.path} cannot be loaded: {reason}.") from None
        return module, report

    def _offloaded(
        self, files: list[Path], offload: Offload, dtype: torch.dtype | None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of the files, each copied to where it is kept; floats in a dtype where one is given."""
        for path in files:
            file = MappedTensors(path, copies=True)
            for name, about in file.header.items():
                stored = KINDS[about["dtype"]]
                kept = dtype if dtype and stored.is_floating_point else stored
                place = offload.empty(about["shape"], kept)
                file.copy(name, place)
                let_go(place)
                yield name, place


def _chosen(cls: Any, config: Any, dtype: torch.dtype, **given: Any) -> tuple[Any, torch.dtype | None]:
    """The class that one of transformers' auto classes chooses, since only that takes tensors in place of a folder.

    With it comes the dtype that all its floats run in, where `dtype` is that; else transformers casts each as it has to.
    """
    with torch.device("meta"):
        empty = (cls.from_config if hasattr(cls, "from_config") else cls._from_config)(config, dtype=dtype, **given)
    floats = {tensor.dtype for tensor in empty.state_dict().values() if tensor.is_floating_point()}
    kept = bool(empty._keep_in_fp32_modules or empty._keep_in_fp32_modules_strict)
    return type(empty), None if kept or floats != {dtype} else dtype


def _read_config(path: Path, *, dequantize: bool) -> tuple[dict[str, Any], str, dict[str, Any] | None]:
    file = path / "config.json"
    text, config = text_of(file, error=ArtifactError, most=LARGEST_DATA), None
    try:
        config = json.loads(text)
        own, kind, named = models.own_type(config), config["model_type"], config.get("architectures")
        if not isinstance(kind, str) or not isinstance(named, list | None):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if isinstance(config, dict) and "_class_name" in config:
            raise ArtifactError(
                f"{file} describes a {str(config['_class_name'])[:80]} of diffusers, one part of a pipeline: give the folder "
                "of the whole, in which model_index.json lies."
            ) from None
        raise ArtifactError(f"{file} is not a transformers config with a model_type and architectures.") from None
    if own or architectures.is_known(config):
        config = without_code(config)  # left over beside a class that is here
    if own:
        with unfit(config):
            config = models.adopted(config)
    quantizer = quantized.quantizer_of(config, str(file), dequantize=dequantize)
    config = without_codes(config) if dequantize else config
    check_config(config, str(file))
    if ends := _ends(path):
        config["eos_token_id"] = ends
    about = sentence_files.describe(path)
    task = architectures.task_of(config, path) if about is None else TextEmbedding.name
    if task == TextEmbedding.name:
        stored = {name for file in safetensors.files_of(path) for name in safetensors.read_header(file)}
        # without weights, as a plan may come, the class's own is supposed
        config[KEY] = {**(about or plain()), "pooler": not stored or any("pooler." in name for name in stored)}
    return config, task, quantizer


def _ends(path: Path) -> int | list[int] | None:
    """The tokens that end a text, where `generation_config.json` says so: of chat models often more than the config says."""
    file = path / "generation_config.json"
    if not file.is_file():
        return None
    try:
        ends = json.loads(text_of(file, error=ArtifactError, most=LARGEST_DATA)).get("eos_token_id")
    except (ValueError, AttributeError, RecursionError):
        raise ArtifactError(f"{file} is not a JSON object.") from None
    tokens = ends if isinstance(ends, list) else [ends]
    return ends if ends and all(type(token) is int and token >= 0 for token in tokens) else None


@contextmanager
def _alone(path: Path, weights: list[Path], config: dict[str, Any]) -> Iterator[Path]:
    """A folder with the model's own files and nothing else that transformers might read.

    An adapter_config.json left beside merged weights would be applied to them again where peft is installed. A folder
    without one, or other weights, is read in place, so that loading writes nothing.
    """
    if not (path / "adapter_config.json").exists() and set(path.glob("*.safetensors")) == set(weights):
        yield path
        return
    with ExitStack() as stack:
        with writing(Path(tempfile.gettempdir())):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zoo-")))
            for file in (*weights, path / "model.safetensors.index.json", path / "generation_config.json"):
                if file.is_file():
                    (folder / file.name).symlink_to(file.resolve())
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield folder


def _odd_expert(files: list[Path]) -> str:
    """Say which tensor of an expert is missing or of another shape than those of its neighbours; transformers only says that there is one."""
    experts: dict[str, dict[int, tuple[int, ...]]] = {}  # by what stands around their number
    for file in files:
        for name, about in safetensors.read_header(file).items():
            if part := re.fullmatch(r"(.+\.experts\.)(\d+)(\..+)", name):
                experts.setdefault(f"{part[1]}{{}}{part[3]}", {})[int(part[2])] = tuple(about["shape"])
    count = max((max(shapes) + 1 for shapes in experts.values()), default=0)
    for name, shapes in sorted(experts.items()):
        for index in range(count):
            first = shapes[min(shapes)]
            if shapes.get(index) != first:
                return f"{name.format(index)!r} is {shapes.get(index, 'missing')}, where other experts have {first}"
    return ""


def _ties_head(module: Any) -> bool:
    """Whether a class ties its head to something, as its config has it; Luke's ties other weights."""
    names = [f"{name}.weight" for name, part in module.named_modules() if part is module.get_output_embeddings()]
    return not module.get_expanded_tied_weights_keys(all_submodels=True).keys().isdisjoint(names)


def require_complete(path: Path, report: dict[str, Any], module: nn.Module) -> None:
    """Refuse what transformers would fill with random numbers, tensors that are missing or of another shape, or leave out.

    A head of another task may be left out; a tensor of the body or of its own head may not, unless it only holds positions
    or a mask.
    """
    for name, shape, expected in sorted(report["mismatched_keys"]):
        raise ArtifactError(
            f"{path}: {name!r} has shape {tuple(shape)}, the model of its config.json expects {tuple(expected)}."
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


def _require_used(path: Path, report: dict[str, Any], module: nn.Module) -> None:
    """Refuse the head of another task, which a class that was only guessed would leave out."""
    for name in sorted(report["unexpected_keys"]):
        if not name.endswith(FIXED) and ".pooler." not in name:
            raise ArtifactError(
                f"{path}: tensor {name!r} is not part of a {type(module).__name__}, and config.json names no class: "
                "write the one that was saved under architectures."
            )
