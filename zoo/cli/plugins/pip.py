"""Running pip: what it would change, changing it, and saying in one sentence why it could not.

pip is run as `python -m pip` of this very environment, with arguments and never through a shell. What it would change
comes from its own report (`--dry-run --report`); the installation names the same versions and lets nothing else in.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from zoo.cli import output
from zoo.errors import RequestError, ZooError, plain
from zoo.plugins.distributions import GROUPS, normalised
from zoo.system import signals

PIP_ENV = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",  # nobody sees its questions
    "GIT_TERMINAL_PROMPT": "0",
    "PYTHONIOENCODING": "utf-8",
}


@dataclass(frozen=True)
class Change:
    """What pip would do to one distribution."""

    name: str
    version: str
    before: str  # the version that is installed now; empty: none
    url: str
    requested: bool = False
    direct: bool = False  # asked for by an address or a path, not by name
    editable: bool = False
    commit: str = ""

    @property
    def kind(self) -> str:
        """One of install, upgrade, downgrade and reinstall."""
        if not self.before:
            return "install"
        if self.before == self.version:
            return "reinstall"
        with contextlib.suppress(InvalidVersion):
            return "upgrade" if Version(self.version) > Version(self.before) else "downgrade"
        return "reinstall"

    @property
    def source(self) -> str:
        """Where it comes from, as a reader would say it."""
        if self.commit:
            return f"{self.url} @ {self.commit[:12]}"
        local = local_path(self.url)
        if local is None:
            return self.url if self.direct else "download"
        return f"{local} (editable)" if self.editable else str(local)


# --- what pip would change --------------------------------------------------------------------------------------------


def require_pip(action: str, *names: str) -> None:
    """Refuse where pip cannot be used.

    Raises:
        RequestError: this environment has no pip, or is the operating system's; says what to type.
    """
    if importlib.util.find_spec("pip") is None:
        words = " ".join(map(shlex.quote, names))
        uv = f", or use `uv pip {action} --python {sys.executable} {words}`" if shutil.which("uv") else ""
        raise RequestError(
            f"There is no pip in this environment ({sys.prefix}): `{sys.executable} -m ensurepip` gets it{uv}."
        )
    marker = Path(sysconfig.get_path("stdlib", sysconfig.get_default_scheme()), "EXTERNALLY-MANAGED")
    allowed = os.environ.get("PIP_BREAK_SYSTEM_PACKAGES", "0").lower() not in ("", "0", "false", "no", "off")
    if sys.prefix == sys.base_prefix and marker.exists() and not allowed:
        raise RequestError(
            f"This Python ({sys.executable}) is managed by the operating system, and pip would refuse to change it: make an "
            "environment of your own with `python3 -m venv DIR`, and install zoo and its plugins there."
        )


def planned(
    specs: Sequence[str],
    *,
    upgrade: bool = False,
    dependencies: bool = True,
    editable: bool = False,
    reinstall: bool = False,
) -> list[Change]:
    """Ask pip what installing `specs` would change; nothing is changed.

    Args:
        reinstall: what is named is installed anew even where it has that version already; what it needs is not.

    Raises:
        ZooError: pip cannot do it; says why.
    """
    options = ["--upgrade"] * upgrade + ["--no-deps"] * (not dependencies)
    asked = [argument for spec in specs for argument in (["--editable", spec] if editable else [spec])]
    items = _report([*options, *asked])
    if reinstall:
        anew = _report(["--no-deps", "--force-reinstall", *asked])
        items = [*items, *(item for item in anew if _named(item) not in map(_named, items))]
    before = versions()
    changes = [_change(item, before) for item in items]
    return sorted(changes, key=lambda change: (not change.requested, change.kind == "install", change.name))


def _report(arguments: Sequence[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        path = Path(folder, "report.json")
        code, said = pip("install", "--dry-run", "--report", str(path), *arguments)
        if "no such option: --report" in said or "no such option: --dry-run" in said:
            raise ZooError(
                "The pip in this environment is too old to say what it would change; version 22.2 or later does: "
                f"`{sys.executable} -m pip install --upgrade pip`."
            )
        if code:
            raise ZooError(f"pip cannot install this: {reason(said)}")
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return list(report["install"])


def _named(item: dict[str, Any]) -> str:
    return normalised(item["metadata"]["name"])


def _change(item: dict[str, Any], before: dict[str, str]) -> Change:
    info = item["download_info"]
    vcs = info.get("vcs_info", {})
    return Change(
        name=item["metadata"]["name"],
        version=item["metadata"]["version"],
        before=before.get(_named(item), ""),
        url=f"{vcs['vcs']}+{info['url']}" if vcs else info["url"],
        requested=bool(item.get("requested")),
        direct=bool(item.get("is_direct")),
        editable=bool(info.get("dir_info", {}).get("editable")),
        commit=vcs.get("commit_id", ""),
    )


def versions() -> dict[str, str]:
    """Every installed distribution and its version, by normalised name, as they are on disk now."""
    importlib.invalidate_caches()
    installed: dict[str, str] = {}
    for name, distribution in _distributions():
        installed.setdefault(name, distribution.version)
    return installed


def _distributions() -> Iterator[tuple[str, importlib.metadata.Distribution]]:
    """The installed distributions, less those whose metadata is damaged."""
    for distribution in importlib.metadata.distributions():
        with contextlib.suppress(Exception):  # metadata is anybody's text
            name = distribution.metadata["Name"]
            if name and distribution.version:
                yield normalised(name), distribution


@dataclass(frozen=True)
class Claim:
    """A plugin name that a distribution takes, as its entry points say."""

    plugin: str
    distribution: str
    place: str  # of its metadata
    damaged: bool  # the metadata does not say which distribution it is


def claims() -> list[Claim]:
    """Who takes which plugin name, whatever is disabled or left out, and whatever else is wrong with it."""
    claimed = []
    for distribution in importlib.metadata.distributions():
        path, name = str(getattr(distribution, "_path", "")), None
        with contextlib.suppress(Exception):
            name = distribution.metadata["Name"] if distribution.version else None
        # whatever is wrong with its entry points, pip can uninstall it by its own name
        with contextlib.suppress(Exception):
            for point in distribution.entry_points:
                if point.group in GROUPS:
                    label = name or Path(path).name.partition("-")[0]
                    claimed.append(Claim(point.name, label, path, damaged=name is None))
    return claimed


def requirements() -> Iterator[tuple[str, str, Requirement]]:
    """What the installed distributions need: distribution, version, requirement; extras are left out."""
    seen: set[str] = set()
    for name, distribution in _distributions():
        if name in seen:
            continue
        seen.add(name)
        for text in distribution.requires or ():
            with contextlib.suppress(InvalidRequirement):
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    yield str(distribution.metadata["Name"]), distribution.version, requirement


def problems(changes: Sequence[Change] = ()) -> set[str]:
    """What does not fit together of what is installed, as `pip check` says, one sentence each.

    Args:
        changes: what would be changed; it is asked whether what stays would still fit.
    """
    changed = {normalised(change.name): change.version for change in changes}
    there = versions() | changed
    sentences = set()
    for name, version, need in requirements():
        have = there.get(normalised(need.name))
        if normalised(name) in changed:
            continue
        if have is None:
            sentences.add(f"{name} {version} needs {need.name}{need.specifier}, which is not installed.")
        elif not need.specifier.contains(have, prereleases=True):
            sentences.add(f"{name} {version} needs {need.name}{need.specifier}, and {need.name} is {have}.")
    return sentences


# --- changing it ------------------------------------------------------------------------------------------------------


def install(specs: Sequence[str], changes: Sequence[Change], *, reinstall: bool = False) -> None:
    """Install what `planned` found for `specs`: those versions, and nothing else.

    Raises:
        ZooError: pip failed; says why, and what was changed all the same.
    """
    editable = any(change.editable and change.requested for change in changes)
    asked = [argument for spec in specs for argument in (["--editable", spec] if editable else [spec])]
    asked += [_pinned(change) for change in changes if not change.requested]
    pins = [f"{change.name}=={change.version}" for change in changes if not change.direct]
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        path = Path(folder, "pins.txt")
        path.write_text("\n".join(pins) + "\n", encoding="utf-8")
        force = ["--force-reinstall"] * reinstall
        code, said = _changing("install", "--no-deps", *force, "--constraint", str(path), *asked)
    if code:
        now = versions()
        done = [c for c in changes if c.before != c.version and now.get(normalised(c.name)) == c.version]
        changed = f"Changed all the same: {_listed(done)}." if done else "Nothing was changed."
        raise ZooError(f"pip could not install this: {sentence(reason(said))} {changed}")


def _pinned(change: Change) -> str:
    if not change.direct:
        return f"{change.name}=={change.version}"
    return f"{change.name} @ {change.url}" + (f"@{change.commit}" if change.commit else "")


def _listed(changes: Sequence[Change]) -> str:
    return ", ".join(f"{change.name} {change.version}" for change in changes)


def uninstall(distribution: str) -> str:
    """Uninstall one distribution and return what pip said.

    Raises:
        ZooError: pip failed; says why.
    """
    code, said = _changing("uninstall", "--yes", distribution)
    if code:
        raise ZooError(f"pip could not uninstall {distribution}: {reason(said)}")
    return said


# --- pip itself -------------------------------------------------------------------------------------------------------


def _changing(*arguments: str) -> tuple[int, str]:
    """Run pip to its end, whatever signal comes: it may be half way through changing files."""
    with signals.remark("`zoo plugins list --load` shows what is there now."), signals.whole():
        return pip(*arguments)


def pip(*arguments: str) -> tuple[int, str]:
    """Run pip and return its exit code and what it said; with -v the user sees it as it comes."""
    command = [sys.executable, "-P", "-m", "pip", *arguments]
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **PIP_ENV},
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                if output.settings.verbose:
                    print(line, end="", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            process.kill()
            raise
    return process.returncode, "".join(lines)


def reason(said: str) -> str:
    """The sentence in pip's output that says why it failed."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", said)
    lines = [plain(line) for line in text.splitlines() if line.strip()]
    cause = _conflict(lines) or _step(lines) or _errors(lines)
    shortened = re.sub(r"\(from versions: ([^)]{60})[^)]*\)", r"(from versions: \1...)", cause)
    hint = "" if output.settings.verbose else " (-v shows all that pip says)"
    return f"{shortened[:600].rstrip('. ')}{hint}."


