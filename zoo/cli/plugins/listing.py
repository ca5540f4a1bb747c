"""`zoo plugins`: what is installed, what it adds, and what is wrong with it.

Everything here reads declarations and imports no plugin; `--load` imports them in processes of their own. What needs
more than that (`install`, `new`, ...) lies in modules of its own, imported when it is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from zoo.cli import output
from zoo.cli.plugins.facts import counted, declares, facts, loadable, missing
from zoo.cli.shell import command_of
from zoo.errors import RequestError, plain
from zoo.plugins import manager
from zoo.plugins.installed import Plugin
from zoo.plugins.manager import CORE, normalised
from zoo.system.quantities import seconds

# The commands that are imported when they are invoked: summary, and where the function is.
LATER = {
    "install": ("Install plugins with pip, after showing what would change.", "zoo.cli.plugins.install:install"),
    "uninstall": ("Uninstall a plugin; nothing of it is imported.", "zoo.cli.plugins.install:uninstall"),
    "new": ("Write a plugin project whose own tests pass.", "zoo.cli.plugins.new:new"),
    "check": ("Run the contract tests on what a plugin adds.", "zoo.cli.plugins.check:check"),
}
ORDER = ("list", "info", "install", "uninstall", "enable", "disable", "new", "check")


class Later(TyperCommand):
    """A command by name and summary; parsing its arguments imports the function behind it."""

    def __init__(self, name: str, summary: str, target: str) -> None:
        super().__init__(name, help=summary, rich_markup_mode=None)
        self.target = target

    def make_context(self, *args: Any, **extra: Any) -> Any:
        assert self.name is not None
        module, _, function = self.target.partition(":")
        command = command_of(self.name, getattr(importlib.import_module(module), function))
        return command.make_context(*args, **extra)


class Group(TyperGroup):
    """The commands of `zoo plugins`, those of other modules included, in the order of a plugin's life."""

    def __init__(self, **extra: Any) -> None:
        super().__init__(**extra)
        self.commands.update({name: Later(name, *what) for name, what in LATER.items()})

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=ORDER.index)


app = typer.Typer(
    add_completion=False,
    cls=Group,
    rich_markup_mode=None,
    help="Show the installed plugins, what they add, and what is wrong with them; install, check and write others.",
)


def complete_any(incomplete: str) -> list[str]:
    """The plugins whose names begin like that, disabled ones as well, for shell completion."""
    return _beginning(incomplete, manager.plugins_in_use(disabled=True))


def complete_enabled(incomplete: str) -> list[str]:
    """Those that can be disabled."""
    return _beginning(incomplete, [plugin for plugin in manager.plugins_in_use() if plugin.name != CORE])


def complete_disabled(incomplete: str) -> list[str]:
    """Those that are disabled, installed or not."""
    return [name for name in sorted(manager.disabled()) if name.startswith(incomplete)]


def complete_removable(incomplete: str) -> list[str]:
    """Those that can be uninstalled."""
    return _beginning(incomplete, [plugin for plugin in manager.plugins_in_use(disabled=True) if not plugin.ours])


def _beginning(incomplete: str, plugins: Sequence[Plugin]) -> list[str]:
    return [plugin.name for plugin in plugins if plugin.name.startswith(incomplete)]


LoadOption = Annotated[
    bool, typer.Option("--load", help="Import them as well, each in a process of its own, and say how long it takes.")
]
TimeoutOption = Annotated[
    float | None, typer.Option(metavar="SECONDS", min=0.1, help="How long one may take to load.  [default: 20]")
]


@app.callback(invoke_without_command=True)
def _list_by_default(
    ctx: typer.Context, load: LoadOption = False, timeout: TimeoutOption = None, json: output.JsonOption = False
) -> None:
    output.settings.shows_faults = True
    if ctx.invoked_subcommand is None:
        list_plugins(load=load, timeout=timeout, json=json)


