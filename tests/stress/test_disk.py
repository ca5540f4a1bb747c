"""Full disks, small: a limit on the size of files anywhere, a tmpfs where one may be mounted; `disk.py` walks through all writes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from disk import OFTEN
from kills import checkpoints, content, drafts
from tiny import workplace
from zygote import Zygote

from zoo.artifact import store

# No file may grow beyond a size; what is said goes to a pipe, which may.
LIMIT = (
    OFTEN
    + """
import os, resource, sys
sys.stderr = open("said", "w", buffering=1)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
"""
)

# In mounts of its own: save with too little room again and again.
SAVES = """
import ctypes, json, os, sys
from pathlib import Path
sys.path[:0] = {path!r}
if ctypes.CDLL(None, use_errno=True).unshare(0x00020000):
    print(json.dumps("no mounts here: " + os.strerror(ctypes.get_errno())), flush=True)
    os._exit(0)
import subprocess
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
from disk import Disk, Report, saves
report = Report()
saves({model!r}, Disk(Path({place!r})), report, most=24)
print(json.dumps([report.tried, report.wrong]), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workplace(tmp_path_factory.mktemp("disk")).parent


def test_where_a_file_cannot_grow_a_run_ends_with_one_sentence_and_goes_on_later(zygote: Zygote, place: Path):
    """RLIMIT_FSIZE is what every Unix has: a write beyond it fails like one on a full disk."""
    out = place / "out"
    os.mkfifo(place / "said")
    named = set()
    for size in (0, 200, 4_000, 150_000):
        with ThreadPoolExecutor() as pool:
            reader = pool.submit((place / "said").read_text)
            done = zygote.run(
                "compress", "recipe.toml", "--out", "out", "--quiet", cwd=place, setup=LIMIT.format(size=size)
            )
            said = reader.result()
        assert done.code == 2 and said.startswith("error: ") and "File too large" in said and said.count("\n") == 1, (
            said
        )
        assert said.endswith("What is finished is kept in out: the same command goes on from there.\n") or size == 0
        named.add(said.split()[1].rpartition("/")[2])
        assert not drafts(out) and all(not store.verify(folder) for folder in out.glob("stages/*/"))
    assert len(named) == 3, named  # run.json, which holds the plan, twice
    assert "training.safetensors" in named and not checkpoints(out)
    assert zygote.run("compress", "recipe.toml", "--out", "out", cwd=place).code == 0
    assert zygote.run("compress", "recipe.toml", "--out", "alone", cwd=place).code == 0
    assert content(out) == content(place / "alone")
    shutil.rmtree(out)


def test_saving_on_a_full_disk_leaves_the_older_artifact_whole(zygote: Zygote, place: Path):
    code = SAVES.format(
        path=[str(Path(__file__).parent), *sys.path], model=str(place / "model"), place=str(place / "tmpfs")
    )
    done = zygote.run(cwd=place, setup=code)
    assert done.code == 0, done.err
    if isinstance(done.json, str):
        pytest.skip(done.json)
    tried, wrong = done.json
    assert not wrong and sum(tried.values()) >= 20, json.dumps(wrong, indent=1)
