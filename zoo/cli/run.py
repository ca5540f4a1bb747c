"""`zoo run`: generate from a model.

What a model takes and makes is its family's to say (`takes`, `makes`): options that were given go to its `generate`,
text goes to stdout as it comes, images go to files, vectors to either (`zoo.cli.vectors`).
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli import output
from zoo.cli.vectors import embed, lines_of, makes_vectors, require_writable
from zoo.errors import OutputError, RequestError

if TYPE_CHECKING:
    from zoo.family.base import Family
    from zoo.loading.locate import Located
    from zoo.model.model import Model

# What `generate` calls an option, where the command line calls it something else.
FLAGS = {"images": "--image", "messages": "--chat", "files": "--file"}
PromptOption = Annotated[
    str | None, typer.Option("--prompt", "-p", help="The text to continue, to answer or to draw; default: stdin.")
]
ChatOption = Annotated[
    bool, typer.Option("--chat", help="Ask in the model's chat format; without a prompt on a terminal, converse.")
]
SystemOption = Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told before a chat.")]
SuffixOption = Annotated[str | None, typer.Option(metavar="TEXT", help="Code after the gap that follows the prompt.")]
FileOption = Annotated[
    list[Path] | None, typer.Option(help="Another file of the code's repository; may be given several times.")
]
RepoOption = Annotated[str | None, typer.Option(metavar="NAME", help="The name of the code's repository.")]
PathOption = Annotated[str | None, typer.Option(metavar="PATH", help="The path in it of the code itself.")]
ImageOption = Annotated[list[Path] | None, typer.Option(help="An image to look at; may be given several times.")]
LengthOption = Annotated[int | None, typer.Option(min=1, help="Stop after this many tokens.  [default: 128]")]
TemperatureOption = Annotated[
    float | None, typer.Option(min=0.0, help="0 takes the likeliest token each time.  [default: 0]")
]
TopPOption = Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of this share.  [default: 1]")]
StopOption = Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given several times.")]
StepsOption = Annotated[
    int | None, typer.Option(min=1, help="Steps in which an image is made.  [default: the model's]")
]
GuidanceOption = Annotated[
    float | None, typer.Option(help="How far the prompt pulls an image.  [default: the model's]")
]
CountOption = Annotated[
    int | None, typer.Option(min=1, help="How many images, texts, classes or words for a mask.  [default: the model's]")
]
SeedOption = Annotated[int | None, typer.Option(help="Seed of everything that is drawn.  [default: 0]")]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE.png",
        help="Where images go, of which several become FILE-0.png, FILE-1.png, ...; vectors: FILE.npy.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]


def run(
    model: output.ModelArgument,
    prompt: PromptOption = None,
    chat: ChatOption = False,
    system: SystemOption = None,
    suffix: SuffixOption = None,
    file: FileOption = None,
    repo: RepoOption = None,
    path: PathOption = None,
    image: ImageOption = None,
    max_new_tokens: LengthOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    stop: StopOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    count: CountOption = None,
    seed: SeedOption = None,
    out: OutOption = None,
    force: ForceOption = False,
    weights: output.WeightsOption = "auto",
    json: output.JsonOption = False,
) -> None:
    """Generate from a model: text and vectors are printed, images are written to --out."""
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
        from zoo.loading.load import load
        from zoo.loading.locate import locate

        located = locate(model, weights)
        request = Request.checked(located, given, system=system, out=out, force=force, json=json)
        loaded = load(located)
    request.answer(loaded, json=json)


@dataclass(frozen=True)
class Request:
    """What is asked of a model, and where its images go; checked before the model is loaded."""

    model: str
    prompt: Any  # a text; several of a model that makes vectors
    options: Mapping[str, Any]  # of its `generate`
    files: Sequence[Path]  # of the images, one each, or of all vectors; none for text
    converses: bool  # with whoever sits at the terminal
    vectors: bool = False  # whether it makes these

    @classmethod
    def checked(
        cls,
        located: Located,
        given: dict[str, Any],
        *,
        system: str | None,
        out: Path | None,
        force: bool,
        json: bool,
    ) -> Request:
        """Take what was given for the model, and what is piped in; refuse what its family does not take."""
        model, family = located.asked, located.family
        _require_taken(model, family, given)
        if makes_vectors(located):
            require_writable(out, force=force)
            _require_sound(located, given)
            prompt = given.pop("prompt", None)
            if prompt is None and "prompt" in family.takes:
                prompt = lines_of(piped_prompt())
            return cls(model, prompt, given, [out] if out else [], converses=False, vectors=True)
        converses = "messages" in given and "prompt" not in given and sys.stdin.isatty() and not json
        if converses and "count" in given:
            raise RequestError("A conversation takes one answer at a time: leave out --count, or give a --prompt.")
        if "prompt" in family.takes and "prompt" not in given and not converses:
            given["prompt"] = piped_prompt()
        files = _files(model, family, given, out=out, force=force)
        _require_sound(located, given)
        if "files" in given:
            given["files"] = {str(path): _text(path) for path in given["files"]}
        prompt = given.pop("prompt", None)
        if "messages" in given:
            given["messages"] = [] if system is None else [{"role": "system", "content": system}]
            if not converses:
                given["messages"].append({"role": "user", "content": prompt})
            prompt = None
        return cls(model, prompt, given, files, converses)

    def answer(self, model: Model, *, json: bool) -> None:
        """Generate what is asked for: as it comes, or, in files and for JSON, as a whole."""
        if self.vectors:
            embed(model, self.model, self.prompt, self.options, out=next(iter(self.files), None), json=json)
        elif self.converses:
            _converse(model, **self.options)
        elif json or self.files or "count" in self.options:
            self._make(model, json=json)
        else:
            for piece in model.generate(self.prompt, **self.options, stream=True):
                print(piece, end="", flush=True)
            print()

    def _make(self, model: Model, *, json: bool) -> None:
        with output.status("Generating"):
            start = time.perf_counter()
            made = model.generate(self.prompt, **self.options)
            seconds = time.perf_counter() - start
        prompt = {} if "messages" in self.options else {"prompt": self.prompt}
        about: dict[str, Any] = {"model": self.model, **prompt, **self.options, "seconds": seconds}
        if self.files:
            about["files"] = [_write(picture, path) for picture, path in zip(made, self.files, strict=True)]
        else:
            about["text"] = made
        if json:
            output.print_json(about)
        elif self.files:
            print(*self.files, sep="\n")
        elif isinstance(made, list):
            for number, text in enumerate(made, 1):
                print(f"--- {number} of {len(made)} ---", text, sep="\n")
        else:
            print(made)


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


def _require_sound(located: Located, given: Mapping[str, Any]) -> None:
    """Refuse images that cannot be read and options that do not fit, while no weight is loaded yet."""
    from zoo.family.vision.images import read_image
    from zoo.loading.load import load

    for path in given.get("images", ()):
        read_image(path)
    options = {name: value for name, value in given.items() if name not in ("prompt", "images")}
    if options:
        located.family.check_options(load(located, device="meta"), options)


def _flag(name: str) -> str:
    return FLAGS.get(name, f"--{name.replace('_', '-')}")


def piped_prompt() -> str:
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
