"""The H2OVL-Mississippi family: its prompt, its tiles, its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from zoo.family.vision.language import VisionLanguageFamily
from zoo.family.vision.tiling import tiles_of, to_pixels
from zoo_h2ovl.model import H2OVL, tokens_per_tile
from zoo_h2ovl.scale import tiny
from zoo_h2ovl.vocabulary import SIZE, reading_tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

    from zoo.anatomy.parts import Anatomy
    from zoo.catalog import ModelSpec
    from zoo.model.model import Model


class H2OVLFamily(VisionLanguageFamily):
    """H2OVL-Mississippi (2410.13611) at any width; `config` has the fields of the published config.json."""

    distillation: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"use": "kl"},
        {"use": "visual-kl"},
        {"use": "visual-relation", "weight": 0.5},
    )
    evaluation: ClassVar[tuple[str, str]] = ("exact-match", "reading:test")

    def shrunk(self, spec: ModelSpec) -> dict[str, Any]:
        return tiny(spec.config)

    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        return H2OVL(config).eval()

    def initialise(self, module: nn.Module) -> None:
        assert isinstance(module, H2OVL)
        language: Any = module.language
        module.vision.init_weights()  # type: ignore[operator]
        for part in module.projector.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
        for part in language.modules():
            language._init_weights(part)

    def anatomy(self, module: nn.Module) -> Anatomy:
        from zoo.anatomy.detect import detect

        return detect(module)

    def body_and_head(self, module: nn.Module) -> tuple[Any, Any]:
        assert isinstance(module, H2OVL)
        return module.body, module.get_output_embeddings()

    def text_config(self, model: Model) -> Mapping[str, Any]:
        found: Mapping[str, Any] = model.spec.config["llm_config"]
        return found

    # --- images and prompts ---------------------------------------------------------------------------------------

    def tile_shape(self, model: Model) -> tuple[int, int, int]:
        config = model.spec.config
        return int(config["force_image_size"]), tokens_per_tile(config), int(config["img_context_token_id"])

    def tiles(self, model: Model, image: Image) -> torch.Tensor:
        config = model.spec.config
        return to_pixels(
            tiles_of(
                image,
                side=config["force_image_size"],
                fewest=config["min_dynamic_patch"],
                most=config["max_dynamic_patch"],
                thumbnail=config["use_thumbnail"],
                msac=config["use_msac"],
            )
        )

    def chat(self, model: Model, prompt: str, tiles: Sequence[int]) -> list[int]:
        """<|prompt|>{prompt}<|end|><|answer|>, where an image is <img>, K * tiles times <IMG_CONTEXT>, </img>.

        What the user writes is text even where it looks like a special token.
        """
        tokenizer = self.tokenizer(model)
        count, image_token = self.tile_shape(model)[1:]
        start, stop, end = tokenizer.convert_tokens_to_ids(["<img>", "</img>", "<|end|>"])
        first, *rest = prompt.split("<image>")

        def plain(text: str) -> list[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
                "input_ids"
            ]
            return ids

        ids = plain("<|prompt|>") + plain(first)
        for shown, text in zip(tiles, rest, strict=True):
            ids += [start, *[image_token] * (count * shown), stop, *plain(text)]
        return [*ids, end, *plain("<|answer|>")]

    # --- tokenizer ------------------------------------------------------------------------------------------------

    def tokenizer(self, model: Model) -> Any:
        """The tokenizer saved with the model; a model of the small vocabulary brings its own."""
        if model.processor is None and self.text_config(model)["vocab_size"] == SIZE:
            model.processor = reading_tokenizer()
        return super().tokenizer(model)

    def write_foreign(self, model: Model, path: Path) -> str:
        return "transformers has no class for H2OVL"
