"""What a walk is said to take is what it takes, or a little more."""

from __future__ import annotations

from pathlib import Path

import pytest
from stages import data, small
from test_blocks import layers
from zoo_compress.calibrate.blocks import Walk
from zoo_compress.calibrate.footprint import disk_bytes, memory_bytes
from zoo_compress.calibrate.watch import CalibrationOptions, batches

from zoo.model.context import Context

pytestmark = pytest.mark.quick

OPTIONS = CalibrationOptions(samples=8, length=16, batch=2)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.suffix != ".json")


def test_disk_is_what_lies_there_at_most(tmp_path: Path) -> None:
    model = small("llama-tied", num_hidden_layers=4)
    context = Context(data={"calibration": data()}, checkpoint=tmp_path)
    foretold = disk_bytes(model.skeleton(), layers(model), OPTIONS, context)
    made = batches(model, OPTIONS, context, stage="test")
    most = 0
    for _ in Walk(model, layers(model), made, statistics=("gram",), context=context, stage="test"):
        most = max(most, folder_bytes(tmp_path))
    assert most <= foretold <= 1.6 * most


def test_memory_counts_the_sums_of_one_unit() -> None:
    model = small("llama-tied", num_hidden_layers=4)
    context = Context(data={"calibration": data()})
    few = memory_bytes(model.skeleton(), layers(model), ("squares",), OPTIONS, context)
    gram = memory_bytes(model.skeleton(), layers(model), ("gram",), OPTIONS, context)
    width, ffn = model.module.config.hidden_size, model.module.config.intermediate_size
    sums = 8 * (3 * width**2 + ffn**2), 8 * (3 * width + ffn)  # q with k and v, o, up with gate; down
    assert gram - few == 2 * (sums[0] - sums[1])
