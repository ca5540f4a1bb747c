"""Weights kept in files: a model is the same one, and may be larger than the memory of its process."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import stages
import torch
from tiny import checkpoint
from torch import nn
from zoo_compress import apply
from zoo_compress.methods.quantize.formats.int4_layers import Int4Linear

import zoo
from zoo.errors import OutputError, RequestError
from zoo.model.context import Context
from zoo.tensors.offload import Offload, is_offloaded, let_go

OUT_OF_MEMORY = ("MemoryError", "RuntimeError")  # and no ArtifactError: nothing is wrong with what is read
IDS = {"input_ids": torch.arange(3, 15)[None]}


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


def assert_same(model: zoo.Model, plain: zoo.Model) -> None:
    mine, theirs = model.tensors(), plain.tensors()
    assert mine.keys() == theirs.keys() and model.aliases() == plain.aliases()
    assert all(is_offloaded(tensor) for tensor in mine.values())
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    with torch.no_grad():
        assert torch.equal(*(one.family.forward(one, IDS) for one in (model, plain)))


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_what_is_written_into_a_tensor_outlasts_its_pages(spool: Path, dtype: torch.dtype) -> None:
    values = torch.arange(70_000).remainder(200).to(dtype).view(70, 1000)
    tensor = Offload(spool).copy(values)
    let_go(tensor)
    assert is_offloaded(tensor) and torch.equal(tensor, values) and not list(spool.iterdir())
    tensor.mul_(0.5 if dtype.is_floating_point else 3)
    changed = tensor.clone()
    let_go(tensor)
    assert torch.equal(tensor, changed) and not torch.equal(changed, values)
    assert Offload(spool).copy(tensor) is tensor


@pytest.mark.quick
def test_what_is_shared_stays_shared_and_what_is_empty_stays_empty(spool: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(0, 3))
    module[1].weight = module[0].weight
    Offload(spool).take(module)
    assert module[1].weight is module[0].weight and is_offloaded(module[0].weight)
    assert module[2].weight.shape == (3, 0) and module[0].weight.requires_grad
    module[0](torch.ones(2, 4)).sum().backward()
    assert module[0].weight.grad is not None


@pytest.mark.quick
def test_without_room_it_says_so(spool: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    code = (
        "import signal, sys, pathlib, torch; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from zoo.tensors.offload import Offload\n"
        "try: Offload(pathlib.Path(sys.argv[1])).empty((1 << 21,), torch.uint8)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(spool)], capture_output=True, text=True, preexec_fn=limited)
    assert done.stdout.startswith(f"{OutputError.__name__} {spool} cannot be written: "), done.stderr
    assert not list(spool.iterdir())


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["llama-tied", "mixtral", "falcon", "bert"]
)  # mixtral's experts are stacked while read
def test_a_checkpoint_of_transformers_is_the_same(name: str, tmp_path: Path, spool: Path) -> None:
    folder = checkpoint(tmp_path / "plain", name)
    assert_same(zoo.load(folder, offload=spool), zoo.load(folder))
    half = zoo.load(folder, dtype="bfloat16", offload=spool)
    assert_same(half, zoo.load(folder, dtype="bfloat16"))
    half.save(tmp_path / "offloaded")
    zoo.load(folder, dtype="bfloat16").save(tmp_path / "saved")
    files = [json.loads((tmp_path / place / "zoo.json").read_text())["files"] for place in ("offloaded", "saved")]
    assert files[0]["model.safetensors"] == files[1]["model.safetensors"]


@pytest.mark.parametrize(("use", "options"), [("quantize.int4", {"group": 32}), ("prune.magnitude", {"sparsity": 0.5})])
def test_an_artifact_is_the_same_and_is_compressed_further_alike(
    use: str, options: dict[str, object], tmp_path: Path, spool: Path
) -> None:
    folder = checkpoint(tmp_path / "plain")
    models = [zoo.load(folder, offload=spool), zoo.load(folder)]
    for model in models:
        apply(model, use, options)
    models[1].save(tmp_path / "saved")
    for dtype in (None, "bfloat16"):
        assert_same(zoo.load(tmp_path / "saved", dtype=dtype, offload=spool), zoo.load(tmp_path / "saved", dtype=dtype))
    Offload(spool).take(models[0].module)
    assert_same(*models)


def test_a_walk_leaves_what_it_has_packed_in_files(tmp_path: Path, spool: Path) -> None:
    folder = checkpoint(tmp_path / "plain")
    models = [zoo.load(folder, offload=spool), zoo.load(folder)]
    for model in models:
        options = {"group": 32, "method": "awq+gptq", "embedding": True, "samples": 4, "length": 16}
        apply(model, "quantize.int4", options, Context(data={"calibration": stages.data()}))
    inside = {name: tensor for name, tensor in models[0].tensors().items() if ".layers." in name}
    assert any("weight_int4" in name for name in inside) and all(map(is_offloaded, inside.values()))
    Offload(spool).take(models[0].module)
    assert_same(*models)


def test_no_layout_of_a_kernel_is_left_in_memory_by_a_stage(tmp_path: Path, spool: Path) -> None:
    model = zoo.load(checkpoint(tmp_path / "plain"), offload=spool)
    apply(model, "quantize.int4", {"group": 32})
    layers = [part for part in model.module.modules() if hasattr(part, "_kernel")]
    assert layers and all(layer._kernel is None for layer in layers)


def test_memory_that_runs_out_in_the_trial_of_a_stage_is_no_fault_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.load(checkpoint(tmp_path / "plain"))
    ready = Int4Linear._made
    monkeypatch.setattr(Int4Linear, "_made", lambda layer: (torch.empty(1 << 50), ready(layer))[1])
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        apply(model, "quantize.int4", {"group": 32})


def test_models_of_other_kinds(spool: Path) -> None:
    for name in ("tiny-vlm", "tiny-t2i", "timm:resnet18"):
        weights = "random" if ":" in name else "auto"
        model, plain = zoo.load(name, weights=weights, offload=spool), zoo.load(name, weights=weights)
        for key, tensor in plain.tensors().items():
            assert torch.equal(model.tensors()[key], tensor) and (
                is_offloaded(model.tensors()[key]) or not tensor.numel()
            )
    assert not list(spool.iterdir())


@pytest.mark.quick
def test_what_it_does_not_go_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="offload goes with device 'cpu': weights on 'meta' are not kept in files"):
        zoo.load("tiny-code", device="meta", offload=tmp_path)
    with pytest.raises(RequestError, match=r"offload='.*nowhere' is no directory; name one on a local disk"):
        zoo.load("tiny-code", offload=tmp_path / "nowhere")
    with pytest.raises(RequestError, match="offload=True is no directory"):
        zoo.load("tiny-code", offload=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_model_larger_than_the_limit_of_memory_loads_runs_and_is_saved(
    dtype: str | None, tmp_path: Path, spool: Path
) -> None:
    """The large twin of this test is tests/stress/offload.py, which also compresses."""
    size = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 8}
    folder = checkpoint(tmp_path / "plain", "llama-tied", **size)
    code = (
        "import re, resource, sys, torch, zoo\n"
        "zoo.load(sys.argv[4])\n"  # imports and threads take what they take
        "held = int(re.search(r'VmData:\\s+(\\d+)', open('/proc/self/status').read())[1]) << 10\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[3]),) * 2)\n"
        "try:\n"
        "    model = zoo.load(sys.argv[1], offload=sys.argv[2] or None, dtype=sys.argv[5] or None)\n"
        "    with torch.no_grad(): model.family.forward(model, {'input_ids': torch.arange(3, 15)[None]})\n"
        "    if not sys.argv[5]:  # this small, a saved model is run, which takes its size\n"
        "        model.save(sys.argv[2] + '/saved'); zoo.load(sys.argv[2] + '/saved', offload=sys.argv[2])\n"
        "    print('done')\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    limit = (128 if dtype else 256) << 20  # of which the allocator leaves holes
    assert zoo.load(folder, device="meta", dtype=dtype).bytes > 1.3 * limit
    small = checkpoint(tmp_path / "small")
    runs = [(folder, str(spool), ("done",)), (folder, "", OUT_OF_MEMORY)]
    runs += [] if dtype else [(spool / "saved", "", OUT_OF_MEMORY)]
    for source, place, expected in runs:
        command = [sys.executable, "-c", code, str(source), place, str(limit), str(small), dtype or ""]
        done = subprocess.run(command, capture_output=True, text=True)
        said = done.stdout.strip()
        assert said in expected, (said, done.stderr)
