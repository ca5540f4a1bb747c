"""The nearest right thing: named where one may be meant, and not where none is near."""

from __future__ import annotations

import pytest

from zoo.errors import nearest

CHOICES = ("tiny-code", "zlata", "list", "inspect", "compress", "run", "quantize.int8", "inherit", "bfloat16")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("tiny-cod", "tiny-code"),
        ("TINY-CODE", "tiny-code"),
        ("lst", "list"),
        ("compres", "compress"),
        ("bf16", "bfloat16"),
        ("int8", "quantize.int8"),  # was 'inherit'
        ("quant", "quantize.int8"),
        ("llama", ""),  # was 'zlata'
        ("my-model", ""),  # was 'tiny-code'
        ("install", ""),  # was 'inspect'
        ("train", ""),  # was 'run'
        ("", ""),
        ("x", ""),
    ],
)
def test_only_what_is_near_is_suggested(name: str, near: str):
    assert nearest(name, CHOICES) == (f" Did you mean {near!r}?" if near else "")
