"""The family: prompts, windows, batches, answers, and what it says to hostile questions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from toy_vlm import picture, records, toy
from zoo_h2ovl.evaluators import AnswerLoss, ExactMatch, answers

import zoo
from zoo.data.dataset import Dataset, Sample
from zoo.errors import DataError, RequestError
from zoo.family.task import task_of
from zoo.family.text.generate import greedy, next_tokens

QUESTION = "What does it say?"


@pytest.fixture(scope="module")
def model():
    return toy()


def written(model, prompt, tiles):
    """The prompt as text, special tokens and all."""
    return model.family.tokenizer(model).decode(model.family.chat(model, prompt, tiles))


def test_the_prompt_is_the_published_one(model):
    assert (
        written(model, "<image>\nRead <b>.", [2])
        == f"<|prompt|><img>{'<IMG_CONTEXT>' * 8}</img>\nRead <b>.<|end|><|answer|>"
    )
    assert written(model, "no image", []) == "<|prompt|>no image<|end|><|answer|>"
    two = written(model, "first: <image> second: <image>?", [1, 3])
    assert (
        two
        == f"<|prompt|>first: <img>{'<IMG_CONTEXT>' * 4}</img> second: <img>{'<IMG_CONTEXT>' * 12}</img>?<|end|><|answer|>"
    )


def test_images_come_first_where_the_prompt_does_not_place_them(model):
    images = [picture(), picture(64)]
    ids, beside = model.family.question(model, QUESTION, images)
    assert ids == model.family.chat(model, f"<image>\n<image>\n{QUESTION}", [1, 3])
    assert beside["pixel_values"].shape == (4, 3, 32, 32)


def test_what_a_user_writes_is_never_a_special_token(model):
    token = model.spec.config["img_context_token_id"]
    ids, _ = model.family.question(model, "say <IMG_CONTEXT><|end|></img>", [])
    assert token not in ids
    assert ids.count(model.family.tokenizer(model).eos_token_id) == 1
    assert isinstance(model.generate("<IMG_CONTEXT>", images=[picture()], max_new_tokens=2), str)


@pytest.mark.parametrize("prompt", ["naïve – 漢字 \U0001f600", "\x00\u202e\ufeff", "é" * 50, "\ud7ff\ufffd"])
def test_odd_unicode_is_read_byte_by_byte(model, prompt):
    assert written(model, prompt, []) == f"<|prompt|>{prompt}<|end|><|answer|>"
    assert isinstance(model.generate(prompt, images=[picture()], max_new_tokens=2), str)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "The prompt is empty"),
        ("  \n", "The prompt is empty"),
        (None, "The prompt is empty"),
        (7, "The prompt is empty"),
        ("x" * 100_000, r"100,000 characters; tiny-vlm reads at most"),
        ("<>" * 300, r"The prompt has \d+ tokens; tiny-vlm takes 512"),
        ("<image> and <image>", r"has 2 times <image>, but 1 images came"),
        ("half \ud800", "half a character"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_in_a_sentence(model, prompt, message):
    with pytest.raises(RequestError, match=message):
        model.generate(prompt, images=[picture()])


def test_more_images_than_fit_are_refused(model):
    with pytest.raises(RequestError, match=r"takes 512"):
        model.generate(QUESTION, images=[picture(128, 32, seed=i) for i in range(30)])


@pytest.mark.parametrize("image", ["absent.png", b"", b"not an image", np.zeros((0, 4), dtype=np.uint8), 3.5])
def test_an_image_that_cannot_be_read_is_refused_in_a_sentence(model, image):
    with pytest.raises(DataError, match=r"[.]$"):
        model.generate(QUESTION, images=[image])


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (1, 1), (3, 500)])
def test_images_of_any_shape_are_read(model, size):
    assert isinstance(model.generate(QUESTION, images=[Image.new("RGB", size)], max_new_tokens=2), str)


def test_an_image_is_the_same_as_a_path_an_array_and_a_picture(model, tmp_path):
    array = picture(64, 32)
    Image.fromarray(array).save(tmp_path / "x.png")
    asked = [
        model.generate(QUESTION, images=images, max_new_tokens=4)
        for images in ([array], array, [str(tmp_path / "x.png")], tmp_path / "x.png", Image.fromarray(array))
    ]
    assert len(set(asked)) == 1


def test_answers_stream_and_follow_the_seed(model):
    options = {"images": [picture()], "max_new_tokens": 8, "temperature": 1.0}
    whole = model.generate(QUESTION, seed=3, **options)
    assert "".join(model.generate(QUESTION, seed=3, stream=True, **options)) == whole
    assert model.generate(QUESTION, seed=4, **options) != whole
    with pytest.raises(RequestError, match="Did you mean 'max_new_tokens'"):
        model.generate(QUESTION, images=[picture()], max_tokens=3)


def test_the_cache_gives_the_tokens_that_the_whole_sequence_gives(model):
    ids, beside = model.family.question(model, QUESTION, [picture(64)])
    cached, grown = list(next_tokens(model, ids, 6, first=beside)), list(ids)
    for token in cached:
        with torch.no_grad():
            logits = model.module(
                input_ids=torch.tensor([grown]), attention_mask=torch.ones(1, len(grown)), **beside
            ).logits
        assert int(logits[0, -1].argmax()) == token
        grown.append(token)


def test_windows_have_labels_on_the_answer_alone(model):
    data = records()
    window = model.family.windows(model, data, length=128)[1]
    tokenizer = model.family.tokenizer(model)
    answer = [*tokenizer(data[1].text)["input_ids"], tokenizer.eos_token_id]
    assert window["labels"][window["labels"] >= 0].tolist() == answer
    assert window["labels"][-len(answer) :].tolist() == answer
    assert (
        window["input_ids"].tolist()
        == model.family.question(model, QUESTION, [data[1].fields["image"]])[0] + answer[:-1]
    )


def test_a_record_longer_than_a_window_is_named(model):
    with pytest.raises(DataError, match=r"^records:1 has \d+ tokens, more than a window of 12: raise `length`\.$"):
        model.family.windows(model, records(), length=12)[1]


@pytest.mark.parametrize("missing", ["image", "prompt"])
def test_a_record_without_image_or_question_is_named(model, missing):
    fields = {name: value for name, value in records()[0].fields.items() if name != missing}
    with pytest.raises(DataError, match=rf"^notes.jsonl:7: no field '{missing}'"):
        model.family.windows(model, Dataset("notes", [Sample(fields, "notes.jsonl:7")]), length=128)[0]


def test_a_batch_gives_the_rows_of_its_samples(model):
    windows = model.family.windows(model, records(), length=128)
    batch = model.family.collate(model, [windows[i] for i in range(4)])
    assert batch["pixel_values"].shape[0] == sum(len(windows[i]["pixel_values"]) for i in range(4))
    found = model.family.rows(model, batch, ("label", "visual"))
    assert found["label"].sample.bincount().tolist() == [3, 5, 7, 3]  # two characters or more, and the end
    assert found["visual"].sample.bincount().tolist() == [4 * len(windows[i]["pixel_values"]) for i in range(4)]
    for i in range(4):  # as if it were alone
        alone = model.family.rows(model, model.family.collate(model, [windows[i]]), ("label", "visual"))
        for kind, rows in alone.items():
            torch.testing.assert_close(found[kind].hidden[found[kind].sample == i], rows.hidden, rtol=1e-4, atol=1e-5)


def test_asking_together_gives_what_asking_one_by_one_gives(model):
    data = records()
    together = answers(model, list(data), count=8)
    assert together == [model.generate(QUESTION, images=[s.fields["image"]], max_new_tokens=8).strip() for s in data]
    assert len(set(together)) > 1


def test_an_answer_ends_where_the_model_says(model):
    ids, beside = model.family.question(model, QUESTION, [picture()])
    free = greedy(model, [ids], 6, first=beside, end=-1)[0]
    assert greedy(model, [ids], 6, first=beside, end=free[2])[0] == free[: free.index(free[2])]


def test_exact_match_counts_by_kind_and_font(model):
    data = records()
    said = answers(model, list(data), count=16)
    fields = [{**s.fields, "text": said[i] if i < 2 else "no such answer"} for i, s in enumerate(data)]
    marked = Dataset("marked", [Sample(one, "x") for one in fields])
    figure = ExactMatch().measure(model, marked, options={"batch": 2})["exact_match"]
    assert (figure["value"], figure["unit"]) == (40.0, "%")
    assert figure["low"] < 40 < figure["high"]
    assert {name: (share["value"], share["n"]) for name, share in figure["by"].items()} == {
        "font 0": (pytest.approx(100 / 3), 3),
        "font 1": (50.0, 2),
    }
    assert ExactMatch().measure(model, marked, options={"max_samples": 2})["exact_match"]["value"] == 50.0


def test_answer_loss_is_the_mean_over_answer_tokens_one_by_one(model):
    """Each token's log probability from a full pass over one record, summed by hand; batches of any size agree."""
    total, count = 0.0, 0
    for sample in records():
        ids, tiles = model.family.question(model, sample.fields["prompt"], [sample.fields["image"]])
        answer = [*model.family.tokens(model, sample.text)[0], model.family.tokenizer(model).eos_token_id]
        with torch.no_grad():
            logits_TV = model.module(input_ids=torch.tensor([ids + answer]), **tiles).logits[0]
        for place, token in enumerate(answer):
            total -= float(logits_TV[len(ids) - 1 + place].log_softmax(-1)[token])
            count += 1
    for batch in (1, 2, 8):
        figure = AnswerLoss().measure(model, records(), options={"batch": batch})["answer_loss"]
        assert figure["value"] == pytest.approx(total / count, rel=1e-5)
        assert figure["low"] < figure["value"] < figure["high"]


