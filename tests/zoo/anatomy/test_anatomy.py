"""Targets: names, dotted prefixes, ranges of blocks and parts, and what is said of a name that is not there."""

from __future__ import annotations

import pytest

from zoo.anatomy.parts import FFN, Anatomy, Block, Part, Stack
from zoo.errors import RequestError, UnknownName

pytestmark = pytest.mark.quick


def stack(name: str, path: str, blocks: int) -> Stack:
    def ffn(at: str) -> FFN:
        return FFN(at, Part(f"{at}.up", 0, 8), Part(f"{at}.down", 1, 8))

    return Stack(name, path, tuple(Block(f"{path}.{i}", ffn=ffn(f"{path}.{i}.ffn")) for i in range(blocks)))


UNET = Anatomy(
    stacks={
        "unet.down.0": stack("unet.down.0", "d0", 1),
        "unet.down.1": stack("unet.down.1", "d1", 2),
        "unet.mid": stack("unet.mid", "m", 4),
        "text_encoder": stack("text_encoder", "t", 2),
    },
    layers={"unet.down.1": ("d1.conv",), "decoder": ("decoder.in", "decoder.out"), "unet.downsample": ("s",)},
)


@pytest.mark.parametrize(
    ("target", "blocks", "layers"),
    [
        ("unet.mid", ["m.0", "m.1", "m.2", "m.3"], []),
        ("unet.down", ["d0.0", "d1.0", "d1.1"], ["d1.conv"]),  # not unet.downsample
        ("unet.down.1", ["d1.0", "d1.1"], ["d1.conv"]),
        ("unet.mid.blocks[1:3]", ["m.1", "m.2"], []),
        ("unet.mid.blocks[-1]", ["m.3"], []),
        ("unet.down.blocks[1:]", ["d1.1"], []),
        ("unet.down.ffn", ["d0.0", "d1.0", "d1.1"], []),
        ("decoder", [], ["decoder.in", "decoder.out"]),
    ],
)
def test_a_target_selects_what_its_name_begins(target: str, blocks: list[str], layers: list[str]) -> None:
    found = UNET.select(target)
    assert [block.path for block in found.blocks] == blocks
    assert list(found.layers) == layers


def test_all_is_every_stack_and_layer() -> None:
    found = UNET.select("all")
    assert len(found.blocks) == 9 and len(found.layers) == 4 and found.whole


def test_a_target_of_several_stacks_has_no_single_one() -> None:
    with pytest.raises(
        RequestError, match=r"'unet.down' takes in 2 stacks of blocks; name one of unet.down.0, unet.down.1"
    ):
        _ = UNET.select("unet.down").stack
    with pytest.raises(RequestError, match="'decoder' has no stack of blocks"):
        _ = UNET.select("decoder").stack


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("unet.dwn", "No part of the model is called 'unet.dwn'. Did you mean 'unet.down'? Parts: unet.down.0, "),
        ("decoder.blocks[0]", "'decoder.blocks[0]' selects no block"),
        ("unet.mid.blocks[9:]", "'unet.mid.blocks[9:]' selects no block: unet.mid has 4 blocks."),
        ("unet/mid", "No part of the model is called 'unet/mid'."),
        ("", "No part of the model is called ''."),
    ],
)
def test_what_selects_nothing_is_named_with_what_there_is(target: str, sentence: str) -> None:
    with pytest.raises(UnknownName) as error:
        UNET.select(target)
    assert str(error.value).startswith(sentence)


def test_the_main_stack_is_the_language_or_the_first() -> None:
    assert UNET.stack().name == "unet.down.0" and UNET.stack("unet.mid").name == "unet.mid"
    both = Anatomy(stacks={"vision": stack("vision", "v", 1), "language": stack("language", "l", 1)})
    assert both.stack().name == "language"
    with pytest.raises(UnknownName, match=r"No stack of blocks is called 'visoin'. Did you mean 'vision'\?"):
        both.stack("visoin")
