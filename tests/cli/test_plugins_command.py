"""`zoo plugins`: real wheels, installed by a real pip into a real environment, and taken out of it again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from zoo.cli.plugins.pip import reason

API = 'api = ">=1,<2"\n'
LOSS = API + '[[loss]]\nname = "{name}"\nsummary = "Made up for a test"\n'
MODEL = (
    API
    + """
[[model]]
name = "{name}"
family = "llama"
modality = "text"
task = "causal-lm"
license = "MIT"
params = 1
summary = "Made up for a test"
"""
)
CODE = """
from zoo.hooks import hookimpl

@hookimpl
def register_losses(register):
    register("{name}", "{package}.made:Made")
"""


# --- the environment --------------------------------------------------------------------------------------------------


@dataclass
class User:
    """Someone with an environment of their own, a folder of wheels to install from, and no network."""

    python: Path
    site: Path
    wheels: Path
    home: Path

    def zoo(self, *args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "zoo", *args, stdin=stdin, **env)

    def run(self, *args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=self.home,
            env={**self.env(), **env},
        )

    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ZOO_", "PYTHONPATH", "PIP_", "UV_"))}
        return {
            **kept,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_BUILD_ISOLATION": "0",
            "ZOO_CONFIG_DIR": str(self.home / "config"),
            "COLUMNS": "300",
        }

    def plugins(self, *args: str) -> dict[str, dict]:
        return {plugin["name"]: plugin for plugin in json.loads(self.zoo("plugins", "list", "--json", *args).stdout)}

    def wheel(
        self,
        name: str,
        version: str = "1.0",
        *,
        registry: str | None = None,
        code: str | None = "",
        requires: tuple[str, ...] = (),
        metadata: str = "",
        entries: str | None = None,
    ) -> Path:
        """Write a wheel, which is a zip with a few files of metadata: a plugin that declares one loss, if not told otherwise."""
        package = name.replace("-", "_")
        registry = LOSS.format(name=f"{name}-loss") if registry is None else registry
        files = {f"{package}/__init__.py": "", f"{package}/registry.toml": registry}
        points = f"[zoo.catalog]\n{name} = {package}\n"
        if code is not None:
            files[f"{package}/plugin.py"] = code + CODE.format(name=f"{name}-loss", package=package)
            files[f"{package}/made.py"] = "class Made:\n    pass\n"
            points += f"[zoo]\n{name} = {package}.plugin\n"
        info = f"{package}-{version}.dist-info"
        needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
        files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}{metadata}"
        files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        files[f"{info}/entry_points.txt"] = points if entries is None else entries
        files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in files) + f"{info}/RECORD,,\n"
        path = self.wheels / f"{package}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name_inside, text in files.items():
                archive.writestr(name_inside, text)
        return path

    def unpack(self, name: str, **kwargs: object) -> None:
        """Install a wheel as pip does, but faster; RECORD tells pip later what to uninstall."""
        with zipfile.ZipFile(self.wheel(name, **kwargs)) as archive:
            archive.extractall(self.site)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A fresh environment with pip, which sees zoo as this process does, and the heavy packages beside it."""
    folder = tmp_path_factory.mktemp("user") / "env"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip())
    # an old one would hide the newer one that torch needs
    for name in ("setuptools", "pkg_resources", "_distutils_hack"):
        shutil.rmtree(site / name, ignore_errors=True)
    for path in [*site.glob("setuptools-*"), *site.glob("distutils-*.pth")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    packages = ("zoo", "zoo_compress", "zoo_slm", "zoo_h2ovl", "zoo_snapgen", "zoo_timm")
    found = [Path(find_spec(name).origin).parents[1] for name in packages]
    lines = dict.fromkeys(map(str, [*found, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]))
    (site / "heavy.pth").write_text("\n".join(lines) + "\n")
    return python, site


@pytest.fixture
def user(environment: tuple[Path, Path], tmp_path: Path) -> Iterator[User]:
    """A user whose environment is as it was before the test, and is so again afterwards."""
    python, site = environment
    before = set(site.iterdir())
    for folder in ("wheels", "home"):
        (tmp_path / folder).mkdir()
    yield User(python, site, tmp_path / "wheels", tmp_path / "home")
    for path in set(site.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def on_a_terminal(user: User, *args: str, types: str) -> tuple[int, str]:
    """Run `zoo` as on a terminal, type an answer, and return the exit code and all that was shown."""
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen(
        [user.python, "-m", "zoo", *args],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=user.home,
        env={**user.env(), "TERM": "dumb", "NO_COLOR": "1"},
    )
    os.close(slave)
    os.write(master, types.encode())
    shown = b""
    try:
        while chunk := os.read(master, 10_000):
            shown += chunk
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(master)
    return process.wait(timeout=100), shown.decode().replace("\r\n", "\n")


# --- list and info ----------------------------------------------------------------------------------------------------


def test_list_says_where_plugins_come_from_and_what_is_wrong_without_importing_them(user: User):
    user.unpack("out-good", code="raise SystemExit('imported')\n")
    user.unpack("out-bad", registry=API + '[[los]]\nname = "x"\n')
    done = user.zoo("plugins")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert re.fullmatch(r"out-good +out-good +1\.0 +1 loss +ok", rows["out-good"])
    assert re.fullmatch(
        r"out-bad +out-bad +1\.0 +- +broken: .*registry\.toml: 'los' is not a table\. Did you mean 'loss'\?.*",
        rows["out-bad"],
    )
    assert len(rows) == len(done.stdout.splitlines())  # each once
    assert user.zoo("plugins", "list").stdout == done.stdout


def test_list_load_gives_each_a_process_and_a_time(user: User):
    user.unpack("out-good", code="print('noise')\n")
    user.unpack("out-catalog", registry=MODEL.format(name="made"), code=None)
    user.unpack("out-raises", code="1 / 0\n")
    user.unpack("out-exits", code="import sys; sys.exit(3)\n")
    user.unpack("out-ends", code="import os; os._exit(0)\n")
    user.unpack("out-hangs", code="import time; time.sleep(1000)\n")
    user.unpack("out-crashes", code="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n")
    user.unpack("out-other", registry=LOSS.format(name="another"))
    names = ["good", "catalog", "raises", "exits", "ends", "hangs", "crashes", "other"]
    done = user.zoo("plugins", "list", "--load", "--timeout", "8")
    assert (done.returncode, done.stderr) == (1, "")
    rows = {line.split()[0]: re.split(r"  +", line)[3:] for line in done.stdout.splitlines()}
    assert rows["name"] == ["adds", "load", "status"]
    assert {name: rows[f"out-{name}"][1:] for name in names[1:]} == {
        "catalog": ["-", "ok"],
        "raises": ["-", "broken: out_raises.plugin cannot be imported: ZeroDivisionError: division by zero"],
        "exits": ["-", "broken: out_exits.plugin cannot be imported: SystemExit: 3"],
        "ends": ["-", "broken: ends the process while it is imported (exit code 0)"],
        "hangs": ["-", "broken: was not imported within 8 s"],
        "crashes": ["-", "broken: crashes Python while it is imported (SIGSEGV)"],
        "other": [
            "-",
            "broken: declares loss 'another' in its registry.toml, but register_losses in out_other.plugin does "
            "not register it.",
        ],
    }
    for name in ("zoo", "zoo_slm", "out-good"):
        assert re.fullmatch(r"[\d.]+ m?s", rows[name][1]) and rows[name][2] == "ok"


def test_a_list_that_loads_can_be_interrupted(user: User):
    import signal

    user.unpack("out-hangs", code="import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(1000)\n")
    process = subprocess.Popen(
        [user.python, "-m", "zoo", "plugins", "--load"],
        cwd=user.home,
        env=user.env(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = user.home / "pid"
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130 and process.communicate()[1].startswith("error: interrupted")
    with pytest.raises(ProcessLookupError):  # what was being loaded has ended too
        os.kill(int(pid.read_text()), 0)


def test_info_shows_origin_licence_parts_and_what_they_need(user: User):
    metadata = (
        "License-Expression: MIT\nProject-URL: Homepage, https://example.org/out\nHome-page: https://old.example.org\n"
    )
    needs = 'needs = ["typer", "no-such-thing>=2"]\n'
    path = user.wheel("out-info", registry=LOSS.format(name="out-info-loss") + needs, metadata=metadata)
    assert user.run("-m", "pip", "install", str(path)).returncode == 0
    done = user.zoo("plugins", "info", "Out_Info")
    assert (done.returncode, done.stderr) == (0, "")
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in done.stdout.splitlines() if line)
    assert facts == {
        "name": "out-info",
        "status": "ok",
        "distribution": "out-info",
        "version": "1.0",
        "source": str(path),
        "license": "MIT",
        "home page": "https://example.org/out",
        "plugin API": ">=1,<2",
        "files": str(user.site / "out_info"),
        "module": "out_info.plugin",
        "loss out-info-loss": "Made up for a test (needs typer, no-such-thing>=2) Not installed: pip install 'no-such-thing>=2'",
    }
    found = json.loads(user.zoo("plugins", "info", "out-info", "--load", "--json").stdout)
    assert found["load_seconds"] > 0 and found["missing"] == {"loss out-info-loss": ["no-such-thing>=2"]}
    assert found["summaries"] == {"loss out-info-loss": "Made up for a test"}
    assert "load time" in user.zoo("plugins", "info", "out-info", "--load").stdout


def test_metadata_cannot_draw_on_the_terminal(user: User):
    user.unpack("out-paint", metadata="License: \x1b[31mred\x1b[0m\n  and more\nHome-page: " + "x" * 5000 + "\n")
    shown = user.zoo("plugins", "info", "out-paint").stdout
    assert (
        "\x1b" not in shown
        and "license       \\x1b[31mred\\x1b[0m and more\n" in shown
        and max(map(len, shown.splitlines())) < 300
    )


# --- install ----------------------------------------------------------------------------------------------------------


def test_install_shows_what_would_change_then_installs_and_looks(user: User):
    user.wheel("out-dep", "2.0", entries="")
    user.wheel("out-good", "1.1", requires=("out-dep>=2", "torch>=2"))
    done = user.zoo("plugins", "install", "out-good", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "Nothing was changed.\n")
    table = [re.split(r"  +", line) for line in done.stdout.splitlines()]
    assert table == [
        ["change", "distribution", "from", "to", "source"],
        ["install", "out-good", "-", "1.1", str(user.wheels / "out_good-1.1-py3-none-any.whl")],
        ["install", "out-dep", "-", "2.0", str(user.wheels / "out_dep-2.0-py3-none-any.whl")],
    ]
    assert not (user.site / "out_good").exists()

    refused = user.zoo("plugins", "install", "out-good")
    assert (refused.returncode, refused.stdout) == (2, done.stdout)
    assert (
        refused.stderr
        == "error: Nothing was changed, since there is no terminal to ask on: --yes goes on without asking.\n"
    )

    agreed = user.zoo("plugins", "install", "out-good", "--yes")
    assert (agreed.returncode, agreed.stderr) == (0, "out-dep 2.0 is installed as well.\n")
    last = agreed.stdout.removeprefix(done.stdout)
    assert re.fullmatch(r"out-good 1\.1 is installed: plugin out-good adds 1 loss; it loads in [\d.]+ m?s\.\n", last)
    assert user.plugins()["out-good"]["status"] == "ok"

    again = user.zoo("plugins", "install", "out-good", "-q")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("out-good 1.1 is installed already: plugin out-good adds 1 loss; it loads in ")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_install_asks_on_a_terminal(user: User):
    user.wheel("out-good")
    code, shown = on_a_terminal(user, "plugins", "install", "out-good", types="n\n")
    assert code == 1 and "Install this? [y/N]: " in shown and shown.endswith("error: stopped at your request.\n")
    assert "out-good" not in user.plugins()
    code, shown = on_a_terminal(user, "plugins", "install", "out-good", types="y\n")
    assert code == 0 and "out-good 1.0 is installed: plugin out-good adds 1 loss" in shown
    code, shown = on_a_terminal(user, "plugins", "uninstall", "out-good", types="y\n")
    assert code == 0 and "Uninstall out-good? [y/N]: " in shown and shown.endswith("out-good 1.0 is uninstalled.\n")


def test_changes_to_what_is_there_are_pointed_out(user: User):
    user.wheel("out-dep", "1.0", entries="")
    user.wheel("out-dep", "2.0", entries="")
    user.wheel("out-old", requires=("out-dep<2",))
    user.wheel("out-new", requires=("out-dep>=2",))
    assert user.run("-m", "pip", "install", "out-old").returncode == 0
    done = user.zoo("plugins", "install", "out-new", "--dry-run")
    assert re.search(r"^upgrade +out-dep +1\.0 +2\.0 ", done.stdout, re.MULTILINE)
    assert done.stderr.splitlines() == [
        "warning: this would upgrade out-dep, which is installed already, from 1.0 to 2.0.",
        "warning: afterwards, out-old 1.0 needs out-dep<2, and out-dep is 2.0.",
        "Nothing was changed.",
    ]
    done = user.zoo("plugins", "install", "out-new", "-y", "-q")
    assert done.returncode == 1 and done.stderr == "error: out-old 1.0 needs out-dep<2, and out-dep is 2.0.\n"
    done = user.zoo("plugins", "install", "out-dep==1.0", "--dry-run")
    assert re.search(r"^downgrade +out-dep +2\.0 +1\.0 ", done.stdout, re.MULTILINE)
    user.wheel("out-new", "1.1")
    assert "out-new 1.0 is installed already" in user.zoo("plugins", "install", "out-new").stdout
    done = user.zoo("plugins", "install", "out-new", "-U", "-y")
    assert done.returncode == 0 and "out-new 1.1 is installed: plugin out-new adds 1 loss" in done.stdout


def test_only_what_was_shown_is_installed(user: User):
    """A newer version that turns up between the question and the answer is not what was agreed to."""
    user.wheel("out-dep", "1.0", entries="")
    user.wheel("out-good", requires=("out-dep",))
    later = user.home / "later"
    later.mkdir()
    shutil.move(user.wheel("out-dep", "2.0", entries=""), later)
    shutil.move(user.wheel("out-good", "2.0", requires=("out-dep",)), later)
    script = """
import os, sys
from zoo.cli.plugins import pip
changes = pip.planned(["out-good"])
os.environ["PIP_FIND_LINKS"] += " " + sys.argv[1]
pip.install(["out-good"], changes)
print({name: version for name, version in pip.versions().items() if name.startswith("out-")})
"""
    done = user.run("-c", script, str(later))
    assert done.stdout == "{'out-dep': '1.0', 'out-good': '1.0'}\n", done.stderr


def test_a_wheel_of_the_same_version_takes_reinstall(user: User):
    path = user.wheel("out-good")
    assert user.zoo("plugins", "install", str(path), "-y").returncode == 0
    user.wheel("out-good", registry=LOSS.format(name="out-good-loss").replace("Made up", "Made anew"))
    done = user.zoo("plugins", "install", str(path), "-y")
    assert done.returncode == 0 and "out-good 1.0 is installed already: plugin out-good" in done.stdout
    assert (
        done.stderr
        == "Nothing to change: --upgrade looks for a newer version, --reinstall installs the same one anew.\n"
    )
    done = user.zoo("plugins", "install", str(path), "-y", "--reinstall")
    assert done.returncode == 0 and re.search(r"^reinstall +out-good +1\.0 +1\.0 ", done.stdout, re.MULTILINE)
    assert "Made anew" in user.zoo("plugins", "info", "out-good").stdout


PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "out-source"
version = "0.3"

[project.entry-points."zoo.catalog"]
out-source = "out_source"
"""


def project(folder: Path) -> Path:
    """The source of a plugin that declares one model."""
    package = folder / "out_source"
    package.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / "registry.toml").write_text(MODEL.format(name="made"))
    return folder


def test_a_directory_editable_or_not_and_a_repository(user: User):
    folder = project(user.home / "source")
    done = user.zoo("plugins", "install", "./source", "-y")
    assert (done.returncode, done.stderr) == (0, "") and str(folder) in done.stdout
    assert done.stdout.endswith("out-source 0.3 is installed: plugin out-source adds 1 model.\n")
    assert json.loads(user.zoo("plugins", "info", "out-source", "--json").stdout)["source"] == str(folder)

    done = user.zoo("plugins", "install", "./source", "-y", "--editable")
    assert (done.returncode, done.stderr) == (0, "") and f"{folder} (editable)" in done.stdout
    found = json.loads(user.zoo("plugins", "info", "out-source", "--json").stdout)
    assert found["source"] == f"{folder} (editable)" and found["path"] == str(folder / "out_source")
    done = user.zoo("plugins", "uninstall", "out-source", "-y")
    assert done.returncode == 0 and "The project's own files stay where they are." in done.stderr
    assert (folder / "out_source/registry.toml").exists() and "out-source" not in user.plugins()

    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "All of it"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()
    done = user.zoo("plugins", "install", f"git+{folder.as_uri()}", "-y")
    assert (done.returncode, done.stderr) == (0, "") and f"git+{folder.as_uri()} @ {commit[:12]}" in done.stdout
    assert commit[:12] in json.loads(user.zoo("plugins", "info", "out-source", "--json").stdout)["source"]


BACKEND = """
import time
from pathlib import Path
from hatchling.build import *
from hatchling.build import build_wheel as build

def build_wheel(*args, **kwargs):
    asked = Path({marker!r}).with_suffix(".asked")
    if asked.exists():  # once for what would change, then in earnest
        Path({marker!r}).touch()
        time.sleep(3)
    asked.touch()
    return build(*args, **kwargs)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_an_interruption_waits_until_pip_has_ended(user: User):
    import signal

    folder, marker = project(user.home / "slow"), user.home / "building"
    (folder / "backend.py").write_text(BACKEND.format(marker=str(marker)))
    (folder / "pyproject.toml").write_text(PROJECT.replace('"hatchling.build"', '"backend"\nbackend-path = ["."]'))
    process = subprocess.Popen(
        [user.python, "-m", "zoo", "plugins", "install", "./slow", "-y"],
        cwd=user.home,
        env=user.env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not marker.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=200)[1]
    assert (process.returncode, error) == (
        130,
        "error: interrupted; `zoo plugins list --load` shows what is there now.\n",
    )
    assert user.plugins()["out-source"]["status"] == "ok"


def test_what_is_wrong_with_what_was_installed_is_said(user: User):
    user.wheel("out-none", entries="")
    user.wheel("out-raises", code="1 / 0\n")
    user.wheel("out-ends", code="import os; os._exit(5)\n")
    user.wheel("out-other", registry=LOSS.format(name="another"))
    user.wheel("out-toml", registry="api = 1")
    names = ["none", "raises", "ends", "other", "toml"]
    done = user.zoo("plugins", "install", *(f"out-{name}" for name in names), "-y", "-q")
    assert (done.returncode, done.stdout) == (1, "")
    said = {
        re.match(r"error: out-(\w+) 1\.0 is installed, but ", line)[1]: line.partition(", but ")[2]
        for line in done.stderr.splitlines()
    }
    assert said.pop("none") == f"it brings no zoo plugin: `{user.python} -m pip uninstall out-none` removes it."
    assert re.fullmatch(
        r"its plugin out-toml is broken: .*registry\.toml.* `zoo plugins uninstall out-toml` removes it\.",
        said.pop("toml"),
    )
    reasons = {
        "raises": "out_raises.plugin cannot be imported: ZeroDivisionError: division by zero.",
        "ends": "ends the process while it is imported (exit code 5).",
        "other": "declares loss 'another' in its registry.toml, but register_losses in out_other.plugin does not register it.",
    }
    assert said == {
        name: f"its plugin out-{name} is broken: {reason} `zoo plugins uninstall out-{name}` removes it."
        for name, reason in reasons.items()
    }


def test_needs_that_are_not_there_disabling_and_zoo_plugins_are_warned_of(user: User):
    user.wheel("out-needy", registry=LOSS.format(name="out-needy-loss") + 'needs = ["no-such-thing>=2"]\n')
    assert user.zoo("plugins", "install", "out-needy", "-y", "-q").returncode == 0
    assert user.zoo("plugins", "disable", "out-needy").returncode == 0
    done = user.zoo("plugins", "install", "out-needy")
    need = "warning: loss out-needy-loss needs no-such-thing>=2, not installed yet: pip install 'no-such-thing>=2'"
    assert done.stderr.splitlines()[1:] == [
        "warning: plugin out-needy is disabled: `zoo plugins enable out-needy`.",
        need,
    ]
    done = user.zoo("plugins", "install", "out-needy", ZOO_PLUGINS="zoo_slm")
    assert done.returncode == 0 and "warning: ZOO_PLUGINS leaves plugin out-needy out." in done.stderr


def test_a_missing_dependency_is_said_with_no_deps(user: User):
    user.wheel("out-x", requires=("no-such-thing",))
    done = user.zoo("plugins", "install", "out-x", "-y", "-q", "--no-deps")
    assert (done.returncode, done.stderr) == (1, "error: out-x 1.0 needs no-such-thing, which is not installed.\n")


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        (["--", "-r"], "'-r' is nothing to install: give a name, a path, a wheel or a VCS address."),
        ([""], "'' is nothing to install: give a name, a path, a wheel or a VCS address."),
        (["./no/such"], "There is no file or directory no/such."),
        (["gone-1.0-py3-none-any.whl"], "There is no file or directory gone-1.0-py3-none-any.whl."),
        (["-e", "out-x"], "--editable takes the directory of a project, and out-x is not one."),
        (
            ["https://example.org/a/b.git"],
            "https://example.org/a/b.git is a repository: write git+https://example.org/a/b.git",
        ),
    ],
)
def test_what_cannot_be_installed_is_refused_before_pip_runs(user: User, specs: list[str], says: str):
    done = user.zoo("plugins", "install", *specs)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {says}\n")


def test_pip_refuses_in_one_sentence(user: User):
    user.wheel("out-dep", "1.0", entries="")
    user.wheel("out-dep", "2.0", entries="")
    user.wheel("out-old", requires=("out-dep<2",))
    user.wheel("out-new", requires=("out-dep>=2",))
    user.wheel("out-lacks", requires=("no-such-thing>=2",))
    user.wheel("out-later", metadata="Requires-Python: >=4\n")
    (user.wheels / "torn-1.0-py3-none-any.whl").write_text("no zip")
    (user.home / "empty").mkdir()
    broken = project(user.home / "broken")
    (broken / "pyproject.toml").write_text(PROJECT.replace("hatchling.build", "no_such_backend"))
    hint = r" \(-v shows all that pip says\)\."
    for spec, says in {
        "no-such-thing": r"Could not find a version that satisfies the requirement no-such-thing \(from versions: none\)",
        "out-lacks": r"Could not find a version that satisfies the requirement no-such-thing>=2 \(from out-lacks\).*",
        "out-later": r".*[Rr]equires.*Python.*",
        "./empty": r"Directory './empty' is not installable\. Neither 'setup\.py' nor 'pyproject\.toml' found",
        str(user.wheels / "torn-1.0-py3-none-any.whl"): r"Wheel 'torn' located at .* is invalid",
        "out-x[": r"Invalid requirement: 'out-x\['.*",
        "./broken": r".*no_such_backend.*",
        f"git+{(user.home / 'nowhere').as_uri()}": r"git clone .* did not run successfully: '.*nowhere' does not appear to be a git repository",
    }.items():
        done = user.zoo("plugins", "install", spec, "-y")
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert re.fullmatch(f"error: pip cannot install this: {says}{hint}\n", done.stderr), done.stderr
    done = user.zoo("plugins", "install", "out-old", "out-new", "-v")
    assert done.stderr.endswith(
        "error: pip cannot install this: the requirements do not go together: out-old 1.0 depends on "
        "out-dep<2; out-new 1.0 depends on out-dep>=2.\n"
    )
    assert "Processing" in done.stderr or "Looking in links" in done.stderr  # -v: what pip said


def test_when_zoo_itself_no_longer_starts_it_says_how_to_go_back(user: User):
    user.wheel("typer", "99.0", entries="")
    user.wheel("out-x", requires=("typer>=99",))
    done = user.zoo("plugins", "install", "out-x", "-y")
    assert done.returncode == 1
    assert re.search(
        r"^error: zoo itself does not start any more in a fresh process: .*typer.*$", done.stderr, re.MULTILINE
    )
    assert re.search(
        rf"^What was installed before: `{user.python} -m pip install typer==\d\S+`\.$", done.stderr, re.MULTILINE
    )


def test_a_directory_of_that_name_is_offered(user: User):
    project(user.home / "out-source")
    done = user.zoo("plugins", "install", "out-source")
    assert done.stderr.endswith("There is a directory of that name: write ./out-source to install it.\n")


def without_pip(user: User, folder: Path) -> None:
    """Fill a folder with what the user's environment sees, but pip."""
    for line in (user.site / "heavy.pth").read_text().splitlines():
        for path in Path(line).iterdir():
            if not path.name.startswith(("pip", "uv", "__pycache__")) and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
def test_an_environment_without_pip_says_what_to_type(user: User):
    bare = user.home / "bare"
    venv.create(bare, with_pip=False)
    without_pip(user, bare / user.site.relative_to(user.python.parents[1]))
    python = bare / "bin/python"
    for words in (["install", "out-x"], ["uninstall", "out-x"]):
        done = subprocess.run(
            [python, "-m", "zoo", "plugins", *words],
            capture_output=True,
            text=True,
            cwd=user.home,
            env={**user.env(), "PATH": ""},
        )
        if words[0] == "install":
            assert (done.returncode, done.stderr) == (
                2,
                f"error: There is no pip in this environment ({bare}): `{python} -m ensurepip` gets it.\n",
            )
        else:
            assert (done.returncode, done.stderr) == (
                2,
                "error: No plugin named 'out-x'. `zoo plugins` shows what there is.\n",
            )
    uv = user.home / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    done = subprocess.run(
        [python, "-m", "zoo", "plugins", "install", "out-x"],
        capture_output=True,
        text=True,
        cwd=user.home,
        env={**user.env(), "PATH": str(user.home)},
    )
    assert f"`uv pip install --python {python} out-x`" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="builds a Python of links, as Linux lays it out")
