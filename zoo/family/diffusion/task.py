"""Images of a text: how fast they are made, which prompts can be asked for, and what a report shows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.family.task import Task

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.model.model import Model


class TextToImage(Task):
    """An image shows what a text says."""

    name: ClassVar[str] = "text-to-image"

    def usual_evaluator(self, model: Model, data: Dataset | None) -> str:
        """Whether images show the digit they are asked for, where records name one; else the error of what is trained."""
        digits = data is None or (len(data) > 0 and "digit" in data[0].fields)
        return model.family.evaluation[0] if digits else "velocity-error"

    def check_prompts(self, model: Model, prompts: Sequence[str]) -> None:
        from zoo.family.diffusion.captions import require_prompt

        family: Any = model.family
        for prompt in prompts:
            require_prompt(family.parts(model).get("tokenizer"), prompt, name=model.spec.name)

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        """Make a contact sheet of eight images for each prompt, seeds 0 to 7."""
        from zoo.family.diffusion.captions import sheet
        from zoo.family.vision.images import data_uri

        made = [model.family.generate(model, prompt, steps=16, count=8) for prompt in prompts]
        return [
            {"prompt": p, "image": data_uri(sheet(images, side=64)), "output": "seeds 0 to 7"}
            for p, images in zip(prompts, made, strict=True)
        ]

    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        """Time one image of eight steps; token counts mean nothing here."""
        import time

        start = time.perf_counter()
        model.family.generate(model, "", steps=8)
        return {"images_per_s": 1 / (time.perf_counter() - start)}
