"""The packages in examples/third_party/ as their users meet them: built, installed, used, uninstalled, installed again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[2] / "examples" / "third_party"
NAMES = ("zoo-example", "zoo-example-catalogue", "zoo-wanda", "zoo-gptq")
# recipe.toml as it stands, at toy size
TOY = [
    "data.train=pydoc:train[:6]",
    "data.test=pydoc:test[:1]",
    "stage.2.steps=3",
    "stage.2.batch=2",
    "stage.2.length=64",
    "evaluate.speed=false",
]

OUTPUTS = "import json, sys, zoo; from zoo.testing import outputs; print(json.dumps(outputs(zoo.load(sys.argv[1])), sort_keys=True))"
NEEDS = "needs plugin zoo-example"
OFFLINE = """
import zoo
print(*(zoo.load(name, device="meta").params for name in ("team-smollm2-135m", "team-qwen2.5-0.5b-instruct")))
zoo.load("team-smollm2-135m")
"""

Done = subprocess.CompletedProcess[str]


class User:
    """A fresh environment that sees what is installed here: zoo and the heavy packages, but no plugin of an outsider."""

    def __init__(self, home: Path) -> None:
        self.home = home
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "env"], check=True)
        self.python = home / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
        site = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        here = sysconfig.get_path("purelib")  # as a site folder, since an editable install is a .pth file in it
        (Path(site) / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")

    def run(self, *args: str | Path, cwd: Path | None = None, code: int = 0) -> Done:
        """Run Python there, away from the checkout, and expect an exit code."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("ZOO_", "PYTHON"))}
        env = {**plain, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "XDG_CONFIG_HOME": str(self.home / "config")}
        done = subprocess.run(
            [self.python, *args], capture_output=True, text=True, timeout=600, cwd=cwd or self.home, env=env
        )
        assert done.returncode == code, (
            f"{args}: exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done

    def zoo(self, *args: str | Path, code: int = 0) -> Done:
        return self.run("-m", "zoo", *args, code=code)

    def install(self, name: str, wheels: Path) -> Done:
        return self.zoo("plugins", "install", "--yes", next(wheels.glob(f"{name.replace('-', '_')}-0*.whl")))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All packages, built as their authors would."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in NAMES:
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, PACKAGES / name]
        subprocess.run(build, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def user(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> User:
    """A user who installed all."""
    user = User(tmp_path_factory.mktemp("user"))
    for name in NAMES:
        user.install(name, wheels)
    return user


@pytest.fixture(scope="module")
def made(user: User) -> Path:
    """What recipe.toml made, at toy size."""
    out = user.home / "small"
    changes = [part for change in TOY for part in ("--set", change)]
    user.zoo("compress", PACKAGES / "zoo-example" / "recipe.toml", *changes, "--out", out)
    return out


def test_the_wheels_hold_what_a_plugin_needs(user: User):
    found = {plugin["name"]: plugin for plugin in json.loads(user.zoo("plugins", "--json").stdout)}
    assert {found[name]["fault"] for name in NAMES} == {None}
    everything = {
        "model": ["tiny-mingru"],
        "option": [],
        "family": ["mingru"],
        "compressor": ["palette.kmeans"],
        "loss": ["reverse-kl"],
        "evaluator": ["top-k-accuracy"],
        "data": ["pydoc"],
        "command": ["spectrum"],
    }
    assert found["zoo-example"]["declares"] == everything
    assert found["zoo-example-catalogue"]["module"] is None


def test_the_recipe_uses_every_part(made: Path):
    results = json.loads((made / "results.json").read_text())
    assert results["model"]["name"] == "tiny-mingru" and results["model"]["family"] == "mingru"
    assert [stage["use"] for stage in results["stages"]] == ["original", "inherit", "distill", "palette.kmeans"]
    for stage in results["stages"]:
        assert (stage["params"], stage["bytes"]) == (stage["predicted"]["params"], stage["predicted"]["bytes"])
        assert 0 < stage["metrics"]["top_5_accuracy"]["low"] < stage["metrics"]["top_5_accuracy"]["value"] < 100
    assert (
        results["stages"][2]["options"]["loss"] == [{"use": "reverse-kl"}]
        and len(results["stages"][2]["curves"]["reverse-kl"]) == 3
    )
    manifest = json.loads((made / "zoo.json").read_text())
    assert manifest["notes"]["Held-out data"]["reference"] == "pydoc:test[:1]"
    assert manifest["spec"]["plugin"] == manifest["lineage"][-1]["plugin"] == "zoo-example"


def test_the_command_shows_the_spectrum_of_what_was_made(user: User, made: Path):
    rows = json.loads(user.zoo("spectrum", made, "--json").stdout)
    assert len(rows) == 6 * 2 and all(1 < row["effective_rank"] <= min(row["inputs"], row["outputs"]) for row in rows)


@pytest.mark.parametrize("name", ["zoo-example", "zoo-wanda", "zoo-gptq"])
def test_its_own_tests_pass(user: User, name: str):
    # files by name: without zoo's contract tests
    tests = sorted((PACKAGES / name / "tests").glob("test_*.py"))
    done = user.run("-m", "pytest", "-p", "no:cacheprovider", *tests, cwd=PACKAGES / name)
    assert " passed" in done.stdout


def test_without_the_plugin_its_models_say_what_they_need_and_with_it_are_as_before(
    user: User, made: Path, wheels: Path
):
    before = user.run("-c", OUTPUTS, made).stdout
    user.zoo("plugins", "uninstall", "--yes", "zoo-example")
    try:
        assert "zoo-example" in user.zoo("info", made).stdout
        assert "every file is as saved" in user.zoo("verify", made).stdout
        refusals = [
            user.zoo("run", made, "--prompt", "The", code=1),
            user.zoo("inspect", made, code=1),
            user.run("-c", OUTPUTS, made, code=1),
        ]
        assert [NEEDS in refusal.stderr for refusal in refusals] == [True] * 3
        assert "No model named 'tiny-mingru'" in user.zoo("info", "tiny-mingru", code=2).stderr
    finally:
        user.install("zoo-example", wheels)
    assert user.run("-c", OUTPUTS, made).stdout == before


def test_a_catalogue_adds_models_without_code(user: User):
    shown = json.loads(user.zoo("info", "team-qwen2.5-0.5b-instruct", "--json").stdout)
    assert (shown["family"], shown["hub"], shown["params"]) == (
        "transformers",
        "Qwen/Qwen2.5-0.5B-Instruct",
        494_032_768,
    )
    done = user.run("-c", OFFLINE, code=1)
    assert done.stdout.split() == ["134515008", "494032768"]
    assert (
        "WeightsUnavailable: team-smollm2-135m: HuggingFaceTB/SmolLM2-135M is not in the local hub cache" in done.stderr
    )
