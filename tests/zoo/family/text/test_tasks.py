"""The tasks of language models: each a class, in which what it does otherwise than the others is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stages import data, small
from zoo_slm.language import TransformersText

import zoo
from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError, RequestError
from zoo.family.task import task_of
from zoo.family.text.causal import CausalLM
from zoo.family.text.task import text_task
from zoo.family.text.tasks import TASKS, task_named
from zoo.model.model import Model
from zoo.plugins.declarations import ModelSpec
from zoo.tensors.batch import generators

pytestmark = pytest.mark.quick

T5 = {
    "model_type": "t5",
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
ANSWERED = Dataset("answered", [Sample({"prompt": "w3 w4", "text": "w5 " * 40}, "answered:1")])


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    """A model of each task."""
    family = TransformersText()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = family.build(T5, "seq2seq")
    spec = ModelSpec("t5", "transformers", "text", "seq2seq", plugin="zoo_slm", config=T5)
    llama = small("llama")
    encoder_decoder = Model(module, family, spec, processor=llama.processor, origin="random")
    return {"causal-lm": llama, "seq2seq": encoder_decoder, "masked-lm": small("bert")}


def test_every_task_has_a_class_under_its_name_and_every_text_family_of_ours_does_some():
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}
    assert set(TransformersText.tasks) == set(TASKS)
    assert task_named("of a plugin") is TASKS["causal-lm"]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("causal-lm", {"writes", "causal", "continues", "takes_any_prompt"}),
        ("seq2seq", {"writes"}),
        ("masked-lm", {"masks"}),
        ("embedding", {"takes_any_prompt"}),
    ],
)
def test_what_others_may_ask_of_a_task(name: str, facts: set[str]):
    asked = ("masks", "writes", "causal", "continues", "takes_any_prompt")
    assert {fact for fact in asked if getattr(TASKS[name], fact)} == facts


@pytest.mark.parametrize("name", ["causal-lm", "seq2seq", "masked-lm"])  # a vector is no prediction of tokens
def test_a_batch_is_run_and_learnt_from(name: str, models: dict[str, Model]):
    model = models[name]
    task = text_task(model)
    assert task is TASKS[name] is task_of(model)
    example = task.example(model, batch=2, size=6, seed=1)
    assert {key: ids.shape for key, ids in example.items()} == dict.fromkeys(task.inputs, (2, 6))
    assert task.forward(model, example).shape == (2, 6, 96)
    windows = task.windows(model, data(tokens=200), length=16)
    batch = task.draw(model, task.collate(model, [windows[0], windows[1]]), generators(0, range(2)))
    rows = task.rows(model, batch, ("label",))["label"]
    assert rows.target.tolist() == batch["labels"][batch["labels"] >= 0].tolist()
    assert len(rows.hidden) == len(rows.target) == len(rows.sample)
    at_once, stepwise = task.trial(model, example)
    torch.testing.assert_close(at_once, stepwise, rtol=1e-4, atol=1e-4)
    assert task_of(model).usual_evaluator(model, None) == "perplexity"


def test_a_causal_model_goes_on_from_what_it_read(models: dict[str, Model]):
    model = models["causal-lm"]
    task = text_task(model)
    window = task.windows(model, ANSWERED, length=16)[0]
    assert window["labels"][:3].tolist() == [-1, -1, 5]  # the prompt is read, not learnt
    assert task.parted([5, 6, 7]) == ([], [5, 6, 7]) and task.lead(model) == [2]
    assert task.draw(model, window, generators(0, range(1))) is window
    assert task.shared_batch(model, model, window) is window
    assert task.speeds(model, prefill=8, decode=4).keys() == {"prefill_tokens_per_s", "decode_tokens_per_s"}
    (sample,) = task.samples(model, ["w3 w4"], None)
    assert sample == {"prompt": "w3 w4", "output": model.generate("w3 w4", max_new_tokens=64)}
    with pytest.raises(RequestError, match=r"^llama is a causal-lm model; only masked-lm models fill in words\.$"):
        task.fills(model, "w3", 1)


def test_a_seq2seq_model_reads_one_half_and_writes_the_other(models: dict[str, Model]):
    model = models["seq2seq"]
    task = text_task(model)
    whole, window = CausalLM().windows(model, data(), length=16)[0], task.windows(model, data(), length=16)[0]
    assert torch.cat([window["input_ids"], window["labels"]]).tolist() == whole["input_ids"].tolist()
    assert window["decoder_input_ids"].tolist() == [0, *window["labels"][:-1].tolist()]
    assert task.parted([5, 6, 7]) == ([5], [6, 7]) and task.parted([5]) == ([], []) and task.lead(model) == [0]
    assert task.speeds(model, prefill=8, decode=4).keys() == {"prefill_tokens_per_s"}
    with pytest.raises(
        DataError, match=r"^answered:1: the record has a 'prompt', which t5, a seq2seq model, cannot be"
    ):
        task.windows(model, ANSWERED, length=16)


def test_a_masked_model_learns_what_is_hidden_anew(models: dict[str, Model]):
    model = models["masked-lm"]
    task = text_task(model)
    batch = task.collate(model, [task.windows(model, data(), length=16)[i] for i in range(4)])
    assert task.draw(model, batch, generators(0, range(4))) is batch  # its tokenizer has no mask token
    model.processor.add_special_tokens({"mask_token": "w95"})
    drawn = task.draw(model, batch, generators(0, range(4)))
    hidden = drawn["labels"] >= 0
    assert hidden.any(1).all() and not hidden.all()
    assert (drawn["labels"][hidden] == batch["input_ids"][hidden]).all() and (drawn["labels"][~hidden] == -1).all()
    assert (drawn["input_ids"][~hidden] == batch["input_ids"][~hidden]).all()
    assert task.speeds(model, prefill=8, decode=4).keys() == {"prefill_tokens_per_s"}
    assert task.samples(model, ["w3 w95"], None)[0]["output"] == model.generate("w3 w95")
    with pytest.raises(DataError, match=r"a masked-lm model, cannot be trained or measured on here"):
        task.check_data(model, ANSWERED, length=16)
    with pytest.raises(RequestError, match=r"^The prompt is empty"):
        task.check_prompts(model, [""])


def test_tokens_beyond_the_teachers_table_are_brought_into_it(models: dict[str, Model]):
    masked, teacher = models["masked-lm"], small("bert", vocab_size=90)
    shared = task_of(masked).shared_batch(masked, teacher, {"input_ids": torch.tensor([[89, 90, 95]])})
    assert shared["input_ids"].tolist() == [[89, 0, 5]]


class Summarising(CausalLM):
    """A task of somebody else."""

    name = "summarising"
    takes_any_prompt = False

    def samples(self, model: Model, prompts: Any, data: Any) -> list[dict[str, str]]:
        return [{"prompt": prompt, "output": "in short"} for prompt in prompts]


class Summaries(TransformersText):
    tasks = (Summarising.name,)

    def task(self, name: str) -> Summarising:
        return Summarising()


def test_a_family_brings_a_task_of_its_own(models: dict[str, Model]):
    llama = models["causal-lm"]
    spec = ModelSpec("summariser", "own", "text", Summarising.name, plugin="zoo_slm", config=llama.spec.config)
    model = zoo.Model(llama.module, Summaries(), spec, processor=llama.processor, origin="random")
    assert task_of(model).samples(model, ["w3"], None) == [{"prompt": "w3", "output": "in short"}]
    assert model.generate("w3 w4", max_new_tokens=3) == llama.generate("w3 w4", max_new_tokens=3)
    with pytest.raises(RequestError, match=r"^'mood' is not an option of generate\. Options: max_new_tokens, "):
        model.generate("w3", mood="good")
