"""Phi-3-small: fused rows, gegelu, muP multipliers, and attention in blocks that skips most of a long text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_compress
from slm.models import checks
from torch import Tensor
from zoo_slm.models.phi3_small import Phi3SmallConfig, Phi3SmallForCausalLM, block_pattern, gegelu

import zoo
from zoo.errors import RequestError

# The published config of the 8k model, as the catalogue has it.
FILE: dict[str, Any] = {
    "model_type": "phi3small",
    "architectures": ["Phi3SmallForCausalLM"],
    "hidden_size": 4096,
    "ff_intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 100352,
    "max_position_embeddings": 8192,
    "rope_embedding_base": 1000000,
    "rope_position_scale": 1.0,
    "hidden_act": "gegelu",
    "gegelu_limit": 20.0,
    "gegelu_pad_to_256": True,
    "norm": "layernorm",
    "layer_norm_epsilon": 1e-05,
    "tie_word_embeddings": True,
    "linear_bias": True,
    "mup_use_scaling": True,
    "mup_embedding_multiplier": 10.0,
    "mup_attn_multiplier": 1.0,
    "mup_width_multiplier": 8.0,
    "blocksparse_block_size": 64,
    "blocksparse_num_local_blocks": 16,
    "blocksparse_vert_stride": 8,
    "blocksparse_homo_head_pattern": False,
    "dense_attention_every_n_layers": 2,
    "embedding_dropout_prob": 0.1,
    "ffn_dropout_prob": 0.1,
}
# Blocks of 2 tokens, 2 of them local, every third further one: at 40 tokens a query sees about half of what it could.
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "ff_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "blocksparse_block_size": 2,
    "blocksparse_num_local_blocks": 2,
    "blocksparse_vert_stride": 3,
    "embedding_dropout_prob": 0.0,
    "ffn_dropout_prob": 0.0,
    "gegelu_limit": 0.7,
}
LONG = 40


@pytest.fixture(scope="module")
def model() -> Any:
    return checks.tiny(Phi3SmallForCausalLM, Phi3SmallConfig(**SMALL))


# --- the reference ----------------------------------------------------------------------------------------------------


def sees(config: Phi3SmallConfig, layer: int, head: int, i: int, j: int) -> bool:
    """Whether the query at place i sees the key at place j: the formula, with layers counted from 0."""
    block = config.blocksparse_block_size
    if j > i:
        return False
    if config.dense_attention_every_n_layers and (layer + 1) % config.dense_attention_every_n_layers == 0:
        return True
    shift = (
        0
        if config.blocksparse_homo_head_pattern
        else head * max(1, config.blocksparse_vert_stride // config.num_attention_heads)
    )
    local = i // block - j // block < config.blocksparse_num_local_blocks
    return local or (j // block + shift + 1) % config.blocksparse_vert_stride == 0


def reference(model: Any, row: Tensor) -> Tensor:
    """The logits (T, vocabulary) of one text, head by head and query by query."""
    config, tensors = model.config, model.state_dict()
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    frequencies = checks.rotary_frequencies(size, 1_000_000.0)
    table = tensors["model.embed_tokens.weight"]
    h = table[row] * 10
    for layer in range(config.num_hidden_layers):
        part = f"model.layers.{layer}."

        def linear(x: Tensor, name: str, part: str = part) -> Tensor:
            return x @ tensors[f"{part}{name}.weight"].T + tensors[f"{part}{name}.bias"]

        rows = linear(_norm(h, tensors, part + "input_layernorm"), "self_attn.query_key_value").split(size, dim=1)
        mixed = []
        for head in range(heads):
            shared = heads // groups
            start = head // shared * (shared + 2)  # where the rows of this head's group begin
            q, k, v = rows[start + head % shared], rows[start + shared], rows[start + shared + 1]
            q, k = checks.rotated(q, frequencies), checks.rotated(k, frequencies)
            out = []
            for i in range(len(row)):
                seen = [j for j in range(len(row)) if sees(config, layer, head, i, j)]
                out.append(((k[seen] @ q[i]) / size).softmax(0) @ v[seen])
            mixed.append(torch.stack(out))
        h = h + linear(torch.cat(mixed, dim=1), "self_attn.dense")
        up = linear(_norm(h, tensors, part + "post_attention_layernorm"), "mlp.up_proj")
        gated = torch.stack(
            [_gegelu(up[:, 2 * c], up[:, 2 * c + 1], config.gegelu_limit) for c in range(config.ff_intermediate_size)],
            dim=1,
        )
        h = h + linear(gated, "mlp.down_proj")
    return _norm(h, tensors, "model.final_layernorm") @ table.T / 8


def _norm(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * tensors[f"{name}.weight"]
        + tensors[f"{name}.bias"]
    )


def _gegelu(a: Tensor, b: Tensor, limit: float) -> Tensor:
    a, b = (
        torch.minimum(a, torch.tensor(limit)),
        torch.maximum(torch.minimum(b, torch.tensor(limit)), torch.tensor(-limit)),
    )
    return a / (1 + torch.exp(-1.702 * a)) * (b + 1)


# --- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"blocksparse_homo_head_pattern": True},
        {"blocksparse_vert_stride": 8},
        {"dense_attention_every_n_layers": None},
    ],
    ids=str,
)
def test_logits_are_those_of_the_formulas(change: dict[str, Any]) -> None:
    model = checks.tiny(Phi3SmallForCausalLM, Phi3SmallConfig(**{**SMALL, **change}))
    ids = checks.tokens(model, batch=1, length=LONG)
    checks.near(checks.logits(model, ids)[0], reference(model, ids[0]))


def test_blocks_are_those_of_the_picture() -> None:
    """Six blocks of one token, two local, every third column; each head's columns lie one to the left of the last's."""
    config = Phi3SmallConfig(**{**SMALL, "blocksparse_block_size": 1})
    found = (
        block_pattern(torch.arange(6)[None], config, first=0, queries=6)[0] & torch.ones(6, 6, dtype=torch.bool).tril()
    )
    pictures = ["".join(".x"[int(cell)] for cell in head.flatten()) for head in found]
    assert pictures[0] == "".join(("x.....", "xx....", ".xx...", "..xx..", "..xxx.", "..x.xx"))
    assert pictures[1] == "".join(("x.....", "xx....", ".xx...", ".xxx..", ".x.xx.", ".x..xx"))
    assert pictures[2] == "".join(("x.....", "xx....", "xxx...", "x.xx..", "x..xx.", "x..xxx"))
    assert pictures[3] == pictures[0]


def test_a_layer_leaves_out_what_a_dense_one_sees(model: Any) -> None:
    """Odd layers (from 1) are sparse, even ones dense."""
    assert [layer.stride for layer in model.model.layers] == [3, 0, 3]
    dense = checks.tiny(Phi3SmallForCausalLM, Phi3SmallConfig(**{**SMALL, "dense_attention_every_n_layers": 1}))
    ids = checks.tokens(model, length=LONG)
    short, long = ((checks.logits(m, ids[:, :4]), checks.logits(m, ids)) for m in (model, dense))
    checks.near(short[0], long[0])  # 4 tokens are two blocks: all local
    with pytest.raises(AssertionError, match="differs by"):
        checks.near(short[1], long[1])


def test_gegelu_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 30.0, -30.0, -1.0, 0.0], dtype=torch.float64)
    silu = [a / (1 + torch.exp(torch.tensor(-1.702 * a, dtype=torch.float64))) for a in (1.0, 20.0, -1.0)]
    torch.testing.assert_close(gegelu(x, 20.0), torch.stack([3 * silu[0], -19 * silu[1], silu[2]]))
    assert gegelu(x, None)[1] == pytest.approx(-29 * 30.0)


def test_cached_decoding_equals_a_whole_pass(model: Any) -> None:
    checks.cached_equals_full(model, length=LONG)
    checks.generates_greedily(model)


def test_a_padded_row_is_as_alone(model: Any) -> None:
    checks.padded_equals_alone(model)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_blocks_are_counted_over_real_tokens(model: Any, side: str, attention: str) -> None:
    """An odd number of padding tokens would shift every block by one; the text goes on with a cache, too."""
    lengths = (LONG, 27, 6)
    rows = [checks.tokens(model, batch=1, length=length, seed=length)[0] for length in lengths]
    ids, mask = torch.zeros(3, LONG, dtype=torch.long), torch.zeros(3, LONG, dtype=torch.long)
    for n, row in enumerate(rows):
        place = slice(LONG - len(row), None) if side == "left" else slice(0, len(row))
        ids[n, place], mask[n, place] = row, 1
    asked = checks.tiny(Phi3SmallForCausalLM, Phi3SmallConfig(**SMALL), dtype=torch.float32)
    asked.set_attn_implementation(attention)
    found = checks.logits(asked, ids, attention_mask=mask)
    for n, row in enumerate(rows):
        checks.near(found[n][mask[n] == 1], checks.logits(model, row[None])[0], 1e-4)
    if side == "left":
        with torch.no_grad():
            start = asked(input_ids=ids[:, :-2], attention_mask=mask[:, :-2], use_cache=True)
            rest = asked(input_ids=ids[:, -2:], attention_mask=mask, cache=start.cache, use_cache=True)
        checks.near(rest.logits, found[:, -2:], 1e-4)


def test_a_static_cache_gives_the_same(model: Any) -> None:
    ids = checks.tokens(model, length=19)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    asked = {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(ids, **asked), model.generate(ids, **asked, cache_implementation="static", disable_compile=True)
    )


def test_attention_implementations_agree(model: Any) -> None:
    checks.eager_equals_sdpa(model)


def test_gradients_reach_every_parameter(model: Any) -> None:
    checks.gradients_reach_all(model)


def test_checkpointing_keeps_the_gradients(model: Any) -> None:
    checks.checkpointing_keeps_gradients(model)


def test_bfloat16_is_near(model: Any) -> None:
    checks.bf16_is_near(model)


def test_embeddings_that_are_given_are_scaled_as_the_table_is(model: Any) -> None:
    ids = checks.tokens(model)
    with torch.no_grad():
        found = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
    checks.near(found, checks.logits(model, ids))


def test_weights_and_hidden_states_are_given_when_asked(model: Any) -> None:
    ids = checks.tokens(model)
    single = checks.tiny(Phi3SmallForCausalLM, Phi3SmallConfig(**SMALL), dtype=torch.float32)
    single.set_attn_implementation("eager")
    with torch.no_grad():
        found = single(input_ids=ids, output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in found.attentions] == [(2, 4, 12, 12)] * 3
    assert len(found.hidden_states) == 4


def test_saved_and_loaded_is_the_same(model: Any, tmp_path: Path) -> None:
    loaded = checks.roundtrip(model, tmp_path / "saved")
    assert loaded.module.config.rope_parameters == model.config.rope_parameters


def test_kept_layers_stay_as_sparse_as_they_were(model: Any, tmp_path: Path) -> None:
    """The first and the third layer make a model whose second layer is sparse; no config says that, and none claims it."""
    cut = zoo_compress.apply(checks.as_model(model), "inherit", {"layers": [0, 2]})
    assert [layer.stride for layer in cut.module.model.layers] == [3, 3]
    cut.save(tmp_path / "cut")
    assert not (tmp_path / "cut" / "config.json").exists()
    ids = checks.tokens(model, length=LONG)
    assert torch.equal(checks.logits(zoo.load(tmp_path / "cut").module, ids), checks.logits(cut.module, ids))


@pytest.mark.parametrize("length", [8192, 131072])
def test_parameters_at_full_shape(length: int) -> None:
    assert checks.params({**FILE, "max_position_embeddings": length}) == 7_392_272_384


def test_defaults_are_the_smallest_published() -> None:
    ours, told = (
        Phi3SmallConfig().to_dict(),
        Phi3SmallConfig(**{k: v for k, v in FILE.items() if k != "model_type"}).to_dict(),
    )
    assert {key: told[key] for key in ours if key != "architectures"} == {
        key: ours[key] for key in ours if key != "architectures"
    }


def test_a_published_checkpoint_loads(model: Any, tmp_path: Path) -> None:
    """With the names that the public runtime reads, and the tied head left out."""
    tensors = {name: tensor.float() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    ours = (
        "self_attn.query_key_value",
        "self_attn.dense",
        "mlp.up_proj",
        "mlp.down_proj",
        "input_layernorm",
        "post_attention_layernorm",
    )
    assert sorted(tensors) == sorted(
        ["model.embed_tokens.weight", "model.final_layernorm.weight", "model.final_layernorm.bias"]
        + [f"model.layers.{layer}.{name}.{kind}" for layer in range(3) for name in ours for kind in ("weight", "bias")]
    )
    config = {
        **FILE,
        **SMALL,
        "torch_dtype": "float32",
        "auto_map": {"AutoModelForCausalLM": "modeling_phi3_small.Phi3SmallForCausalLM"},
    }
    loaded = zoo.load(checks.write_checkpoint(tmp_path / "hub", config, tensors))
    assert type(loaded.module) is Phi3SmallForCausalLM
    assert loaded.module.lm_head.weight is loaded.module.model.embed_tokens.weight
    ids = checks.tokens(model, length=LONG)
    checks.near(checks.logits(loaded.module, ids), checks.logits(model, ids))


# --- positions of the 128k model ---------------------------------------------------------------------------------------


def test_factors_of_a_config_are_followed() -> None:
    """A made-up list: 2 for short texts, 4 for long ones, and a multiplier of 1.5 on both tables."""
    scaling = {
        "type": "su",
        "short_factor": [2.0] * 4,
        "long_factor": [4.0] * 4,
        "short_mscale": 1.5,
        "long_mscale": 1.5,
        "original_max_position_embeddings": 16,
    }
    rotary = checks.tiny(Phi3SmallForCausalLM, Phi3SmallConfig(**SMALL, rope_scaling=scaling)).model.rotary_emb
    angles = checks.rotary_frequencies(8, 1_000_000.0)
    for length, factor in ((16, 2), (17, 4)):
        cos, sin = rotary(torch.zeros(1, dtype=torch.float64), torch.arange(length)[None])
        torch.testing.assert_close(cos[0, 5, :4], 1.5 * torch.cos(5 * angles / factor), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sin[0, 5, 4:], 1.5 * torch.sin(5 * angles / factor), rtol=1e-5, atol=1e-6)


def test_without_factors_positions_are_plain() -> None:
    assert Phi3SmallConfig(max_position_embeddings=131072).rope_parameters == {
        "rope_theta": 1_000_000,
        "rope_type": "default",
    }
    assert Phi3SmallConfig(rope_position_scale=4.0).rope_parameters == {
        "rope_theta": 1_000_000,
        "rope_type": "linear",
        "factor": 4.0,
    }


@pytest.mark.parametrize(
    ("scaling", "says"),
    [
        ({"type": "yarn", "factor": 4.0}, "rope_scaling of type 'yarn' is not one Phi-3-small is known with"),
        ({"type": "longrope"}, "longrope, with short_factor and long_factor"),
        (
            {
                "type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [1.0] * 4,
                "short_mscale": 1.0,
                "long_mscale": 1.2,
            },
            "two multipliers, 1.0 and 1.2",
        ),
    ],
)
def test_other_scalings_are_refused(scaling: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        checks.params({**FILE, "rope_scaling": scaling})


@pytest.mark.parametrize(
    ("change", "says"), [({"hidden_act": "silu"}, "has gegelu"), ({"num_key_value_heads": 5}, "cannot share 5")]
)
def test_sizes_that_do_not_go_together_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        checks.params({**FILE, **change})
