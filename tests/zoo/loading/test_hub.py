"""Weights from a hub: at the pinned revision, checked against the catalogue's hashes, nothing when offline, no telemetry."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub import COMMIT, REPOSITORY, Hub, serving
from outsiders import install, python
from twins import twin

import zoo

MODEL = f"""
[[model]]
name = "far"
family = "llama"
modality = "text"
task = "causal-lm"
license = "MIT"
params = 5
summary = "On a hub"
hub = "{REPOSITORY}"
revision = "{{revision}}"
sha256 = {{{{ "model.safetensors" = "{{sha256}}" }}}}
[model.config]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
vocab_size = 64
"""

# What zoo.load does first, without the seconds that torch takes.
RESOLVE = """
from zoo import ZooError, catalog
from zoo.loading import weights
try:
    print("fetched", weights.resolve(catalog.info("far")).name)
except ZooError as error:
    print(f"{type(error).__name__}: {error}")
"""

LOAD = """
import zoo
try:
    model = zoo.load("far")
except zoo.ZooError as error:
    print(f"{type(error).__name__}: {error}")
else:
    print(model.params, sum(float(p.sum()) for p in model.module.parameters()))
"""

# Before anything is imported: what reaches for the network ends the process.
CUT = """
import socket
def cut(*_, **__):
    import os, traceback
    traceback.print_stack()
    os._exit(99)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = cut
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with weights, a pickle and code beside them that nobody should fetch."""
    return published(tmp_path_factory.mktemp("repository"))


def published(folder: Path) -> Path:
    """The model that `MODEL` describes, and what lies beside it."""
    twin(
        "llama",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_far.py").write_text("raise SystemExit('ran')")
    return folder


@pytest.fixture
def hub(repository: Path) -> Iterator[Hub]:
    with serving(repository) as hub:
        yield hub


def site(folder: Path, repository: Path, *, revision: str = COMMIT, sha256: str = "") -> Path:
    found = sha256 or hashlib.sha256((repository / "model.safetensors").read_bytes()).hexdigest()
    install(folder / "site", "out_far", registry=MODEL.format(revision=revision, sha256=found))
    return folder / "site"


def load(site: Path, address: str, *, code: str = RESOLVE, **env: str) -> subprocess.CompletedProcess[str]:
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"), "")
    offline = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "0"}
    return python(
        "-c", code, site=site, HF_ENDPOINT=address, **{"HF_HOME": str(site / "hf"), **proxies, **offline, **env}
    )


def test_the_pinned_revision_is_fetched_checked_and_kept(hub: Hub, repository: Path, tmp_path: Path):
    place = site(tmp_path, repository)
    first = load(place, hub.address, code=LOAD)
    expected = zoo.load(repository)
    assert first.stdout.split()[0] == str(expected.params), first.stderr + first.stdout
    with torch.no_grad():
        assert float(first.stdout.split()[1]) == sum(float(p.sum()) for p in expected.module.parameters())
    assert not [path for _, path, _ in hub.asked if COMMIT not in path]
    fetched = {path.rpartition("/")[2] for _, path, _ in hub.asked if "/resolve/" in path}
    assert "model.safetensors" in fetched and not fetched & {"pytorch_model.bin", "modeling_far.py"}
    asked = len(hub.asked)
    offline = load(place, hub.address, code=CUT + LOAD, HF_HUB_OFFLINE="1")  # from the cache, and no socket is opened
    assert offline.stdout == first.stdout, offline.stderr
    again = load(place, hub.address, code=CUT + RESOLVE)  # online: what is pinned and cached needs no question either
    assert again.stdout == f"fetched {COMMIT}\n", again.stderr
    assert len(hub.asked) == asked


def test_no_request_says_more_than_what_is_asked_for(hub: Hub, repository: Path, tmp_path: Path):
    assert load(site(tmp_path, repository), hub.address).returncode == 0
    agents = {agent for _, _, agent in hub.asked}
    assert agents and all("torch/" not in agent and "agent/" not in agent for agent in agents), agents


def test_offline_and_not_cached_opens_no_socket(repository: Path, tmp_path: Path):
    done = load(site(tmp_path, repository), "http://127.0.0.1:9", code=CUT + RESOLVE, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"WeightsUnavailable: far: {REPOSITORY} is not in the local hub cache")


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_packaged_models_need_no_network_at_all(tmp_path: Path):
    """In a network namespace of its own, which has no way out."""
    probe = subprocess.run(["unshare", "-rn", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("no user namespaces here")
    command = [
        "unshare",
        "-rn",
        sys.executable,
        "-m",
        "zoo",
        "run",
        "tiny-code",
        "--prompt",
        "def f(",
        "--max-new-tokens",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_a_file_of_another_hash_is_refused_by_name(hub: Hub, repository: Path, tmp_path: Path):
    done = load(site(tmp_path, repository, sha256="0" * 64), hub.address)
    assert (
        done.stdout.startswith("ArtifactError: ")
        and "model.safetensors does not have the sha256 the catalogue gives for far" in done.stdout
    )


def test_a_revision_that_is_gone_is_one_sentence(hub: Hub, repository: Path, tmp_path: Path):
    done = load(site(tmp_path, repository, revision="f" * 40), hub.address)
    assert done.stdout.startswith("WeightsUnavailable: far: ") and done.stdout.count("\n") == 1 and not done.stderr, (
        done.stderr
    )


def test_an_interrupted_download_is_taken_up_again(hub: Hub, repository: Path, tmp_path: Path):
    place = site(tmp_path, repository)
    assert load(place, hub.address).returncode == 0
    for file in (place / "hf").rglob("model.safetensors"):
        file.unlink()
    done = load(place, hub.address)
    assert done.stdout == f"fetched {COMMIT}\n", done.stderr
