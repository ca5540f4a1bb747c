"""One row of compression.py in a process of its own, under any interpreter that has torch and transformers.

    python benchmarks/compression_row.py FOLDER ROW.json RESULT.json

FOLDER is what compression.py prepared. The row is loaded, compressed and measured; its figures go to RESULT.json.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compression_peers import BUILDERS
from torch import nn

PROMPT, DECODED, SENTENCES = 128, 12, 32  # tokens of a prompt, tokens after it, sentences that are encoded together


@dataclass
class Loaded:
    """A model as the row's interpreter has it: a language model of transformers, or one of zoo where zoo is installed."""

    module: nn.Module
    model: Any = None  # of zoo

    def vectors(self, sentences: list[str]) -> torch.Tensor:
        return torch.from_numpy(self.model.generate(sentences)).float()


def load(path: str) -> Loaded:
    try:
        from zoo import load as load_zoo
    except ImportError:
        from transformers import AutoModelForCausalLM

        return Loaded(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval())
    model = load_zoo(path, dtype="float32")
    return Loaded(model.module.eval(), model)


def main() -> None:
    folder, asked, found = map(Path, sys.argv[1:4])
    settings, row = json.loads((folder / "settings.json").read_text()), json.loads(asked.read_text())
    torch.set_num_threads(settings["threads"])
    start, used = time.perf_counter(), time.process_time()
    subject = load(settings["original"])
    module = BUILDERS[row["by"]](subject, row, settings)
    row["seconds"], row["cpu_seconds"] = time.perf_counter() - start, time.process_time() - used
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    subject.module = module.eval()
    original = load(settings["original"])
    row |= stored(subject.module, original.module, row.pop("saved", None))
    with torch.no_grad():  # optimum-quanto stops in inference mode
        reference = torch.load(folder / "reference.pt")
        compare = cosines if settings["sentences"] else predictions
        row |= compare(subject, original, settings["test"], reference)
        if settings["repeats"]:
            row |= speed(subject, original, settings)
    found.write_text(json.dumps(row))


def body(module: nn.Module, ids: list[int]) -> torch.Tensor:
    """The last hidden states of a language model (T, D), which its head reads."""
    return module.base_model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]


def predictions(subject: Loaded, original: Loaded, windows: list[Any], reference: list[torch.Tensor]) -> dict[str, Any]:
    """KL(original || subject), what the loss grew by, and for how many tokens the likeliest is the same, of each window."""
    found: dict[str, list[float]] = {name: [] for name in ("lost", "more_nats", "agreed", "count")}
    each = []
    for (ids, given), hidden_TD in zip(windows, reference, strict=True):
        rows = slice(given - 1, len(ids) - 1)
        mine, theirs = (
            loaded.module.get_output_embeddings()(hidden[rows]).float().log_softmax(-1)
            for loaded, hidden in ((subject, body(subject.module, ids)), (original, hidden_TD))
        )
        kl_T = (theirs.exp() * (theirs - mine)).sum(-1).clamp_min(0).double()
        each.append(kl_T)
        found["lost"].append(float(kl_T.sum()))
        more_T1 = (theirs - mine).gather(1, torch.tensor(ids[given:])[:, None])
        found["more_nats"].append(float(more_T1.double().sum()))
        found["agreed"].append(float((mine.argmax(-1) == theirs.argmax(-1)).sum()))
        found["count"].append(len(kl_T))
    return {**found, "lost_q99": float(torch.cat(each).quantile(0.99))}


def cosines(subject: Loaded, original: Loaded, sentences: list[str], reference: torch.Tensor) -> dict[str, Any]:
    """1 - the cosine of each sentence's vector to the original's."""
    lost = 1 - torch.cosine_similarity(subject.vectors(sentences), reference, dim=-1)
    return {"lost": lost.tolist(), "count": [1] * len(lost), "lost_q99": float(lost.quantile(0.99))}


def stored(module: nn.Module, original: nn.Module, saved: str | None) -> dict[str, float]:
    """Bits for each weight of the layers that rows compress, with scales and zeros, and bytes with the rest in 16 bits."""
    head = original.get_output_embeddings() if hasattr(original, "get_output_embeddings") else None
    layers = {path: m for path, m in original.named_modules() if isinstance(m, nn.Linear) and m is not head}
    weights = sum(layer.weight.numel() for layer in layers.values())
    if saved:
        count = sum(size for name, size in saved_tensors(Path(saved)) if name.rpartition(".")[0] in layers)
    else:
        count = sum(bytes_of(module.get_submodule(path), layer.weight.numel()) for path, layer in layers.items())
    rest = sum(p.numel() for p in original.parameters()) - weights
    return {"bits": 8 * count / weights, "disk_mb": (count + 2 * rest) / 1e6}


def tensors_of(layer: nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor that a layer stores its weight in; biases are left out."""
    pending: list[Any] = [
        value
        for module in layer.modules()
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if name != "bias"
    ]
    pending += [v for name in ("W_q", "meta") for v in [getattr(layer, name, None)] if isinstance(v, dict)]
    seen = set()
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif hasattr(value, "quant_state") and value.quant_state is not None:  # bitsandbytes, 4 bits
            pending += [value.quant_state.absmax, value.data]
        elif hasattr(value, "SCB") and value.SCB is not None:  # bitsandbytes, 8 bits
            pending += [value.SCB, value.data]
        elif hasattr(value, "__tensor_flatten__") and type(value) not in (torch.Tensor, nn.Parameter):
            pending += [getattr(value, name) for name in value.__tensor_flatten__()[0]]
        elif isinstance(value, torch.Tensor) and value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            yield value


def bytes_of(layer: nn.Module, weights: int) -> int:
    """Bytes that a layer takes; a plain matrix counts in 16 bits, whatever it is computed in."""
    tensors = list(tensors_of(layer))
    return sum(2 * t.numel() if t.is_floating_point() and t.numel() == weights else t.nbytes for t in tensors)


def saved_tensors(folder: Path) -> Iterator[tuple[str, int]]:
    """Names and bytes of the tensors in a folder's safetensors files."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        for name, told in header.items():
            yield name, told["data_offsets"][1] - told["data_offsets"][0]


def speed(subject: Loaded, original: Loaded, settings: dict[str, Any]) -> dict[str, list[float]]:
    """Times of the original over times of the subject, in turn: of prompts, and of tokens after one."""
    if settings["sentences"]:
        texts = settings["test"][:SENTENCES]
        return {"prefill": in_turn(lambda one: timed(lambda: one.vectors(texts)), subject, original, settings)}
    prompt = torch.tensor([(settings["test"][0][0] * PROMPT)[:PROMPT]])
    return {
        "prefill": in_turn(lambda one: timed(lambda: one.module(input_ids=prompt)), subject, original, settings),
        "decode": in_turn(lambda one: decode(one.module, prompt[:, :8]), subject, original, settings),
    }


def in_turn(run: Callable[[Loaded], float], subject: Loaded, original: Loaded, settings: dict[str, Any]) -> list[float]:
    for one in (subject, original):  # layouts are made, caches are filled
        run(one)
    return [1 / (run(subject) / run(original)) for _ in range(settings["repeats"])]


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def decode(module: nn.Module, prompt: torch.Tensor) -> float:
    """Seconds a token after a prompt, greedily."""
    out = module(input_ids=prompt, use_cache=True)
    kept = "cache" if "cache" in out else "past_key_values"
    seconds = []
    for _ in range(DECODED):
        token = out.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        out = module(input_ids=token, use_cache=True, **{kept: out[kept]})
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
