"""Language models: token windows, streaming generation, next-token rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.family.base import Batch, Family, Rows

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.data import Dataset, Sample
    from zoo.model import Model
TOGETHER = 2**18  # characters tokenised at once: a tokenizer holds some 150 bytes for each token until it is done
LONGEST_TOKEN = 64  # characters; text of that many a window holds at least one window


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
            return _other_token(student, teacher)
        return (
            f"distill compares distributions over one vocabulary: {student.spec.name} has {mine} tokens, the teacher "
            f"{teacher.spec.name} {theirs}. Choose a teacher with the same tokenizer."
        )

    def tokens(self, model: Model, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenise without special tokens: ids, and the span of characters each token covers.

        Raises:
            RequestError: the tokenizer gives a token that the model does not have.
        """
        encoded = self.tokenizer(model)(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        self.require_known(model, encoded["input_ids"])
        return encoded["input_ids"], encoded["offset_mapping"]

    def require_known(self, model: Model, ids: Sequence[int]) -> None:
        """Refuse tokens beyond the model's table.

        Raises:
            RequestError: names the token, and how many the model has.
        """
        from zoo.errors import RequestError

        module: Any = model.module
        table = module.get_input_embeddings() if hasattr(module, "get_input_embeddings") else None
        size = getattr(table, "num_embeddings", None)
        if ids and size is not None and max(ids) >= size:
            token = self.tokenizer(model).convert_ids_to_tokens(max(ids))
            raise RequestError(f"Token {max(ids)} ({token!r}) is none of the {size:,} that {model.spec.name} has: its tokenizer is that of another model.")

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

        _require_continuable(model, prompt)
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

    def check_data(self, model: Model, data: Dataset, *, length: int) -> None:
        """Cut windows of text so short that there may be none; a longer one holds some, and would take long to tokenise."""
        if sum(len(str(sample.fields.get("text", ""))) for sample in data) < LONGEST_TOKEN * length:
            self.windows(model, data, length=length)

    def check_prompts(self, model: Model, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            if model.processor is None:
                _require_continuable(model, prompt)
            else:
                self.generate(model, prompt, stream=True)  # checks, and runs nothing until it is asked for a piece

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


def _require_continuable(model: Model, prompt: Any) -> None:
    from zoo.errors import RequestError

    if not isinstance(prompt, str) or not prompt:
        raise RequestError("The prompt is empty: pass some text to continue.")
    if not prompt.isascii() and any("\ud800" <= character <= "\udfff" for character in prompt):
        raise RequestError("The prompt is not text: it holds half of a character (a lone surrogate).")
    if model.spec.task != "causal-lm":
        raise RequestError(f"{model.spec.name} is a {model.spec.task} model; only causal-lm models continue a text.")


def _other_token(student: Model, teacher: Model) -> str:
    """Name the first number that stands for different tokens; "" where none does, or a tokenizer is not known."""
    both = [model.processor for model in (student, teacher)]
    if both[0] is both[1] or not all(hasattr(one, "get_vocab") for one in both):
        return ""
    mine, theirs = ({number: token for token, number in one.get_vocab().items()} for one in both)
    number = next((number for number in sorted(mine.keys() & theirs.keys()) if mine[number] != theirs[number]), None)
    if number is None:
        return ""
    return (
        f"distill compares distributions over one vocabulary: token {number} is {mine[number]!r} to {student.spec.name} and "
        f"{theirs[number]!r} to the teacher {teacher.spec.name}. Choose a teacher with the same tokenizer."
    )


def _inputs(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


class TokenWindows(Sequence[Batch]):
    """Records as one token stream cut into windows; window i holds tokens [i*T, i*T+T] (one more, for the labels)."""

    def __init__(self, family: TextFamily, model: Model, data: Dataset, length: int) -> None:
        import torch

        from zoo.data import placed
        from zoo.errors import DataError

        tokenizer = family.tokenizer(model)
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        lead = [] if end is None else [int(end)]
        pieces = []
        for samples in _groups(data):
            encoded = tokenizer([sample.text for sample in samples], add_special_tokens=False, verbose=False)["input_ids"]
            for sample, ids in zip(samples, encoded, strict=True):
                with placed(sample):
                    family.require_known(model, lead + ids)
                pieces.append(torch.tensor(lead + ids, dtype=torch.int32))
        self.stream = torch.cat(pieces)
        if len(self.stream) < length + 1:
            raise DataError(f"{data.name!r} holds {len(self.stream)} tokens, fewer than one window of {length + 1}; lower `length`, or add text.")
        self.length = length
        self.data, self.starts = data, torch.tensor([0, *map(len, pieces)]).cumsum(0)

    def __len__(self) -> int:
        return (len(self.stream) - 1) // self.length

    def __getitem__(self, index: Any) -> Any:
        piece = self.stream[index * self.length : (index + 1) * self.length + 1].long()
        return {"input_ids": piece[:-1], "labels": piece[1:]}

    def where(self, index: int) -> str:
        """The record in which a window begins, and that in which it ends."""
        ends = (index * self.length, (index + 1) * self.length)
        first, last = (self.data[int((self.starts <= token).sum()) - 1].where for token in ends)
        return first if first == last else f"{first} to {last}"

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


def _groups(data: Dataset) -> Iterator[list[Sample]]:
    """Records in groups of TOGETHER characters, and one that is longer alone."""
    group: list[Sample] = []
    size = 0
    for sample in data:
        if group and size + len(sample.text) > TOGETHER:
            yield group
            group, size = [], 0
        group.append(sample)
        size += len(sample.text)
    yield group


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

    def where(self, index: int) -> str:
        return self.windows.where(index)

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))


def start_token(model: Model) -> int:
    """The token with which the decoder of a seq2seq model begins."""
    found = [model.spec.config.get(name) for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id")]
    return next((int(token) for token in found if token is not None), 0)
