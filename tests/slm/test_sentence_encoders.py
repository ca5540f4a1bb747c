"""Sentence encoders: vectors as sentence-transformers computes them, folders that come back as they came, refusals by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentences import (
    CONFIG,
    DENSE,
    SENTENCES,
    WIDTH,
    dense,
    plain_folder,
    sentence_folder,
    tokenizer,
    transformer,
    write,
)
from torch import nn

import zoo
from zoo.errors import ArtifactError, RequestError, ZooWarning

LEGACY = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
AROUND = {**DENSE, "bias": False, "activation_function": "torch.nn.modules.linear.Identity", "use_residual": True}
QUERY = {"prompts": {"query": "w30 w31 ", "document": ""}, "default_prompt_name": "query"}
# What a folder says beside the transformer, and what is expected of it: (arguments of sentence_folder, of reference)
FOLDERS = {
    **{mode: ({"pooling": {f"pooling_mode_{mode}": True}}, {"modes": [mode]}) for mode in LEGACY},
    "all": (
        {"pooling": {f"pooling_mode_{mode}": True for mode in LEGACY}, "after": []},
        {"modes": LEGACY, "norm": False},
    ),
    "new names": (
        {"pooling": {"embedding_dimension": WIDTH, "pooling_mode": ["mean", "cls"]}},
        {"modes": ["mean_tokens", "cls_token"]},
    ),
    "dense": ({"after": [DENSE, None]}, {"dense": DENSE}),
    "dense with a way around": ({"after": [AROUND]}, {"dense": AROUND, "norm": False}),
    "small letters": (
        {"transformer_config": {"max_seq_length": 6, "do_lower_case": True}},
        {"lower": True, "longest": 6},
    ),
    "prompt": ({"settings": QUERY}, {"prompt": "w30 w31 "}),
    "prompt that does not count": (
        {"settings": QUERY, "pooling": {"pooling_mode_weightedmean_tokens": True, "include_prompt": False}},
        {"modes": ["weightedmean_tokens"], "prompt": "w30 w31 ", "given": 3},
    ),
}


def pool(mode, hidden_TD, given):
    """One sentence's tokens, without padding: the formulas of sentence-transformers' Pooling, one by one."""
    counted = [vector for place, vector in enumerate(hidden_TD) if place >= given]
    weights = range(given + 1, len(hidden_TD) + 1)
    return {
        "cls_token": lambda: counted[0],
        "max_tokens": lambda: torch.stack(counted).max(0).values,
        "mean_tokens": lambda: sum(counted) / len(counted),
        "mean_sqrt_len_tokens": lambda: sum(counted) / len(counted) ** 0.5,
        "weightedmean_tokens": lambda: sum(w * v for w, v in zip(weights, counted, strict=True)) / sum(weights),
        "lasttoken": lambda: counted[-1],
    }[mode]()


@torch.no_grad()
def reference(
    backbone,
    texts,
    *,
    modes=("mean_tokens",),
    dense_of=None,
    norm=True,
    lower=False,
    longest=8,
    prompt="",
    given=0,
    **named,
):
    """The vectors of texts, one after the other."""
    config = named.get("dense")
    weights = dense(config) if config else {}
    vectors = []
    for text in texts:
        words = (prompt + text).lower() if lower else prompt + text
        ids = tokenizer()(words, truncation=True, max_length=longest)["input_ids"]
        hidden_TD = backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
        vector = torch.cat([pool(mode, hidden_TD, given) for mode in modes])
        if config:
            made = F.linear(vector, weights["linear.weight"], weights.get("linear.bias"))
            made = made if config is AROUND else torch.tanh(made)
            vector = made + F.linear(vector, weights["residual.weight"]) if config is AROUND else made
        vectors.append(vector / vector.norm() if norm else vector)
    return torch.stack(vectors).numpy()


def near(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6)  # batches are padded, and sums in another order


@pytest.fixture(params=FOLDERS)
def case(request, tmp_path):
    arguments, expected = FOLDERS[request.param]
    return sentence_folder(tmp_path / "encoder", **arguments), expected


@pytest.mark.filterwarnings("ignore::zoo.errors.ZooWarning")
def test_vectors_are_those_of_the_formulas(case):
    folder, expected = case
    near(zoo.load(folder).generate(list(SENTENCES)), reference(transformer(), SENTENCES, **expected))


@pytest.mark.filterwarnings("ignore::zoo.errors.ZooWarning")
def test_vectors_are_those_of_sentence_transformers_before_and_after_they_are_saved(case, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    folder, _ = case
    theirs = library.SentenceTransformer(str(folder), device="cpu").encode(list(SENTENCES))
    model = zoo.load(folder)
    near(model.generate(list(SENTENCES)), theirs)
    saved = library.SentenceTransformer(str(model.save(tmp_path / "saved")), device="cpu")
    near(saved.encode(list(SENTENCES)), theirs)


def test_a_transformer_alone_gives_the_mean_of_its_tokens_and_comes_back_as_one(tmp_path):
    folder = plain_folder(tmp_path / "bert")
    model = zoo.load(folder)
    assert model.spec.task == "embedding"
    near(model.generate(list(SENTENCES)), reference(transformer(), SENTENCES, longest=32, norm=False))
    saved = model.save(tmp_path / "saved")
    from transformers import AutoModel

    again, report = AutoModel.from_pretrained(saved, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in transformer().state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not (saved / "modules.json").exists()
    assert np.array_equal(zoo.load(saved).generate("w5 w6"), model.generate("w5 w6"))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("roberta", {"pad_token_id": 0}),
        ("xlm-roberta", {"pad_token_id": 0}),
        ("nomic_bert", {"pad_token_id": 0}),
        ("distilbert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}),
        ("mpnet", {"pad_token_id": 0}),
        ("modernbert", {"pad_token_id": 0, "global_attn_every_n_layers": 2}),
        ("qwen3", {"head_dim": 8, "num_key_value_heads": 2}),
        ("t5", {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8}),
    ],
)
def test_transformers_of_other_types_are_read_alike_in_a_batch_and_alone(kind, changes, tmp_path):
    whole = transformer(kind, **changes)
    model = zoo.load(sentence_folder(tmp_path / kind, model=whole, pooling={"pooling_mode_lasttoken": True}))
    vectors = model.generate(list(SENTENCES[:2]))
    near(vectors, np.stack([model.generate(sentence) for sentence in SENTENCES[:2]]))
    backbone = whole.get_encoder() if kind == "t5" else whole
    near(vectors, reference(backbone, SENTENCES[:2], modes=["lasttoken"]))
    again = zoo.load(model.save(tmp_path / "saved"))
    assert np.array_equal(again.generate(SENTENCES[0]), model.generate(SENTENCES[0]))


def test_heads_and_poolers_that_are_stored_or_not(tmp_path):
    """A masked model's folder with modules.json beside it is an encoder, whose class would make a pooler of random numbers."""
    from transformers import BertForMaskedLM

    encoder = transformer()
    masked = BertForMaskedLM(encoder.config)
    masked.bert.load_state_dict({k: v for k, v in encoder.state_dict().items() if "pooler" not in k})
    model = zoo.load(sentence_folder(tmp_path / "masked", model=masked.eval()))
    assert model.module.backbone.pooler is None
    near(model.generate(list(SENTENCES[:2])), reference(encoder, SENTENCES[:2]))
    assert zoo.load(tmp_path / "masked", device="meta").params == model.params
    again = zoo.load(model.save(tmp_path / "saved"))
    assert np.array_equal(again.generate(SENTENCES[0]), model.generate(SENTENCES[0]))
    kept = zoo.load(sentence_folder(tmp_path / "kept"))
    assert kept.params == model.params + WIDTH * WIDTH + WIDTH


