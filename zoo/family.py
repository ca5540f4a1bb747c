"""Families: how one architecture family is built, fed, run, and where its parts are.

`Family` is what every modality shares; one base class per modality holds what is common to it, so that a new
architecture of a known modality is little more than `config`, `build` and `anatomy`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

    from zoo.anatomy import Anatomy
    from zoo.catalog import ModelSpec
    from zoo.data import Dataset, Sample
    from zoo.model import Model

Batch = dict[str, "torch.Tensor"]
SHOWN = 12  # images that a report shows


@dataclass(frozen=True)
class Rows:
    """The places of a batch that losses compare, one row each: labelled tokens, visual tokens, or whole images.

    Legend: N rows, D width of the hidden state, V width of what the head makes of it.
    """

    hidden: torch.Tensor  # (N, D)
    head: Callable[[torch.Tensor], torch.Tensor]  # (n, D) -> (n, V)
    sample: torch.Tensor  # (N,) int64: which sample of the batch a row belongs to
    target: torch.Tensor | None = None  # (N,) int64 labels or (N, V) values; None where only a teacher knows
    time: torch.Tensor | None = None  # (N,) the time in [0, 1] of a flow-matching row

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, chosen: slice | torch.Tensor) -> Rows:
        picked = {name: None if (value := getattr(self, name)) is None else value[chosen]
                  for name in ("hidden", "sample", "target", "time")}  # fmt: skip
        return replace(self, **picked)



class Family(ABC):
    """One architecture family. Instances are stateless."""

    modality: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    kinds: ClassVar[tuple[str, ...]]  # of rows that losses can compare: "label", "visual", "velocity", "pixel", ...
    losses: ClassVar[tuple[Mapping[str, Any], ...]]  # what `train` minimises unless a recipe says otherwise
    distillation: ClassVar[tuple[Mapping[str, Any], ...]]  # what `distill` minimises unless a recipe says otherwise
    evaluation: ClassVar[tuple[str, str]]  # the evaluator and the data that `zoo eval` takes by default
    takes: ClassVar[tuple[str, ...]] = ("prompt",)  # what `generate` takes: "prompt", "images", names of options
    makes: ClassVar[str] = "text"  # what `generate` returns: "text" or "images"

    # --- building -----------------------------------------------------------------------------------------------

    def complete(self, spec: ModelSpec) -> ModelSpec:
        """Add what only the family's own library knows of a name such as "timm:resnet18"; other specs are left as they are."""
        return spec

    @abstractmethod
    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        """Build the module from a JSON config, under whatever device context is active; no weights are read."""

    @abstractmethod
    def initialise(self, module: nn.Module) -> None:
        """Fill a module with the architecture's own random initialisation (the caller holds the random state)."""

    @abstractmethod
    def anatomy(self, module: nn.Module) -> Anatomy:
        """Say where the stacks, projections, norms, embeddings and head are."""

    # --- foreign checkpoints ------------------------------------------------------------------------------------

    def read_foreign(self, path: Path, *, device: str | None, dtype: torch.dtype | None) -> Model:
        """Load a checkpoint directory written by the ecosystem's own library (transformers, diffusers, timm)."""
        raise NotImplementedError

    def write_foreign(self, model: Model, path: Path) -> str:
        """Write the ecosystem's own files beside the weights; return "" or why the model is not representable."""
        return "this family has no foreign format"

    def weight_files(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Say which tensors a saved model keeps in which file: prefix of their names (cut off there) -> relative path."""
        return {"": "model.safetensors"}

    # --- processor ----------------------------------------------------------------------------------------------

    def load_processor(self, path: Path) -> Any:
        """Load the tokenizer or image processor saved in `path`, or None where there is none."""
        return None

    def save_processor(self, processor: Any, path: Path) -> None:
        """Save the processor into `path`."""

    # --- running ------------------------------------------------------------------------------------------------

    @abstractmethod
    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        """Make a small random batch on the model's device: what tests, estimates and calibration-free checks feed."""

    @abstractmethod
    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        """Run the module on a batch and return its main output."""

    @abstractmethod
    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """Cut `data` into training windows, each a dict of unbatched tensors."""

    def collate(self, model: Model, windows: Sequence[Batch]) -> Batch:
        """Join windows into one batch."""
        import torch

        return {name: torch.stack([window[name] for window in windows]) for name in windows[0]}

    def draw(self, model: Model, batch: Batch, generator: torch.Generator) -> Batch:
        """Add what training draws anew at every step (noise, times); a batch goes through here before it is run."""
        return batch

    @abstractmethod
    def rows(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        """Run a batch up to the heads and return the rows of each kind in `kinds`, all of them kinds of this family."""

    def comparable(self, student: Model, teacher: Model) -> str:
        """Say why a teacher's rows cannot be compared with a student's; "" where they can."""
        return ""

    @abstractmethod
    def generate(self, model: Model, prompt: Any, **options: Any) -> Any:
        """Generate from a prompt: text (with `stream`, an iterator over its pieces), or a list of images."""

    @abstractmethod
    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        """Run once and return figures a second, such as {"decode_tokens_per_s": 130.0}.

        Args:
            prefill, decode: tokens of the prompt and tokens generated, for models that read and write tokens.
        """

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        """Answer for a report: [{"prompt", "output"}], with "expected" and "image" or "caption" (a data URI) where they help."""
        return []


class TextFamily(Family):
    """What language models share: token windows, streaming generation, held-out bits per byte.

    The module takes `input_ids` (B, T) and `attention_mask` (B, T) and returns an object with `logits` (B, T, V); the
    processor is a fast tokenizer of the transformers kind. A seq2seq model reads the first half of a text, and `labels`
    and `decoder_input_ids` are of the second: prefix language modelling (T5, 1910.10683, section 3.2.1).
    """

    modality: ClassVar[str] = "text"
    kinds: ClassVar[tuple[str, ...]] = ("label",)
    losses: ClassVar[tuple[Mapping[str, Any], ...]] = ({"use": "cross-entropy"},)
    distillation: ClassVar[tuple[Mapping[str, Any], ...]] = ({"use": "kl"},)
    evaluation: ClassVar[tuple[str, str]] = ("perplexity", "stdlib:test")
    takes: ClassVar[tuple[str, ...]] = ("prompt", "max_new_tokens", "temperature", "top_p", "seed", "stop")

    def body_and_head(self, module: nn.Module) -> tuple[nn.Module, Any] | None:
        """Split a causal model into body (ids -> hidden (B, T, D)) and head (hidden -> logits), or None if it does not split."""
        return None

    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        import torch

        generator = torch.Generator().manual_seed(seed)
        vocabulary, size = int(self.text_config(model)["vocab_size"]), min(size, self.context_length(model))
        names = ("input_ids", "decoder_input_ids") if model.spec.task == "seq2seq" else ("input_ids",)
        return {name: torch.randint(0, vocabulary, (batch, size), generator=generator).to(model.device) for name in names}

    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        """Return logits (B, T, V)."""
        logits: torch.Tensor = model.module(**_inputs(batch)).logits
        return logits

    def rows(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        """Return the rows of kind "label": every position whose label is not negative.

        Where body and head do not separate, the logits stand in for the hidden state and the head is the identity.
        """
        hidden_BTD, head = self.hidden(model, batch)
        keep = batch["labels"] >= 0
        return {"label": Rows(hidden_BTD[keep], head, keep.nonzero()[:, 0], batch["labels"][keep])}

    def hidden(self, model: Model, batch: Batch) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """Run up to the head: hidden (B, T, D) and the head."""
        split = self.body_and_head(model.module)
        if split is None:
            return self.forward(model, batch), lambda logits: logits
        body, head = split
        return body(**_inputs(batch), use_cache=False).last_hidden_state, head

    def text_config(self, model: Model) -> Mapping[str, Any]:
        """The config of the language model, where a config holds several."""
        return model.spec.config

    def comparable(self, student: Model, teacher: Model) -> str:
        mine, theirs = (int(self.text_config(m).get("vocab_size", 0)) for m in (student, teacher))
        if mine == theirs:
            return ""
        return (
            f"distill compares distributions over one vocabulary: {student.spec.name} has {mine} tokens, the teacher "
            f"{teacher.spec.name} {theirs}. Choose a teacher with the same tokenizer."
        )

    def tokens(self, model: Model, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenise without special tokens: ids, and the span of characters each token covers."""
        encoded = self.tokenizer(model)(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["input_ids"], encoded["offset_mapping"]

    def tokenizer(self, model: Model) -> Any:
        from zoo.errors import RequestError

        if model.processor is None:
            raise RequestError(f"{model.spec.name} has no tokenizer: put tokenizer.json beside its weights.")
        return model.processor

    def inputs(self, model: Model, prompt: Any) -> tuple[list[int], Batch]:
        """Return the tokens that generation starts from, and what the module takes beside them on their pass.

        Raises:
            RequestError: the prompt is not text or holds nothing that the model knows, or the model continues no text.
        """
        from zoo.errors import RequestError

        if not isinstance(prompt, str) or not prompt:
            raise RequestError("The prompt is empty: pass some text to continue.")
        if model.spec.task != "causal-lm":
            raise RequestError(f"{model.spec.name} is a {model.spec.task} model; only causal-lm models continue a text.")
        ids = self.tokens(model, prompt)[0]
        if not ids:
            raise RequestError(f"The prompt {prompt!r} has no token that {model.spec.name} knows: pass some text to continue.")
        return ids, {}

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """Cut the records, joined by end-of-text tokens, into windows of `length` tokens, at most the context, with labels (T,)."""
        windows = TokenWindows(self, model, data, min(length, self.context_length(model)))
        return Halves(windows, start_token(model)) if model.spec.task == "seq2seq" else windows

    def generate(self, model: Model, prompt: Any, **options: Any) -> Any:
        """Continue a text.

        Args:
            prompt: the text to continue.
            options: `max_new_tokens` (128), `temperature` (0 is greedy), `top_p` (1), `seed` (0), `stop` (strings that
                end the text), `stream` (True: an iterator over pieces of text instead of one string).

        Raises:
            RequestError: the prompt leaves no room in the model's context, or an option is unknown.
        """
        from inspect import signature

        from zoo.errors import RequestError, nearest
        from zoo.generation import stream_text

        stream = options.pop("stream", False)
        known = list(signature(stream_text).parameters)[3:]
        for name in options.keys() - known:
            raise RequestError(f"{name!r} is not an option of generate.{nearest(name, known)} Options: {', '.join([*known, 'stream'])}.")
        pieces = stream_text(self, model, prompt, **options)
        return pieces if stream else "".join(pieces)

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        return [{"prompt": p, "output": self.generate(model, p, max_new_tokens=64)} for p in prompts]

    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        import time

        import torch

        from zoo.generation import next_tokens

        context = self.context_length(model)
        decode = min(decode, max(1, context // 2 - 1))
        prefill = max(1, min(prefill, context - decode))
        batch = self.example(model, batch=1, size=prefill)
        ids_BT = batch["input_ids"]
        start = time.perf_counter()
        with torch.inference_mode():
            self.forward(model, batch)
        found = {"prefill_tokens_per_s": prefill / (time.perf_counter() - start)}
        if model.spec.task == "causal-lm":
            prompt = ids_BT[0, : min(16, prefill, max(1, context - decode - 1))]
            tokens = next_tokens(model, prompt.tolist(), decode + 1)
            next(tokens)  # the prompt's own pass
            start = time.perf_counter()
            found["decode_tokens_per_s"] = sum(1 for _ in tokens) / (time.perf_counter() - start)
        return found

    def context_length(self, model: Model) -> int:
        """Longest sequence the model takes, in tokens."""
        config = self.text_config(model)
        return int(config.get("max_position_embeddings") or config.get("n_positions") or 1024)


def _inputs(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


class TokenWindows(Sequence[Batch]):
    """Records as one token stream cut into windows; window i holds tokens [i*T, i*T+T] (one more, for the labels)."""

    def __init__(self, family: TextFamily, model: Model, data: Dataset, length: int) -> None:
        import torch

        from zoo.errors import DataError

        tokenizer = family.tokenizer(model)
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        encoded = tokenizer([sample.text for sample in data], add_special_tokens=False, verbose=False)["input_ids"]
        stream = [token for ids in encoded for token in ([end] if end is not None else []) + ids]
        if len(stream) < length + 1:
            raise DataError(f"{data.name!r} holds {len(stream)} tokens, fewer than one window of {length + 1}.")
        self.stream = torch.tensor(stream, dtype=torch.int32)
        self.length = length

    def __len__(self) -> int:
        return (len(self.stream) - 1) // self.length

    def __getitem__(self, index: Any) -> Any:
        piece = self.stream[index * self.length : (index + 1) * self.length + 1].long()
        return {"input_ids": piece[:-1], "labels": piece[1:]}

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


class Halves(Sequence[Batch]):
    """Windows for a seq2seq model: the encoder reads the first half, the decoder is to write the second."""

    def __init__(self, windows: TokenWindows, start: int) -> None:
        self.windows, self.start = windows, start

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: Any) -> Any:
        import torch

        ids_T = self.windows[index]["input_ids"]
        read, write = ids_T[: len(ids_T) // 2], ids_T[len(ids_T) // 2 :]
        return {"input_ids": read, "decoder_input_ids": torch.cat([write.new_tensor([self.start]), write[:-1]]), "labels": write}

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


def start_token(model: Model) -> int:
    """The token with which the decoder of a seq2seq model begins."""
    found = [model.spec.config.get(name) for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id")]
    return next((int(token) for token in found if token is not None), 0)


class VisionFamily(Family):
    """What image classifiers share: labelled images, class logits, the likeliest classes as the answer.

    The module takes images (B, C, H, W) and returns logits (B, V).
    """

    modality: ClassVar[str] = "vision"
    tasks: ClassVar[tuple[str, ...]] = ("image-classification",)
    kinds: ClassVar[tuple[str, ...]] = ("label",)
    losses: ClassVar[tuple[Mapping[str, Any], ...]] = ({"use": "cross-entropy"},)
    distillation: ClassVar[tuple[Mapping[str, Any], ...]] = ({"use": "kl"},)
    evaluation: ClassVar[tuple[str, str]] = ("accuracy", "")  # which images there are depends on the classes
    takes: ClassVar[tuple[str, ...]] = ("images", "count")

    @abstractmethod
    def input_size(self, model: Model) -> tuple[int, int, int]:
        """Channels, height and width of what the module reads."""

    @abstractmethod
    def preprocess(self, model: Model, image: Image) -> torch.Tensor:
        """Turn an RGB image of any size into what the module reads (C, H, W)."""

    @abstractmethod
    def labels(self, model: Model) -> Sequence[str]:
        """The name of every class, in the order of the logits."""

    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        """Noise of the module's own input size; `size` is for models that read tokens."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        return {"images": torch.randn(batch, *self.input_size(model), generator=generator).to(model.device)}

    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        """Return logits (B, V)."""
        dtype = next((p.dtype for p in model.module.parameters() if p.is_floating_point()), None)
        logits: torch.Tensor = model.module(batch["images"].to(dtype))
        return logits

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """One item a record: its "image", and its "label" (a number or a name; without it, its text)."""
        return LabelledImages(self, model, data)

    def rows(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        """Return the rows of kind "label", one an image; the logits stand in for the hidden state."""
        import torch

        logits_BV = self.forward(model, batch)
        sample_B = torch.arange(len(logits_BV), device=logits_BV.device)
        return {"label": Rows(logits_BV, lambda logits: logits, sample_B, batch.get("labels"))}

    def comparable(self, student: Model, teacher: Model) -> str:
        mine, theirs = (list(m.family.labels(m)) for m in (student, teacher) if isinstance(m.family, VisionFamily))
        if mine == theirs:
            return ""
        what = f"{len(mine)} classes and {len(theirs)}" if len(mine) != len(theirs) else "other classes"
        return f"distill compares distributions over the same classes; {student.spec.name} and {teacher.spec.name} have {what}."

    def classify(self, model: Model, images: Sequence[Any], *, count: int = 5) -> list[list[tuple[str, float]]]:
        """Return the likeliest classes of each image, each with its probability; images are whatever `read_image` takes."""
        import torch

        from zoo.images import read_image

        names = self.labels(model)
        found = []
        for image in images:
            pixels_1CHW = self.preprocess(model, read_image(image))[None].to(model.device)
            with torch.inference_mode():
                chances_V = self.forward(model, {"images": pixels_1CHW})[0].float().softmax(-1)
            best = chances_V.topk(min(count, len(names)))
            found.append([(names[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)])
        return found

    def generate(self, model: Model, prompt: Any = None, **options: Any) -> Any:
        """Name the likeliest classes of images, one a line.

        Args:
            prompt: an image or a list of them, instead of `images`.
            options: `images`, `count` (5; how many classes), `stream` (True: an iterator, one piece an image).

        Raises:
            RequestError: there is no image, or an option is unknown.
            DataError: an image cannot be read.
        """
        from zoo.errors import RequestError, nearest

        known = (*self.takes, "stream")
        for name in options.keys() - set(known):
            raise RequestError(f"{name!r} is not an option of generate.{nearest(name, known)} Options: {', '.join(known)}.")
        images = options.get("images") or prompt
        images = list(images) if isinstance(images, list | tuple) else [images]
        if not images or images[0] is None:
            raise RequestError(f"{model.spec.name} classifies images, and there is none. Give one with --image PATH, or images=[...].")
        count = options.get("count", 5)
        if not isinstance(count, int) or count < 1:
            raise RequestError(f"count = {count!r} is not a number of classes from 1.")

        def answers() -> Iterator[str]:
            for number, image in enumerate(images):
                lines = [f"{100 * p:5.1f} %  {name}" for name, p in self.classify(model, [image], count=count)[0]]
                yield ("\n\n" if number else "") + "\n".join(lines)

        return answers() if options.get("stream") else "".join(answers())

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        """Classify eight images spread over the data."""
        from zoo.images import data_uri, read_image

        found = []
        names = self.labels(model)
        for sample in [data[i * len(data) // 8] for i in range(min(8, len(data)))] if data else []:
            image = read_image(sample.fields["image"])
            (name, chance), *_ = self.classify(model, [image], count=1)[0]
            image.thumbnail((256, 256))
            found.append({"prompt": sample.where, "image": data_uri(image), "output": name,
                          "note": f"{100 * chance:.0f} %", "expected": names[label_of(sample, names)]})  # fmt: skip
        return found

    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        import time

        import torch

        batch = self.example(model, batch=8)
        start = time.perf_counter()
        with torch.inference_mode():
            self.forward(model, batch)
        return {"images_per_s": 8 / (time.perf_counter() - start)}


class LabelledImages(Sequence[Batch]):
    """Records as images (C, H, W) with their label, read when they are asked for; labels are checked at once."""

    def __init__(self, family: VisionFamily, model: Model, data: Dataset) -> None:
        from zoo.errors import DataError

        self.family, self.model, self.data = family, model, data
        names = family.labels(model)
        for sample in data:
            if "image" not in sample.fields:
                raise DataError(f"{sample.where}: no field 'image'; {model.spec.name} classifies images.")
        self.targets = [label_of(sample, names) for sample in data]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        import torch

        from zoo.images import read_image

        image = read_image(self.data[index].fields["image"])
        return {"images": self.family.preprocess(self.model, image), "labels": torch.tensor(self.targets[index])}

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


def label_of(sample: Sample, names: Sequence[str]) -> int:
    """The class of a record: its "label", else its text; a number, or one of the classes' names.

    Raises:
        DataError: it names no class.
    """
    from zoo.errors import DataError, nearest

    label = sample.fields.get("label", sample.fields.get("text"))
    if isinstance(label, str):
        if label in names:
            return list(names).index(label)
        if not label.strip().isdecimal():
            raise DataError(f"{sample.where}: {label!r} is none of the {len(names)} classes.{nearest(label, names)}")
        label = int(label)
    if not isinstance(label, int) or not 0 <= label < len(names):
        raise DataError(f"{sample.where}: label {label!r} is none of the classes 0 to {len(names) - 1}.")
    return label


class VisionLanguageFamily(TextFamily):
    """What models that answer questions about images share: records as questions, ragged numbers of tiles, visual rows.

    The module takes what a language model takes and `pixel_values` (N, 3, side, side), the tiles of all samples in the
    order of their image tokens, whose embeddings they replace. An image stands where the prompt says `<image>`.

    Legend: B batch, T tokens, N tiles, K tokens of one tile, D width.
    """

    modality: ClassVar[str] = "vision-language"
    tasks: ClassVar[tuple[str, ...]] = ("image-text-to-text",)
    kinds: ClassVar[tuple[str, ...]] = ("label", "visual")
    takes: ClassVar[tuple[str, ...]] = ("prompt", "images", *TextFamily.takes[1:])

    # --- what an architecture says --------------------------------------------------------------------------------

    @abstractmethod
    def tile_shape(self, model: Model) -> tuple[int, int, int]:
        """Return (pixels of a tile's side, K, id of the image token)."""

    @abstractmethod
    def tiles(self, model: Model, image: Image) -> torch.Tensor:
        """Cut an RGB image into normalised tiles (N, 3, side, side)."""

    @abstractmethod
    def chat(self, model: Model, prompt: str, tiles: Sequence[int]) -> list[int]:
        """Tokenise a question up to where the answer begins; image i, K * tiles[i] image tokens, stands at the i-th `<image>`."""

    # --- questions ------------------------------------------------------------------------------------------------

    def question(self, model: Model, prompt: Any, images: Sequence[Any]) -> tuple[list[int], Batch]:
        """Return the tokens (T,) of a question, and its tiles as `pixel_values` where it has images.

        Raises:
            RequestError: the prompt is not text or empty, names another number of images, or is longer than the context.
            DataError: an image cannot be read.
        """
        import torch

        from zoo.errors import RequestError
        from zoo.images import read_image

        if not isinstance(prompt, str) or not prompt.strip():
            raise RequestError("The prompt is empty: ask something, such as 'What does it say?'.")
        if len(prompt) > (most := 8 * self.context_length(model)):  # hardly a token has more characters; do not read a book
            raise RequestError(f"The prompt has {len(prompt):,} characters; {model.spec.name} reads at most {most:,}.")
        if not prompt.isprintable() and any("\ud800" <= character <= "\udfff" for character in prompt):
            raise RequestError("The prompt is not text: it holds half of a character (a lone surrogate).")
        prompt = prompt if "<image>" in prompt else "<image>\n" * len(images) + prompt
        if prompt.count("<image>") != len(images):
            raise RequestError(f"The prompt has {prompt.count('<image>')} times <image>, but {len(images)} images came with it.")
        tiles = [self.tiles(model, read_image(image)) for image in images]
        ids = self.chat(model, prompt, [len(one) for one in tiles])
        return ids, {"pixel_values": torch.cat(tiles).to(model.device)} if tiles else {}

    def inputs(self, model: Model, prompt: Any) -> tuple[list[int], Batch]:
        """Return the tokens and tiles of a prompt, or of a pair (prompt, images)."""
        text, images = prompt if isinstance(prompt, tuple) else (prompt, ())
        return self.question(model, text, images)

    def generate(self, model: Model, prompt: Any, *, images: Sequence[Any] = (), **options: Any) -> Any:
        """Answer a question.

        Args:
            prompt: the question; `<image>` in it says where an image stands, otherwise images come first.
            images: paths, PIL images, bytes, or uint8 arrays (H, W) or (H, W, 3).
            options: as for text: `max_new_tokens`, `temperature`, `top_p`, `seed`, `stop`, `stream`.

        Raises:
            RequestError: the question does not fit the images or the context, or an option is unknown.
            DataError: an image cannot be read.
        """
        alone = isinstance(images, str | bytes | Path) or hasattr(images, "size")
        return super().generate(model, (prompt, [images] if alone else list(images)), **options)

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        """Ask about images spread over the data: each record's own question, or `prompts` in turn where there are some."""
        from zoo.images import data_uri, read_image

        shown: list[dict[str, str]] = []
        for place, sample in enumerate(_spread(data or (), SHOWN)):
            image = sample.fields["image"]
            prompt = prompts[place % len(prompts)] if prompts else str(sample.fields["prompt"])
            answer = {"prompt": prompt, "output": self.generate(model, prompt, images=[image], max_new_tokens=64)}
            expected = {"expected": sample.text} if prompt == sample.fields.get("prompt") else {}
            shown.append({**answer, **expected, "image": data_uri(read_image(image))})
        return shown

    # --- batches --------------------------------------------------------------------------------------------------

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """Make one window of at most `length` tokens of each record, with labels on its answer alone."""
        return QuestionWindows(self, model, data, length)

    def collate(self, model: Model, windows: Sequence[Batch]) -> Batch:
        """Pad on the right: input_ids, labels and attention_mask (B, T); pixel_values (N, 3, side, side) of all samples."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        padding = {"input_ids": self.tokenizer(model).pad_token_id or 0, "labels": -100}
        batch = {
            name: pad_sequence([window[name] for window in windows], batch_first=True, padding_value=value)
            for name, value in padding.items()
        }
        mask = [torch.ones_like(window["input_ids"]) for window in windows]
        batch["attention_mask"] = pad_sequence(mask, batch_first=True)
        tiles = [window["pixel_values"] for window in windows if "pixel_values" in window]
        return batch | ({"pixel_values": torch.cat(tiles)} if tiles else {})

    def rows(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        """Return the labelled tokens ("label") and the image tokens ("visual", without a target)."""
        hidden_BTD, head = self.hidden(model, batch)
        labels, visual = batch["labels"], batch["input_ids"] == self.tile_shape(model)[2]
        found = {}
        if "label" in kinds:
            found["label"] = Rows(hidden_BTD[labels >= 0], head, (labels >= 0).nonzero()[:, 0], labels[labels >= 0])
        if "visual" in kinds:
            found["visual"] = Rows(hidden_BTD[visual], head, visual.nonzero()[:, 0])
        return found

    def comparable(self, student: Model, teacher: Model) -> str:
        mine, theirs = (self.tile_shape(model) for model in (student, teacher))
        if mine == theirs:
            return super().comparable(student, teacher)
        return (
            f"distill compares image tokens one by one: {student.spec.name} makes {mine[1]} of a tile of {mine[0]} pixels, "
            f"the teacher {teacher.spec.name} {theirs[1]} of {theirs[0]}. Choose a teacher that sees images alike."
        )

    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        """Random tokens after one random tile: at least K + 1 of them."""
        import torch

        side, count, image_token = self.tile_shape(model)
        made = super().example(model, batch=batch, size=max(size, count + 1), seed=seed)
        ids = made["input_ids"].masked_fill(made["input_ids"] == image_token, 0)
        ids[:, :count] = image_token
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randn(batch, 3, side, side, generator=generator)
        return {"input_ids": ids, "pixel_values": pixels.to(model.device)}

    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        """Time a prompt of `prefill` tokens that begins with one tile, and the tokens after it."""
        import time

        from zoo.generation import next_tokens

        prefill = min(prefill, self.context_length(model) - decode)
        first = self.example(model, batch=1, size=prefill)
        ids = first.pop("input_ids")[0].tolist()
        tokens = next_tokens(model, ids, decode + 1, first=first)
        start = time.perf_counter()
        next(tokens)
        read = time.perf_counter()
        count = sum(1 for _ in tokens)
        return {
            "prefill_tokens_per_s": len(ids) / (read - start),
            "decode_tokens_per_s": count / (time.perf_counter() - read),
        }  # fmt: skip


class QuestionWindows(Sequence[Batch]):
    """Records with `image`, `prompt` and an answer: window i is record i, read and cut into tiles when it is asked for."""

    def __init__(self, family: VisionLanguageFamily, model: Model, data: Dataset, length: int) -> None:
        self.family, self.model, self.data, self.length = family, model, data, length

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        """Return input_ids and labels (T,), where the label of a token is the next one, and pixel_values (N, 3, side, side)."""
        import torch

        from zoo.errors import DataError

        sample = self.data[index]
        prompt, images = asked(sample)
        ids, tiles = self.family.question(self.model, prompt, images)
        answer = [*self.family.tokens(self.model, sample.text)[0], self.family.tokenizer(self.model).eos_token_id]
        if len(ids) + len(answer) - 1 > self.length:
            raise DataError(f"{sample.where} has {len(ids) + len(answer) - 1} tokens, more than a window of {self.length}: raise `length`.")
        whole = torch.tensor(ids + answer)
        labels = whole[1:].clone()
        labels[: len(ids) - 1] = -100
        return {"input_ids": whole[:-1], "labels": labels, **tiles}

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


def asked(sample: Sample) -> tuple[str, list[Any]]:
    """The question of a record and its images.

    Raises:
        DataError: the record has no question or no image.
    """
    from zoo.errors import DataError

    for name in ("prompt", "image"):
        if name not in sample.fields:
            raise DataError(f"{sample.where}: no field {name!r}. Records about images have \"image\", \"prompt\" and \"text\", the answer.")
    return str(sample.fields["prompt"]), [sample.fields["image"]]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, evenly spaced."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


class TextToImageFamily(Family):
    """What text-to-image pipelines share: noised latents, seeded images, contact sheets; mechanics in `zoo.diffusion`.

    The module holds a pipeline's trained components as children (`unet`, `vae` or `decoder`, `text_encoder`, ...); the
    processor is a dict of the others (`tokenizer`, `scheduler`, ...). Image i of seed s is the first image of seed s + i,
    and images are made one at a time, so an image depends on its own seed alone.

    Legend: B batch, C channels, H rows, W columns, T tokens, L latent channels, h rows and w columns of the latent.
    """

    modality: ClassVar[str] = "text-to-image"
    tasks: ClassVar[tuple[str, ...]] = ("text-to-image",)
    kinds: ClassVar[tuple[str, ...]] = ("velocity", "pixel")
    losses: ClassVar[tuple[Mapping[str, Any], ...]] = ({"use": "velocity"},)
    distillation: ClassVar[tuple[Mapping[str, Any], ...]] = ({"use": "timestep-aware"},)
    evaluation: ClassVar[tuple[str, str]] = ("prompt-agreement", "digits-captions:test")
    takes: ClassVar[tuple[str, ...]] = ("prompt", "steps", "guidance", "count", "seed")
    makes: ClassVar[str] = "images"

    @abstractmethod
    def pipeline(self, model: Model) -> Any:
        """Put module and processor together to the pipeline object of the ecosystem's library, without copying."""

    def anatomy(self, module: nn.Module) -> Anatomy:
        from zoo.diffusion import pipeline_anatomy

        return pipeline_anatomy(module)

    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        import torch

        from zoo.diffusion import image_shape, latent_shape

        generator = torch.Generator().manual_seed(seed)
        config: Any = model.module.get_submodule("text_encoder").config
        tokens = min(size, config.max_position_embeddings)
        drawn = {
            "image": torch.randint(0, 256, (batch, *image_shape(model.module)), generator=generator, dtype=torch.uint8),
            "input_ids": torch.randint(0, config.vocab_size, (batch, tokens), generator=generator),
            "noise": torch.randn(batch, *latent_shape(model.module), generator=generator),
            "time": torch.rand(batch, generator=generator),
        }
        return {name: tensor.to(model.device) for name, tensor in drawn.items()}

    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        """Encode, noise, denoise in one step, decode: images (B, C, H, W) in -1..1, by way of every component."""
        from zoo import diffusion

        latent_BLhw = diffusion.encode(model.module, batch["image"])
        noise, time_B, scheduler = batch["noise"].to(latent_BLhw), batch["time"].to(latent_BLhw), (model.processor or {}).get("scheduler")
        noisy, step_B, _ = diffusion.noised(scheduler, latent_BLhw, noise, time_B)
        out = diffusion.denoise(model.module, noisy, step_B, batch["input_ids"])
        return diffusion.decode(model.module, diffusion.without_noise(scheduler, noisy, out, time_B))

    def default_parts(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Make the processor of a model whose config alone determines it; None where it does not."""
        return None

    def parts(self, model: Model) -> dict[str, Any]:
        """Return the processor, made from the config where the model came without one."""
        if model.processor is None:
            model.processor = self.default_parts(model.spec.config)
        return model.processor or {}

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """Read every record's image (C, H, W), in bytes, and caption (T,); `length` means nothing here."""
        from zoo.diffusion import CaptionedImages, image_shape, prompt_ids

        ids_NT = prompt_ids(self.parts(model)["tokenizer"], [sample.text for sample in data])
        return CaptionedImages(data, ids_NT, image_shape(model.module))

    def draw(self, model: Model, batch: Batch, generator: torch.Generator) -> Batch:
        """Add noise (B, L, h, w) and logit-normal times (B,) (SD3, 2403.03206, section 3.1); drop a tenth of the captions."""
        import torch

        from zoo.diffusion import DROPPED, latent_shape, prompt_ids

        count = len(batch["image"])
        ids_BT, empty_1T = batch["input_ids"], prompt_ids(self.parts(model)["tokenizer"], [""])
        dropped_B = torch.rand(count, generator=generator) < DROPPED
        return batch | {
            "input_ids": torch.where(dropped_B[:, None], empty_1T, ids_BT),
            "noise": torch.randn(count, *latent_shape(model.module), generator=generator),
            "time": torch.sigmoid(torch.randn(count, generator=generator)),
        }

    def rows(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        """Return one row an image: "velocity" (what the denoiser predicts) and "pixel" (the decoded image).

        The latents that the denoiser learns are not differentiated; those that are decoded are, moved by a little noise.
        """
        import torch

        from zoo import diffusion

        module, found = model.module, dict[str, Rows]()
        each_B = torch.arange(len(batch["image"]), device=batch["image"].device)
        if "velocity" in kinds:
            with torch.no_grad():
                latent_BLhw = diffusion.encode(module, batch["image"])
            noisy, step_B, target = diffusion.noised((model.processor or {}).get("scheduler"), latent_BLhw, batch["noise"], batch["time"])
            out = diffusion.denoise(module, noisy, step_B, batch["input_ids"])
            found["velocity"] = Rows(out.flatten(1), _unchanged, each_B, target.flatten(1), batch["time"])
        if "pixel" in kinds:
            latent_BLhw = diffusion.encode(module, batch["image"])
            image = diffusion.decode(module, latent_BLhw + diffusion.JITTER * batch["noise"])
            found["pixel"] = Rows(image.flatten(1), _unchanged, each_B, batch["image"].flatten(1) / 127.5 - 1)
        return found

    def comparable(self, student: Model, teacher: Model) -> str:
        from zoo.diffusion import latent_shape

        mine, theirs = (latent_shape(m.module) for m in (student, teacher))
        if mine == theirs:
            return ""
        return (
            f"distill compares velocities of one latent: that of {student.spec.name} has shape {mine}, the teacher's "
            f"({teacher.spec.name}) {theirs}. Choose a teacher with the same autoencoder."
        )

    def generate(
        self, model: Model, prompt: Any = None, *, steps: int = 16, seed: int = 0, guidance: float = 3.0, count: int = 1, **others: Any
    ) -> Any:
        """Make `count` images of a prompt, the same for a seed whatever the count.

        Args:
            prompt: the text; "" for an image of anything.
            guidance: how far the text pulls (Ho and Salimans, 2207.12598); 1 for no guidance.
            others: further options of the pipeline's own call.

        Raises:
            RequestError: the prompt is too long, or an option does not fit.
        """
        from zoo.diffusion import require_prompt
        from zoo.errors import RequestError

        text = require_prompt(self.parts(model).get("tokenizer"), "" if prompt is None else prompt, name=model.spec.name)
        for name, value in {"steps": steps, "count": count}.items():
            if not isinstance(value, int) or not 1 <= value <= 1000:
                raise RequestError(f"{name} must be a whole number from 1 to 1000, not {value!r}.")
        return [image for i in range(count)
                for image in self.images(model, [text], seeds=[seed + i], steps=steps, guidance=guidance, **others)]  # fmt: skip

    def images(
        self, model: Model, prompts: Sequence[str], *, seeds: Sequence[int], steps: int, guidance: float, **others: Any
    ) -> list[Any]:
        """Make one image for each prompt and seed in one batch: quicker, and equal to single ones but for rounding."""
        from inspect import signature

        import torch

        from zoo.errors import RequestError, nearest

        pipeline = self.pipeline(model)
        known = [name for name in signature(pipeline.__call__).parameters if name not in ("prompt", "generator", "output_type", "return_dict")]
        for name in others.keys() - set(known):
            raise RequestError(f"{name!r} is not an option of generate.{nearest(name, known)} Options: steps, seed, guidance, count, {', '.join(known)}.")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        asked = {"num_inference_steps": steps, "guidance_scale": guidance, **others}
        found: list[Any] = pipeline(prompt=list(prompts), generator=generators, output_type="pil", **asked).images
        return found

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        """Make a contact sheet of eight images for each prompt, seeds 0 to 7."""
        from zoo.diffusion import sheet
        from zoo.images import data_uri

        made = [self.generate(model, prompt, count=8) for prompt in prompts]
        return [{"prompt": p, "image": data_uri(sheet(images, side=64)), "output": "seeds 0 to 7"}
                for p, images in zip(prompts, made, strict=True)]  # fmt: skip

    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        """Time one image of eight steps; token counts mean nothing here."""
        import time

        start = time.perf_counter()
        self.generate(model, "", steps=8)
        return {"images_per_s": 1 / (time.perf_counter() - start)}


def _unchanged(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
