"""What this plugin registers: a name to where it is defined, imported when it is first used."""

from __future__ import annotations

from zoo.hooks import Register, hookimpl


@hookimpl
def register_compressors(register: Register) -> None:
    register("gptq.int4", "zoo_gptq.gptq:GptqInt4")
