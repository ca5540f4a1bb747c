"""Architectures that no model of the catalogue has: a directory of anybody's loads, and every compressor takes part."""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import CASES, OPTIONS, REFUSED, TWINS, base
from twins import TABLE

import zoo

pytestmark = pytest.mark.quick


def test_directories_beyond_the_catalogue_load_and_take_part_with_every_compressor(tmp_path: Path) -> None:
    """The cases themselves are run by test_contract.py: exact estimate, and the same bits in a fresh process."""
    known = {spec.config.get("model_type") for spec in zoo.models()}
    beyond = []
    for name in TWINS:
        model = base(name, tmp_path)
        if model.module.config.model_type in known:
            continue
        beyond.append(name)
        assert Path(model.origin) == tmp_path / name and type(model.module).__name__ == TABLE[name][1]
        stack = model.anatomy.stack("language")
        assert len(stack.blocks) == 4 and all(block.attention and block.ffn for block in stack.blocks)
        applied = [use for use in OPTIONS if f"{name}: {use}" in CASES]
        assert applied and all((name, use) in REFUSED for use in OPTIONS if use not in applied)
    assert sorted(beyond) == ["bert", "gpt-neox", "mixtral", "opt", "qwen3"]
    assert all(any(f"{name}: {use}" in CASES for name in beyond) for use in OPTIONS if use != "vocabulary.bpe")
