"""`zoo plugins new`: write a plugin project that works as it stands, from the files in `zoo/templates`."""

from __future__ import annotations

import datetime
import importlib.util
import keyword
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from zoo.errors import OutputError, RequestError, nearest
from zoo.plugins import manager
from zoo.plugins.declarations import API
from zoo.plugins.kinds import KINDS
from zoo.system.writing import not_a_directory, why_unwritable

TEMPLATES = Path(__file__).parents[2] / "templates"
SUFFIX = ".tmpl"  # so that no tool takes a template for Python or TOML

DEFAULT = "compressor"
FAMILY, USUAL = "family", "vision"  # whose templates lie in a folder for each modality, and that which is taken
CATALOGUE = {"catalogue": "models of known architectures"}


def begins_with() -> dict[str, str]:
    """What a project can begin with, and how its description says so; each has a folder of templates."""
    every = {kind.name: kind.adds for kind in KINDS.values()}
    return {DEFAULT: every.pop(DEFAULT), **every, **CATALOGUE}


def modalities() -> list[str]:
    """What a family can be of, the usual one first."""
    found = sorted(folder.name for folder in (TEMPLATES / "kinds" / FAMILY).iterdir() if folder.is_dir())
    return sorted(found, key=lambda name: name != USUAL)


def new(
    name: Annotated[
        str, typer.Argument(help="What the plugin, and its distribution, will be called, such as zoo-thing.")
    ],
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help=f"What it adds: {', '.join(begins_with())}; may be given several times.  [default: {DEFAULT}]",
            autocompletion=lambda incomplete: [kind for kind in begins_with() if kind.startswith(incomplete)],
        ),
    ] = None,
    modality: Annotated[
        str | None,
        typer.Option(
            metavar="MODALITY",
            help=f"Of a family: {', '.join(modalities())}.  [default: {USUAL}]",
            autocompletion=lambda incomplete: [name for name in modalities() if name.startswith(incomplete)],
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder to write.  [default: NAME]")] = None,
) -> None:
    """Write a plugin project whose own tests pass."""
    kinds = _checked_kinds(kind or [DEFAULT])
    _check_modality(modality, kinds)
    values = _values(name, kinds)
    folder = out or Path(name)
    _require_free(folder)
    files = _files([_templates(one, modality) for one in kinds], values)
    _write(files, folder)
    print(f"Wrote {len(files)} files into {folder}:")
    for file in sorted(files):
        print(f"  {file}")
    print("\nNext:")
    for command in (f"cd {shlex.quote(str(folder))}", "pip install -e .", "pytest", f"zoo plugins check {name}"):
        print(f"  {command}")


# --- what it may be called --------------------------------------------------------------------------------------------


def _checked_kinds(kinds: Sequence[str]) -> list[str]:
    known = begins_with()
    for kind in kinds:
        if kind not in known:
            raise RequestError(f"{kind!r} is nothing a plugin adds.{nearest(kind, known)} Kinds: {', '.join(known)}.")
    return [kind for kind in known if kind in kinds]


def _check_modality(modality: str | None, kinds: Sequence[str]) -> None:
    if modality is None:
        return
    if FAMILY not in kinds:
        raise RequestError(f"--modality is of a family: add --kind {FAMILY}, or leave it out.")
    if modality not in modalities():
        known = modalities()
        raise RequestError(
            f"{modality!r} is no modality that a family can begin with.{nearest(modality, known)} Modalities: {', '.join(known)}."
        )


def _templates(kind: str, modality: str | None) -> str:
    """The folder with the templates of a kind."""
    return f"{kind}/{modality or USUAL}" if kind == FAMILY else kind


def _values(name: str, kinds: Sequence[str]) -> dict[str, str]:
    """Check the name, and derive everything that stands in templates from it.

    Raises:
        RequestError: it is no name of a distribution, or is taken; proposes another.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise RequestError(
            f"{name!r} is no name of a distribution: letters, digits, '.', '_' and '-', with a letter or digit at both ends."
            f" Take {_valid(name)!r}."
        )
    package = re.sub(r"[-_.]+", "_", name).lower()
    if not package.isidentifier() or keyword.iskeyword(package):
        raise RequestError(
            f"{name!r} would need a package called {package!r}, which Python does not take. Take {_valid('zoo-' + name)!r}."
        )
    taken = {manager.normalised(other): other for other in manager.installed()}
    if other := taken.get(manager.normalised(name)):
        raise RequestError(
            f"A plugin called {other!r} is installed already; choose another name, such as {_unused(name, taken)!r}."
        )
    if package in sys.stdlib_module_names or importlib.util.find_spec(package) is not None:
        raise RequestError(
            f"A package called {package!r} is there already, and would be hidden; choose another name, such as 'zoo-{name}'."
        )
    stem = re.sub(r"[^a-z0-9]+", "-", re.sub(r"^zoo[-_.]+", "", name.lower())).strip("-")
    from zoo import __version__

    adds = " and ".join(begins_with()[kind] for kind in kinds) if len(kinds) < 3 else f"{len(kinds)} kinds of things"
    return {
        "name": name,
        "package": package,
        "stem": stem,
        "description": f"A plugin of zoo that adds {adds}",
        "zoo_version": __version__,
        "api": f">={API},<{API + 1}",
        "year": str(datetime.date.today().year),
    }


def _valid(name: str) -> str:
    """The nearest name that pip takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-_.") or "zoo-thing"


def _unused(name: str, taken: Mapping[str, str]) -> str:
    return next(f"{name}-{number}" for number in range(2, 1000) if manager.normalised(f"{name}-{number}") not in taken)


# --- what it consists of ----------------------------------------------------------------------------------------------


def _files(kinds: Sequence[str], values: Mapping[str, str]) -> dict[str, str]:
    """Every file of the project, of the folders of templates that it is made of: its path and its text."""
    package = values["package"]
    coded = any((TEMPLATES / "kinds" / kind / f"plugin.py{SUFFIX}").exists() for kind in kinds)
    extra = {
        "module_entry": f'\n# What registers the names in it, imported when one of them is used.\n[project.entry-points.zoo]\n"{values["name"]}" = "{package}.plugin"\n'
        if coded
        else "",
        "registers": "; plugin.py registers the same names" if coded else "",
        "readme": "\n".join(_filled(f"kinds/{kind}/readme.md", values) for kind in kinds),
    }
    every = {**values, **extra}
    files = {name: _filled(f"project/{name}", every) for name in ("pyproject.toml", "README.md", "LICENSE")}
    files[".gitignore"] = _filled("project/gitignore", every)
    files[f"{package}/__init__.py"] = _filled("package/__init__.py", every)
    files[f"{package}/registry.toml"] = _joined("package/registry.toml", kinds, "registry.toml", every, gap="\n")
    if coded:
        files[f"{package}/plugin.py"] = _joined("package/plugin.py", kinds, "plugin.py", every, gap="\n\n")
    for kind in kinds:
        for template in sorted((TEMPLATES / "kinds" / kind).glob(f"*.py{SUFFIX}")):
            file = template.name.removesuffix(SUFFIX)
            if file != "plugin.py":
                folder = "tests" if file.startswith("test_") else package
                files[f"{folder}/{file}"] = _filled(f"kinds/{kind}/{file}", every)
    return files


def _joined(head: str, kinds: Sequence[str], part: str, values: Mapping[str, str], *, gap: str) -> str:
    """A file of which every kind adds a part."""
    parts = [f"kinds/{kind}/{part}" for kind in kinds if (TEMPLATES / "kinds" / kind / f"{part}{SUFFIX}").exists()]
    return gap.join(_filled(template, values) for template in (head, *parts))


def _filled(template: str, values: Mapping[str, str]) -> str:
    text = (TEMPLATES / f"{template}{SUFFIX}").read_text(encoding="utf-8")
    return Template(text).substitute(values)


# --- where it goes ----------------------------------------------------------------------------------------------------


def _require_free(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty; name another folder with --out, or empty it.")
    if not_a_directory(folder):
        raise OutputError(f"{folder} is a file; name another folder with --out.")
    if reason := why_unwritable(folder):
        raise OutputError(f"{folder} cannot be written: {reason}.")


def _write(files: Mapping[str, str], folder: Path) -> None:
    """Write everything beside the folder first, and move it there when it is complete."""
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
        try:
            for name, text in files.items():
                path = draft / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            draft.chmod(0o755)
            draft.replace(folder)  # an empty folder may be there
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from None
