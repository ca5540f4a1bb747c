"""What `generate` takes, as a class of the family: `Options`, in a file that imports no torch.

`zoo run MODEL --help` shows its fields, `zoo run` and `model.generate` check what they are given against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.errors import RequestError, nearest
from zoo.options import Spelling, problem_of

if TYPE_CHECKING:
    from zoo.family.base import Family
    from zoo.plugins.declarations import ModelSpec

Stream = Annotated[bool, Field(description="an iterator over pieces of the text, which come as they are made")]


class GenerateOptions(BaseModel):
    """Base of every family's `Options`: a field for each thing that `generate` takes, the prompt included.

    `zoo run` has a flag for the fields that some registry.toml declares in an [[option]] table, whose summary is the help of
    the flag unless the field has a description. A field of another type than text, number, truth, path, `Literal` or a list
    of these is for Python alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    makes: ClassVar[str] = "text"  # what `generate` returns: "text", "images" or "vectors"
    left: ClassVar[tuple[str, ...] | None] = None  # the fields that a family with `takes` leaves of those of its base

    @classmethod
    def of(cls, task: str) -> type[GenerateOptions]:
        """The options of a model of that task, where a task takes only some; of "", all."""
        return cls

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """What `generate` takes."""
        return tuple(cls.model_fields) if cls.left is None else cls.left

    @classmethod
    def only(cls, names: Iterable[str], *, makes: str) -> type[GenerateOptions]:
        """The same options, but for those that are not named; whether an answer is streamed is no matter of the model's."""
        fields = cls.names()
        kept = tuple(name for name in dict.fromkeys((*names, "stream")) if name in fields)

        class Only(cls):  # type: ignore[valid-type, misc]
            left: ClassVar[tuple[str, ...] | None] = kept

        Only.makes = makes
        return Only


def checked(
    family: Family,
    spec: ModelSpec,
    values: Mapping[str, Any],
    *,
    written: bool = False,
    spell: Spelling | None = None,
) -> dict[str, Any]:
    """Return what a model's `generate` is given as the class of its options has it.

    Args:
        written: the values are words of a command line, from which numbers are read.
        spell: how a value is written in the sentence about one that does not fit.

    Raises:
        RequestError: the model takes no such option, or a value does not fit.
    """
    options = family.options_of(spec.task)
    if options.model_config.get("extra") != "allow":
        known = [name for name in options.names() if name != "prompt"]
        for name in values.keys() - {*known, "prompt"}:
            of, near = "", nearest(name, known)
            if name in family.options_of("").names():
                of, near = f" for {spec.name}, a {spec.task} model", ""
            raise RequestError(f"{name!r} is not an option of generate{of}.{near} Options: {', '.join(known)}.")
    try:
        valid = options.model_validate(dict(values), strict=False if written else None)
    except ValidationError as error:
        raise RequestError(problem_of(options, values, error, spell=spell)[1]) from None
    return {name: getattr(valid, name) for name in valid.model_fields_set}
