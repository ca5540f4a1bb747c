"""`zoo plugins install` and `zoo plugins uninstall`: pip, with what it would change shown first and checked afterwards."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli import output
from zoo.cli.plugins import fresh, pip
from zoo.cli.plugins.facts import counted
from zoo.cli.plugins.listing import complete_removable
from zoo.cli.plugins.pip import Change
from zoo.errors import RequestError, UnknownName, ZooError, nearest, one_line
from zoo.plugins import manager
from zoo.plugins.manager import CORE, DISTRIBUTION, normalised
from zoo.system.quantities import seconds

Facts = Mapping[str, Any]  # of a plugin, as `fresh.look` finds them

SpecsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SPEC...",
        help="A name, a path, a wheel or a VCS address such as git+https://...; anything pip takes.",
    ),
]
UpgradeOption = Annotated[
    bool, typer.Option("--upgrade", "-U", help="Look for a newer version of what is installed already.")
]
EditableOption = Annotated[
    bool, typer.Option("--editable", "-e", help="Use the project's directory as it stands; for work on a plugin.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Go on without asking.")]


def install(
    specs: SpecsArgument,
    upgrade: UpgradeOption = False,
    reinstall: Annotated[bool, typer.Option("--reinstall", help="Install anew what has that version already.")] = False,
    editable: EditableOption = False,
    no_deps: Annotated[bool, typer.Option("--no-deps", help="Leave out what it needs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and stop.")] = False,
    yes: YesOption = False,
) -> None:
    """Install plugins with pip: show what would change, ask, install that, and check what came of it.

    \b
      zoo plugins install zoo-example
      zoo plugins install ./zoo-example --editable
      zoo plugins install dist/zoo_example-1.0-py3-none-any.whl --yes
      zoo plugins install git+https://example.org/zoo-example.git --dry-run

    Where the spec is source code, pip runs its build backend to find out what it needs, before anything is asked.
    The exit code is 1 where something cannot be installed, brings no plugin, or brings one that does not load.
    """
    _check_specs(specs, editable=editable)
    pip.require_pip("install", *specs)
    with output.status("Asking pip what would change"):
        changes = _planned(specs, upgrade=upgrade, reinstall=reinstall, editable=editable, dependencies=not no_deps)
    if changes:
        before = pip.problems()
        _show(changes, before)
        if dry_run:
            output.say("Nothing was changed.")
            return
        _ask("Install this?" if len(changes) == 1 else f"Make these {len(changes)} changes?", yes=yes)
        with output.status(f"Installing {_listed(changes)}"):
            pip.install(specs, changes, reinstall=reinstall)
        faults = _misfits(changes) + _verified(changes) + sorted(pip.problems() - before)
    else:
        faults = _already(specs)
    for fault in faults:
        output.error(fault)
    if faults:
        _say_how_to_go_back(changes)
        raise typer.Exit(1)


def uninstall(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A name from `zoo plugins`, or of a distribution.", autocompletion=complete_removable
        ),
    ],
    yes: YesOption = False,
) -> None:
    """Uninstall the distribution that a plugin comes with; nothing of it is imported.

    \b
      zoo plugins uninstall zoo-example

    Artifacts made with a plugin need it again to be loaded.
    """
    distribution = _distribution_of(name)
    pip.require_pip("uninstall", distribution)
    found = _brought_by(distribution, fresh.look())
    version = pip.versions()[normalised(distribution)]
    _show_removal(distribution, version, found)
    _ask(f"Uninstall {distribution}?", yes=yes)
    with output.status(f"Uninstalling {distribution}"):
        said = _removed(distribution, found)
    _check_gone(distribution, said)
    _clear_up(found)
    print(f"{distribution} {version} is uninstalled.")


# --- before installing ------------------------------------------------------------------------------------------------


def _check_specs(specs: Sequence[str], *, editable: bool) -> None:
    """Refuse what pip would take for an option, and paths that are not there."""
    for spec in specs:
        text = spec.strip()
        if not text or text.startswith("-"):
            raise RequestError(f"{spec!r} is nothing to install: give a name, a path, a wheel or a VCS address.")
        path = Path(re.sub(r"\[[^\]]*\]$", "", text))
        if _looks_like_a_path(text) and not path.exists():
            raise RequestError(f"There is no file or directory {path}.")
        if editable and not path.is_dir():
            raise RequestError(f"--editable takes the directory of a project, and {spec} is not one.")
        if re.match(r"(https?|ssh)://\S+\.git(@|#|$)", text):
            raise RequestError(f"{spec} is a repository: write git+{spec}")


def _looks_like_a_path(spec: str) -> bool:
    if "://" in spec or " @ " in spec:
        return False
    return spec.startswith((".", "~")) or "/" in spec or "\\" in spec or spec.endswith((".whl", ".zip", ".tar.gz"))


def _planned(specs: Sequence[str], **options: bool) -> list[Change]:
    try:
        return pip.planned(specs, **options)
    except ZooError as error:
        if nearby := [spec for spec in specs if not _looks_like_a_path(spec) and Path(spec).is_dir()]:
            raise ZooError(
                f"{one_line(error)} There is a directory of that name: write ./{nearby[0]} to install it."
            ) from error
        raise


def _show(changes: Sequence[Change], before: set[str]) -> None:
    """Show what pip would change, and say in words what it means for what is installed already.

    Args:
        before: what does not fit together as it is.
    """
    if output.settings.quiet:
        return
    rows = [(c.kind, c.name, c.before or "-", c.version, c.source) for c in changes]
    output.print_table(("change", "distribution", "from", "to", "source"), rows)
    sys.stdout.flush()
    for change in changes:
        if change.kind in ("upgrade", "downgrade") and not change.requested:
            output.warn(
                f"this would {change.kind} {change.name}, which is installed already, "
                f"from {change.before} to {change.version}."
            )
    for sentence in sorted(pip.problems(changes) - before):
        output.warn(f"afterwards, {sentence}")


def _ask(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise RequestError("Nothing was changed, since there is no terminal to ask on: --yes goes on without asking.")
    if not typer.confirm(question, err=True):
        raise typer.Abort


def _listed(changes: Sequence[Change]) -> str:
    first = f"{changes[0].name} {changes[0].version}"
    return first if len(changes) == 1 else f"{first} and {len(changes) - 1} more"


# --- after installing -------------------------------------------------------------------------------------------------


def _misfits(changes: Iterable[Change]) -> list[str]:
    """What is not as it was shown, though pip says it succeeded."""
    now = pip.versions()
    return [
        f"pip said it installed {c.name} {c.version}, but {now.get(normalised(c.name)) or 'no version'} is found here."
        for c in changes
        if now.get(normalised(c.name)) != c.version
    ]


def _verified(changes: Sequence[Change]) -> list[str]:
    """Look at what the changed distributions brought, from fresh processes; returns what is wrong."""
    try:
        found = fresh.look()
    except ZooError as error:
        return [one_line(error)]
    bringing = {normalised(plugin["distribution"]) for plugin in found}
    named = [c for c in changes if c.requested or normalised(c.name) in bringing]
    faults = _look_at([(c.name, c.version) for c in named], found, new=True)
    if others := [f"{change.name} {change.version}" for change in changes if change not in named]:
        output.say(f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} installed as well.")
    return faults


def _say_how_to_go_back(changes: Sequence[Change]) -> None:
    """Where another version was installed before what does not work now, say how to have it again."""
    if before := [f"{change.name}=={change.before}" for change in changes if change.kind in ("upgrade", "downgrade")]:
        output.say(f"What was installed before: `{sys.executable} -m pip install {' '.join(before)}`.")


def _already(specs: Sequence[str]) -> list[str]:
    """Say that there is nothing to do, and look at what is there; returns what is wrong."""
    now = pip.versions()
    found = []
    for spec in specs:
        name = _name_in(spec)
        if name and (version := now.get(normalised(name))):
            found.append((name, version))
        else:
            print(f"{spec}: pip finds nothing to install; what it asks for is there already.")
    output.say("Nothing to change: --upgrade looks for a newer version, --reinstall installs the same one anew.")
    return _look_at(found, fresh.look() if found else [], new=False)


def _name_in(spec: str) -> str:
    """The distribution's name in a requirement or in a wheel's file name; empty where it says none."""
    text = spec.strip()
    if _looks_like_a_path(text) or "://" in text.partition(" @ ")[0]:
        return Path(text).name.partition("-")[0].replace("_", "-") if text.endswith(".whl") else ""
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", text)
    return match[0] if match else ""


def _look_at(distributions: Sequence[tuple[str, str]], known: Sequence[Facts], *, new: bool) -> list[str]:
    """Print what each distribution brings and whether it loads; returns a sentence for each thing that is wrong."""
    brought = {name: _brought_by(name, known) for name, _ in distributions}
    loadable = [plugin["name"] for found in brought.values() for plugin in found if plugin["loadable"]]
    with output.status("Loading what is new"):
        loaded = {one.name: one for one in fresh.load_each(loadable, verbose=output.settings.verbose, all_in_use=True)}
    faults = []
    for name, version in distributions:
        what = f"{name} {version} is installed" + ("" if new else " already")
        if not brought[name]:
            faults.append(f"{what}, but it brings no zoo plugin{f': {_removal(name)} removes it' if new else ''}.")
        for plugin in brought[name]:
            one = loaded.get(plugin["name"])
            if fault := (one.fault if one else "") or plugin["fault"]:
                faults.append(
                    f"{what}, but its plugin {plugin['name']} is broken: {pip.sentence(fault)} "
                    f"`zoo plugins uninstall {name}` removes it."
                )
            else:
                _report(plugin, what, one)
    return faults


def _report(plugin: Facts, what: str, loaded: fresh.Loaded | None) -> None:
    """Say that one plugin is in order, and what would still keep it from being used."""
    name = plugin["name"]
    took = f"; it loads in {seconds(loaded.seconds)}" if loaded else ""
    print(f"{what}: plugin {name} adds {counted(plugin['declares']) or 'nothing'}{took}.")
    for note in plugin["notes"]:
        output.say(f"note: {note}")
    if plugin["status"] == "disabled":
        output.warn(f"plugin {name} is disabled: `zoo plugins enable {name}`.")
    admitted = os.environ.get("ZOO_PLUGINS")
    if admitted is not None and normalised(name) not in map(normalised, map(str.strip, admitted.split(","))):
        output.warn(f"ZOO_PLUGINS leaves plugin {name} out.")
    for thing, needs in plugin["missing"].items():
        output.warn(
            f"{thing} needs {', '.join(needs)}, not installed yet: pip install {' '.join(map(shlex.quote, needs))}"
        )


def _brought_by(distribution: str, known: Sequence[Facts]) -> list[Facts]:
    return [plugin for plugin in known if normalised(plugin["distribution"]) == normalised(distribution)]


def _removal(distribution: str) -> str:
    return f"`{sys.executable} -m pip uninstall {distribution}`"


# --- uninstalling -----------------------------------------------------------------------------------------------------


def _distribution_of(name: str) -> str:
    """The one distribution that a plugin's or a distribution's name stands for.

    Raises:
        RequestError: it is zoo itself, brings no plugin, is damaged, or is not installed; or several take the name.
    """
    claims = pip.claims()
    found = [one for one in claims if normalised(one.plugin) == normalised(name)]
    found = found or [one for one in claims if normalised(one.distribution) == normalised(name)]
    if damaged := next((one for one in found if one.damaged), None):
        raise RequestError(f"{name} is half uninstalled, and pip cannot do the rest: delete {damaged.place} by hand.")
    distributions = sorted({one.distribution for one in found})
    if DISTRIBUTION in map(normalised, distributions):
        others = [
            f"`zoo plugins uninstall {other}` removes the other of that name."
            for other in distributions
            if other != DISTRIBUTION
        ]
        instead = (
            "it cannot go."
            if normalised(name) in (CORE, DISTRIBUTION)
            else f"`zoo plugins disable {name}` leaves it out."
        )
        raise RequestError(" ".join([f"{name} comes with zoo itself: {instead}", *others]))
    if len(distributions) > 1:
        raise RequestError(
            f"Distributions {' and '.join(distributions)} both take the name {name!r}: say which of them is to go."
        )
    if distributions:
        return distributions[0]
    raise _unknown(name, [text for one in claims for text in (one.plugin, one.distribution)])


def _unknown(name: str, choices: Sequence[str]) -> RequestError:
    """Why there is nothing of that name to uninstall."""
    if normalised(name) in pip.versions():
        return RequestError(f"Distribution {name} brings no zoo plugin: {_removal(name)} removes it.")
    package = name.replace("-", "_")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    for location in (spec.submodule_search_locations if spec else None) or ():
        if Path(location, "registry.toml").exists():
            return RequestError(
                f"{name} is half uninstalled: no distribution owns {location} any more. Delete that folder by hand."
            )
    return UnknownName(f"No plugin named {name!r}.{nearest(name, choices)} `zoo plugins` shows what there is.")


def _show_removal(distribution: str, version: str, found: Sequence[Facts]) -> None:
    """Say what would go, and what stays."""
    if output.settings.quiet:
        return
    origin = next((plugin["origin"] for plugin in found if plugin["origin"]), "")
    facts = [("distribution", f"{distribution} {version}"), ("installed from", origin)]
    for plugin in found:
        facts.append((f"plugin {plugin['name']}", counted(plugin["declares"]) or plugin["fault"] or "adds nothing"))
        facts += [(f"  {kind}", ", ".join(names)) for kind, names in plugin["declares"].items()]
    output.print_facts(facts)
    sys.stdout.flush()
    if origin.endswith("(editable)"):
        output.say("The project's own files stay where they are.")
    for name, _, requirement in pip.requirements():
        if normalised(requirement.name) == normalised(distribution):
            output.warn(f"{name} needs {distribution}.")
    output.say("Artifacts made with it will need it again to be loaded.")


def _removed(distribution: str, found: Sequence[Facts]) -> str:
    """Let pip uninstall it, and return what pip said; where pip lacks the list of its files, say which they are."""
    try:
        return pip.uninstall(distribution)
    except ZooError as error:
        if "RECORD" not in str(error):
            raise
        places = [one.place for one in pip.claims() if one.distribution == distribution] + [
            p["path"] for p in found if p["path"]
        ]
        raise ZooError(f"{one_line(error)} Delete {' and '.join(dict.fromkeys(places))} by hand.") from error


def _check_gone(distribution: str, said: str) -> None:
    """Look whether it is gone, from a fresh process.

    Raises:
        ZooError: it is still there.
    """
    if left := pip.versions().get(normalised(distribution)):
        outside = re.search(r"Not uninstalling .*", said)
        why = (
            f"pip says: {outside[0]}"
            if outside
            else f"version {left} was installed in another place; uninstall it again"
        )
        raise ZooError(f"{distribution} is still there: {pip.sentence(why)}")
    for plugin in _brought_by(distribution, fresh.look()):
        raise ZooError(
            f"pip said it uninstalled {distribution}, but its plugin {plugin['name']} is still found in {plugin['path']}."
        )


def _clear_up(found: Sequence[Facts]) -> None:
    """Forget that what is gone was disabled, and say what pip left lying."""
    for plugin in found:
        if plugin["name"] in manager.disabled():
            manager.enable(plugin["name"])
        if not plugin["origin"].endswith("(editable)") and plugin["path"] and Path(plugin["path"]).exists():
            output.warn(f"{plugin['path']} is left, with files that pip did not install; delete it by hand.")