@app.command("list")
def list_plugins(load: LoadOption = False, timeout: TimeoutOption = None, json: output.JsonOption = False) -> None:
    """List the plugins and what each adds.

    \b
      zoo plugins list
      zoo plugins list --load --timeout 5

    `zoo plugins` alone does the same. Nothing of a plugin is imported, unless with --load; the exit code is then 1
    where one cannot be loaded.
    """
    plugins = manager.plugins_in_use(disabled=True)
    loaded = _loaded(plugins, timeout) if load else {}
    if json:
        output.print_json([_facts(plugin, loaded) for plugin in plugins])
    else:
        _print_list(plugins, loaded, load=load)
    if load and any(_state(plugin, loaded) == "broken" for plugin in plugins):
        raise typer.Exit(1)


@app.command("info")
def info(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name from `zoo plugins`.", autocompletion=complete_any)
    ],
    load: LoadOption = False,
    timeout: TimeoutOption = None,
    json: output.JsonOption = False,
) -> None:
    """Show a plugin's origin, and all that it adds.

    \b
      zoo plugins info zoo_compress
      zoo plugins info zoo_slm --load
    """
    plugin = manager.find(name)
    loaded = _loaded([plugin], timeout) if load else {}
    if json:
        output.print_json(_facts(plugin, loaded) | _about(plugin))
    else:
        _print_info(plugin, loaded)
    if load and _state(plugin, loaded) == "broken":
        raise typer.Exit(1)


@app.command("enable")
def enable(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Disabled plugins.", autocompletion=complete_disabled)
    ],
) -> None:
    """Use plugins again that were disabled.

    \b
      zoo plugins enable zoo-example
    """
    off = {normalised(name) for name in manager.disabled()}
    for name in names:
        if normalised(name) not in off:
            manager.find(name)  # refuses a name that is not known, before anything is changed
    for name in names:
        known = _called(name)
        manager.enable(name)
        if normalised(name) not in off:
            print(f"Plugin {known} is enabled already.")
        elif known in manager.installed():
            print(f"Plugin {known} is enabled.")
        else:
            print(f"Plugin {known} is not installed; it no longer counts as disabled.")


@app.command("disable")
def disable(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Names from `zoo plugins`.", autocompletion=complete_enabled)
    ],
) -> None:
    """Leave plugins out, without uninstalling them.

    \b
      zoo plugins disable zoo-example

    Nothing of them is imported or there to be used until `zoo plugins enable`. Their artifacts need them enabled.
    """
    plugins = [manager.find(name) for name in names]
    if any(plugin.name == CORE for plugin in plugins):
        raise RequestError(
            f"Plugin {CORE} cannot be disabled: the catalogue and the commands of zoo itself come with it."
        )
    for plugin in plugins:
        manager.disable(plugin.name)
        adds = counted(declares(plugin))
        if plugin.disabled:
            print(f"Plugin {plugin.name} is disabled already.")
        else:
            print(
                f"Plugin {plugin.name} is disabled{f' ({adds})' if adds else ''}: `zoo plugins enable {plugin.name}` brings it back."
            )


def _called(name: str) -> str:
    """A plugin's name as it is declared, or as it was disabled."""
    known = [*manager.installed(), *manager.disabled()]
    return next((other for other in known if normalised(other) == normalised(name)), name)


# --- showing ----------------------------------------------------------------------------------------------------------


def _loaded(plugins: Sequence[Plugin], timeout: float | None) -> dict[str, Any]:
    """Load what can be loaded, each in a fresh process; says on stderr how far it is."""
    from zoo.cli.plugins import fresh

    names = [plugin.name for plugin in plugins if loadable(plugin)]
    loaded: dict[str, Any] = {}
    with output.status(f"Loading {len(names)} plugins" if len(names) > 1 else "Loading"):
        for outcome in fresh.load_each(names, timeout=timeout or fresh.TIMEOUT, verbose=output.settings.verbose):
            loaded[outcome.name] = outcome
            if output.settings.verbose:
                output.say(f"{outcome.name}: {outcome.fault or seconds(outcome.seconds)}")
    return loaded


def _state(plugin: Plugin, loaded: Mapping[str, Any]) -> str:
    failed = plugin.name in loaded and loaded[plugin.name].fault
    return "broken" if plugin.status == "ok" and failed else plugin.status


def _reason(plugin: Plugin, loaded: Mapping[str, Any]) -> str:
    fault = loaded[plugin.name].fault if plugin.name in loaded else ""
    return fault or plugin.fault


