"""Third-party plugins, written as pip would install them: a package, its metadata, and its entry points."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MODEL = """
[[model]]
name = "{name}"
family = "llama"
modality = "text"
task = "causal-lm"
license = "MIT"
params = {params}
summary = "Made up for a test"
"""


def install(
    site: Path,
    name: str,
    *,
    registry: str | None = "",
    code: str | None = None,
    distribution: str = "",
    catalog: str = "",
    api: str | None = ">=1,<2",
) -> Path:
    """Install a plugin into the folder `site` and return its package's directory.

    Args:
        registry: the text of its registry.toml, after the line with `api`; None leaves the file out.
        code: the text of its pluggy module; None leaves the module and its entry point out.
        catalog: the value of its `zoo.catalog` entry point; default: the package.
        api: the plugin API versions it is made for; None leaves the line out.
    """
    package = site / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f'raise RuntimeError("{name} was imported")\n' if code is None else "")
    if registry is not None:
        made_for = f'api = "{api}"\n' if api is not None else ""
        (package / "registry.toml").write_text(made_for + registry)
    entries = f"[zoo.catalog]\n{name} = {catalog or name}\n"
    if code is not None:
        (package / "plugin.py").write_text(code)
        entries += f"[zoo]\n{name} = {name}.plugin\n"
    distribution = distribution or name.replace("_", "-")
    metadata = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entries)
    return package


def zoo(*args: str, site: Path | None = None, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run `zoo` in a fresh process, with the plugins in `site` installed."""
    return python("-m", "zoo", *args, site=site, stdin=stdin, **env)


def python(*args: str, site: Path | None = None, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a fresh process, away from the checkout, with the plugins in `site` installed."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ZOO_", "PYTHONPATH"))}
    path = {"PYTHONPATH": str(site)} if site else {}
    return subprocess.run(
        [sys.executable, *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=site,
        env={**inherited, **path, **env},
    )