def _conflict(lines: list[str]) -> str:
    """Which requirements do not go together: the lines that follow "The conflict is caused by"."""
    if "The conflict is caused by:" not in lines:
        return ""
    start = lines.index("The conflict is caused by:") + 1
    causes = []
    for line in lines[start:]:
        if line.startswith(("To fix this", "Additionally", "ERROR")):
            break
        causes.append(line)
    return "the requirements do not go together: " + "; ".join(causes)


PIPS_OWN = (
    "subprocess-exited-with-error",
    "metadata-generation-failed",
    "Failed to build",
    "Failed building",
    "No matching distribution",
    "backend-unavailable",
)


def _step(lines: list[str]) -> str:
    """Which step of pip's failed in another program, such as git or a build backend, and that program's last error."""
    steps = [line.removeprefix("×").strip() for line in lines if line.startswith("×")]
    if not steps:
        return ""
    said = [line for line in lines if re.match(r"(fatal|error|ERROR): |\w*(Error|Exception|Unavailable)\b", line)]
    said = [line for line in said if not any(word in line for word in PIPS_OWN)]
    fatal = [line for line in said if line.startswith("fatal")]  # git's first says it, the others are advice
    inner = fatal[0] if fatal else said[-1] if said else ""
    return f"{steps[0].rstrip('.')}: {_stripped(inner)}" if inner else steps[0]


def _errors(lines: list[str]) -> str:
    """The first of pip's own error lines, with a hint that follows it; else the last line of all."""
    errors = [i for i, line in enumerate(lines) if line.startswith("ERROR:") and line != "ERROR: Exception:"]
    if errors:
        first = errors[0]
        hints = [
            line.removeprefix("Hint:").strip() for line in lines[first + 1 : first + 2] if line.startswith("Hint:")
        ]
        return " ".join([_stripped(lines[first]), *hints])
    return lines[-1] if lines else "it said nothing"


def _stripped(line: str) -> str:
    return re.sub(r"^(ERROR|error|fatal): ", "", line)


def sentence(text: str) -> str:
    """End a text with a full stop."""
    return text if text.endswith(".") else f"{text}."


def local_path(url: str) -> Path | None:
    """The path in a `file:` address; None for any other address."""
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None
