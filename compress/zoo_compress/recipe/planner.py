"""Plans: everything a recipe would do, checked and estimated before any work.

A skeleton of the model on the meta device goes through every stage's `check`, `outline` and `rebuild`, so parameter
counts are exact and a stage that cannot follow another is refused before a weight is read.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.anatomy.coverage import said
from zoo.compressor import Compressor
from zoo.data.dataset import Dataset
from zoo.data.open import open_data
from zoo.data.overlap import overlaps
from zoo.errors import DataError, RecipeError, ZooError, nearest
from zoo.evaluation.figures import check
from zoo.family.task import task_of
from zoo.loading.contents import require_readable
from zoo.loading.load import load
from zoo.loading.locate import Located
from zoo.model.context import Context
from zoo.model.licences import Inherited, inherited, of_data, of_teacher
from zoo.model.lineage import Stage, State, Trait, stage_of
from zoo.model.model import Model
from zoo.options import CompressorOptions
from zoo.system.memory import give_back, resident_bytes
from zoo_compress.dryrun import runs_dry
from zoo_compress.methods.quantize.formats.kernels import counted
from zoo_compress.recipe.needs import require_room
from zoo_compress.recipe.planned import Plan, PlannedStage
from zoo_compress.recipe.recipe import Recipe, StageRequest, blamed, located
from zoo_compress.recipe.resident import Weights, run_bytes

UNTRIED = "Shapes do not tell whether the model runs after it: the run tries that before its first stage."


def plan(recipe: Recipe, *, out: Path | None = None) -> Plan:
    """Check and estimate every stage of a recipe without reading a weight.

    Raises:
        RequestError: a stage, a target, the data or the order does not fit; the message begins with file, line and stage.
    """
    original = _original(recipe)
    model = skeleton_of(recipe, original)
    require_room()
    licences = inherited(model)
    data = _open_all(recipe)
    recipe = recipe.measured_by(task_of(model).usual_evaluator(model, data.get("test")))
    _require_test(recipe, data)
    named = {name: _meant(recipe, name, request, original) for name, request in _teachers(recipe).items()}
    teachers = {name: _teacher(recipe, name, request, named[name]) for name, request in _teachers(recipe).items()}
    _check_evaluation(recipe, model, data, original)
    context = Context(seed=recipe.about.seed, data=data, load=lambda name: teachers[name])
    in_memory = Weights.of(original, model, offload=recipe.model.offload)
    stages = [PlannedStage("original", model.params, model.bytes, in_memory.loading)]
    control = None
    state = initial_state(model)
    trained = next((request for request in reversed(recipe.stages) if request.compressor.trains), None)
    for request in recipe.stages:
        _check(request, model, state, teachers, data)
        if recipe.evaluate.control and request is trained:
            control = _control(request, model, context)
        stages.append(_foreseen(recipe, request, model, state, in_memory, context))
        in_memory = in_memory.after(request)
    base = _base_bytes(recipe)
    import psutil

    return Plan(
        recipe,
        original,
        named,
        model.spec,
        model.stored,
        tuple(replace(stage, peak_bytes=base + stage.peak_bytes) for stage in stages),
        data,
        licenses={m.spec.name: m.spec.license or "unknown" for m in (model, *teachers.values())},
        inherits=_inherits(recipe, licences, teachers, data),
        disk_bytes=2 * sum(stage.bytes for stage in stages[1:])
        + max(map(_working_disk, recipe.stages, stages[1:]), default=0)
        + in_memory.on_disk,
        free_disk_bytes=_free_disk((out or Path()).absolute()),
        free_memory_bytes=psutil.virtual_memory().available,
        base_bytes=base,
        control=control and replace(control, peak_bytes=base + control.peak_bytes),
        overlaps=overlaps(data),
    )


def _working_disk(request: StageRequest, stage: PlannedStage) -> int:
    """Disk of a stage while it runs: what it says itself, and the weights and two moments of a training step's checkpoint."""
    return stage.working_disk_bytes + (12 * stage.params if request.compressor.trains else 0)


