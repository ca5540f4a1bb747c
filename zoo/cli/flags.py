"""The flags of `zoo run`: all that are declared, or those that one model takes, with their ranges and defaults.

All are read from declarations, without pydantic or a plugin; a model's from the file of its family's `Options` alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from zoo.errors import PluginError
from zoo.plugins.declarations import DeclaredOption
from zoo.plugins.names import options_at, options_declared

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from zoo.family.options import GenerateOptions
    from zoo.loading.locate import Located

# What `generate` calls an option, where the command line calls it something else; and letters.
FLAGS = {"images": "--image", "messages": "--chat", "files": "--file"}
SHORT = {"prompt": "-p"}
# What `zoo run` has of its own, and what the flags above are called: no plugin's option can be one of these.
OWN = ("model", "system", "out", "force", "weights", "json", "verbose", "quiet", "help", "image", "chat", "file")
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
FAR = 1e6


def flag(name: str) -> str:
    """How the command line writes the name of an option."""
    return FLAGS.get(name, f"--{name.replace('_', '-')}")


def declared() -> dict[str, DeclaredOption]:
    """The options that there are flags for, by name."""
    return {name: option for name, option in options_declared().items() if name not in OWN}


def parameters(options: Iterable[DeclaredOption]) -> list[Any]:
    """The flags of options, as a command has them; what is given is left as it is written."""

    def asked(**_: Any) -> None:
        """Never called: typer reads its parameters."""

    asked.__signature__ = Signature([_parameter(option) for option in options])  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(asked)
    return cast("list[Any]", typer.main.get_command(app).params)


def _parameter(option: DeclaredOption) -> Parameter:
    spellings = [flag(option.name), *([SHORT[option.name]] if option.name in SHORT else [])]
    info = typer.Option(*spellings, metavar=option.value or None, help=sentence(option.summary), show_default=False)
    one: Any = Path if option.value == "FILE" else str if option.value else bool
    kind = list[one] | None if option.several else one | None if option.value else bool
    default = None if option.value else False
    return Parameter(option.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def options_of(located: Located) -> type[GenerateOptions]:
    """What a model takes, as far as it is known before it is loaded; its family is imported only where nothing else says it."""
    entry = located.family_entry
    options = options_at(entry)
    if options is None:
        return located.family.options_of(located.task)
    from zoo.family.options import GenerateOptions

    if not (isinstance(options, type) and issubclass(options, GenerateOptions)):
        raise PluginError(
            f"Plugin {entry.plugin}: the options of family {entry.name!r} ({entry.options}) are no GenerateOptions."
        )
    return options.of(located.task)


def of_model(options: type[GenerateOptions]) -> list[DeclaredOption]:
    """The options of one model that there are flags for, each with its range and default in its summary."""
    everything = declared()
    return [
        replace(everything[name], summary=_told(options.model_fields[name], everything[name].summary))
        for name in options.names()
        if name in everything
    ]


def _told(field: FieldInfo, summary: str) -> str:
    """What an option does, what its value may be, and what it is where none is given."""
    from typing import Literal, get_args, get_origin

    rules = {key: getattr(rule, key) for key in BOUNDS for rule in field.metadata if hasattr(rule, key)}
    # a bound as far out as these only spares a library
    facts = [f"{BOUNDS[key]} {bound}" for key, bound in rules.items() if abs(bound) < FAR]
    if get_origin(field.annotation) is Literal:
        facts.append(f"one of {', '.join(map(str, get_args(field.annotation)))}")
    if isinstance(field.default, str | int | float) and not isinstance(field.default, bool):
        facts.append(f"default: {field.default:g}" if isinstance(field.default, float) else f"default: {field.default}")
    said = sentence(field.description or summary)
    return f"{said}  [{'; '.join(facts)}]" if facts else said


def sentence(text: str) -> str:
    """A text with the full stop that ends it."""
    return text if text.endswith((".", "]")) else f"{text}."
