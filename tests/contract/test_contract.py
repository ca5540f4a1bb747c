"""The contract, over the registry: every compressor on every family, alone and in chains.

A stage is estimated exactly, a saved model computes the same bits in a fresh process, and what cannot be done is
refused in a sentence. All artifacts are reloaded by one fresh process, because an import takes seconds; a case that
fails names itself. The models are anybody's checkpoint directories, saved by transformers and loaded by path.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_compress
from cases import (
    BASES,
    CASES,
    CHAINS,
    DISTILL,
    HEADS,
    INT8,
    LOWRANK,
    MAGNITUDE,
    NF4,
    OPTIONS,
    REFUSED,
    SHARE,
    STRUCTURED,
    TINY,
    TRAIN,
    WIDTH,
    Stage,
    base,
    checkpoint,
    context,
    options,
    recipe,
    stage,
)

import zoo
from zoo import registry
from zoo.errors import RequestError, ZooError
from zoo.model.model import Model
from zoo.plugins.names import of_kind
from zoo.testing import (
    Outputs,
    check_estimate,
    check_exact_reload,
    check_refuses,
    difference,
    outputs,
    outputs_in_fresh_process,
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Load each base once; a test that changes one takes a copy."""
    folder, loaded = tmp_path_factory.mktemp("checkpoints"), {}

    def get(name: str) -> Model:
        if name not in loaded:
            loaded[name] = base(name, folder)
        return loaded[name]

    return get


def built(start: Model, stages: list[Stage]) -> Model:
    """Apply a chain, each stage estimated and compared."""
    model, shared = start, context(start)
    for one in stages:
        model = check_estimate(model, *one, shared)
    return model


