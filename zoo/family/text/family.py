"""Language models: token windows, streaming generation, next-token rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.anatomy.names import CONTEXT
from zoo.family.base import Family
from zoo.family.options import GenerateOptions
from zoo.family.text.options import TextOptions
from zoo.family.text.task import TextTask, text_task, without_labels
from zoo.family.text.tasks import task_named
from zoo.family.text.tokens import require_text, spoken
from zoo.tensors.batch import Batch, Rows

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.data.dataset import Dataset
    from zoo.model.model import Model


class TextFamily(Family):
    """What language models share: token windows, streaming generation, held-out bits per byte.

    The module takes `input_ids` (B, T), and `attention_mask` (B, T) where batches are padded, and returns an object with
    `logits` (B, T, V); the processor is a fast tokenizer of the transformers kind, which is saved beside the weights. A seq2seq model reads the
    first half of a text, and `labels` and `decoder_input_ids` are of the second: prefix language modelling (T5, 1910.10683,
    section 3.2.1). `config` has `vocab_size` and `max_position_embeddings`; else `vocabulary` and `context_length` say them.

    A causal module generates with a cache: its `forward` also takes `cache`, `use_cache` and `logits_to_keep`. With
    `use_cache=True` what it returns has a `cache` beside the logits: whatever it needs of the tokens read so far (keys and
    values, a state), which zoo keeps unread. The next pass brings that as `cache`, with the `input_ids` of the tokens after
    them alone, whose positions go on from there; `cache=None` begins a text. The logits are those of one pass over all
    tokens. `logits_to_keep=n` asks for the last n positions only, 0 for all. What comes beside the tokens, such as
    `pixel_values`, comes with the first pass. Where `forward` names `attention_mask`, several prompts are read together,
    padded on the left: the mask is of all tokens so far, 0 where one is padding, and `position_ids` (B, T) come with it
    where `forward` names them. Where it does not, prompts are read one after the other.
    """

    modality: ClassVar[str] = "text"
    kinds: ClassVar[tuple[str, ...]] = ("label",)
    losses: ClassVar[tuple[Mapping[str, Any], ...]] = ({"use": "cross-entropy"},)
    distillation: ClassVar[tuple[Mapping[str, Any], ...]] = ({"use": "kl"},)
    evaluation: ClassVar[tuple[str, str]] = ("perplexity", "stdlib:test")
    Options: ClassVar[type[GenerateOptions] | None] = TextOptions

    def body_and_head(self, module: nn.Module) -> tuple[nn.Module, Any] | None:
        """Split a causal model into body (ids -> hidden (B, T, D)) and head (hidden -> logits), or None if it does not split."""
        return None

    def task(self, name: str) -> TextTask:
        """Return the task of that name; one that is none of ours is taken to be that of a causal model."""
        return task_named(name)

    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        return text_task(model).example(model, batch=batch, size=size, seed=seed)

    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        """Return logits (B, T, V).

        Nothing is kept for a next token: RWKV writes that into tensors that gradients need, and FSMT, asked to keep it,
        lets every token see those after it.
        """
        return text_task(model).forward(model, batch)

    def forward_body(self, model: Model, batch: Batch) -> torch.Tensor:
        return self.hidden(model, batch)[0]

    def trial(self, model: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return text_task(model).trial(model, batch)

    def caches(self, model: Model) -> bool:
        """Whether the module's passes with a cache compute what whole ones do; else every token is read anew for the next."""
        return True

    def rows(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        return text_task(model).rows(model, batch, kinds)

    def collate(self, model: Model, windows: Sequence[Batch]) -> Batch:
        return text_task(model).collate(model, windows)

    def counts(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, int]:
        return text_task(model).counts(model, batch, kinds)

    def draw(self, model: Model, batch: Batch, generators: Sequence[torch.Generator]) -> Batch:
        return text_task(model).draw(model, batch, generators)

    def hidden(self, model: Model, batch: Batch) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """Run up to the head: hidden (B, T, D) and the head."""
        split = self.body_and_head(model.module)
        if split is None:
            return self.forward(model, batch), lambda logits: logits
        body, head = split
        return body(**without_labels(batch), use_cache=False).last_hidden_state, head

    def sentence_prompt(self, model: Model) -> tuple[str, bool]:
        """What an embedding model puts before every sentence, and whether its tokens count in the vector."""
        return "", True

    def text_config(self, model: Model) -> Mapping[str, Any]:
        """The config of the language model, where a config holds several."""
        return model.spec.config

    def vocabulary(self, model: Model) -> int:
        """How many tokens the model's table has."""
        return int(self.text_config(model)["vocab_size"])

    def comparable(self, student: Model, teacher: Model) -> str:
        return text_task(student).comparable(student, teacher)

    def shared_batch(self, student: Model, teacher: Model, batch: Batch) -> Batch:
        return text_task(student).shared_batch(student, teacher, batch)

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
            raise RequestError(
                f"Token {max(ids)} ({token!r}) is none of the {size:,} that {model.spec.name} has: its tokenizer is that of another model."
            )

    def tokenizer(self, model: Model) -> Any:
        from zoo.errors import RequestError

        if model.processor is None:
            raise RequestError(f"{model.spec.name} has no tokenizer: put tokenizer.json beside its weights.")
        return model.processor

    def load_processor(self, path: Path) -> Any:
        """Load the tokenizer that `tokenizer.json` describes, as `save_processor` writes it; None where there is none.

        Raises:
            ArtifactError: it is damaged.
        """
        if not (file := path / "tokenizer.json").exists():
            return None
        from transformers import PreTrainedTokenizerFast

        from zoo.errors import ArtifactError, reason

        try:
            return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
        except Exception as error:  # tokenizers raises no narrower class
            raise ArtifactError(f"{file} is damaged: {reason(error)}.") from None

    def save_processor(self, processor: Any, path: Path) -> None:
        processor.save_pretrained(path)

    def inputs(self, model: Model, prompt: Any) -> tuple[list[int], Batch]:
        """Return the tokens that generation starts from, and what the module takes beside them on their pass.

        Raises:
            RequestError: the prompt is not text or holds nothing that the model knows, or the model continues no text.
        """
        from zoo.errors import RequestError
        from zoo.family.text.chat import FormattedPrompt

        if isinstance(prompt, FormattedPrompt):
            prompt = prompt.text
            ids = self.tokens(model, prompt)[0]
        else:
            require_text(prompt)
            ids = text_task(model).prompt_ids(model, prompt)
        if not ids:
            raise RequestError(
                f"The prompt {prompt!r} has no token that {model.spec.name} knows: pass some text to continue."
            )
        return ids, {}

    def special_tokens(self, model: Model) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer sets before every text and after it: of Gemma ([<bos>], []), of GPT-2 ([], [])."""
        tokenizer = self.tokenizer(model)
        for text in spoken(tokenizer):
            bare, whole = (
                list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
                for special in (False, True)
            )
            for at in range(len(whole) - len(bare) + 1):
                if bare and whole[at : at + len(bare)] == bare:
                    return whole[:at], whole[at + len(bare) :]
        return [], []

    def ends(self, model: Model) -> Container[Any] | None:
        """The tokens that end a text, where they are no single ids; None: `zoo.family.text.tokens.end_tokens` says."""
        return None

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """Cut the records into windows of `length` tokens, at most the context, with labels (T,); see `TokenWindows`."""
        return text_task(model).windows(model, data, length=length)

    def chats(self, model: Model, data: Dataset) -> Dataset:
        from zoo.family.text.chat import as_chats

        return as_chats(self.tokenizer(model), data, name=model.spec.name)

    def generate(self, model: Model, prompt: Any, **options: Any) -> Any:
        """Continue a text, answer in a chat, fill a gap in code, or name the likeliest words for each mask of a text.

        Args:
            prompt: the text, or several of them: prompt i then gets the answer it would get alone from the seed `seed` + i.
            options: `max_new_tokens` (128), `temperature` (0 is greedy), `top_p` (1), `seed` (0), `stop` (strings that
                end the text), `count` (1; of more, a list of texts of the prompt, text i from the seed `seed` + i),
                `stream` (True: an iterator over pieces of text instead of one string); instead of a prompt
                `messages` (a chat: [{"role": "user", "content": "Hello"}, ...]); of code `suffix` (what follows the gap
                after the prompt), `files` (others of the repository, path -> text), `repo` and `path` (its name, and the
                path of the file itself); of a masked-lm model `count` (5; how many words).

        Raises:
            RequestError: the prompt leaves no room in the model's context, or an option is unknown or does not fit the model.
        """
        from zoo.errors import RequestError

        self.check_options(model, options)
        stream = options.pop("stream", False)
        several = isinstance(prompt, list) and bool(prompt)
        if several and stream:
            raise RequestError("stream=True gives the pieces of one text; pass one prompt, or leave it out.")
        return text_task(model).generate(model, prompt, several=several, stream=stream, **options)

    def fill(self, model: Model, prompt: str, *, count: int = 5) -> list[list[tuple[str, float]]]:
        """Return the likeliest words for each mask of a text, each with its probability.

        Raises:
            RequestError: the model fills in no words, or the text has no mask or is too long.
        """
        return list(text_task(model).fills(model, prompt, count))

    def check_data(self, model: Model, data: Dataset, *, length: int) -> None:
        text_task(model).check_data(model, data, length=length)

    def context_length(self, model: Model) -> int:
        """Longest sequence the model takes, in tokens."""
        config = self.text_config(model)
        return next((int(config[name]) for name in CONTEXT.configs if config.get(name)), 1024)