def test_a_python_that_the_system_manages_is_left_alone(user: User):
    prefix = user.home / "system"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    lib = prefix / "lib" / version
    (prefix / "bin").mkdir(parents=True)
    lib.mkdir(parents=True)
    shutil.copy(Path(sys.executable).resolve(), prefix / "bin/python")
    for path in Path(sysconfig.get_path("stdlib")).iterdir():
        if path.name != "site-packages":
            (lib / path.name).symlink_to(path)
    (lib / "site-packages").mkdir()
    for path in [*user.site.glob("pip*"), user.site / "heavy.pth"]:
        (lib / "site-packages" / path.name).symlink_to(path)
    (lib / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=Use another.\n")
    user.wheel("out-x")
    user.python = prefix / "bin/python"
    probe = user.run("-c", "import sys; print(sys.prefix == sys.base_prefix == sys.argv[1])", str(prefix))
    if probe.stdout != "True\n":
        pytest.skip("this Python cannot be moved")
    assert "externally-managed-environment" in user.run("-m", "pip", "install", "out-x").stderr  # pip's own word for it
    done = user.zoo("plugins", "install", "out-x", "-y")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: This Python ({user.python}) is managed by the operating system, and pip would refuse to change it: make "
        "an environment of your own with `python3 -m venv DIR`, and install zoo and its plugins there.\n"
    )
    assert user.zoo("plugins", "install", "out-x", "-y", PIP_BREAK_SYSTEM_PACKAGES="1").returncode == 0


