"""The model: pixel shuffle, where image features go, and the whole forward pass, each against a reference written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from toy_vlm import toy
from zoo_h2ovl.model import pixel_shuffle

import zoo
from zoo.anatomy.modules import config_of
from zoo.errors import RequestError

pytestmark = pytest.mark.quick


def shuffled_by_hand(patches_NPC):
    """Version 2 as the published code has it, view by view (facts/vision-language.md, 2.1), for any grid."""
    count, patches, width = patches_NPC.shape
    across = int(patches**0.5)
    x = patches_NPC.view(count, across, across // 2, width * 2).permute(0, 2, 1, 3).contiguous()
    x = x.view(count, across // 2, across // 2, width * 4).permute(0, 2, 1, 3).contiguous()
    return x.view(count, -1, width * 4)


def attend(x_BTC, q, k, v, heads, mask=None):
    """Softmax attention, head by head."""
    out = []
    for q_h, k_h, v_h in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
        scores = q_h @ k_h.transpose(-1, -2) / q_h.shape[-1] ** 0.5
        out.append((scores if mask is None else scores + mask).softmax(-1) @ v_h)
    return torch.cat(out, dim=-1)


def tower_by_hand(state, pixels, *, heads, blocks, patch):
    """InternViT: class token, positions, pre-norm blocks with layer scale, no final norm."""
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)  # noqa: E731
    line = lambda x, name: x @ state[f"{name}.weight"].T + state[f"{name}.bias"]  # noqa: E731
    x = (
        F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
        .flatten(2)
        .transpose(1, 2)
    )
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
    for i in range(blocks):
        q, k, v = line(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, dim=-1)
        x = x + line(attend(x, q, k, v, heads), f"blocks.{i}.attn.proj") * state[f"blocks.{i}.ls1.gamma"]
        inner = F.gelu(line(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + line(inner, f"blocks.{i}.mlp.fc2") * state[f"blocks.{i}.ls2.gamma"]
    return x[:, 1:]


def rotated(x_BTHK, theta):
    """Rotary positions, halves rotated against each other."""
    width = x_BTHK.shape[-1]
    angles = torch.arange(x_BTHK.shape[1])[:, None] / theta ** (torch.arange(0, width, 2) / width)
    cos, sin = (torch.cat([f(angles), f(angles)], dim=-1)[None, :, None] for f in (torch.cos, torch.sin))
    left, right = x_BTHK.chunk(2, dim=-1)
    return x_BTHK * cos + torch.cat([-right, left], dim=-1) * sin


def decoder_by_hand(state, x, *, heads, kv_heads, blocks, theta):
    """Llama: RMSNorm, rotary grouped-query attention, SwiGLU, an untied head."""
    norm = lambda x, name: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * state[f"{name}.weight"]  # noqa: E731
    length = x.shape[1]
    mask = torch.full((length, length), float("-inf")).triu(1)
    for i in range(blocks):
        place = f"model.layers.{i}"
        h = norm(x, f"{place}.input_layernorm")
        q, k, v = (
            (h @ state[f"{place}.self_attn.{n}_proj.weight"].T).unflatten(-1, (m, -1))
            for n, m in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q, k = rotated(q, theta), rotated(k, theta)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=2) for t in (k, v))
        mixed = attend(x, q.flatten(2), k.flatten(2), v.flatten(2), heads, mask)
        x = x + mixed @ state[f"{place}.self_attn.o_proj.weight"].T
        h = norm(x, f"{place}.post_attention_layernorm")
        gate, up = (h @ state[f"{place}.mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ state[f"{place}.mlp.down_proj.weight"].T
    return norm(x, "model.norm") @ state["lm_head.weight"].T


def part(model, name):
    return {
        key.removeprefix(f"{name}."): t.detach()
        for key, t in model.module.state_dict().items()
        if key.startswith(f"{name}.")
    }


def test_pixel_shuffle_is_the_published_one():
    patches_NPC = torch.randn(2, 64, 6)
    torch.testing.assert_close(pixel_shuffle(patches_NPC, 2), shuffled_by_hand(patches_NPC), rtol=0, atol=0)
    first = pixel_shuffle(torch.arange(16.0).view(1, 16, 1), 2)[0, 0]
    assert first.tolist() == [0, 1, 4, 5]  # the square at the top left of a 4 x 4 grid, row by row


@pytest.mark.parametrize("name", ["", "h2ovl-mississippi-800m", "h2ovl-mississippi-2b"])
def test_the_whole_forward_pass_is_the_one_written_out(name):
    """Of a toy and of the twins, whose decoders are a Llama and a Mistral: without a window they compute the same."""
    model = zoo.load(name, scale="tiny", weights="random") if name else toy()
    tower, decoder = (model.spec.config[key] for key in ("vision_config", "llm_config"))
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():  # gains and biases that are not 1 and 0
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    batch = model.family.example(model, batch=2, size=12, seed=3)
    vision, projector, language = (part(model, name) for name in ("vision", "projector", "language"))
    patches = tower_by_hand(
        vision, batch["pixel_values"], heads=tower["num_attention_heads"], blocks=tower["num_hidden_layers"], patch=8
    )
    x = F.layer_norm(shuffled_by_hand(patches), (4 * tower["hidden_size"],), projector["0.weight"], projector["0.bias"])
    x = F.gelu(x @ projector["1.weight"].T + projector["1.bias"]) @ projector["3.weight"].T + projector["3.bias"]
    embedded = language["model.embed_tokens.weight"][batch["input_ids"]].clone()
    for row in range(2):
        embedded[row, :4] = x[row]  # the example begins with the four tokens of one tile
    expected = decoder_by_hand(
        language,
        embedded,
        heads=decoder["num_attention_heads"],
        kv_heads=decoder["num_key_value_heads"],
        blocks=decoder["num_hidden_layers"],
        theta=decoder["rope_theta"],
    )
    # float32 sums in another order
    torch.testing.assert_close(model.family.forward(model, batch).detach(), expected, rtol=1e-4, atol=1e-5)


def test_image_features_go_where_the_image_tokens_are_in_order():
    model = toy()
    module, token = model.module, model.spec.config["img_context_token_id"]
    ids = torch.tensor([[5, *[token] * 4, 6, 7, 8, 9, 10], [*[token] * 4, 11, *[token] * 4, 12]])  # one tile, then two
    pixels = torch.randn(3, 3, 32, 32)
    features, plain, found = (
        module.image_features(pixels),
        module.get_input_embeddings()(ids),
        module.embed(ids, pixels),
    )
    expected = [[plain[0, 0], *features[0], *plain[0, 5:]], [*features[1], plain[1, 4], *features[2], plain[1, 9]]]
    for row in range(2):
        torch.testing.assert_close(found[row], torch.stack(expected[row]), rtol=0, atol=0)


@pytest.mark.parametrize("count", [3, 5, 8])
def test_another_number_of_image_tokens_is_refused(count):
    model = toy()
    ids = torch.tensor([[model.spec.config["img_context_token_id"]] * count + [5]])
    with pytest.raises(RequestError, match=rf"has {count} <IMG_CONTEXT> tokens, but 1 tiles of 4 tokens"):
        model.module(input_ids=ids, pixel_values=torch.zeros(1, 3, 32, 32))


def test_anatomy_has_a_tower_a_projector_and_a_language_model():
    model = toy()
    anatomy = model.anatomy
    assert set(anatomy.stacks) == {"vision", "language"}
    assert anatomy.layers["projector"] == ("projector.1", "projector.3")
    assert anatomy.head == "language.lm_head"
    assert all(block.attention and block.ffn for stack in anatomy.stacks.values() for block in stack.blocks)
    assert config_of(model.module, "language.model.layers").model_type == "llama"


def test_padding_on_either_side_leaves_the_logits_of_real_tokens_as_they_are():
    model = toy()
    batch = model.family.example(model, batch=1, size=10)
    alone = model.family.forward(model, batch)
    for left, right in ((3, 0), (0, 3), (2, 2)):
        ids = F.pad(batch["input_ids"], (left, right))
        mask = F.pad(torch.ones_like(batch["input_ids"]), (left, right))
        padded = model.family.forward(
            model, {"input_ids": ids, "attention_mask": mask, "pixel_values": batch["pixel_values"]}
        )
        torch.testing.assert_close(padded[:, left : left + 10], alone, rtol=1e-4, atol=1e-5)


def test_every_parameter_has_a_gradient():
    model = toy()
    model.module.requires_grad_(True)
    model.family.forward(model, model.family.example(model)).square().mean().backward()
    assert [name for name, p in model.module.named_parameters() if p.grad is None] == []