def test_long_sentences_are_cut_and_it_is_said(tmp_path):
    model = zoo.load(sentence_folder(tmp_path / "encoder"))
    with pytest.warns(ZooWarning, match="1 sentence is longer than 8 tokens, and cut there"):
        cut = model.generate("w5 w6 w7 w8 w9 w10 w11 w12")
    near(cut, model.generate("w5 w6 w7 w8 w9 w10"))


def change(file, **values):
    write(file, {**json.loads(file.read_text()), **values})


def modules(*types):
    return lambda folder: write(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": "" if not i else f"{i}_x", "type": kind} for i, kind in enumerate(types)],
    )


ST = "sentence_transformers.models."
REFUSED = {
    "begins with StaticEmbedding": modules(f"{ST}StaticEmbedding"),
    "a LSTM follows the Pooling; what is computed here is Dense and Normalize": modules(
        f"{ST}Transformer", f"{ST}Pooling", f"{ST}LSTM"
    ),
    "a Pooling is to follow the Transformer, and there is Normalize": modules(f"{ST}Transformer", f"{ST}Normalize"),
    "asks for code of its own .'mine.Pooling'.": modules(f"{ST}Transformer", "mine.Pooling"),
    "pools by 'median'": lambda folder: change(folder / "1_Pooling/config.json", pooling_mode="median"),
    "'layers' is none of the settings": lambda folder: change(folder / "1_Pooling/config.json", layers=4),
    "the activation 'os.system' is none of torch's": lambda folder: change(
        folder / "2_Dense/config.json", activation_function="os.system"
    ),
    "module_input_name is 'token_embeddings'": lambda folder: change(
        folder / "2_Dense/config.json", module_input_name="token_embeddings"
    ),
    "'linear.bias' has shape .16,., its config says .8,.": lambda folder: change(
        folder / "2_Dense/config.json", out_features=8
    ),
    "in_features is 16, and the vectors before it have 32 numbers": lambda folder: change(
        folder / "2_Dense/config.json", in_features=16
    ),
    "2_Dense/model.safetensors is missing": lambda folder: (folder / "2_Dense/model.safetensors").unlink(),
    "the transformer does 'fill-mask'": lambda folder: change(folder / CONFIG, transformer_task="fill-mask"),
    "'query_expansion' is a setting that is not read": lambda folder: change(
        folder / CONFIG, query_expansion={"length": 8}
    ),
    "is of a CrossEncoder": lambda folder: change(
        folder / "config_sentence_transformers.json", model_type="CrossEncoder"
    ),
    "the default prompt 'q' is none of its prompts": lambda folder: change(
        folder / "config_sentence_transformers.json", default_prompt_name="q"
    ),
    "names a path outside of the folder": lambda folder: (folder / "modules.json").write_text(
        (folder / "modules.json").read_text().replace("1_Pooling", "../1_Pooling")
    ),
    "modules.json is damaged: it holds no JSON list": lambda folder: (folder / "modules.json").write_text("{"),
}


