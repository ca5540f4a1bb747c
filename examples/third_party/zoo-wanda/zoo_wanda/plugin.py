"""What this plugin registers: a name to where it is defined, imported when it is first used."""

from __future__ import annotations

from zoo.hooks import Register, hookimpl


@hookimpl
def register_compressors(register: Register) -> None:
    register("wanda.rows", "zoo_wanda.wanda:RowWanda")
