"""Projects that `zoo plugins new` writes, really installed by pip; and one of them with everything wrong in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from zoo.cli.plugins.new import begins_with, modalities, new

KINDS = begins_with()
USUAL, *OTHERS = modalities()

HERE = Path(__file__).parent

# What registry.toml declares of the broken things: project -> kind -> names.
BROKEN = {
    "zoo-broken": {
        "compressor": (
            "fine",
            "lying",
            "drawing",
            "unseeded",
            "forgetting",
            "loud",
            "leaving",
            "silent",
            "bare",
            "late",
            "undocumented",
        ),
        "loss": ("detached", "astray", "mixing", "undefined", "averaged", "dicing"),
        "evaluator": ("measuring", "not-a-number", "outside", "guessing", "meddling", "choosy"),
        "data": ("empty", "anonymous", "unordered", "shuffling"),
        "command": ("wordless", "failing"),
    },
    "zoo-unsound": {
        "family": (
            "miscounted",
            "misplaced",
            "incomplete",
            "idling",
            "wavering",
            "unsteady",
            "infinite",
            "stirring",
            "counting",
            "hoarding",
            "wakeful",
        ),
    },
    "zoo-unread": {
        "family": ("mute", "cacheless", "peeking", "mingling", "hashed", "unmasked", "overlong", "aimless"),
        "compressor": ("dropping", "respelling"),
        "loss": ("gap",),
    },
    "zoo-careless": {
        "compressor": (
            "scaling",
            "sparing",
            "misleading",
            "reading",
            "remembering",
            "awaking",
            "freezing",
            "settling",
            "ungraded",
            "roaming",
            "patching",
            "overriding",
            "deaf",
            "negative",
            "hashing",
            "using",
        ),
        "loss": ("counting",),
        "evaluator": ("plain", "beyond", "below", "hundredfold", "hundredth", "rousing", "sorting"),
        "data": ("lines", "leaking", "blank", "wearing", "moving", "lazy"),
    },
    "zoo-heedless": {
        "family": ("nameless",),
        "compressor": ("halving", "exporting", "hushing", "muffling", "tuning", "hooking", "accruing", "marking"),
        "loss": ("weighing",),
        "evaluator": ("tallying", "lowering", "watching", "backwards"),
        "data": ("verses", "invisible", "pictureless", "unlabelled", "listing"),
    },
}
# Where the broken things of each are, and of which modality the family is that they vary.
SOURCE = {
    "zoo-broken": ("faulty.py", "vision"),
    "zoo-unsound": ("broken_families.py", "vision"),
    "zoo-unread": ("broken_languages.py", "text"),
    "zoo-careless": ("careless.py", "vision"),
    "zoo-heedless": ("heedless.py", "vision"),
}
HOOKS = {
    "compressor": "compressors",
    "loss": "losses",
    "evaluator": "evaluators",
    "data": "data",
    "command": "commands",
}
# of the models of the broken families; the others have as many as the family they vary
PARAMS = {"miscounted": 12_345, "idling": 81_118}


def written(folder: Path) -> list[Path]:
    """A project of each kind, `zoo-KIND-it`, and those in which everything is broken but for a family with its model."""
    places = []
    for kind in KINDS:
        places.append(folder / f"zoo-{kind}-it")
        new(places[-1].name, kind=[kind], out=places[-1])
    for modality in OTHERS:
        places.append(folder / f"zoo-{modality}-it")
        new(places[-1].name, kind=["family"], modality=modality, out=places[-1])
    for name, things in BROKEN.items():
        places.append(folder / name)
        new(name, kind=["family"], modality=SOURCE[name][1], out=places[-1])
        _break(places[-1], things)
    return places


def installed(projects: list[Path], site: Path) -> None:
    """Install projects with pip into a folder, without network and without the heavy packages, which are there."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--target",
        str(site),
    ]
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([*command, *map(str, projects)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr


def _break(project: Path, things: Mapping[str, tuple[str, ...]]) -> None:
    """Add broken things to a project with a family; of a broken family, also a model."""
    package = project / project.name.replace("-", "_")
    source, modality = SOURCE[project.name]
    (package / "broken.py").write_text((HERE / source).read_text())
    registry, plugin = [(package / "registry.toml").read_text()], [(package / "plugin.py").read_text()]
    stem = project.name.removeprefix("zoo-")
    model = registry[0].partition("[[model]]")[2]
    (params,) = re.findall(r"params = ([0-9_]+)", model)
    for kind, names in things.items():
        if kind != "family":
            plugin.append(f"@hookimpl\ndef register_{HOOKS[kind]}(register: Register) -> None:")
        for name in names:
            plugin.append(
                f'    register("{name}", "{package.name}.broken:{name if kind == "command" else name.title().replace("-", "")}")'
            )
            registry.append(f'[[{kind}]]\nname = "{name}"\nsummary = "Broken on purpose here"\n')
            if kind == "family":
                registry.append(
                    f'modality = "{modality}"\n[[model]]'
                    + model.replace(f'"{stem}-tiny"', f'"{name}-tiny"')
                    .replace(f'family = "{stem}"', f'family = "{name}"')
                    .replace(params, str(PARAMS.get(name, params)))
                )
    (package / "registry.toml").write_text("\n".join(registry))
    (package / "plugin.py").write_text("\n".join(plugin) + "\n")


def run(code: str, *args: str, site: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process that sees the installed projects, away from the checkout."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ZOO_", "PYTHONPATH"))}
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=site,
        env={**inherited, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", **env},
    )
