"""What a model says of itself."""

from __future__ import annotations

import zoo_compress

import zoo


def test_repr_is_one_line_whatever_the_size():
    model = zoo.load("tiny-code", weights="random")
    assert repr(model) == "<Model tiny-code: causal-lm, 3,221,952 parameters, float32 on cpu>"
    zoo_compress.apply(model, "inherit", {"layers": "first:3"})
    zoo_compress.apply(model, "quantize.int8")
    assert repr(model).endswith(" parameters, float32 on cpu, inherit > quantize.int8>")
    assert repr(model.skeleton()).count("\n") == 0 and "on meta" in repr(model.skeleton())