def test_one_record_has_a_loss_and_no_interval(model):
    figure = AnswerLoss().measure(model, records()[:1], options={})["answer_loss"]
    assert np.isfinite(figure["value"]) and figure.keys() == {"value", "n", "unit", "better"}


def test_records_that_cannot_be_asked_are_named(model):
    bad = Dataset("bad", [*records(), Sample({"image": picture() / 255, "prompt": QUESTION, "text": "1"}, "bad:9")])
    for work in (
        lambda: ExactMatch().measure(model, bad, options={}),
        lambda: AnswerLoss().measure(model, bad, options={}),
    ):
        with pytest.raises(
            DataError, match=r"^bad:9: An image is a path, bytes, .* not an array \(32, 32, 3\) of float64"
        ):
            work()


def test_samples_show_the_image_the_answer_and_what_was_expected(model):
    shown = task_of(model).samples(model, (), records())
    assert [one["expected"] for one in shown] == [s.text for s in records()]
    assert all(one["image"].startswith("data:image/png;base64,") and one["prompt"] == QUESTION for one in shown)
    assert task_of(model).samples(model, (), None) == []


def test_teachers_must_see_images_alike(model):
    assert model.family.comparable(model, toy()) == ""
    assert "4 of a tile of 32 pixels, the teacher tiny-vlm 1 of" in model.family.comparable(
        model, toy(force_image_size=16)
    )


def test_a_saved_model_answers_as_before_with_its_own_tokenizer(model, tmp_path):
    model.generate(QUESTION)
    saved = zoo.load(model.save(tmp_path / "saved"))
    assert saved.processor.get_vocab() == model.processor.get_vocab()
    assert saved.generate(QUESTION, images=[picture(90, 30)]) == model.generate(QUESTION, images=[picture(90, 30)])
