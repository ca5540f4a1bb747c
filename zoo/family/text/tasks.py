"""The tasks of language models by name, in the order in which a class of several of them is taken."""

from __future__ import annotations

from zoo.family.text.causal import CausalLM
from zoo.family.text.embedding import TextEmbedding
from zoo.family.text.masked import MaskedLM
from zoo.family.text.seq2seq import Seq2Seq
from zoo.family.text.task import TextTask

ALL: tuple[TextTask, ...] = (Seq2Seq(), CausalLM(), MaskedLM(), TextEmbedding())
TASKS: dict[str, TextTask] = {task.name: task for task in ALL}


def task_named(name: str) -> TextTask:
    """The task of a name; one that is not ours is taken to be that of a causal model."""
    return TASKS.get(name, TASKS[CausalLM.name])


def named_after(class_name: str, *, alone: bool = False) -> str:
    """The task that a class is named after, as transformers ends the names of its classes; "" where it is none's.

    For classes that no table has; what a model is is asked of its structure.

    Args:
        alone: by ends that no class of another task has.
    """
    for name, task in TASKS.items():
        ends = task.own_ending if alone else task.endings
        if ends and class_name.endswith(ends):
            return name
    return ""
