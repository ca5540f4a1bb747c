"""Configs of any architecture of transformers at a size that a test can afford.

`zoo_slm.scale` makes twins of real models and keeps their ratios; it refuses what it does not know. Here nothing is
refused: every size of the class's default config is made small by the kind of thing its name says it is, in the configs
of all parts. What then does not build or run is said by transformers itself, and listed as not built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoo_slm.scale import DEPTHS, QUERIES, WIDTHS

from zoo.anatomy.names import KV_HEADS

VOCABULARY, LAYERS, DEEPEST, CONTEXT, WINDOW = 320, 4, 12, 64, 8


@dataclass(frozen=True)
class Size:
    """What the small model is made of."""

    width: int = 32
    heads: int = 4
    head: int = 8
    factor: float = 1.25  # what multipliers of 1 become, so that one that is forgotten shows


# Tried in turn; the first that builds and runs is taken.
SIZES = (Size(), Size(factor=1.0), Size(width=64, head=16), Size(width=64, head=16, factor=1.0))

# The most of each kind of size, the first pattern that a key matches as a whole.
MOST: dict[str, int] = {
    r".*vocab_size.*|char_vocab_size": VOCABULARY,
    r"max_(2d_)?.*position_embeddings|n_positions|n_ctx|max_seq_len|context_length|model_max_length|max_(source|target)_positions|max_pos_emb": CONTEXT,
    r".*sliding_window(_size)?|.*window_size|local_attention(_window_len)?|attention_window|attention_chunk_size|keep_window_size": WINDOW,
    r"(mamba_)?chunk_size|(lsh|local)_attn_chunk_length|local_radius": WINDOW,
    r"block_size|global_block_size|num_landmarks|segment_means_seq_len": 4,
    r"n_groups|mamba_n_groups|num_random_blocks|moe_num_shared_experts|n_shared_experts|num_shared_experts|topk_group": 1,
    r"n_group|num_expert_group|moe_topk|moe_k|num_experts_per_tok(en)?|zero_expert_num|index_topk_blocks|centroid_intermediate_top_k": 2,
    r"first_k_dense_replace|num_dense_layers": 1,
    r".*(period|interval|every_n_layers|_sparse_step|layer_group_size|sliding_window_pattern|rescale_every|n_layers_per_attn_res_block)": 2,
    r".*_offset": 1,
    r"num_kv_shared_layers|n_(input|output|recurrent)_layers|num_layers_per_stack|num_global_layers|num_sparse_.*_layers|max_window_layers": 2,
    r"(.*_)?(num_hidden_layers|n_layers?|num_layers|depth|num_blocks|(en|de)coder_layers|num_self_attends_per_block)": LAYERS,
    r"(moe_num|num|n|num_local|n_routed)_(local_|routed_)?experts": 4,
    r"(linear_num|num)_key_heads": 2,
    r"linear_num_value_heads|index_n_heads|linear_num_heads": 4,
    r"mamba_n_heads|mamba_num_heads|n_mamba_heads": 8,
    r"qk_head_dim": 16,
    r"qk_rope_head_dim|qk_nope_head_dim|v_head_dim|index_head_dim|linear_.*head_dim|mamba_(d_head|head_dim|headdim)": 8,
    r"(ssm_)?state_size|mamba_d_state": 8,
    r"mamba_d_ssm": 64,
    r"mamba_dt_rank|time_step_rank": 4,
    r".*_rank|hc_lowrank": 16,
    r"rotary_dim|position_bias_num_buckets": 4,
    r"relative_attention_num_buckets|num_buckets|position_bias_num_buckets": 8,
    r"relative_attention_max_distance|rel_extent|index_topk|index_block_size|floor_scale": 16,
    r"(moe_|expert_|.*shared.*_)?(intermediate_size|ffn_hidden_size)(_mlp)?|d_ff|ffn_dim|n_inner|.*_ffn_dim|dff|dim_ff|d_inner|hidden_dim|feed_forward_size|.*intermediate_size": 64,
    r"num_position_embeddings": 16,
    r"unit_hifi_gan_.*|ngram_vocab_size_base|encoder_hash_byte_group_vocab|num_centroids": 64,
    r"split_ngram_parts": 4,
}
WIDTH_LIKE = (
    r"hidden_size.*|.*_hidden_size|n_embd|d_model|dim|.*embed_dim|emb_dim|.*embedding_(size|dim)|lru_width|"
    r"word_embed_proj_dim|entity_emb_size|pooler_hidden_size|prediction_head_size|out_hidden_size|true_hidden_size|"
    r"(en|de)coder_hidden_size|attention_hidden_size|projector_(in|out)put_dim|adapter_out_dim|output_embedding_size"
)
HEADS_LIKE = r"(.*_)?(num_attention_heads|n_heads?|num_heads|attention_heads)"
HEAD_LIKE = (
    r"(.*_)?(head_dim|d_kv|d_head|kv_channels|dim_head|attention_head_size|attention_head_dim)|query_pre_attn_scalar"
)
FACTOR_LIKE = r".*(multipliers?|_scale|_scaling|scale_emb|logit_scale)"

# (model type, why) -> what the rules above do not say.
EXCEPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("reformer", "the two factors of the positions give the context, those of their width the width"): {
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 24],
        "is_decoder": True,
    },
    ("mamba2", "its heads are those of the state, twice as wide in all as the residual"): {"num_heads": 8},
    ("funnel", "its depth is said by stage"): {"block_sizes": [2, 2]},
    ("squeezebert", "its groups must divide 32"): {},
    ("longformer", "a window for each layer"): {"attention_window": WINDOW},
    ("led", "a window for each layer"): {"attention_window": WINDOW},
    ("gpt_neo", "the kinds of layers are said in another form"): {
        "attention_types": [[["global", "local"], 2]],
        "num_layers": 4,
    },
    ("zamba2", "each hybrid block needs a place"): {"hybrid_layer_ids": [1, 3]},
    ("bamba", "no attention without indices"): {"attn_layer_indices": [1]},
    ("granitemoehybrid", "no attention by default"): {"layer_types": ["linear_attention", "full_attention"] * 2},
    ("deepseek_v2", "how many experts a token takes has no default"): {"num_experts_per_tok": 2, "n_routed_experts": 4},
    ("dots1", "the number of experts has no default"): {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_group": 1},
    ("hunyuan_v1_dense", "the width of a head has no default"): {"head_dim": 8},
    ("hunyuan_v1_moe", "the width of a head has no default"): {"head_dim": 8},
    ("ministral", "the width of a head has no default"): {"head_dim": 8},
    ("nemotron", "the width of a head has no default"): {"head_dim": 8, "num_key_value_heads": 2},
    ("lfm2_moe", "the kinds of layers have no default"): {"layer_types": ["conv", "full_attention"] * 2},
    ("esmc", "a vocabulary of 64 does not hold the words of the tokenizer"): {"vocab_size": VOCABULARY},
    ("esm", "the vocabulary has no default"): {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 4},
    ("xmod", "a language is to be chosen"): {"default_language": "en_XX"},
    ("mpnet", "two positions are padding"): {"max_position_embeddings": CONTEXT + 2},
    ("mobilebert", "its bottlenecks must fit each other"): {
        "embedding_size": 32,
        "hidden_size": 32,
        "true_hidden_size": 16,
        "intra_bottleneck_size": 16,
    },
    ("granite_speech", "the context of the audio encoder"): {},
    ("xlnet", "the class says n_head x d_head = d_model"): {"d_head": 8},
}


def small(config_class: type, model_type: str, size: Size, vocabulary: int = VOCABULARY) -> Any:
    """A config of the class with every size small."""
    default = config_class()
    values = _shrunk(default.to_dict(), size)
    for (name, _), changes in EXCEPTIONS.items():
        if name == model_type:
            values |= changes
    for key in ("model_type", "transformers_version", "architectures", "_name_or_path"):
        values.pop(key, None)
    return config_class(**values)


def _shrunk(config: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Every value of a config as the small model's has it, parts included."""
    width, depth = _first(config, WIDTHS), _first(config, DEPTHS)
    layers = _depth(config, depth)
    values = {
        key: _value(key, value, config, size, width=width, depth=depth, layers=layers)
        for key, value in config.items()
        if value is not None or key in ("pad_token_id",)
    }
    values |= _tokens(config, int(values.get("vocab_size") or VOCABULARY))
    return {key: value for key, value in values.items() if value is not None}


