"""`zoo run`: generate from a model.

What a model takes and makes is its family's to say (`Options`, `makes`): options that were given go to its `generate`,
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
from typer.core import TyperCommand

from zoo.cli import flags, output
from zoo.cli.flags import flag
from zoo.cli.vectors import embed, lines_of, makes_vectors, require_free, require_writable
from zoo.errors import OutputError, RequestError

if TYPE_CHECKING:
    from zoo.loading.locate import Located
    from zoo.model.model import Model

GIVEN = "zoo.run.given"  # of a context: the options of `generate` that its command line names
SystemOption = Annotated[str | None, typer.Option(metavar="TEXT", help="What the model is told before a chat.")]
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


class RunCommand(TyperCommand):
    """The command with a flag for every option that is declared; asked for help on a model, with those of that model alone."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.options = flags.declared()
        self._take(flags.parameters(self.options.values()))

    def _take(self, params: Sequence[Any]) -> None:
        """Put flags between the model and what the command has of its own, of which --system goes with --chat."""
        model, system, *own = (param for param in self.params if param.name not in self.options)
        at = next((number for number, param in enumerate(params, 1) if param.name == "messages"), len(params))
        self.params = [model, *params[:at], system, *params[at:], *own]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # as it is while completing
            asked, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            if asked.get("help") is True and isinstance(asked.get("model"), str):
                self._show_only(asked["model"])
        return super().parse_args(ctx, args)

    def _show_only(self, model: str) -> None:
        from zoo.loading.locate import locate

        options = flags.options_of(locate(model))
        self._take(flags.parameters(flags.of_model(options)))
        idle = set() if "messages" in options.names() else {"system"}
        idle |= {"out", "force"} if options.makes == "text" else set()
        self.params = [param for param in self.params if param.name not in idle]

    def invoke(self, ctx: Any) -> Any:
        given = {name: ctx.params.pop(name) for name in self.options}
        ctx.meta[GIVEN] = {name: value for name, value in given.items() if value or value == ""}
        return super().invoke(ctx)


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("run", cls=RunCommand)
def run(
    ctx: typer.Context,
    model: output.ModelArgument,
    system: SystemOption = None,
    out: OutOption = None,
    force: ForceOption = False,
    weights: output.WeightsOption = "auto",
    json: output.JsonOption = False,
) -> None:
    """Generate from a model: text and vectors are printed, images are written to --out.

    `zoo run MODEL --help` shows the options that a model takes, with their ranges and defaults.
    """
    given = dict(ctx.meta[GIVEN])
    if system is not None:
        given["messages"] = True
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
        taken, vectors = _require_taken(located, given), makes_vectors(located)
        converses = "messages" in given and "prompt" not in given and sys.stdin.isatty() and not json
        if converses and "count" in given:
            raise RequestError("A conversation takes one answer at a time: leave out --count, or give a --prompt.")
        if vectors:
            require_writable(out, force=force)
        if "prompt" in taken and "prompt" not in given and not converses:
            given["prompt"] = lines_of(piped_prompt()) if vectors else piped_prompt()
        given = _sound(located, given)
        if vectors:
            return cls(model, given.pop("prompt", None), given, [out] if out else [], converses=False, vectors=True)
        files = _files(model, family.makes, given, out=out, force=force)
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


def _require_taken(located: Located, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuse what the model's family never takes; return what it does."""
    family = located.family
    names, declared = family.options_of("").names(), flags.declared()
    for name in given:
        if name not in names:
            known = ", ".join(flag(known) for known in names if known in declared)
            raise RequestError(
                f"{located.asked} is a {family.modality} model and takes no {flag(name)}. It takes: {known}."
            )
    return names


def _sound(located: Located, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given as `generate` takes it; refuse what does not fit, while no weight is loaded yet."""
    from zoo.family.options import checked
    from zoo.family.vision.images import read_image
    from zoo.loading.load import load

    for path in given.get("images", ()):
        read_image(path)
    if given.keys() <= {"prompt", "images"}:
        return dict(given)
    skeleton = load(located, device="meta")  # of a foreign checkpoint only this knows the task
    values = checked(skeleton.family, skeleton.spec, given, written=True, spell=_written)
    options = {name: value for name, value in values.items() if name not in ("prompt", "images")}
    skeleton.family.check_options(skeleton, options)
    return values


def _written(name: str, value: Any) -> str:
    """An option as it is written on the command line."""
    words = [str(word) for word in (value if isinstance(value, list | tuple) else [value])]
    return shlex.join([flag(name), *words])


def piped_prompt() -> str:
    prompt = "" if sys.stdin.isatty() else sys.stdin.read()
    if not prompt:
        raise RequestError("There is no prompt. Give one with --prompt TEXT, or pipe text in.")
    return prompt


def _files(model: str, makes: str, given: Mapping[str, Any], *, out: Path | None, force: bool) -> list[Path]:
    """Where the images will go, one each; refused before any work where they cannot."""
    if makes != "images":
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
    require_free(files, force=force)
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
