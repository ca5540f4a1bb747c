"""The commands of zoo itself, through the same hook as anybody's; each is declared in registry.toml."""

from __future__ import annotations

from zoo.hooks import Register, hookimpl


@hookimpl
def register_commands(register: Register) -> None:
    register("list", "zoo.cli.models:list_models")
    register("info", "zoo.cli.info:info")
    register("run", "zoo.cli.run:app")
    register("eval", "zoo.cli.evaluate:evaluate")
    register("bench", "zoo.cli.evaluate:bench")
    register("verify", "zoo.cli.verify:verify")
    register("plugins", "zoo.cli.plugins.listing:app")
