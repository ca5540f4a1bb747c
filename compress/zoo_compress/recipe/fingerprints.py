"""The names of what a run makes, each with the fingerprint of everything it depends on.

A fingerprint follows from the weights a stage starts from, its options, its data, the seed, and the versions that
numbers depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zoo.model.provenance import versions, weights_digest
from zoo.plugins.names import declaration, declaration_of, family_declaration, is_known, outside_distributions
from zoo_compress.recipe.planned import Plan
from zoo_compress.recipe.recipe import Recipe, StageRequest

ORIGINAL = "00-original"


def digest(value: Any) -> str:
    """Hash plain JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Names:
    """What the models of a run are called in its folder; the first fingerprint is that of the original."""

    fingerprints: tuple[str, ...]

    def stage(self, request: StageRequest) -> str:
        return f"{request.index + 1:02d}-{request.use}-{self.fingerprints[request.index + 1][:12]}"

    def planned(self, index: int) -> str:
        """Under what the plan of a model is kept: the original is number 0, and another model another original."""
        return self.fingerprints[index][:12]

    def control(self, request: StageRequest) -> str:
        """The name of the model that a training stage is compared with."""
        return f"control-{digest(['control', self.fingerprints[request.index + 1]])[:12]}"

    def up_to(self, stages: Sequence[StageRequest]) -> list[str]:
        """The names of the original and of what every stage leaves."""
        return [ORIGINAL, *(self.stage(request) for request in stages)]


def names_of(recipe: Recipe, plan: Plan) -> Names:
    """Work out the fingerprint of every stage; nothing is written."""
    fingerprints = [digest(_origin(recipe, plan))]
    for request in recipe.stages:
        fingerprints.append(digest([fingerprints[-1], _inputs(recipe, plan, request)]))
    return Names(tuple(fingerprints))


def _origin(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """What the original is: spec, weights, dtypes, and the versions numbers depend on."""
    outside = outside_distributions(family_declaration(plan.spec))
    return {
        "config": plan.spec.config,
        "weights": _weights_digest(plan),
        "asked": recipe.model.model_dump(exclude={"offload"}),  # it changes no number
        "name": recipe.about.model_dump(),
        "versions": {**versions(), **outside},
    }


def _inputs(recipe: Recipe, plan: Plan, request: StageRequest) -> dict[str, Any]:
    """What a stage takes in, besides what the stage before it left."""
    roles = request.compressor.roles(request.options)
    teacher = str(getattr(request.options, "teacher", "original"))
    losses = [
        str(term["use"])
        for term in getattr(request.options, "loss", None) or ()
        if isinstance(term, dict) and "use" in term
    ]
    named = [declaration("loss", name) for name in losses if is_known("loss", name)]
    outside = outside_distributions(declaration_of("compressor", request.compressor, request.use), *named)
    return {
        **({"plugins": outside} if outside else {}),
        "use": request.use,
        "version": request.compressor.version,
        "options": request.options.model_dump(mode="json"),
        "data": {role: plan.data[role].fingerprint for role in roles},
        "teacher": _teacher_digest(plan, teacher),
    }


def _teacher_digest(plan: Plan, name: str) -> str:
    """A hash of a teacher's weights where a path names it, else its name."""
    path = plan.teachers[name].path if name in plan.teachers and name != "original" else None
    return "" if name == "original" else (weights_digest(path) if path else "") or name


def _weights_digest(plan: Plan) -> str:
    """A hash of the weights the run starts from, read from their files."""
    original = plan.original
    return "random" if original.weights == "random" else weights_digest(original.here or original.fetched())
