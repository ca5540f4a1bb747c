"""What is saved is what is loaded: proven before an artifact is put in place, or refused by the tensor's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from twins import twin
from zoo_slm.language import TransformersText

import zoo
from zoo.errors import ZooError
from zoo.model.model import Model

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    twin("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def model(plain: Path) -> Model:
    return zoo.load(plain)


def refused(model: Model, folder: Path) -> str:
    """The sentence of a save into a folder that holds an older artifact, which stays whole and alone."""
    older = zoo.load(model.origin).save(folder / "saved")
    before = (older / "zoo.json").read_bytes()
    with pytest.raises(ZooError) as caught:
        model.save(older, force=True)
    assert [item.name for item in folder.iterdir()] == ["saved"] and (older / "zoo.json").read_bytes() == before
    assert zoo.load(older).params
    return str(caught.value)


class Damaging(TransformersText):
    """Writes its config, and a bit into the weights that were just written: as a failing disk does."""

    def write_foreign(self, model: Model, path: Path) -> str:
        file = path / "model.safetensors"
        damaged = bytearray(file.read_bytes())
        header = json.loads(damaged[8 : 8 + int.from_bytes(damaged[:8], "little")])
        place = header["model.norm.weight"]["data_offsets"][0] + 8 + int.from_bytes(damaged[:8], "little")
        damaged[place] ^= 1
        file.write_bytes(damaged)
        return super().write_foreign(model, path)


def test_a_bit_that_was_written_wrong_is_found(model: Model, tmp_path: Path):
    model.family = Damaging()
    assert "model.norm.weight is float32 (32,) in memory, and it would load with other values" in refused(
        model, tmp_path
    )


def test_a_computed_buffer_that_was_changed_is_named(model: Model, tmp_path: Path):
    model.module.model.rotary_emb.inv_freq.mul_(2)
    model.module.model.rotary_emb.original_inv_freq.mul_(2)
    assert "model.rotary_emb.original_inv_freq is float32" in refused(model, tmp_path)


def test_frequencies_that_follow_the_text_are_no_change(tmp_path: Path):
    """Dynamic rotary tables hold those of the longest text read so far, until a short one is read."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    twin("llama", rope_parameters=rope, max_position_embeddings=16).save_pretrained(tmp_path / "plain")
    model = zoo.load(tmp_path / "plain")
    before = model.module.model.rotary_emb.inv_freq.clone()
    with torch.no_grad():
        model.module(torch.arange(24)[None])
    assert not torch.equal(before, model.module.model.rotary_emb.inv_freq)
    assert torch.equal(before, zoo.load(model.save(tmp_path / "saved")).module.model.rotary_emb.inv_freq)


def test_a_number_that_was_changed_is_named_by_its_layer(model: Model, tmp_path: Path):
    model.module.model.layers[1].self_attn.scaling *= 2
    assert "give other outputs, first at model.layers.1.self_attn" in refused(model, tmp_path)


def test_a_model_that_cannot_run_when_it_is_loaded_is_not_saved(model: Model, tmp_path: Path):
    model.module.model.norm.forward = lambda hidden: hidden  # such as a patch that no stage recorded
    assert "model.norm" in refused(model, tmp_path)


def test_what_was_cast_by_hand_comes_back_so(model: Model, tmp_path: Path):
    model.module.lm_head.to(torch.float64)
    model.module.model.norm.to(torch.float64)
    saved = model.save(tmp_path / "saved")
    assert json.loads((saved / "zoo.json").read_text())["dtypes"] == {
        "lm_head.weight": "float64",
        "model.norm.weight": "float64",
    }
    again = zoo.load(saved)
    assert again.module.lm_head.weight.dtype == torch.float64
    assert zoo.load(saved, dtype="bfloat16").module.lm_head.weight.dtype == torch.bfloat16


class Counting(nn.Linear):
    """Changes its own weight whenever it is run."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output = super().forward(hidden)
        self.weight.data.mul_(0.5)
        return output


class CountingText(TransformersText):
    def build(self, config: dict[str, Any], task: str) -> nn.Module:
        module = super().build(config, task)
        module.lm_head.__class__ = Counting
        return module

    def build_in(self, config: dict[str, Any], task: str, dtype: torch.dtype) -> nn.Module:
        module = super().build_in(config, task, dtype)
        module.lm_head.__class__ = Counting
        return module


def test_a_forward_pass_that_changes_its_own_weights_is_named(model: Model, tmp_path: Path):
    model.family = CountingText()
    model.module.lm_head.__class__ = Counting
    before = model.module.lm_head.weight.clone()
    assert "a forward pass of LlamaForCausalLM changes its own lm_head.weight" in refused(model, tmp_path)
    assert torch.equal(before, model.module.lm_head.weight)  # it was tried on another


def test_rwkv_is_the_same_however_often_it_ran(tmp_path: Path):
    """Its class divides weights in place when it leaves training, unless it is told not to."""
    config = transformers.RwkvConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, attention_hidden_size=32, rescale_every=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = transformers.RwkvForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "plain")
    model = zoo.load(tmp_path / "plain")
    batch = model.family.example(model)
    with torch.no_grad():
        logits = model.family.forward(model, batch)
        again = zoo.load(model.save(tmp_path / "saved"))
        assert torch.equal(logits, again.family.forward(again, batch))
        # its division shows only in the epsilon of the last norm
        assert torch.allclose(logits, theirs(**batch).logits, atol=2e-3)


def test_running_statistics_of_training_are_saved_as_they_stand(tmp_path: Path):
    model = zoo.load("timm:resnet10t?num_classes=10", weights="random")
    model.module.train()
    model.family.forward(model, model.family.example(model, batch=4))
    assert model.module.training
    again = zoo.load(model.save(tmp_path / "saved"))
    assert model.module.training and torch.equal(model.module.bn1.running_mean, again.module.bn1.running_mean)


def test_another_layout_in_memory_is_no_difference(tmp_path: Path):
    model = zoo.load("timm:resnet10t?num_classes=10", weights="random")
    model.module.to(memory_format=torch.channels_last)
    assert model.save(tmp_path / "saved")
    assert model.module.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_manifest_that_loading_would_refuse_is_not_written(model: Model, tmp_path: Path):
    model.module.double()
    model.dtype = "float64"
    with pytest.raises(ZooError, match="cannot be saved: dtype 'float64' is none of float32, bfloat16, float16"):
        model.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_proof_leaves_random_numbers_alone(model: Model, tmp_path: Path):
    state = torch.get_rng_state()
    model.save(tmp_path / "saved")
    assert torch.equal(state, torch.get_rng_state())
