"""Code models that fill a gap, and that read the other files of a repository: their prompts.

The format is StarCoder2's (2402.19173, section 5): `<repo_name>NAME<file_sep>PATH\\nCODE<file_sep>PATH\\nCODE` where the
name of the repository is known, `<file_sep>CODE<file_sep>CODE` where it is not; and a file with a gap is written as
`<fim_prefix>PATH\\nBEFORE<fim_suffix>AFTER<fim_middle>`, whereupon the model writes what is between. Every model whose
tokenizer has these tokens is taken to know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.errors import RequestError
from zoo.family.text.chat import FormattedPrompt
from zoo.system.unicode import require_unicode

PREFIX, SUFFIX, MIDDLE, FILE, REPOSITORY = "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "<repo_name>"
ALL = (PREFIX, SUFFIX, MIDDLE, "<fim_pad>", FILE, REPOSITORY)
OPTIONS = ("suffix", "files", "repo", "path")


def code_prompt(
    tokenizer: Any, prompt: Any, *, name: str, suffix: Any = None, files: Any = None, repo: Any = None, path: Any = None
) -> FormattedPrompt:
    """Write the prompt of a file that is to be gone on with, or whose gap is to be filled.

    Args:
        prompt: the file up to where the model writes.
        name: what to call the model in an error.
        suffix: the file after the gap; without it the file is gone on with.
        files: other files of the repository, path -> text, in this order.
        repo: the name of the repository; with it the model is shown paths.
        path: the path of the file itself.

    Raises:
        RequestError: the tokenizer lacks a token of the format, a text holds one, or `repo` and `path` do not come together.
    """
    files = {} if files is None else files
    if not isinstance(files, Mapping):
        raise RequestError(
            f'files is a {type(files).__name__}; give the text of each file by its path: files={{"a.py": "import b"}}.'
        )
    texts = {"prompt": "" if prompt is None else prompt, "suffix": suffix, "repo": repo, "path": path}
    texts |= {f"path {where!r}": where for where in files} | {
        f"files[{where!r}]": text for where, text in files.items()
    }
    for what, text in texts.items():
        if text is not None:
            _require_plain(text, what)
    if (repo is None) != (path is None):
        raise RequestError(
            "repo and path come together: a model is shown the paths of files where it is shown the name of their repository."
        )
    start = f"{path}\n{texts['prompt']}" if path is not None else texts["prompt"]
    before = "" if repo is None else f"{REPOSITORY}{repo}"
    before += "".join(FILE + (f"{where}\n" if repo is not None else "") + text for where, text in files.items())
    before += FILE if before else ""
    text = before + (start if suffix is None else f"{PREFIX}{start}{SUFFIX}{suffix}{MIDDLE}")
    for token in ALL:
        if token in text and not _known(tokenizer, token):
            does = "fills no gap" if token in (PREFIX, SUFFIX, MIDDLE) else "reads no repository"
            raise RequestError(f"{name} {does}: its tokenizer has no {token}, as that of StarCoder2 has.")
    return FormattedPrompt(
        text, tuple(tokenizer.convert_tokens_to_ids(token) for token in ALL if _known(tokenizer, token))
    )


def _require_plain(text: Any, what: str) -> None:
    if not isinstance(text, str):
        raise RequestError(f"{what} is a {type(text).__name__}, not text.")
    require_unicode(text, what)
    for token in ALL:
        if token in text:
            raise RequestError(f"{what} holds {token}, which is a mark of the format itself; leave it out.")


def _known(tokenizer: Any, token: str) -> bool:
    """Whether the tokenizer reads it as one token of its own."""
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    return len(ids) == 1 and bool(tokenizer.convert_ids_to_tokens(ids[0]) == token)
