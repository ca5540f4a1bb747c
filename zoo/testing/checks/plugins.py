"""Checks of what a plugin says of itself: its metadata, its declarations, the documentation of what it adds, its commands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.plugins import manager
from zoo.plugins.declarations import Declared
from zoo.testing.bench import Bench, thing
from zoo.testing.check import Check, Skipped, require, sentence
from zoo.testing.materials import attempts, options

if TYPE_CHECKING:
    from zoo.plugins.declarations import ModelSpec

HEAVY = ("torch", "transformers", "diffusers", "timm")
NAMED_BY_USE = ("compressor", "loss")  # the kinds that recipes name with a key beside their options
SECONDS = 120  # a command's help may take


# --- the plugin -------------------------------------------------------------------------------------------------------


def checks_of_plugin(bench: Bench) -> Iterator[Check]:
    """The checks of the plugin as a whole."""
    subject = _Plugin(bench)
    for check, run in subject.questions.items():
        yield Check("plugin", bench.plugin.name, check, run, bench.plugin.path)


class _Plugin:
    """The plugin under test."""

    def __init__(self, bench: Bench) -> None:
        self.plugin = bench.plugin
        self.questions = {
            "declarations": self.declarations,
            "registrations": self.registrations,
            "import": self.imports,
            "docs": self.docs,
        }
        if self.plugin.options:
            self.questions["options"] = self.options

    def declarations(self, folder: Path) -> None:
        """Its registry.toml can be read, and says for which plugin API it is made."""
        plugin = self.plugin
        require(not plugin.disabled, f"plugin {plugin.name} is disabled: `zoo plugins enable {plugin.name}`")
        require(not plugin.fault, plugin.fault)
        require(bool(plugin.api), 'registry.toml does not say for which plugin API it is made; write: api = ">=1,<2"')
        require(
            bool(plugin.models or plugin.names),
            "registry.toml declares nothing: add a [[model]], a [[compressor]], ...",
        )

    def registrations(self, folder: Path) -> None:
        """It registers exactly what it declares, and everything declared can be had."""
        if not self.plugin.module:
            raise Skipped("it declares models only")
        from zoo.testing.surroundings import surroundings_kept

        manager.load(self.plugin.name)
        for declaration in self.plugin.names:
            full = f"{self.plugin.name}:{declaration.name}"
            with surroundings_kept(f"importing {full}"):
                thing(declaration.kind, full)

    def imports(self, folder: Path) -> None:
        """Its pluggy module is light, since every command that uses one of its names imports it."""
        if not self.plugin.module:
            raise Skipped("it declares models only")
        code = f"import sys; __import__({self.plugin.module!r}); print(*sorted(set(sys.modules) & set({HEAVY!r})))"
        done = _run(sys.executable, "-c", code)
        require(done.returncode == 0, f"{self.plugin.module} cannot be imported: {_last_line(done.stderr)}")
        heavy = done.stdout.strip().splitlines()[-1:] or [""]
        require(
            not heavy[0],
            f"{self.plugin.module} imports {heavy[0]} at once; register names as texts, and import inside what they name",
        )

    def options(self, folder: Path) -> None:
        """Each option it declares is one that some family of it takes, under a flag that is free."""
        from zoo.cli.flags import OWN
        from zoo.family.known import KnownOptions

        fields = dict(KnownOptions.model_fields) if self.plugin.name == manager.CORE else {}
        for declaration in self.plugin.names:
            if declaration.kind == "family":
                fields |= thing("family", f"{self.plugin.name}:{declaration.name}").options_of("").model_fields
        for option in self.plugin.options:
            name = option.name
            require(
                name in fields, f"no family of it has option {name}; add it to the `Options` of the one that takes it"
            )
            require(
                name not in OWN, f"option {name} cannot be set, since `zoo run` has --{name} itself; call it otherwise"
            )
            require(
                option.value != "" or fields[name].annotation is bool or name == "messages",
                f'option {name} is declared as a switch, but its field is no bool; add value = "NUMBER" or the like',
            )

    def docs(self, folder: Path) -> None:
        """Its distribution says what it is, under which licence, and has a readme."""
        require(self.plugin.source is not None, "the distribution has no metadata")
        assert self.plugin.source is not None
        about: Any = self.plugin.source.metadata
        licence = about.get("License-Expression") or about.get("License") or about.get("License-File")
        licence = licence or any(line.startswith("License ::") for line in about.get_all("Classifier") or ())
        where = f"distribution {self.plugin.distribution}"
        require(
            bool(licence), f'{where} names no licence; add license = "Apache-2.0", or another, to its pyproject.toml'
        )
        require(bool(about.get("Summary")), f'{where} has no summary; add description = "..." to its pyproject.toml')
        readme = about.get("Description") or about.get_payload()
        require(
            bool(readme and str(readme).strip()),
            f'{where} has no readme; add readme = "README.md" to its pyproject.toml',
        )


# --- what it adds -----------------------------------------------------------------------------------------------------


def checks_of_words(bench: Bench) -> Iterator[Check]:
    """The checks of the documentation of every name and model."""
    package = bench.plugin.path
    for spec in bench.plugin.models:
        yield Check("model", bench.label(spec.name), "docs", partial(_check_model_words, spec), package)
    for declaration in bench.plugin.names:

        def run(
            folder: Path, kind: str = declaration.kind, name: str = declaration.name, summary: str = declaration.summary
        ) -> None:
            _check_summary(name, summary)
            if kind != "command":
                _check_class(thing(kind, bench.label(name)), bench.label(name), kind_of=kind)

        yield Check(declaration.kind, bench.label(declaration.name), "docs", run, package)


def checks_of_family(bench: Bench, declaration: Declared) -> Iterator[Check]:
    """The check of a family beside those of its models."""

    def run(folder: Path) -> None:
        name = declaration.name
        family = thing("family", bench.label(name))
        require(
            family.modality == declaration.modality,
            f"family {name} is declared as {declaration.modality}, but its class is of {family.modality}",
        )
        require(bool(family.tasks), f"family {name} has no tasks")
        for task in family.tasks:
            returned = family.task(task).name
            require(
                returned == task,
                f"family {name} has the task {task!r}, but `task` returns that of {returned!r}; write one with a class of "
                "your own",
            )
        from zoo.testing.checks.models import models_of

        if not any(spec.family in (name, bench.label(name)) for spec in models_of(bench).values()):
            raise Skipped("no model of it is declared, so there is none to test; add a [[model]], however small")

    yield Check("family", bench.label(declaration.name), "family", run, bench.plugin.path)
    yield Check(
        "family",
        bench.label(declaration.name),
        "options",
        partial(_check_declared_options, bench, declaration),
        bench.plugin.path,
    )


def _check_declared_options(bench: Bench, declaration: Declared, folder: Path) -> None:
    """`zoo run MODEL --help` reads the family's own `Options`, which takes no torch, and every field there says what it is."""
    from zoo.plugins.names import options_at, options_declared

    name = declaration.name
    options = thing("family", bench.label(name)).Options
    if not declaration.options and (options is None or options.__module__.startswith("zoo.")):
        return  # `takes`, or its base class, names what zoo itself declares
    require(
        options is not None,
        f"family {name} is declared with options = {declaration.options!r}; its class has no `Options`",
    )
    require(
        options_at(declaration) is options,
        f"family {name} is declared with options = {declaration.options!r}, but its class has {options.__name__} of "
        f'{options.__module__}; write options = "{options.__module__}:{options.__qualname__}"',
    )
    require(
        options.makes == thing("family", bench.label(name)).makes,
        f"family {name} makes {thing('family', bench.label(name)).makes}, but its `Options` says {options.makes}",
    )
    silent = [
        field
        for field, info in options.model_fields.items()
        if not (info.description or "").strip() and field not in options_declared()
    ]
    require(
        not silent,
        f'family {name}: option {", ".join(silent[:3])} has no description; write Field(..., description="...")',
    )
    bare = [field for field, info in options.model_fields.items() if info.is_required()]
    require(not bare, f"family {name}: option {', '.join(bare[:3])} has no default; whoever generates may leave it out")
    code = "import sys; from zoo.plugins.names import declaration, options_at; "
    code += (
        f"options_at(declaration('family', {bench.label(name)!r})); print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = _run(sys.executable, "-c", code)
    require(done.returncode == 0, f"{declaration.options} cannot be imported: {_last_line(done.stderr)}")
    heavy = (done.stdout.strip().splitlines() or [""])[-1]
    require(
        not heavy,
        f"{declaration.options} imports {heavy}, and `zoo run MODEL --help` waits for it; keep options in a file of their own",
    )


def _check_model_words(spec: ModelSpec, folder: Path) -> None:
    _check_summary(spec.name, spec.summary)


def _check_summary(name: str, summary: str) -> None:
    words = summary.split()
    require(len(words) >= 3, f"the summary of {name} is {summary!r}; say in a sentence what it is")
    require(
        "todo" not in summary.lower() and "\n" not in summary,
        f"the summary of {name} is {summary!r}; say in one line what it is",
    )


def _check_class(registered: Any, name: str, *, kind_of: str) -> None:
    """A class has a docstring of its own, and every option a description and, where it is needed, an example."""
    kind = registered if isinstance(registered, type) else type(registered)
    require(
        bool((kind.__dict__.get("__doc__") or "").strip()),
        f"{name}: class {kind.__name__} has no docstring, which is what the reference shows",
    )
    chosen = getattr(registered, "Options", None)
    if chosen is None or kind_of == "family":
        return
    fields: dict[str, Any] = getattr(chosen, "model_fields", {})
    require(
        hasattr(chosen, "model_fields"),
        f"{name}: its Options is no pydantic model; derive it from zoo.options.CompressorOptions",
    )
    require(
        chosen.model_config.get("extra") == "forbid",
        f"{name}: its Options takes unknown keys; derive it from zoo.options.CompressorOptions",
    )
    require(
        "use" not in fields or kind_of not in NAMED_BY_USE,
        f"{name}: an option called `use` cannot be set, since recipes name the {kind_of} by that key; call it otherwise",
    )
    silent = [option for option, field in fields.items() if not (field.description or "").strip()]
    require(
        not silent, f'{name}: option {", ".join(silent[:3])} has no description; write Field(..., description="...")'
    )
    bare = [option for option, field in fields.items() if field.is_required() and not field.examples]
    require(
        not bare,
        f"{name}: option {', '.join(bare[:3])} has neither default nor example; write Field(..., examples=[...])",
    )
    for attempt in range(attempts(chosen)):
        values = options(chosen, attempt=attempt)
        try:
            chosen(**values)
        except ValueError as error:
            raise AssertionError(f"{name}: its Options refuses its own examples {values}: {sentence(error)}") from None


# --- commands ---------------------------------------------------------------------------------------------------------


def checks_of_command(bench: Bench, declaration: Declared) -> Iterator[Check]:
    """The checks of one command."""
    full = bench.label(declaration.name)

    def run(folder: Path) -> None:
        done = _run(sys.executable, "-m", "zoo", full, "--help")
        require(done.returncode == 0, f"`zoo {full} --help` ends with {done.returncode}: {_last_line(done.stderr)}")
        require("usage" in done.stdout.lower(), f"`zoo {full} --help` prints no usage")
        said = [line for line in done.stdout.splitlines() if line.strip() and "usage" not in line.lower()]
        require(
            bool(said) and not said[0].strip().lower().startswith(("option", "argument", "command")),
            f"`zoo {full} --help` does not say what the command does; give its function a docstring",
        )

    def strange(folder: Path) -> None:
        done = _run(sys.executable, "-m", "zoo", full, "--no-such-option-anywhere")
        require(done.returncode != 0, f"`zoo {full}` takes an option that does not exist")
        require("Traceback" not in done.stderr, f"`zoo {full}` with an unknown option shows a traceback")

    yield Check("command", full, "help", run, bench.plugin.path)
    yield Check("command", full, "unknown option", strange, bench.plugin.path)


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            args, capture_output=True, text=True, check=False, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise AssertionError(f"`{' '.join(args[1:])}` had not ended after {SECONDS} seconds") from None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1][:300]
