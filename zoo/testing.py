"""Contract tests for plugin authors: plain functions that raise AssertionError with a sentence.

    from zoo.testing import check_estimate, check_exact_reload

    def test_halving_survives_a_save(tmp_path):
        model = zoo.load("tiny-code")
        halved = check_estimate(model, "mine.halve", {"share": 0.5})
        check_exact_reload([halved], tmp_path)

Zoo's own tests call the same functions for every compressor and family. What is tested has to be registered, since a
fresh process finds it by its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from zoo.compressor import Compressor, Context
    from zoo.model import Model

Outputs = dict[str, Any]
TOKENS = 8  # generated with a cache


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
    from zoo.compressor import Context
    from zoo.model import stage_of

    found = _resolved(compressor)
    chosen = found.Options(**(options or {}))
    done, skeleton = model.copy(), model.skeleton()
    _require_equal_sizes(skeleton, model, f"{_label(model)}: its lineage, replayed on a skeleton")
    found.check(skeleton, skeleton.state(), chosen)
    record = json.loads(json.dumps(found.outline(skeleton, chosen)))
    skeleton.replay(stage_of(found, chosen.model_dump(mode="json"), record, seed=0))
    label = f"{_label(model, found)}: outline, replayed on a skeleton"
    real = [name for name, tensor in skeleton.tensors().items() if not tensor.is_meta]
    _require(not real, f"{label}, allocates {real[:1]}; what is rebuilt must be on the device of what it replaces")
    done.apply(found, chosen, context or Context())
    _require_equal_sizes(skeleton, done, label)
    return done


def check_refuses(
    model: Model, compressor: Compressor | str, options: Mapping[str, Any] | None = None, context: Context | None = None
) -> str:
    """Check that a stage refuses a model in time: on its skeleton, so that a plan says so, and before it changes it.

    Returns:
        The sentence it refuses with.
    """
    from zoo.compressor import Context
    from zoo.errors import ZooError

    found = _resolved(compressor)
    chosen = found.Options(**(options or {}))
    before, sentences = _hash_of_tensors(model), []
    for kind, one in (("a skeleton", model.skeleton()), ("the model", model)):
        try:
            if one is model:
                one.apply(found, chosen, context or Context())
            else:
                found.check(one, one.state(), chosen)
        except ZooError as error:
            sentences.append(str(error))
        _require(bool(sentences), f"{_label(model, found)} was to be refused, but {kind} was taken")
        sentences = sentences[-1:]
    _require(_hash_of_tensors(model) == before, f"{_label(model, found)} was refused after it had changed the model")
    return sentences[0]


def check_exact_reload(models: Sequence[Model], folder: Path) -> None:
    """Check that saved models give bit-identical outputs in a fresh process: one for all, since it imports for seconds.

    Raises:
        AssertionError: names family, model and stages of each that differs, and in what.
    """
    places = {folder / f"{i:03d}-{model.spec.name}": model for i, model in enumerate(models)}
    here = {}
    for place, model in places.items():
        model.save(place)
        here[place] = outputs(model)
    there = outputs_in_fresh_process(list(places))
    wrong = [difference(_label(model), here[place], there[place]) for place, model in places.items()]
    _require(not any(wrong), "\n".join(filter(None, wrong)))


@contextmanager
def random_state_kept(what: str = "this") -> Iterator[None]:
    """Check that the global random states of torch, numpy and Python are the same afterwards."""
    before = _random_states()
    yield
    changed = [name for name, state in _random_states().items() if state != before[name]]
    named = " and ".join(changed)
    _require(not changed, f"{what} changes the global random state of {named}; draw from a generator of its own")


# --- what a model computes ------------------------------------------------------------------------------------------


def outputs(model: Model) -> Outputs:
    """What a model is and computes: sizes, traits, and hashes of the raw bytes of its tensors and outputs.

    Batches of several sizes, since many rows, few, and one run in different kernels, and one in particular is sensitive
    to where a weight lies in memory. Causal models also generate, with a cache.
    """
    import torch

    from zoo.family import TextFamily
    from zoo.generation import next_tokens

    found: Outputs = {
        "parameters": model.params,
        "bytes": model.bytes,
        "traits": {path: [[t.kind, t.detail, t.stage] for t in traits] for path, traits in model.state().items()},
        "tensors": _hash_of_tensors(model),
    }
    with torch.no_grad():
        for name, (batch, size) in {"output": (2, 16), "output for four tokens": (1, 4), "output for one token": (1, 1)}.items():
            found[name] = _hash(model.family.forward(model, model.family.example(model, batch=batch, size=size)))
    if isinstance(model.family, TextFamily) and model.spec.task == "causal-lm":
        prompt = model.family.example(model, batch=1, size=4)["input_ids"][0].tolist()
        found["generated tokens"] = list(next_tokens(model, prompt, TOKENS))
        found["sampled tokens"] = list(next_tokens(model, prompt, TOKENS, temperature=1.0))
    return found


def outputs_in_fresh_process(folders: Sequence[Path]) -> dict[Path, Outputs]:
    """Load each artifact in one fresh process and return what `outputs` says of it there."""
    import tempfile

    import torch

    if not folders:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        places = [str(folder.absolute()) for folder in folders]
        request = {"threads": torch.get_num_threads(), "answer": str(answer), "folders": places}
        done = subprocess.run(
            [sys.executable, "-m", "zoo.testing"], input=json.dumps(request), capture_output=True, text=True,
            check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        _require(answer.exists(), f"the process that reloads models died:\n{done.stderr[-2000:]}")
        found: list[Outputs] = json.loads(answer.read_text())
    return dict(zip(folders, found, strict=True))


def difference(label: str, here: Outputs, there: Outputs) -> str:
    """Say in what a reloaded model differs from the saved one; "" where in nothing."""
    if "error" in there:
        return f"{label} does not load in a fresh process: {there['error']}"
    if there["stored bytes"] != here["bytes"]:
        return f"{label}: its file holds {there['stored bytes']:,} bytes of weights, Model.bytes says {here['bytes']:,}"
    wrong = [key for key, value in json.loads(json.dumps(here)).items() if there.get(key) != value]
    return f"{label}, reloaded in a fresh process, differs in {', '.join(wrong)}" if wrong else ""


def _answer(request: Mapping[str, Any]) -> None:
    """The fresh process: load every folder and write what it computes."""
    import torch

    from zoo.loading import load

    torch.set_num_threads(request["threads"])
    found: list[Outputs] = []
    for folder in request["folders"]:
        try:
            model = load(folder)
            files = model.family.weight_files(model.spec.config).values()
            found.append({**outputs(model), "stored bytes": sum(_stored_bytes(Path(folder) / file) for file in files)})
        except Exception as error:  # said of this one, and the others go on
            found.append({"error": f"{type(error).__name__}: {error}"})
    Path(request["answer"]).write_text(json.dumps(found))


def _stored_bytes(path: Path) -> int:
    """Bytes of a safetensors file without its header (eight bytes of length, then JSON)."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


