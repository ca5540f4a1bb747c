"""Recipes: which model, which stages, where to. A short TOML file a person can read aloud.

[recipe]    name, seed
[model]     name (or path), weights, dtype
[data]      any roles; "train", "calibration" and "test" are what stages ask for
[[stage]]   use = "a compressor", and its options
[evaluate]  tasks, prompts, control, speed; a table per task for its options
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from zoo import registry
from zoo.compressor import Compressor
from zoo.data.reference import Reference
from zoo.errors import DataError, OutputError, RecipeError, RequestError, ZooError, nearest, spelled
from zoo.loading.locate import OWN, Located, locate
from zoo.options import CompressorOptions, validated
from zoo.plugins.names import declaration, is_known, of_kind
from zoo.system.reading import text_of, toml_of

if TYPE_CHECKING:
    from zoo.options import M


Dtype = Literal["", "float32", "bfloat16", "float16"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RecipeTable(_Table):
    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=100, description="what the result is called")
    seed: int = Field(0, ge=0, lt=2**63, description="everything random follows from it")
    summary: str = Field("", description="one line for the result's card")


class ModelTable(_Table):
    name: str = Field(description="a name of `zoo list`, or a directory")
    weights: str = Field("auto", description='"auto", "random", "dequantized", or a directory')
    dtype: Dtype = Field("", description="in memory; empty: the model's own")
    stored: Dtype = Field("", description="on disk; empty: as the model is stored")
    offload: bool = Field(
        False, description="keep its weights in files of the run's folder while it runs, for models larger than memory"
    )


class EvaluateTable(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    tasks: tuple[str, ...] | None = Field(
        None, description="evaluators run after every stage; left out: the one that suits the model"
    )
    baselines: tuple[str, ...] = Field((), description="evaluators that need only the test data, run once")
    prompts: tuple[str, ...] = Field((), description="shown with the model's answers after every stage")
    control: bool = Field(False, description="also train the same small architecture from random weights")
    speed: bool | dict[str, Any] = Field(
        True, description="measure speed and memory of every stage in a process of its own; a table: with these options"
    )

    def options(self, task: str) -> dict[str, Any]:
        return dict(self.tables().get(task, {}))

    def tables(self) -> dict[str, Any]:
        """The tables of options, and whatever else was written here, by task."""
        return {**(self.model_extra or {}), **({"speed": self.speed} if isinstance(self.speed, dict) else {})}


@dataclass(frozen=True)
class StageRequest:
    """One [[stage]] table, resolved and validated."""

    index: int
    compressor: Compressor
    options: CompressorOptions
    where: str  # "quickstart.toml, line 12, stage 1 (inherit)"
    asked: str = ""  # the compressor as the recipe names it, which may be "plugin:name"

    @property
    def use(self) -> str:
        return self.compressor.name

    @property
    def label(self) -> str:
        return f"stage {self.index + 1} ({self.asked or self.use})"


@dataclass(frozen=True)
class Recipe:
    """A validated recipe. `Recipe.load(path)` reads a file, `Recipe.parse(data)` a dict."""

    about: RecipeTable
    model: ModelTable
    data: Mapping[str, str]
    stages: tuple[StageRequest, ...]
    evaluate: EvaluateTable
    source: Mapping[str, Any] = field(default_factory=dict, repr=False)
    file: Path | None = None
    text: str = field(default="", repr=False)
    overrides: tuple[str, ...] = ()
    usual: str = ""  # the evaluator that was taken because it suits the model, the recipe naming none

    @property
    def base(self) -> Path:
        """The folder relative paths start at."""
        return self.file.parent if self.file else Path()

    def where(self, table: str, key: str = "") -> str:
        """Say where a key of a table is: "quickstart.toml, line 12, [data] test"."""
        return f"{_Places(self.file, self.text, self.overrides)(table, key)}, [{table}]" + (f" {key}" if key else "")

    def measured_by(self, task: str) -> Recipe:
        """This recipe, with `task` as what is measured where it says nothing of that itself.

        Raises:
            RecipeError: it has a table of options for another evaluator.
        """
        if self.evaluate.tasks is not None:
            return self
        evaluate = self.evaluate.model_copy(update={"tasks": (task,)})
        _check_tasks(evaluate, _Places(self.file, self.text, self.overrides))
        return replace(self, evaluate=evaluate, usual=task)

    def as_run(self) -> str:
        """The recipe's text with the overrides it was run with as comments on top."""
        return "".join(f"# run with --set {override}\n" for override in self.overrides) + self.text

    @classmethod
    def load(cls, path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe file; `overrides` are "stage.1.layers=first:3" and the like, with paths from where the command is run.

        Raises:
            RecipeError: the file is missing, is not TOML, or something in it does not fit; names file, line and nearest key.
        """
        path = Path(path)
        if not os.path.lexists(path):
            near = nearest(path.name, [p.name for p in path.parent.glob("*.toml")]) if path.parent.is_dir() else ""
            raise RecipeError(f"{path} does not exist.{near}")
        text = text_of(path, error=RecipeError)
        try:
            data = toml_of(text, path, error=RecipeError)
        except RecipeError:
            if other := _other_format(path, text):
                raise RecipeError(
                    f'{path} is {other}, and a recipe is TOML: [model] with name = "tiny-code", then a [[stage]] table for '
                    "each stage, as examples/quickstart.toml has them."
                ) from None
            raise
        for override in overrides:
            _override(data, override, base=path.parent)
        return cls.parse(data, file=path, text=text, overrides=overrides)

    @classmethod
    def parse(
        cls, data: Mapping[str, Any], *, file: Path | None = None, text: str = "", overrides: Sequence[str] = ()
    ) -> Recipe:
        """Validate a recipe given as a dict; the rest is for error messages, relative paths and the copy that is kept."""
        place = _Places(file, text, overrides)
        tables = ("recipe", "model", "data", "stage", "evaluate")
        for key in data:
            if key not in tables:
                raise RecipeError(
                    f"{place(key)}: there is no table {key!r}.{nearest(key, tables)} Tables: {', '.join(tables)}."
                )
        for key in ("recipe", "model"):
            if not isinstance(data.get(key), dict):
                raise RecipeError(f"{place()}: the table [{key}] is missing.")

        def table(key: str, kind: type[M]) -> M:
            return validated(kind, _table(data, key, place), what=f"[{key}]", place=lambda name: place(key, name))

        about, model, evaluate = (
            table("recipe", RecipeTable),
            table("model", ModelTable),
            table("evaluate", EvaluateTable),
        )
        _check_tasks(evaluate, place)
        roles = _table(data, "data", place)
        for role, reference in roles.items():
            if not isinstance(reference, str):
                raise RecipeError(
                    f'{place("data", role)}: {role} must be text such as "stdlib:train", not {type(reference).__name__}.'
                )
        stages = data.get("stage", [])
        if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
            raise RecipeError(f"{place('stage')}: write every stage as its own [[stage]] table.")
        requests = tuple(_stage(i, s, place, roles) for i, s in enumerate(stages))
        return cls(about, model, roles, requests, evaluate, dict(data), file, text, tuple(overrides))


def _other_format(path: Path, text: str) -> str:
    """The format that a file which is no TOML is in, as its name or its beginning says; "" where neither does."""
    by_name = {".yaml": "YAML", ".yml": "YAML", ".json": "JSON"}.get(path.suffix.lower(), "")
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    first = next(lines, "").strip()
    return by_name or ("JSON" if first[:1] == "{" else "YAML" if re.match(r"---$|[\w-]+:(\s|$)", first) else "")


def _stage(index: int, table: Mapping[str, Any], place: _Places, roles: Collection[str]) -> StageRequest:

    def here(key: str = "") -> str:
        return place("stage", key, index)

    use = table.get("use")
    if not isinstance(use, str):
        raise RecipeError(f'{here()}, stage {index + 1}: `use` is missing; it names a compressor, such as "inherit".')
    try:
        compressor = registry.compressor(use)
    except RequestError as error:
        raise type(error)(f"{here('use')}, stage {index + 1}: {error}") from None
    what = f"stage {index + 1} ({use})"
    options = validated(compressor.Options, {k: v for k, v in table.items() if k != "use"}, what=what, place=here)
    return StageRequest(index, compressor, compressor.resolved(options, roles), f"{here()}, {what}", use)


def _check_tasks(evaluate: EvaluateTable, place: _Places) -> None:
    tasks = evaluate.tasks or ()
    for key, task in (
        *(("tasks", task) for task in tasks),
        *(("baselines", task) for task in evaluate.baselines),
    ):
        try:
            declaration("evaluator", task)
        except RequestError as error:
            raise type(error)(
                f"{place('evaluate', key)}, [evaluate]: {str(error)[:1].lower()}{str(error)[1:]}"
            ) from None
        if key == "baselines" and not hasattr(registry.evaluator(task), "label"):
            raise RecipeError(
                f"{place('evaluate', key)}, [evaluate]: {task!r} measures a model, so it is no baseline; put it into tasks."
            )
    known = tasks if evaluate.tasks is not None else tuple(of_kind("evaluator"))
    for key, value in evaluate.tables().items():
        if key not in (*known, *evaluate.baselines, "speed") or not isinstance(value, dict):
            choices = (*EvaluateTable.model_fields, *known)
            raise RecipeError(
                f"{place('evaluate', key)}, [evaluate]: {key!r} is not an option.{nearest(key, choices)} Options: {', '.join(choices)}."
            )
        kind = getattr(registry.evaluator(key), "Options", None)
        if kind is not None:
            validated(kind, value, what=f"[evaluate.{key}]", place=partial(place.below, "evaluate", key))


def _table(data: Mapping[str, Any], key: str, place: _Places) -> dict[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise RecipeError(f"{place(key)}: [{key}] must be a table.")
    return value


class _Places:
    """Finds the line of a table or key in a recipe's text, for error messages."""

    def __init__(self, file: Path | None, text: str, overrides: Sequence[str] = ()) -> None:
        self.name = str(file) if file else "recipe"
        self.lines = text.splitlines()
        self.overridden = {override.partition("=")[0].strip() for override in overrides}

    def __call__(self, table: str = "", key: str = "", index: int = 0) -> str:
        path = (f"stage.{index + 1}.{key}" if table == "stage" else f"{table}.{key}").strip(".")
        steps = path.split(".")
        for over in (".".join(steps[:n]) for n in range(len(steps), 0, -1)):
            if over in self.overridden:
                return f"{self.name}, {spelled('override', '--set')} {over}"
        line = self._line(table, key, index)
        return f"{self.name}, line {line}" if line else self.name

    def below(self, table: str, inner: str, key: str) -> str:
        """The place of a key of a table inside a table, which may have a header or be written inline."""
        place = self(f"{table}.{inner}", key)
        return place if place != self.name else self(table, inner)

    def _line(self, table: str, key: str, index: int) -> int:
        header = re.compile(r"\s*\[\[?\s*([\w.-]+)\s*\]\]?\s*(#.*)?$")
        seen, current, found = -1, "", 0
        for number, line in enumerate(self.lines, 1):
            if match := header.match(line):
                current = match[1]
                seen += current == table == "stage"
                if (current == table or current == f"{table}.{key}") and (table != "stage" or seen == index):
                    found = found if current == table and found else number
                    if current == f"{table}.{key}":
                        return number
            elif (
                key
                and current == table
                and (table != "stage" or seen == index)
                and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line)
            ):
                return number
        return found


