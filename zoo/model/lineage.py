"""What was done to a model, stage by stage: enough to do it again on an empty one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError
from zoo.plugins.names import declaration_of

if TYPE_CHECKING:
    from zoo.compressor import Compressor


Record = dict[str, Any]  # of the structural change that a stage made, as JSON holds it


@dataclass(frozen=True)
class Trait:
    """One thing that is true of a module's tensors, and the stage that made it so."""

    kind: str  # "packed" | "sparse" | "shared" | "factored"
    detail: str = ""  # "8 bits", "50%", "one for 8 blocks"
    stage: str = ""  # "stage 2 (quantize.int8)"; empty: the model came like that


State = dict[str, tuple[Trait, ...]]  # module path -> traits; absent: plain dense tensors


@dataclass(frozen=True)
class Stage:
    """One finished stage in a model's lineage: enough to replay its structural change."""

    use: str
    version: int
    options: dict[str, Any]
    record: Record
    plugin: str = ""
    seed: int = 0
    # data, teachers, circumstances, and a hash of the tensors it left
    made: dict[str, Any] = field(default_factory=dict)


def stage_of(compressor: Compressor, options: Mapping[str, Any], record: Record, *, seed: int) -> Stage:
    """Describe a finished stage for the lineage."""
    declaration = declaration_of("compressor", compressor, compressor.name)
    # as a manifest gives them back: a card is the same either way
    canonical = json.loads(json.dumps(options, sort_keys=True))
    return Stage(compressor.name, compressor.version, canonical, record, declaration.plugin, seed)


def as_json(record: Record, *, stage: str) -> Record:
    """Return a record as a manifest will give it back.

    Raises:
        ZooError: it holds what JSON cannot, such as nan.
    """
    try:
        canonical: Record = json.loads(json.dumps(record, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ZooError(
            f"{stage} gave a record that no manifest can hold ({error}), so the model could not be saved."
        ) from error
    return canonical


def lineage_of(stages: Iterable[Mapping[str, Any]]) -> tuple[Stage, ...]:
    """Read a lineage from a manifest's JSON (already validated)."""
    return tuple(Stage(**stage) for stage in stages)
