"""Detection finds every architecture's parts, and leaves out what it does not understand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from twins import HEADS, TWINS, WIDTH, tokens, twin

from zoo.anatomy.detect import detect
from zoo.anatomy.parts import FFN, Anatomy, Attention, Part, Stack

pytestmark = pytest.mark.quick

CLOSE = {"atol": 2e-5, "rtol": 1e-4}  # float32, sums of at most 128 terms
MLP, ATTENTION = "model.layers.1.mlp", "model.layers.1.self_attn"


def language(module: nn.Module) -> Stack:
    return detect(module).stacks["language"]


def rows(path: str, units: int, width: int, offset: int = 0, stride: int | None = None, axis: int = 0) -> Part:
    return Part(path, axis, units, width, offset, width if stride is None else stride)


# Written by hand from the model sources of transformers 5.23.
FEED_FORWARD = {
    "llama": FFN(MLP, Part(f"{MLP}.up_proj", 0, 64), Part(f"{MLP}.down_proj", 1, 64), Part(f"{MLP}.gate_proj", 0, 64)),
    "phi3": FFN(
        MLP,
        Part(f"{MLP}.gate_up_proj", 0, 64, offset=64),
        Part(f"{MLP}.down_proj", 1, 64),
        Part(f"{MLP}.gate_up_proj", 0, 64),
    ),
    "mixtral": FFN(
        f"{MLP}.experts",
        Part(f"{MLP}.experts.gate_up_proj", 1, 64, offset=64),
        Part(f"{MLP}.experts.down_proj", 2, 64),
        Part(f"{MLP}.experts.gate_up_proj", 1, 64),
        experts=4,
        router=f"{MLP}.gate",
    ),
    "gpt2": FFN(
        "transformer.h.1.mlp", Part("transformer.h.1.mlp.c_fc", 1, 128), Part("transformer.h.1.mlp.c_proj", 0, 128)
    ),
    "gpt-neox": FFN(
        "gpt_neox.layers.1.mlp",
        Part("gpt_neox.layers.1.mlp.dense_h_to_4h", 0, 64),
        Part("gpt_neox.layers.1.mlp.dense_4h_to_h", 1, 64),
    ),
    "opt": FFN(
        "model.decoder.layers.1", Part("model.decoder.layers.1.fc1", 0, 64), Part("model.decoder.layers.1.fc2", 1, 64)
    ),
    "bert": FFN(
        "bert.encoder.layer.1",
        Part("bert.encoder.layer.1.intermediate.dense", 0, 64),
        Part("bert.encoder.layer.1.output.dense", 1, 64),
    ),
}
QKV, CONV, NEOX = f"{ATTENTION}.qkv_proj", "transformer.h.1.attn.c_attn", "gpt_neox.layers.1.attention.query_key_value"
SELF, FALCON = "bert.encoder.layer.1.attention", "transformer.h.1.self_attention"
HEADED = {
    "qwen2": Attention(
        ATTENTION,
        rows(f"{ATTENTION}.q_proj", 4, 8),
        rows(f"{ATTENTION}.k_proj", 2, 8),
        rows(f"{ATTENTION}.v_proj", 2, 8),
        rows(f"{ATTENTION}.o_proj", 4, 8, axis=1),
        heads=4,
        kv_heads=2,
        head_dim=8,
    ),
    "phi3": Attention(
        ATTENTION,
        rows(QKV, 4, 8),
        rows(QKV, 2, 8, 32),
        rows(QKV, 2, 8, 48),
        rows(f"{ATTENTION}.o_proj", 4, 8, axis=1),
        heads=4,
        kv_heads=2,
        head_dim=8,
    ),
    "gpt2": Attention(
        "transformer.h.1.attn",
        rows(CONV, 4, 8, axis=1),
        rows(CONV, 4, 8, 32, axis=1),
        rows(CONV, 4, 8, 64, axis=1),
        rows("transformer.h.1.attn.c_proj", 4, 8, axis=0),
        heads=4,
        kv_heads=4,
        head_dim=8,
    ),
    "gpt-neox": Attention(
        "gpt_neox.layers.1.attention",
        rows(NEOX, 4, 8, 0, 24),
        rows(NEOX, 4, 8, 8, 24),
        rows(NEOX, 4, 8, 16, 24),
        rows("gpt_neox.layers.1.attention.dense", 4, 8, axis=1),
        heads=4,
        kv_heads=4,
        head_dim=8,
    ),
    "bert": Attention(
        SELF,
        rows(f"{SELF}.self.query", 4, 8),
        rows(f"{SELF}.self.key", 4, 8),
        rows(f"{SELF}.self.value", 4, 8),
        rows(f"{SELF}.output.dense", 4, 8, axis=1),
        heads=4,
        kv_heads=4,
        head_dim=8,
    ),
    "falcon": Attention(
        FALCON,
        rows(f"{FALCON}.query_key_value", 4, 8),
        rows(f"{FALCON}.query_key_value", 1, 8, 32),
        rows(f"{FALCON}.query_key_value", 1, 8, 40),
        rows(f"{FALCON}.dense", 4, 8, axis=1),
        heads=4,
        kv_heads=1,
        head_dim=8,
    ),
    "olmo2": Attention(
        ATTENTION,
        rows(f"{ATTENTION}.q_proj", 4, 8),
        rows(f"{ATTENTION}.k_proj", 2, 8),
        rows(f"{ATTENTION}.v_proj", 2, 8),
        rows(f"{ATTENTION}.o_proj", 4, 8, axis=1),
        heads=4,
        kv_heads=2,
        head_dim=8,
        norms=(rows(f"{ATTENTION}.q_norm", 4, 8), rows(f"{ATTENTION}.k_norm", 2, 8)),
    ),
}


@pytest.mark.parametrize("name", FEED_FORWARD)
def test_feed_forward_parts(name: str) -> None:
    assert language(twin(name)).blocks[1].ffn == FEED_FORWARD[name]


@pytest.mark.parametrize("name", HEADED)
def test_attention_parts(name: str) -> None:
    assert language(twin(name)).blocks[1].attention == HEADED[name]


def test_head_size_of_its_own_and_per_head_norms() -> None:
    attention = language(twin("qwen3")).blocks[0].attention
    assert attention is not None
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.norms) == (4, 2, 12, ())


@pytest.mark.parametrize("name", TWINS)
def test_every_block_is_recognised(name: str) -> None:
    stack = language(twin(name))
    assert len(stack.blocks) == 2 and stack.width == WIDTH
    assert all(block.attention and block.ffn for block in stack.blocks)


@pytest.mark.parametrize("name", TWINS)
def test_a_skeleton_has_the_same_anatomy(name: str) -> None:
    assert detect(twin(name, device="meta")) == detect(twin(name))


def test_what_touches_the_residual() -> None:
    llama, gpt2, bert = (detect(twin(name)) for name in ("llama", "gpt2", "bert"))
    stack = llama.stacks["language"]
    assert (stack.path, stack.norms, stack.embeddings) == ("model.layers", ("model.norm",), ("model.embed_tokens",))
    assert (stack.head, stack.readers, stack.writers, llama.tied) == ("lm_head", (), (), False)
    stack = gpt2.stacks["language"]
    assert (stack.norms, stack.embeddings) == (("transformer.ln_f",), ("transformer.wte", "transformer.wpe"))
    assert (gpt2.embedding, gpt2.head, gpt2.tied) == ("transformer.wte", "lm_head", True)
    stack = bert.stacks["language"]
    assert stack.norms == ("bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm")
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    assert stack.embeddings == tuple(f"bert.embeddings.{table}" for table in tables)
    assert stack.readers == stack.writers == ("cls.predictions.transform.dense",)
    assert (bert.embedding, bert.head, bert.tied) == (stack.embeddings[0], "cls.predictions.decoder", True)


def test_block_norms() -> None:
    names = {
        "gemma2": ("input", "post_attention", "pre_feedforward", "post_feedforward"),
        "olmo2": ("post_attention", "post_feedforward"),
        "qwen3": ("input", "post_attention"),
    }
    for name, norms in names.items():
        assert language(twin(name)).blocks[1].norms == tuple(f"model.layers.1.{norm}_layernorm" for norm in norms)


def test_narrow_embedding_of_opt_does_not_touch_the_residual() -> None:
    anatomy = detect(twin("opt", word_embed_proj_dim=16))
    stack = anatomy.stacks["language"]
    assert stack.embeddings == ("model.decoder.embed_positions",)
    assert (stack.readers, stack.writers) == (("model.decoder.project_out",), ("model.decoder.project_in",))
    assert (stack.head, anatomy.head) == (None, "lm_head")


# --- the parts really hold what they say ----------------------------------------------------------------------------


def entries(module: nn.Module, part: Part, unit: int) -> list[tuple[Tensor, Tensor]]:
    """(tensor with the units along axis 0, indices of one unit), for the weight and the bias where it has one."""
    owner = module.get_submodule(part.path)
    where = part.indices(torch.tensor([unit]))
    found = [(owner.weight.data.movedim(part.axis, 0), where)]  # type: ignore[union-attr, operator]
    bias = getattr(owner, "bias", None)
    return found if bias is None else [*found, (bias.data, where)]


def logits(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(tokens()).logits  # type: ignore[no-any-return]


def attention_of(module: nn.Module) -> Attention:
    attention = language(module).blocks[1].attention
    assert attention is not None
    return attention


@pytest.mark.parametrize("name", TWINS)
def test_silencing_values_equals_not_reading_their_heads(name: str) -> None:
    """v of kv head 0 set to zero, or the columns of o for its query heads: the same output."""
    one, other, untouched = twin(name), twin(name), twin(name)
    attention = attention_of(one)
    for tensor, where in entries(one, attention.v, 0):
        tensor[where] = 0
    weight, _ = entries(other, attention.o, 0)[0]
    for head in range(attention.heads // attention.kv_heads):
        weight[attention.o.indices(torch.tensor([head]))] = 0
    torch.testing.assert_close(logits(one), logits(other), **CLOSE)
    assert not torch.allclose(logits(one), logits(untouched), **CLOSE)


@pytest.mark.parametrize("name", [name for name in TWINS if name not in ("qwen3", "olmo2")])
def test_queries_and_keys_scale_against_each_other(name: str) -> None:
    """k of kv head 1 (or 0) doubled and q of its query heads halved: the same scores (not so behind a q or k norm)."""
    module, untouched = twin(name), twin(name)
    attention = attention_of(module)
    group = attention.heads // attention.kv_heads
    unit = attention.kv_heads - 1
    for tensor, where in entries(module, attention.k, unit):
        tensor[where] *= 2
    assert not torch.allclose(logits(module), logits(untouched), **CLOSE)
    for head in range(unit * group, unit * group + group):
        for tensor, where in entries(module, attention.q, head):
            tensor[where] *= 0.5
    torch.testing.assert_close(logits(module), logits(untouched), **CLOSE)


# --- after other stages ---------------------------------------------------------------------------------------------


class Packed(nn.Module):
    """What a quantiser leaves: the sizes, and bytes."""

    def __init__(self, features: tuple[int, int]) -> None:
        super().__init__()
        self.in_features, self.out_features = features
        self.codes = nn.Buffer(torch.zeros(features[1], features[0], dtype=torch.int8))


class LowRank(nn.Module):
    def __init__(self, features: tuple[int, int]) -> None:
        super().__init__()
        self.in_features, self.out_features = features
        self.first, self.second = nn.Linear(features[0], 2, bias=False), nn.Linear(2, features[1])


@pytest.mark.parametrize("replacement", [Packed, LowRank])
@pytest.mark.parametrize("name", ["llama-gqa", "phi3", "gpt-neox", "opt", "bert", "qwen3"])
def test_replaced_projections_are_still_found(name: str, replacement: type[Packed] | type[LowRank]) -> None:
    module = twin(name)
    before = detect(module)
    stack = before.stacks["language"]
    for path in before.select("language").projections():
        parent, _, child = path.rpartition(".")
        linear = module.get_submodule(path)
        setattr(module.get_submodule(parent), child, replacement((linear.in_features, linear.out_features)))  # type: ignore[arg-type]
    assert detect(module).stacks["language"] == stack


def test_dropped_blocks_and_shared_ffns() -> None:
    module = twin("llama", num_hidden_layers=4)
    layers = module.model.layers  # type: ignore[union-attr]
    layers[1].mlp = layers[0].mlp  # type: ignore[index, union-attr]
    ffn = language(module).blocks[1].ffn
    assert ffn is not None and ffn.path == "model.layers.1.mlp" and len(language(module).blocks) == 4
    del layers[1:]  # type: ignore[union-attr]
    assert [block.path for block in language(module).blocks] == ["model.layers.0"]


def test_one_block_used_twice_is_two_blocks() -> None:
    module = twin("llama")
    layers = module.model.layers  # type: ignore[union-attr]
    layers[1] = layers[0]  # type: ignore[index, operator]
    assert [block.path for block in language(module).blocks] == ["model.layers.0", "model.layers.1"]


def test_grouped_fused_attention_is_read_group_by_group() -> None:
    """Falcon 40B and Phi-3-small store the queries that share a key, that key, its value, and then the next group."""
    attention = language(twin("falcon", new_decoder_architecture=True, num_kv_heads=2)).blocks[0].attention
    assert attention is not None and (attention.heads, attention.kv_heads) == (4, 2)
    rows = {
        name: getattr(attention, name).indices(torch.arange(getattr(attention, name).units)).tolist() for name in "qkv"
    }
    assert rows == {
        "q": [*range(16), *range(32, 48)],
        "k": [*range(16, 24), *range(48, 56)],
        "v": [*range(24, 32), *range(56, 64)],
    }


# --- never guess ----------------------------------------------------------------------------------------------------


def test_attention_with_more_parameters_is_left_out() -> None:
    module = twin("llama")
    module.model.layers[0].self_attn.register_parameter("sinks", nn.Parameter(torch.zeros(HEADS)))  # type: ignore[union-attr, index]
    blocks = language(module).blocks
    assert blocks[0].attention is None and blocks[1].attention is not None


def test_ffn_with_a_norm_inside_is_left_out() -> None:
    module = twin("llama")
    module.model.layers[0].mlp.ffn_norm = nn.RMSNorm(64)  # type: ignore[union-attr, index]
    assert language(module).blocks[0].ffn is None


@pytest.mark.parametrize(
    ("path", "sizes"),
    [
        ("mlp.down_proj", (60, WIDTH)),
        ("mlp.down_proj", (64, 24)),
        ("mlp.gate_proj", (WIDTH, 60)),
        ("self_attn.q_proj", (WIDTH, 64)),
        ("self_attn.k_proj", (WIDTH, 16)),
        ("self_attn.k_proj", (24, WIDTH)),
        ("self_attn.o_proj", (20, WIDTH)),
    ],
)
def test_sizes_that_do_not_agree_are_left_out(path: str, sizes: tuple[int, int]) -> None:
    module = twin("llama")
    owner, _, name = path.partition(".")
    setattr(module.get_submodule(f"model.layers.0.{owner}"), name, nn.Linear(*sizes))
    block = language(module).blocks[0]
    assert (block.ffn if owner == "mlp" else block.attention) is None


def test_a_module_without_blocks_has_no_stacks() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    assert detect(module) == Anatomy()


# --- several stacks -------------------------------------------------------------------------------------------------


def test_encoder_and_decoder() -> None:
    import transformers

    config = transformers.BartConfig(
        vocab_size=96,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=48,
        max_position_embeddings=32,
    )
    with torch.device("meta"):
        stacks = detect(transformers.BartForConditionalGeneration(config)).stacks
    assert {name: stack.path for name, stack in stacks.items()} == {
        "language": "model.decoder.layers",
        "encoder": "model.encoder.layers",
    }
    assert [stack.blocks[0].ffn and stack.blocks[0].ffn.width for stack in stacks.values()] == [48, 64]
    attention = stacks["language"].blocks[0].attention
    assert attention is not None and attention.path.endswith("self_attn")


def test_vision_and_language() -> None:
    import transformers

    text = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
    )
    with torch.device("meta"):
        module = transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=95)
        )
    anatomy = detect(module)
    assert [(name, stack.width, len(stack.blocks)) for name, stack in anatomy.stacks.items()] == [
        ("language", 32, 2),
        ("vision", 24, 3),
    ]
    assert anatomy.layers["projector"] == tuple(f"model.multi_modal_projector.linear_{i}" for i in (1, 2))
    assert anatomy.head == "lm_head"
    assert anatomy.stacks["language"].head == "lm_head" and anatomy.stacks["vision"].head is None


def test_albert_keeps_its_norm_inside_its_attention() -> None:
    """Its layers are one block that is run several times, or as many as it has groups."""
    import transformers

    config = transformers.AlbertConfig(
        vocab_size=64,
        embedding_size=16,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        num_hidden_groups=2,
    )
    stack = detect(transformers.AlbertForMaskedLM(config)).stacks["language"]
    assert len(stack.blocks) == 2 and stack.width == 32
    for block in stack.blocks:
        assert block.attention and block.attention.heads == 4 and block.ffn and block.ffn.up.units == 48
        assert any(norm.endswith("attention.LayerNorm") for norm in block.norms)
