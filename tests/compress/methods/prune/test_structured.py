"""Structured pruning: a pruned model equals the original with the removed parts silenced, in every architecture.

Tolerance: float32 sums over at most 128 terms in another order; 2e-5 absolute on logits of size about 1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import stages
import torch
from torch import Tensor, nn
from twins import CAUSAL, HEADS, TWINS, WIDTH, tokens, twin, twin_model
from zoo_compress.methods.prune import structured
from zoo_compress.methods.prune.structured import PruneStructured
from zoo_slm.language import TransformersText

import zoo
from zoo.data.dataset import Dataset, Sample
from zoo.errors import ArtifactError, Refused, UnknownName
from zoo.family import Batch
from zoo.model.context import Context
from zoo.model.lineage import Record, Trait
from zoo.model.model import Model

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
STAGE = PruneStructured()

# Where each architecture reads FFN channels and heads back, written out by hand: what a silenced original zeroes.
DOWN = {
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "gpt-neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "opt": "model.decoder.layers.{}.fc2",
    "bert": "bert.encoder.layer.{}.output.dense",
    "falcon": "transformer.h.{}.mlp.dense_4h_to_h",
    "mixtral": "model.layers.{}.mlp.experts",
}
OUT = {
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gpt-neox": "gpt_neox.layers.{}.attention.dense",
    "opt": "model.decoder.layers.{}.self_attn.out_proj",
    "bert": "bert.encoder.layer.{}.attention.output.dense",
    "falcon": "transformer.h.{}.self_attention.dense",
}
LAYERS = {
    "gpt2": "transformer.h",
    "gpt-neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "bert": "bert.encoder.layer",
    "falcon": "transformer.h",
}
GROUPED = [name for name in TWINS if name not in ("llama", "gpt2", "gpt-neox", "opt", "bert", "falcon")]
MULTI_HEAD = ["llama", "gpt2", "gpt-neox", "opt", "bert"]
# A norm over all heads (OLMo 2) sees fewer entries when heads go: pruned runs, but is not the silenced original.
EXACT_HEADS = [name for name in TWINS if name != "olmo2"]
KINDS: dict[str, dict[str, object]] = {
    "ffn": {"ffn": 0.5},
    "heads": {"heads": 2},
    "width": {"width": 24},
    "all": {"ffn": 40, "heads": 2, "width": 24},
}


def prune(model: Model, *, context: Context | None = None, **options: object) -> Record:
    return STAGE.apply(model, STAGE.Options(**options), context or Context())


def columns(name: str, module: nn.Module, table: dict[str, str], default: str, layer: int) -> Tensor:
    """The reading weight with its inputs along the last axis: (out, in) or (experts, out, in)."""
    found = module.get_submodule(table.get(name, default).format(layer))
    if name == "mixtral" and table is DOWN:
        return found.down_proj  # type: ignore[return-value]
    return found.weight.T if name == "gpt2" else found.weight  # type: ignore[union-attr, return-value]


def down(name: str, module: nn.Module, layer: int) -> Tensor:
    return columns(name, module, DOWN, "model.layers.{}.mlp.down_proj", layer)


def out(name: str, module: nn.Module, layer: int) -> Tensor:
    return columns(name, module, OUT, "model.layers.{}.self_attn.o_proj", layer)


def survivors(whole: Tensor, pruned: Tensor) -> list[int]:
    """Which columns of `whole` (random, so all different) are left in `pruned`."""
    return [int((whole == column[:, None]).all(0).nonzero()) for column in pruned.T]


@torch.no_grad()
def silence(whole: Tensor, kept: Sequence[int]) -> None:
    gone = [index for index in range(whole.shape[-1]) if index not in kept]
    whole[:, gone] = 0


@torch.no_grad()
def silence_ffn(name: str, original: nn.Module, pruned: nn.Module, layers: Sequence[int] = (0, 1)) -> None:
    for layer in layers:
        whole, left = down(name, original, layer), down(name, pruned, layer)
        for one, rest in zip(whole, left, strict=True) if whole.dim() == 3 else [(whole, left)]:
            silence(one, survivors(one, rest))


@torch.no_grad()
def silence_heads(name: str, original: nn.Module, pruned: nn.Module, layers: Sequence[int] = (0, 1)) -> list[list[int]]:
    """Zero what the pruned model no longer reads; return the heads kept per layer."""
    kept = []
    for layer in layers:
        whole, left = out(name, original, layer), out(name, pruned, layer)
        stay = survivors(whole, left)
        size = whole.shape[1] // HEADS
        heads = sorted({index // size for index in stay})
        assert stay == [head * size + i for head in heads for i in range(size)], "heads must go whole and in order"
        silence(whole, stay)
        kept.append(heads)
    return kept


def logits(module: nn.Module, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return module(tokens() if ids is None else ids).logits  # type: ignore[no-any-return]


# --- pruned equals silenced -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWINS)
def test_pruned_channels_equal_silenced_channels(name: str) -> None:
    model, original = twin_model(name), twin(name)
    width = down(name, original, 0).shape[-1]
    prune(model, ffn=0.5)
    assert down(name, model.module, 1).shape[-1] == width // 2
    assert not torch.allclose(logits(model.module), logits(original), **CLOSE)
    silence_ffn(name, original, model.module)
    torch.testing.assert_close(logits(model.module), logits(original), **CLOSE)


@pytest.mark.parametrize("name", EXACT_HEADS)
def test_pruned_heads_equal_silenced_heads(name: str) -> None:
    model, original = twin_model(name), twin(name)
    prune(model, heads=2)
    assert not torch.allclose(logits(model.module), logits(original), **CLOSE)
    for heads in silence_heads(name, original, model.module):
        assert len(heads) == 2
        if name in GROUPED:
            assert heads[0] < 2 <= heads[1], "one query head must stay in each of the two kv groups"
    torch.testing.assert_close(logits(model.module), logits(original), **CLOSE)


@pytest.mark.parametrize("name", [name for name in GROUPED if name != "olmo2"])
def test_pruned_kv_groups_equal_silenced_groups(name: str) -> None:
    model, original = twin_model(name), twin(name)
    record = prune(model, kv_groups=0.5)
    assert record["kept"] == {"heads": [2, 2], "kv_heads": [1, 1]}
    for heads in silence_heads(name, original, model.module):
        assert heads in ([0, 1], [2, 3])
    torch.testing.assert_close(logits(model.module), logits(original), **CLOSE)


@pytest.mark.parametrize("name", MULTI_HEAD)
def test_a_multi_head_group_is_one_head(name: str) -> None:
    model, other = twin_model(name), twin_model(name)
    assert prune(model, kv_groups=3) == prune(other, heads=3)
    assert torch.equal(logits(model.module), logits(other.module))


@pytest.mark.parametrize("name", EXACT_HEADS)
def test_only_the_targeted_blocks_change(name: str) -> None:
    model, original = twin_model(name), twin(name)
    config = model.module.config.to_dict()  # type: ignore[operator, union-attr]
    record = prune(model, target="language.blocks[1:]", ffn=0.25, heads=0.5)
    assert record["kept"]["heads"] == [2] and len(record["kept"]["ffn"]) == 1
    assert model.module.config.to_dict() == config  # type: ignore[operator, union-attr]
    silence_ffn(name, original, model.module, [1])
    silence_heads(name, original, model.module, [1])
    torch.testing.assert_close(logits(model.module), logits(original), **CLOSE)
    layers = LAYERS.get(name, "model.layers")
    for key, tensor in original.state_dict().items():
        if f"{layers}.0." in key:
            assert torch.equal(tensor, model.module.state_dict()[key])


@pytest.mark.parametrize("name", TWINS)
def test_width_keeps_one_index_set_everywhere(name: str) -> None:
    """Every tensor with a residual axis is the original's, cut by the same 24 indices; nothing else changes."""
    model, original = twin_model(name), twin(name)
    prune(model, width=24)
    table = model.module.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    kept = survivors(original.get_input_embeddings().weight, table)  # type: ignore[operator, union-attr]
    assert len(kept) == 24 and kept == sorted(kept)
    before = dict(original.named_parameters())
    for path, parameter in model.module.named_parameters():
        expected = before[path]
        for axis, size in enumerate(parameter.shape):
            if size != expected.shape[axis]:
                assert (expected.shape[axis], size) == (WIDTH, 24), path
                expected = expected.index_select(axis, torch.tensor(kept))
        assert torch.equal(parameter, expected), path
        assert parameter.dim() > 1 or parameter.shape[0] != WIDTH or "attn" in path or "attention" in path, path
    assert logits(model.module).isfinite().all()


