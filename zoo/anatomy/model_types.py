"""What hangs on an exact `model_type` of transformers, each with its reason, where no shape, attribute or name of a part tells it.

A fact that only the plugin of language models reads stands in its table, `zoo_slm/model_types.py`. Nobody else asks for a
model type, and nobody looks for a word in the name of a class: `tests/zoo/anatomy/test_model_types.py` holds that.
"""

from __future__ import annotations

from typing import Any

# Fused attention whose rows are in an order that no `Part` describes.
UNREADABLE_QKV = {
    "codegen": "its rows are four tensor-parallel shards, each of them q, v and k",
    "gpt_bigcode": "those of q, k and v lie together head by head, unless all heads share one key (multi-query)",
}
# Attention biases that go by a head's number, as configs with a field `alibi` say of themselves.
NUMBERED_HEADS = {
    "bloom": "its slopes (ALiBi) are made from the number of heads",
    "mpt": "its slopes (ALiBi) are made from the number of heads; whether is said one level down, in attn_config",
}


def type_of(config: Any) -> str:
    """The model type that a config says it has; "" where it says none, or there is no config."""
    return str(getattr(config, "model_type", None) or "")