@pytest.fixture(scope="module")
def finished(request: pytest.FixtureRequest, bases: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Build and save every selected case, reload all in one process; case -> "" or what went wrong."""
    selected = {
        item.callspec.params.get("case")
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    }
    folder = tmp_path_factory.mktemp("artifacts")
    found: dict[str, Any] = {}
    here: dict[Path, tuple[str, Outputs]] = {}
    for number, (case, (name, stages)) in enumerate(CASES.items()):
        if case not in selected:
            continue
        try:
            model = built(bases(name), stages)
            here[model.save(folder / str(number))] = case, outputs(model)
        except Exception as error:  # shown by the case's own test
            found[case] = error
    there = outputs_in_fresh_process(list(here))
    return found | {case: difference(case, mine, there[place]) for place, (case, mine) in here.items()}


@pytest.mark.parametrize("case", CASES)
def test_estimate_is_exact_and_a_fresh_process_computes_the_same_bits(case: str, finished: dict[str, Any]) -> None:
    result = finished[case]
    if isinstance(result, Exception):
        raise result
    assert not result, result


@pytest.mark.parametrize(
    ("name", "target", "sentence"),
    [
        ("tiny-t2i", "unet.mid", "MidStage cannot be pruned by its graph .* aim at the module around it"),
        ("tiny-t2i", "text_encoder", "CLIPTextModel has transformer blocks"),
        ("tiny-t2i", "decoder", "SnapGenDecoder does not run as one module .* aim at a part of it: "),
        ("tiny-vlm", "language", "LlamaForCausalLM has transformer blocks"),
    ],
)
def test_what_the_graph_cannot_prune_is_refused_and_left_alone(
    name: str, target: str, sentence: str, bases: Any
) -> None:
    start = bases(name)
    assert re.search(
        sentence, check_refuses(start, "prune.structured", {"ratio": 0.25, "target": target}, context(start))
    )


def test_every_registered_compressor_is_tested() -> None:
    builtin = {name for name, declared in of_kind("compressor").items() if declared.plugin.startswith("zoo_")}
    assert builtin == set(OPTIONS), "give a new compressor its options in tests/contract/cases.py"
    assert all((name, use) in REFUSED or f"{name}: {use}" in CASES for name in BASES for use in builtin)
    assert len([stages for _, stages in CHAINS if len(stages) > 1]) >= 10


@pytest.mark.parametrize(("name", "use"), REFUSED, ids=lambda value: value)
def test_what_does_not_apply_is_refused_and_the_model_left_alone(name: str, use: str, bases: Any) -> None:
    start = bases(name).copy()
    sentence = check_refuses(start, use, options(name, use), context(start))
    assert re.search(REFUSED[name, use], sentence), sentence


@pytest.mark.parametrize("name", [TINY, "qwen3", "gpt-neox", "opt", "phi3", "mixtral"])
def test_training_keeps_the_zeros_of_pruned_weights(name: str, bases: Any) -> None:
    """A chain of three, since a path moves when blocks go: each sparse matrix stays so, and what is left changes."""
    start = bases(name)
    pruned = built(start, [MAGNITUDE, stage("inherit", layers="last:2")])
    before = {path: tensor.detach().clone() for path, tensor in pruned.tensors().items()}
    after = check_estimate(pruned, *DISTILL, context(start)).tensors()
    sparse = {path for path, tensor in before.items() if (tensor == 0).float().mean() > 0.4}
    assert len(sparse) >= 6
    for path in sparse:
        assert torch.equal(before[path] == 0, after[path] == 0), path
        assert not torch.equal(before[path], after[path]), path


# --- illegal orders, refused in the plan ----------------------------------------------------------------------------

PACKED = "plain float weights, but model.layers.0.* is packed \\({} bits\\) by stage 1 \\({}\\)"
# (stages, the reason, the remedy)
ILLEGAL: list[tuple[list[Stage], str, str]] = [
    ([INT8, STRUCTURED], PACKED.format(8, "quantize.int8"), "Put prune.structured before quantize.int8"),
    ([INT8, WIDTH], "is packed \\(8 bits\\) by stage 1", "Put prune.structured before quantize.int8"),
    ([INT8, DISTILL], "trains " + PACKED.format(8, "quantize.int8"), "Put distill before quantize.int8"),
    ([NF4, TRAIN], "updates " + PACKED.format(4, "quantize.nf4"), "Put train before quantize.nf4"),
    ([INT8, MAGNITUDE], PACKED.format(8, "quantize.int8"), "Put prune.magnitude before quantize.int8"),
    ([INT8, LOWRANK], PACKED.format(8, "quantize.int8"), "Put lowrank.svd before quantize.int8"),
    ([INT8, SHARE], PACKED.format(8, "quantize.int8"), "Put share.ffn before quantize.int8"),
    ([INT8, NF4], PACKED.format(8, "quantize.int8"), "Use one of them, or give each a target of its own"),
    ([NF4, INT8], PACKED.format(4, "quantize.nf4"), "Use one of them, or give each a target of its own"),
    ([LOWRANK, LOWRANK], "is factored \\(rank \\d+\\) by stage 1", "Use one of them, or give each a target of its own"),
    ([LOWRANK, STRUCTURED], "is factored \\(rank \\d+\\) by stage 1", "Put prune.structured before lowrank.svd"),
    ([LOWRANK, SHARE], "is factored \\(rank \\d+\\) by stage 1", "Put share.ffn before lowrank.svd"),
    (
        [LOWRANK, MAGNITUDE],
        "is factored \\(rank \\d+\\) by stage 1",
        "Use one of them, or give each a target of its own",
    ),
    ([MAGNITUDE, LOWRANK], "is sparse \\(50%\\) by stage 1", "Use one of them, or give each a target of its own"),
    ([MAGNITUDE, SHARE], "is sparse \\(50%\\) by stage 1", "Put share.ffn before prune.magnitude"),
    ([MAGNITUDE, STRUCTURED], "is sparse \\(50%\\) by stage 1", "Put prune.structured before prune.magnitude"),
    (
        [stage("prune.structured", target="language.blocks[1:]"), SHARE],
        "weight \\(48, 32\\) but .* is weight \\(64, 32\\)",
        "Give all blocks one width first, or choose a target of equal blocks",
    ),
    ([SHARE, SHARE], "model.layers.1.mlp.gate_proj already is model.layers.0", "choose blocks that do not share yet"),
    (
        [stage("share.ffn", target="language.blocks[:2]"), stage("quantize.int8", target="language.blocks[0]")],
        "is shared with model.layers.1.mlp.gate_proj",
        "Aim at every block that shares it",
    ),
    ([stage("inherit", layers="first:1"), SHARE], "'language' is one block", "sharing takes two"),
    ([stage("inherit", layers="first:2"), stage("inherit", layers="first:3")], "asks for 3 blocks", "'language' has 2"),
    (
        [stage("quantize.int8", target="language.blocks[2:]"), stage("inherit", layers="last:2"), STRUCTURED],
        "model.layers.0.* is packed \\(8 bits\\) by stage 1",
        "Put prune.structured before quantize.int8",
    ),
]


@pytest.mark.parametrize(
    ("stages", "reason", "remedy"), ILLEGAL, ids=lambda v: " > ".join(s[0] for s in v) if isinstance(v, list) else ""
)
def test_an_illegal_order_is_refused_in_the_plan(
    stages: list[Stage], reason: str, remedy: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    asked = zoo_compress.Recipe.parse(recipe(checkpoint("llama-tied", folder), stages, folder))
    with pytest.raises(RequestError) as caught:
        zoo_compress.plan(asked)
    sentence = str(caught.value)
    assert sentence.startswith(f"recipe, stage {len(stages)} ({stages[-1][0]}): "), sentence
    assert re.search(reason, sentence), sentence
    assert re.search(remedy, sentence), sentence


def test_a_remedy_is_an_order_that_the_plan_takes(tmp_path: Path) -> None:
    """Following "Put X before Y" leads to a recipe that plans."""
    for stages, _, remedy in ILLEGAL:
        if remedy.startswith("Put") and len(stages) == 2:
            turned = recipe(checkpoint("llama-tied", tmp_path), stages[::-1], tmp_path)
            zoo_compress.plan(zoo_compress.Recipe.parse(turned))


# --- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float32")],
)
@pytest.mark.parametrize("stages", [[], [HEADS], [LOWRANK, INT8]], ids=["nothing", "heads", "low-rank > int8"])
def test_other_precisions_are_estimated_and_reloaded_exactly(
    stages: list[Stage], dtype: str, stored: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """In this process, since the fresh one has been shown to agree: what is new is only the dtypes."""
    model = zoo.load(checkpoint("llama-tied", tmp_path_factory.getbasetemp()), dtype=dtype)
    model.stored = stored
    model.round()
    model = built(model, stages)
    loaded = zoo.load(model.save(tmp_path / "model"))
    there = {**outputs(loaded), "stored bytes": outputs(model)["bytes"]}
    assert not difference(f"{dtype} stored as {stored}", outputs(model), there)
    assert (loaded.dtype, loaded.stored) == (dtype, stored)


# --- the checks themselves ------------------------------------------------------------------------------------------


def test_the_checks_see_what_they_are_for(bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of check fails, with a sentence that names family, model and stages, where something is broken."""
    start = bases("llama-tied")
    pruned = check_estimate(start, *STRUCTURED)
    structured = registry.compressor("prune.structured")
    with pytest.raises(
        AssertionError, match=r"transformers LlamaForCausalLM 'llama-tied' after quantize.int8 was to be refused"
    ):
        check_refuses(start, *INT8)
    with monkeypatch.context() as broken:
        honest = structured.outline
        broken.setattr(
            structured, "outline", lambda model, options: honest(model, options.model_copy(update={"ffn": 56}))
        )
        with pytest.raises(
            AssertionError,
            match=r"'llama-tied' after prune.structured: outline, .* has .*\(56, 32\); the model has it \(48, 32\)",
        ):
            check_estimate(start, *STRUCTURED)
    with monkeypatch.context() as broken:  # as if the weights were rounded on their way to disk
        broken.setattr(
            "zoo.artifact.weights._written_dtypes",
            lambda model: {n: torch.bfloat16 if t.is_floating_point() else t.dtype for n, t in model.tensors().items()},
        )
        with pytest.raises(
            ZooError, match=r"cannot be saved: \S+ is .* in memory, and it would load with other values"
        ):
            check_exact_reload([pruned], tmp_path)
