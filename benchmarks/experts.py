"""Measure a list of experts beside transformers' own: the loop over experts (eager), and all of them at once (grouped_mm).

    python benchmarks/experts.py        some minutes on two cores

Every variant is timed in turn within each repeat, so a busy machine slows all of them alike. Figures are times of eager divided
by those of the variant, medians, with the 95 % interval of the median of the repeats' ratios: above 1 is faster than eager.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from interleaved import in_turn
from torch import nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from zoo_compress.experts import install
from zoo_compress.methods.quantize.formats.int8_layers import Int8Linear

SHAPES = {"tiny": (4, 2, 64, 128), "middle": (16, 4, 576, 768)}  # experts, taken by a token, width, channels


def experts_of(shape: tuple[int, ...], implementation: str) -> Any:
    count, taken, width, channels = shape
    config = MixtralConfig(
        hidden_size=width, intermediate_size=channels, num_local_experts=count, num_experts_per_tok=taken
    )
    config._experts_implementation = implementation
    experts = MixtralExperts(config).eval()
    for parameter in experts.parameters():
        parameter.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    return experts


def as_list(experts: nn.Module, *, pack: bool) -> Any:
    holder = nn.ModuleDict({"experts": copy.deepcopy(experts)})
    install(holder, ["experts"])
    for path, part in list(holder.named_modules()):
        if pack and isinstance(part, nn.Linear):
            holder.set_submodule(path, Int8Linear.from_linear(part))
    return holder.experts


def ratios(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Of each repeat the time of the first call divided by those of the others."""
    seconds = in_turn(calls, repeats)
    first = next(iter(seconds.values()))
    return {name: [one / other for one, other in zip(first, own, strict=True)] for name, own in seconds.items()}


def interval(values: list[float]) -> str:
    """The median, and the order statistics that hold it in 95 of 100 cases."""
    ordered, count = sorted(values), len(values)
    reach = round(0.98 * count**0.5)
    low, high = ordered[max(0, count // 2 - reach)], ordered[min(count - 1, count // 2 + reach)]
    return f"{statistics.median(ordered):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    print("| experts | tokens | eager, us | grouped_mm | list | list, int8 |\n| --- | --- | --- | --- | --- | --- |")
    for name, shape in SHAPES.items():
        eager, grouped = experts_of(shape, "eager"), experts_of(shape, "grouped_mm")
        plain, packed = as_list(eager, pack=False), as_list(eager, pack=True)
        for tokens in (1, 4, 16, 128):
            x = torch.randn(tokens, shape[2])
            chosen = torch.stack([torch.randperm(shape[0])[: shape[1]] for _ in range(tokens)])
            weights = torch.rand(tokens, shape[1])
            variants = {"eager": eager, "grouped": grouped, "list": plain, "int8": packed}
            calls = {key: partial(module, x, chosen, weights) for key, module in variants.items()}
            with torch.inference_mode():
                ratios(calls, 5)
                found = ratios(calls, repeats)
                start = time.perf_counter()
                eager(x, chosen, weights)
                micro = (time.perf_counter() - start) * 1e6
            figures = " | ".join(interval(found[key]) for key in ("grouped", "list", "int8"))
            print(f"| {name} | {tokens} | {micro:.0f} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
