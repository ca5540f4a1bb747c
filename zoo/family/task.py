"""What every task is: what models are for, and so how fast they are at it, what they show in a report, which prompts they take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from zoo.data.dataset import Dataset
    from zoo.model.model import Model


class Task(ABC):
    """What models are for. Instances are stateless; `task_of(model)` is the one of a model."""

    name: ClassVar[str]  # as `tasks` of a family and `task` of a model have it
    masks: ClassVar[bool] = False  # whether its models name, and learn, what a mask token hides
    writes: ClassVar[bool] = False  # whether the module writes token after token, and keeps what it has read
    causal: ClassVar[bool] = False  # whether a token sees only those before it
    takes_any_prompt: ClassVar[bool] = True  # or any image; `zoo compress` then says how to try what it made

    @abstractmethod
    def speeds(self, model: Model, *, prefill: int, decode: int) -> dict[str, float]:
        """Run once and return figures a second, such as {"decode_tokens_per_s": 130.0}.

        Args:
            prefill, decode: tokens of the prompt and tokens generated, for models that read and write tokens.
        """

    def kinds(self, model: Model) -> tuple[str, ...]:
        """Name the kinds of rows that losses can compare."""
        return model.family.kinds

    def losses(self, model: Model) -> tuple[Mapping[str, Any], ...]:
        """Say what `train` minimises unless a recipe says otherwise; nothing where no data says what is right."""
        return model.family.losses

    def distillation(self, model: Model) -> tuple[Mapping[str, Any], ...]:
        """Say what `distill` minimises unless a recipe says otherwise."""
        return model.family.distillation

    def makes(self, model: Model) -> str:
        """Say what `generate` returns: "text", "images" or "vectors"."""
        return model.family.makes

    def usual_data(self, model: Model) -> str:
        """Name the data for `zoo eval` where nothing else is asked for; "" where there is none."""
        return model.family.evaluation[1]

    def usual_evaluator(self, model: Model, data: Dataset | None) -> str:
        """Name the evaluator for `data` where a recipe or `zoo eval` names none."""
        return model.family.evaluation[0]

    def check_prompts(self, model: Model, prompts: Sequence[str]) -> None:
        """Refuse the prompts that `samples` would refuse, from the model's structure and, where it has one, its processor."""

    def samples(self, model: Model, prompts: Sequence[str], data: Dataset | None) -> list[dict[str, str]]:
        """Answer for a report: [{"prompt", "output"}], with "expected" and "image" or "caption" (a data URI) where they help."""
        return []


def task_of(model: Model) -> Task:
    """What a model is for."""
    return model.family.task(model.spec.task)
