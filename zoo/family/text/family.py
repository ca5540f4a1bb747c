"""Language models: token windows, streaming generation, next-token rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.family.base import Family
from zoo.family.text.tokens import begun, differing_vocabulary, require_text, spoken, start_token
from zoo.family.text.windows import Halves, TokenWindows, holds, masked, require_texts
from zoo.tensors.batch import Batch, Rows

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.data.dataset import Dataset
    from zoo.model.model import Model
SAMPLING = ("max_new_tokens", "temperature", "top_p", "seed", "stop", "count")
LONGEST_TOKEN = 64  # characters; text of that many a window holds at least one window
# What `generate` takes beside a prompt, where a task takes only some of it.
OF_TASK = {
    "causal-lm": (*SAMPLING, "messages", "suffix", "files", "repo", "path"),
    "seq2seq": SAMPLING,
    "masked-lm": ("count",),
}


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
    takes: ClassVar[tuple[str, ...]] = ("prompt", *SAMPLING, "messages", "suffix", "files", "repo", "path")

    def body_and_head(self, module: nn.Module) -> tuple[nn.Module, Any] | None:
        """Split a causal model into body (ids -> hidden (B, T, D)) and head (hidden -> logits), or None if it does not split."""
        return None

    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        import torch

        generator = torch.Generator().manual_seed(seed)
        vocabulary, size = self.vocabulary(model), min(size, self.context_length(model))
        names = ("input_ids", "decoder_input_ids") if model.spec.task == "seq2seq" else ("input_ids",)
        return {
            name: torch.randint(0, vocabulary, (batch, size), generator=generator).to(model.device) for name in names
        }

    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        """Return logits (B, T, V).

        Nothing is kept for a next token: RWKV writes that into tensors that gradients need, and FSMT, asked to keep it,
        lets every token see those after it.
        """
        cacheless = {"use_cache": False} if "use_cache" in signature(model.module.forward).parameters else {}
        logits: torch.Tensor = model.module(**_inputs(batch), **cacheless).logits
        return logits

    def forward_body(self, model: Model, batch: Batch) -> torch.Tensor:
        return self.hidden(model, batch)[0]

    def trial(self, model: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        from zoo.family.text.readers import two_ways

        return super().trial(model, batch) if model.spec.task == "masked-lm" else two_ways(model, batch)

    def caches(self, model: Model) -> bool:
        """Whether the module's passes with a cache compute what whole ones do; else every token is read anew for the next."""
        return True

    def rows(self, model: Model, batch: Batch, kinds: Collection[str]) -> dict[str, Rows]:
        """Return the rows of kind "label": every position whose label is not negative.

        Where body and head do not separate, the logits stand in for the hidden state and the head is the identity.
        """
        hidden_BTD, head = self.hidden(model, batch)
        keep = batch["labels"] >= 0
        return {"label": Rows(hidden_BTD[keep], head, keep.nonzero()[:, 0], batch["labels"][keep])}

    def draw(self, model: Model, batch: Batch, generator: torch.Generator) -> Batch:
        """For a masked-lm model with a mask token: hide some tokens anew, which become the labels."""
        mask = getattr(model.processor, "mask_token_id", None) if model.spec.task == "masked-lm" else None
        return batch if mask is None else masked(model, batch, int(mask), generator)

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

    def vocabulary(self, model: Model) -> int:
        """How many tokens the model's table has."""
        return int(self.text_config(model)["vocab_size"])

    def comparable(self, student: Model, teacher: Model) -> str:
        return differing_vocabulary(student, teacher, (self.vocabulary(student), self.vocabulary(teacher)))

    def shared_batch(self, student: Model, teacher: Model, batch: Batch) -> Batch:
        """A masked-lm model reads some tokens drawn from its whole table: bring those beyond the teacher's into it."""
        if student.spec.task != "masked-lm":
            return batch
        return batch | {"input_ids": batch["input_ids"] % self.vocabulary(teacher)}

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
            ids = self._marked(model, prompt)
        if not ids:
            raise RequestError(
                f"The prompt {prompt!r} has no token that {model.spec.name} knows: pass some text to continue."
            )
        return ids, {}

    def _marked(self, model: Model, prompt: str) -> list[int]:
        """Tokenise a prompt with the special tokens that the tokenizer sets; before what goes on, only those at its start."""
        bare = self.tokens(model, prompt)[0]
        if model.spec.task == "seq2seq":
            whole: list[int] = self.tokenizer(model)(prompt, verbose=False)["input_ids"]
            return whole if bare else []
        return begun(self.special_tokens(model)[0], bare) if bare else []

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
        require_texts(model, data)
        windows = TokenWindows(self, model, data, min(length, self.context_length(model)))
        return Halves(windows, start_token(model)) if model.spec.task == "seq2seq" else windows

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
        from zoo.family.text.generate import stream_text, write_texts
        from zoo.family.text.masks import shown
        from zoo.family.text.sampling import Sampling

        stream = options.pop("stream", False)
        self.check_options(model, options)
        several = isinstance(prompt, list) and bool(prompt)
        if several and stream:
            raise RequestError("stream=True gives the pieces of one text; pass one prompt, or leave it out.")
        if stream and model.spec.task != "masked-lm" and options.get("count", 1) > 1:
            raise RequestError("stream=True gives the pieces of one text; leave out count, or stream.")
        if model.spec.task == "masked-lm":
            made = [shown(self._fills(model, text, **options)) for text in (prompt if several else [prompt])]
            return made[0] if stream else ["".join(pieces) for pieces in made] if several else "".join(made[0])
        how = Sampling(**{name: options.pop(name) for name in SAMPLING if name in options})
        prompt = self._formatted(model, prompt, **options)
        if several or how.count > 1:
            prompts = [one for one in (prompt if several else [prompt]) for _ in range(how.count)]
            texts = write_texts(self, model, prompts, how)
            groups = [texts[start : start + how.count] for start in range(0, len(texts), how.count)]
            return groups[0] if not several else texts if how.count == 1 else groups
        pieces = stream_text(self, model, prompt, how)
        return pieces if stream else "".join(pieces)

    def taken(self, model: Model) -> tuple[str, ...]:
        inputs = ("prompt", "images")
        of_task = OF_TASK.get(model.spec.task, self.takes)
        return tuple(name for name in self.takes if name in (*inputs, *of_task))

    def check_options(self, model: Model, options: Mapping[str, Any]) -> None:
        """Refuse an option that is unknown, does not fit the task, or is out of range."""
        from zoo.errors import RequestError, nearest
        from zoo.family.text.masks import require_count
        from zoo.family.text.sampling import Sampling

        known = [name for name in self.taken(model) if name not in ("prompt", "images")]
        for name in options.keys() - known:
            of = f" for {model.spec.name}, a {model.spec.task} model" if name in self.takes else ""
            near = "" if of else nearest(name, known)
            raise RequestError(
                f"{name!r} is not an option of generate{of}.{near} Options: {', '.join([*known, 'stream'])}."
            )
        if model.spec.task == "masked-lm":
            require_count(options.get("count", 1))
        else:
            Sampling(**{name: value for name, value in options.items() if name in SAMPLING})

    def _formatted(self, model: Model, prompt: Any, *, messages: Any = None, **code: Any) -> Any:
        """The prompt, or what messages or parts of code become in the model's own format."""
        from zoo.errors import RequestError
        from zoo.family.text.chat import FormattedPrompt

        code = {name: value for name, value in code.items() if value is not None}
        if messages is None and not code:
            return prompt
        if messages is not None and (prompt is not None or code):
            raise RequestError(
                f"messages take the place of a prompt: leave out {', '.join(['the prompt'] * (prompt is not None) + list(code))}."
            )
        if isinstance(prompt, list):
            raise RequestError(f"Several prompts are plain texts: leave out {', '.join(code)}, or pass one prompt.")
        if messages is None:
            from zoo.family.text.code import code_prompt

            return code_prompt(self.tokenizer(model), prompt, name=model.spec.name, **code)
        from zoo.family.text.chat import check_messages, render

        check_messages(messages)
        most = LONGEST_TOKEN * self.context_length(model)
        return FormattedPrompt(render(self.tokenizer(model), messages, name=model.spec.name, most=most))

    def fill(self, model: Model, prompt: str, *, count: int = 5) -> list[list[tuple[str, float]]]:
        """Return the likeliest words for each mask of a text, each with its probability.

        Raises:
            RequestError: the model fills in no words, or the text has no mask or is too long.
        """
        return list(self._fills(model, prompt, count=count))

    def _fills(self, model: Model, prompt: Any, *, count: Any = 5) -> Iterator[list[tuple[str, float]]]:
        from zoo.family.text.masks import fills

        require_text(prompt)
        return fills(self, model, prompt, count)

    def check_data(self, model: Model, data: Dataset, *, length: int) -> None:
        """Tokenise as much of a text as fills a window; where there is no tokenizer yet, a long text is taken to fill one."""
        require_texts(model, data)
        if model.processor is None and sum(len(sample.text) for sample in data) >= LONGEST_TOKEN * length:
            return
        if not holds(self, model, data, length + 1):
            self.windows(model, data, length=length)  # says what it holds

    def check_prompts(self, model: Model, prompts: Sequence[str]) -> None:
        for prompt in prompts:
            if model.processor is None:
                require_text(prompt)
            else:
                self.generate(model, prompt, stream=True)  # checks, and runs nothing until it is asked for a piece

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        most = {} if model.spec.task == "masked-lm" else {"max_new_tokens": 64}
        return [{"prompt": p, "output": self.generate(model, p, **most)} for p in prompts]

    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        import time

        import torch

        from zoo.family.text.generate import next_tokens

        context = self.context_length(model)
        decode = min(decode, max(1, context // 2 - 1))
        prefill = max(1, min(prefill, context - decode))
        batch = self.example(model, batch=1, size=prefill)
        ids_BT = batch["input_ids"]
        start = time.perf_counter()
        with torch.inference_mode():
            self.forward(model, batch)
        figures = {"prefill_tokens_per_s": prefill / (time.perf_counter() - start)}
        if model.spec.task == "causal-lm":
            prompt = ids_BT[0, : min(16, prefill, max(1, context - decode - 1))]
            tokens = next_tokens(model, prompt.tolist(), decode + 1)
            next(tokens)  # the prompt's own pass
            start = time.perf_counter()
            figures["decode_tokens_per_s"] = sum(1 for _ in tokens) / (time.perf_counter() - start)
        return figures

    def context_length(self, model: Model) -> int:
        """Longest sequence the model takes, in tokens."""
        config = self.text_config(model)
        return int(config.get("max_position_embeddings") or config.get("n_positions") or 1024)


def _inputs(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}