# --- uninstall --------------------------------------------------------------------------------------------------------


def test_uninstall_takes_the_plugins_or_the_distributions_name_and_imports_nothing(user: User):
    entries = "[zoo.catalog]\nout-plugin = out_dist\n[zoo]\nout-plugin = out_dist.plugin\n"
    user.unpack("out-dist", entries=entries, code="raise SystemExit('imported')\n", requires=("typer",))
    user.unpack("out-user", requires=("out-dist",), entries="")
    for name in ("out-plugin", "Out_Plugin", "out.dist"):
        refused = user.zoo("plugins", "uninstall", name)
        assert refused.returncode == 2 and refused.stdout.startswith("distribution       out-dist 1.0\n")
    assert "out-plugin" in user.plugins()
    done = user.zoo("plugins", "uninstall", "out-plugin", "--yes")
    assert done.returncode == 0
    facts = [re.split(r"  +", line.strip(), maxsplit=1) for line in done.stdout.splitlines()]
    assert facts == [
        ["distribution", "out-dist 1.0"],
        ["plugin out-plugin", "1 loss"],
        ["loss", "out-dist-loss"],
        ["out-dist 1.0 is uninstalled."],
    ]
    assert done.stderr.splitlines() == [
        "warning: out-user needs out-dist.",
        "Artifacts made with it will need it again to be loaded.",
    ]
    assert "out-plugin" not in user.plugins() and not (user.site / "out_dist").exists()


