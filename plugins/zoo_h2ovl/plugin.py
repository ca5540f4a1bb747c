"""What zoo_h2ovl registers; each name is declared in registry.toml, and imported when it is first used."""

from __future__ import annotations

from zoo.hooks import Register, hookimpl


@hookimpl
def register_families(register: Register) -> None:
    register("h2ovl", "zoo_h2ovl.family:H2OVLFamily")


@hookimpl
def register_data(register: Register) -> None:
    register("digits-vqa", "zoo_h2ovl.data:Digits")
    register("glyphs", "zoo_h2ovl.data:Glyphs")
    register("reading", "zoo_h2ovl.data:Reading")


@hookimpl
def register_losses(register: Register) -> None:
    register("visual-kl", "zoo_h2ovl.losses:VisualKL")
    register("visual-relation", "zoo_h2ovl.losses:VisualRelation")


@hookimpl
def register_evaluators(register: Register) -> None:
    register("exact-match", "zoo_h2ovl.evaluators:ExactMatch")
    register("answer-loss", "zoo_h2ovl.evaluators:AnswerLoss")