# --- what every pruned model must still do --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CAUSAL)
def test_cached_logits_equal_uncached(name: str, kind: str) -> None:
    model = twin_model(name)
    prune(model, **KINDS[kind])
    ids = tokens(length=10)
    with torch.no_grad():
        prefill = model.module(ids[:, :7], use_cache=True)
        steps = [prefill.logits]
        for position in range(7, 10):
            step = model.module(ids[:, position : position + 1], cache=prefill.cache, use_cache=True)
            steps.append(step.logits)
    torch.testing.assert_close(torch.cat(steps, 1), logits(model.module, ids), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TWINS)
def test_every_parameter_still_gets_a_gradient(name: str, kind: str) -> None:
    model = twin_model(name)
    prune(model, **KINDS[kind])
    model.module(tokens()).logits.square().mean().backward()
    assert [path for path, parameter in model.module.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TWINS)
def test_rebuilt_model_is_bit_identical(name: str, kind: str) -> None:
    model = twin_model(name)
    planned = STAGE.outline(twin_model(name, device="meta"), STAGE.Options(**KINDS[kind]))
    record = prune(model, **KINDS[kind])
    assert planned == record
    empty = twin_model(name, device="meta")
    STAGE.rebuild(empty, record)
    assert {p: t.shape for p, t in empty.tensors().items()} == {p: t.shape for p, t in model.tensors().items()}
    assert empty.aliases() == model.aliases()
    fresh = twin_model(name, seed=1)
    STAGE.rebuild(fresh, record)
    for other in (empty, fresh):
        assert other.params == model.params
        assert other.module.config.to_dict() == model.module.config.to_dict()  # type: ignore[operator, union-attr]
        assert numbers(other.module) == numbers(model.module)
    fresh.module.load_state_dict(model.module.state_dict())
    assert torch.equal(logits(fresh.module), logits(model.module))


