"""Causal language models: what they write goes on from what they read, be it a text, a chat or code around a gap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from zoo.errors import RequestError
from zoo.family.text.task import WritingTask, fitting, text_family
from zoo.family.text.tokens import LONGEST_TOKEN

if TYPE_CHECKING:
    from zoo.model.model import Model


class CausalLM(WritingTask):
    """A token sees those before it, and the next one is predicted."""

    name: ClassVar[str] = "causal-lm"
    causal: ClassVar[bool] = True
    continues: ClassVar[bool] = True
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    mapping: ClassVar[str] = "CAUSAL_LM"
    endings: ClassVar[tuple[str, ...]] = ("CausalLM", "LMHeadModel")
    own_ending: ClassVar[str] = "ForCausalLM"

    def formatted(self, model: Model, prompt: Any, *, messages: Any = None, **code: Any) -> Any:
        """The prompt, or what messages or parts of code become in the model's own format."""
        from zoo.family.text.chat import FormattedPrompt, check_messages, render
        from zoo.family.text.code import code_prompt

        family = text_family(model)
        code = {name: value for name, value in code.items() if value is not None}
        if messages is None and not code:
            return prompt
        if messages is not None and (prompt is not None or code):
            raise RequestError(
                f"messages take the place of a prompt: leave out {', '.join(['the prompt'] * (prompt is not None) + list(code))}."
            )
        if isinstance(prompt, list):
            raise RequestError(f"Several prompts are plain texts: leave out {', '.join(code)}, or pass one prompt.")
        if messages is None:
            return code_prompt(family.tokenizer(model), prompt, name=model.spec.name, **code)
        check_messages(messages)
        most = LONGEST_TOKEN * family.context_length(model)
        return FormattedPrompt(render(family.tokenizer(model), messages, name=model.spec.name, most=most))

    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        """Time one pass over a prompt, and the tokens after a short one."""
        import time

        from zoo.family.text.generate import next_tokens

        figures = super().speeds(model, prefill=prefill, decode=decode)
        prefill, decode = fitting(model, prefill, decode)
        context = text_family(model).context_length(model)
        short = min(16, prefill, max(1, context - decode - 1))
        prompt = model.family.example(model, batch=1, size=prefill)["input_ids"][0, :short]
        tokens = next_tokens(model, prompt.tolist(), decode + 1)
        next(tokens)  # the prompt's own pass
        start = time.perf_counter()
        return figures | {"decode_tokens_per_s": sum(1 for _ in tokens) / (time.perf_counter() - start)}