def test_a_plugin_that_was_disabled_or_left_out_can_go_and_is_not_disabled_when_it_comes_back(user: User):
    user.unpack("out-x")
    assert user.zoo("plugins", "disable", "out-x").returncode == 0
    assert user.zoo("plugins", "uninstall", "out-x", "-y", "-q").returncode == 0
    user.unpack("out-x")
    assert user.plugins()["out-x"]["status"] == "ok"
    done = user.zoo("plugins", "uninstall", "out-x", "-y", "-q", ZOO_PLUGINS="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out-x 1.0 is uninstalled.\n", "")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("zoo_slm", "zoo_slm comes with zoo itself: `zoo plugins disable zoo_slm` leaves it out."),
        ("zoo", "zoo comes with zoo itself: it cannot go."),
        ("torch", "Distribution torch brings no zoo plugin: `{python} -m pip uninstall torch` removes it."),
        ("out-y", "No plugin named 'out-y'. Did you mean 'out-x'? `zoo plugins` shows what there is."),
        ("-r", "No plugin named '-r'. `zoo plugins` shows what there is."),
    ],
)
def test_what_cannot_be_uninstalled_says_why(user: User, name: str, says: str):
    user.unpack("out-x")
    done = user.zoo("plugins", "uninstall", "--yes", "--", name)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        f"error: {says.replace('{python}', str(user.python))}\n",
    )