def numbers(module: nn.Module) -> dict[str, dict[str, object]]:
    return {
        path: {k: v for k, v in vars(part).items() if isinstance(v, int | float | tuple | str) and k[0] != "_"}
        for path, part in module.named_modules()
    }


# A width or head count that the config of these does not allow for: they derive the head size from both.
PLAIN = {
    "ffn": TWINS,
    "heads": ("llama", "llama-gqa", "llama-tied", "qwen2", "qwen3", "gemma2", "olmo2", "phi3", "mixtral"),
    "width": ("llama", "llama-gqa", "llama-tied", "qwen2", "qwen3", "olmo2", "phi3", "mixtral"),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in PLAIN for name in TWINS])
def test_config_describes_the_result_where_it_can(name: str, kind: str, tmp_path: object) -> None:
    import transformers

    model = twin_model(name)
    prune(model, **KINDS[kind])
    reason = model.family.write_foreign(model, tmp_path)  # type: ignore[arg-type]
    assert (reason == "") == (name in PLAIN[kind]), reason
    if not reason:
        config = transformers.AutoConfig.from_pretrained(tmp_path)
        plain = type(model.module)(config).eval()
        plain.load_state_dict(model.module.state_dict())
        assert torch.equal(logits(plain), logits(model.module))


def test_tied_embedding_stays_tied() -> None:
    for name in ("llama-tied", "gpt2", "opt", "bert", "gemma2"):
        model = twin_model(name)
        prune(model, width=24)
        head, table = model.module.get_output_embeddings(), model.module.get_input_embeddings()  # type: ignore[operator]
        assert head.weight is table.weight  # type: ignore[union-attr]


def test_scales_do_not_change() -> None:
    model = twin_model("gemma2")
    attention = model.module.model.layers[0].self_attn  # type: ignore[union-attr, index]
    before = (attention.scaling, float(model.module.model.embed_tokens.embed_scale))  # type: ignore[union-attr, arg-type]
    prune(model, heads=2, width=24)
    assert (attention.scaling, float(model.module.model.embed_tokens.embed_scale)) == before  # type: ignore[union-attr, arg-type]


def test_shared_ffn_is_pruned_once() -> None:
    model = twin_model("llama")
    layers = model.module.model.layers  # type: ignore[union-attr]
    layers[1].mlp = layers[0].mlp  # type: ignore[index, union-attr]
    original = copy.deepcopy(model.module)
    before = model.params
    prune(model, ffn=0.5)
    assert layers[1].mlp is layers[0].mlp  # type: ignore[index, union-attr]
    assert before - model.params == 3 * 32 * WIDTH
    silence_ffn("llama", original, model.module, [0])
    torch.testing.assert_close(logits(model.module), logits(original), **CLOSE)


def test_stages_follow_one_another() -> None:
    """A second pruning sees the first one's sizes, and both replay on an empty module."""
    model = twin_model("phi3")
    records = [prune(model, target="language.blocks[0]", heads=2), prune(model, kv_groups=1), prune(model, ffn=16)]
    fresh = twin_model("phi3", seed=1)
    for record in records:
        STAGE.rebuild(fresh, record)
    fresh.module.load_state_dict(model.module.state_dict())
    assert records[1]["found"]["heads"] == [2, 4] and records[1]["kept"]["heads"] == [1, 2]
    assert torch.equal(logits(fresh.module), logits(model.module))


