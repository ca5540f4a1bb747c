"""`zoo run`: generate from a model.

What a model takes and makes is its family's to say (`takes`, `makes`): options that were given go to its `generate`,
text goes to stdout as it comes, images go to files.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli import output
from zoo.errors import OutputError, RequestError

if TYPE_CHECKING:
    from zoo.family.base import Family

# What `generate` calls an option, where the command line calls it something else.
FLAGS = {"images": "--image", "messages": "--chat", "files": "--file"}


def run(
    model: output.ModelArgument,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The text to continue, to answer or to draw; default: stdin.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask in the model's chat format; without a prompt on a terminal, converse.")
    ] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told before a chat.")] = None,
    suffix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Code after the gap that follows the prompt.")
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="Another file of the code's repository; may be given several times.")
    ] = None,
    repo: Annotated[str | None, typer.Option(metavar="NAME", help="The name of the code's repository.")] = None,
    path: Annotated[str | None, typer.Option(metavar="PATH", help="The path in it of the code itself.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="An image to look at; may be given several times.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many tokens.  [default: 128]")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0 takes the likeliest token each time.  [default: 0]")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens of this share.  [default: 1]")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given several times.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps in which an image is made.  [default: the model's]")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How far the prompt pulls an image.  [default: the model's]")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="How many images, classes or words for a mask.  [default: the model's]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn.  [default: 0]")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE.png", help="Where images go; several become FILE-0.png, FILE-1.png, ..."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    json: output.JsonOption = False,
) -> None:
    """Generate from a model: text is printed as it comes, images are written to --out."""
    asked: dict[str, Any] = {
        "prompt": prompt,
        "images": image or None,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "stop": stop or None,
        "steps": steps,
        "guidance": guidance,
        "count": count,
        "seed": seed,
        "messages": [] if chat or system is not None else None,
        "suffix": suffix,
        "files": file or None,
        "repo": repo,
        "path": path,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    with output.status(f"Loading {model}"):
        import zoo
        from zoo.loading.load import family_of

        family = family_of(model)
        _require_taken(model, family, given)
        converse = "messages" in given and prompt is None and sys.stdin.isatty() and not json
        if "prompt" in family.takes and prompt is None and not converse:
            given["prompt"] = _piped_prompt()
        files = _files(model, family, given, out=out, force=force)
        if "files" in given:
            given["files"] = {str(place): _text(place) for place in given["files"]}
        loaded = zoo.load(model)
    prompt = given.pop("prompt", None)
    if "messages" in given:
        given["messages"] = [] if system is None else [{"role": "system", "content": system}]
        if converse:
            return _converse(loaded, **given)
        given["messages"].append({"role": "user", "content": prompt})
        prompt = None
    if not json and not files:
        for piece in loaded.generate(prompt, **given, stream=True):
            print(piece, end="", flush=True)
        print()
        return
    with output.status("Generating"):
        start = time.perf_counter()
        made = loaded.generate(prompt, **given)
        seconds = time.perf_counter() - start
    asked_for = {} if "messages" in given else {"prompt": prompt}
    about = {"model": model, **asked_for, **given, "seconds": seconds}
    if files:
        about["files"] = [_write(picture, path) for picture, path in zip(made, files, strict=True)]
    else:
        about["text"] = made
    if json:
        output.print_json(about)
    else:
        print(*files, sep="\n")


def _converse(model: Any, *, messages: list[dict[str, str]], **options: Any) -> None:
    """Answer what is typed, line by line, until the end of input (Ctrl-D)."""
    print("Type a message; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            said = input("> ")
        except EOFError:
            print()
            return
        if not said.strip():
            continue
        messages.append({"role": "user", "content": said})
        answer = ""
        for piece in model.generate(messages=messages, **options, stream=True):
            print(piece, end="", flush=True)
            answer += piece
        print()
        messages.append({"role": "assistant", "content": answer})


def _text(path: Path) -> str:
    from zoo.errors import DataError
    from zoo.system.reading import text_of

    return text_of(path, error=DataError)


def _require_taken(model: str, family: Family, given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in family.takes:
            known = ", ".join(map(_flag, family.takes))
            raise RequestError(f"{model} is a {family.modality} model and takes no {_flag(name)}. It takes: {known}.")


def _flag(name: str) -> str:
    return FLAGS.get(name, f"--{name.replace('_', '-')}")


def _piped_prompt() -> str:
    prompt = "" if sys.stdin.isatty() else sys.stdin.read()
    if not prompt:
        raise RequestError("There is no prompt. Give one with --prompt TEXT, or pipe text in.")
    return prompt


def _files(model: str, family: Family, given: Mapping[str, Any], *, out: Path | None, force: bool) -> list[Path]:
    """Where the images will go, one each; refused before any work where they cannot."""
    from zoo.system.writing import why_unwritable

    if family.makes != "images":
        if out is not None:
            raise RequestError(f"{model} makes text, which goes to stdout; leave out --out, or redirect it: > {out}")
        return []
    if out is None:
        say = f" --prompt {shlex.quote(str(given['prompt'])[:60])}" if "prompt" in given else ""
        raise RequestError(
            f"{model} makes images; say where they go: zoo run {shlex.quote(model)}{say} --out image.png"
        )
    if out.suffix.lower() != ".png":
        raise OutputError(
            f"{out}: images are written as PNG; name it {out.with_suffix('.png') if out.name else 'image.png'}."
        )
    count = given.get("count", 1)
    files = [out] if count == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(count)]
    for path in files:
        if path.is_dir():
            raise OutputError(f"{path} is a directory; name a file.")
        if path.exists() and not force:
            raise OutputError(f"{path} is there already; choose another --out, or pass --force to replace it.")
    if reason := why_unwritable(out.absolute().parent):
        raise OutputError(f"{out} cannot be written: {reason}.")
    return files


def _write(picture: Any, path: Path) -> dict[str, Any]:
    """Write one image whole or not at all, and say what it is."""
    import io

    from zoo.system.writing import replace_file, writing

    content = io.BytesIO()
    picture.save(content, format="PNG")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())
    return {"path": str(path), "width": picture.width, "height": picture.height, "bytes": len(content.getvalue())}