def _override(data: dict[str, Any], text: str, *, base: Path) -> None:
    """Apply "stage.1.layers=first:3"; the value is read as TOML, and as plain text where it is not TOML."""
    given = f"{spelled('override', '--set')} {text!r}"
    path, equals, raw = text.partition("=")
    if not equals or not all(part.strip() for part in path.split(".")):
        raise RequestError(f"{given}: write KEY=VALUE, such as stage.1.layers=first:3.")
    try:
        read = tomllib.loads(f"value = {raw}")
        value = read["value"] if len(read) == 1 else raw.strip()
    except (ValueError, RecursionError):
        value = raw.strip()
    *parents, last = path.strip().split(".")
    place: Any = data
    for part in parents:
        if isinstance(place, list):
            if not part.isdecimal() or not 0 < int(part) <= len(place):
                stages = f"stages are numbered from 1 to {len(place)}" if place else "the recipe has no stage"
                raise RequestError(f"{given}: there is no {path.strip()!r}; {stages}.")
            place = place[int(part) - 1]
        else:
            place = place.setdefault(part, {})
        if not isinstance(place, dict | list):
            raise RequestError(f"{given}: {part!r} is a value, not a table.")
    if not isinstance(place, dict):
        raise RequestError(f"{given}: name the option too, such as stage.1.layers=first:3.")
    place[last] = _from_here(path.strip(), value, base)