def _value(key: str, value: Any, config: Mapping[str, Any], size: Size, *, width: int, depth: int, layers: int) -> Any:
    if isinstance(value, Mapping):
        if key.startswith("per_layer"):
            return {layer: entry for layer, entry in value.items() if int(layer) < layers}
        if (
            not key.endswith("config") and not key.startswith("rope") and "model_type" not in value
        ):  # labels and the like
            return value
        if key.startswith("rope"):
            return _rotary(value, size)
        return {**_shrunk(value, size), **({"model_type": value["model_type"]} if "model_type" in value else {})}
    if isinstance(value, list):
        entries = _list(key, value, size, depth=depth, layers=layers)
        if _names_layers(key, value) or len(value) != depth:
            return entries
        return [_value(key, e, config, size, width=width, depth=depth, layers=layers) for e in entries]
    if isinstance(value, float):
        return size.factor if value == 1.0 and re.fullmatch(FACTOR_LIKE, key) else value
    if isinstance(value, bool) or not isinstance(value, int) or value <= 1 or key.endswith(("token_id", "_index")):
        return value
    return _number(key, value, config, size, width=width, layers=layers)


def _number(key: str, value: int, config: Mapping[str, Any], size: Size, *, width: int, layers: int) -> int:
    if key in DEPTHS:
        return min(value, layers)
    if key in KV_HEADS.configs or key in ("num_query_groups", "swa_num_key_value_heads"):
        return min(value, size.heads if value == _first(config, QUERIES) else 2)
    if key in ("image_size", "crop_size"):
        return 2 * int(config.get("patch_size") or 16) if isinstance(config.get("patch_size", 16), int) else value
    for pattern, most in MOST.items():
        if re.fullmatch(pattern, key):
            return min(value, most)
    if re.fullmatch(HEADS_LIKE, key):
        return min(value, size.heads)
    if re.fullmatch(HEAD_LIKE, key):
        return size.head
    if re.fullmatch(WIDTH_LIKE, key):
        return size.width if not width or value == width else max(8, round(value * size.width / width / 8) * 8)
    return value