def test_names_that_several_take(user: User):
    user.unpack("out-one", entries="[zoo.catalog]\nout-both = out_one\n")
    user.unpack("out-two", entries="[zoo.catalog]\nout_both = out_two\nzoo_slm = out_two\n")
    done = user.zoo("plugins", "uninstall", "out-both", "-y")
    assert (
        done.stderr
        == "error: Distributions out-one and out-two both take the name 'out-both': say which of them is to go.\n"
    )
    done = user.zoo("plugins", "uninstall", "zoo_slm", "-y")
    assert done.stderr == (
        "error: zoo_slm comes with zoo itself: `zoo plugins disable zoo_slm` leaves it out. `zoo plugins uninstall out-two` "
        "removes the other of that name.\n"
    )
    assert user.zoo("plugins", "uninstall", "out-two", "-y", "-q").returncode == 0
    assert "both take the name" not in str(user.plugins()["out-both"]["fault"])


def test_half_uninstalled_without_its_package_pip_does_the_rest(user: User):
    user.unpack("out-half")
    shutil.rmtree(user.site / "out_half")
    done = user.zoo("plugins", "uninstall", "out-half", "-y", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out-half 1.0 is uninstalled.\n", "")
    assert "out-half" not in user.plugins()


def test_half_uninstalled_without_its_metadata(user: User):
    user.unpack("out-half")
    shutil.rmtree(user.site / "out_half-1.0.dist-info")
    done = user.zoo("plugins", "uninstall", "out-half", "-y")
    place = user.site / "out_half"
    assert (done.returncode, done.stderr) == (
        2,
        f"error: out-half is half uninstalled: no distribution owns {place} any more. Delete that folder by hand.\n",
    )


def test_half_uninstalled_with_a_part_of_its_metadata(user: User):
    user.unpack("out-half")
    info = user.site / "out_half-1.0.dist-info"
    (info / "RECORD").unlink()
    done = user.zoo("plugins", "uninstall", "out-half", "-y")
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: pip could not uninstall out-half: .*RECORD.*\n", done.stderr.splitlines(keepends=True)[-1]
    )
    assert str(info) in done.stderr and str(user.site / "out_half") in done.stderr  # what to delete by hand
    (info / "METADATA").unlink()
    done = user.zoo("plugins", "uninstall", "out-half", "-y")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: out-half is half uninstalled, and pip cannot do the rest: delete {info} by hand.\n",
    )


