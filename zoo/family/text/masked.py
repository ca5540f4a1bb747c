"""Masked language models: the likeliest words in place of each mask of a text; hidden tokens, to learn from.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.errors import RequestError
from zoo.family.text.task import TextTask, text_family
from zoo.family.text.tokens import require_text
from zoo.tensors.batch import Batch

if TYPE_CHECKING:
    import torch

    from zoo.family.text.family import TextFamily
    from zoo.model.model import Model

Words = list[tuple[str, float]]


class MaskedLM(TextTask):
    """A token sees all others, and those that are hidden are predicted."""

    name: ClassVar[str] = "masked-lm"
    masks: ClassVar[bool] = True
    takes_any_prompt: ClassVar[bool] = False  # it has to hold a mask
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    mapping: ClassVar[str] = "MASKED_LM"
    endings: ClassVar[tuple[str, ...]] = ("MaskedLM",)
    own_ending: ClassVar[str] = "ForMaskedLM"

    def draw(self, model: Model, batch: Batch, generators: Sequence[torch.Generator]) -> Batch:
        """Where the tokenizer has a mask token, hide some tokens anew, which become the labels."""
        mask = getattr(model.processor, "mask_token_id", None)
        return batch if mask is None else hide(model, batch, int(mask), generators)

    def shared_batch(self, student: Model, teacher: Model, batch: Batch) -> Batch:
        """Some tokens are drawn from the student's whole table: bring those beyond the teacher's into it."""
        return batch | {"input_ids": batch["input_ids"] % text_family(student).vocabulary(teacher)}

    def generate(self, model: Model, prompt: Any, *, several: bool, stream: bool, **options: Any) -> Any:
        count = options.pop("count", 5)
        answers = [_shown(self.fills(model, text, count)) for text in (prompt if several else [prompt])]
        if stream:
            return answers[0]
        texts = ["".join(pieces) for pieces in answers]
        return texts if several else texts[0]

    def fills(self, model: Model, prompt: str, count: Any) -> Iterator[Words]:
        require_text(prompt)
        name, family = model.spec.name, text_family(model)
        tokenizer = family.tokenizer(model)
        _require_count(count)
        if tokenizer.mask_token_id is None:
            raise RequestError(f"{name} fills in no words: its tokenizer has no mask token.")
        ids = tokenizer(prompt, verbose=False)["input_ids"]
        family.require_known(model, ids)
        if tokenizer.mask_token_id not in ids:
            raise RequestError(
                f"{name} fills in words, and the prompt leaves none out: write {tokenizer.mask_token} in place of one."
            )
        if len(ids) > (most := family.context_length(model)):
            raise RequestError(f"The prompt has {len(ids)} tokens; {name} takes {most} in all.")
        return _likeliest(family, model, ids, count)


def _require_count(count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise RequestError(f"count = {count!r} is not a number of words from 1.")


def _likeliest(family: TextFamily, model: Model, ids: list[int], count: int) -> Iterator[Words]:
    import torch

    from zoo.model.health import require_finite_outputs

    tokenizer = family.tokenizer(model)
    ids_T = torch.tensor(ids, device=model.device)
    batch = {"input_ids": ids_T[None], "attention_mask": torch.ones_like(ids_T)[None]}
    with torch.inference_mode():
        logits_TV = family.forward(model, batch)[0].float()
    for position in (at for at, token in enumerate(ids) if token == tokenizer.mask_token_id):
        require_finite_outputs(model, logits_TV[position].amax(-1, keepdim=True), batch, of="the prompt")
        best = logits_TV[position].softmax(-1).topk(min(count, logits_TV.shape[-1]))
        words = [_word(tokenizer, token) for token in best.indices.tolist()]
        yield list(zip(words, best.values.tolist(), strict=True))


def _word(tokenizer: Any, token: int) -> str:
    """A token as it reads in a text; white space and the like spelled out."""
    text = str(tokenizer.decode([token]))
    return text.strip() if text.strip().isprintable() and text.strip() else repr(text)


def _shown(candidates: Iterator[Words]) -> Iterator[str]:
    """One word a line; what is for another mask comes after an empty line."""
    for number, words in enumerate(candidates):
        yield ("\n\n" if number else "") + "\n".join(f"{100 * chance:5.1f} %  {word}" for word, chance in words)


def hide(model: Model, batch: Batch, mask: int, generators: Sequence[torch.Generator]) -> Batch:
    """Hide some tokens of each window: most become the mask, some another token, some stay (Devlin et al. 2019, 1810.04805, section 3.1).

    The share is the config's `mlm_probability`, 0.15 where it has none, and at least one of each window. Special tokens
    are not hidden.
    """
    import torch

    ids_BT = batch["input_ids"]
    length, vocabulary = ids_BT.shape[1], text_family(model).vocabulary(model)
    chances = torch.stack([torch.rand(2, length, generator=generator) for generator in generators])
    draw_BT, kind_BT = chances.to(ids_BT.device).unbind(1)
    others = [torch.randint(0, vocabulary, (length,), generator=generator) for generator in generators]
    other_BT = torch.stack(others).to(ids_BT.device)
    special = ids_BT.new_tensor(getattr(model.processor, "all_special_ids", []))
    special_BT = torch.isin(ids_BT, special)
    draw_BT = draw_BT.masked_fill(special_BT & ~special_BT.all(1, keepdim=True), 2.0)  # these are never hidden
    share = float(getattr(getattr(model.module, "config", None), "mlm_probability", 0.15))
    hidden_BT = draw_BT <= draw_BT.amin(1, keepdim=True).clamp_min(share)
    shown_BT = torch.where(kind_BT < 0.8, mask, torch.where(kind_BT < 0.9, other_BT, ids_BT))
    return {
        **batch,
        "input_ids": torch.where(hidden_BT, shown_BT, ids_BT),
        "labels": ids_BT.masked_fill(~hidden_BT, -1),
    }
