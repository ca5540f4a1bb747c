"""The kinds of things that a plugin adds, one row each.

A new kind is a row here, its contract in a file at the root of `zoo/`, and a folder of that name in
`zoo/templates/kinds/`; everything else (declarations, hooks, names, commands, checks, the reference of hooks) reads rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kind:
    """One kind of thing."""

    name: str  # of its table in registry.toml, and in sentences
    plural: str
    things: str  # the plural at length, for documents: "training losses"
    hook: str  # the function of a plugin's module that registers such things
    example: str  # "name = module:attribute" of a built-in one, for documents
    contracts: tuple[str, ...]  # what a registered thing is: "module:Class", or a sentence where no class says it
    adds: str  # "a loss of distillation", in the description of a plugin that `zoo plugins new` writes
    called: str = ""  # what such things are called beside their name in a sentence, where it is more than `name`
    keys: Mapping[str, str] = field(default_factory=dict)  # of its table beside those of every kind -> kind of value
    needed: tuple[str, ...] = ()  # those of them that have to be there
    strict: bool = False  # whether every one is held to the first contract, an abstract class, when it is imported
    checks: str = ""  # "module:function" with the checks of one such thing, called with a bench and its declaration
    computes: bool = True  # whether these checks compute something, and so need torch

    @property
    def label(self) -> str:
        """What one is called in a sentence."""
        return self.called or self.name


CHECKS = "zoo.testing.checks"
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "family",
            "families",
            "architecture families",
            "register_families",
            "llama = zoo_slm.language:TransformersText",
            ("zoo.family.base:Family",),
            "an architecture with a model",
            strict=True,
            keys={"modality": "name", "recognises": "marks", "prefix": "name", "task": "name", "options": "target"},
            needed=("modality",),
            checks=f"{CHECKS}.plugins:checks_of_family",
        ),
        Kind(
            "compressor",
            "compressors",
            "compression stages",
            "register_compressors",
            "lowrank.svd = zoo_compress.methods.lowrank:LowRankSVD",
            ("zoo.compressor:Compressor",),
            "a compression stage",
            strict=True,
            checks=f"{CHECKS}.compressors:checks_of_compressor",
        ),
        Kind(
            "loss",
            "losses",
            "training losses",
            "register_losses",
            "kl = zoo_compress.losses.rows:ForwardKL",
            ("zoo.loss:RowLoss", "zoo.loss:FeatureLoss"),
            "a loss of distillation",
            checks=f"{CHECKS}.losses:checks_of_loss",
        ),
        Kind(
            "evaluator",
            "evaluators",
            "evaluation tasks",
            "register_evaluators",
            "perplexity = zoo_slm.evaluators:Perplexity",
            ("zoo.evaluator:Evaluator",),
            "an evaluator",
            checks=f"{CHECKS}.evaluators:checks_of_evaluator",
        ),
        Kind(
            "data",
            "data sources",
            "data sources",
            "register_data",
            "stdlib = zoo_slm.stdlib:Stdlib",
            ("zoo.data.dataset:Source",),
            "a data source",
            called="data source",
            keys={"license": "text"},
            checks=f"{CHECKS}.data:checks_of_data",
        ),
        Kind(
            "command",
            "commands",
            "commands to `zoo`",
            "register_commands",
            "plan = zoo_compress.commands:plan",
            (
                "A function whose parameters typer can read from a command line, or a `typer.Typer` with commands of "
                "its own.",
            ),
            "a command",
            checks=f"{CHECKS}.plugins:checks_of_command",
            computes=False,
        ),
    )
}
# Declared in tables as well, but not registered: a family builds a model, and an option is a field of a family's `Options`.
MODEL, OPTION = "model", "option"


def tables() -> tuple[str, ...]:
    """The tables that a registry.toml may have."""
    return (MODEL, OPTION, *KINDS)


def label(name: str) -> str:
    """What a thing of that kind, or a model, is called in a sentence."""
    return KINDS[name].label if name in KINDS else name


def plural(name: str) -> str:
    """What several of them are called."""
    return KINDS[name].plural if name in KINDS else f"{name}s"
