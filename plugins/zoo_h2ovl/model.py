"""H2OVL-Mississippi, at any width: a vision tower, a projector, a language model.

Paper: H2OVL-Mississippi Vision Language Models (2410.13611). The shape is InternVL 2's (2404.16821): an InternViT tower
without a final norm, pixel shuffle (four neighbouring patches become one token), LayerNorm and a two-layer perceptron,
a decoder (Llama in the 0.8B, Mistral in the 2B) whose <IMG_CONTEXT> embeddings are overwritten with what the projector says.
Code: written here over timm's VisionTransformer and transformers' decoders (both Apache-2.0); the published checkpoints
are Apache-2.0.

Legend: N tiles, C vision width, H W patches up and across, K tokens of one tile, B batch, T tokens, D language width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from zoo.errors import RequestError, nearest

# by the `model_type` of `llm_config`
DECODERS = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


@dataclass
class Output:
    """What a forward pass returns: logits (B, T, V), or hidden states (B, T, D) of the body alone."""

    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    cache: Any = None


class H2OVL(nn.Module):
    """`config` has the fields of the published config.json, `vision_config` and `llm_config` inside it."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        vision, language = config["vision_config"], config["llm_config"]
        self.image_token = int(config["img_context_token_id"])
        self.shuffle = round(1 / config["downsample_ratio"])  # patches along one side of a token
        self.tokens_per_tile = tokens_per_tile(config)
        self.vision = build_tower(vision)
        self.projector = build_projector(vision["hidden_size"] * self.shuffle**2, language["hidden_size"])
        self.language = build_decoder(language)

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = self.language.get_input_embeddings()
        return found

    def get_output_embeddings(self) -> nn.Module:
        found: nn.Module = self.language.get_output_embeddings()
        return found

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Turn tiles (N, 3, height, width) into tokens (N, K, D)."""
        patches_NPC = self.vision(pixel_values)[:, 1:]  # without the class token
        features: torch.Tensor = self.projector(pixel_shuffle(patches_NPC, self.shuffle))
        return features

    def embed(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """Embed tokens (B, T) and write the tokens of the tiles, in order, over those of <IMG_CONTEXT>: (B, T, D).

        Raises:
            RequestError: there are not exactly as many places as tokens of the tiles.
        """
        embedded_BTD: torch.Tensor = self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            return embedded_BTD
        places_BT = input_ids == self.image_token
        if has_values(places_BT) and int(places_BT.sum()) != len(pixel_values) * self.tokens_per_tile:
            raise RequestError(
                f"The text has {int(places_BT.sum())} <IMG_CONTEXT> tokens, but {len(pixel_values)} tiles "
                f"of {self.tokens_per_tile} tokens came with it."
            )
        features_NKD = self.image_features(pixel_values).to(embedded_BTD.dtype)
        return embedded_BTD.masked_scatter(places_BT[..., None].expand_as(embedded_BTD), features_NKD)

    def body(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        cache: Any = None,
        use_cache: bool | None = None,
    ) -> Output:
        """Run up to the head: hidden states (B, T, D)."""
        found = self.language.model(
            inputs_embeds=self.embed(input_ids, pixel_values),
            attention_mask=attention_mask,
            position_ids=positions(attention_mask, input_ids.shape[1]),
            cache=cache,
            use_cache=use_cache,
        )
        return Output(last_hidden_state=found.last_hidden_state, cache=found.cache)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        cache: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
    ) -> Output:
        """Run on tokens (B, T) and the tiles of all samples (N, 3, height, width), in the order of their <IMG_CONTEXT> tokens.

        Args:
            attention_mask: (B, T), 0 where a token is padding, on either side; with a cache, of all tokens so far.
            logits_to_keep: only the last so many positions; 0: all.
        """
        found = self.body(input_ids, attention_mask, pixel_values, cache, use_cache)
        assert found.last_hidden_state is not None
        kept = found.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else found.last_hidden_state
        return Output(logits=self.get_output_embeddings()(kept), cache=found.cache)


def has_values(tensor: torch.Tensor) -> bool:
    """Whether it is more than a shape: neither on the meta device nor a fake tensor."""
    return type(tensor) is torch.Tensor and not tensor.is_meta


def pixel_shuffle(patches_NPC: torch.Tensor, side: int) -> torch.Tensor:
    """Fold every `side` x `side` square of patches into one token: (N, H * W, C) -> (N, H * W / side², C * side²).

    This is version 2 ("v2") of InternVL, whose grid is not transposed; patches of a square are in row-major order.
    """
    count, patches, width = patches_NPC.shape
    across = round(patches**0.5)
    grid = patches_NPC.view(count, across // side, side, across // side, side, width)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(count, patches // side**2, width * side**2)


def positions(attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """Number the last `length` real tokens of every row (B, length); padding does not count."""
    if attention_mask is None:
        return None
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]


def tokens_per_tile(config: dict[str, Any]) -> int:
    """K: (side / patch)² / shuffle²."""
    patches = config["force_image_size"] // config["vision_config"]["patch_size"]
    return int((patches * config["downsample_ratio"]) ** 2)


def build_tower(config: dict[str, Any]) -> nn.Module:
    """InternViT: pre-norm, class token, learned positions, layer scale, no norm of queries and keys, no final norm."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(  # type: ignore[no-any-return]
        img_size=config["image_size"],
        patch_size=config["patch_size"],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"],
        qkv_bias=config["qkv_bias"],
        init_values=config["initializer_factor"],
        norm_layer=partial(nn.LayerNorm, eps=config["layer_norm_eps"]),
        num_classes=0,
        global_pool="",
        final_norm=False,
    )


def build_projector(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


def build_decoder(config: dict[str, Any]) -> Any:
    """The decoder of its `model_type`, Llama where it says none.

    Raises:
        RequestError: H2OVL has no decoder of that type.
    """
    import transformers

    kind = config.get("model_type", "llama")
    if kind not in DECODERS:
        raise RequestError(
            f"llm_config: model_type {str(kind)[:80]!r} is no decoder of H2OVL.{nearest(str(kind), DECODERS)} "
            f"Decoders: {', '.join(DECODERS)}."
        )
    decoder: Any = getattr(transformers, DECODERS[kind])
    values = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    return decoder(decoder.config_class(**values))
