"""What configs and modules call each size stands in `zoo/anatomy/names.py`, and is written out nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers

from zoo.anatomy import names
from zoo.family.text.shape import cache_of, shape_of

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[3]
SIZES = {size: called for size, called in vars(names).items() if isinstance(called, names.Names)}


def lists_of_names(source: str) -> Iterator[tuple[int, str, list[str]]]:
    """Where a tuple, list or set, or the keys of a dict, have two or more names of one size: the line, the size, the names.

    One name alone is a question about one kind of config, and names of several sizes, one of each, are a config. A dict whose
    values are numbers or expressions is a config too, made for a class.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            words = {entry.value for entry in node.elts if isinstance(entry, ast.Constant)}
            for size, called in SIZES.items():
                for side in (called.configs, called.modules):
                    if len(both := sorted(words & {*side})) > 1:
                        yield node.lineno, size, both


@pytest.mark.parametrize(
    "line", ['A = ("n_head", "num_heads")', 'x = [getattr(c, n) for n in ["hidden_size", "n_embd", "other"]]']
)
def test_the_search_finds_what_it_is_for(line: str):
    assert [*lists_of_names(line)]


@pytest.mark.parametrize(
    "line", ['A = ("hidden_size", "vocab_size")', 'A = ("num_layers",)', 'x = {"n_head": 4, "num_heads": 4}']
)
def test_the_search_lets_single_names_and_configs_be(line: str):
    assert not [*lists_of_names(line)]


def test_no_other_file_lists_the_names_of_a_size():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {size}: {', '.join(both)}"
        for room in ("zoo", "compress", "plugins")
        for path in sorted((ROOT / room).rglob("*.py"))
        if path != ROOT / "zoo/anatomy/names.py"
        for line, size, both in lists_of_names(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_names_are_of_one_size_in_a_config_and_nothing_is_imported_for_them():
    assert len(SIZES) > 15
    of_configs = [name for called in SIZES.values() for name in called.configs]
    assert len(of_configs) == len(set(of_configs))
    tree = ast.parse(Path(names.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "typing"} and not [n for n in ast.walk(tree) if isinstance(n, ast.Import)]


def test_the_usual_name_is_the_first_and_reaches_every_config():
    """What transformers maps to the usual name is among the names of that size, the encoder's and decoder's own aside."""
    kinds = {
        "num_attention_heads": ("HEADS", "SIDES_HEADS"),
        "hidden_size": ("WIDTH",),
        "num_hidden_layers": ("LAYERS",),
    }
    kinds["num_hidden_layers"] += ("ENCODER_LAYERS", "DECODER_LAYERS")
    for usual, sizes in kinds.items():
        assert SIZES[sizes[0]].configs[0] == usual
        known = {name for size in sizes for name in SIZES[size].configs}
        mapped = {getattr(kind, "attribute_map", {}).get(usual, usual) for kind in text_configs()}
        assert mapped <= known, mapped - known


def text_configs() -> Iterator[type]:
    mapping = transformers.models.auto.modeling_auto
    for table in (mapping.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, mapping.MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        yield from (transformers.CONFIG_MAPPING[kind] for kind in table if kind in transformers.CONFIG_MAPPING)


def test_falcons_key_heads_are_those_of_its_decoder():
    """Falcon 7B shares one key among all queries; of 40B's later decoder every group has one, whatever `multi_query` says."""
    sizes = {"hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128, "multi_query": True}
    later = {**sizes, "num_kv_heads": 8, "new_decoder_architecture": True}
    for config, heads in (({**sizes, "num_kv_heads": 128}, 1), (sizes, 1), (later, 8)):
        assert shape_of(config)["kv_heads"] == heads
        assert cache_of(config, dtype="bfloat16").per_token == 2 * heads * 64 * 2 * 60


def test_sizes_are_read_under_every_name_that_any_part_of_zoo_knew():
    distilbert = transformers.DistilBertConfig().to_dict()
    assert shape_of(distilbert)["ffn"] == distilbert["hidden_dim"] == 3072
    assert shape_of({"hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 100})["ffn"] == 100
    assert shape_of(transformers.CpmAntConfig().to_dict())["head_dim"] == 128
