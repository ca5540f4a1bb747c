"""Sentence encoders: whole sentences in, one vector each out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.errors import DataError
from zoo.family.embedding import Embedding, is_embedding, nearest_samples, shown, vector_rows, vectors_of
from zoo.family.text.sentences import Sentences, longest_text, padded, sentences_of
from zoo.family.text.task import TextTask, text_family, without_labels
from zoo.family.text.tokens import differing_vocabulary, require_text
from zoo.tensors.batch import Batch, Rows

if TYPE_CHECKING:
    import numpy as np
    import torch

    from zoo.data.dataset import Dataset
    from zoo.model.model import Model

COMPARED = 256  # sentences of the data that a report looks for the nearest among


class TextEmbedding(Embedding, TextTask):
    """The module takes `input_ids` and `attention_mask` (B, T), where a prompt does not count a `pooling_mask`, and returns vectors (B, D)."""

    auto_class: ClassVar[str] = "AutoModel"
    mapping: ClassVar[str] = ""  # no head, and so none of the tables of heads
    endings: ClassVar[tuple[str, ...]] = ()

    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        """Return vectors (B, D)."""
        vectors: torch.Tensor = model.module(**without_labels(batch))
        return vectors

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """Take every sentence for a window, cut at `length` tokens or at the most that the model takes."""
        self.require_texts(model, data)
        return sentences_of(text_family(model), model, data, length=length)

    def collate(self, model: Model, windows: Sequence[Batch]) -> Batch:
        """Join windows of any lengths into one batch, with a mask of what is no padding."""
        pad = getattr(model.processor, "pad_token_id", None)
        return padded(windows, 0 if pad is None else int(pad))

    def counts(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, int]:
        return dict.fromkeys(kinds, len(batch["input_ids"]))

    def rows(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        return vector_rows(self.forward(model, batch))

    def comparable(self, student: Model, teacher: Model) -> str:
        if not is_embedding(teacher):
            return f"distill compares vectors, and the teacher {teacher.spec.name} is of task {teacher.spec.task}."
        tables = (text_family(student).vocabulary(student), text_family(student).vocabulary(teacher))
        return differing_vocabulary(student, teacher, tables, begin="distill gives both models the same tokens")

    def check_data(self, model: Model, data: Dataset, *, length: int) -> None:
        self.require_texts(model, data)

    def require_texts(self, model: Model, data: Dataset) -> None:
        for sample in data:
            if sample.is_pair:
                continue
            _, prompt = sample.text, sample.prompt  # both say what is wrong with them
            if prompt:
                raise DataError(
                    f"{sample.where}: the record has a 'prompt', which is no part of a sentence; write it into the 'text', "
                    "or leave it out."
                )

    def generate(self, model: Model, prompt: Any, *, several: bool, stream: bool, **options: Any) -> Any:
        """Return the vector (D,) of a text, of several (N, D), as float32; with `stream`, the text of one."""
        texts = list(prompt) if several else [prompt]
        for text in texts:
            require_text(text)
        family = text_family(model)
        names = [f"the text {text[:60]!r}" for text in texts]
        windows = Sentences(family, model, texts, names, longest_text(family, model))

        def vectors() -> np.ndarray:
            return vectors_of(model, windows, of=names)

        def pieces() -> Iterator[str]:
            yield shown(vectors()[0])

        return pieces() if stream else vectors() if several else vectors()[0]

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        """Name the sentences of the data that are nearest to each prompt, or, without data, the other prompts."""
        records = data[:: max(1, len(data) // COMPARED)] if data else ()
        texts = list(dict.fromkeys(text for sample in records for text in sample.sentences)) or list(prompts)
        if not prompts or len(texts) < 2:
            return []
        others_ND = model.family.generate(model, texts)
        answers = []
        for prompt in prompts:
            keep = [i for i, text in enumerate(texts) if text != prompt]
            vector_D = model.family.generate(model, prompt)
            nearest = nearest_samples(vector_D, others_ND[keep], [texts[i] for i in keep])
            answers.append({"prompt": prompt, "output": nearest})
        return answers
