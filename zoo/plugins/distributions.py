"""What the metadata of installed distributions says of plugins; nothing of them is imported.

Read with the library's own finders, but one distribution at a time, so that broken metadata is the fault of the
distribution that has it. Of METADATA only the head is looked at: the library's parser takes longer than all else here.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, replace
from importlib.metadata import Distribution, distributions
from pathlib import Path

from zoo.errors import listed, plain
from zoo.plugins.declarations import NAME, is_name

CORE = "zoo"  # the plugin of the framework's own catalogue and commands: always there, whatever else is left out
DISTRIBUTION = "zoo-compress"  # what pip calls the distribution that CORE and the other built-in plugins come with
CATALOG, MODULE = GROUPS = ("zoo.catalog", "zoo")  # the entry-point groups


@functools.cache
def normalised(name: str) -> str:
    """A plugin's or distribution's name as names are compared: "Zoo_Example" and "zoo-example" are the same."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Entry:
    """What the metadata of installed distributions says of one plugin name."""

    name: str
    distribution: str = ""
    version: str = ""
    catalog: str = ""  # the values of its entry points
    module: str = ""
    fault: str = ""
    source: Distribution | None = field(default=None, repr=False, compare=False)


@functools.cache
def entries() -> dict[str, Entry]:
    """Every plugin that is installed, by its normalised name, in order of precedence: ours, then alphabetically.

    What is wrong with a distribution rather than with a plugin stands under the distribution's name.
    """
    claims: dict[str, dict[str, Entry]] = {}  # plugin -> distribution -> what it says
    faults: dict[str, list[Entry]] = {}  # distribution -> what is wrong with it
    _hidden.clear()
    for source in distributions():
        if _folder(source).name.startswith("~"):  # what pip moves aside while it uninstalls, and ignores itself
            continue
        named, wrong = _claims(source)
        distribution = next((normalised(entry.distribution) for entry in (*named, *wrong)), "")
        if not distribution or distribution in faults:  # nothing of ours, or hidden by one that comes first on sys.path
            continue
        faults[distribution] = wrong
        for entry in named:
            claims.setdefault(normalised(entry.name), {})[distribution] = entry
    owners = {name: _owner(rivals, faults) for name, rivals in claims.items()}
    for fault in (fault for several in faults.values() for fault in several):
        owner = owners.get(normalised(fault.name))
        if owner and owner.distribution != fault.distribution:  # another's plugin, which it is not to harm
            fault = replace(fault, name=f"distribution {fault.name}")
            owner = owners.get(normalised(fault.name))
        said = f"{owner.fault} {fault.fault}".strip() if owner else fault.fault
        owners[normalised(fault.name)] = replace(owner or fault, fault=said)
    return {
        key: owners[key] for key in sorted(owners, key=lambda k: (k != CORE, owners[k].distribution != DISTRIBUTION, k))
    }


def _owner(rivals: dict[str, Entry], faults: dict[str, list[Entry]]) -> Entry:
    """The one distribution that a plugin name belongs to. Of several only ours has it; the others are told."""
    first = next(iter(rivals.values()))
    if len(rivals) == 1:
        return first
    if DISTRIBUTION not in rivals:
        both = listed(sorted(entry.distribution for entry in rivals.values()))
        return Entry(
            first.name,
            fault=f"distributions {both} both take the name {first.name!r}, and are refused; uninstall one of them.",
        )
    for distribution, thief in rivals.items():
        if distribution != DISTRIBUTION:
            said = f"takes the plugin name {thief.name!r}, which is zoo's own, and is refused; uninstall it."
            faults[distribution].append(_fault(thief, said))
    return rivals[DISTRIBUTION]


def _fault(entry: Entry, said: str) -> Entry:
    """What is wrong with a distribution as a whole, in the place of a plugin of that name."""
    return Entry(entry.distribution, entry.distribution, entry.version, fault=said, source=entry.source)


