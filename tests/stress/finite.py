"""Damaged and degenerate numbers: for each either a right result, or one sentence that names layer, sample or step.

    python tests/stress/finite.py [--bases tiny-code,vit] [--json FILE] [--seed N]

- weights: nan or infinity in a tensor, then every compressor, generation, evaluation, saving: the tensor is named.
- shapes of weights: zero, equal, huge, denormal: every compressor twice; both results finite and equal, and so reloaded.
- data: empty, one token, too long, outside the vocabulary, half characters, broken pictures: the record is named.
- training: a loss that becomes nan: loss, step and samples are named.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from contract import cases
from torch import nn
from zoo_compress.recipe.runner import apply

import zoo
from zoo.data.dataset import Dataset, Sample
from zoo.errors import ZooError
from zoo.evaluation import figures
from zoo.model.context import Context
from zoo.model.model import Model

BASES = ("tiny-code", "qwen3", "gpt2", "tiny-vlm", "tiny-t2i", "vit", "resnet")
DTYPES = {"qwen3": "bfloat16", "gpt2": "float16"}  # the others run in float32
MOST = 1000  # characters of a sentence
EVALUATORS = {
    "text": {"perplexity": {"max_tokens": 200}},
    "vision-language": {"exact-match": {"max_new_tokens": 4}, "answer-loss": {}},
    "text-to-image": {
        "velocity-error": {"draws": 1},
        "prompt-agreement": {"images": 2, "steps": 1},
        "frechet": {"images": 2, "steps": 1},
    },
    "vision": {"accuracy": {}},
}


@dataclass
class Outcome:
    """What one case led to: "named", "right", or why it is wrong."""

    case: str
    what: str
    text: str = ""


def attempt(case: str, work: Callable[[], Any], *, names: tuple[str, ...] = (), right: bool = False) -> Outcome:
    """Run a case that must end in one clean sentence with all of `names` in it, or, where `right`, may succeed."""
    try:
        work()
    except ZooError as error:
        text = str(error)
        if len(text) > MOST or any(ord(c) < 32 or ord(c) == 127 for c in text):
            return Outcome(case, "not one clean sentence", text)
        missing = [name for name in names if name not in text]
        return Outcome(case, f"does not name {missing[0]!r}" if missing else "named", text)
    except Exception as error:
        return Outcome(case, "crash", f"{type(error).__name__}: {str(error)[:300]}")
    return Outcome(case, "right" if right else "silent")


# --- weights that are not finite --------------------------------------------------------------------------------------


def damaged_weights(name: str, folder: Path) -> Iterator[Outcome]:
    """Every operation on a model with one bad value: the sentence names the tensor."""
    base = fresh(name, folder)
    names = [n for n, t in base.tensors().items() if isinstance(t, nn.Parameter) and t.is_floating_point()]
    values = [math.nan, math.inf, -math.inf]
    for number, tensor in enumerate((names[0], names[len(names) // 2], names[-1])):
        value = values[number]
        for label, work in operations(name, base):
            model = poisoned(base, tensor, value)
            yield attempt(
                f"{name}: {label} with {value} in {tensor}", lambda work=work, model=model: work(model), names=(tensor,)
            )


def poisoned(base: Model, tensor: str, value: float) -> Model:
    """A copy with one bad value in the middle of a tensor."""
    model = base.copy()
    with torch.no_grad():
        flat = model.tensors()[tensor].view(-1)
        flat[len(flat) // 2] = value
    return model


def operations(name: str, base: Model) -> Iterator[tuple[str, Callable[[Model], Any]]]:
    """Every compressor that the base takes, generation, every evaluator, saving."""
    for use in cases.OPTIONS:
        if (name, use) not in cases.REFUSED and use != "vocabulary.bpe":
            yield use, lambda model, use=use: apply(model, use, cases.options(name, use), cases.context(base))
    yield "generate", generate
    data = pictures_of_digits() if base.spec.modality == "text-to-image" else cases.context(base).data["train"]
    for task, options in EVALUATORS[base.spec.modality].items():
        yield task, lambda model, task=task, options=options: measure(model, task, data, options)
    with tempfile.TemporaryDirectory() as folder:
        yield "save", lambda model: model.save(Path(folder) / "saved")


def generate(model: Model) -> Any:
    if model.spec.modality == "text":
        return model.generate("w5 w6", max_new_tokens=4)
    if model.spec.modality == "vision-language":
        return model.generate("What digit is this?", images=[picture()], max_new_tokens=4)
    if model.spec.modality == "vision":
        return model.generate(images=[picture()])
    return model.generate("a seven", steps=1)


def measure(model: Model, task: str, data: Dataset, options: dict[str, Any]) -> Any:
    found = figures.measure(task, model, data, options=options)
    require_figures(found)
    return found


def require_figures(found: Any, where: str = "") -> None:
    """Fail where a figure is not finite."""
    if isinstance(found, float):
        assert math.isfinite(found), f"{where} is {found}"
    for key, value in found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ():
        require_figures(value, f"{where}.{key}")


def picture(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def pictures_of_digits() -> Dataset:
    from zoo.data.open import open_data

    return open_data("digits-captions:test[:4]")


def fresh(name: str, folder: Path) -> Model:
    """The base, in its dtype."""
    model = cases.base(name, folder)
    if name in DTYPES:
        from zoo.model.building import cast_parameters

        cast_parameters(model.module, getattr(torch, DTYPES[name]))
        model = replace(model, dtype=DTYPES[name], stored=DTYPES[name])
    return model


# --- weights that are finite but odd ----------------------------------------------------------------------------------


def _zero(weight: torch.Tensor) -> None:
    weight.zero_()


def _dead(weight: torch.Tensor) -> None:
    weight[: len(weight) // 2] = 0


def _equal(weight: torch.Tensor) -> None:
    weight[:] = weight[0].clone()


def _constant(weight: torch.Tensor) -> None:
    weight[:] = weight.reshape(len(weight), -1)[:, :1].reshape(len(weight), *[1] * (weight.dim() - 1)).clone()


def _same(weight: torch.Tensor) -> None:
    weight.fill_(0.01)


def _huge(weight: torch.Tensor) -> None:
    weight[0] = 1e30


def _tiny(weight: torch.Tensor) -> None:
    weight.mul_(1e-40)


ODD: dict[str, Callable[[torch.Tensor], None]] = {
    "zero": _zero,
    "half its rows zero": _dead,
    "all rows equal": _equal,
    "columns constant": _constant,
    "all values equal": _same,
    "a row of 1e30": _huge,
    "denormal": _tiny,
}


def odd_weights(name: str, folder: Path) -> Iterator[Outcome]:
    """Every compressor on a model whose matrices are odd, in one block and in all: finite, the same twice, the same reloaded."""
    base = fresh(name, folder)
    matrices = [n for n, t in base.tensors().items() if isinstance(t, nn.Parameter) and t.dim() > 1]
    for label, spoil in ODD.items():
        for some, chosen in (("a matrix", [matrices[len(matrices) // 2]]), ("all matrices", matrices)):
            model = base.copy()
            with torch.no_grad():
                for tensor in chosen:
                    spoil(model.tensors()[tensor])
            for use in cases.OPTIONS:
                if (name, use) in cases.REFUSED or use == "vocabulary.bpe":
                    continue
                case = f"{name}: {use}, {some} {label}"
                yield attempt(case, lambda use=use, model=model: twice(name, use, model, folder), right=True)


def twice(name: str, use: str, model: Model, folder: Path) -> None:
    """Apply a stage to two copies, save one, and compare."""
    one, other = model.copy(), model.copy()
    for each in (one, other):
        apply(each, use, cases.options(name, use), cases.context(model))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        loaded = zoo.load(one.save(Path(place) / "saved"))
    for tensor, value in one.tensors().items():
        assert bool(torch.isfinite(value.float()).all()), f"{tensor} is not finite"
        assert torch.equal(value, other.tensors()[tensor]), f"{tensor} differs between two runs"
        assert torch.equal(value, loaded.tensors()[tensor]), f"{tensor} differs when reloaded"


# --- data and requests ------------------------------------------------------------------------------------------------

LOOKS = {"samples": 4, "batch": 1, "length": 32}  # of calibration
TRAINS = {"steps": 2, "batch": 1, "length": 64, "warmup": 1}
LONG = " ".join("w5" for _ in range(600))
TEXTS: dict[str, tuple[list[str], str]] = {  # name -> (texts, what the sentence names; "" where they are fine)
    "one token": (["w5"], "'texts'"),
    "nothing": ([""], "'texts'"),
    "blanks": ([" \n\t "], "'texts'"),
    "a record between empty ones": (["", LONG, ""], ""),
    "one word": ([LONG], ""),
    "records of one token": (["w5"] * 700, ""),
    "words nobody knows": (["zzz " * 600], ""),
    "half a character": ([LONG, "w5 \ud800"], "texts:1"),
    "control characters": ([f"\x00\x1b[31m {LONG}"], ""),
}


def texts(*found: str) -> Dataset:
    return Dataset("texts", [Sample({"text": text}, f"texts:{number}") for number, text in enumerate(found)])


def pictures(**changes: Any) -> Dataset:
    """Three good records and between them one with `changes`."""
    good = {"image": picture(), "prompt": "What digit is this?", "text": "1", "label": 1}
    fields = [good, {name: value for name, value in {**good, **changes}.items() if value is not None}, good, good]
    return Dataset("pictures", [Sample(one, f"pictures:{number}") for number, one in enumerate(fields)])


def odd_data(name: str, folder: Path) -> Iterator[Outcome]:
    """Everything that reads data, on odd records: the result is right, or the sentence names the record."""
    base = fresh(name, folder)
    for label, (make, names) in (_odd_texts() if base.spec.modality == "text" else _odd_pictures(base)).items():
        for what, work in _readers(name, base):
            case = f"{name}: {what} on {label}"
            yield attempt(
                case,
                lambda work=work, make=make: work(make()),
                names=(names,),
                right=not names or what in ("perplexity", "exact-match"),
            )


def _odd_texts() -> dict[str, tuple[Callable[[], Dataset], str]]:
    return {label: (lambda found=found: texts(*found), names) for label, (found, names) in TEXTS.items()}


def _odd_pictures(base: Model) -> dict[str, tuple[Callable[[], Dataset], str]]:
    bad: dict[str, Any] = {
        "a picture of floats": {"image": np.full((32, 32, 3), np.nan, dtype=np.float32)},
        "an empty picture": {"image": np.zeros((0, 32, 3), np.uint8)},
        "a picture that is not there": {"image": Path("/nowhere.png")},
        "no picture": {"image": None},
        "half a character": {"text": "\ud800"},
    }
    if base.spec.modality == "vision":
        bad |= {"label nan": {"label": math.nan}, "label 99": {"label": 99}, "label -1": {"label": -1}}
    if base.spec.modality == "vision-language":
        bad |= {
            "an empty question": {"prompt": " "},
            "a long question": {"prompt": "w5 " * 5000},
            "a long answer": {"text": "w5 " * 5000},
        }
    fine = {
        "records alike": {},
        "an empty text": {"text": ""},
        "a picture of one pixel": {"image": np.zeros((1, 1, 3), np.uint8)},
    }
    found = {label: (lambda changes=changes: pictures(**changes), "pictures:1") for label, changes in bad.items()}
    found |= {label: (lambda changes=changes: pictures(**changes), "") for label, changes in fine.items()}
    return found | {"one record": (lambda: Dataset("pictures", pictures().samples[:1]), "")}


def _readers(name: str, base: Model) -> Iterator[tuple[str, Callable[[Dataset], Any]]]:
    """What reads data: calibration of three kinds, training, distilling, evaluation."""
    target = {"target": cases.TARGETS[name]} if name in cases.TARGETS else {}
    stages: dict[str, dict[str, Any]] = {
        "lowrank.svd": {"ratio": 0.5, **LOOKS, **target},
        "train": TRAINS,
        "distill": TRAINS,
    }
    if base.spec.modality == "vision-language":
        stages["lowrank.svd"]["length"] = 64
    if base.anatomy.stacks and base.spec.modality != "text-to-image":
        stages["inherit"] = {"layers": "influence:2", **stages["lowrank.svd"]}
        del stages["inherit"]["ratio"]
        stages["prune.structured"] = {
            "ffn": 0.5,
            "importance": "activation",
            "samples": 4,
            "length": stages["lowrank.svd"]["length"],
            **target,
        }
    for use, options in stages.items():
        yield use, lambda data, use=use, options=options: _stage_on(base, use, options, data)
    for task, options in EVALUATORS[base.spec.modality].items():
        if base.spec.modality != "text-to-image" or task == "velocity-error":
            yield task, lambda data, task=task, options=options: measure(base, task, data, options)


def _stage_on(base: Model, use: str, options: dict[str, Any], data: Dataset) -> None:
    model = base.copy()
    apply(model, use, options, Context(data={"train": data, "calibration": data}, load=lambda _: base.copy()))
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in model.tensors().values())


def odd_requests(name: str, folder: Path) -> Iterator[Outcome]:
    """Prompts and options at the edges: an answer, or one sentence."""
    base = fresh(name, folder)
    prompts: list[Any] = [
        "",
        " ",
        "w5" * 10_000,
        "w5 " * 5_000,
        "\ud800",
        "\x00\x1b",
        "zzz",
        5,
        b"w5",
        ["w5"],
        "<image>",
        "w5 " * 63,
    ]
    few = (
        {"max_new_tokens": 2}
        if "max_new_tokens" in base.family.taken(base)
        else {"steps": 1}
        if "steps" in base.family.taken(base)
        else {}
    )
    beside = {"images": [picture()]} if base.spec.modality == "vision-language" else {}
    for prompt in prompts if "prompt" in base.family.taken(base) else []:
        yield attempt(
            f"{name}: prompt {str(prompt)[:12]!r}",
            lambda prompt=prompt: base.generate(prompt, **few, **beside),
            right=True,
        )
    for option in base.family.taken(base):
        for value in (-1, 0, math.nan, math.inf, -math.inf, 1e300, 10**30, "x", None, [], True):
            if option not in ("prompt", "images", "count", "steps"):
                asked = {**few, **beside, option: value}
                yield attempt(
                    f"{name}: {option} = {value}", lambda asked=asked: base.generate("w5 w6", **asked), right=True
                )


# --- training that leaves the numbers ---------------------------------------------------------------------------------


def bad_training(name: str, folder: Path) -> Iterator[Outcome]:
    """Training and distilling that meet nan: a rate far too high, a teacher out of range, a damaged batch."""
    base = fresh(name, folder)
    data = cases.context(base).data["train"]
    wild = {**TRAINS, "steps": 6, "lr": 1e30, "warmup": 0}
    for use in ("train", "distill"):
        yield attempt(
            f"{name}: {use} at lr 1e30",
            lambda use=use: _stage_on(base, use, wild, data),
            names=(use, "at step ", data[0].where.partition(":")[0]),
        )
    teacher = base.copy()
    with torch.no_grad():
        for tensor in teacher.tensors().values():
            if tensor.is_floating_point():
                tensor.mul_(1e25)
    context = Context(data={"train": data}, load=lambda _: teacher)
    # where 1e25 itself is infinite
    where = ("teacher",) if DTYPES.get(name) == "float16" else ("step 0", data[0].where.partition(":")[0])
    yield attempt(
        f"{name}: distill from a teacher out of range",
        lambda: apply(base.copy(), "distill", TRAINS, context),
        names=("distill: the ", *where),
        right=True,
    )


PARTS = {
    "weights": damaged_weights,
    "odd": odd_weights,
    "data": odd_data,
    "requests": odd_requests,
    "training": bad_training,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", default=",".join(BASES))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-v", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    started, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for part in asked.parts.split(","):
            for name in asked.bases.split(","):
                for outcome in PARTS[part](name, Path(folder)):
                    outcomes.append(outcome)
                    if asked.v or outcome.what not in ("named", "right"):
                        print(f"{outcome.what}: {outcome.case}: {outcome.text}", flush=True)
    counts = Counter(outcome.what for outcome in outcomes)
    if asked.json:
        wrong = [vars(outcome) for outcome in outcomes if outcome.what not in ("named", "right")]
        asked.json.write_text(
            json.dumps({"counts": counts, "seconds": time.monotonic() - started, "wrong": wrong}, indent=1) + "\n"
        )
    print(
        ", ".join(f"{count} {what}" for what, count in counts.most_common()), f"in {time.monotonic() - started:.0f} s"
    )
    return 0 if counts.keys() <= {"named", "right"} else 1


if __name__ == "__main__":
    sys.exit(main())
