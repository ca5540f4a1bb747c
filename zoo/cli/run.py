"""`zoo run`: generate from a model."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from zoo.cli import output
from zoo.errors import RequestError


def run(
    model: output.ModelArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The text to continue; default: stdin.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given several times.")] = None,
    json: output.JsonOption = False,
) -> None:
    """Generate from a model; the text is printed as it comes."""
    prompt = _read_prompt(prompt)
    with output.status(f"Loading {model}"):
        import zoo

        loaded = zoo.load(model)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "stop": list(stop or []),
    }  # fmt: skip
    if not json:
        for piece in loaded.generate(prompt, **options, stream=True):
            print(piece, end="", flush=True)
        print()
        return
    with output.status("Generating"):
        start = time.perf_counter()
        text = loaded.generate(prompt, **options)
        seconds = time.perf_counter() - start
    output.print_json({"model": model, "prompt": prompt, "text": text, **options, "seconds": seconds})


def _read_prompt(prompt: str | None) -> str:
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if not prompt:
        raise RequestError("There is no prompt. Give one with --prompt TEXT, or pipe text in.")
    return prompt