def test_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    prune(twin_model("llama"), ffn=0.5, heads=2, width=24)
    assert torch.equal(before, torch.random.get_rng_state())


# --- which units go -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_magnitude_of_channels_is_the_group_norm() -> None:
    model, original = twin_model("llama-gqa"), twin("llama-gqa")
    prune(model, ffn=16)
    for layer in (0, 1):
        mlp = original.model.layers[layer].mlp  # type: ignore[union-attr, index]
        score = [
            sum(
                float(piece.square().sum())
                for piece in (
                    mlp.gate_proj.weight[i],
                    mlp.gate_proj.bias[i],
                    mlp.up_proj.weight[i],
                    mlp.up_proj.bias[i],
                    mlp.down_proj.weight[:, i],
                )
            )
            for i in range(64)
        ]
        best = sorted(sorted(range(64), key=lambda i: -score[i])[:16])
        assert survivors(down("llama", original, layer), down("llama", model.module, layer)) == best


@torch.no_grad()
def test_magnitude_of_heads_counts_what_would_go() -> None:
    model, original = twin_model("llama"), twin("llama")
    for module in (model.module, original):  # k and v decide: without them head 1 would go
        for name in "kv":
            getattr(module.model.layers[0].self_attn, f"{name}_proj").weight[8:16] *= 3  # type: ignore[union-attr, index]
        module.model.layers[0].self_attn.q_proj.weight[8:16] *= 0.1  # type: ignore[union-attr, index]
    prune(model, heads=1)
    for layer in (0, 1):
        attention = original.model.layers[layer].self_attn  # type: ignore[union-attr, index]
        score = []
        for head in range(HEADS):
            rows = slice(8 * head, 8 * head + 8)
            pieces = [getattr(attention, f"{name}_proj").weight[rows] for name in "qkv"]
            score.append(sum(float(p.square().sum()) for p in [*pieces, attention.o_proj.weight[:, rows]]))
        best = max(range(HEADS), key=score.__getitem__)
        assert survivors(out("llama", original, layer), out("llama", model.module, layer))[0] == 8 * best


@torch.no_grad()
def test_experts_choose_their_own_channels() -> None:
    model, original = twin_model("mixtral"), twin("mixtral")
    prune(model, ffn=16)
    sets = []
    for expert in range(4):
        gate_up = original.model.layers[0].mlp.experts.gate_up_proj[expert]  # type: ignore[union-attr, index]
        reads = down("mixtral", original, 0)[expert]
        score = [
            float(gate_up[i].square().sum() + gate_up[64 + i].square().sum() + reads[:, i].square().sum())
            for i in range(64)
        ]
        sets.append(sorted(sorted(range(64), key=lambda i: -score[i])[:16]))
        assert survivors(reads, down("mixtral", model.module, 0)[expert]) == sets[-1]
    assert sets[0] != sets[1]


class Windowed(TransformersText):
    """The text family with ready-made windows, so that no tokenizer is needed."""

    def windows(self, model: Model, data: Dataset, *, length: int) -> Sequence[Batch]:
        return [{"input_ids": tokens(batch=1, length=length, seed=seed)[0]} for seed in range(3)]


def calibrated(name: str, *, refit: bool = False, **options: object) -> tuple[nn.Module, nn.Module]:
    """(pruned, original) with importance = activation on three windows of 6 tokens."""
    model = twin_model(name)
    model.family = Windowed()
    context = Context(data={"calibration": Dataset("made up", [Sample({"text": "x"}, "here")])})
    prune(model, importance="activation", refit=refit, length=6, context=context, **options)
    return model.module, twin(name)


def seen(module: nn.Module, path: str) -> list[Tensor]:
    """The inputs (tokens, features) of the module at `path` for each of the three windows."""
    inputs: list[Tensor] = []
    handle = module.get_submodule(path).register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()[0]))
    for seed in range(3):
        logits(module, tokens(batch=1, length=6, seed=seed))
    handle.remove()
    return inputs


def test_calibration_is_not_run_through_the_head() -> None:
    """The vocabulary projection costs as much as several blocks, and nothing behind it is looked at."""
    model = stages.small("qwen3", tie_word_embeddings=False)
    calls: dict[str, int] = {"head": 0, "body": 0}

    def count(name: str) -> None:
        calls[name] += 1

    model.module.lm_head.register_forward_hook(lambda *_: count("head"))  # type: ignore[union-attr]
    model.module.model.layers[-1].register_forward_hook(lambda *_: count("body"))  # type: ignore[union-attr, index]
    for use, options in (
        (STAGE.name, {"ffn": 0.25, "width": 0.25, "importance": "activation", "samples": 5}),
        ("lowrank.svd", {"ratio": 0.5, "samples": 5, "batch": 1, "length": 16}),
    ):
        calls.update(head=0, body=0)
        stages.apply(model, use, options, stages.context())
        trial = 8  # of the model before and after: four tokens, two more one by one, and all at once
        assert calls["head"] == trial
        assert calls["body"] > 5 + trial


