"""Rehearsals: stages replayed on real tensors before the first one works, where shapes do not tell whether a model still runs."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.model.model import Model
from zoo.model.trial import require_running, runs
from zoo_compress.recipe.planner import advance, initial_state
from zoo_compress.recipe.recipe import StageRequest, blamed


def rehearse(model: Model, stages: Sequence[StageRequest], *, seed: int) -> None:
    """Replay stages on a model, whose weights are lost, and run it after each that changes its structure.

    Raises:
        Refused: the model does not run after a stage; the message begins with file, line and stage.
    """
    before, state = runs(model), initial_state(model)
    before = "in steps" if before == "alike" else before  # without weights any outputs are alike
    for request in stages:
        with blamed(request):
            advance(model, state, request, request.compressor.outline(model, request.options), seed=seed)
            if request.compressor.structural:
                require_running(model, request.compressor, before=before)
