"""What zoo_slm registers; each name is declared in registry.toml, and imported when it is first used."""

from __future__ import annotations

from zoo.hooks import Register, hookimpl


@hookimpl
def register_families(register: Register) -> None:
    register("llama", "zoo_slm.language:TransformersText")
    register("transformers", "zoo_slm.language:TransformersText")
    register("bytes", "zoo_slm.byte_text:ByteText")


@hookimpl
def register_data(register: Register) -> None:
    register("stdlib", "zoo_slm.stdlib:Stdlib")


@hookimpl
def register_evaluators(register: Register) -> None:
    register("perplexity", "zoo_slm.evaluators:Perplexity")
    register("divergence", "zoo_slm.divergence:Divergence")
    register("xz", "zoo_slm.evaluators:Xz")
