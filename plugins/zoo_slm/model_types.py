"""What hangs on an exact `model_type` of transformers and concerns how language models are loaded, each with its reason.

What concerns the parts of a module stands in `zoo/anatomy/model_types.py`.
"""

from __future__ import annotations

# Types whose forward draws random numbers outside training too: no two passes agree.
UNREPEATABLE = {
    "reformer": "which draws the hashes of its attention anew at every pass, so that no result of it comes again"
}
# Types whose classes run rightly in float32 alone.
FLOAT32_ONLY = {
    "deberta": "it mixes float32 in, whatever it is built in",
    "mra": "it mixes float32 in, whatever it is built in",
    "fnet": "there is no Fourier transform in half precision",
    "nllb-moe": "it widens its router for good at the first pass",
    "switch_transformers": "it widens its router for good at the first pass",
}
# Types of which the encoder alone is taken for vectors, and its class: AutoModel would make the decoder too.
ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
}
# Types whose class takes the head for the token table even where the two are untied, and so draws no numbers for it.
TABLE_AS_HEAD = frozenset(("t5", "mt5", "umt5", "longt5"))
# Types that are encoders or decoders, beside those that transformers has both a causal and a masked class for: it has no
# masked class for this one.
EITHER_SIDE = frozenset(("bert-generation",))
# Types whose config says in a field of its own, by this value, that tokens see those after them.
SEES_LATER = {"xlnet": ("attn_type", "bi")}
# Layers of Gemma's largest models, which scale scores by the width of the model over its heads, and the others by that of a
# head; a GGUF file only tells them by their number of layers, as llama.cpp does.
LAYERS_OF_LARGEST = {"gemma2": 46, "gemma3": 62}