def _took(plugin: Plugin, loaded: Mapping[str, Any]) -> str:
    outcome = loaded.get(plugin.name)
    return seconds(outcome.seconds) if outcome and not outcome.fault else ""


def _print_list(plugins: Sequence[Plugin], loaded: Mapping[str, Any], *, load: bool) -> None:
    columns = ["name", "distribution", "version", "adds", *(["load"] if load else []), "status"]
    rows = []
    for p in plugins:
        state = _state(p, loaded)
        took = [_took(p, loaded) or "-"] if load else []
        words = f"{state}: {_reason(p, loaded)}" if state == "broken" else state
        rows.append([p.name, p.distribution, p.version, counted(declares(p)) or "-", *took, words])
    output.print_table(columns, rows, right=["load"])
    for plugin in plugins:
        for note in plugin.notes:
            output.say(f"note: {plugin.name}: {note}")


def _print_info(plugin: Plugin, loaded: Mapping[str, Any]) -> None:
    about, state = _about(plugin), _state(plugin, loaded)
    output.print_facts(
        [
            ("name", plugin.name),
            ("status", state),
            ("reason", _reason(plugin, loaded)),
            ("distribution", plugin.distribution),
            ("version", plugin.version),
            ("source", about["source"]),
            ("license", about["license"] or ""),
            ("home page", about["home_page"] or ""),
            ("plugin API", plugin.api),
            ("files", str(plugin.path or "")),
            ("module", plugin.module),
            ("load time", _took(plugin, loaded)),
        ]
    )
    lacking = missing(plugin)
    entries = [(f"model {spec.name}", spec.summary) for spec in plugin.models]
    entries += [(f"option {option.name}", option.summary) for option in plugin.options]
    for declaration in plugin.names:
        needs = f" (needs {', '.join(declaration.needs)})" if declaration.needs else ""
        gone = lacking.get(f"{declaration.kind} {declaration.name}")
        absent = f" Not installed: pip install {' '.join(map(shlex.quote, gone))}" if gone else ""
        entries.append((f"{declaration.kind} {declaration.name}", f"{declaration.summary}{needs}{absent}"))
    if entries:
        print()
        output.print_facts(entries)
    for note in plugin.notes:
        output.say(f"note: {note}")


def _facts(plugin: Plugin, loaded: Mapping[str, Any]) -> dict[str, Any]:
    outcome = loaded.get(plugin.name)
    took = outcome.seconds if outcome and not outcome.fault else None
    state = {"status": _state(plugin, loaded), "fault": _reason(plugin, loaded) or None, "load_seconds": took}
    return facts(plugin) | state


def _about(plugin: Plugin) -> dict[str, Any]:
    """What the distribution's metadata says of it; whatever cannot be read is left out."""
    from importlib.metadata import metadata

    fields: dict[str, list[str]] = {}
    with contextlib.suppress(Exception):  # metadata is anybody's text
        message = metadata(plugin.distribution)
        for key in ("License-Expression", "License", "Classifier", "Project-URL", "Home-page"):
            fields[key] = [_shown(value) for value in message.get_all(key) or []]
    licences = (
        fields.get("License-Expression")
        or fields.get("License")
        or [line.rpartition(" :: ")[2] for line in fields.get("Classifier", []) if line.startswith("License ::")]
    )
    addresses = [
        line.partition(",")[2].strip()
        for line in fields.get("Project-URL", [])
        if line.partition(",")[0].strip().lower().replace("-", "").replace(" ", "") in ("homepage", "home")
    ]
    return {
        "source": plugin.origin or "a package index",
        "license": licences[0] if licences else None,
        "home_page": next(iter(addresses or fields.get("Home-page", [])), None),
        "needs": {f"{d.kind} {d.name}": list(d.needs) for d in plugin.names if d.needs},
        "missing": missing(plugin),
        "summaries": {f"model {spec.name}": spec.summary for spec in plugin.models}
        | {f"option {option.name}": option.summary for option in plugin.options}
        | {f"{d.kind} {d.name}": d.summary for d in plugin.names},
    }


def _shown(text: object, *, limit: int = 200) -> str:
    line = plain(str(text))
    return line if len(line) <= limit else f"{line[:limit]}..."
