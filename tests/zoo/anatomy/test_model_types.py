"""What is asked of the name of a class or of a model type: exactly, and in tables. Parts are told by their structure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo.anatomy import model_types
from zoo.anatomy.linears import expert_tables
from zoo.anatomy.modules import looks_like_norm

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[3]
TYPES = frozenset({"model_type"})  # `config.model_type`, `config["model_type"]`, `config.get("model_type")`
NAMES = TYPES | {"__name__", "__qualname__", "_class_name"}  # `type(x).__name__`; what diffusers calls it
PIECES = ("startswith", "endswith", "find", "index", "count", "partition", "rpartition", "split", "rsplit")
SEARCHES = ("search", "match", "fullmatch", "findall")


def is_name(expression: ast.AST, named: set[str], words: frozenset[str]) -> bool:
    """Whether an expression is the name of a class or a model type, a list of such, or a variable that holds one."""
    match expression:
        case ast.Attribute(attr=word):
            return word in words
        case ast.Subscript(slice=ast.Constant(value=word)):
            return word in words - {"__name__"}  # of a dict, that is the name of a module
        case ast.Name(id=name):
            return name in named
        case ast.Call(func=ast.Attribute(attr="get" | "pop"), args=[ast.Constant(value=word), *_]):
            return word in words - {"__name__"}
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=word), *_]):
            return word in words
        case ast.Call(func=ast.Name(id="str" | "repr"), args=[value]) | ast.Call(func=ast.Attribute(value=value)):
            return is_name(value, named, words)
        case ast.BoolOp(values=values) | ast.List(elts=values) | ast.Tuple(elts=values):
            return any(is_name(value, named, words) for value in values)
    return False


def variables(function: ast.AST, words: frozenset[str]) -> set[str]:
    """The variables of a function that are given such a name, also one after another."""
    named = {"model_type"} if words == TYPES else {"model_type", "class_name"}  # parameters called so
    for _ in range(2):
        for node in ast.walk(function):
            pairs: list[tuple[ast.expr, ast.expr]] = []
            match node:
                case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                    pairs = list(zip(targets, values, strict=False))
                case ast.Assign(targets=targets, value=value):
                    pairs = [(target, value) for target in targets]
                case (
                    ast.AnnAssign(target=target, value=ast.expr() as value) | ast.NamedExpr(target=target, value=value)
                ):
                    pairs = [(target, value)]
                case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                    pairs = [(target, value)]
            named |= {
                target.id for target, value in pairs if isinstance(target, ast.Name) and is_name(value, named, words)
            }
    return named


def faults(source: str) -> Iterator[tuple[int, str]]:
    """Where a source looks for a piece of such a name, or compares a model type with one that it writes out."""
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        named, types = variables(function, NAMES), variables(function, TYPES)
        for node in ast.walk(function):
            match node:
                case ast.Compare(left=left, ops=operators, comparators=others):
                    searched = [
                        o for op, o in zip(operators, others, strict=True) if isinstance(op, ast.In | ast.NotIn)
                    ]
                    if any(is_name(one, named, NAMES) for one in searched if not isinstance(one, ast.Tuple | ast.List)):
                        yield node.lineno, f"a piece of a name: {ast.unparse(node)}"
                    sides = [left, *others]
                    if any(is_name(side, types, TYPES) for side in sides) and any(map(written_out, sides)):
                        yield node.lineno, f"a model type outside a table: {ast.unparse(node)}"
                case ast.Call(func=ast.Attribute(value=value, attr=method), args=arguments):
                    pieces = method in PIECES and is_name(value, named, NAMES)
                    if pieces or (method in SEARCHES and any(is_name(one, named, NAMES) for one in arguments)):
                        yield node.lineno, f"a piece of a name: {ast.unparse(node)}"


def written_out(side: ast.expr) -> bool:
    """Whether a side of a comparison is text, or a list of texts."""
    entries = side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]
    return any(isinstance(entry, ast.Constant) and isinstance(entry.value, str) for entry in entries)


@pytest.mark.parametrize(
    "line",
    [
        "return 'norm' in type(x).__name__.lower()",
        "name = type(x).__name__; return 'T5' in name",
        "return x.config.model_type.startswith('gpt')",
        "return re.search('moe', x['model_type'])",
        "return x.get('model_type') == 'xlnet'",
        "return getattr(x, 'model_type', '') in ('bloom', 'mpt')",
        "return any('Norm' in name for name in [type(x).__name__])",
    ],
)
def test_the_search_finds_what_it_is_for(line: str):
    assert [*faults(f"def f(x):\n    {line}")]


@pytest.mark.parametrize(
    "line",
    [
        "return x.get('model_type') in TABLE",
        "return type(x).__name__ in TABLE",
        "return type(x).__name__ == 'ByteLevel'",
        "return 'model_type' in x",
        "return f'{type(x).__name__} has no blocks'",
        "return {'a': 1}.get(type(x).__name__)",
    ],
)
def test_the_search_lets_exact_questions_be(line: str):
    assert not [*faults(f"def f(x):\n    {line}")]


def test_nobody_looks_for_a_piece_of_a_name():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {what}"
        for room in ("zoo", "compress", "plugins")
        for path in sorted((ROOT / room).rglob("*.py"))
        for number, what in faults(path.read_text(encoding="utf-8"))
    ]
    # Of a class that no table has, the end of its name is all that tells its task without importing transformers.
    assert [one for one in found if not one.startswith("zoo/family/text/tasks.py:")] == []
    assert len(found) == 1, found


def test_every_fact_names_a_model_type_of_transformers_and_its_reason():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from zoo_slm import model_types as language

    for table in (model_types, language):
        facts = {name: value for name, value in vars(table).items() if name.isupper()}
        assert facts
        for name, entries in facts.items():
            assert set(entries) <= set(CONFIG_MAPPING_NAMES), name
    assert all(map(str.strip, (*model_types.UNREADABLE_QKV.values(), *model_types.NUMBERED_HEADS.values())))


class Gain(nn.Module):
    """A norm that no name tells, as MobileBERT's."""

    def __init__(self, *shape: int, **values: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        vars(self).update(values)


def test_a_norm_is_told_by_its_structure():
    class NormalLinear(nn.Linear):
        """Whose name has the word, and which is none."""

    assert looks_like_norm(Gain(8)) and looks_like_norm(Gain(2, 4, variance_epsilon=1e-6))
    assert looks_like_norm(nn.LayerNorm(8, elementwise_affine=False)) and looks_like_norm(nn.GroupNorm(2, 8))
    assert not looks_like_norm(NormalLinear(8, 8)) and not looks_like_norm(nn.Embedding(8, 8))
    assert not looks_like_norm(nn.Sequential(nn.LayerNorm(8))) and not looks_like_norm(nn.ReLU())
    assert not looks_like_norm(Gain(8, 8)) and not looks_like_norm(nn.Conv2d(8, 8, 1))


def test_a_table_of_experts_is_told_by_how_many_its_module_says_it_has():
    class Experts(nn.Module):
        """Whose name has the word, and whose sizes do not."""

    block = nn.ModuleDict({"first": Gain(4, 8, 6, num_experts=4), "second": Gain(3, 8, 6, num_experts=4)})
    block["third"] = Experts()
    block["third"].table = nn.Parameter(torch.ones(4, 8, 6))
    assert [*expert_tables(block, "")] == ["first.weight"]
    assert [*expert_tables(nn.ModuleDict({"experts": block["third"]}), "")] == ["experts.table"]