def _free_disk(out: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    return shutil.disk_usage(next(path for path in (out, *out.parents) if path.exists())).free


def _inherits(
    recipe: Recipe, licences: Iterable[Inherited], teachers: Mapping[str, Model], data: Mapping[str, Dataset]
) -> tuple[Inherited, ...]:
    """What the result will inherit: what the model has already, then of the teachers and the data of every stage."""
    found = {licence.of: licence.license for licence in licences}
    for request in recipe.stages:
        for name, teacher in _own(request, teachers):
            found |= of_teacher(name, teacher) if name != "original" else {}
        found |= of_data(data[role].name for role in request.compressor.roles(request.options) if role in data)
    return tuple(Inherited(of, license) for of, license in found.items())


def _foreseen(
    recipe: Recipe, request: StageRequest, model: Model, state: State, in_memory: Weights, context: Context
) -> PlannedStage:
    """Take a stage on the skeleton, and say what it leaves and needs; `in_memory` are the weights before it."""
    compressor, options = request.compressor, request.options
    before, (working, working_disk, doubt) = in_memory.resident(model), _working(request, model, context)
    own_note, skeleton = compressor.note(model, options), model.copy()
    with blamed(request):
        record = compressor.outline(model, options)
        advance(model, state, request, record, seed=recipe.about.seed)
        untried = compressor.structural and not runs_dry(skeleton, model, compressor)
    if compressor.tokenizes:
        model.processor = None
    # what is stored as it is run stays mapped beside what is made of it, until the last is made
    held = max(before, in_memory.resident(model))
    peak = held + (run_bytes(model) if working is None else working)
    note = " ".join(
        filter(None, (own_note, said(record), _untaught(recipe, request), doubt, UNTRIED if untried else ""))
    )
    return PlannedStage(
        request.use,
        model.params,
        model.bytes,
        peak,
        note,
        options.model_dump(mode="json"),
        untried,
        working_disk_bytes=working_disk,
        kernels=counted(model.module),
    )


def _original(recipe: Recipe) -> Located:
    """What the recipe's model is."""
    with _blamed_model(recipe):
        return located(recipe, recipe.model.name, recipe.model.weights)


def skeleton_of(recipe: Recipe, original: Located) -> Model:
    """Build the recipe's model on the meta device."""
    with _blamed_model(recipe):
        model = load(original, device="meta", dtype=recipe.model.dtype or None)
        _require_readable(model)
    model.stored = recipe.model.stored or original.stored or model.dtype
    return model


@contextmanager
def _blamed_model(recipe: Recipe) -> Iterator[None]:
    """Say where in the recipe the model is named of which something is wrong."""
    try:
        yield
    except ZooError as error:
        key = "weights" if "weights=" in str(error) else "name"
        raise type(error)(f"{recipe.where('model', key)}: {error}") from None


def _require_readable(model: Model) -> None:
    """Refuse a folder that a run could not load; for its skeleton a config was enough."""
    if model.origin not in ("", "random") and Path(model.origin).is_dir():
        require_readable(Path(model.origin))


def initial_state(model: Model) -> State:
    """The traits a model comes with; tensors shared by construction (tied embeddings) are not counted as shared."""
    return {
        path: tuple(replace(t, stage=f"an earlier {t.stage}") for t in traits) for path, traits in model.state().items()
    }


def advance(model: Model, state: State, request: StageRequest, record: dict[str, Any], *, seed: int) -> Stage:
    """Replay one stage on the skeleton and update the declared states."""
    stage = stage_of(request.compressor, request.options.model_dump(mode="json"), record, seed=seed)
    model.replay(stage)
    moved = {request.compressor.moved(record, path): traits for path, traits in state.items()}
    state.clear()
    state.update({path: traits for path, traits in moved.items() if path is not None})
    for path, trait in request.compressor.traits(record).items():
        state[path] = (*state.get(path, ()), Trait(trait.kind, trait.detail, request.label))
    return stage


def _check(
    request: StageRequest, model: Model, state: State, teachers: Mapping[str, Model], data: Mapping[str, Dataset]
) -> None:
    with blamed(request):
        for role in request.compressor.roles(request.options):
            if role not in data:
                near = nearest(role, data)
                raise DataError(f'it needs {role} data: add `{role} = "..."` to the [data] table.{near}')
        request.compressor.check(model, state, request.options)
        for _, teacher in _own(request, teachers):
            request.compressor.check_teacher(model, teacher)
        for role in request.compressor.roles(request.options):
            if _ready(model):
                if getattr(request.options, "chat", False):
                    model.family.chats(model, data[role][:1])
                model.family.check_data(model, data[role], length=getattr(request.options, "length", 0))


def _ready(model: Model) -> bool:
    """Whether a model has what it reads data with."""
    return model.processor is not None or not model.family.needs_processor


def _check_evaluation(recipe: Recipe, model: Model, data: Mapping[str, Dataset], original: Located) -> None:
    """Refuse prompts and tasks that do not fit the model; what needs a tokenizer, only where it is already known."""
    made = any(request.compressor.tokenizes for request in recipe.stages)
    missing = model.processor is None and not made and original.path is not None
    with blamed(recipe.where("evaluate", "prompts")):
        task_of(model).check_prompts(model, recipe.evaluate.prompts)
    if "test" not in data or not (_ready(model) or missing):
        return
    for task in recipe.evaluate.tasks or ():
        with blamed(recipe.where("evaluate", "tasks")):
            check(task, model, data["test"])


def _untaught(recipe: Recipe, request: StageRequest) -> str:
    if recipe.model.weights != "random" or getattr(request.options, "teacher", "") != "original":
        return ""
    return 'The teacher is the original, whose weights are random: it knows nothing to teach. Name a trained one, teacher = "...".'


def _own(request: StageRequest, teachers: Mapping[str, Model]) -> list[tuple[str, Model]]:
    name = str(getattr(request.options, "teacher", ""))
    return [(name, teachers[name])] if name in teachers else []


def _teachers(recipe: Recipe) -> dict[str, StageRequest]:
    """Every teacher that is named, and the first stage that names it."""
    named: dict[str, StageRequest] = {}
    for stage in recipe.stages:
        if hasattr(stage.options, "teacher"):
            named.setdefault(str(stage.options.teacher), stage)
    return named


def _meant(recipe: Recipe, name: str, request: StageRequest, original: Located) -> Located:
    with blamed(request, "teacher: "):
        return original if name == "original" else located(recipe, name)


def _teacher(recipe: Recipe, name: str, request: StageRequest, meant: Located) -> Model:
    if name == "original":
        return skeleton_of(recipe, meant)
    with blamed(request, "teacher: "):
        teacher = load(meant, device="meta")
        _require_readable(teacher)
        return teacher


def _open_all(recipe: Recipe) -> dict[str, Dataset]:
    opened = {}
    for role, reference in recipe.data.items():
        try:
            opened[role] = open_data(reference, base=recipe.base)
        except DataError as error:
            raise DataError(f"{recipe.where('data', role)}: {error}") from None
    return opened


def _require_test(recipe: Recipe, data: Mapping[str, Dataset]) -> None:
    tasks = [*(recipe.evaluate.tasks or ()), *recipe.evaluate.baselines]
    if "test" not in data and tasks and recipe.data:
        unless = ", or `tasks = []` to [evaluate] to measure nothing" if recipe.usual else ""
        raise RecipeError(
            f'{recipe.where("evaluate")}: {tasks[0]} needs test data: add `test = "..."` to the [data] table{unless}.'
        )


def _working(request: StageRequest, model: Model, context: Context) -> tuple[int | None, int, str]:
    """The memory of a stage on top of the weights before it, and its disk; where they cannot be told, a guess and why."""
    compressor, options = request.compressor, request.options
    try:
        memory = compressor.working_bytes(model, options, context)
        return memory, compressor.disk_bytes(model, options, context), ""
    except ZooError as error:
        return 4 * run_bytes(model), 0, f"Its memory is a guess: {str(error).rstrip('.')}."


def _control(request: StageRequest, model: Model, context: Context) -> PlannedStage:
    """The same architecture, trained from random weights on the data of a training stage."""
    compressor, options = control_of(request)
    working, _, doubt = _working(replace(request, compressor=compressor, options=options), model, context)
    return PlannedStage("control", model.params, model.bytes, run_bytes(model) + (working or 0), doubt)


def control_of(request: StageRequest) -> tuple[Compressor, CompressorOptions]:
    """The stage a training stage is compared with: the same steps on data alone, with the losses of the model's family."""
    from zoo_compress.methods.train import Train
    from zoo_compress.train.options import TrainingOptions

    kept = [key for key in (*TrainingOptions.model_fields, "data") if key != "loss"]
    return Train(), Train.Options(**{key: getattr(request.options, key) for key in kept})


def _base_bytes(recipe: Recipe) -> int:
    """What the process holds when nothing runs: with everything imported that the run will import, and the data read."""
    if any(request.compressor.trains for request in recipe.stages):
        import accelerate  # noqa: F401
    give_back()
    return resident_bytes()