def test_what_lies_outside_the_environment_stays(user: User):
    elsewhere = user.home / "elsewhere"
    user.wheel("out-x")
    assert user.run("-m", "pip", "install", "--target", str(elsewhere), "out-x").returncode == 0
    (user.site / "elsewhere.pth").write_text(f"{elsewhere}\n")
    done = user.zoo("plugins", "uninstall", "out-x", "-y", "-q")
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: out-x is still there: pip says: Not uninstalling out-x at .*, outside environment .*\.\n", done.stderr
    )


def test_files_that_pip_did_not_install_are_pointed_out(user: User):
    user.unpack("out-x")
    (user.site / "out_x/weights.bin").write_text("downloaded later")
    done = user.zoo("plugins", "uninstall", "out-x", "-y")
    assert done.returncode == 0
    assert (
        f"warning: {user.site / 'out_x'} is left, with files that pip did not install; delete it by hand.\n"
        in done.stderr
    )


# --- enable and disable -----------------------------------------------------------------------------------------------


def test_disable_and_enable(user: User):
    user.unpack("out-x", code="raise SystemExit('imported')\n")
    done = user.zoo("plugins", "disable", "Out_X", "zoo_timm")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "Plugin out-x is disabled (1 loss): `zoo plugins enable out-x` brings it back.",
        "Plugin zoo_timm is disabled (1 family, 1 evaluator): `zoo plugins enable zoo_timm` brings it back.",
    ]
    assert user.zoo("plugins", "disable", "out-x").stdout == "Plugin out-x is disabled already.\n"
    assert re.search(r"^out-x +out-x +1\.0 +1 loss +disabled$", user.zoo("plugins").stdout, re.MULTILINE)
    assert re.search(r"^out-x .* - +disabled$", user.zoo("plugins", "--load").stdout, re.MULTILINE)
    assert "status        disabled\n" in user.zoo("plugins", "info", "out-x").stdout
    done = user.zoo("plugins", "enable", "out_x", "zoo_timm")
    assert (done.returncode, done.stdout) == (0, "Plugin out-x is enabled.\nPlugin zoo_timm is enabled.\n")
    assert user.zoo("plugins", "enable", "out-x").stdout == "Plugin out-x is enabled already.\n"
    assert user.plugins()["out-x"]["status"] == "ok"


