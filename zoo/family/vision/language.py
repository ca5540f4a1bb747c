"""Models that answer questions about images: ragged numbers of tiles, visual rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.family.base import Family
from zoo.family.options import GenerateOptions
from zoo.family.text.family import TextFamily
from zoo.family.text.task import TextTask
from zoo.family.vision.options import VisionLanguageOptions
from zoo.family.vision.questions import ImageTextToText
from zoo.system.unicode import require_unicode
from zoo.tensors.batch import Batch, Rows

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from zoo.data.dataset import Dataset, Sample
    from zoo.model.model import Model


class VisionLanguageFamily(TextFamily):
    """What models that answer questions about images share: records as questions, ragged numbers of tiles, visual rows.

    The module takes what a language model takes and `pixel_values` (N, 3, side, side), the tiles of all samples in the
    order of their image tokens, whose embeddings they replace. An image stands where the prompt says `<image>`.

    Legend: B batch, T tokens, N tiles, K tokens of one tile, D width.
    """

    modality: ClassVar[str] = "vision-language"
    tasks: ClassVar[tuple[str, ...]] = ("image-text-to-text",)
    kinds: ClassVar[tuple[str, ...]] = ("label", "visual")
    evaluation: ClassVar[tuple[str, str]] = ("exact-match", "")
    Options: ClassVar[type[GenerateOptions] | None] = VisionLanguageOptions

    def task(self, name: str) -> TextTask:
        return ImageTextToText()

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
        from zoo.family.vision.images import read_image

        placed = with_images(prompt, len(images))
        # hardly a token has more characters; do not read a book
        if len(prompt) > (most := 8 * self.context_length(model)):
            raise RequestError(f"The prompt has {len(prompt):,} characters; {model.spec.name} reads at most {most:,}.")
        require_unicode(prompt, "The prompt")
        tiles = [self.tiles(model, read_image(image)) for image in images]
        ids = self.chat(model, placed, [len(image_tiles) for image_tiles in tiles])
        self.require_known(model, ids)
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

    def chats(self, model: Model, data: Dataset) -> Dataset:
        return Family.chats(self, model, data)  # each question is one already, with its picture

    def check_data(self, model: Model, data: Dataset, *, length: int) -> None:
        """Refuse a record without an image, a question or an answer; no image is read."""
        from zoo.data.dataset import naming_record

        for sample in data:
            prompt, images = asked(sample)
            with naming_record(sample):
                with_images(prompt, len(images))
            _ = sample.text  # says that there is none

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
        rows = {}
        if "label" in kinds:
            rows["label"] = Rows(hidden_BTD[labels >= 0], head, (labels >= 0).nonzero()[:, 0], labels[labels >= 0])
        if "visual" in kinds:
            rows["visual"] = Rows(hidden_BTD[visual], head, visual.nonzero()[:, 0])
        return rows

    def counts(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, int]:
        found = {"label": batch["labels"] >= 0, "visual": batch["input_ids"] == self.tile_shape(model)[2]}
        return {kind: int(found[kind].sum()) for kind in kinds}

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


class QuestionWindows(Sequence[Batch]):
    """Records with `image`, `prompt` and an answer: window i is record i, read and cut into tiles when it is asked for."""

    def __init__(self, family: VisionLanguageFamily, model: Model, data: Dataset, length: int) -> None:
        self.family, self.model, self.data, self.length = family, model, data, length

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        """Return input_ids and labels (T,), where the label of a token is the next one, and pixel_values (N, 3, side, side)."""
        import torch

        from zoo.data.dataset import naming_record
        from zoo.errors import DataError

        sample = self.data[index]
        prompt, images = asked(sample)
        with naming_record(sample):
            ids, tiles = self.family.question(self.model, prompt, images)
            answer = [*self.family.tokens(self.model, sample.text)[0], self.family.tokenizer(self.model).eos_token_id]
        if len(ids) + len(answer) - 1 > self.length:
            raise DataError(
                f"{sample.where} has {len(ids) + len(answer) - 1} tokens, more than a window of {self.length}: raise `length`."
            )
        whole = torch.tensor(ids + answer)
        labels = whole[1:].clone()
        labels[: len(ids) - 1] = -100
        return {"input_ids": whole[:-1], "labels": labels, **tiles}

    def where(self, index: int) -> str:
        return self.data[index].where

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


def with_images(prompt: Any, count: int) -> str:
    """A question with an `<image>` for each of its images: first of all, unless it says where.

    Raises:
        RequestError: the prompt is not text or empty, or names another number of images.
    """
    from zoo.errors import RequestError

    if not isinstance(prompt, str) or not prompt.strip():
        raise RequestError("The prompt is empty: ask something, such as 'What does it say?'.")
    placed: str = prompt if "<image>" in prompt else "<image>\n" * count + prompt
    if placed.count("<image>") != count:
        raise RequestError(f"The prompt has {placed.count('<image>')} times <image>, but {count} images came with it.")
    return placed


def asked(sample: Sample) -> tuple[str, list[Any]]:
    """The question of a record and its images.

    Raises:
        DataError: the record has no question or no image, or its question is no text.
    """
    from zoo.errors import DataError

    for name in ("prompt", "image"):
        if sample.fields.get(name) is None:
            raise DataError(
                f'{sample.where}: no field {name!r}. Records about images have "image", "prompt" and "text", the answer.'
            )
    return sample.prompt, [sample.fields["image"]]