@pytest.mark.parametrize("reason", REFUSED)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_not_computed_here_is_refused_by_name(reason, device, tmp_path):
    folder = sentence_folder(tmp_path / "encoder", after=[DENSE, None])
    REFUSED[reason](folder)
    if device == "meta" and ("has shape" in reason or "is missing" in reason):
        pytest.skip("a skeleton reads no weights of a head")
    with pytest.raises((RequestError, ArtifactError), match=reason):
        zoo.load(folder, device=device)


def test_a_transformer_that_reads_no_mask_is_refused(tmp_path):
    folder = plain_folder(tmp_path / "fnet", transformer("fnet"))
    with pytest.raises(RequestError, match=r"FNetModel \(fnet\) takes no attention_mask"):
        zoo.load(folder)


@pytest.mark.parametrize("name", ["BartModel", "ViTModel", "WhisperModel"])
def test_models_that_are_no_encoders_of_text_are_still_refused(name, tmp_path):
    write(
        tmp_path / "config.json",
        {"model_type": name.removesuffix("Model").lower(), "architectures": [name]}
        | ({"is_encoder_decoder": True} if name == "BartModel" else {}),
    )
    with pytest.raises(RequestError, match=f"holds a {name} "):
        zoo.load(tmp_path, device="meta")


def test_layers_that_were_changed_are_told_from_those_of_a_plain_folder(tmp_path):
    model = zoo.load(sentence_folder(tmp_path / "encoder", after=[DENSE]))
    model.module.head["1"].linear = nn.Sequential(model.module.head["1"].linear)
    assert "head.1.linear is of class Sequential" in model.family.write_foreign(model, tmp_path)