def _list(key: str, value: list[Any], size: Size, *, depth: int, layers: int) -> Any:
    """Lists of one entry a layer get shorter; those that name layers lose the layers that are gone."""
    if depth > 1 and len(value) == depth and not _names_layers(key, value):
        return value[:layers]
    if depth > 1 and _names_layers(key, value):
        return [layer for layer in value if layer < layers] or [1]
    if re.fullmatch(FACTOR_LIKE, key) and all(entry == 1.0 for entry in value):
        return [size.factor] * len(value)
    return value


def _names_layers(key: str, value: list[Any]) -> bool:
    named = re.search(r"idxs|_ids$|cross_attention_layers|moe_layers|only_layers|indices|indexes", key)
    return bool(named) and bool(value) and all(type(entry) is int for entry in value)


def _depth(config: Mapping[str, Any], depth: int) -> int:
    """The fewest layers, from the first on, that have every kind of layer; two of each where that is not deep."""
    kinds = [value for value in _lists(config) if depth and len(value) == depth and len({str(k) for k in value}) > 1]
    for times in (2, 1):
        for layers in range(min(LAYERS, depth), min(DEEPEST, depth) + 1):
            if all(value[:layers].count(kind) >= times for value in kinds for kind in value):
                return layers
    return min(depth, LAYERS)


def _lists(config: Mapping[str, Any]) -> Iterator[list[Any]]:
    yield from (value for key, value in config.items() if isinstance(value, list) and not _names_layers(key, value))


def _rotary(value: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """Rotary settings: sections that add up to half of what rotates."""
    made: dict[str, Any] = dict(value)
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            made[key] = _rotary(entry, size)
        elif key == "mrope_section":
            pairs = int(size.head * float(value.get("partial_rotary_factor") or 1)) // 2
            made[key] = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
        elif key == "original_max_position_embeddings":
            made[key] = CONTEXT // 2
        elif key.endswith("_factor") and isinstance(entry, list):
            made[key] = entry[: size.head // 2]
    return made


def _tokens(config: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Special tokens beyond the vocabulary become the last ones of it, those that were different still so."""
    named = {
        key: value
        for key, value in config.items()
        if re.fullmatch(r".*token_(id|index)", key) and value is not None and not isinstance(value, bool)
    }
    beyond = sorted(
        {t for value in named.values() for t in (value if isinstance(value, list) else [value]) if t >= vocabulary}
    )
    number = {token: vocabulary - 1 - place for place, token in enumerate(beyond)}
    return {
        key: [number.get(t, t) for t in value] if isinstance(value, list) else number.get(value, value)
        for key, value in named.items()
    }


def _first(config: Mapping[str, Any], names: Any) -> int:
    return next((config[name] for name in names if type(config.get(name)) is int and config[name] > 0), 0)
