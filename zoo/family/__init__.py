"""Families: how one architecture family is built, fed, run, and where its parts are.

`Family` is what every modality shares; one base class per modality holds what is common to it, so that a new
architecture of a known modality is little more than `config`, `build` and `anatomy`. `Task` is what models are for; a
family returns one by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.faces import face

if TYPE_CHECKING:
    from zoo.family.base import Family as Family
    from zoo.family.diffusion.family import TextToImageFamily as TextToImageFamily
    from zoo.family.diffusion.options import TextToImageOptions as TextToImageOptions
    from zoo.family.options import GenerateOptions as GenerateOptions
    from zoo.family.task import Task as Task
    from zoo.family.task import task_of as task_of
    from zoo.family.text.causal import CausalLM as CausalLM
    from zoo.family.text.family import TextFamily as TextFamily
    from zoo.family.text.masked import MaskedLM as MaskedLM
    from zoo.family.text.options import ContinuationOptions as ContinuationOptions
    from zoo.family.text.options import TextOptions as TextOptions
    from zoo.family.text.seq2seq import Seq2Seq as Seq2Seq
    from zoo.family.text.task import TextTask as TextTask
    from zoo.family.vision.classifier import VisionFamily as VisionFamily
    from zoo.family.vision.language import VisionLanguageFamily as VisionLanguageFamily
    from zoo.family.vision.options import VisionLanguageOptions as VisionLanguageOptions
    from zoo.family.vision.options import VisionOptions as VisionOptions
    from zoo.tensors.batch import Batch as Batch
    from zoo.tensors.batch import Rows as Rows

HOMES = {
    "zoo.family.base": ("Family",),
    "zoo.family.diffusion.family": ("TextToImageFamily",),
    "zoo.family.diffusion.options": ("TextToImageOptions",),
    "zoo.family.options": ("GenerateOptions",),
    "zoo.family.task": ("Task", "task_of"),
    "zoo.family.text.causal": ("CausalLM",),
    "zoo.family.text.family": ("TextFamily",),
    "zoo.family.text.masked": ("MaskedLM",),
    "zoo.family.text.options": ("ContinuationOptions", "TextOptions"),
    "zoo.family.text.seq2seq": ("Seq2Seq",),
    "zoo.family.text.task": ("TextTask",),
    "zoo.family.vision.classifier": ("VisionFamily",),
    "zoo.family.vision.language": ("VisionLanguageFamily",),
    "zoo.family.vision.options": ("VisionLanguageOptions", "VisionOptions"),
    "zoo.tensors.batch": ("Batch", "Rows"),
}
__getattr__, __dir__ = face(__name__, HOMES)