def test_disabling_is_all_or_nothing_and_names_the_nearest(user: User):
    for command in ("disable", "enable"):
        done = user.zoo("plugins", command, "zoo_timm", "zoo_sln")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: No plugin named 'zoo_sln'. Did you mean 'zoo_slm'?")
    done = user.zoo("plugins", "disable", "zoo_timm", "zoo")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "error: Plugin zoo cannot be disabled: the catalogue and the commands of zoo itself come with it.\n"
    )
    assert {plugin["status"] for plugin in user.plugins().values()} == {"ok"}


def test_one_that_is_gone_can_be_enabled(user: User):
    user.unpack("out-x")
    assert user.zoo("plugins", "disable", "out-x").returncode == 0
    assert user.run("-m", "pip", "uninstall", "-y", "out-x").returncode == 0
    done = user.zoo("plugins", "enable", "out-x")
    assert (done.returncode, done.stdout) == (0, "Plugin out-x is not installed; it no longer counts as disabled.\n")
    assert user.zoo("plugins", "enable", "out-x").returncode == 2


def test_disabling_has_no_meaning_beside_zoo_plugins(user: User):
    for command in ("enable", "disable"):
        done = user.zoo("plugins", command, "zoo_slm", ZOO_PLUGINS="zoo_slm")
        assert done.returncode == 1 and "ZOO_PLUGINS says which plugins are used" in done.stderr and not done.stdout


