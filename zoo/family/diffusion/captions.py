"""What a text-to-image model learns from and is asked: captioned images, prompts as token ids, contact sheets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from zoo.errors import DataError, RequestError
from zoo.system.unicode import require_unicode

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

    from zoo.data.dataset import Dataset
    from zoo.tensors.batch import Batch

PROBES = ("a photo of a red cat, two dogs and 3 Birds!", "a thin seven", "Ein Fluß über日本")
LONGEST = 1_000_000  # tokens of a prompt; transformers writes 1e30 where a tokenizer does not say


class CaptionedImages(Sequence["Batch"]):
    """Records as images of bytes (C, H, W) of the pipeline's size and token ids (T,)."""

    def __init__(self, data: Dataset, ids_NT: torch.Tensor, shape: tuple[int, int, int]) -> None:
        self.images_NCHW = torch.stack(
            [image_bytes(sample.fields.get("image"), shape, sample.where) for sample in data]
        )
        self.ids_NT, self.data = ids_NT, data

    def __len__(self) -> int:
        return len(self.ids_NT)

    def __getitem__(self, index: Any) -> Any:
        return {"image": self.images_NCHW[index], "input_ids": self.ids_NT[index]}

    def where(self, index: int) -> str:
        return self.data[index].where

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


def image_bytes(source: Any, shape: tuple[int, int, int], where: str) -> torch.Tensor:
    """Read a record's image as bytes (C, H, W), the middle cut out to the shape's proportions and scaled.

    Raises:
        DataError: it cannot be read.
    """
    import numpy as np
    from PIL import Image, ImageOps

    from zoo.data.dataset import Sample, naming_record
    from zoo.family.vision.images import read_image

    channels, rows, columns = shape
    with naming_record(Sample({}, where)):
        image = read_image(source).convert("L" if channels == 1 else "RGB")
    if image.size != (columns, rows):
        image = ImageOps.fit(image, (columns, rows), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def require_captions(data: Dataset) -> None:
    """Refuse a record without an image or a caption; no image is read.

    Raises:
        DataError: names the record.
    """
    for sample in data:
        if sample.fields.get("image") is None:
            raise DataError(f"{sample.where}: no field 'image', which a text-to-image model learns from.")
        _ = sample.text  # says that there is none


def limit_prompts(parts: Mapping[str, Any], module: nn.Module) -> None:
    """Give each tokenizer that does not say how much it reads the length of its text encoder."""
    for name, tokenizer in parts.items():
        if getattr(tokenizer, "model_max_length", 0) > LONGEST:
            encoder = getattr(module, name.replace("tokenizer", "text_encoder"), None)
            length = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
            tokenizer.model_max_length = length or tokenizer.model_max_length


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """Tokenise prompts to the length the text encoder reads (B, T); longer ones are cut.

    Raises:
        RequestError: neither the tokenizer nor its text encoder says that length.
    """
    if tokenizer.model_max_length > LONGEST:
        raise RequestError(
            "Neither the tokenizer nor the text encoder says how many tokens it reads: write model_max_length into "
            "tokenizer_config.json."
        )
    encoded = tokenizer(list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True)
    return torch.tensor(encoded["input_ids"])


def differing_prompt(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Name a prompt that two pipelines' tokenizers write in different tokens; "" where none was found."""
    student, teacher = mine.get("tokenizer"), theirs.get("tokenizer")
    if student is None or teacher is None or student is teacher:
        return ""
    if student.model_max_length != teacher.model_max_length:
        return "prompts of different lengths, and so any prompt"
    tokens = sorted(token for token, _ in student.get_vocab().items() ^ teacher.get_vocab().items())
    for prompt in ("", *PROBES, *tokens[:1]):
        if not torch.equal(prompt_ids(student, [prompt]), prompt_ids(teacher, [prompt])):
            return repr(prompt)
    return ""


def require_prompt(tokenizer: Any, prompt: Any, *, name: str) -> str:
    """Return the prompt, or refuse what is no text or longer than the text encoder reads.

    Raises:
        RequestError: says how long it is and how long it may be.
    """
    if not isinstance(prompt, str):
        raise RequestError(f"A prompt is one text, not {type(prompt).__name__}.")
    require_unicode(prompt, "The prompt")
    if tokenizer is not None:
        count, most = len(tokenizer(prompt, verbose=False)["input_ids"]), tokenizer.model_max_length
        if count > most:
            raise RequestError(f"The prompt is {count:,} tokens long; {name} reads at most {most}. Shorten it.")
    return prompt


def sheet(images: Sequence[Image], *, columns: int = 8, side: int = 0) -> Image:
    """Lay images out in rows on one, enlarged by whole factors to at least `side` pixels each."""
    from PIL import Image as Pillow

    width, height = images[0].size
    factor = max(1, -(-side // width))
    rows = -(-len(images) // columns)
    page = Pillow.new(images[0].mode, (min(columns, len(images)) * width * factor, rows * height * factor))
    for number, image in enumerate(images):
        corner = (number % columns * width * factor, number // columns * height * factor)
        page.paste(image.resize((width * factor, height * factor), Pillow.Resampling.NEAREST), corner)
    return page