def _from_here(key: str, value: Any, base: Path) -> Any:
    """A value of an override; a path that is there where the command is run is written from `base`, as a recipe's own are."""
    if isinstance(value, dict):
        return {name: _from_here(f"{key}.{name}", inner, base) for name, inner in value.items()}
    if not isinstance(value, str) or not (text := value.strip()):
        return value
    path = ""
    if key.startswith("data."):
        with suppress(DataError):  # which opening it says better
            path = Reference.parse(text).source
    elif re.fullmatch(r"model\.(name|weights)|stage\.\d+\.teacher", key) and ("/" in text or text.startswith(".")):
        path = text
    outside = Path(path).is_absolute() or path.startswith("~") or is_known("data", path)
    if not path or outside or not _is_there(Path(path)) or base.resolve() == Path().resolve():
        return value
    return os.path.relpath(Path(path).resolve(), base.resolve()) + text[len(path) :]


def located(recipe: Recipe, name: str, weights: str = "auto") -> Located:
    """What a model or teacher name means, and weights; a path that exists beside the recipe is meant from there.

    Raises:
        UnknownName, RequestError: as `locate`.
    """
    beside, others = recipe.base / name, recipe.base / weights
    is_path = "/" in name or name.startswith(".")
    return locate(
        str(beside) if is_path and _is_there(beside) else name,
        str(others) if weights not in (*OWN, "random") and _is_there(others) else weights,
    )


def _is_there(path: Path) -> bool:
    """Whether a path exists; one that no file system takes, being too long, does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


class blamed:
    """Put file, line and stage, or another place in the recipe, in front of whatever is refused there.

    An output that cannot be written is not the recipe's fault.
    """

    def __init__(self, place: StageRequest | str, what: str = "") -> None:
        self.where, self.what = place if isinstance(place, str) else place.where, what

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ZooError) and not isinstance(error, OutputError) and not str(error).startswith(self.where):
            raise type(error)(f"{self.where}: {self.what}{error}") from None
