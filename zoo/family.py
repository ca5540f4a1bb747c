"""Families: how one architecture family is built, fed, run, and where its parts are.

`Family` is what every modality shares; one base class per modality holds what is common to it, so that a new
architecture of a known modality is little more than `config`, `build` and `anatomy`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoo.anatomy import Anatomy
    from zoo.data import Dataset
    from zoo.model import Model

Batch = dict[str, "torch.Tensor"]


class Family(ABC):
    """One architecture family. Instances are stateless."""

    modality: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]

    # --- building -----------------------------------------------------------------------------------------------

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

    @abstractmethod
    def generate(self, model: Model, prompt: Any, **options: Any) -> Any:
        """Generate from a prompt."""

    def samples(self, model: Model, prompts: Sequence[str]) -> list[dict[str, str]]:
        """Answer prompts for a report: [{"prompt", "output"}] or [{"image" (a data URI), "caption"}]."""
        return []


class TextFamily(Family):
    """What language models share: token windows, streaming generation, held-out bits per byte.

    The module takes `input_ids` (B, T) and `attention_mask` (B, T) and returns an object with `logits` (B, T, V); the
    processor is a fast tokenizer of the transformers kind.
    """

    modality: ClassVar[str] = "text"

    def body_and_head(self, module: nn.Module) -> tuple[nn.Module, Any] | None:
        """Split a causal model into body (ids -> hidden (B, T, D)) and head (hidden -> logits), or None if it does not split."""
        return None

    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        import torch

        generator = torch.Generator().manual_seed(seed)
        vocabulary = int(model.spec.config["vocab_size"])
        return {"input_ids": torch.randint(0, vocabulary, (batch, size), generator=generator).to(model.device)}

    def forward(self, model: Model, batch: Batch) -> torch.Tensor:
        """Return logits (B, T, V)."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits: torch.Tensor = model.module(**inputs).logits
        return logits

    def tokens(self, model: Model, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenise without special tokens: ids, and the span of characters each token covers."""
        encoded = self.tokenizer(model)(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["input_ids"], encoded["offset_mapping"]

    def tokenizer(self, model: Model) -> Any:
        from zoo.errors import RequestError

        if model.processor is None:
            raise RequestError(f"{model.spec.name} has no tokenizer: put tokenizer.json beside its weights.")
        return model.processor

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        """Cut the records, joined by end-of-text tokens, into windows of `length` tokens with next-token labels (T,)."""
        return TokenWindows(self, model, data, length)

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

    def samples(self, model: Model, prompts: Sequence[str]) -> list[dict[str, str]]:
        return [{"prompt": p, "output": self.generate(model, p, max_new_tokens=64)} for p in prompts]

    def context_length(self, model: Model) -> int:
        """Longest sequence the model takes, in tokens."""
        config = model.spec.config
        return int(config.get("max_position_embeddings") or config.get("n_positions") or 1024)


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
