"""`zoo plugins`: what is installed, what it adds, and what is wrong with it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from zoo import plugins
from zoo.cli import output
from zoo.declarations import KINDS
from zoo.plugins import Plugin

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Show the installed plugins, what they add, and what is wrong with them; nothing of them is imported.",
)


@app.callback(invoke_without_command=True)
def _list_by_default(ctx: typer.Context, json: output.JsonOption = False) -> None:
    output.settings.shows_faults = True
    if ctx.invoked_subcommand is None:
        list_plugins(json=json)


@app.command("list")
def list_plugins(json: output.JsonOption = False) -> None:
    """List the plugins (also what `zoo plugins` alone does)."""
    found = plugins.declared()
    if json:
        output.print_json([_facts(plugin) for plugin in found])
        return
    rows = [(p.name, p.version, p.distribution, _adds(p), p.fault or "ok") for p in found]
    output.print_table(("name", "version", "distribution", "adds", "state"), rows)


@app.command("info")
def info(
    name: Annotated[str, typer.Argument(help="A name from `zoo plugins`.", autocompletion=output.complete_plugin)],
    json: output.JsonOption = False,
) -> None:
    """Show what one plugin adds."""
    plugin = plugins.find(name)
    if json:
        output.print_json(_facts(plugin))
        return
    output.print_facts([
        ("name", plugin.name), ("version", plugin.version), ("distribution", plugin.distribution),
        ("package", str(plugin.path or "")), ("module", plugin.module), ("fault", plugin.fault),
    ])  # fmt: skip
    entries = [(f"model {spec.name}", spec.summary) for spec in plugin.models]
    entries += [(f"{declared.kind} {declared.name}", declared.summary) for declared in plugin.names]
    if entries:
        print()
        output.print_facts(entries)


def _adds(plugin: Plugin) -> str:
    """Say how much of what a plugin adds: "1 model, 9 compressors"."""
    counts = [(len(plugin.declares(kind)), kind) for kind in ("model", *KINDS)]
    plural = {"family": "families", "loss": "losses", "data": "data sources"}
    words = [f"{n} {kind if kind != 'data' else 'data source'}" if n == 1 else f"{n} {plural.get(kind, kind + 's')}"
             for n, kind in counts if n]  # fmt: skip
    return ", ".join(words)


def _facts(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "version": plugin.version,
        "distribution": plugin.distribution,
        "path": str(plugin.path) if plugin.path else None,
        "module": plugin.module or None,
        "fault": plugin.fault or None,
        "declares": {kind: list(plugin.declares(kind)) for kind in ("model", *KINDS)},
    }
