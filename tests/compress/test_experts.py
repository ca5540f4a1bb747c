"""Experts in one tensor as lists of linear layers: the same sums as transformers', packed like any layer, or refused by name."""

from __future__ import annotations

import ast
import copy
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from stages import (
    assert_outline_foretells,
    assert_replays,
    check,
    context,
    logits,
    options,
    small,
    structure,
    tokenizer,
)
from torch import nn
from transformers.integrations import moe
from twins import tokens
from zoo_compress.calibrate.blocks import Walk
from zoo_compress.calibrate.watch import Batches
from zoo_compress.experts import ExpertList, install, listed, unlisted
from zoo_compress.methods.quantize.formats.int8_layers import Int8Linear
from zoo_compress.recipe.runner import apply
from zoo_slm.language import TransformersText

import zoo
from zoo import registry
from zoo.anatomy.coverage import said
from zoo.anatomy.linears import expert_tables
from zoo.catalog import ModelSpec
from zoo.errors import ArtifactError
from zoo.model.model import Model

EXPERTS, TAKEN, WIDTH = 4, 2, 16

# a class of each kind: plain, limits, gate and up as rows, by turns and with biases, no gate, a norm behind, sums in float32
KINDS = ["mixtral", "deepseek_v4", "aria", "gpt_oss", "nemotron_h", "muse_spark", "inkling2", "minimax_m3_vl"]
# what does not go through the interface, of all that transformers has
REFUSED = {
    "DbrxExpertGLU",
    "InklingSharedExperts",
    "JetMoeParallelExperts",
    "Llama4TextExperts",
    "LongcatFlashExperts",
    "Step3p7Experts",
}
OF_MODULES = {"DbrxExperts", "NllbMoeExperts", "SwitchTransformersExperts"}  # that hold no tensor of their own
COVERED = 68


class Config:
    """A config for any class of experts: every size is small."""

    hidden_act, ffn_act_fn, moe_latent_size, _experts_implementation = "silu", {"name": "silu"}, None, "eager"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        words = {"expert": EXPERTS, "hidden_size": WIDTH, "size": 24, "dim": 24, "act": "silu", "eps": 1e-5}
        skipped = ("expert",) if "size" in name else ()
        return next((value for word, value in words.items() if word in name and word not in skipped), 1.0)


def classes(folder: str = "*") -> list[type[nn.Module]]:
    """The classes of experts of transformers' architectures."""
    found = []
    for file in sorted(Path(transformers.__file__).parent.glob(f"models/{folder}/modeling_*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Experts", "ExpertGLU")):
                module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
                found.append(getattr(module, node.name))
    return found


def drawn(kind: type[nn.Module]) -> Any:
    """One of a class, its weights random."""
    sizes = {"JetMoeParallelExperts": (EXPERTS, WIDTH, WIDTH), "NllbMoeExperts": (nllb(), 24)}
    if kind.__name__ == "SwitchTransformersExperts":
        return kind(transformers.SwitchTransformersConfig(d_model=8, d_ff=8, num_experts=2))
    experts = kind(*sizes.get(kind.__name__, (Config(),))).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in experts.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return experts


def nllb() -> Any:
    return transformers.NllbMoeConfig(d_model=8, num_experts=2)


def as_list(experts: nn.Module) -> Any:
    holder = nn.ModuleDict({"experts": copy.deepcopy(experts)})
    install(holder, ["experts"])
    return holder.experts