def silenced_so_far(name: str, kind: str, pruned: nn.Module) -> nn.Module:
    """The original with what block 0 lost silenced: what block 1 then reads."""
    original = twin(name)
    (silence_ffn if kind == "ffn" else silence_heads)(name, original, pruned, [0])
    return original


def test_a_channel_counts_by_what_down_puts_out_for_it() -> None:
    """E[x^2] |w_down|^2, of what block 1 reads once block 0 has been cut."""
    pruned, original = calibrated("llama", ffn=16)
    x_TI = torch.cat(seen(silenced_so_far("llama", "ffn", pruned), "model.layers.1.mlp.down_proj"))
    score = (x_TI.square().mean(0) * down("llama", original, 1).square().sum(0)).tolist()
    best = sorted(sorted(range(64), key=lambda i: -score[i])[:16])
    assert survivors(down("llama", original, 1), down("llama", pruned, 1)) == best


def test_a_head_counts_by_what_o_puts_out_for_it() -> None:
    pruned, original = calibrated("llama-gqa", heads=2)
    x_TI = torch.cat(seen(silenced_so_far("llama-gqa", "heads", pruned), "model.layers.1.self_attn.o_proj"))
    reads = out("llama-gqa", original, 1).detach()
    score = [
        float((x_TI[:, part] @ reads[:, part].T).square().sum())
        for part in (slice(8 * head, 8 * head + 8) for head in range(HEADS))
    ]
    best = [max((0, 1), key=score.__getitem__), max((2, 3), key=score.__getitem__)]
    kept = survivors(reads, out("llama-gqa", pruned, 1))
    assert sorted({index // 8 for index in kept}) == best


def test_activation_of_width_adds_up_the_norms() -> None:
    pruned, original = calibrated("llama", width=8)
    readers = ("layers.0.self_attn.q_proj", "layers.0.mlp.up_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.up_proj")
    total = torch.zeros(WIDTH)
    for path in [*(f"model.{reader}" for reader in readers), "lm_head"]:
        total += torch.stack([x_TD.abs().mean(0) for x_TD in seen(original, path)]).square().sum(0).sqrt()
    score = total.tolist()
    best = sorted(sorted(range(WIDTH), key=lambda i: -score[i])[:8])
    tables = [module.get_input_embeddings().weight for module in (original, pruned)]  # type: ignore[operator, union-attr]
    assert survivors(*tables) == best


def test_a_channel_of_an_expert_counts_by_the_tokens_it_received() -> None:
    pruned, original = calibrated("mixtral", ffn=16)
    experts = original.model.layers[0].mlp.experts  # type: ignore[union-attr, index]
    calls: list[tuple[Tensor, Tensor]] = []
    handle = experts.register_forward_pre_hook(lambda _, args: calls.append((args[0].detach(), args[1])))
    for seed in range(3):
        logits(original, tokens(batch=1, length=6, seed=seed))
    handle.remove()
    for expert in range(4):
        score = torch.zeros(64)
        for x_TD, chosen_TK in calls:
            mine = [x_D for x_D, chosen in zip(x_TD, chosen_TK.tolist(), strict=True) if expert in chosen]
            if mine:
                gate, up = (experts.gate_up_proj[expert] @ torch.stack(mine).T).detach().chunk(2)
                score += (nn.functional.silu(gate) * up).square().sum(1)
        score *= experts.down_proj[expert].detach().square().sum(0)
        best = sorted(score.topk(16).indices.tolist())
        assert survivors(down("mixtral", original, 0)[expert], down("mixtral", pruned, 0)[expert]) == best


@pytest.mark.parametrize("name", TWINS)
def test_activation_runs_on_every_architecture(name: str) -> None:
    pruned, original = calibrated(name, refit=True, ffn=0.5, heads=2, width=24)
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in original.parameters())


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("llama", {"ffn": 65}, "model.layers.0.mlp: FFN channels: asked to keep 65, but there are only 64"),
        ("llama", {"ffn": 0.99}, "removing 99% of 64 (in steps of 8) leaves none"),
        ("llama", {"ffn": 0.01}, "removing 1% of 64 (in steps of 8) removes none"),
        ("llama-gqa", {"heads": 3}, "3 query heads do not fit 2 kv groups of at most 2 heads each; possible: 2, 4"),
        ("llama-gqa", {"heads": 0.9}, "query heads of each of 2 kv groups: removing 90% of 2"),
        ("llama-gqa", {"kv_groups": 3}, "kv groups: asked to keep 3, but there are only 2"),
        ("llama", {"heads": 2, "kv_groups": 3}, "2 query heads do not fit 3 kv groups"),
        ("llama", {"width": 24, "target": "language.blocks[1:]"}, 'use target = "language"'),
        ("llama", {"heads": 2, "target": "language.ffn"}, "leaves out every attention"),
        ("llama", {"ratio": 0.5}, "give ffn, heads, kv_groups or width instead of ratio"),
    ],
)
def test_impossible_sizes_are_refused(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(Refused) as refusal:
        STAGE.check(twin_model(name, device="meta"), {}, STAGE.Options(**options))
    assert words in str(refusal.value)


@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_windows_longer_than_the_context_are_cut_to_it(name: str) -> None:
    """These have a table of 64 positions, and a window has 512 tokens unless a recipe says otherwise."""
    model = stages.small(name)
    stages.apply(model, STAGE.name, {"ffn": 48, "importance": "activation"}, stages.context())
    assert model.family.windows(model, stages.data(), length=512)[0]["input_ids"].shape == (64,)


def test_experts_are_cut_to_sizes_in_which_they_run() -> None:
    for options, words in (({"width": 25}, "residual width 25"), ({"ffn": 50}, "FFN channels 50")):
        with pytest.raises(Refused, match=rf"{words} of experts in float32 must be a multiple of 4; keep (24|48)\."):
            STAGE.check(twin_model("mixtral", device="meta"), {}, STAGE.Options(**options))


def test_unknown_target_is_named() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'language'"):
        STAGE.check(twin_model("llama"), {}, STAGE.Options(target="languag", ffn=0.5))


@pytest.mark.parametrize(
    "options", [{}, {"ratio": 0.5, "ffn": 0.5}, {"ffn": 1.0}, {"ffn": 0}, {"ffn": True}, {"fnn": 1}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        STAGE.Options(**options)


def test_packed_parts_are_refused_with_a_remedy() -> None:
    path = "model.layers.1.mlp.up_proj"
    state = {path: (Trait("packed", "8 bits", "stage 1 (quantize.int8)"),)}
    model = twin_model("llama")
    for options in ({"ffn": 0.5}, {"width": 0.25}):
        with pytest.raises(Refused, match=r"Put prune.structured before quantize.int8"):
            STAGE.check(model, state, STAGE.Options(**options))
    STAGE.check(model, state, STAGE.Options(heads=2))
    STAGE.check(model, state, STAGE.Options(ffn=0.5, target="language.blocks[0]"))


def test_packed_experts_are_refused() -> None:
    state = {"model.layers.1.mlp.experts": (Trait("packed", "8 bits"),)}
    with pytest.raises(Refused, match="experts is packed"):
        STAGE.check(twin_model("mixtral"), state, STAGE.Options(ffn=0.5))


def test_unknown_residual_parameter_is_refused() -> None:
    model = twin_model("llama")
    model.module.model.layers[0].register_parameter("gamma", nn.Parameter(torch.ones(WIDTH)))  # type: ignore[union-attr, index]
    with pytest.raises(Refused, match=r"model.layers.0.gamma \(32,\) may touch the residual stream"):
        STAGE.check(model, {}, STAGE.Options(width=24))
    STAGE.check(model, {}, STAGE.Options(ffn=0.5))


def test_alibi_heads_are_refused() -> None:
    model = twin_model("falcon", alibi=True)
    with pytest.raises(Refused, match="ALiBi"):
        STAGE.check(model, {}, STAGE.Options(heads=2))
    STAGE.check(model, {}, STAGE.Options(ffn=0.5))


def test_a_result_that_does_not_run_is_refused() -> None:
    """An attention that keeps its width in a place nobody knows of."""
    model = twin_model("llama")
    output = model.module.model.layers[0].self_attn.o_proj  # type: ignore[union-attr, index]
    output.register_forward_pre_hook(lambda _, args: args[0].view(1, -1, WIDTH))
    with pytest.raises(Refused, match=r"does not fit LlamaForCausalLM: the model it leaves does not run"):
        stages.apply(model, STAGE.name, {"heads": 2})


def test_rebuilding_on_another_model_is_refused() -> None:
    record = prune(twin_model("llama"), ffn=32)
    with pytest.raises(ArtifactError, match="cut"):
        STAGE.rebuild(twin_model("llama", intermediate_size=48), record)


@pytest.mark.parametrize(
    "kept",
    [
        {"ffn": [10**9, 10**9]},
        {"ffn": [-1, 32]},
        {"ffn": [32]},
        {"width": 10**9},
        {"heads": [8, 8], "kv_heads": [4, 4]},
        {"ffn": [True, 32]},
    ],
)
def test_records_of_more_than_there_was_are_refused(kept: dict[str, object]) -> None:
    """A record is read from a file, and a billion units would be counted out before anything else says no."""
    found = {"ffn": [64, 64], "width": 32, "heads": [4, 4], "kv_heads": [4, 4]}
    record = {"target": "language", "kept": kept, "found": {name: found[name] for name in kept}}
    with pytest.raises((ArtifactError, ValueError)):
        STAGE.rebuild(twin_model("llama", device="meta"), record)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1.0, 1e22, 1e30])
def test_importance_does_not_depend_on_the_scale_of_the_weights(scale: float) -> None:
    """Squares of float32 leave its range at 1e19 and at 1e-19: then all units looked alike, and the first were kept."""
    pruned = {}
    for factor in (1.0, scale):
        model = twin_model("llama")
        with torch.no_grad():
            for name, tensor in model.tensors().items():
                if ".mlp." in name:
                    tensor[:, -20:] *= 3  # the last channels of down_proj, and inputs of the others
                    tensor.mul_(factor)
        choice = structured._choose_by_magnitude(model, STAGE._plan(model, STAGE.Options(ffn=16)))
        pruned[factor] = [units.tolist() for units in choice.ffn]
    assert pruned[scale] == pruned[1.0] and pruned[1.0][0] != list(range(16))


# --- several towers -------------------------------------------------------------------------------------------------


class Pictures(TransformersText):
    """Text with one 16 x 16 picture of four patches."""

    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        ids = tokens(batch=batch, length=10, seed=seed).clamp(max=90)
        ids[:, 1:5] = 95
        generator = torch.Generator().manual_seed(seed)
        return {"input_ids": ids, "pixel_values": torch.randn(batch, 3, 16, 16, generator=generator)}


def vision_language() -> Model:
    import transformers

    text = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = transformers.LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=95, image_seq_length=4, vision_feature_layer=-1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = transformers.LlavaForConditionalGeneration(config).eval()
    return Model(module, Pictures(), twin_model("llama", device="meta").spec)


def test_one_tower_is_pruned_and_the_other_left_alone() -> None:
    model, original = vision_language(), vision_language()
    prune(model, target="vision", ffn=16, heads=1)
    config = model.module.config  # type: ignore[union-attr]
    assert (config.vision_config.intermediate_size, config.vision_config.num_attention_heads) == (16, 1)  # type: ignore[union-attr]
    assert (config.text_config.intermediate_size, config.text_config.num_attention_heads) == (64, 4)  # type: ignore[union-attr]
    for layer in range(2):
        for reader in ("mlp.fc2", "self_attn.out_proj"):
            path = f"model.vision_tower.encoder.layers.{layer}.{reader}"
            whole, left = (m.module.get_submodule(path).weight for m in (original, model))
            silence(whole, survivors(whole, left))  # type: ignore[arg-type]
    batch = model.family.example(model)
    with torch.no_grad():
        torch.testing.assert_close(
            model.family.forward(model, batch), original.family.forward(original, batch), **CLOSE
        )


def test_width_behind_a_projector_is_refused() -> None:
    with pytest.raises(Refused, match="multi_modal_projector"):
        STAGE.check(vision_language(), {}, STAGE.Options(width=24))


# --- models without transformer blocks ------------------------------------------------------------------------------


class Strict(nn.Module):
    """A convolution whose module says its channels and insists on them, as diffusers' samplers do."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 16
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.norm(self.conv(x)).relu()  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two residual convolution blocks with batch norm and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one = Strict()
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)
        x = x + self.two(self.one(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Single(nn.Module):
    """One layer, whose channels are the output's."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, 4, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.only(pixels)  # type: ignore[no-any-return]


class Joined(nn.Module):
    """Two convolutions side by side, read by a gate over the channels of both (CSPNeXt's attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.short = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.gate = nn.Conv2d(24, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.cat([self.main(pixels), self.short(pixels)], 1)
        return self.head((x * self.gate(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Images(TransformersText):
    def example(self, model: Model, *, batch: int = 2, size: int = 16, seed: int = 0) -> Batch:
        return {"pixels": torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))}

    def forward(self, model: Model, batch: Batch) -> Tensor:
        return model.module(**batch)  # type: ignore[no-any-return]


def convolutional(device: str = "cpu") -> Model:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        module = Residual().eval()
    spec = twin_model("llama", device="meta").spec
    return Model(module, Images(), spec)


def test_convolutions_are_pruned_by_their_graph() -> None:
    model = convolutional()
    before, state = model.params, torch.random.get_rng_state()
    STAGE.check(model, {}, STAGE.Options(ratio=0.5))
    record = prune(model, ratio=0.5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.params < before and model.module.stem.out_channels == 8 and model.module.head.out_features == 5
    assert STAGE.outline(convolutional("meta"), STAGE.Options(ratio=0.5)) == record
    fresh = convolutional("meta")
    STAGE.rebuild(fresh, record)
    fresh.module.to_empty(device="cpu")
    fresh.module.load_state_dict(model.module.state_dict())
    assert numbers(fresh.module) == numbers(model.module)
    batch = model.family.example(model)
    assert torch.equal(fresh.family.forward(fresh, batch), model.family.forward(model, batch))
    model.family.forward(model, batch).sum().backward()
    assert all(parameter.grad is not None for parameter in model.module.parameters())


def test_convolutions_ask_for_a_ratio() -> None:
    with pytest.raises(Refused, match="give ratio instead"):
        STAGE.check(convolutional(), {}, STAGE.Options(ffn=0.5))


@pytest.mark.parametrize("name", ["focalnet_tiny_srf", "efficientvim_m1"])
def test_a_graph_that_leads_on_and_on_is_refused_in_seconds(name: str) -> None:
    """The channels of FocalNet's gates without end; every place as a channel of EfficientViM."""
    model = zoo.load(f"timm:{name}?num_classes=10", device="meta")
    said = r"cannot be pruned by its graph \(the layers that depend on [\w.]+ have too many channels to follow\)"
    with pytest.raises(Refused, match=said):
        STAGE.outline(model, STAGE.Options(ratio=0.25, target="all"))


@pytest.mark.parametrize("large", ["main", "short"])
def test_layers_whose_outputs_are_joined_lose_the_same_share_whatever_their_weights(large: str) -> None:
    model = convolutional()
    model.module = Joined().eval()
    with torch.no_grad():
        model.module.get_parameter(f"{large}.weight").mul_(100)
    outlined = STAGE.outline(model, STAGE.Options(ratio=0.25))
    importance = {path: model.module.get_parameter(f"{path}.weight").square().sum((1, 2, 3)) for path in (large,)}
    assert prune(model, ratio=0.25) == outlined
    assert (model.module.main.out_channels, model.module.short.out_channels) == (12, 6)
    left = model.module.get_parameter(f"{large}.weight").square().sum((1, 2, 3))
    assert left.sum() > 0.7 * importance[large].sum()


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": {"stem.weight": [10**9, 3, 3, 3]}},
        {"shapes": {"stem.weight": [8]}},
        {"shapes": {"nothing": [8]}},
        {"numbers": {"stem": {"out_channels": "8"}}},
        {"numbers": {"stem": {"forward": 3}}},
        {"numbers": {"stem": {"stride": [[1], 1]}}},
        {"numbers": {"stem": {"__class__": 3}}},
    ],
)
def test_records_of_a_graph_that_no_pruning_makes_are_refused(change: dict[str, dict[str, object]]) -> None:
    record = {"graph": {"shapes": {}, "numbers": {}} | change, "ratio": 0.5}
    model = convolutional()
    with pytest.raises(ArtifactError):
        STAGE.rebuild(model, record)
    assert callable(model.module.stem.forward)  # type: ignore[union-attr]


def test_a_graph_that_removes_nothing_is_refused() -> None:
    model = convolutional()
    model.module = Single()
    with pytest.raises(Refused, match="nothing in Single could be pruned by 50%"):
        prune(model, ratio=0.5)


def test_layers_that_each_say_their_own_head_size_are_pruned(tmp_path: Path) -> None:
    """Gemma 4's config refuses to be asked for the head size of all layers."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    config = Gemma4TextConfig(
        vocab_size=96,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        **sizes,
        global_head_dim=16,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=96,
        sliding_window=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Gemma4ForCausalLM(config).save_pretrained(tmp_path / "gemma-4")
    model = zoo.load(tmp_path / "gemma-4")
    prune(model, ffn=0.25, heads=0.5)
    layers = [block.attention for block in model.anatomy.stack().blocks]
    assert [(layer.heads, layer.kv_heads, layer.head_dim) for layer in layers if layer] == [(2, 2, 8), (2, 2, 16)]
    assert [own.head_dim for own in model.module.config.per_layer_config] == [8, 16]
