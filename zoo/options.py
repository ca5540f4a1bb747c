"""Options: a table of values checked against a pydantic model, whose errors are a sentence with the nearest key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from zoo.errors import RecipeError, nearest


class CompressorOptions(BaseModel):
    """Base of every stage's options: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)
Spelling = Callable[[str, Any], str]  # how a value is written in a sentence, from its key and itself


def validated(kind: type[M], values: Mapping[str, Any], *, what: str, place: Any = None) -> M:
    """Validate a table against a pydantic model; the first problem becomes one sentence with the nearest key."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        key, problem = problem_of(kind, values, error)
        raise RecipeError(f"{f'{place(key)}, {what}' if place else what}: {problem}") from None


def problem_of(
    kind: type[BaseModel], values: Mapping[str, Any], error: ValidationError, *, spell: Spelling | None = None
) -> tuple[str, str]:
    """The key of the first problem, and a sentence that says it; a misspelt key comes before the key it leaves missing."""
    problems = error.errors()
    problem = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    key = str(problem["loc"][0]) if problem["loc"] else ""
    *path, name = problem["loc"] or ("",)
    inside = f"{key}: " if path else ""  # of a table in the table
    if problem["type"] == "extra_forbidden":
        known = _table_at(kind, path).model_fields
        near = nearest(str(name), known)
        return key, f"{inside}{name!r} is not an option.{near} Options: {', '.join(known) or 'none'}."
    if problem["type"] == "missing":
        about = _table_at(kind, path).model_fields[str(name)].description
        return key, f"{inside}{name!r} is missing{f' ({about})' if about else ''}."
    if not key:
        return key, f"{_plainly(problem['msg'])}."
    value = values.get(key)
    message = ", or ".join(
        dict.fromkeys(_plainly(p["msg"]) for p in problems if p["loc"] and p["loc"][0] == problem["loc"][0])
    )
    message = message.replace(", or input should be ", ", or ")
    near = (
        nearest(value, re.findall(r"'([^']*)'", message))
        if isinstance(value, str) and "literal_error" in {p["type"] for p in problems}
        else ""
    )
    return key, f"{spell(key, value) if spell else f'{key} = {_short(value)}'}: {message}.{near}"


def _table_at(kind: type[BaseModel], path: Iterable[Any]) -> type[BaseModel]:
    """The class of a table in a table, such as one of a list of them."""
    for step in path:
        if isinstance(step, str) and step in kind.model_fields:
            kind = next(_tables(kind.model_fields[step].annotation), kind)
    return kind


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _tables(part)


PLAIN = {
    "valid string": "text",
    "valid tuple": "list",
    "valid list": "list",
    "valid integer": "whole number",
    "valid number": "number",
    "valid boolean": "true or false",
    "valid dictionary": "table",
}  # what pydantic calls the types of TOML


def _plainly(message: str) -> str:
    """What pydantic says, in the words of a recipe's reader."""
    message = re.sub(r", (unable|got a number|unable to).*", "", message.removeprefix("Value error, ")).rstrip(".")
    message = message[:1].lower() + message[1:]
    for theirs, ours in PLAIN.items():
        message = message.replace(f"a {theirs}", ours if ours in ("text", "true or false") else f"a {ours}")
    return message


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