# --- the shell --------------------------------------------------------------------------------------------------------


def test_completion_knows_what_each_command_takes(user: User):
    user.unpack("out-x")
    user.unpack("out-y")
    assert user.zoo("plugins", "disable", "out-y").returncode == 0

    def complete(words: str) -> list[str]:
        return user.run(
            "-m", "zoo", _ZOO_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" "))
        ).stdout.split()

    assert complete("zoo plugins unin") == ["uninstall"]
    assert complete("zoo plugins info out") == ["out-x", "out-y"]
    assert complete("zoo plugins uninstall ") == ["out-x", "out-y"]
    assert complete("zoo plugins enable ") == ["out-y"]
    assert complete("zoo plugins disable out") == ["out-x"]
    assert "zoo" not in complete("zoo plugins disable ")
    assert "--reinstall" in complete("zoo plugins install --re")


@pytest.mark.parametrize("command", ["list", "info", "install", "uninstall", "enable", "disable"])
def test_help_shows_an_example(user: User, command: str):
    done = user.zoo("plugins", command, "--help", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: zoo plugins {command} " in done.stdout and re.search(
        rf"^    zoo plugins {command}\b", done.stdout, re.MULTILINE
    )
    assert "--quiet" in done.stdout


def test_the_group_lists_its_commands_in_full_and_imports_none(user: User):
    done = user.zoo("plugins", "--help", COLUMNS="80")
    listed = done.stdout.partition("Commands:")[2]
    assert re.findall(r"^  (\w+) ", listed, re.MULTILINE) == [
        "list",
        "info",
        "install",
        "uninstall",
        "enable",
        "disable",
        "new",
        "check",
    ]
    assert "..." not in listed
    code = (
        "import sys; from zoo.cli import main; main(sys.argv[1:]); "
        "print([m for m in ('zoo.cli.plugins.install', 'zoo.cli.plugins.new', 'zoo.cli.plugins.check', 'packaging', 'torch') if m in sys.modules])"
    )
    for words in (
        ["plugins"],
        ["plugins", "--help"],
        ["plugins", "info", "zoo_slm"],
        ["plugins", "disable", "nothing"],
    ):
        assert user.run("-c", code, *words).stdout.splitlines()[-1] == "[]"


# --- pip's words ------------------------------------------------------------------------------------------------------

BUILD = """
Processing ./out-x
  error: subprocess-exited-with-error

  × Preparing metadata (pyproject.toml) did not run successfully.
  │ exit code: 1
  ╰─> [3 lines of output]
      Traceback (most recent call last):
      ValueError: Unable to determine which files to ship
      [end of output]

  note: This error originates from a subprocess, and is likely not a problem with pip.
error: metadata-generation-failed

× Encountered error while generating package metadata.
╰─> See above for output.
"""


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            BUILD,
            "Preparing metadata (pyproject.toml) did not run successfully: ValueError: Unable to determine which files to ship",
        ),
        (
            "ERROR: Exception:\nTraceback\n  File x\nModuleNotFoundError: No module named 'nope'\n",
            "ModuleNotFoundError: No module named 'nope'",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
            "Could not install packages due to an OSError: [Errno 28] No space left on device",
        ),
        ("", "it said nothing"),
    ],
)
def test_the_reason_in_pips_words(said: str, sentence: str):
    assert reason(said) == f"{sentence} (-v shows all that pip says)."
