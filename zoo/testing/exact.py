"""What a stage promises, checked on a model: an exact estimate, a refusal in time, bit-identical outputs after a reload."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.testing.check import require
from zoo.testing.computed import difference, hash_of_tensors, outputs
from zoo.testing.surroundings import changed_states, random_states

if TYPE_CHECKING:
    from zoo.compressor import Compressor
    from zoo.model.context import Context
    from zoo.model.model import Model
    from zoo.options import CompressorOptions
    from zoo.testing.computed import Outputs


def check_estimate(
    model: Model, compressor: Compressor | str, options: Mapping[str, Any] | None = None, context: Context | None = None
) -> Model:
    """Check that a plan of this stage is exact: outline, replayed on a skeleton, has the sizes of the applied model.

    Returns:
        A copy of `model` with the stage applied, so that a chain of stages can go on from it.

    Raises:
        AssertionError: parameters, bytes, shapes or shared tensors are not as predicted.
        ZooError: the stage refuses the model.
    """
    from zoo.model.context import Context

    resolved = _resolved(compressor)
    chosen = resolved.Options(**(options or {}))
    done, skeleton = model.copy(), planned(model, resolved, chosen)
    done.apply(resolved, chosen, context or Context())
    require_equal_sizes(skeleton, done, f"{name_of(model, resolved)}: outline, replayed on a skeleton")
    return done


def planned(model: Model, compressor: Compressor, options: CompressorOptions) -> Model:
    """A skeleton of the model on which the stage's outline has been replayed: what a plan counts.

    Raises:
        AssertionError: the model's own lineage does not give its sizes, or the outline allocates memory.
        ZooError: the stage refuses the model.
    """
    from zoo.model.lineage import stage_of

    skeleton = model.skeleton()
    require_equal_sizes(skeleton, model, f"{name_of(model)}: its lineage, replayed on a skeleton")
    compressor.check(skeleton, skeleton.state(), options)
    record = json.loads(json.dumps(compressor.outline(skeleton, options)))
    skeleton.replay(stage_of(compressor, options.model_dump(mode="json"), record, seed=0))
    real = [name for name, tensor in skeleton.tensors().items() if not tensor.is_meta]
    require(
        not real,
        f"{name_of(model, compressor)}: outline, replayed on a skeleton, allocates {real[:1]}; "
        "what is rebuilt must be on the device of what it replaces",
    )
    return skeleton


def check_refuses(
    model: Model, compressor: Compressor | str, options: Mapping[str, Any] | None = None, context: Context | None = None
) -> str:
    """Check that a stage refuses a model in time: on its skeleton, so that a plan says so, and before it changes it.

    Returns:
        The sentence it refuses with.
    """
    from zoo.errors import ZooError
    from zoo.model.context import Context

    resolved = _resolved(compressor)
    chosen = resolved.Options(**(options or {}))
    before, sentences = hash_of_tensors(model), []
    for kind, subject in (("a skeleton", model.skeleton()), ("the model", model)):
        try:
            if subject is model:
                subject.apply(resolved, chosen, context or Context())
            else:
                resolved.check(subject, subject.state(), chosen)
        except ZooError as error:
            sentences.append(str(error))
        require(bool(sentences), f"{name_of(model, resolved)} was to be refused, but {kind} was taken")
        sentences = sentences[-1:]
    require(hash_of_tensors(model) == before, f"{name_of(model, resolved)} was refused after it had changed the model")
    return sentences[0]


def check_exact_reload(models: Sequence[Model], folder: Path) -> None:
    """Check that saved models give bit-identical outputs in a fresh process: one for all, since it imports for seconds.

    Raises:
        AssertionError: names family, model and stages of each that differs, and in what.
    """
    artifacts = {folder / f"{i:03d}-{model.spec.name}": model for i, model in enumerate(models)}
    here = {}
    for artifact, model in artifacts.items():
        model.save(artifact)
        here[artifact] = outputs(model)
    there = outputs_in_fresh_process(list(artifacts))
    wrong = [difference(name_of(model), here[artifact], there[artifact]) for artifact, model in artifacts.items()]
    require(not any(wrong), "\n".join(filter(None, wrong)))


@contextmanager
def random_state_kept(what: str = "this") -> Iterator[None]:
    """Check that the global random states of torch, numpy and Python are the same afterwards."""
    before = random_states()
    yield
    changed = changed_states(before)
    named = " and ".join(changed)
    require(not changed, f"{what} changes the global random state of {named}; draw from a generator of its own")


# --- what a model computes ------------------------------------------------------------------------------------------


def outputs_in_fresh_process(folders: Sequence[Path]) -> dict[Path, Outputs]:
    """Load each artifact in one fresh process and return what `outputs` says of it there."""
    from zoo.testing.fresh import FreshProcess

    if not folders:
        return {}
    with FreshProcess() as fresh:
        return {folder: fresh.outputs(folder) for folder in folders}


# --- small questions ------------------------------------------------------------------------------------------------


def _resolved(compressor: Compressor | str) -> Compressor:
    from zoo import registry

    return registry.compressor(compressor) if isinstance(compressor, str) else compressor


def name_of(model: Model, then: Compressor | None = None) -> str:
    """Name the family, the model, and the stages behind it."""
    stages = [*(stage.use for stage in model.lineage), *([then.name] if then else [])]
    kind = type(model.module).__name__
    return f"{model.spec.family} {kind} {model.spec.name!r} after {' -> '.join(stages) or 'no stage'}"


def require_equal_sizes(predicted: Model, real: Model, label: str) -> None:
    mine, theirs = ({n: tuple(t.shape) for n, t in m.tensors().items()} for m in (predicted, real))
    for name in [*sorted(mine.keys() ^ theirs.keys()), *(n for n in mine if mine[n] != theirs.get(n))]:
        shape, expected = mine.get(name, "absent"), theirs.get(name, "absent")
        raise AssertionError(f"{label}, has {name} {shape}; the model has it {expected}")
    require(predicted.aliases() == real.aliases(), f"{label}, shares other tensors than the model does")
    for what in ("params", "bytes"):
        count, real_count = getattr(predicted, what), getattr(real, what)
        require(count == real_count, f"{label}, has {count:,} {what}; the model has {real_count:,}")
