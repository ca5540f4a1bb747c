"""What the tasks of language models share: how tokens become batches and what is learnt of them; how a prompt is answered."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, cast

from zoo.errors import DataError, RequestError
from zoo.family.task import Task
from zoo.family.text.tokens import LONGEST_TOKEN, begun, differing_vocabulary, require_text
from zoo.tensors.batch import Batch, Rows

if TYPE_CHECKING:
    import torch

    from zoo.data.dataset import Dataset
    from zoo.family.text.family import TextFamily
    from zoo.model.model import Model


class TextTask(Task):
    """What language models are for. A new task is a subclass in a file of its own, and a row in `tasks.py`."""

    inputs: ClassVar[tuple[str, ...]] = ("input_ids",)  # the token ids that the module takes
    text_only: ClassVar[bool] = True  # whether a prompt is tokens alone, so that several are read together
    continues: ClassVar[bool] = False  # whether what it writes goes on from the prompt
    # How transformers calls its classes: the one that chooses among them, their mapping (MODEL_FOR_..._MAPPING_NAMES), and
    # the ends of the names of classes that are not its own; `own_ending` is the one that no other task's classes have.
    auto_class: ClassVar[str]
    mapping: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    own_ending: ClassVar[str] = ""

    # --- batches ------------------------------------------------------------------------------------------------

    def example(self, model: Model, *, batch: int, size: int, seed: int) -> Batch:
        """Draw token ids (B, T), at most as many as the context holds."""
        import torch

        family = text_family(model)
        generator = torch.Generator().manual_seed(seed)
        vocabulary, shape = family.vocabulary(model), (batch, min(size, family.context_length(model)))
        return {name: torch.randint(0, vocabulary, shape, generator=generator).to(model.device) for name in self.inputs}

    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        """Return logits (B, T, V); nothing is kept for a next token."""
        cacheless = {"use_cache": False} if "use_cache" in signature(model.module.forward).parameters else {}
        logits: torch.Tensor = model.module(**without_labels(batch), **cacheless).logits
        return logits

    def trial(self, model: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the module computes at once, and what step by step; twice the same where there is one way."""
        outputs = model.family.forward(model, batch)
        return outputs, outputs

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """Cut the records into windows of `length` tokens, at most the context, with labels (T,)."""
        from zoo.family.text.windows import TokenWindows

        self.require_texts(model, data)
        family = text_family(model)
        return TokenWindows(family, model, data, min(length, family.context_length(model)))

    def collate(self, model: Model, windows: Sequence[Batch]) -> Batch:
        """Join windows, all of one length, into one batch."""
        import torch

        return {name: torch.stack([window[name] for window in windows]) for name in windows[0]}

    def draw(self, model: Model, batch: Batch, generators: Sequence[torch.Generator]) -> Batch:
        """Add to a batch what training draws anew at every step, for each window from its own generator."""
        return batch

    def shared_batch(self, student: Model, teacher: Model, batch: Batch) -> Batch:
        """Bring a batch to what both a student and its teacher can be asked."""
        return batch

    def rows(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        """Return the rows of each kind: "label" are the positions whose label is not negative.

        Where body and head do not separate, the logits stand in for the hidden state and the head is the identity.
        """
        hidden_BTD, head = text_family(model).hidden(model, batch)
        keep = batch["labels"] >= 0
        return {"label": Rows(hidden_BTD[keep], head, keep.nonzero()[:, 0], batch["labels"][keep])}

    def counts(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, int]:
        """How many rows of each kind there are."""
        return dict.fromkeys(kinds, int((batch["labels"] >= 0).sum()))

    def comparable(self, student: Model, teacher: Model) -> str:
        """Say why a teacher's rows cannot be compared with a student's; "" where they can."""
        family = text_family(student)
        return differing_vocabulary(student, teacher, (family.vocabulary(student), family.vocabulary(teacher)))

    def check_data(self, model: Model, data: Dataset, *, length: int) -> None:
        """Tokenise as much of a text as fills a window; where there is no tokenizer yet, a long text is taken to fill one."""
        from zoo.family.text.windows import holds

        self.require_texts(model, data)
        if model.processor is None and sum(len(sample.text) for sample in data) >= LONGEST_TOKEN * length:
            return
        if not holds(text_family(model), model, data, length + 1):
            model.family.windows(model, data, length=length)  # says what it holds

    def require_texts(self, model: Model, data: Dataset) -> None:
        """Refuse records without a text, and those with a prompt that is none, or that the task has no place for.

        Raises:
            DataError: names the first such record.
        """
        for sample in data:
            _, prompt = sample.text, sample.prompt  # both say what is wrong with them
            if prompt and not self.continues:
                raise DataError(
                    f"{sample.where}: the record has a 'prompt', which {model.spec.name}, a {model.spec.task} model, cannot be "
                    "trained or measured on here; write it into the 'text', or leave it out."
                )

    def lead(self, model: Model) -> list[Any]:
        """The tokens before the first that is predicted: those that begin a text, else one that ends one; none where neither is."""
        family = text_family(model)
        tokenizer = family.tokenizer(model)
        ends = (tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.bos_token_id)
        return family.special_tokens(model)[0] or [token for token in ends if token is not None][:1]

    def parted(self, ids: Any) -> tuple[Any, Any]:
        """Part tokens, in a list or a tensor, into those that an encoder reads and those that are then predicted."""
        return ids[:0], ids

    # --- prompts ------------------------------------------------------------------------------------------------

    def prompt_ids(self, model: Model, prompt: str) -> list[int]:
        """Tokenise a prompt with the special tokens that the tokenizer sets; before what goes on, only those at its start."""
        family = text_family(model)
        bare = family.tokens(model, prompt)[0]
        return begun(family.special_tokens(model)[0], bare) if bare else []

    @abstractmethod
    def generate(self, model: Model, prompt: Any, *, several: bool, stream: bool, **options: Any) -> Any:
        """Answer a prompt, or each of several; with `stream`, return an iterator over the pieces of the answer."""

    def fills(self, model: Model, prompt: str, count: Any) -> Iterator[list[tuple[str, float]]]:
        """Check the text, then return an iterator over its masks: the likeliest words of each, with their probabilities.

        Raises:
            RequestError: the model fills in no words, or the text has no mask or is too long.
        """
        raise RequestError(f"{model.spec.name} is a {model.spec.task} model; only masked-lm models fill in words.")

    # --- speed, samples, checks ---------------------------------------------------------------------------------

    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        """Time one pass over a prompt."""
        import time

        import torch

        batch = model.family.example(model, batch=1, size=fitting(model, prefill, decode)[0])
        start = time.perf_counter()
        with torch.inference_mode():
            model.family.forward(model, batch)
        return {"prefill_tokens_per_s": batch["input_ids"].shape[1] / (time.perf_counter() - start)}

    def check_prompts(self, model: Model, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            if model.processor is None:
                require_text(prompt)
            else:
                model.family.generate(model, prompt, stream=True)  # checks, and runs nothing until asked for a piece

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        return [{"prompt": prompt, "output": model.family.generate(model, prompt)} for prompt in prompts]


class WritingTask(TextTask):
    """A task of models that write token after token."""

    writes: ClassVar[bool] = True

    def trial(self, model: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        from zoo.family.text.readers import two_ways

        return two_ways(model, batch)

    def formatted(self, model: Model, prompt: Any) -> Any:
        """What is read for a prompt and the options that are not of sampling."""
        return prompt

    def generate(self, model: Model, prompt: Any, *, several: bool, stream: bool, **options: Any) -> Any:
        from zoo.family.text.generate import stream_text, write_texts
        from zoo.family.text.options import SAMPLING, Sampling

        if stream and options.get("count", 1) > 1:
            raise RequestError("stream=True gives the pieces of one text; leave out count, or stream.")
        family = text_family(model)
        how = Sampling(**{name: options.pop(name) for name in SAMPLING if name in options})
        prompt = self.formatted(model, prompt, **options)
        if several or how.count > 1:
            prompts = [one for one in (prompt if several else [prompt]) for _ in range(how.count)]
            texts = write_texts(family, model, prompts, how)
            groups = [texts[start : start + how.count] for start in range(0, len(texts), how.count)]
            return groups[0] if not several else texts if how.count == 1 else groups
        pieces = stream_text(family, model, prompt, how)
        return pieces if stream else "".join(pieces)

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        answers = (model.family.generate(model, prompt, max_new_tokens=64) for prompt in prompts)
        return [{"prompt": prompt, "output": answer} for prompt, answer in zip(prompts, answers, strict=True)]


def text_family(model: Model) -> TextFamily:
    """The family of a model of texts."""
    return cast("TextFamily", model.family)


def text_task(model: Model) -> TextTask:
    """What a model of texts is for."""
    return text_family(model).task(model.spec.task)


def without_labels(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def fitting(model: Model, prefill: int, decode: int) -> tuple[int, int]:
    """How many tokens of a prompt, and after it, fit into the context."""
    context = text_family(model).context_length(model)
    decode = min(decode, max(1, context // 2 - 1))
    return max(1, min(prefill, context - decode)), decode