# --- small questions ------------------------------------------------------------------------------------------------


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


def _resolved(compressor: Compressor | str) -> Compressor:
    from zoo import registry

    return registry.compressor(compressor) if isinstance(compressor, str) else compressor


def _label(model: Model, then: Compressor | None = None) -> str:
    """The family, the model, and the stages behind it."""
    stages = [*(stage.use for stage in model.lineage), *([then.name] if then else [])]
    kind = type(model.module).__name__
    return f"{model.spec.family} {kind} {model.spec.name!r} after {' -> '.join(stages) or 'no stage'}"


def _require_equal_sizes(predicted: Model, real: Model, label: str) -> None:
    mine, theirs = ({n: tuple(t.shape) for n, t in m.tensors().items()} for m in (predicted, real))
    for name in [*sorted(mine.keys() ^ theirs.keys()), *(n for n in mine if mine[n] != theirs.get(n))]:
        found, expected = mine.get(name, "absent"), theirs.get(name, "absent")
        raise AssertionError(f"{label}, has {name} {found}; the model has it {expected}")
    _require(predicted.aliases() == real.aliases(), f"{label}, shares other tensors than the model does")
    for what in ("params", "bytes"):
        one, other = getattr(predicted, what), getattr(real, what)
        _require(one == other, f"{label}, has {one:,} {what}; the model has {other:,}")


def _hash(tensor: torch.Tensor) -> str:
    import torch

    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.detach()
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def _hash_of_tensors(model: Model) -> str:
    parts = [(name, str(t.dtype), list(t.shape), _hash(t)) for name, t in sorted(model.tensors().items())]
    return hashlib.sha256(json.dumps([parts, model.aliases()], sort_keys=True).encode()).hexdigest()


def _random_states() -> dict[str, str]:
    import random

    import numpy as np
    import torch

    states: dict[str, Any] = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()],
        "random": random.getstate(),
    }
    if torch.cuda.is_available():
        states["torch.cuda"] = [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return {name: hashlib.sha256(repr(state).encode()).hexdigest() for name, state in states.items()}


if __name__ == "__main__":
    _answer(json.loads(sys.stdin.read()))
