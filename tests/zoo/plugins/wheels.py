"""Distributions as anybody's: wheels that pip installs into a fresh environment, and the environment."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

# What the fresh environment sees: zoo and its plugins, and the heavy packages already installed.
SEEN = ("zoo", "zoo_compress", "zoo_slm", "torch")


@dataclass
class Distribution:
    """What goes into a wheel; `name` is the plugin's too, unless `entries` say otherwise."""

    name: str
    files: dict[str, str | bytes] = field(default_factory=dict)  # path in site-packages -> what it holds
    entries: dict[str, dict[str, str]] = field(default_factory=dict)  # group -> name -> value
    version: str = "1.0"

    @property
    def package(self) -> str:
        """The import name, and what pip calls the distribution in file names."""
        return self.name.replace("-", "_")

    @property
    def info(self) -> str:
        """The directory of its metadata."""
        return f"{self.package}-{self.version}.dist-info"

    def write(self, folder: Path) -> Path:
        """Write the wheel into a folder, by hand: a zip of the files, the metadata and the hashes of both."""
        entries = "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in found.items())
            for group, found in self.entries.items()
        )
        files = self.files | {
            f"{self.info}/METADATA": f"Metadata-Version: 2.1\nName: {self.name}\nVersion: {self.version}\n",
            f"{self.info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{self.info}/entry_points.txt": entries,
        }
        record = ""
        path = folder / f"{self.package}-{self.version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                wheel.writestr(name, data)
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                record += f"{name},sha256={digest},{len(data)}\n"
            wheel.writestr(f"{self.info}/RECORD", f"{record}{self.info}/RECORD,,\n")
        return path


class Environment:
    """A fresh virtual environment that sees zoo and the heavy packages, and has nothing else installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "env", with_pip=False, symlinks=True)
        self.python = folder / "env" / "bin" / "python"
        self.site = next((folder / "env" / "lib").glob("python3*")) / "site-packages"
        self.marks = folder / "marks"  # what is imported of a plugin made by `marking` leaves a file here
        self.marks.mkdir()
        places = dict.fromkeys(str(Path(find_spec(name).origin).parents[1]) for name in SEEN)
        (self.site / "seen.pth").write_text("\n".join(places) + "\n")

    def install(self, *distributions: Distribution) -> None:
        """Install the distributions with pip, from wheels, without network."""
        wheels = self.folder / "wheels"
        wheels.mkdir(exist_ok=True)
        paths = [str(distribution.write(wheels)) for distribution in distributions]
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
        ]
        done = subprocess.run(
            [*pip, *paths], capture_output=True, text=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        )
        assert done.returncode == 0, done.stderr

    def variables(self, **more: str) -> dict[str, str]:
        """The environment variables of a process in here: nothing of the developer's own settings."""
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("ZOO_", "PYTHON", "VIRTUAL_ENV"))
        }
        own = {
            "ZOO_CONFIG_DIR": str(self.folder / "config"),
            "MARKS": str(self.marks),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        return inherited | own | more

    def run(self, *args: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `python ARGS` in a fresh process, away from the checkout."""
        return subprocess.run(
            [str(self.python), *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.folder,
            env=self.variables(**env),
        )

    def zoo(self, *args: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `zoo ARGS` in a fresh process."""
        return self.run("-m", "zoo", *args, timeout=timeout, **env)

    def imported(self) -> set[str]:
        """The marked packages of which something was imported since the last question."""
        found = {path.name for path in self.marks.iterdir()}
        for path in self.marks.iterdir():
            path.unlink()
        return found


def marking(package: str) -> str:
    """The code of a module that leaves a file when it is imported."""
    return f"import os, pathlib\npathlib.Path(os.environ['MARKS'], {package!r}).touch()\n"