def _claims(source: Distribution) -> tuple[list[Entry], list[Entry]]:
    """The plugins that a distribution names, and what is wrong with it."""
    about = Entry("", _folder_name(source), source=source)
    try:
        points = [point for point in _points(source.read_text("entry_points.txt") or "") if point[0] in GROUPS]
    except ValueError as error:
        _hide(source)
        return [], [_fault(about, _unreadable(source, "entry_points.txt", error))]
    if not points:
        return [], []
    try:
        about = _identified(source)
    except ValueError as error:
        return [], [_fault(about, _unreadable(source, "METADATA", error))]
    named: dict[str, Entry] = {}
    wrong = []
    for group, name, value in points:
        key, had = normalised(name), named.get(normalised(name), replace(about, name=name))
        taken = had.catalog if group == CATALOG else had.module
        if not is_name(name):
            wrong.append(
                _fault(about, f"its entry point {ascii(name)[:80]} in {group!r} is no name for a plugin: {NAME}.")
            )
        elif taken not in ("", value):
            named[key] = replace(had, fault=f"it has two entry points {name!r} in the group {group!r}; one is enough.")
        else:
            named[key] = replace(had, catalog=value) if group == CATALOG else replace(had, module=value)
    return list(named.values()), wrong


def _points(text: str) -> list[tuple[str, str, str]]:
    """Read an entry_points.txt: group, name, value.

    Raises:
        ValueError: a line is neither a group nor an entry point; the library's own reader says so of all distributions at once.
    """
    points, group = [], ""
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        name, equals, value = line.partition("=")
        if line.startswith("[") and line.endswith("]"):
            group = line.strip("[]")
        elif equals:
            points.append((group, name.strip(), value.strip()))
        elif line and not line.startswith("#"):
            raise ValueError(f"line {number}, {ascii(line)[:60]}, is not of the form 'name = value'")
    return points


def _unreadable(source: Distribution, file: str, error: ValueError) -> str:
    """Say which file of a distribution's metadata is damaged; pip itself fails over it, so it cannot be uninstalled."""
    folder = _folder(source)
    reason = "it is not text" if isinstance(error, UnicodeDecodeError) else str(error)
    return plain(f"{folder / file} is damaged ({reason}): delete {folder}, and install it again.")


_hidden: set[Path] = set()


def _hide(source: Distribution) -> None:
    """Let nobody else in this process find a distribution whose entry points cannot be read.

    torch and triton read those of every distribution when they are imported, and could not be over this one.
    """
    _hidden.add(_folder(source))
    _shield()


@functools.cache
def _shield() -> None:
    from importlib.machinery import PathFinder

    find = PathFinder.find_distributions
    sound = staticmethod(lambda *context: (source for source in find(*context) if _folder(source) not in _hidden))
    PathFinder.find_distributions = sound  # type: ignore[method-assign, assignment]


def _identified(source: Distribution) -> Entry:
    """A distribution's name and version, and what is wrong with its metadata."""
    head = (source.read_text("METADATA") or source.read_text("PKG-INFO") or "").partition("\n\n")[0]
    name, version = (
        re.search(rf"^{key}:[ \t]*([A-Za-z0-9][\w.+!-]*)[ \t]*$", head, re.M | re.I) for key in ("Name", "Version")
    )
    missing = listed([word for word, match in (("name", name), ("version", version)) if not match] or [""])
    fault = f"its metadata says no {missing}, as if it were half uninstalled: install it again, or delete {_folder(source)}."
    return Entry(
        "",
        name[1] if name else _folder_name(source),
        version[1] if version else "",
        fault=plain(fault) if missing else "",
        source=source,
    )


def _folder_name(source: Distribution) -> str:
    """What the folder of the metadata calls a distribution."""
    name = _folder(source).name.partition("-")[0].replace("_", "-")
    return name if is_name(name) else "unknown"


def _folder(source: Distribution) -> Path:
    """Where the metadata of a distribution is."""
    return Path(str(getattr(source, "_path", "its metadata")))


def origin_of(source: Distribution) -> str:
    """Read where a distribution was installed from (PEP 610)."""
    from json import loads
    from urllib.parse import unquote, urlsplit

    try:
        data = loads(source.read_text("direct_url.json") or "{}")
        url = str(data.get("url", ""))
        origin = unquote(urlsplit(url).path) if url.startswith("file:") else url
        if vcs := data.get("vcs_info"):
            origin = f"{vcs['vcs']}+{url} @ {vcs['commit_id'][:12]}"
        origin += " (editable)" if data.get("dir_info", {}).get("editable") else ""
    except Exception:  # of no consequence, whatever is wrong with it
        return ""
    return plain(origin)
