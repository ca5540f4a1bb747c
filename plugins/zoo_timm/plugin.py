"""What zoo_timm registers; each name is declared in registry.toml, and imported when it is first used."""

from __future__ import annotations

from zoo.hooks import Register, hookimpl


@hookimpl
def register_families(register: Register) -> None:
    register("timm", "zoo_timm.family:TimmVision")


@hookimpl
def register_evaluators(register: Register) -> None:
    register("accuracy", "zoo_timm.evaluators:Accuracy")
