"""The names of what a run makes, each with the fingerprint of everything it depends on.

A fingerprint follows from the weights a stage starts from, its options, its data, the seed, and the versions that
numbers depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo import catalog
from zoo.loading import weights
from zoo.loading.locate import OWN
from zoo.model.provenance import versions, weights_digest
from zoo.plugins.names import declaration, declaration_of, family_declaration, is_known, outside_distributions
from zoo_compress.recipe.planned import Plan
from zoo_compress.recipe.recipe import Recipe, StageRequest, located, weights_of

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
        "weights": _weights_digest(recipe),
        "asked": recipe.model.model_dump(),
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
        "teacher": "" if teacher == "original" else weights_digest(Path(located(recipe, teacher))) or teacher,
    }


def _weights_digest(recipe: Recipe) -> str:
    """A hash of the weights the run starts from, read from their files."""
    asked = weights_of(recipe)
    if asked == "random":
        return "random"
    if asked not in OWN:
        return weights_digest(Path(asked))
    folder = Path(located(recipe, recipe.model.name))
    return weights_digest(folder if folder.exists() else weights.resolve(catalog.info(recipe.model.name)))
