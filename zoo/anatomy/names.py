"""What configs and modules call each size of a transformer, said once, the usual name first.

A config's own names and those of the attributes of modules are kept apart, since some mean another size there: `hidden_dim`
is the width of the feed-forward layer in a config (DistilBERT) and that of the residual in a module. Sizes that only configs
or only modules have a name for lack the other. One model calls a size by one of the names; transformers' `attribute_map`
makes the usual one an alias of it.

Nothing is imported, so that everybody may read it.
"""

from __future__ import annotations

from typing import NamedTuple


class Names(NamedTuple):
    """What one size is called."""

    configs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


LAYERS = Names(configs=("num_hidden_layers", "n_layer", "num_layers", "n_layers"))
# The depth of one side of an encoder-decoder.
ENCODER_LAYERS = Names(configs=("encoder_layers", "num_encoder_layers"))
DECODER_LAYERS = Names(configs=("decoder_layers", "num_decoder_layers"))

WIDTH = Names(
    configs=("hidden_size", "n_embd", "d_model", "dim", "emb_dim"),
    modules=("hidden_size", "embed_dim", "hidden_dim", "d_model"),
)
# The width of the token table, where it is not the model's (OPT, ALBERT, ELECTRA).
TABLE_WIDTH = Names(configs=("word_embed_proj_dim", "embedding_size"))

HEADS = Names(
    configs=("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads"),
    modules=("num_heads", "num_attention_heads", "n_heads", "n_head", "heads"),
)
# Those of both sides of an encoder-decoder, of which transformers maps the usual name to one.
SIDES_HEADS = Names(
    configs=(
        "encoder_attention_heads",
        "decoder_attention_heads",
        "num_encoder_attention_heads",
        "num_decoder_attention_heads",
    )
)
KV_HEADS = Names(
    configs=("num_key_value_heads", "num_kv_heads", "multi_query_group_num"),
    modules=("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads"),
)
# Query heads to a key/value head.
GROUPS = Names(modules=("num_key_value_groups", "n_rep"))
HEAD_SIZE = Names(
    configs=("head_dim", "attention_head_size", "head_size", "dim_head", "d_kv"),
    modules=("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "dim_head", "dim_per_head"),
)
# All heads together; the same names mean the residual in modules that are no attention.
SPAN = Names(modules=("embed_dim", "hidden_size", "split_size", "all_head_size", "inner_dim", "attn_dim"))

FFN_WIDTH = Names(
    configs=(
        "intermediate_size",
        "ff_intermediate_size",
        "n_inner",
        "ffn_dim",
        "d_ff",
        "ffn_hidden_size",
        "hidden_dim",
    ),
    modules=("intermediate_size", "intermediate_dim", "ffn_dim", "ffn_hidden_size", "hidden_features", "inner_dim"),
)
SIDES_FFN_WIDTH = Names(configs=("encoder_ffn_dim", "decoder_ffn_dim"))
EXPERT_WIDTH = Names(configs=("moe_intermediate_size",))
SHARED_EXPERT_WIDTH = Names(configs=("shared_expert_intermediate_size",))

EXPERTS = Names(
    configs=("num_local_experts", "num_experts", "n_routed_experts"),
    modules=("num_experts", "num_local_experts", "n_routed_experts"),
)
EXPERTS_PER_TOKEN = Names(configs=("num_experts_per_tok",))

VOCABULARY = Names(configs=("vocab_size",))
CONTEXT = Names(
    configs=(
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "max_sequence_length",
        "max_target_positions",
    )
)
SIDES_CONTEXT = Names(configs=("max_encoder_position_embeddings", "max_decoder_position_embeddings"))
WINDOW = Names(configs=("sliding_window", "window_size"))