def routed(*, rows: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What experts are given: rows, which experts each takes, and how much of each."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(EXPERTS, generator=draw)[:TAKEN] for _ in range(rows)])
    return torch.randn(rows, WIDTH, generator=draw), chosen, torch.rand(rows, TAKEN, generator=draw)


@torch.no_grad()
def assert_alike(experts: Any) -> None:
    """Its list gives the same bits as the loop of the class itself, and nearly the same as what runs by default."""
    made, given = as_list(experts), routed()
    experts.config._experts_implementation = "batched_mm"
    torch.testing.assert_close(made(*given), experts(*given), rtol=1e-5, atol=1e-6)
    experts.config._experts_implementation = "eager"
    if experts.is_transposed:  # the rows lie otherwise in memory, and a bias is added with the product, not after it
        torch.testing.assert_close(made(*given), experts(*given), rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(made(*given), experts(*given))


@pytest.mark.parametrize("folder", KINDS)
def test_a_list_computes_what_transformers_does(folder: str) -> None:
    for kind in classes(folder):
        if kind.__name__ not in REFUSED:
            assert_alike(drawn(kind))


@pytest.mark.slow  # a minute to import every architecture
def test_every_class_of_experts_is_covered_or_refused_by_name() -> None:
    """The table in docs/language-models.md: a class that a new transformers brings is to be looked at."""
    covered, refused, without = [], {}, set()
    for kind in classes():
        experts = drawn(kind)
        tables = expert_tables(nn.ModuleDict({"experts": experts}), "")
        if all(path.rpartition(".")[0] != "experts" for path in tables):
            without.add(kind.__name__)
        elif reason := unlisted(experts):
            refused[kind.__name__] = reason
        else:
            covered.append(kind.__name__)
            assert_alike(experts)
    assert (set(refused), without) == (REFUSED, OF_MODULES)
    assert all(reason.startswith(f"{name}.") for name, reason in refused.items())
    assert len(covered) == COVERED


@torch.no_grad()
def test_an_index_beyond_the_experts_counts_for_nothing() -> None:
    """So routers mask (and expert parallelism marks what is elsewhere)."""
    experts = drawn(classes("mixtral")[0])
    x, chosen, weights = routed()
    chosen[2:5, 0] = EXPERTS
    assert torch.equal(as_list(experts)(x, chosen, weights), experts(x, chosen, weights))
    chosen[:] = EXPERTS
    assert not as_list(experts)(x, chosen, weights).any()


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 9])
def test_packed_experts_compute_what_a_list_of_packed_layers_does(rows: int) -> None:
    """Bit for bit, for decoding and for prompts; the reference is written out."""
    experts = drawn(classes("mixtral")[0])
    made = as_list(experts)
    ups, downs = (
        [Int8Linear.from_linear(linear(table)) for table in part] for part in (experts.gate_up_proj, experts.down_proj)
    )
    for number in range(EXPERTS):
        made.set_submodule(f"{number}.gate_up_proj", ups[number])
        made.set_submodule(f"{number}.down_proj", downs[number])
    x, chosen, weights = routed(rows=rows)
    expected = torch.zeros_like(x)
    for number in range(EXPERTS):
        places, rows_N = torch.where((chosen == number).T)
        if len(rows_N):
            gate, up = ups[number](x[rows_N]).chunk(2, dim=-1)
            y = downs[number](nn.functional.silu(gate) * up)
            expected.index_add_(0, rows_N, y * weights[rows_N, places, None])
    assert torch.equal(made(x, chosen, weights), expected)


