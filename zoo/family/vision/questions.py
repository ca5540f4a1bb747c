"""Questions about images: how fast they are read and answered, and what a report asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.family.text.causal import CausalLM
from zoo.family.text.task import fitting

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.model.model import Model

SHOWN = 12  # images that a report shows


class ImageTextToText(CausalLM):
    """A causal model reads images among its tokens, and answers a question about them."""

    name: ClassVar[str] = "image-text-to-text"
    text_only: ClassVar[bool] = False

    def check_prompts(self, model: Model, prompts: Sequence[str]) -> None:
        from zoo.errors import RequestError

        if not all(prompt.strip() for prompt in prompts):
            raise RequestError("The prompt is empty: ask something, such as 'What does it say?'.")

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        """Ask about images spread over the data: each record's own question, or `prompts` in turn where there are some."""
        from zoo.family.vision.images import data_uri, read_image

        shown: list[dict[str, str]] = []
        for number, sample in enumerate(spread(data or (), SHOWN)):
            image = sample.fields["image"]
            prompt = prompts[number % len(prompts)] if prompts else str(sample.fields["prompt"])
            output = model.family.generate(model, prompt, images=[image], max_new_tokens=64)
            expected = {"expected": sample.text} if prompt == sample.fields.get("prompt") else {}
            shown.append({"prompt": prompt, "output": output, **expected, "image": data_uri(read_image(image))})
        return shown

    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        """Time a prompt of `prefill` tokens that begins with one tile, and the tokens after it."""
        import time

        from zoo.family.text.generate import next_tokens

        prefill, decode = fitting(model, prefill, decode)
        first = model.family.example(model, batch=1, size=prefill)
        ids = first.pop("input_ids")[0].tolist()
        tokens = next_tokens(model, ids, decode + 1, first=first)
        start = time.perf_counter()
        next(tokens)
        read = time.perf_counter()
        count = sum(1 for _ in tokens)
        return {
            "prefill_tokens_per_s": len(ids) / (read - start),
            "decode_tokens_per_s": count / (time.perf_counter() - read),
        }


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, evenly spaced."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)
