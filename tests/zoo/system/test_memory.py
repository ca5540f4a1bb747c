"""Memory: what freed memory the system gets back, what bounds a process, and a run that is refused before it begins."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stress.memory import STAGES, figures_of
from tiny import RECIPE, checkpoint, workplace
from zoo_compress import Recipe, plan
from zoo_compress.recipe.needs import Need, needs, shortage
from zygote import Zygote

from zoo.system.memory import Limit, give_back, limits, peak_bytes, reset_peak, resident_bytes

MB = 2**20


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as started:
        yield started


@pytest.mark.quick
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is reset by Linux alone")
def test_a_new_peak_holds_nothing_of_what_was_freed():
    reset_peak()
    before = peak_bytes()
    held = [torch.ones(5000) for _ in range(10_000)]  # 200 MB in pieces that the allocator keeps when they are freed
    kept = held[::100]
    assert peak_bytes() - before > 150 * MB
    del held
    reset_peak()
    assert peak_bytes() - before < 40 * MB and len(kept) == 100
    give_back()
    assert abs(peak_bytes() - resident_bytes()) < 20 * MB


# --- limits -----------------------------------------------------------------------------------------------------------


def system(place: Path, *, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    """A /proc whose mounts lie in `place`."""
    (place / "proc/self").mkdir(parents=True)
    (place / "proc/self/cgroup").write_text(groups)
    (place / "proc/self/mountinfo").write_text("".join(f"{line.replace('/SYS', str(place))}\n" for line in mounts))
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place / "proc"


def found(proc: Path) -> dict[str, int]:
    return {limit.source: limit.left for limit in limits(proc=proc) if "cgroup" in limit.source}


def test_cgroups_of_version_2_bound_by_the_group_and_all_around_it(tmp_path: Path):
    proc = system(
        tmp_path,
        groups="0::/work/job\n",
        mounts=["30 24 0:26 / /SYS/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw"],
        files={
            "cgroup/work/job/memory.max": "max\n",
            "cgroup/work/job/memory.current": "5\n",
            "cgroup/work/job/memory.stat": "anon 5\n",
            "cgroup/work/memory.max": f"{1000 * MB}\n",
            "cgroup/work/memory.current": f"{900 * MB}\n",
            "cgroup/work/memory.stat": f"anon 1\ninactive_file {300 * MB}\nactive_file 7\n",
        },
    )
    assert found(proc) == {"the limit of cgroup /work": 400 * MB}  # the page cache that is not in use makes room


def test_cgroups_of_version_1_and_a_group_that_is_mounted_as_the_root(tmp_path: Path):
    """In a container, /proc/self/cgroup names the group on the host, and that very group is mounted."""
    proc = system(
        tmp_path,
        groups="5:devices:/docker/abc\n4:cpu,memory:/docker/abc\n0::/\n",
        mounts=[
            "31 25 0:27 /docker/abc /SYS/memory ro - cgroup cgroup rw,memory",
            "32 25 0:28 / /SYS/unified ro - cgroup2 none rw",
        ],
        files={
            "memory/memory.limit_in_bytes": f"{512 * MB}\n",
            "memory/memory.usage_in_bytes": f"{112 * MB}\n",
            "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {12 * MB}\n",
        },
    )
    assert found(proc) == {"the limit of cgroup /": 412 * MB}


def test_no_limit_is_none(tmp_path: Path):
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": "1\n",
        "memory/memory.stat": "",
    }
    proc = system(
        tmp_path, groups="4:memory:/\n", mounts=["31 25 0:27 / /SYS/memory ro - cgroup cgroup rw,memory"], files=files
    )
    assert found(proc) == {}
    assert "free memory" in [limit.source for limit in limits(proc=tmp_path / "nowhere")]


def test_a_shortage_names_what_lacks_most_and_what_would_help():
    now = resident_bytes()
    wanted = [
        Need("stage 1 (inherit)", now + 300 * MB, "a"),
        Need("stage 2 (distill)", now + 900 * MB, "lower its batch or length"),
        Need("measuring speed", now, "write speed = false", beside=950 * MB),
    ]
    assert shortage(wanted, bounds=[Limit("free memory", 1000 * MB, shared=True)]) == ""
    said = shortage(wanted, bounds=[Limit("RLIMIT_AS (ulimit -v)", 500 * MB)])
    assert said.startswith("stage 2 (distill) needs about ") and "RLIMIT_AS (ulimit -v) leaves" in said
    assert said.endswith(" for this run: lower its batch or length, or pass ignore_memory=True to try.")
    assert shortage(wanted, bounds=[Limit("the limit of cgroup /", 500 * MB, shared=True)]).startswith(
        "measuring speed needs"
    )


# --- plans and runs ---------------------------------------------------------------------------------------------------


def test_a_plan_counts_every_part_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    workplace(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    found = plan(Recipe.load(tmp_path / "recipe.toml", overrides=["evaluate.control=true", "evaluate.speed=true"]))
    named = {need.what: need.bytes for need in needs(found)}
    assert list(named) == [
        "loading model",
        "stage 1 (inherit)",
        "stage 2 (prune.structured)",
        "stage 3 (distill)",
        "stage 4 (quantize.int8)",
        "the control",
        "measuring speed in a process of its own",
    ]
    assert named["stage 3 (distill)"] > named["the control"] > named["loading model"] > found.base_bytes
    assert len(list(needs(found, done={"control", "stage 3 (distill)"}))) == 5
    assert found.to_json()["memory"]["needed_bytes"] == named["stage 3 (distill)"] and not found.shortage


def bounded(more: int) -> str:
    """Code that lets a process take so many bytes beyond what it has."""
    return (
        "import re, resource\n"
        "size = int(re.search(r'VmSize:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (size + {more}, size + {more}))\n"
    )


@pytest.mark.skipif(
    not hasattr(resource, "RLIMIT_AS") or not sys.platform.startswith("linux"), reason="needs RLIMIT_AS and /proc"
)
def test_a_run_under_a_limit_below_the_plan_is_refused_before_it_begins(zygote: Zygote, tmp_path: Path):
    workplace(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    large = ("--set", "stage.3.batch=6000")
    done = zygote.run("compress", "recipe.toml", *large, cwd=tmp_path, setup=bounded(900 * MB))
    assert done.code == 2, done.err
    assert done.err.splitlines()[-1].startswith("error: Stage 3 (distill) needs about ")
    assert "of memory, and RLIMIT_AS (ulimit -v) leaves " in done.err and "lower its batch or length" in done.err
    assert not (tmp_path / "runs").exists()
    done = zygote.run("compress", "recipe.toml", "--ignore-memory", cwd=tmp_path, setup=bounded(300 * MB))
    assert done.code == 2 and done.err.startswith("error: RLIMIT_AS (ulimit -v) leaves this process ")
    done = zygote.run("compress", "recipe.toml", "--ignore-memory", *large, cwd=tmp_path, setup=bounded(900 * MB))
    assert (done.code, done.err.splitlines()[-1]) == (
        1,
        "error: memory ran out; what was being written is as it was before. `zoo plan` says how much a recipe needs.",
    )


def test_predictions_fit_what_was_measured(zygote: Zygote, tmp_path: Path):
    """The small twin of tests/stress/memory.py: a checkpoint of 6 million parameters, one of its recipes."""
    checkpoint(
        tmp_path / "model",
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
    )
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.py").write_text("def f(a, b):\n    return a + b\n" * 3000)
    head = '[recipe]\nname = "x"\n[model]\nname = "./model"\n[data]\ntrain = "texts"\ncalibration = "texts"\n[evaluate]\ntasks = []\nspeed = false\n'
    (tmp_path / "recipe.toml").write_text(head + STAGES["large-distill"])
    done = zygote.run("compress", "recipe.toml", "--json", "--set", "stage.2.steps=2", cwd=tmp_path)
    assert done.code == 0, done.err
    figures = list(figures_of("large-distill", json.loads(done.out)))
    assert [figure.stage for figure in figures] == ["inherit", "distill", "quantize.nf4"]
    assert all(figure.fits for figure in figures), [(figure.stage, round(figure.ratio, 2)) for figure in figures]