def linear(weight: torch.Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight = nn.Parameter(weight)
    return made


# --- what is refused ------------------------------------------------------------------------------------------------


def test_what_it_does_not_know_is_refused_by_class_and_attribute() -> None:
    mixtral = classes("mixtral")[0]

    def changed(**attributes: Any) -> str:
        experts = drawn(mixtral)
        for name, value in attributes.items():
            setattr(experts, name, value)
        return unlisted(experts)

    config = Config()
    config._experts_implementation = "of_a_plugin"  # type: ignore[assignment]
    assert changed(config=config) == "MixtralExperts.config._experts_implementation is 'of_a_plugin'"
    assert changed(_is_expert_parallel=True) == "MixtralExperts._is_expert_parallel is set"
    assert changed(scale=nn.Parameter(torch.ones(4))) == "MixtralExperts.scale is not known"
    assert changed(has_bias=True) == "MixtralExperts.down_proj_bias is missing"
    assert changed(is_transposed=True).startswith("MixtralExperts.gate_up_proj (4, 48, 16) does not go with down_proj")
    assert changed(forward=print) == "MixtralExperts.forward does not go through transformers' experts interface"


def test_the_plan_names_what_stays_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(moe.ALL_EXPERTS_FUNCTIONS, "of_a_plugin", moe.batched_mm_experts_forward)
    model = small("mixtral")
    model.module.config._experts_implementation = "of_a_plugin"
    compressor = registry.compressor("quantize.int8")
    sentence = said(compressor.outline(model, compressor.Options()))
    assert "experts in one tensor, since MixtralExperts.config._experts_implementation is 'of_a_plugin' (" in sentence
    apply(model, "quantize.int8")
    assert isinstance(model.module.model.layers[0].mlp.experts.gate_up_proj, nn.Parameter)


def test_a_record_of_lists_that_cannot_be_made_is_refused() -> None:
    model = small("mixtral")
    record = registry.compressor("quantize.int8").outline(model, options("quantize.int8"))
    model.module.config._experts_implementation = "sonicmoe"
    with pytest.raises(ArtifactError, match=r"layers.0.mlp.experts was made a list .*_implementation is 'sonicmoe'\."):
        registry.compressor("quantize.int8").rebuild(model, record)


# --- the stages -----------------------------------------------------------------------------------------------------


def gpt_oss() -> Model:
    """Biases, tables the other way round, gate and up by turns."""
    config = transformers.GptOssConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=96,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TAKEN,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = transformers.GptOssForCausalLM(config).eval()
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    config = {key: value for key, value in module.config.to_dict().items() if value is not None}
    spec = ModelSpec(
        "gpt-oss", family="transformers", modality="text", task="causal-lm", plugin="zoo_slm", config=config
    )
    return Model(module, TransformersText(), spec, processor=tokenizer(), origin="random")


@pytest.mark.parametrize("stage", ["quantize.int8", "quantize.int4", "quantize.nf4"])
@pytest.mark.parametrize("made", [lambda: small("mixtral"), gpt_oss], ids=["mixtral", "gpt-oss"])
def test_experts_are_packed_and_come_back(made: Any, stage: str, tmp_path: Path) -> None:
    model, ids = made(), tokens()
    before, linears = logits(model, ids), model.params
    assert_outline_foretells(model, stage)
    record = model.lineage[-1].record
    assert record["experts"] == [f"model.layers.{i}.mlp.experts" for i in (0, 1)] and model.params == linears
    assert [kept["kind"] for kept in record["left_as_is"]] == ["routers"]
    assert len([path for path in record["modules"] if ".experts." in path]) == 2 * 2 * EXPERTS
    assert float((logits(model, ids) - before).norm() / before.norm()) < (0.1 if stage == "quantize.int8" else 0.5)
    assert_replays(model, ids, tmp_path)


@pytest.mark.parametrize("stage", ["prune.magnitude", "prune.wanda", "prune.sparsegpt"])
@pytest.mark.parametrize("made", [lambda: small("mixtral"), gpt_oss], ids=["mixtral", "gpt-oss"])
def test_a_pattern_prunes_every_expert_along_its_inputs_and_leaves_one_tensor(
    made: Any, stage: str, tmp_path: Path
) -> None:
    model = made()
    assert_outline_foretells(model, stage, pattern="2:4")
    for number in range(EXPERTS):
        for name in ("gate_up_proj", "down_proj"):
            path = f"model.layers.1.mlp.experts.{name}"
            weight_OI = listed(model).module.get_submodule(f"model.layers.1.mlp.experts.{number}.{name}").weight
            assert int((weight_OI.reshape(-1, 4) != 0).sum(1).max()) == 2
            assert isinstance(model.module.get_parameter(path), nn.Parameter)
            assert [(trait.kind, trait.detail) for trait in model.state()[path]] == [("sparse", "2:4")]
    assert [kept["kind"] for kept in model.lineage[-1].record["left_as_is"]] == ["routers"]
    assert_replays(model, tokens(), tmp_path)


def test_looking_ahead_changes_nothing() -> None:
    model = small("mixtral")
    before = structure(model)
    ahead = listed(model)
    assert listed(ahead) is ahead and isinstance(ahead.module.model.layers[1].mlp.experts, ExpertList)
    check(model, "quantize.int4")
    registry.compressor("quantize.int4").working_bytes(model, options("quantize.int4"), context())
    assert structure(model) == before and listed(small("llama")).module.model.layers[0]


def test_layers_that_stay_plain_do_not_hold_the_tensor_they_came_from(tmp_path: Path) -> None:
    model = gpt_oss()
    apply(model, "quantize.int8", {"skip": ["*.experts.*.down_proj"]})
    down = model.module.model.layers[0].mlp.experts.get_submodule("0.down_proj")
    assert isinstance(down, nn.Linear) and down.weight.is_contiguous()
    assert down.weight.untyped_storage().nbytes() == down.weight.nbytes
    assert_replays(model, tokens(), tmp_path)


def test_an_artifact_of_before_keeps_its_experts(tmp_path: Path) -> None:
    model, ids = small("mixtral"), tokens()
    apply(model, "quantize.int8", {"skip": ["*.experts.*"]})
    model.lineage = (replace(model.lineage[0], version=3),)
    assert "experts" not in model.lineage[0].record
    loaded = zoo.load(model.save(tmp_path / "model"))
    assert isinstance(loaded.module.model.layers[0].mlp.experts.gate_up_proj, nn.Parameter)
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_what_was_done_to_a_tensor_is_known_of_its_list() -> None:
    model = small("mixtral")
    apply(model, "prune.magnitude", {"sparsity": 0.5})
    zeros = model.module.model.layers[0].mlp.experts.gate_up_proj[2] == 0
    apply(model, "quantize.int8")
    packed = model.module.model.layers[0].mlp.experts.get_submodule("2.gate_up_proj")
    assert bool((packed.weight_int8[zeros] == 0).all())
    assert [trait.kind for trait in model.state()["model.layers.0.mlp.experts"]] == ["sparse"]


# --- calibration ----------------------------------------------------------------------------------------------------


def walked(model: Model, batch: dict[str, torch.Tensor]) -> Walk:
    paths = [path for path, part in model.module.named_modules() if ".experts." in path and isinstance(part, nn.Linear)]
    return Walk(model, paths, Batches([batch]), statistics=("gram",), context=context(), stage="test")


def with_lists(**changes: Any) -> Model:
    model = small("mixtral", **changes)
    install(model.module, [f"model.layers.{i}.mlp.experts" for i in (0, 1)])
    return model


def test_starved_experts_are_named_and_those_of_no_token_too() -> None:
    model = with_lists(num_experts_per_tok=1)
    walk = walked(model, {"input_ids": tokens(batch=1, length=2)})
    units = list(walk)
    assert len(units) == 2 and all(told["starved"] for told in walk.table.values())
    assert {told["tokens"] for told in walk.table.values()} >= {0}
    many = walked(with_lists(), {"input_ids": tokens(batch=16, length=24)})
    ups = [told for unit in many for path, told in unit.table.items() if "gate_up" in path]
    assert len(ups) == 2 * EXPERTS and all("starved" not in told and told["tokens"] >= 32 for told in ups)


def test_padding_that_a_router_sends_to_an_expert_takes_no_part() -> None:
    ids, mask = tokens(batch=2, length=12), torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    walk = walked(with_lists(), {"input_ids": ids, "attention_mask": mask})
    for unit in walk:
        assert sum(told["tokens"] for path, told in unit.table.items() if "gate_up" in path) == TAKEN * (12 + 7)


def test_an_expert_that_no_token_reaches_is_packed_without_data(tmp_path: Path) -> None:
    model = small("mixtral", num_experts_per_tok=1)
    apply(model, "quantize.int4", {"method": "gptq", "samples": 1, "length": 2, "group": 32}, context())
    layers = model.lineage[-1].record["layers"]
    unreached = [told for path, told in layers.items() if ".experts." in path and not told["tokens"]]
    assert unreached and all(told["fallback"] == "hqq: no token reached it" for told in unreached)
    assert_replays(model, tokens(), tmp_path)
